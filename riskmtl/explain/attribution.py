"""Explanations of a fitted model: the game, the columns and heads, and the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.explain.background import background_hash
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.shapley import Function, shapley_values
from riskmtl.model import RiskModel, sigmoid
from riskmtl.scorers import NetworkScorer, TreeScorer

SCALES = ("log_odds", "probability")
METHODS = ("sampled", "tree")
# Of the sum, in units of the scale: what float64 leaves, with much room.
_LARGEST_RESIDUAL = 1e-6


def explain_rows(
    model: RiskModel,
    inputs: pl.DataFrame,
    background: NDArray[np.float32],
    *,
    heads: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    method: str = "sampled",
    scale: str = "log_odds",
    calibrated: bool = True,
    budget: int = 4,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Explanation:
    """
    Explain a model's answers; see :meth:`riskmtl.MultiTaskClassifier.explain`.

    Parameters
    ----------
    model : RiskModel
    inputs : polars.DataFrame
        Input columns of the rows to explain.
    background : ndarray of shape (background rows, features)
        Encoded rows to compare with.
    heads, groups, method, scale, calibrated, budget, tolerance, seed
        As there.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        If a head, column, method or scale is unknown, or if they do not go together.
    ArithmeticError
        If base and values do not add up to the answers.
    """
    _check(model, method, scale, calibrated)
    heads = _chosen_heads(model, heads)
    names = [column.name for column in model.encoder.columns_]
    named = _grouped(names, groups or {})
    encoded = model.encoder.transform(inputs)
    columns = list(named.values())
    seen = encoded.astype(np.float64)
    single = [seen[:, c[0]] if len(c) == 1 else np.full(len(seen), np.nan) for c in columns]
    shared: dict[str, Any] = {
        "features": list(named),
        "heads": heads,
        "inputs": inputs,
        "encoded": np.column_stack(single),
        "scale": scale,
        "calibrated": calibrated,
        "method": method,
    }
    if method == "tree":
        found = _by_paths(model, encoded, columns, heads, calibrated, shared)
    else:
        device = _device(model)
        estimate = shapley_values(
            _function(model, heads, scale, calibrated),
            torch.from_numpy(encoded).to(device),
            torch.from_numpy(background).to(device),
            columns,
            budget=budget,
            tolerance=tolerance,
            seed=seed,
        )
        found = Explanation(
            values=estimate.values,
            errors=estimate.errors,
            base=estimate.base,
            outputs=estimate.outputs,
            background=background_hash(background),
            permutations=estimate.permutations,
            met=estimate.errors.max((1, 2), initial=0) <= tolerance,
            **shared,
        )
    _require_additive(found)
    return found


def _check(model: RiskModel, method: str, scale: str, calibrated: bool) -> None:
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if scale not in SCALES:
        raise ValueError(unknown_name("scale", scale, SCALES))
    if model.is_blend and not calibrated:
        raise ValueError("a blend mixes calibrated log-odds: explain its parts one by one")
    if method == "tree" and not (isinstance(model.scorer, TreeScorer) and not model.is_blend):
        raise ValueError("method='tree' explains LightGBM alone: use method='sampled'")
    if method == "tree" and scale != "log_odds":
        raise ValueError("method='tree' explains log-odds alone: use method='sampled'")


def _chosen_heads(model: RiskModel, heads: Sequence[str] | None) -> list[str]:
    chosen = model.tasks if heads is None else [heads] if isinstance(heads, str) else list(heads)
    for name in chosen:
        if name not in model.tasks:
            raise ValueError(f"heads: {unknown_name('head', name, model.tasks)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"heads must name at least one head, and each once, got {chosen}")
    return chosen


def _grouped(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Columns of each group, in the order of the columns; one in no group is its own."""
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
        if group in names and group_of.get(group) != group:
            raise ValueError(f"groups: {group!r} is the name of a column outside the group")
    found: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        found.setdefault(group_of.get(name, name), []).append(position)
    return found


def _device(model: RiskModel) -> torch.device:
    """Where rows are mixed: beside the network, unless others answer too."""
    if isinstance(model.scorer, NetworkScorer) and not model.is_blend:
        return model.scorer.device
    return torch.device("cpu")


def _function(model: RiskModel, heads: Sequence[str], scale: str, calibrated: bool) -> Function:
    """The chosen heads' answers for encoded rows."""

    def answers(rows: torch.Tensor) -> NDArray[np.float64]:
        encoded = rows if rows.is_cuda else rows.numpy()
        outputs = model.outputs(encoded, calibrated=calibrated)
        margins = np.column_stack([outputs[head] for head in heads])
        return margins if scale == "log_odds" else sigmoid(margins)

    return answers


def _by_paths(
    model: RiskModel,
    encoded: NDArray[np.float32],
    columns: Sequence[Sequence[int]],
    heads: Sequence[str],
    calibrated: bool,
    shared: Mapping[str, Any],
) -> Explanation:
    """LightGBM's own attributions, which follow the training rows down each tree's branches."""
    assert isinstance(model.scorer, TreeScorer)
    raw = model.scorer.contributions(encoded)  # (rows, features + 1, heads)
    position_of = {head.task: position for position, head in enumerate(model.heads)}
    values, base = [], []
    for task in heads:
        position = position_of[task]
        head, start = model.heads[position], raw[0, -1, position]
        own = raw[:, :-1, position] * (head.calibrator.slope if calibrated else 1.0)
        values.append(np.column_stack([own[:, list(group)].sum(1) for group in columns]))
        base.append(float(head.margin(start) if calibrated else head.uncalibrated(start)))
    stacked = np.stack(values, axis=-1)
    return Explanation(
        values=stacked,
        errors=np.zeros_like(stacked),
        base=np.array(base),
        outputs=_function(model, heads, "log_odds", calibrated)(torch.from_numpy(encoded)),
        background="training rows",
        permutations=np.zeros(len(encoded), dtype=np.int64),
        met=np.ones(len(encoded), dtype=bool),
        **shared,
    )


def _require_additive(explanation: Explanation) -> None:
    worst = float(explanation.residual.max(initial=0))
    bound = _LARGEST_RESIDUAL * max(1.0, float(np.abs(explanation.outputs).max(initial=0)))
    if not worst <= bound:
        raise ArithmeticError(
            f"the values miss the answer by up to {worst:.3g}: "
            "the model does not answer the same row the same way"
        )
