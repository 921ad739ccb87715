"""What follows from the number of training rows where nobody chose it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Best on validation rows of all benchmark tables together; see reports/benchmarks/search.md.
_PEAK_RATE, _PEAK_BATCH = 8e-3, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
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
    epochs : int
        Most epochs.
    """

    members: int
    experts: int
    batch_size: int
    epochs: int

    @classmethod
    def make(cls, rows: int) -> Sizes:
        """
        Choose sizes for a table.

        Members keep a small table from being learned by heart; a large one gains more from further
        experts, and would pay most for members. Small batches and more epochs leave small tables
        enough steps.

        Parameters
        ----------
        rows : int
            Training rows.

        Returns
        -------
        Sizes
        """
        return next(sizes for fewer_than, sizes in _STEPS if rows < fewer_than)


_FEW = Sizes(members=8, experts=1, batch_size=256, epochs=10)
_MANY = Sizes(members=1, experts=2, batch_size=1024, epochs=6)
# Rows below which they hold.
_STEPS: tuple[tuple[float, Sizes], ...] = (
    (10_000, replace(_FEW, batch_size=128)),
    (50_000, _FEW),
    (150_000, replace(_MANY, batch_size=512, epochs=8)),
    (math.inf, _MANY),
)


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
