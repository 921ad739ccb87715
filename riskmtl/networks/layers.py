"""
Layers over groups: all experts, all bodies or all towers of a level are one tensor.

The first axis of a grouped tensor is the group, so each layer is one batched product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class GroupLinear(nn.Module):
    r"""
    A linear layer per group: :math:`y_g = x_g W_g + b_g`.

    Parameters
    ----------
    groups, in_features, out_features : int
    bias : bool

    Notes
    -----
    Each group's slice is drawn by itself, as :class:`torch.nn.Linear` draws its weights. An input
    shared by all groups is broadcast, which costs no copy.

    Examples
    --------
    >>> layer = GroupLinear(3, 4, 2)
    >>> layer(torch.rand(5, 4)).shape, layer(torch.rand(3, 5, 4)).shape
    (torch.Size([3, 5, 2]), torch.Size([3, 5, 2]))
    """

    def __init__(
        self, groups: int, in_features: int, out_features: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        shape = (groups, in_features, out_features)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(groups, 1, out_features).uniform_(-bound, bound))
            if bias
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` or ``(groups, batch, in)`` to ``(groups, batch, out)``."""
        if x.dim() == 2:
            x = x.expand(self.weight.shape[0], *x.shape)
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class GroupMLP(nn.Module):
    """
    A multi-layer perceptron per group: linear, ReLU and dropout for each entry of `units`.

    Parameters
    ----------
    groups, in_features : int
    units : sequence of int
        Width of each layer. With none, the output is the input.
    dropout : float

    Attributes
    ----------
    out_features : int
    """

    def __init__(
        self, groups: int, in_features: int, units: Sequence[int], *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [in_features, *units]
        self.layers = nn.ModuleList(GroupLinear(groups, a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` or ``(groups, batch, in)`` to ``(groups, batch, out)``."""
        return self.rest(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        """Only the first linear layer, ``(groups, batch, first width)``."""
        return self.layers[0](x) if len(self.layers) else x

    def rest(self, x: Tensor, *, between: Sequence[nn.Module] = ()) -> Tensor:
        """
        All that follows the first linear layer.

        Parameters
        ----------
        x : Tensor of shape (groups, batch, first width)
        between : sequence of Module
            What comes between each layer and the next; default: nothing.

        Returns
        -------
        Tensor of shape (groups, batch, out)
        """
        for position, layer in enumerate(self.layers):
            if position:
                x = layer(between[position - 1](x) if between else x)
            x = self.dropout(torch.relu_(x))
        return x

    def only(self, groups: Sequence[int]) -> GroupMLP:
        """A copy with some of the groups."""
        smaller = copy.deepcopy(self)
        for parameter in smaller.parameters():
            parameter.data = parameter.data[list(groups)]
        return smaller


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    r"""
    Weighted sums of expert outputs: :math:`m_g = \sum_e w_{ge} h_e`.

    Parameters
    ----------
    weights : Tensor of shape (gates, batch, experts)
    experts : Tensor of shape (experts, batch, width)

    Returns
    -------
    Tensor of shape (gates, batch, width)

    Notes
    -----
    A product of small matrices per row: nothing of size gates times experts times width is formed.
    """
    return torch.bmm(weights.transpose(0, 1), experts.transpose(0, 1)).transpose(0, 1)


class LinearPath(nn.Linear):
    r"""
    A number per task straight from the embedded features: :math:`y = V x`.

    What is additive in the columns is easy to learn here: with the embedding of each column this
    is a generalised additive model, which trunk and towers correct (the wide part of Cheng et al.
    2016). It starts at zero; all members share it, past their scalings.

    Parameters
    ----------
    in_features, tasks : int
    """

    def __init__(self, in_features: int, tasks: int) -> None:
        super().__init__(in_features, tasks, bias=False)

    def reset_parameters(self) -> None:
        """Start at zero."""
        nn.init.zeros_(self.weight)

    def only(self, tasks: Sequence[int]) -> LinearPath:
        """A copy for some of the tasks."""
        smaller = copy.deepcopy(self)
        smaller.weight.data = smaller.weight.data[list(tasks)]
        smaller.out_features = len(tasks)
        return smaller


class Towers(nn.Module):
    """
    One small network per task and member on top of its representation, ending in one number.

    Parameters
    ----------
    tasks, in_features : int
    units : sequence of int
        Hidden layers of a tower.
    members : int
    dropout : float
    """

    def __init__(
        self,
        tasks: int,
        in_features: int,
        units: Sequence[int],
        *,
        members: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.members = members
        # Groups are ordered by task, then by member.
        self.hidden = GroupMLP(tasks * members, in_features, units, dropout=dropout)
        self.out = GroupLinear(tasks * members, self.hidden.out_features, 1)

    def start_at(self, outputs: Tensor) -> None:
        """
        Set the bias of each head, so that training starts at the base rates.

        Parameters
        ----------
        outputs : Tensor of shape (tasks,)
        """
        assert self.out.bias is not None
        with torch.no_grad():
            self.out.bias.copy_(outputs.repeat_interleave(self.members).view(-1, 1, 1))

    def cut(self, members: int) -> Towers:
        """The towers of the first members only."""
        return self._some(range(self.tasks), range(members))

    def only(self, tasks: Sequence[int]) -> Towers:
        """The towers of some of the tasks."""
        return self._some(tasks, range(self.members))

    def owners(self) -> Tensor:
        """The task of each group."""
        return torch.arange(self.tasks).repeat_interleave(self.members)

    def _some(self, tasks: Sequence[int], members: Sequence[int]) -> Towers:
        smaller = copy.deepcopy(self)
        smaller.tasks, smaller.members = len(tasks), len(members)
        kept = [task * self.members + member for task in tasks for member in members]
        for parameter in smaller.parameters():
            parameter.data = parameter.data[kept]
        return smaller

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(tasks, members * batch, in)`` to numbers ``(members, batch, tasks)``."""
        groups = x.reshape(self.tasks * self.members, -1, x.shape[-1])  # (groups, batch, in)
        numbers = self.out(self.hidden(groups))  # (groups, batch, 1)
        return numbers.view(self.tasks, self.members, -1).permute(1, 2, 0)
