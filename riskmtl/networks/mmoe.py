"""Multi-gate mixture of experts (Ma et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import Gated, Gates, GroupMLP, Trunk, mix


class MMoE(Trunk):
    r"""
    Shared experts, and a gate per task that mixes them.

    :math:`f^k(x) = \sum_i g^k(x)_i f_i(x)` with :math:`g^k(x) = \mathrm{softmax}(W_{gk} x)`
    (equations 5 and 6).

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``experts``, ``expert_units`` and ``dropout``.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.experts = GroupMLP(
            config.experts, in_features, config.expert_units, dropout=config.dropout
        )
        self.gates = Gates(in_features, torch.ones(tasks, config.experts, dtype=torch.bool))
        self.out_features = self.experts.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the experts, and logits of the gates."""
        return self.experts.first(x), self.gates.linear(x)

    def rest(self, *parts: Tensor) -> Tensor:
        """Experts, mixed by the gates."""
        experts, gates = parts
        return mix(self.gates.weights(gates), self.experts.rest(experts))

    def only(self, tasks: Sequence[int]) -> MMoE:
        """A copy with the gates of some of the tasks, and all experts."""
        smaller = copy.deepcopy(self)
        experts = self.gates.blocked.shape[-1]
        smaller.gates = self.gates.only(tasks, range(experts))
        return smaller

    def gated(self, x: Tensor) -> list[Gated]:
        """What gates and experts say of rows ``(batch, in)``; all experts are shared."""
        weights, experts = self.gates(x), self.experts(x)
        return [Gated(weights, experts, torch.full((len(experts),), len(weights)))]
