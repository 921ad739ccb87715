"""Some of very many rows, for what needs no more than a part of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread(rows: int, most: int) -> NDArray[np.int64]:
    """
    Choose rows from all over a table: one of each stretch, so that no rhythm of it is met.

    Parameters
    ----------
    rows : int
        Rows of the table.
    most : int
        Rows to choose at most.

    Returns
    -------
    ndarray of shape (chosen,)
        Places that rise, all of them where there are no more than `most`; the same in each call.

    Examples
    --------
    >>> spread(3, 5)
    array([0, 1, 2])
    >>> spread(10, 5) // 2
    array([0, 1, 2, 3, 4])
    """
    stretch = max(1, -(-rows // most))
    starts = np.arange(0, rows, stretch)
    lengths = np.minimum(stretch, rows - starts)
    return starts + np.random.default_rng(0).integers(lengths)
