"""Rows whose outcome is known, checked once for all statistics of a head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def seen_rows(
    labels: NDArray[Any], scores: NDArray[Any], *, probabilities: bool = False
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """
    Labels and scores of the rows whose outcome is observed.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    scores : ndarray of shape (rows,)
    probabilities : bool
        Whether the scores must lie between 0 and 1.

    Returns
    -------
    labels, scores : ndarray of shape (observed,)
    kept : ndarray of bool, shape (rows,)
        Which rows these are.

    Raises
    ------
    ValueError
        If the shapes differ, a label is another value, or a score is NaN or out of range.

    Examples
    --------
    >>> y, s, kept = seen_rows(np.array([1, np.nan, 0]), np.array([0.3, 0.9, 0.1]))
    >>> y.tolist(), s.tolist(), kept.tolist()
    ([1.0, 0.0], [0.3, 0.1], [True, False, True])
    """
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    what = "probabilities" if probabilities else "scores"
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels have shape {y.shape} and {what} {s.shape}: give (rows,) of each")
    kept = ~np.isnan(y)
    y, s = y[kept], s[kept]
    if not ((y == 0) | (y == 1)).all():
        raise ValueError("labels must be 0, 1, or NaN for not observed")
    if np.isnan(s).any():
        raise ValueError("a score is NaN where the label is observed: score every such row")
    if probabilities and not ((s >= 0) & (s <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    return y, s, kept


def log_odds(probabilities: Array) -> Array:
    """Log-odds of probabilities, finite at 0 and 1."""
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(probabilities, tiny, 1 - tiny)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
