"""The population stability index of two tables of counts, and what chance alone makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# With a larger p-value chance may have made an index, which then raises no alarm.
CERTAIN = 0.01


@dataclass(frozen=True, slots=True)
class StabilityIndex:
    """An index, its p-value, the index that chance passes once in twenty times, and the bins."""

    psi: float
    p_value: float
    critical: float
    bins: int


def stability_of_counts(first: NDArray[Any], second: NDArray[Any]) -> StabilityIndex:
    """
    Population stability index of rows in bins.

    Parameters
    ----------
    first, second : ndarray of shape (bins,)
        Rows of each sample; bins that neither has do not count.

    Returns
    -------
    StabilityIndex
        Where a bin is empty on one side, each count has a half added.

    References
    ----------
    B. Yurdakul and J. Naranjo (2020), Statistical properties of the population stability index,
    Journal of Risk Model Validation 14: over ``1 / n + 1 / m`` it is about chi-squared with one
    degree of freedom less than bins.

    Examples
    --------
    >>> round(stability_of_counts(np.array([50, 50]), np.array([60, 40])).psi, 4)
    0.0405
    """
    from scipy.stats import chi2

    used = first + second > 0
    a, b = (np.asarray(counts, dtype=np.float64)[used] for counts in (first, second))
    size = len(a)
    if size < 2 or not a.sum() or not b.sum():
        return StabilityIndex(0.0, 1.0, 0.0, size)
    scale = 1 / a.sum() + 1 / b.sum()
    if (a == 0).any() or (b == 0).any():
        a, b = a + 0.5, b + 0.5
    p, q = a / a.sum(), b / b.sum()
    psi = float(((q - p) * np.log(q / p)).sum())
    p_value = float(chi2.sf(psi / scale, size - 1))
    return StabilityIndex(psi, p_value, float(scale * chi2.ppf(0.95, size - 1)), size)
