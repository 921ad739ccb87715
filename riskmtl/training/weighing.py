"""
Weights of the tasks' losses that follow from the losses alone.

Every way of weighing is measured by the plain sum: where all tasks are alike, their weights are 1,
so that learning rate and clipping mean the same. A task that no row of a batch observes has loss 0
there; it changes neither its own weight nor those of the others. What a method makes of the losses
is multiplied by the task's own weight, ``task_weights``, afterwards: several methods would undo it
otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riskmtl.given import is_number
from riskmtl.networks import Network

_SMALLEST = 1e-8  # of a loss that is divided by, or whose logarithm is taken


class Balancing(nn.Module):
    """
    The sum of the tasks' losses, each with its weight; base of all that weigh otherwise.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
        Factor on each task's loss, whatever a subclass makes of it.

    Attributes
    ----------
    wants_shared : bool
        Whether :meth:`forward` wants the last shared representation.
    looks_back : bool
        Whether :meth:`look_back` wants the losses of the same batch after the step.
    compiles : bool
        Whether it goes with a compiled network.
    compares : bool
        Whether it does nothing but weigh tasks of one batch by each other.
    over_processes : callable, optional
        Where several processes train together: maps a tensor to its mean over them.

    Examples
    --------
    >>> balancing = Balancing(torch.tensor([1.0, 0.5]))
    >>> balancing(torch.tensor([3.0, 2.0]), torch.tensor([True, True])).item()
    4.0
    """

    looks_back: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    task_weights: Tensor

    def __init__(self, task_weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("task_weights", task_weights)
        self.wants_shared = False
        self.over_processes: Callable[[Tensor], Tensor] | None = None

    @property
    def latest(self) -> Tensor:
        """The factor on each task's loss in the last step that observed it, ``(tasks,)``."""
        return self.task_weights

    def mean_weights(self) -> Tensor:
        """The mean of these factors over the steps of this epoch, ``(tasks,)``."""
        return self.latest

    def start_epoch(self, seed: int) -> None:
        """
        Begin an epoch.

        Parameters
        ----------
        seed : int
            The same in all processes, and another for each epoch.
        """

    def forward(
        self,
        losses: Tensor,
        present: Tensor,
        shared: Tensor | None = None,
        warmth: Tensor | None = None,
    ) -> Tensor:
        """
        Turn losses into what is minimised.

        Parameters
        ----------
        losses : Tensor of shape (tasks,)
        present : Tensor of bool, shape (tasks,)
            Whether any row of the batch observes the task; if none does, its loss is 0.
        shared : Tensor, optional
            The last representation through which every loss reaches the shared part.
        warmth : Tensor of shape (tasks,), optional
            What of its gradient each loss has been left with, lest that be taken for its length.

        Returns
        -------
        Tensor of shape ()
        """
        return (losses * self.task_weights).sum()

    def backward(self, loss: Tensor, network: Network) -> None:
        """
        Add gradients to those of the parameters.

        Parameters
        ----------
        loss : Tensor of shape ()
            What :meth:`forward` gave, with penalties and factors of the trainer.
        network : Network
        """
        torch.autograd.backward(loss)

    def look_back(self, losses: Tensor, present: Tensor) -> None:
        """
        Learn from what a step did.

        Parameters
        ----------
        losses, present : Tensor of shape (tasks,)
            As for :meth:`forward`, of the same batch after the step.
        """


class Static(Balancing):
    """The sum with weights that the user gives; a task without one has weight 1."""


