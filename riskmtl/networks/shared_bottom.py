"""Hard parameter sharing: one body, one tower per task (Caruana 1997)."""

from __future__ import annotations

from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupMLP


class SharedBottom(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` to ``(tasks, batch, out)``."""
        return self.body(x).expand(self.tasks, -1, -1)
