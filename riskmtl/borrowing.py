"""How much a head with very few events takes from the other heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from riskmtl.blending import blend_weight
from riskmtl.calibration import Calibrator, fit_calibrator
from riskmtl.model import Head, sigmoid, uncalibrated
from riskmtl.training.rows import TrainingRows


def borrowing(
    heads: Sequence[Head],
    raw: NDArray[np.float64],
    rows: TrainingRows,
    validation: TrainingRows,
    *,
    few: int,
) -> list[Head]:
    r"""
    Let heads with few events lean on the others, as far as validation rows bear it out.

    Parameters
    ----------
    heads : sequence of Head
    raw : ndarray of shape (rows, heads)
        The network's outputs for the validation rows.
    rows, validation : TrainingRows
        Those trained on, and those held out.
    few : int
        Events in training from which a head stands on its own.

    Returns
    -------
    list of Head
        Those with fewer events lean on the others where that pays on the validation rows, which
        must observe events and others of that head.

    Notes
    -----
    The head's log-odds :math:`z_h` become :math:`w (a z_h + b) + (1 - w)(c \bar z + d)`, with
    :math:`\bar z` the mean of the other binary heads. Both sides are calibrated on the validation
    rows, by slope and intercept or, where events are too few for a slope, by the intercept alone;
    then :math:`w` in [0, 1] has the least log-loss there. A few events cannot teach a head much:
    where its risk is related to the others', their order of the rows is better than what it has
    learned by heart, and where it is not, :math:`w` stays near 1.
    """
    z = uncalibrated(heads, raw)
    binary = [i for i, head in enumerate(heads) if head.kind == "binary"]
    found = list(heads)
    for i in binary:
        labels, others = _counted(validation, i), [j for j in binary if j != i]
        # Rows of one class have no order to compare.
        has_both = 0 < np.nansum(labels) < (~np.isnan(labels)).sum()
        if np.nansum(_counted(rows, i)) >= few or not others or not has_both:
            continue
        mean = z[:, others].mean(1)
        own = _calibrator(labels, z[:, i], validation.weights)
        lent = _calibrator(labels, mean, validation.weights)
        share = blend_weight(labels, own.apply(z[:, i]), lent.apply(mean), validation.weights)
        if share < 1:
            found[i] = replace(
                heads[i],
                own=share * own.slope,
                lent=(1 - share) * lent.slope,
                lift=share * own.intercept + (1 - share) * lent.intercept,
            )
    return found


def _counted(rows: TrainingRows, head: int) -> NDArray[np.float64]:
    """Labels of a head, NaN too where a row has no weight."""
    labels = rows.y[:, head].astype(np.float64)
    return labels if rows.weights is None else np.where(rows.weights > 0, labels, np.nan)


def _calibrator(
    labels: NDArray[np.float64], margins: NDArray[np.float64], weights: NDArray[np.float32] | None
) -> Calibrator:
    """Slope and intercept; or the intercept alone, that brings the mean to the observed rate."""
    from scipy.optimize import brentq

    fitted = fit_calibrator(labels, margins, weights)
    if fitted.is_fitted:
        return fitted
    seen = ~np.isnan(labels)
    chosen = None if weights is None else weights[seen]
    rate = np.average(labels[seen], weights=chosen)
    # From where every row is below the rate to where every row is above it.
    level = np.log(rate / (1 - rate))
    low, high = level - margins[seen].max() - 1, level - margins[seen].min() + 1
    lift = brentq(
        lambda lift: np.average(sigmoid(margins[seen] + lift), weights=chosen) - rate, low, high
    )
    return Calibrator(intercept=float(lift))
