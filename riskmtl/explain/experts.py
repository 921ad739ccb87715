"""What the experts of a network are used for: who listens to each, and what each listens to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.model import RiskModel
from riskmtl.networks import Gated, Network
from riskmtl.scorers import NetworkScorer

SHARED = "shared"
_PAIRS = 4


def gate_use(
    model: RiskModel, encoded: NDArray[np.float32], segments: Sequence[str | None] | pl.Series
) -> pl.DataFrame:
    """
    Mean weight that each head's gate gives each expert, per segment of the rows.

    Parameters
    ----------
    model : RiskModel
    encoded : ndarray of shape (rows, columns)
    segments : sequence of str, of length rows
        Which segment each row belongs to.

    Returns
    -------
    polars.DataFrame
        See :meth:`riskmtl.MultiTaskClassifier.gates`.

    Raises
    ------
    ValueError
        If the model has no gates, or there are no rows.
    """
    networks, scorer = _gated_networks(model)
    if not len(encoded):
        raise ValueError("there are no rows: gates differ from row to row")
    frames = []
    for network, names in networks:
        parts = [_weights(network, rows) for rows in scorer.batches(encoded)]
        streams = _streams(network, encoded[:1], scorer)
        for level, stream in enumerate(streams):
            weights = np.concatenate([part[level] for part in parts], axis=1)
            lines = [
                (level + 1, names[gate], expert, weights[gate, :, position])
                for gate in range(len(weights))
                for position, expert in enumerate(_expert_names(stream, names))
                if stream[position] in (gate, len(names) - 1) or gate == len(names) - 1
            ]
            frames += [_by_segment(*line, segments) for line in lines]
    return pl.concat(frames)


def expert_columns(
    model: RiskModel,
    encoded: NDArray[np.float32],
    background: NDArray[np.float32],
    *,
    seed: int = 0,
) -> pl.DataFrame:
    r"""
    How far each column moves each expert.

    Parameters
    ----------
    model : RiskModel
    encoded : ndarray of shape (rows, columns)
    background : ndarray of shape (background rows, columns)
    seed : int

    Returns
    -------
    polars.DataFrame
        See :meth:`riskmtl.MultiTaskClassifier.expert_columns`.

    Raises
    ------
    ValueError
        If the model has no gates, or there are no rows.

    Notes
    -----
    A row's column :math:`j` is replaced by that of a background row, :math:`x \to x_{j \leftarrow
    b}`, and the move of expert :math:`e` is :math:`\lVert h_e(x) - h_e(x_{j \leftarrow b})
    \rVert`, over all members; each row meets four background rows. Columns that an expert uses
    only together share no credit here: this is no Shapley value.
    """
    networks, scorer = _gated_networks(model)
    if not len(encoded):
        raise ValueError("there are no rows: experts differ from row to row")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(background), size=(_PAIRS, len(encoded)))
    features = [column.name for column in model.encoder.columns_]
    frames = []
    for network, names in networks:
        streams = _streams(network, encoded[:1], scorer)
        moves = _moves(network, scorer, encoded, background[drawn])
        frames += [
            _by_column(level + 1, _expert_names(stream, names), move, features)
            for level, (stream, move) in enumerate(zip(streams, moves, strict=True))
        ]
    return pl.concat(frames)


def _moves(
    network: Network,
    scorer: NetworkScorer,
    encoded: NDArray[np.float32],
    partners: NDArray[np.float32],
) -> list[NDArray[np.float64]]:
    """
    How far each column moves each expert of each level, ``(columns, experts, rows)``.

    Mean over the partners, ``(pairs, rows, columns)``.
    """
    at_rows = _responses(network, scorer, encoded)
    moves: list[list[NDArray[np.float64]]] = [[] for _ in at_rows]
    for column in range(encoded.shape[1]):
        moved = [np.zeros(response.shape[:2]) for response in at_rows]
        for partner in partners:
            changed = encoded.copy()
            changed[:, column] = partner[:, column]
            for level, response in enumerate(_responses(network, scorer, changed)):
                difference = np.linalg.norm(response - at_rows[level], axis=-1)
                moved[level] += difference / len(partners)
        for level, move in enumerate(moved):
            moves[level].append(move)
    return [np.stack(level) for level in moves]


def _gated_networks(model: RiskModel) -> tuple[list[tuple[Network, list[str]]], NetworkScorer]:
    """Each network, with the names of its tasks and of what these share."""
    scorer = model.parts().get(NetworkScorer.name, model).scorer
    if not isinstance(scorer, NetworkScorer):
        raise _no_gates(scorer.name)
    if scorer.shape.cut_trunks:
        raise ValueError(
            "the network keeps the gates and experts of heads that it does not answer for: "
            "ask the model that it was taken from"
        )
    anything = torch.zeros(1, len(scorer.cardinalities), device=scorer.device)
    with torch.inference_mode():
        has_gates = all(network.gated(anything) for network in scorer.networks)
    if not has_gates:
        raise _no_gates(scorer.shape.network)
    names = [head.task for head in model.scored]
    if isinstance(scorer.network, Network):
        return [(scorer.network, [*names, SHARED])], scorer
    tasks = [[names[task] for task in group] for group in scorer.network.groups]
    shared = [[*group, f"{SHARED} by {'+'.join(group)}"] for group in tasks]
    return list(zip(scorer.networks, shared, strict=True)), scorer


def _no_gates(kind: str) -> ValueError:
    return ValueError(
        f"a model of kind {kind!r} has no gates: networks with experts have, such as network='ple'"
    )


def _weights(network: Network, rows: Tensor) -> list[NDArray[np.float64]]:
    """Weights of each level, ``(gates, rows, experts)``, averaged over the members."""
    with torch.inference_mode():
        levels = network.gated(rows)
    return [_by_member(level.weights, len(rows)).mean(1).double().cpu().numpy() for level in levels]


def _responses(
    network: Network, scorer: NetworkScorer, encoded: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Outputs of the experts of each level, ``(experts, rows, members * width)``."""
    with torch.inference_mode():
        parts = [
            [_by_member(level.experts, len(rows)).movedim(1, -1).flatten(2) for level in levels]
            for rows in scorer.batches(encoded)
            for levels in [network.gated(rows)]
        ]
    return [torch.cat(level, dim=1).cpu().numpy() for level in zip(*parts, strict=True)]


def _by_member(x: Tensor, rows: int) -> Tensor:
    """Map ``(groups, members * rows, width)`` to ``(groups, members, rows, width)``."""
    return x.view(len(x), -1, rows, x.shape[-1])


def _streams(network: Network, row: NDArray[np.float32], scorer: NetworkScorer) -> list[list[int]]:
    """The stream of each expert, level by level."""
    with torch.inference_mode():
        levels: list[Gated] = network.gated(next(scorer.batches(row)))
    return [level.stream.tolist() for level in levels]


def _expert_names(stream: Sequence[int], names: Sequence[str]) -> list[str]:
    """Such as "fraud 1" and "shared 2"."""
    return [
        f"{names[owner]} {1 + list(stream[:position]).count(owner)}"
        for position, owner in enumerate(stream)
    ]


def _by_segment(
    level: int,
    head: str,
    expert: str,
    weights: NDArray[np.float64],
    segments: Sequence[str | None] | pl.Series,
) -> pl.DataFrame:
    frame = pl.DataFrame({"segment": segments, "weight": weights}, schema_overrides=_TEXT)
    return (
        frame.group_by("segment", maintain_order=True)
        .agg(
            pl.col("weight").mean(),
            pl.col("weight").std(ddof=0).alias("spread"),
            pl.len().cast(pl.Int64).alias("rows"),
        )
        .sort("segment", nulls_last=True)
        .select(
            pl.lit(level).cast(pl.Int64).alias("level"),
            pl.lit(head).alias("head"),
            pl.lit(expert).alias("expert"),
            "segment",
            "weight",
            "spread",
            "rows",
        )
    )


_TEXT = {"segment": pl.String}


def _by_column(
    level: int, experts: Sequence[str], moves: NDArray[np.float64], features: Sequence[str]
) -> pl.DataFrame:
    """One line per expert and column, from moves ``(columns, experts, rows)``."""
    mean = moves.mean(-1).T  # (experts, columns)
    whole = np.maximum(mean.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    errors = moves.std(-1, ddof=1).T / np.sqrt(moves.shape[-1]) if moves.shape[-1] > 1 else None
    size = len(experts), len(features)
    return pl.DataFrame(
        {
            "level": np.full(size, level).ravel(),
            "expert": np.repeat(experts, len(features)),
            "feature": list(features) * len(experts),
            "share": (mean / whole).ravel(),
            "error": np.full(size, np.nan).ravel() if errors is None else (errors / whole).ravel(),
        }
    )