class Weighing(Balancing, ABC):
    """
    Losses with a factor each that changes from step to step; base class.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    """

    _latest: Tensor
    _sums: Tensor
    _counts: Tensor

    def __init__(self, task_weights: Tensor) -> None:
        super().__init__(task_weights)
        self.register_buffer("_latest", task_weights.clone())
        for name in ("_sums", "_counts"):
            # A resumed run begins with a whole epoch, and so with nothing added up.
            self.register_buffer(name, torch.zeros_like(task_weights), persistent=False)

    @property
    def latest(self) -> Tensor:
        """The factor on each task's loss in the last step that observed it, ``(tasks,)``."""
        return self._latest

    def mean_weights(self) -> Tensor:
        """The mean of these factors over the steps of this epoch, ``(tasks,)``."""
        return torch.where(self._counts > 0, self._sums / self._counts.clamp_min(1), self._latest)

    def start_epoch(self, seed: int) -> None:
        """Begin an epoch."""
        self._sums = torch.zeros_like(self._sums)
        self._counts = torch.zeros_like(self._counts)

    @abstractmethod
    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """
        What multiplies each loss and the task's own weight.

        Parameters
        ----------
        losses : Tensor of shape (tasks,)
            Without gradient.
        present : Tensor of bool, shape (tasks,)

        Returns
        -------
        Tensor of shape (tasks,)
            Finite, whatever is present.
        """

    def forward(
        self,
        losses: Tensor,
        present: Tensor,
        shared: Tensor | None = None,
        warmth: Tensor | None = None,
    ) -> Tensor:
        """Turn losses into what is minimised."""
        present = self.everywhere(present)
        factors = self.factors(self.over_all(losses.detach()), present)
        self.record(factors, present)
        return (losses * (factors * self.task_weights)).sum()

    def everywhere(self, present: Tensor) -> Tensor:
        """Whether any process observes the task."""
        return self.over_all(present.to(self.task_weights.dtype)) > 0

    def over_all(self, values: Tensor) -> Tensor:
        """Mean over the processes: of losses, those of the whole batch."""
        return values if self.over_processes is None else self.over_processes(values)

    def record(self, factors: Tensor, present: Tensor) -> None:
        """Note the factors of a step, for :attr:`latest` and :meth:`mean_weights`."""
        self._latest = torch.where(present, factors * self.task_weights, self._latest)
        self._sums = self._sums + self._latest * present
        self._counts = self._counts + present


class Uncertainty(Weighing):
    r"""
    Weights by learned variances (Kendall et al. 2018, equations 7 and 10).

    A binary task contributes :math:`e^{-s_t} L_t + s_t / 2` and a regression
    :math:`e^{-s_t} L_t / 2 + s_t / 2`, with :math:`s_t = \log \sigma_t^2` learned by the network's
    optimiser from 0, without decay and clipping. The whole term is multiplied by the task's weight,
    lest the variance make up for it.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    regression : Tensor of bool, shape (tasks,), optional
        Which losses are squared errors; default: none.

    Examples
    --------
    >>> balancing = Uncertainty(torch.ones(2), torch.tensor([False, True]))
    >>> balancing(torch.tensor([3.0, 2.0]), torch.tensor([True, True])).item()
    4.0
    """

    halves: Tensor

    def __init__(self, task_weights: Tensor, regression: Tensor | None = None) -> None:
        super().__init__(task_weights)
        self.log_variances = nn.Parameter(torch.zeros_like(task_weights))
        halves = torch.ones_like(task_weights)
        if regression is not None:
            halves = torch.where(regression, 0.5, halves)
        self.register_buffer("halves", halves, persistent=False)

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """The precision of each task, halved for a regression."""
        return self.halves * torch.exp(-self.log_variances)

    def forward(
        self,
        losses: Tensor,
        present: Tensor,
        shared: Tensor | None = None,
        warmth: Tensor | None = None,
    ) -> Tensor:
        """Turn losses into what is minimised."""
        present = self.everywhere(present)
        factors = self.factors(losses, present)
        self.record(factors.detach(), present)
        terms = factors * losses + self.log_variances / 2
        # Chosen, so that the variance of an absent task has gradient 0.
        return (self.task_weights * torch.where(present, terms, torch.zeros_like(terms))).sum()


