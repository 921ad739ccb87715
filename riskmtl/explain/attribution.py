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
from riskmtl.explain.game import answers_of, chosen_heads, grouped, mixtures_of, positions_of
from riskmtl.explain.path import path_values
from riskmtl.explain.shapley import Enough, shapley_values
from riskmtl.model import RiskModel, linear_form
from riskmtl.scorers import NetworkScorer, TreeScorer
from riskmtl.threads import one_thread_each

SCALES = ("log_odds", "probability")
METHODS = ("sampled", "path", "tree")
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
    is_enough: Enough = lambda values, errors: False,
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
    heads, groups, method, scale, calibrated, budget, seed
        As there.
    is_enough : callable
        See :func:`riskmtl.explain.shapley.shapley_values`; :func:`within` makes a usual one.

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
    heads = chosen_heads(model, heads)
    named = grouped(model, groups)
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
        found = _by_branches(model, encoded, columns, heads, calibrated, shared)
    elif method == "path":
        return _by_paths(model, encoded, background, columns, heads, calibrated, shared)
    else:
        asked: dict[str, Any] = {"heads": heads, "scale": scale, "calibrated": calibrated}
        with one_thread_each() as threads:
            mixtures = mixtures_of(model, encoded, background, columns, threads=threads, **asked)
            estimate = shapley_values(mixtures, budget=budget, is_enough=is_enough, seed=seed)
        found = Explanation(
            values=estimate.values,
            errors=estimate.errors,
            base=estimate.base,
            outputs=estimate.outputs,
            background=background_hash(background),
            permutations=estimate.permutations,
            met=estimate.met,
            **shared,
        )
    _require_additive(found)
    return found


def within(tolerance: float) -> Enough:
    """
    Hold a row for done once no standard error of a value is above a tolerance.

    Parameters
    ----------
    tolerance : float

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    return lambda values, errors: bool(errors.max() <= tolerance)


def _check(model: RiskModel, method: str, scale: str, calibrated: bool) -> None:
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if scale not in SCALES:
        raise ValueError(unknown_name("scale", scale, SCALES))
    if model.is_blend and not calibrated:
        raise ValueError("a blend mixes calibrated log-odds: explain its parts one by one")
    if method == "tree" and not (isinstance(model.scorer, TreeScorer) and not model.is_blend):
        raise ValueError("method='tree' explains LightGBM alone: use method='sampled'")
    if method == "path" and not (isinstance(model.scorer, NetworkScorer) and not model.is_blend):
        raise ValueError("method='path' explains a network alone: use method='sampled'")
    if method != "sampled" and scale != "log_odds":
        raise ValueError(f"method={method!r} explains log-odds alone: use method='sampled'")


def _by_branches(
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
    positions = positions_of(model, heads)
    values = _folded(model, raw[:, :-1], columns, positions, calibrated)
    return Explanation(
        values=values,
        errors=np.zeros_like(values),
        base=model.finished(raw[:1, -1], calibrated=calibrated)[0, positions],
        outputs=answers_of(model, heads, "log_odds", calibrated)(torch.from_numpy(encoded)),
        background="training rows",
        permutations=np.zeros(len(encoded), dtype=np.int64),
        met=np.ones(len(encoded), dtype=bool),
        **shared,
    )


def _by_paths(
    model: RiskModel,
    encoded: NDArray[np.float32],
    background: NDArray[np.float32],
    columns: Sequence[Sequence[int]],
    heads: Sequence[str],
    calibrated: bool,
    shared: Mapping[str, Any],
) -> Explanation:
    """Attributions along paths in the embedded space; nobody knows how wrong they are."""
    assert isinstance(model.scorer, NetworkScorer)
    raw = path_values(model.scorer, encoded, background)
    answers = answers_of(model, heads, "log_odds", calibrated)
    values = _folded(model, raw, columns, positions_of(model, heads), calibrated)
    return Explanation(
        values=values,
        errors=np.full_like(values, np.nan),
        base=answers(torch.from_numpy(background).to(model.scorer.device)).mean(0),
        outputs=answers(torch.from_numpy(encoded).to(model.scorer.device)),
        background=background_hash(background),
        permutations=np.zeros(len(encoded), dtype=np.int64),
        met=np.zeros(len(encoded), dtype=bool),
        **shared,
    )


def _folded(
    model: RiskModel,
    raw: NDArray[np.float64],
    columns: Sequence[Sequence[int]],
    positions: Sequence[int],
    calibrated: bool,
) -> NDArray[np.float64]:
    """Contributions to raw outputs, summed over groups, as contributions to heads' log-odds."""
    grouped = np.stack([raw[:, list(group)].sum(1) for group in columns], axis=1)
    factors, _ = linear_form(model.scored)
    slopes = [model.heads[i].calibrator.slope if calibrated else 1.0 for i in positions]
    return np.asarray(grouped @ factors[positions].T * slopes)


def _require_additive(explanation: Explanation) -> None:
    worst = float(explanation.residual.max(initial=0))
    bound = _LARGEST_RESIDUAL * max(1.0, float(np.abs(explanation.outputs).max(initial=0)))
    if not worst <= bound:
        raise ArithmeticError(
            f"the values miss the answer by up to {worst:.3g}: "
            "the model does not answer the same row the same way"
        )
