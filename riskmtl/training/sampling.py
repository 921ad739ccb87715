"""
Which rows each step of an epoch trains on, and which tasks.

Whatever is drawn is a function of seed, epoch and, for :class:`Unresolved`, of what training has
found so far; so a resumed run draws what the first would have. All processes draw the same, and
each takes its share of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from riskmtl.training.config import TrainingConfig
from riskmtl.training.loss import observed_labels
from riskmtl.training.rows import TaskPlan, TrainingRows
from riskmtl.training.targets import constant_losses


class Drawn(NamedTuple):
    """
    What an epoch trains on.

    Parameters
    ----------
    rows : Tensor of int, shape (steps, batch)
    tasks : Tensor of int, shape (steps,), optional
        The one task that each step trains; ``None``: every step trains all of them.
    """

    rows: Tensor
    tasks: Tensor | None = None


class Sampling:
    """
    Every row once, in an order of its own each epoch: the joint schedule; base of the others.

    Parameters
    ----------
    rows : int

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> Sampling(6).draw(generator, epoch=0, steps=2, size=3).rows.shape
    torch.Size([2, 3])
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def draw(self, generator: Generator, *, epoch: int, steps: int, size: int) -> Drawn:
        """
        Draw an epoch.

        Parameters
        ----------
        generator : torch.Generator
            Seeded for this epoch.
        epoch : int
        steps, size : int
            Batches, and rows of each; at most as many as there are rows.

        Returns
        -------
        Drawn
        """
        order = torch.randperm(self.rows, generator=generator)
        return Drawn(order[: steps * size].view(steps, size))

    def corrected(self, rows: TrainingRows) -> TrainingRows:
        """Rows with weights that undo what is drawn more often than others; here as they are."""
        return rows


class MoreEvents(Sampling):
    r"""
    Some rows more often than others: row :math:`i` in proportion to its rate :math:`s_i`.

    Parameters
    ----------
    rates : Tensor of shape (rows,)

    Notes
    -----
    Divide the weight of a row by its rate, and all that is learned is as if each row came once; see
    :func:`row_rates`. Each row comes as often as it is expected to, rounded up or down at random
    (systematic sampling), which is steadier than drawing one by one.
    """

    def __init__(self, rates: Tensor) -> None:
        super().__init__(len(rates))
        self.rates = rates

    def draw(self, generator: Generator, *, epoch: int, steps: int, size: int) -> Drawn:
        """Draw an epoch, with replacement."""
        # In an order of its own, lest neighbours in the table exclude each other.
        order = torch.randperm(self.rows, generator=generator)
        counts = systematic(self.rates[order], steps * size, generator)
        drawn = order.repeat_interleave(counts)
        shuffled = drawn[torch.randperm(len(drawn), generator=generator)]
        return Drawn(shuffled.view(steps, size))

    def corrected(self, rows: TrainingRows) -> TrainingRows:
        """Rows whose weights are divided by their rates."""
        weights = (1 if rows.weights is None else rows.weights.T) / self.rates.numpy()
        return TrainingRows(rows.x, rows.y, weights.T.astype(np.float32))


