"""Adaptive information transfer, for tasks that follow one another (Xi et al. 2021)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupLinear, GroupMLP
from riskmtl.networks.trunk import SHARED, Trace, Trunk, owned


class Transfer(nn.Module):
    r"""
    What a task takes from the one before: the AIT module.

    Parameters
    ----------
    width : int
    dropout : float

    Notes
    -----
    With :math:`q_t` the task's own features and :math:`p_{t-1} = g(z_{t-1})` what is handed on,
    :math:`z_t = \sum_{u} w_u h_1(u)` over :math:`u \in \{p_{t-1}, q_t\}`, where :math:`w` is the
    softmax of :math:`\langle h_2(u), h_3(u) \rangle / \sqrt k` over the two, :math:`k` wide. Each
    of :math:`h_1, h_2, h_3` is linear, and :math:`g` one layer with ReLU.
    """

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.hand_on = GroupMLP(1, width, (width,), dropout=dropout)
        self.project = GroupLinear(3, width, width, bias=False)

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        """Map ``(batch, width)`` of the task before and of this one to ``(batch, width)``."""
        both = torch.cat([self.hand_on(before)[0], own])  # (2 * batch, width)
        # Three of (2, batch, width).
        value, query, key = self.project(both).unflatten(1, (2, -1))
        match = (query * key).sum(-1, keepdim=True) / math.sqrt(own.shape[-1])  # (2, batch, 1)
        return (match.softmax(0) * value).sum(0)


class AITM(Trunk):
    """
    A body per task, each of which passes on to the next what it found.

    The order of the tasks carries meaning: the order of the labels, as in application, approval,
    default. The first task learns nothing from the others but the embedding; the last from all.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units`` and ``dropout``.

    Notes
    -----
    Tasks are gone through one by one, each over all rows. The paper's calibrator, which holds
    against a task that is more probable than the one before, is :func:`order_penalty`.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bodies = GroupMLP(tasks, in_features, config.shared_units, dropout=config.dropout)
        width = self.bodies.out_features
        self.transfers = nn.ModuleList(
            Transfer(width, dropout=config.dropout) for _ in range(tasks - 1)
        )
        self.answering = list(range(tasks))
        self.out_features = width

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the bodies."""
        return (self.bodies.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """Each task's features, with what came from the tasks before."""
        features = self.bodies.rest(*parts)  # (tasks, batch, width)
        if trace is not None:
            trace.shared = features
        found = [features[0]]
        for transfer, own in zip(self.transfers, features[1:], strict=True):
            found.append(transfer(found[-1], own))
        return torch.stack([found[task] for task in self.answering])

    def owners(self) -> dict[str, Tensor]:
        """The last task has its body and what is handed to it; all others feed those after."""
        last = len(self.transfers)
        task = self.answering.index(last)
        bodies = torch.full((last + 1,), SHARED)
        bodies[last] = task
        found = owned(self.bodies, "bodies", bodies)
        if last:
            transfer, name = self.transfers[-1], f"transfers.{last - 1}"
            assert isinstance(transfer, Transfer)
            found |= owned(transfer.hand_on, f"{name}.hand_on", torch.tensor([task]))
            found |= owned(transfer.project, f"{name}.project", torch.full((3,), task))
        return found

    def only(self, tasks: Sequence[int]) -> AITM:
        """A copy that answers for some of the tasks, without those after the last of them."""
        smaller = copy.deepcopy(self)
        smaller.answering = [self.answering[task] for task in tasks]
        last = max(smaller.answering)
        smaller.bodies = self.bodies.only(range(last + 1))
        smaller.transfers = smaller.transfers[:last]
        return smaller


def order_penalty(outputs: Tensor) -> Tensor:
    r"""
    How far tasks are more probable than the ones before them.

    Parameters
    ----------
    outputs : Tensor of shape (members, batch, tasks)
        Log-odds, tasks in their order.

    Returns
    -------
    Tensor
        A number: :math:`\sum_{t \ge 2} \max(p_t - p_{t-1}, 0)`, averaged over members and rows; 0
        for a single task.

    Notes
    -----
    The behavioural expectation calibrator of Xi et al. 2021. It suits tasks of which
    each can only happen where the one before did.

    Examples
    --------
    >>> order_penalty(torch.tensor([[[0.0, 50.0, -50.0], [0.0, 0.0, 0.0]]]))
    tensor(0.2500)
    """
    rises = torch.sigmoid(outputs).diff(dim=-1)
    return torch.relu(rises).sum(-1).mean()
