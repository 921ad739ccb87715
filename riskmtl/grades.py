"""Rating grades: bands of probability, from the best to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASTER_SCALE = (0.001, 0.0025, 0.005, 0.0075, 0.0125, 0.02, 0.035, 0.06, 0.12, 0.25, 1.0)


def grades_of(
    probabilities: NDArray[Any], bounds: Sequence[float] = MASTER_SCALE
) -> NDArray[np.int64]:
    """
    Put probabilities into grades.

    Parameters
    ----------
    probabilities : ndarray of shape (rows,)
    bounds : sequence of float
        Ascending upper bounds of the grades' probabilities, the last one 1.

    Returns
    -------
    ndarray of int64, shape (rows,)
        From 1, the best.

    Raises
    ------
    ValueError
        If the bounds do not ascend to 1.

    Examples
    --------
    >>> grades_of(np.array([0.0005, 0.001, 0.9])).tolist()
    [1, 1, 11]
    """
    upper = np.asarray(bounds, dtype=np.float64)
    if not len(upper) or upper[-1] != 1 or not upper[0] > 0 or not (np.diff(upper) > 0).all():
        raise ValueError(
            f"grades must be ascending upper bounds that end in 1, got {tuple(bounds)}"
        )
    return np.searchsorted(upper[:-1], probabilities, side="left") + 1
