"""Batches cut from tensors that already sit where the network does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from riskmtl.training.sampling import Sampling

Batch = tuple[Tensor, Tensor, Tensor | None]


class TensorBatches:
    """
    An iterable of batches without a data loader: one index per batch, no work per row.

    Parameters
    ----------
    x : Tensor of shape (rows, features)
    y : Tensor of shape (rows, tasks)
    weights : Tensor of shape (rows,) or (rows, tasks), optional
    size : int
        Rows per batch.
    seed : int, optional
        Shuffle anew each epoch, the same way for the same seed and epoch, and drop the last,
        shorter batch. ``None``: keep the order and all rows.
    epoch : callable, optional
        Gives the number of the epoch, so that a resumed run shuffles as the first would have.
    process, processes : int
        Which of several processes takes its share of every shuffled batch here. The shares are as
        even as they can be, and together they are the batch that one process would have.
    sampling : Sampling, optional
        Which rows make up the shuffled batches; default: each row comes once. Where a step trains
        one task, the labels of the others are NaN in its batch.

    Examples
    --------
    >>> batches = TensorBatches(torch.arange(5.0)[:, None], torch.zeros(5, 1), size=2, seed=0)
    >>> len(batches), [len(x) for x, _, _ in batches]
    (2, [2, 2])
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None = None,
        *,
        size: int,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        process: int = 0,
        processes: int = 1,
        sampling: Sampling | None = None,
    ) -> None:
        self.x, self.y, self.weights = x, y, weights
        self.size = min(size, len(x))
        self.seed = seed
        self.epoch = epoch
        self.process, self.processes = process, processes
        self.sampling = Sampling(len(x)) if sampling is None else sampling

    def __len__(self) -> int:
        if self.seed is None:
            return -(-len(self.x) // self.size)
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is None:
            for start in range(0, len(self.x), self.size):
                rows = slice(start, start + self.size)
                yield self.x[rows], self.y[rows], _take(self.weights, rows)
            return
        epoch = self.epoch()
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        drawn, tasks = self.sampling.draw(generator, epoch=epoch, steps=len(self), size=self.size)
        batches = drawn.to(self.x.device).tensor_split(self.processes, dim=1)[self.process]
        for step, chosen in enumerate(batches):
            y = self.y[chosen] if tasks is None else _only(self.y[chosen], int(tasks[step]))
            yield self.x[chosen], y, _take(self.weights, chosen)


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """Seed for what is random within one epoch, so that an epoch can be repeated by itself."""
    # torch looks at the last 32 bits only: that is where processes have to differ.
    return (seed * 1_000_003 + epoch + process * 2_654_435_761) % 2**63


def _take(weights: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    return None if weights is None else weights[rows]


def _only(y: Tensor, task: int) -> Tensor:
    """Labels that observe one task alone."""
    alone = torch.full_like(y, torch.nan)
    alone[:, task] = y[:, task]
    return alone
