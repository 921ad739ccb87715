"""The gradient of each task by itself, and how those of the shared part lie to one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riskmtl.networks import SHARED, Network

# A gradient of one task for each of several tensors.
Gradients = Sequence[Tensor]

# Weights nearer to 0 are moved away from it where a gradient must be divided by them.
_SMALLEST = 1e-3


@dataclass(frozen=True, slots=True)
class Owned:
    """
    The parameters that learn, and whose they are.

    Parameters
    ----------
    names : list of str
        Their names in the network.
    parameters : list of Parameter
    owners : list of (Tensor or None)
        For each parameter the task of each slice along its first axis, or
        :data:`riskmtl.networks.SHARED`; ``None``: it is shared whole.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    owners: list[Tensor | None]

    @classmethod
    def of(cls, network: Network) -> Owned:
        """The parameters of a network, less those that are frozen."""
        owners = network.owners()
        learning = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        return cls(
            [name for name, _ in learning],
            [parameter for _, parameter in learning],
            [owners[n].to(p.device) if n in owners else None for n, p in learning],
        )

    @property
    def is_shared(self) -> bool:
        """Whether anything that tasks share learns."""
        return any(owner is None or bool((owner == SHARED).any()) for owner in self.owners)

    def gramian(self, gradients: Sequence[Gradients]) -> Tensor:
        """
        Inner products of the tasks' gradients, over the shared slices.

        Parameters
        ----------
        gradients : sequence of sequence of Tensor
            Per task, a gradient for each parameter.

        Returns
        -------
        Tensor of shape (tasks, tasks)
        """
        found = torch.zeros(len(gradients), len(gradients), device=gradients[0][0].device)
        for owner, parts in zip(self.owners, zip(*gradients, strict=True), strict=True):
            stacked = torch.stack(parts)  # (tasks, *parameter)
            if owner is not None:
                stacked = stacked[:, owner == SHARED]
            found = found + inner_products(stacked)
        return found

    def combined(self, gradients: Sequence[Gradients], weights: Tensor, *, own: bool) -> Gradients:
        """
        Sum the gradients of the tasks, weighted.

        Parameters
        ----------
        gradients : sequence of sequence of Tensor
            Per task, a gradient for each parameter.
        weights : Tensor of shape (tasks,)
        own : bool
            Whether slices that a task owns are weighted too.

        Returns
        -------
        sequence of Tensor
            One for each parameter.
        """
        found = []
        for owner, parts in zip(self.owners, zip(*gradients, strict=True), strict=True):
            stacked = torch.stack(parts)
            total = torch.tensordot(weights.to(stacked), stacked, dims=1)
            if owner is not None and not own:
                total = torch.where(_along(owner == SHARED, total), total, stacked.sum(0))
            found.append(total)
        return found

    def shared(self, gradients: Gradients) -> Gradients:
        """Gradients of the shared slices, and 0 for those that a task owns."""
        return [
            g if owner is None else torch.where(_along(owner == SHARED, g), g, torch.zeros_like(g))
            for owner, g in zip(self.owners, gradients, strict=True)
        ]

    def weighted(self, losses: Tensor, weights: Tensor, scale: Tensor, *, own: bool) -> Gradients:
        """
        The same in one backward pass, where the weights are known beforehand.

        Parameters
        ----------
        losses, weights : Tensor of shape (tasks,)
        scale : Tensor of shape ()
            Factor on all losses.
        own : bool
            Whether slices that a task owns are weighted too.

        Returns
        -------
        sequence of Tensor
        """
        weights = weights.to(losses)
        if not own:
            # A slice that a task owns gets its weight too, which is then divided out.
            near = weights.abs() < _SMALLEST
            weights = torch.where(near, torch.copysign(_small(weights), weights), weights)
        (found,) = task_gradients((losses * weights).sum()[None], [0], self.parameters, scale)
        # Copied: those of two parameters can be one tensor, and the clipping writes into it.
        return [
            gradient.clone(memory_format=torch.contiguous_format)
            if own or owner is None
            else gradient / _along(_of_slices(weights, owner), gradient)
            for gradient, owner in zip(found, self.owners, strict=True)
        ]

    def add(self, gradients: Gradients) -> None:
        """Add gradients to those that the parameters have."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def task_gradients(
    losses: Tensor, tasks: Sequence[int], at: Sequence[Tensor], scale: Tensor
) -> list[Gradients]:
    """
    The gradient of some losses, one after the other.

    Parameters
    ----------
    losses : Tensor of shape (tasks,)
    tasks : sequence of int
    at : sequence of Tensor
        Where the gradients are wanted.
    scale : Tensor of shape ()
        Factor on all losses.

    Returns
    -------
    list of sequence of Tensor
        For each of these tasks, a gradient for each of these tensors.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> losses = torch.stack([x.sum(), (x * x).sum()])
    >>> task_gradients(losses, [1], [x], torch.tensor(1.0))
    [(tensor([2., 4.]),)]
    """
    return [
        torch.autograd.grad(
            losses[task],
            at,
            grad_outputs=scale.to(losses),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for task in tasks
    ]


def averaged(gradients: Gradients, over_processes: Callable[[Tensor], Tensor]) -> Gradients:
    """
    Mean of gradients over the processes that train together.

    Parameters
    ----------
    gradients : sequence of Tensor
    over_processes : callable
        Maps a tensor to its mean over them.

    Returns
    -------
    sequence of Tensor

    Examples
    --------
    >>> averaged([torch.tensor([2.0, 4.0]), torch.tensor([[6.0]])], lambda x: x / 2)
    [tensor([1., 2.]), tensor([[3.]])]
    """
    # In one go: what costs is to meet, not how much is exchanged.
    flat = over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def inner_products(stacked: Tensor) -> Tensor:
    """
    Inner products of gradients.

    Parameters
    ----------
    stacked : Tensor of shape (tasks, ...)

    Returns
    -------
    Tensor of float32 or float64, shape (tasks, tasks)

    Examples
    --------
    >>> inner_products(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    tensor([[1., 1.],
            [1., 5.]])
    """
    flat = stacked.flatten(1).to(torch.promote_types(stacked.dtype, torch.float32))
    return flat @ flat.T


def _of_slices(weights: Tensor, owner: Tensor) -> Tensor:
    """The weight of each slice's owner; 1 for what is shared."""
    return torch.where(owner == SHARED, torch.ones_like(weights[:1]), weights[owner])


def _along(values: Tensor, gradient: Tensor) -> Tensor:
    """Values of slices, shaped to go along with all of the slice."""
    return values.view(-1, *[1] * (gradient.dim() - 1))


def _small(weights: Tensor) -> Tensor:
    return torch.full_like(weights, _SMALLEST)
