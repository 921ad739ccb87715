"""What follows from the number of training rows where nobody chose it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Rows below which: members, experts per task, rows per batch.
_STEPS = ((10_000, 8, 1, 128), (50_000, 8, 1, 256), (150_000, 8, 1, 512), (math.inf, 1, 2, 1024))
# Best on validation rows of all benchmark tables together; see reports/benchmarks/search.md.
_PEAK_RATE, _PEAK_BATCH = 8e-3, 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """
    Sizes of network and batch.

    Parameters
    ----------
    members : int
        Weight-sharing members.
    experts : int
        Experts of each task, and shared ones.
    batch_size : int
        Rows per step.
    """

    members: int
    experts: int
    batch_size: int

    @classmethod
    def make(cls, rows: int) -> Sizes:
        """
        Choose sizes for a table.

        Members keep a small table from being learned by heart; a large one gains more from further
        experts, and would pay most for members. Small batches leave small tables enough steps.

        Parameters
        ----------
        rows : int
            Training rows.

        Returns
        -------
        Sizes
        """
        return next(cls(*sizes) for fewer_than, *sizes in _STEPS if rows < fewer_than)


def learning_rate(batch_size: int) -> float:
    """
    Peak learning rate for a batch: in proportion to the square root of its size.

    Parameters
    ----------
    batch_size : int

    Returns
    -------
    float
        0.008 at 1024 rows.

    Examples
    --------
    >>> learning_rate(256)
    0.004
    """
    return _PEAK_RATE * math.sqrt(batch_size / _PEAK_BATCH)
