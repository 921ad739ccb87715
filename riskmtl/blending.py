"""How much of a blend is the network's, and how much its challenger's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Where validation rows cannot tell, neither model is preferred.
UNDECIDED = 0.5


def blend_weight(
    labels: NDArray[Any],
    network: NDArray[Any],
    challenger: NDArray[Any],
    weights: NDArray[Any] | None = None,
) -> float:
    """
    Fit the network's share of the blended log-odds of one head.

    The share with the least log-loss is taken, 0 and 1 among them: on the rows it is fitted on, a
    blend is never worse than the better of its parts.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    network, challenger : ndarray of shape (rows,)
        Calibrated log-odds.
    weights : ndarray of shape (rows,), optional

    Returns
    -------
    float
        In [0, 1]; :data:`UNDECIDED` where only one class is observed.

    Examples
    --------
    >>> labels = np.array([0.0, 0.0, 1.0, 1.0])
    >>> blend_weight(labels, np.array([-2.0, -2.0, 2.0, 2.0]), np.array([1.0, -1.0, 1.0, -1.0]))
    1.0
    """
    from scipy.optimize import minimize_scalar

    seen = ~np.isnan(labels)
    if weights is not None:
        seen &= weights > 0
    y = labels[seen].astype(np.float64)
    if not len(y) or y.min() == y.max():
        return UNDECIDED
    own, other = network[seen], challenger[seen]
    chosen = None if weights is None else weights[seen].astype(np.float64)

    def loss(share: float) -> float:
        z = share * own + (1 - share) * other
        return float(np.average(np.logaddexp(0, z) - y * z, weights=chosen))

    # Convex in the share, so that the best inner one and the two ends are all there is to compare.
    inner = float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)
    return min((0.0, 1.0, inner), key=loss)
