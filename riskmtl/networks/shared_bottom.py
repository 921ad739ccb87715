"""Hard parameter sharing: one body, one tower per task (Caruana 1997)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupMLP
from riskmtl.networks.trunk import Trace, Trunk


class SharedBottom(Trunk):
    r"""
    One shared body :math:`f`; every task's representation is :math:`f(x)`.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units`` and ``dropout``.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.tasks = tasks
        self.body = GroupMLP(1, in_features, config.shared_units, dropout=config.dropout)
        self.out_features = self.body.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the body."""
        return (self.body.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """The body's output, for every task."""
        shared = self.body.rest(*parts)  # (1, batch, out)
        if trace is not None:
            trace.shared = shared
        return shared.expand(self.tasks, -1, -1)

    def only(self, tasks: Sequence[int]) -> SharedBottom:
        """A copy that answers for so many tasks: they differ in their towers alone."""
        smaller = copy.deepcopy(self)
        smaller.tasks = len(tasks)
        return smaller