class DynamicWeightAverage(Weighing):
    r"""
    Weights by how fast the losses fall (Liu et al. 2019, equation 7).

    :math:`\lambda_t = T \, \mathrm{softmax}(r / \tau)_t`, where :math:`r_t` is the mean loss of the
    last epoch over that of the one before. A task that one of them did not observe has weight 1,
    and is not among the :math:`T`.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    temperature : float
        The higher, the more alike the weights.

    Examples
    --------
    >>> balancing = DynamicWeightAverage(torch.ones(2))
    >>> both = torch.tensor([True, True])
    >>> for epoch, losses in enumerate([[2.0, 2.0], [2.0, 1.0], [1.0, 1.0]]):
    ...     balancing.start_epoch(epoch)
    ...     loss = balancing(torch.tensor(losses), both)
    >>> balancing.latest
    tensor([1.1244, 0.8756])
    """

    past: Tensor
    loss_sums: Tensor
    loss_counts: Tensor
    weights: Tensor

    def __init__(self, task_weights: Tensor, *, temperature: float = 2.0) -> None:
        super().__init__(task_weights)
        self.temperature = positive("temperature", temperature)
        zeros = torch.zeros_like(task_weights)
        # (last epoch and the one before, tasks)
        self.register_buffer("past", torch.full((2, len(zeros)), math.nan))
        self.register_buffer("loss_sums", zeros)
        self.register_buffer("loss_counts", zeros.clone())
        self.register_buffer("weights", torch.ones_like(zeros))

    def start_epoch(self, seed: int) -> None:
        """Begin an epoch: weigh by the two before."""
        super().start_epoch(seed)
        if not self.loss_counts.any():
            return
        self.past = torch.stack([self.loss_sums / self.loss_counts, self.past[0]])
        ratios = self.past[0] / self.past[1]
        known = ratios.isfinite()
        weights = softmax_over(ratios / self.temperature, known) * known.sum()
        self.weights = torch.where(known, weights, torch.ones_like(weights))
        self.loss_sums = torch.zeros_like(self.loss_sums)
        self.loss_counts = torch.zeros_like(self.loss_counts)

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of this epoch."""
        self.loss_sums = self.loss_sums + losses
        self.loss_counts = self.loss_counts + present
        return self.weights


class RandomWeights(Weighing):
    r"""
    Weights drawn anew each step (Lin et al. 2022): the softmax of normal numbers, times the tasks.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)

    Examples
    --------
    >>> balancing = RandomWeights(torch.ones(3))
    >>> balancing.start_epoch(0)
    >>> round(balancing(torch.ones(3), torch.tensor([True, True, True])).item(), 5)
    3.0
    """

    compares = True

    def __init__(self, task_weights: Tensor) -> None:
        super().__init__(task_weights)
        self._generator = torch.Generator()

    def start_epoch(self, seed: int) -> None:
        """Begin an epoch: all processes draw alike, and a resumed run as the first did."""
        super().start_epoch(seed)
        self._generator.manual_seed(seed)

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """Shares of those that are present, times their number."""
        drawn = torch.randn(len(losses), generator=self._generator).to(losses)
        return softmax_over(drawn, present) * present.sum()


class GeometricMean(Weighing):
    r"""
    The geometric mean of the losses (Chennupati et al. 2019), times the number of tasks.

    With task weights :math:`a_t` it is :math:`A \prod_t L_t^{a_t / A}`, where :math:`A` is their
    sum; so the factor on a loss is its task's weight times the mean over the loss.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)

    Examples
    --------
    >>> balancing = GeometricMean(torch.ones(2))
    >>> balancing(torch.tensor([1.0, 4.0]), torch.tensor([True, True])).item()
    4.0
    >>> balancing.latest
    tensor([2.0000, 0.5000])
    """

    compares = True

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """The geometric mean over each loss."""
        shares = self.task_weights * present
        logarithms = losses.clamp_min(_SMALLEST).log()
        mean = (shares * logarithms).sum() / shares.sum().clamp_min(_SMALLEST)
        return torch.where(present, torch.exp(mean - logarithms), torch.ones_like(losses))


class FAMO(Weighing):
    r"""
    Weights under which all losses fall at the same rate (Liu et al. 2023, algorithm 1).

    The factors are proportional to :math:`z_t / L_t` with :math:`z = \mathrm{softmax}(w)`, and add
    up to the number of tasks. After the step, which takes another forward pass over the same batch,
    :math:`w` falls for tasks whose loss fell more than others'.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    gamma : float
        Decay of :math:`w`.
    learning_rate : float
        Of :math:`w`, which Adam trains.

    Examples
    --------
    >>> balancing, both = FAMO(torch.ones(2)), torch.tensor([True, True])
    >>> loss = balancing(torch.tensor([1.0, 3.0]), both)
    >>> balancing.latest
    tensor([1.5000, 0.5000])
    >>> balancing.look_back(torch.tensor([0.5, 3.0]), both)
    >>> balancing.logits
    tensor([-0.0250,  0.0250])
    """

    looks_back = True
    compares = True
    logits: Tensor

    def __init__(
        self, task_weights: Tensor, *, gamma: float = 1e-3, learning_rate: float = 0.025
    ) -> None:
        super().__init__(task_weights)
        self.register_buffer("logits", torch.zeros_like(task_weights))
        self.adam = Adam(
            len(task_weights),
            learning_rate=positive("learning_rate", learning_rate),
            decay=not_negative("gamma", gamma),
        )
        self._before: tuple[Tensor, Tensor] | None = None

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """Shares over losses, made to add up to the number of those present."""
        self._before = losses, present
        shares = softmax_over(self.logits, present) / losses.clamp_min(_SMALLEST)
        return shares * present.sum() / shares.sum().clamp_min(_SMALLEST)

    def look_back(self, losses: Tensor, present: Tensor) -> None:
        """Lower the logits of tasks whose loss fell more than others'."""
        assert self._before is not None
        before, took_part = self._before
        present, losses = self.everywhere(present) & took_part, self.over_all(losses)
        fallen = before.clamp_min(_SMALLEST).log() - losses.clamp_min(_SMALLEST).log()
        shares = softmax_over(self.logits, present)
        gradient = shares * (fallen - (shares * fallen).sum())
        self.logits = self.adam(self.logits, gradient, present)


