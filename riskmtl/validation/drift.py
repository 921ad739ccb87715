"""Whether two samples of rows differ: stability indices, a classifier, migration of grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.encoding import MISSING, UNSEEN
from riskmtl.stability import StabilityIndex, stability_of_counts
from riskmtl.validation.curves import auc_interval
from riskmtl.validation.ranges import require_count

_POOLED = 0.01


@dataclass(frozen=True, slots=True)
class DriftClassifier:
    """How well two samples can be told apart, and by which columns (``column``, ``gain``)."""

    auc: float
    low: float
    high: float
    columns: pl.DataFrame


def stability_index(
    reference: NDArray[Any], current: NDArray[Any], *, bins: int = 10, categorical: bool = False
) -> StabilityIndex:
    """
    Population stability index of one column or score.

    Parameters
    ----------
    reference, current : ndarray of shape (rows,) each
        NaN is missing, a bin of its own.
    bins : int
        At the reference's quantiles.
    categorical : bool
        Whether each value is a bin; those that are rarer than 1 % in both are one bin.

    Returns
    -------
    StabilityIndex
        See :func:`riskmtl.stability.stability_of_counts`.

    Raises
    ------
    ValueError
        If a sample is empty, or `bins` is below 1.

    Examples
    --------
    >>> same = np.arange(1000.0)
    >>> stability_index(same, same).psi
    0.0
    """
    require_count("bins", bins)
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if not len(a) or not len(b):
        raise ValueError("a sample has no rows: give rows of both")
    return stability_of_counts(*_counted(a, b, bins, categorical))


def stability_of_columns(
    reference: NDArray[np.float32],
    current: NDArray[np.float32],
    columns: Sequence[str],
    categorical: Sequence[bool],
) -> pl.DataFrame:
    """
    Stability index of each column of encoded rows.

    Parameters
    ----------
    reference, current : ndarray of shape (rows, columns)
    columns : sequence of str
    categorical : sequence of bool

    Returns
    -------
    polars.DataFrame
        A line per column: ``column``, ``psi``, ``p_value``, ``critical``, ``missing_reference``,
        ``missing_current`` and ``unseen_current``, shares of rows; the last is null for numbers.

    Raises
    ------
    ValueError
        If the rows have other columns than are named, or a sample is empty.
    """
    if not reference.shape[1] == current.shape[1] == len(columns) == len(categorical):
        raise ValueError(
            f"{len(columns)} columns are named, for rows of {reference.shape[1]} and "
            f"{current.shape[1]}: name each"
        )
    lines = []
    for position, (name, is_code) in enumerate(zip(columns, categorical, strict=True)):
        a, b = reference[:, position], current[:, position]
        found = stability_index(a, b, categorical=is_code)
        missing = [float((x == MISSING).mean() if is_code else np.isnan(x).mean()) for x in (a, b)]
        unseen = float((b == UNSEEN).mean()) if is_code else None
        lines.append((name, found.psi, found.p_value, found.critical, *missing, unseen))
    shape = dict.fromkeys(
        ("psi", "p_value", "critical", "missing_reference", "missing_current", "unseen_current"),
        pl.Float64,
    )
    return pl.DataFrame(lines, schema={"column": pl.String, **shape}, orient="row")


def drift_classifier(
    reference: NDArray[np.float32],
    current: NDArray[np.float32],
    categorical: Sequence[bool],
    *,
    rows: int = 10_000,
    seed: int = 0,
) -> DriftClassifier:
    """
    Learn to tell two samples apart, by LightGBM in two folds.

    Parameters
    ----------
    reference, current : ndarray of shape (rows, columns)
    categorical : sequence of bool
    rows : int
        Most rows of each.
    seed : int

    Returns
    -------
    DriftClassifier
        The area under the ROC curve over rows that the trees did not see; 0.5 is no drift.
        Its interval takes the trees as given: where there is no drift it is a little too narrow,
        and its middle a little below 0.5, since the rows of one fold are not those of the other.

    Raises
    ------
    ValueError
        If `rows` is below 2.
    """
    import lightgbm

    require_count("rows", rows, least=2)
    generator = np.random.default_rng(seed)
    parts = [x[generator.permutation(len(x))[:rows]] for x in (reference, current)]
    x = np.concatenate(parts).astype(np.float64)
    y = np.repeat([0.0, 1.0], [len(part) for part in parts])
    fold = generator.permutation(len(y)) % 2
    codes = np.flatnonzero(categorical).tolist()
    settings = {"objective": "binary", "num_leaves": 15, "learning_rate": 0.1, "num_threads": 1,
                "deterministic": True, "seed": seed, "verbose": -1}  # fmt: skip
    scores, gain = np.empty(len(y)), np.zeros(x.shape[1])
    for held in (0, 1):
        data = lightgbm.Dataset(x[fold != held], y[fold != held], categorical_feature=codes)
        booster = lightgbm.train(settings, data, num_boost_round=60)
        scores[fold == held] = booster.predict(x[fold == held])
        gain += booster.feature_importance("gain")
    found = auc_interval(y, scores)
    table = pl.DataFrame({"column": np.arange(x.shape[1]), "gain": gain / max(gain.sum(), 1e-300)})
    return DriftClassifier(
        found.estimate, found.low, found.high, table.sort("gain", descending=True)
    )


def migration(before: NDArray[Any], after: NDArray[Any], grades: int) -> NDArray[np.int64]:
    """
    Count customers by their grade before and after, grades from nought.

    Raises
    ------
    ValueError
        If the lengths differ, `grades` is below 1, or a grade is not below it.

    Examples
    --------
    >>> migration(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    require_count("grades", grades)
    a, b = np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} grades before and {len(b)} after: give both of each customer")
    for given in (a, b):
        if ((given < 0) | (given >= grades)).any():
            raise ValueError(f"a grade is not one of 0 to {grades - 1}: count grades from nought")
    return np.bincount(a * grades + b, minlength=grades * grades).reshape(grades, grades)


def migration_summary(matrix: NDArray[Any]) -> dict[str, float]:
    """
    Shares of customers that stayed, and went to better and to worse (higher) grades.

    Examples
    --------
    >>> migration_summary(np.array([[1, 1], [0, 2]]))
    {'stayed': 0.75, 'better': 0.0, 'worse': 0.25}
    """
    whole = max(float(matrix.sum()), 1.0)
    parts = {"stayed": np.trace(matrix), "better": np.tril(matrix, -1).sum(),
             "worse": np.triu(matrix, 1).sum()}  # fmt: skip
    return {name: float(count) / whole for name, count in parts.items()}


def _counted(
    a: NDArray[np.float64], b: NDArray[np.float64], bins: int, categorical: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows of both samples in each bin."""
    if categorical:
        values, place = np.unique(np.concatenate([a, b]), return_inverse=True)
        first = np.bincount(place[: len(a)], minlength=len(values)).astype(np.float64)
        second = np.bincount(place[len(a) :], minlength=len(values)).astype(np.float64)
        rare = (first < _POOLED * len(a)) & (second < _POOLED * len(b))
        first, second = (np.append(counts[~rare], counts[rare].sum()) for counts in (first, second))
    else:
        known = a[~np.isnan(a)]
        edges = (
            np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
            if len(known)
            else known
        )
        first, second = (
            np.append(
                np.bincount(np.searchsorted(edges, x[~np.isnan(x)], side="left"),
                            minlength=len(edges) + 1),
                np.isnan(x).sum(),
            ).astype(np.float64)
            for x in (a, b)
        )  # fmt: skip
    return first, second
