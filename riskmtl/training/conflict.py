"""
Weights of the tasks' gradients, from how these lie to one another.

Each task has a gradient with respect to what the tasks share. Their inner products, one small
matrix, say how long each gradient is and which ones pull against each other; the methods here
(TorchJD's, but for GradNorm and Nash-MTL) turn that matrix into a weight per task, and a step
follows the weighted sum.

Every method is measured by the plain sum: where gradients are equally long and at the same angle to
one another, no wider than a right one, all weights are 1 (Aligned-MTL's are smaller in between the
right angle and none). So learning rate and clipping mean the same; what is clipped is the weighted
sum. The losses are multiplied by ``task_weights``
beforehand. What a task has for itself, such as its tower, keeps its plain gradient. A task that no
row of a batch observes has no gradient there: it is left out of the matrix, and keeps its weight.
The matrix knows nothing of a warm-up, which multiplies a task's gradient and not its weight.

Common to all are two options. ``at`` says where gradients are taken:

- ``"parameters"``: with respect to the shared parameters. Exact; costs a backward pass per task.
- ``"representation"``: with respect to the last representation that is shared, which is short of
  the layers before it, and so cheaper: a backward pass per task through the heads, and one through
  the whole. An approximation: gradients that agree there may disagree at the parameters.

``every`` says at how many steps the weights are found anew, beginning with the first of each epoch;
steps in between cost one backward pass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from riskmtl.networks import Network
from riskmtl.training.gradients import Gradients, Owned, averaged, inner_products, task_gradients
from riskmtl.training.weighing import (
    Adam,
    Weighing,
    count,
    not_negative,
    one_of,
    positive,
)

AT = ("parameters", "representation")

# Where gradients are opposite there is no bargain, and Newton's steps would go on for ever.
_NEWTON_STEPS = 50


class GradientWeighing(Weighing):
    """
    A weight per task from the inner products of the tasks' gradients; base class.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    at : {"parameters", "representation"}
        Where gradients are taken.
    every : int
        Steps after which the weights are found anew.

    Attributes
    ----------
    weighs_own : bool
        Whether the weights count for what a task has for itself too.
    """

    compiles = False
    compares = True
    weighs_own: ClassVar[bool] = False

    weights: Tensor

    def __init__(self, task_weights: Tensor, *, at: str = "parameters", every: int = 1) -> None:
        super().__init__(task_weights)
        self.wants_shared = one_of("at", at, AT) == "representation"
        self.every = count("every", every)
        self.register_buffer("weights", torch.ones_like(task_weights))
        self._step = 0
        self._held: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None
        self._anchor: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        """Whether what a task owns gets its gradient in every step whatever the losses reach."""
        return self.weighs_own or (not self.wants_shared and self.every == 1)

    @abstractmethod
    def solve(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        """
        The weights of some tasks.

        Parameters
        ----------
        gramian : Tensor of float64, shape (tasks, tasks)
            Inner products of their gradients, none 0; the mean of the diagonal is 1.
        losses : Tensor of shape (tasks,)
            Their losses.
        tasks : sequence of int
            Which tasks these are: two at least.

        Returns
        -------
        Tensor of shape (tasks,)
        """

    def start_epoch(self, seed: int) -> None:
        """Begin an epoch, with new weights."""
        super().start_epoch(seed)
        self._step = 0

    def factors(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights that were found last."""
        return self.weights

    def forward(
        self,
        losses: Tensor,
        present: Tensor,
        shared: Tensor | None = None,
        warmth: Tensor | None = None,
    ) -> Tensor:
        """Keep the losses for :meth:`backward`; what is given has no gradient from them."""
        if not self.wants_shared:
            shared = None
        elif shared is None:
            raise ValueError(
                "balancing_options: this way of sharing has no representation that all tasks "
                "share; use at='parameters'"
            )
        weighted = losses * self.task_weights
        self._held = weighted, self.everywhere(present), shared, warmth
        # Its gradient will be the factor that the trainer puts on the loss.
        self._anchor = torch.zeros((), device=losses.device, requires_grad=True)
        return weighted.detach().sum() + self._anchor

    def backward(self, loss: Tensor, network: Network) -> None:
        """Add the weighted gradients, and those of penalties, to those of the parameters."""
        assert self._held is not None
        assert self._anchor is not None
        losses, present, shared, warmth = self._held
        owned = Owned.of(network)
        scale, *of_penalties = torch.autograd.grad(
            loss,
            [self._anchor, *owned.parameters],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        owned.add(self._averaged(of_penalties))
        tasks = present.nonzero().flatten().tolist()
        gradients = None
        if len(tasks) > 1 and self._step % self.every == 0:
            at = [shared] if shared is not None else owned.parameters
            gradients = task_gradients(losses, tasks, at, scale)
            if shared is None:
                gradients = [self._averaged(parts) for parts in gradients]
                gramian = owned.gramian(gradients)
            else:
                # Each process has rows of its own there: what they add up to is all that counts.
                gramian = self.over_all(_gramian_at(gradients))
            if warmth is not None:
                # Weighed as if they were here already: who is hardly here would pass for short.
                gramian = gramian / warmth[tasks].outer(warmth[tasks])
            self.refresh(gramian, self.over_all(losses.detach()), tasks)
        self._step += 1
        # A task that is alone has nobody to be weighed against.
        weights = self.weights if len(tasks) > 1 or self.weighs_own else self.weights.new_ones(1)
        weights = weights.expand(len(losses))
        if gradients is None or shared is not None:
            found = owned.weighted(losses, weights, scale, own=self.weighs_own)
            owned.add(self._averaged(found))
        else:
            owned.add(owned.combined(gradients, weights[tasks], own=self.weighs_own))
        self.record(weights, present)
        self._held = self._anchor = None

    def _averaged(self, gradients: Gradients) -> Gradients:
        """Mean of gradients over the processes, which Lightning leaves to us here."""
        if self.over_processes is None:
            return gradients
        return averaged(gradients, self.over_processes)

    def refresh(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> None:
        """Find new weights for the tasks that a batch observes."""
        gramian = gramian.double().cpu()
        lengths = gramian.diagonal()
        # Something overflowed: no matrix to go by.
        if not gramian.isfinite().all():
            return
        some = [i for i, length in enumerate(lengths.tolist()) if length > 0]
        if len(some) < 2:
            return
        chosen = [tasks[i] for i in some]
        gramian = gramian[some][:, some] / lengths[some].mean()
        found = self.solve(gramian, losses[chosen], chosen)
        weights = self.weights.clone()
        weights[chosen] = found.to(weights)
        self.weights = weights


def _gramian_at(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    return inner_products(torch.stack([parts[0] for parts in gradients]))


class GradNorm(GradientWeighing):
    r"""
    Weights under which all gradients have the length they should (Chen et al. 2018, algorithm 1).

    The weighted gradient of a task should be as long as the mean of them times :math:`r_t^\alpha`,
    where :math:`r_t` is the task's loss as a share of its first one, over the mean of these shares:
    who learns slower pulls harder. Adam moves the weights towards that, by the absolute
    difference (equation 2) over the mean length; they stay positive and keep their sum. The
    weights count for the whole loss, towers included.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
        They come in afterwards; lengths are made alike without them.
    alpha : float
        How strongly slower tasks are helped; 0: all gradients are made equally long.
    learning_rate : float
        Of the weights.
    at : {"representation", "parameters"}
        The paper takes gradients at the last shared layer.
    every : int
        Steps after which the weights are moved.
    """

    weighs_own = True

    initial: Tensor
    upcoming: Tensor

    def __init__(
        self,
        task_weights: Tensor,
        *,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        at: str = "representation",
        every: int = 1,
    ) -> None:
        super().__init__(task_weights, at=at, every=every)
        self.alpha = not_negative("alpha", alpha)
        self.register_buffer("initial", torch.full_like(task_weights, torch.nan))
        self.register_buffer("upcoming", torch.ones_like(task_weights))
        rate = positive("learning_rate", learning_rate)
        self.adam = Adam(len(task_weights), learning_rate=rate)

    def solve(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        """The weights that the step before came to; they are moved for the next."""
        present = torch.zeros_like(self.upcoming, dtype=torch.bool)
        present[list(tasks)] = True
        plain = torch.zeros_like(self.upcoming)
        plain[list(tasks)] = losses.to(plain) / self.task_weights[list(tasks)]
        self.initial = torch.where(present & self.initial.isnan(), plain, self.initial)
        lengths = torch.zeros_like(self.upcoming)
        lengths[list(tasks)] = gramian.diagonal().sqrt().to(lengths)
        lengths = lengths / self.task_weights
        current = self.upcoming
        self.upcoming = self._moved(current, lengths, plain / self.initial, present)
        return current[list(tasks)]

    def _moved(self, weights: Tensor, lengths: Tensor, left: Tensor, present: Tensor) -> Tensor:
        """Weights after a step; `left` is the share of its first loss that each task still has."""
        left = torch.where(present & left.isfinite(), left, torch.zeros_like(left))
        rates = left / (left.sum() / present.sum()).clamp_min(1e-8)
        mean = (weights * lengths).sum() / present.sum()
        wanted = mean * rates**self.alpha
        gradient = torch.sign(weights * lengths - wanted) * lengths / mean
        moved = self.adam(weights, gradient, present).clamp_min(1e-3)
        kept = (weights * present).sum() / (moved * present).sum()
        return torch.where(present, moved * kept, weights)


class NashMTL(GradientWeighing):
    r"""
    The bargain whose gains are proportionally fair (Navon et al. 2022, equation 3).

    The weights solve :math:`G \alpha = 1 / \alpha`, and are then made to add up to the number of
    tasks: the paper's own scale depends on the lengths of the gradients.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
        How loud a task is has no say here, and so these have none for what is shared.
    at, every
        As for :class:`GradientWeighing`.

    Notes
    -----
    The equation is where :math:`\alpha^\top G \alpha / 2 - \sum_t \log \alpha_t` is least.
    That is convex and self-concordant, so damped Newton steps find it to the last digits, where the
    paper goes through a series of approximations.
    """

    def solve(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        """Newton steps from equal weights."""
        # With unit lengths the numbers stay near 1; the equation scales along.
        lengths = gramian.diagonal().sqrt()
        cosines = gramian / lengths / lengths.unsqueeze(1)
        weights = torch.ones_like(lengths)
        for _ in range(_NEWTON_STEPS):
            slope = cosines @ weights - 1 / weights
            step = torch.linalg.solve(cosines + torch.diag(weights**-2), slope)
            decrement = (slope @ step).clamp_min(0).sqrt()
            weights = weights - step / (1 + decrement)
            if decrement < 1e-9:
                break
        weights = weights / lengths
        return weights * (len(weights) / weights.sum())
