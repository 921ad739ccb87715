"""Tasks that attend to one another's features."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupLinear, GroupMLP
from riskmtl.networks.trunk import Trace, Trunk, owned


class CrossAttention(Trunk):
    r"""
    A body per task, and then attention over the tasks, row by row.

    Task :math:`t` has features :math:`h_t` from its body, and asks all tasks with
    :math:`q_t = Q_t h_t`. Its representation is :math:`h_t + \sum_s a_{ts} V_s h_s` with
    :math:`a_t = \mathrm{softmax}_s(q_t \cdot K_s h_s / \sqrt d)`: scaled dot-product attention
    (Vaswani et al. 2017, equation 1), with tasks for positions and a projection for each, since
    the bodies have no common space.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units`` and ``dropout``.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bodies = GroupMLP(tasks, in_features, config.shared_units, dropout=config.dropout)
        width = self.bodies.out_features
        self.query = GroupLinear(tasks, width, width, bias=False)
        self.key = GroupLinear(tasks, width, width, bias=False)
        self.value = GroupLinear(tasks, width, width, bias=False)
        self.asking = list(range(tasks))
        self.out_features = width

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the bodies."""
        return (self.bodies.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """Each task's features, and what it takes from all of them."""
        features = self.bodies.rest(*parts)  # (tasks, batch, width)
        if trace is not None:
            trace.shared = features
        own = features if self.asking == list(range(len(features))) else features[self.asking]
        # Batched over the rows, (batch, tasks, width).
        asks = self.query(own).transpose(0, 1)
        keys, values = self.key(features).transpose(0, 1), self.value(features).transpose(0, 1)
        match = torch.bmm(asks, keys.transpose(1, 2)) / math.sqrt(self.out_features)
        return own + torch.bmm(match.softmax(-1), values).transpose(0, 1)

    def owners(self) -> dict[str, Tensor]:
        """Each task has its question; bodies, keys and values are for all."""
        return owned(self.query, "query", torch.arange(len(self.asking)))

    def only(self, tasks: Sequence[int]) -> CrossAttention:
        """A copy in which some of the tasks ask; it needs the bodies of all."""
        smaller = copy.deepcopy(self)
        smaller.asking = [self.asking[task] for task in tasks]
        smaller.query.weight.data = self.query.weight.data[list(tasks)]
        return smaller
