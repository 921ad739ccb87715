"""
scikit-learn's model selection with labels that are not always observed.

Its own scorers and ``cross_val_predict`` refuse or misread NaN labels; these do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import check_cv

from riskmtl.base import MultiTaskEstimator
from riskmtl.errors import unknown_name
from riskmtl.frames import as_frame
from riskmtl.metrics import LOWER_IS_BETTER, METRICS

Scorer = Callable[..., float]


def make_scorer(metric: str, *, task: str | None = None, **options: Any) -> Scorer:
    """
    Make a scorer for ``GridSearchCV``, ``cross_validate`` or ``permutation_importance``.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "brier", "log_loss", "log_loss_skill", \
"recall_at_fpr"}
        Losses are negated, so that greater is better.
    task : str, optional
        A binary task; default: the mean over all, each over the rows that observe it.
    **options
        Passed to the metric, such as ``fpr=0.05``.

    Returns
    -------
    callable
        ``scorer(estimator, X, y, sample_weight=None)``. NaN if no task has both classes.

    Raises
    ------
    ValueError
        If the metric, or at scoring time the task, is unknown.

    Examples
    --------
    >>> scorer = make_scorer("recall_at_fpr", task="fraud", fpr=0.05)
    """
    if metric not in METRICS:
        raise ValueError(unknown_name("metric", metric, METRICS))
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def scorer(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        if task is not None and task not in estimator.tasks_:
            raise ValueError(unknown_name("task", task, estimator.tasks_))
        labels = estimator.read_labels(X, y)
        probabilities = positive_probabilities(estimator, X)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        values = [
            METRICS[metric](labels[:, i], probabilities[:, i], weights, **options)
            for i, name in enumerate(estimator.tasks_)
            if task in (None, name)
        ]
        known = [value for value in values if not np.isnan(value)]
        return sign * float(np.mean(known)) if known else float("nan")

    return scorer


def out_of_fold(
    estimator: MultiTaskEstimator,
    X: Any,
    y: Any,
    *,
    cv: Any,
    sample_weight: Any = None,
    groups: Any = None,
) -> NDArray[np.float64]:
    """
    Score every row with a model that did not see it.

    Parameters
    ----------
    estimator : MultiTaskClassifier, LightGBMBaseline or LogisticBaseline
        Cloned for each fold.
    X : table of shape (rows, columns)
    y : frame or array of shape (rows,) or (rows, tasks)
        Null or NaN where the outcome is not observed.
    cv : splitter
        Such as ``KFold(5)`` or ``TimeSeriesSplit()``; a number of folds would make scikit-learn
        look into the labels, which it cannot read.
    sample_weight, groups : array of shape (rows,), optional

    Returns
    -------
    ndarray of shape (rows, tasks)
        P(positive); NaN for rows that no fold tests.

    Raises
    ------
    TypeError
        If `cv` is a number.
    """
    if isinstance(cv, int):
        raise TypeError(f"cv must be a splitter such as KFold({cv}), not a number")
    frame = as_frame(np.asarray(X) if isinstance(X, list) else X)
    labels = y if isinstance(y, np.ndarray) else as_frame(_two_dimensional(y))
    template = clone(estimator)
    if "checkpoint_dir" in template.get_params():
        # A fold is another training than that whose checkpoint is kept there.
        template.set_params(checkpoint_dir=None)
    found: NDArray[np.float64] | None = None
    for seen, held_out in check_cv(cv).split(frame, groups=groups):
        weights = None if sample_weight is None else np.asarray(sample_weight)[seen]
        fitted = clone(template).fit(frame[seen], labels[seen], weights)
        scores = positive_probabilities(fitted, frame[held_out])
        if found is None:
            found = np.full((frame.height, scores.shape[1]), np.nan)
        found[held_out] = scores
    if found is None:
        raise ValueError("cv gave no fold")
    return found


def positive_probabilities(estimator: Any, X: Any) -> NDArray[np.float64]:
    """P(positive) of each binary task, ``(rows, tasks)``, whatever form the labels had in fit."""
    frame = estimator.predict_frame(X).select(estimator.tasks_)
    return np.asarray(frame.to_numpy(), dtype=np.float64)


def _two_dimensional(y: Any) -> Any:
    if hasattr(y, "to_frame") and not hasattr(y, "columns"):
        return y.to_frame()
    return np.asarray(y)[:, None] if isinstance(y, list) and np.ndim(y) == 1 else y
