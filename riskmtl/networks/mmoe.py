"""Multi-gate mixture of experts (Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import Gates, GroupMLP, mix


class MMoE(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` to ``(tasks, batch, out)``."""
        return mix(self.gates(x), self.experts(x))
