"""
Networks over encoded features: tensors in, one logit per head out.

A network is an embedding, a trunk and a tower per task. The trunk is what tells one way of sharing
from another: it maps ``(batch, in)`` to a representation per task, ``(tasks, batch, out)``. A new
one is a file with such a module and a line in :data:`TRUNKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.embedding import NUMERIC_EMBEDDINGS, FeatureEmbedding
from riskmtl.networks.layers import Towers
from riskmtl.networks.mmoe import MMoE
from riskmtl.networks.ple import PLE
from riskmtl.networks.shared_bottom import SharedBottom

__all__ = ["NUMERIC_EMBEDDINGS", "TRUNKS", "IndependentNetworks", "Network", "NetworkConfig"]

TRUNKS: dict[str, Callable[[int, int, NetworkConfig], nn.Module]] = {
    "ple": PLE,
    "mmoe": MMoE,
    "shared_bottom": SharedBottom,
    "single_task": SharedBottom,
}


class Network(nn.Module):
    """
    Embedding, trunk and towers.

    Parameters
    ----------
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    tasks : int
        Number of heads.
    config : NetworkConfig

    Examples
    --------
    >>> network = Network([0, 0, 5], 3, NetworkConfig(network="mmoe"))
    >>> network(torch.tensor([[0.1, float("nan"), 2.0]])).shape
    torch.Size([1, 3])
    """

    def __init__(self, cardinalities: Sequence[int], tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.embedding = FeatureEmbedding(
            cardinalities,
            numeric=config.numeric_embedding,
            width=config.embedding_dim,
            bins=config.bins,
            dropout=config.embedding_dropout,
        )
        self.trunk = TRUNKS[config.network](self.embedding.out_features, tasks, config)
        width = self.trunk.out_features
        assert isinstance(width, int)
        self.towers = Towers(tasks, width, config.tower_units, dropout=config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map encoded rows ``(batch, features)`` to one number per head, ``(batch, tasks)``."""
        return self.towers(self.trunk(self.embedding(x)))


class IndependentNetworks(nn.Module):
    """
    One whole network per task, which share nothing: the control that joint training must beat.

    Parameters
    ----------
    networks : sequence of Network
        One per task, each with one head.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Map encoded rows ``(batch, features)`` to one number per head, ``(batch, tasks)``."""
        return torch.cat([network(x) for network in self.networks], dim=1)
