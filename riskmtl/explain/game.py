"""The game that is explained: which columns change together, and what answers for which heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.explain.mixtures import (
    Function,
    MixedLayers,
    MixedRows,
    MixedSum,
    Mixtures,
    first_width,
)
from riskmtl.model import RiskModel, sigmoid
from riskmtl.scorers import NetworkScorer

# Mixtures skip the widest layer, so more of them than rows stay in a cache.
_MIXTURES_PER_ROW = 2
# That are kept of the background's first layers: a gigabyte.
_MOST_NUMBERS = 2**28


def grouped(model: RiskModel, groups: Mapping[str, Sequence[str]] | None) -> dict[str, list[int]]:
    """
    Give each feature its columns.

    Parameters
    ----------
    model : RiskModel
    groups : mapping of str to sequence of str, optional
        Columns that are explained as one; a column in no group is a feature of its own.

    Returns
    -------
    dict of str to list of int
        Positions of the columns of each feature, features in the order of their first columns.

    Raises
    ------
    ValueError
        If a column is unknown or in two groups, or a group has the name of a column.
    """
    names = [column.name for column in model.encoder.columns_]
    groups = groups or {}
    group_of: dict[str, str] = {}
    for group, members in groups.items():
        if isinstance(members, str):
            raise ValueError(f"groups: {group!r} must be a list of columns, got {members!r}")
        for column in members:
            if column not in names:
                raise ValueError(f"groups: {unknown_name('column', column, names)}")
            if column in group_of:
                raise ValueError(f"groups: column {column!r} is in two groups")
            group_of[column] = group
    for group in groups:
        if group in names:
            raise ValueError(
                f"groups: {group!r} is the name of a column: give the group another name"
            )
    found: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        found.setdefault(group_of.get(name, name), []).append(position)
    return found


def chosen_heads(model: RiskModel, heads: Sequence[str] | None) -> list[str]:
    """Heads asked for, all binary ones by default; unknown or repeated ones are refused."""
    chosen = model.tasks if heads is None else [heads] if isinstance(heads, str) else list(heads)
    for name in chosen:
        if name in [head.task for head in model.heads if head.kind != "binary"]:
            raise ValueError(f"heads: {name!r} predicts a number; explained are {model.tasks}")
        if name not in model.tasks:
            raise ValueError(f"heads: {unknown_name('head', name, model.tasks)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"heads must name at least one head, and each once, got {chosen}")
    return chosen


def answers_of(model: RiskModel, heads: Sequence[str], scale: str, calibrated: bool) -> Function:
    """The chosen heads' answers for encoded rows."""

    def answers(rows: torch.Tensor) -> NDArray[np.float64]:
        encoded = rows if rows.is_cuda else rows.numpy()
        outputs = model.outputs(encoded, calibrated=calibrated)
        return _on_scale(np.column_stack([outputs[head] for head in heads]), scale)

    return answers


def mixtures_of(
    model: RiskModel,
    rows: NDArray[np.float32],
    background: NDArray[np.float32],
    groups: Sequence[Sequence[int]],
    *,
    heads: Sequence[str],
    scale: str,
    calibrated: bool,
    threads: int = 1,
) -> Mixtures:
    """
    Set a game up in the way that is quickest for a model.

    Parameters
    ----------
    model : RiskModel
    rows : ndarray of shape (rows, columns)
        Encoded rows to explain.
    background : ndarray of shape (background rows, columns)
    groups : sequence of sequence of int
        Columns that change together.
    heads : sequence of str
    scale : {"log_odds", "probability"}
    calibrated : bool
    threads : int
        As :func:`riskmtl.threads.one_thread_each` gives them.

    Returns
    -------
    Mixtures
        On the device of a network that answers alone.
    """
    answers, scorer = answers_of(model, heads, scale, calibrated), model.scorer
    x, compared = torch.from_numpy(rows), torch.from_numpy(background)
    if model.is_blend:
        asked: dict[str, Any] = {
            "heads": heads,
            "scale": "log_odds",
            "calibrated": True,
            "threads": threads,
        }
        parts = model.parts().values()
        own = np.array([model.heads[i].blend for i in positions_of(model, heads)])
        return MixedSum(
            answers,
            x,
            compared,
            groups,
            parts=[mixtures_of(part, rows, background, groups, **asked) for part in parts],
            weights=np.stack([own, 1 - own]),
            finish=lambda margins: _on_scale(margins, scale),
        )
    if not isinstance(scorer, NetworkScorer):
        return MixedRows(answers, x, compared, groups)
    x, compared = x.to(scorer.device), compared.to(scorer.device)
    width = sum(first_width(network) for network in scorer.networks)
    if width * len(groups) * len(compared) > _MOST_NUMBERS:
        return MixedRows(answers, x, compared, groups)
    chosen = positions_of(model, heads)

    def finish(raw: NDArray[np.float64]) -> NDArray[np.float64]:
        found = model.finished(raw[:, scorer.places], calibrated=calibrated)
        return _on_scale(found[:, chosen], scale)

    return MixedLayers(
        answers,
        x,
        compared,
        groups,
        networks=scorer.networks,
        finish=finish,
        most=_MIXTURES_PER_ROW * scorer.rows,
        threads=threads,
    )


def positions_of(model: RiskModel, heads: Sequence[str]) -> list[int]:
    """Positions of heads among those of the model."""
    names = [head.task for head in model.heads]
    return [names.index(head) for head in heads]


def _on_scale(margins: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    return margins if scale == "log_odds" else sigmoid(margins)
