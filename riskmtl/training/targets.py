"""What each head is trained towards, made once from the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from riskmtl.training.rows import TaskPlan, TrainingRows

_LEAST = 1e-6  # base rate, so that its entropy is above 0


def base_rates(rows: TrainingRows) -> NDArray[np.float64]:
    """
    Weighted mean of each task's observed labels.

    Parameters
    ----------
    rows : TrainingRows

    Returns
    -------
    ndarray of shape (tasks,)
        0 for a task that no row observes.

    Examples
    --------
    >>> y = np.array([[1.0, np.nan], [0.0, 1.0]], dtype=np.float32)
    >>> base_rates(TrainingRows(np.zeros((2, 1), np.float32), y))
    array([0.5, 1. ])
    """
    observed = ~np.isnan(rows.y)
    weights = observed.astype(np.float64)
    if rows.weights is not None:
        weights *= rows.weights if rows.weights.ndim == 2 else rows.weights[:, None]
    total = weights.sum(0)
    events = (weights * np.where(observed, rows.y, 0)).sum(0)
    return np.asarray(events / np.where(total > 0, total, 1))


def smoothed(rows: TrainingRows, regression: Sequence[bool], share: float) -> TrainingRows:
    r"""
    Rows whose binary labels are softened towards their task's base rate.

    Parameters
    ----------
    rows : TrainingRows
    regression : sequence of bool
        Which tasks are regressions; their labels stay.
    share : float
        :math:`\epsilon`, the share of a label that is replaced.

    Returns
    -------
    TrainingRows

    Notes
    -----
    :math:`(1 - \epsilon) y + \epsilon \bar y` (Szegedy et al. 2016, with the distribution of the
    labels for the uniform one). Towards 1/2 a head of rare events would say :math:`\epsilon / 2`
    at least: of 1 % fraud and :math:`\epsilon` = 0.1, nearly 6 % on average. Towards the base rate
    the mean label stays what it is; probabilities draw closer to it, which calibration undoes.
    """
    softened = (1 - share) * rows.y + share * base_rates(rows)
    y = np.where(list(regression), rows.y, softened).astype(np.float32)
    return TrainingRows(rows.x, y, rows.weights)


def constant_losses(rows: TrainingRows, plan: TaskPlan) -> NDArray[np.float64]:
    """
    Training loss of each head that says the same of every row, and says the best.

    Parameters
    ----------
    rows : TrainingRows
    plan : TaskPlan

    Returns
    -------
    ndarray of shape (tasks,)
        The entropy of the base rate, or with a factor on events what that becomes; 1 for a
        regression, whose labels are standardised.

    Examples
    --------
    >>> y = np.array([[1.0], [0.0]], dtype=np.float32)
    >>> plan = TaskPlan(("fraud",), (False,), (1.0,), (1.0,))
    >>> constant_losses(TrainingRows(np.zeros((2, 1), np.float32), y), plan).round(4)
    array([0.6931])
    """
    rate = np.clip(base_rates(rows), _LEAST, 1 - _LEAST)
    events, others = rate * np.array(plan.event_factors), 1 - rate
    answer = events / (events + others)
    losses = -(events * np.log(answer) + others * np.log(1 - answer))
    return np.where(plan.regression, 1.0, losses)