class OneTask(Sampling):
    """
    One task per step, on rows that observe it; in turn.

    Parameters
    ----------
    observed : Tensor of bool, shape (rows, tasks)
        A task that no row observes gets no step.

    Notes
    -----
    An epoch has as many steps as the joint schedule's. Each task goes through its own rows in an
    order of its own, and begins anew where they are used up.
    """

    def __init__(self, observed: Tensor) -> None:
        super().__init__(len(observed))
        self.own = [column.nonzero().flatten() for column in observed.T]
        self.counts = observed.sum(0)

    def draw(self, generator: Generator, *, epoch: int, steps: int, size: int) -> Drawn:
        """Draw an epoch."""
        tasks = self.sequence(generator, epoch=epoch, steps=steps)
        rows = torch.empty(steps, size, dtype=torch.long)
        for task, own in enumerate(self.own):
            here = tasks == task
            wanted = int(here.sum()) * size
            rounds = -(-wanted // max(1, len(own)))
            orders = [torch.randperm(len(own), generator=generator) for _ in range(rounds)]
            if orders:
                rows[here] = own[torch.cat(orders)[:wanted]].view(-1, size)
        return Drawn(rows, tasks)

    def sequence(self, generator: Generator, *, epoch: int, steps: int) -> Tensor:
        """The task of each step, ``(steps,)``."""
        turn = self.counts.nonzero().flatten()
        # Where the tasks do not divide the steps, the next epoch goes on with the next task.
        return turn[(epoch * steps + torch.arange(steps)) % len(turn)]


class BySize(OneTask):
    """One task per step, in proportion to the rows that observe it; parameters as there."""

    def sequence(self, generator: Generator, *, epoch: int, steps: int) -> Tensor:
        """The task of each step, ``(steps,)``."""
        return _shuffled(self.counts.double(), steps, generator)


class Unresolved(OneTask):
    """
    One task per step, in proportion to how unresolved it still is.

    Parameters
    ----------
    observed : Tensor of bool, shape (rows, tasks)
    shares : callable
        Gives what is unresolved of each task, ``(tasks,)``; see :func:`unresolved`.
    """

    def __init__(self, observed: Tensor, shares: Callable[[], Tensor]) -> None:
        super().__init__(observed)
        self.shares = shares

    def sequence(self, generator: Generator, *, epoch: int, steps: int) -> Tensor:
        """The task of each step, ``(steps,)``."""
        return _shuffled(self.shares().double() * (self.counts > 0), steps, generator)


def unresolved(losses: Sequence[Sequence[float]], constant: Tensor) -> Tensor:
    """
    How unresolved each task still is: its training loss over that of its base rate.

    Parameters
    ----------
    losses : sequence of sequence of float
        Training loss of each task, by epoch; NaN where an epoch had no step for it.
    constant : Tensor of shape (tasks,)
        Loss of an answer that is the same for every row; for a binary task without weights the
        entropy of its base rate.

    Returns
    -------
    Tensor of shape (tasks,)
        From the latest epoch that had a step for the task; 1 where none had.

    Examples
    --------
    >>> unresolved([[0.5, 0.2], [0.3, float("nan")]], torch.tensor([0.6, 0.4]))
    tensor([0.5000, 0.5000])
    """
    found = torch.ones(len(constant))
    for epoch in losses:
        latest = torch.tensor(epoch)
        found = torch.where(latest > 0, latest / constant, found)
    return found


def row_rates(labels: Tensor, event_rates: Sequence[float]) -> Tensor:
    r"""
    How many times as often each row is drawn, so that events come often enough.

    Parameters
    ----------
    labels : Tensor of shape (rows, tasks)
    event_rates : sequence of float
        :math:`r_h` of each task; 1 of a regression.

    Returns
    -------
    Tensor of shape (rows,)
        :math:`s_i`: the largest rate among the events of the row; 1 without any.

    Notes
    -----
    The loss of head :math:`h` for row :math:`i` counts :math:`c_h(y_{ih}) / s_i`, with
    :math:`c_h = r_h` for its own event and 1 otherwise. In expectation over what is drawn in
    proportion to :math:`s_i`, a head then sees what a factor :math:`r_h` on its events would give,
    and nothing of the other heads' rates.

    Examples
    --------
    >>> row_rates(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, float("nan")]]), [2.0, 5.0])
    tensor([2., 5., 1.])
    """
    rates = torch.tensor(event_rates)
    highest = torch.where(labels == 1, rates, torch.zeros(())).amax(1)
    return torch.where(highest > 0, highest, torch.ones(()))


def systematic(weights: Tensor, total: int, generator: Generator) -> Tensor:
    """
    How often each of several is drawn: in proportion to its weight, rounded up or down at random.

    Parameters
    ----------
    weights : Tensor of shape (n,)
    total : int
    generator : torch.Generator

    Returns
    -------
    Tensor of int, shape (n,)
        Its sum is `total`, its expectation in proportion to `weights`.

    Examples
    --------
    >>> systematic(torch.tensor([3.0, 1.0]), 8, torch.Generator().manual_seed(0))
    tensor([6, 2])
    """
    reached = weights.double().cumsum(0)
    reached = (reached / reached[-1] * total).clamp(max=total)
    reached[-1] = total  # whatever the rounding
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    return (reached + offset).floor().diff(prepend=offset.floor()[None]).long()


def _shuffled(weights: Tensor, steps: int, generator: Generator) -> Tensor:
    counts = systematic(weights, steps, generator)
    sequence = torch.arange(len(weights)).repeat_interleave(counts)
    return sequence[torch.randperm(steps, generator=generator)]


def make_sampling(
    rows: TrainingRows,
    plan: TaskPlan,
    config: TrainingConfig,
    history: Callable[[], Sequence[Mapping[str, Any]]],
) -> Sampling:
    """
    Make the sampling that a training asks for.

    Parameters
    ----------
    rows : TrainingRows
        With labels as the loss sees them.
    plan : TaskPlan
    config : TrainingConfig
    history : callable
        Gives what training has found so far: an entry per epoch and task, with ``train_loss``.

    Returns
    -------
    Sampling
    """
    labels = torch.from_numpy(rows.y)
    weights = None if rows.weights is None else torch.from_numpy(rows.weights)
    observed = observed_labels(labels, weights)
    if config.schedule == "by_uncertainty":
        constant = torch.from_numpy(constant_losses(rows, plan)).float()

        def shares() -> Tensor:
            losses = [entry["train_loss"] for entry in history()]
            width = len(plan.names)
            by_epoch = [losses[i : i + width] for i in range(0, len(losses), width)]
            return unresolved(by_epoch, constant)

        return Unresolved(observed, shares)
    if config.schedule == "by_size":
        return BySize(observed)
    if config.schedule == "round_robin":
        return OneTask(observed)
    if any(rate != 1 for rate in plan.event_rates):
        return MoreEvents(row_rates(labels, plan.event_rates))
    return Sampling(len(labels))
