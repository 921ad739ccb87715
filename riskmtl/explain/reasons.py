"""The reasons behind a score: which columns push most towards the adverse outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.encoding import MISSING, EncodedColumn
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.game import grouped
from riskmtl.explain.shapley import Enough
from riskmtl.explain.wording import ReasonTable
from riskmtl.model import RiskModel

# Values closer than this are one value, so that rounding does not decide what comes first.
_DIGITS = 6
# Two reasons are apart if their difference is so many standard errors.
_ERRORS_APART = 2.0
SHAPE = {
    "row": pl.Int64,
    "head": pl.String,
    "rank": pl.Int64,
    "feature": pl.String,
    "code": pl.String,
    "reason": pl.String,
    "value": pl.Float64,
    "error": pl.Float64,
    "separable": pl.Boolean,
    "input": pl.String,
    "lower_quartile": pl.Float64,
    "median": pl.Float64,
    "upper_quartile": pl.Float64,
    "background_share": pl.Float64,
    "background": pl.String,
}


def explain_reasons(
    model: RiskModel,
    inputs: pl.DataFrame,
    background: NDArray[np.float32],
    *,
    head: str,
    n: int = 4,
    words: ReasonTable | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    budget: int = 16,
    seed: int = 0,
) -> pl.DataFrame:
    """
    Explain a head until its reasons are apart, and name them.

    Parameters
    ----------
    model : RiskModel
    inputs : polars.DataFrame
        Input columns of the rows to explain.
    background : ndarray of shape (background rows, columns)
    head, n, words, groups, budget, seed
        See :meth:`riskmtl.MultiTaskClassifier.reasons`.

    Returns
    -------
    polars.DataFrame
        As there.

    Raises
    ------
    ValueError
        If the head or a column is unknown, or words and model do not go together.
    """
    columns = model.encoder.columns_
    if words is not None:
        if groups is not None:
            raise ValueError("words have groups of their own: leave groups out")
        words.require_fit(head, columns, model.schema)
        groups = words.groups
    features = grouped(model, groups)
    may = np.array([words is None or name in words.reasons for name in features])
    explanation = explain_rows(
        model,
        inputs,
        background,
        heads=[head],
        groups=groups,
        budget=budget,
        is_enough=until_separable(n, may),
        seed=seed,
    )
    return reasons_of(explanation, background, columns, head=head, n=n, words=words)


def reasons_of(
    explanation: Explanation,
    background: NDArray[np.float32],
    columns: Sequence[EncodedColumn],
    *,
    head: str,
    n: int = 4,
    words: ReasonTable | None = None,
) -> pl.DataFrame:
    """
    Order the features that push a head towards the adverse outcome, row by row.

    Parameters
    ----------
    explanation : Explanation
        With standard errors.
    background : ndarray of shape (background rows, columns)
        The rows it compares with.
    columns : sequence of EncodedColumn
        Of the model.
    head : str
    n : int
        Most reasons per row.
    words : ReasonTable, optional
        The words that a customer reads. A feature without words is no reason.

    Returns
    -------
    polars.DataFrame
        See :meth:`riskmtl.MultiTaskClassifier.reasons`.

    Raises
    ------
    ValueError
        If `n` is below 1, or the explanation has no errors.
    """
    require_count(n)
    if np.isnan(explanation.errors).any():
        raise ValueError("reasons need standard errors, which method='path' has not")
    position = explanation.head(head)
    values, errors = explanation.values[:, :, position], explanation.errors[:, :, position]
    compared = _compared(explanation, background, columns)
    is_high = explanation.encoded > compared["median"]
    is_missing = _is_missing(explanation, columns)
    worded = _worded(explanation.features, words, is_high, is_missing)
    ordered, gains, spread = _ranked(values, errors, worded != "", n)
    separable = _separable(gains, spread)
    row, rank = np.nonzero(gains[:, :n] > 0)
    place = (row, ordered[row, rank])
    feature = np.array(explanation.features)[place[1]]
    codes = None if words is None else [words.reasons[name].code for name in feature]
    return pl.DataFrame(
        {
            "row": row,
            "head": [head] * len(row),
            "rank": rank + 1,
            "feature": feature,
            "code": codes,
            "reason": None if words is None else worded[place],
            "value": values[place],
            "error": errors[place],
            "separable": separable[row, rank],
            "input": _as_text(explanation, row, place[1]),
            **{name: quartile[place[1]] for name, quartile in compared.items()},
            "background_share": _alike(explanation, background, columns)[place],
            "background": [explanation.background] * len(row),
        },
        schema=SHAPE,
        nan_to_null=True,
    )


def until_separable(n: int, may: NDArray[np.bool_]) -> Enough:
    """
    Hold a row for done once its `n` first reasons are apart from the next.

    Parameters
    ----------
    n : int
    may : ndarray of bool, shape (features,)
        Which features may be reasons.

    Returns
    -------
    callable
        For the values and errors of a row and one head, ``(features, 1)``.

    Raises
    ------
    ValueError
        If `n` is below 1.
    """
    require_count(n)

    def is_enough(values: NDArray[np.float64], errors: NDArray[np.float64]) -> bool:
        _, gains, spread = _ranked(values.T, errors.T, may[None], n)
        last = max(int((gains[0, :n] > 0).sum()) - 1, 0)
        return bool(_separable(gains, spread)[0, last])

    return is_enough


def require_count(n: int) -> None:
    """Refuse to give no reasons."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")


