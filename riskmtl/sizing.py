"""What follows from the number of training rows where nobody chose it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


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
    rate : float
        Peak learning rate at a batch of 1024 rows.
    embedding_decay : float
        Decoupled decay of the embedding's matrices.
    steps : int
        Distinct values up to which each value of a numeric feature is embedded by itself.
    """

    members: int
    experts: int
    batch_size: int
    rate: float
    embedding_decay: float = 2.0
    steps: int = 1

    @classmethod
    def make(cls, rows: int) -> Sizes:
        """
        Choose sizes for a table.

        Members keep a small table from being learned by heart, and bear a higher rate; a large one
        gains more from further experts, and pays most for members. Small batches leave small tables
        enough steps of the optimiser. A value with a vector of its own needs hundreds of rows;
        decay keeps vectors of rare values short where members do not.

        Parameters
        ----------
        rows : int
            Training rows.

        Returns
        -------
        Sizes
        """
        sizes = next(sizes for fewer_than, sizes in _BY_ROWS if rows < fewer_than)
        return replace(sizes, steps=min(_MOST_STEPS, max(1, rows // _ROWS_PER_STEP)))

    def learning_rate(self, batch_size: int) -> float:
        """
        Peak learning rate for a batch: in proportion to the square root of its size.

        Parameters
        ----------
        batch_size : int

        Returns
        -------
        float

        Examples
        --------
        >>> Sizes.make(10**6).learning_rate(256)
        0.002
        """
        return self.rate * math.sqrt(batch_size / _RATED_BATCH)


_RATED_BATCH = 1024
_ROWS_PER_STEP = 500
_MOST_STEPS = 256
_FEW = Sizes(members=8, experts=1, batch_size=256, rate=0.008, embedding_decay=0.01)
_MANY = Sizes(members=2, experts=2, batch_size=1024, rate=0.004)
# Rows below which they hold; see reports/benchmarks/search.md.
_BY_ROWS: tuple[tuple[float, Sizes], ...] = (
    (10_000, replace(_FEW, batch_size=128)),
    (50_000, _FEW),
    (150_000, Sizes(members=1, experts=1, batch_size=512, rate=0.002)),
    (math.inf, _MANY),
)
