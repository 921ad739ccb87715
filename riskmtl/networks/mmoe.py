"""Multi-gate mixture of experts (Ma et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.gating import make_gates
from riskmtl.networks.layers import GroupMLP, mix
from riskmtl.networks.trunk import Gated, Trace, Trunk, owned


class MMoE(Trunk):
    r"""
    Shared experts, and a gate per task that mixes them.

    :math:`f^k(x) = \sum_i g^k(x)_i f_i(x)` with :math:`g^k(x) = \mathrm{softmax}(W_{gk} x)`
    (equations 5 and 6).

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``experts``, ``expert_units``, ``dropout`` and what
        :func:`~riskmtl.networks.gating.make_gates` uses.
    """

    strengths = MappingProxyType({"gates": 1e-3})

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.experts = GroupMLP(
            config.experts, in_features, config.expert_units, dropout=config.dropout
        )
        everybody = torch.ones(tasks, config.experts, dtype=torch.bool)
        self.gates = make_gates(in_features, everybody, config)
        self.out_features = self.experts.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the experts, and logits of the gates."""
        return self.experts.first(x), self.gates.linear(x)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """Experts, mixed by the gates."""
        weights = self.gates.weights(parts[1], trace=trace)
        experts = self.experts.rest(parts[0])
        if trace is not None:
            everybody = torch.full((len(experts),), len(weights))
            trace.gated.append(Gated(weights, experts, everybody))
            trace.shared = experts
        return mix(weights, experts)

    def owners(self) -> dict[str, Tensor]:
        """Each task has its gate."""
        gates = self.gates.blocked.shape[0]
        return owned(self.gates, "gates", torch.arange(gates))

    def only(self, tasks: Sequence[int]) -> MMoE:
        """A copy with the gates of some of the tasks, and all experts."""
        smaller = copy.deepcopy(self)
        experts = self.gates.blocked.shape[-1]
        smaller.gates = self.gates.only(tasks, range(experts))
        return smaller
