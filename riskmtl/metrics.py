"""
Metrics per task over the rows whose outcome is observed.

Labels are float64 of shape (rows, tasks) with NaN where the outcome is not observed; the mask is
``~isnan(labels)`` here as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Metric = Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], float]


def roc_auc(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """
    Area under the ROC curve of one task.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    probabilities : ndarray of shape (rows,)
        Any score that ranks.
    weights : ndarray of shape (rows,), optional

    Returns
    -------
    float
        NaN if only one class is observed.

    Examples
    --------
    >>> roc_auc(np.array([0.0, 1.0, np.nan]), np.array([0.1, 0.7, 0.9]))
    1.0
    """
    from sklearn.metrics import roc_auc_score

    y, p, w = _observed(labels, probabilities, weights)
    return float(roc_auc_score(y, p, sample_weight=w)) if _has_both(y) else float("nan")


def average_precision(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """Average precision of one task; parameters and NaN as in :func:`roc_auc`."""
    from sklearn.metrics import average_precision_score

    y, p, w = _observed(labels, probabilities, weights)
    return float(average_precision_score(y, p, sample_weight=w)) if _has_both(y) else float("nan")


def brier(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """Mean squared error of the probabilities of one task; NaN if nothing is observed."""
    y, p, w = _observed(labels, probabilities, weights)
    return float(np.average((p - y) ** 2, weights=w)) if len(y) else float("nan")


def log_loss(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """Mean negative log-likelihood of one task, in nats; NaN if nothing is observed."""
    y, p, w = _observed(labels, probabilities, weights)
    if not len(y):
        return float("nan")
    p = np.clip(p, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    return float(np.average(-(y * np.log(p) + (1 - y) * np.log1p(-p)), weights=w))


def log_loss_skill(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None = None
) -> float:
    """
    Share of the base rate's log-loss that the probabilities of one task save.

    Parameters and NaN as in :func:`roc_auc`. 1 is perfect, 0 no better than the base rate; also
    known as McFadden's R². Heads of any base rate can be averaged.
    """
    y, _, w = _observed(labels, probabilities, weights)
    if not _has_both(y):
        return float("nan")
    rate = np.average(y, weights=w)
    base = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(1 - log_loss(labels, probabilities, weights) / base)


def recall_at_fpr(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    weights: NDArray[Any] | None = None,
    *,
    fpr: float = 0.01,
) -> float:
    """
    Share of events caught at a given share of false alarms.

    Parameters
    ----------
    labels, probabilities, weights
        As in :func:`roc_auc`.
    fpr : float
        Share of non-events flagged. Between two thresholds the ROC curve is followed in a line.

    Returns
    -------
    float
        NaN if only one class is observed.
    """
    from sklearn.metrics import roc_curve

    y, p, w = _observed(labels, probabilities, weights)
    if not _has_both(y):
        return float("nan")
    false_alarms, caught, _ = roc_curve(y, p, sample_weight=w)
    return float(np.interp(fpr, false_alarms, caught))


METRICS: Mapping[str, Metric] = {
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    "brier": brier,
    "log_loss": log_loss,
    "log_loss_skill": log_loss_skill,
    "recall_at_fpr": recall_at_fpr,
}
LOWER_IS_BETTER = frozenset({"brier", "log_loss"})


def evaluate(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    tasks: Sequence[str],
    weights: NDArray[Any] | None = None,
) -> pl.DataFrame:
    """
    All metrics of all tasks.

    Parameters
    ----------
    labels : ndarray of shape (rows, tasks)
        NaN for not observed.
    probabilities : ndarray of shape (rows, tasks)
    tasks : sequence of str
    weights : ndarray of shape (rows,), optional

    Returns
    -------
    polars.DataFrame
        One row per task: ``task``, ``observed`` (rows), ``events``, ``rate``, the metrics, and
        ``recall_at_5pct_fpr`` beside ``recall_at_1pct_fpr``.

    Examples
    --------
    >>> table = evaluate(np.array([[0.0], [1.0]]), np.array([[0.2], [0.9]]), ["fraud"])
    >>> table.select("task", "observed", "events", "roc_auc").row(0)
    ('fraud', 2, 1, 1.0)
    """
    rows = []
    for position, task in enumerate(tasks):
        y, p = labels[:, position], probabilities[:, position]
        seen = ~np.isnan(y)
        rows.append(
            {
                "task": task,
                "observed": int(seen.sum()),
                "events": int(y[seen].sum()),
                "rate": float(y[seen].mean()) if seen.any() else float("nan"),
                "roc_auc": roc_auc(y, p, weights),
                "average_precision": average_precision(y, p, weights),
                "brier": brier(y, p, weights),
                "log_loss": log_loss(y, p, weights),
                "recall_at_1pct_fpr": recall_at_fpr(y, p, weights, fpr=0.01),
                "recall_at_5pct_fpr": recall_at_fpr(y, p, weights, fpr=0.05),
            }
        )
    return pl.DataFrame(rows)


def _observed(
    labels: NDArray[Any], probabilities: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    seen = ~np.isnan(labels)
    if weights is not None:
        seen &= weights > 0
    chosen = None if weights is None else weights[seen].astype(np.float64)
    return labels[seen].astype(np.float64), probabilities[seen].astype(np.float64), chosen


def _has_both(labels: NDArray[Any]) -> bool:
    return bool(len(labels)) and bool(labels.min() != labels.max())
