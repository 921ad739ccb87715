"""Which rows are held out for early stopping and calibration where the user gives none."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

# With fewer rows nothing is held out: validation is on the training rows, and nothing calibrated.
FEWEST_TO_HOLD_OUT = 100


def held_out_rows(
    labels: NDArray[np.float64], times: pl.Series | None, *, share: float, seed: int
) -> NDArray[np.bool_]:
    """
    Choose the latest rows, or without times a share of each pattern of labels.

    Parameters
    ----------
    labels : ndarray of shape (rows, tasks)
        NaN where the outcome is not observed.
    times : polars.Series, optional
        Moments of the rows.
    share : float
        Share of the observed rows of each task.
    seed : int

    Returns
    -------
    ndarray of bool, shape (rows,)
        None is chosen of fewer than :data:`FEWEST_TO_HOLD_OUT` rows.

    Examples
    --------
    >>> labels = np.array([[0.0], [1.0]] * 100)
    >>> int(held_out_rows(labels, None, share=0.1, seed=0).sum())
    20
    """
    if len(labels) < FEWEST_TO_HOLD_OUT:
        return np.zeros(len(labels), dtype=bool)
    if times is not None and times.n_unique() > 1:
        chosen = latest_rows(labels, times, share=share)
        observed = ~np.isnan(labels)
        # A task that began late would lose its training rows.
        if (observed[~chosen].sum(0) >= observed.sum(0) / 2).all():
            return chosen
    return share_of_patterns(labels, share=share, seed=seed)


def latest_rows(
    labels: NDArray[np.float64], times: pl.Series, *, share: float
) -> NDArray[np.bool_]:
    """
    Choose the latest rows, from early enough that every task has a share of its observed rows.

    Young rows often have no mature outcome: a share of all rows could hold none for a task.
    Parameters as in :func:`held_out_rows`.
    """
    moments = times.cast(pl.Int64).to_numpy()
    starts = [np.quantile(moments[~np.isnan(column)], 1 - share) for column in labels.T]
    chosen: NDArray[np.bool_] = moments >= min(starts)
    return chosen if not chosen.all() else moments > moments.min()


def share_of_patterns(labels: NDArray[np.float64], *, share: float, seed: int) -> NDArray[np.bool_]:
    """
    Choose a share of the rows of each pattern of events, non-events and unobserved labels.

    Parameters as in :func:`held_out_rows`; a regression counts as an event where it is positive.
    """
    state = np.where(np.isnan(labels), 2, labels > 0).astype(np.int64)
    pattern = state @ 3 ** np.arange(labels.shape[1])
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(pattern[shuffled], kind="stable")]
    _, start, count = np.unique(pattern[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(start, count)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order] = rank < np.round(share * np.repeat(count, count))
    return chosen