def _ranked(
    values: NDArray[np.float64], errors: NDArray[np.float64], may: NDArray[np.bool_], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """
    Features by what they add, with what they add and its error, ``(rows, n + 1)`` each.

    Ties keep the order of the columns. A feature that adds nothing, or may not be a reason, counts
    as nothing without error.
    """
    gains = np.where(may, np.maximum(np.round(values, _DIGITS), 0.0), 0.0)
    gains = np.pad(gains, ((0, 0), (0, n + 1)))
    spread = np.where(gains > 0, np.pad(errors, ((0, 0), (0, n + 1))), 0.0)
    order = np.argsort(-gains, axis=1, kind="stable")[:, : n + 1]
    return (
        order,
        np.take_along_axis(gains, order, axis=1),
        np.take_along_axis(spread, order, axis=1),
    )


def _separable(gains: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each reason is apart from the next, ``(rows, n)``; where there is none, it is."""
    apart = gains[:, :-1] - gains[:, 1:]
    far = apart >= _ERRORS_APART * np.hypot(spread[:, :-1], spread[:, 1:])
    return np.asarray((far & (apart > 0)) | (gains[:, :-1] == 0))


def _worded(
    features: Sequence[str],
    words: ReasonTable | None,
    is_high: NDArray[np.bool_],
    is_missing: NDArray[np.bool_],
) -> NDArray[np.str_]:
    """The words of each row and feature; empty where it may not be a reason."""
    if words is None:
        return np.full(is_high.shape, "-")
    found = np.full(is_high.shape, "", dtype=object)
    for position, name in enumerate(features):
        reason = words.reasons.get(name)
        if reason is not None:
            side = np.where(is_high[:, position], reason.high, reason.low)
            found[:, position] = np.where(is_missing[:, position], reason.missing, side)
    return found.astype(str)


def _compared(
    explanation: Explanation, background: NDArray[np.float32], columns: Sequence[EncodedColumn]
) -> dict[str, NDArray[np.float64]]:
    """Quartiles of the background's known values per feature; NaN but for single numbers."""
    found = np.full((3, len(explanation.features)), np.nan)
    for position, column in _single(explanation, columns):
        known = background[:, column][~np.isnan(background[:, column])]
        if not columns[column].is_categorical and len(known):
            found[:, position] = np.quantile(known.astype(np.float64), [0.25, 0.5, 0.75])
    return dict(zip(("lower_quartile", "median", "upper_quartile"), found, strict=True))


def _alike(
    explanation: Explanation, background: NDArray[np.float32], columns: Sequence[EncodedColumn]
) -> NDArray[np.float64]:
    """Share of background rows with the same category, or with at most the number."""
    found = np.full(explanation.encoded.shape, np.nan)
    for position, column in _single(explanation, columns):
        ordered = np.sort(background[:, column].astype(np.float64))
        known = ordered[~np.isnan(ordered)]
        own = explanation.encoded[:, position]
        if columns[column].is_categorical:
            found[:, position] = (own[:, None] == known).mean(1)
        elif len(known):
            shares = np.searchsorted(known, own, side="right") / len(known)
            found[:, position] = np.where(np.isnan(own), np.nan, shares)
    return found


def _is_missing(explanation: Explanation, columns: Sequence[EncodedColumn]) -> NDArray[np.bool_]:
    found = np.zeros(explanation.encoded.shape, dtype=bool)
    for position, column in _single(explanation, columns):
        own = explanation.encoded[:, position]
        is_code = columns[column].is_categorical
        found[:, position] = own == MISSING if is_code else np.isnan(own)
    return found


def _single(explanation: Explanation, columns: Sequence[EncodedColumn]) -> list[tuple[int, int]]:
    """Positions of the features that are one column, in the explanation and in the model."""
    column_of = {column.name: position for position, column in enumerate(columns)}
    return [
        (position, column_of[name])
        for position, name in enumerate(explanation.features)
        if name in column_of
    ]


def _as_text(
    explanation: Explanation, row: NDArray[np.int64], feature: NDArray[np.int64]
) -> list[str | None]:
    """Inputs as the user gave them."""
    names = set(explanation.inputs.columns)
    texts = [
        explanation.inputs[name].cast(pl.String).to_list() if name in names else None
        for name in explanation.features
    ]
    return [
        None if (column := texts[f]) is None else column[r]
        for r, f in zip(row.tolist(), feature.tolist(), strict=True)
    ]