class Adam(nn.Module):
    """
    Adam (Kingma & Ba 2015) over one number per task, whose state a checkpoint keeps.

    Parameters
    ----------
    tasks : int
    learning_rate : float
    decay : float
        Pulls the numbers towards 0.

    Notes
    -----
    Each task has a count of its own: one that is absent stays exactly as it is.

    Examples
    --------
    >>> adam = Adam(2, learning_rate=0.1)
    >>> adam(torch.zeros(2), torch.tensor([5.0, 5.0]), torch.tensor([True, False]))
    tensor([-0.1000,  0.0000])
    """

    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, tasks: int, *, learning_rate: float, decay: float = 0.0) -> None:
        super().__init__()
        self.learning_rate, self.decay = learning_rate, decay
        for name in ("first", "second", "count"):
            self.register_buffer(name, torch.zeros(tasks))

    def forward(self, values: Tensor, gradient: Tensor, present: Tensor) -> Tensor:
        """
        Values after a step.

        Parameters
        ----------
        values, gradient : Tensor of shape (tasks,)
        present : Tensor of bool, shape (tasks,)

        Returns
        -------
        Tensor of shape (tasks,)
        """
        gradient = gradient + self.decay * values
        self.count = self.count + present
        self.first = torch.where(present, 0.9 * self.first + 0.1 * gradient, self.first)
        squares = 0.999 * self.second + 0.001 * gradient.square()
        self.second = torch.where(present, squares, self.second)
        count = self.count.clamp_min(1)
        mean, square = self.first / (1 - 0.9**count), self.second / (1 - 0.999**count)
        step = self.learning_rate * mean / (square.sqrt() + 1e-8)
        return torch.where(present, values - step, values)


def softmax_over(values: Tensor, present: Tensor) -> Tensor:
    """
    Softmax over some of the tasks; the others, or all if none is present, have share 0.

    Parameters
    ----------
    values : Tensor of shape (tasks,)
    present : Tensor of bool, shape (tasks,)

    Returns
    -------
    Tensor of shape (tasks,)

    Examples
    --------
    >>> softmax_over(torch.zeros(3), torch.tensor([True, False, True]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    shares = torch.where(present, values, torch.full_like(values, -math.inf)).softmax(0)
    return torch.where(present, shares, torch.zeros_like(shares))


# ---- What the user may say -----------------------------------------------------------------------


def positive(name: str, value: Any) -> float:
    """Give an option back if it is a positive number, else say that it must be."""
    if not _is_finite(value) or not value > 0:
        raise _refused(name, "a positive number", value)
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """Give an option back if it is a number of at least 0, else say that it must be."""
    if not _is_finite(value) or not value >= 0:
        raise _refused(name, "a number of at least 0", value)
    return float(value)


def share(name: str, value: Any) -> float:
    """Give an option back if it is a number from 0 to 1, else say that it must be."""
    if not _is_finite(value) or not 0 <= value <= 1:
        raise _refused(name, "a number from 0 to 1", value)
    return float(value)


def count(name: str, value: Any) -> int:
    """Give an option back if it is a whole number of at least 1, else say that it must be."""
    if not _is_finite(value) or value != int(value) or value < 1:
        raise _refused(name, "a whole number of at least 1", value)
    return int(value)


def one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    """Give an option back if it is one of some words, else say that it must be."""
    if value not in valid:
        raise _refused(name, " or ".join(map(repr, valid)), value)
    return str(value)


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _refused(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"balancing_options: {name} must be {wanted}, got {value!r}")
