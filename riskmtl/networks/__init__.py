"""
Networks over encoded features: tensors in, one logit per head out.

A network is an embedding, a trunk and a tower per task, and beside these, if asked for, a linear
path from the embedding to each head. The trunk is what tells one way of sharing from another: it
maps ``(batch, in)`` to a representation per task, ``(tasks, batch, out)``. A new one is a file with
such a :class:`Trunk` and a line in :data:`TRUNKS`. Members of a network pass through the trunk as
further rows, so it knows nothing of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.embedding import NUMERIC_EMBEDDINGS, FeatureEmbedding
from riskmtl.networks.layers import Gated, LinearPath, Towers, Trunk
from riskmtl.networks.members import MemberScalings, pool_members
from riskmtl.networks.mmoe import MMoE
from riskmtl.networks.ple import PLE
from riskmtl.networks.shared_bottom import SharedBottom

__all__ = [
    "NUMERIC_EMBEDDINGS",
    "TRUNKS",
    "Gated",
    "IndependentNetworks",
    "Network",
    "NetworkConfig",
]

TRUNKS: dict[str, Callable[[int, int, NetworkConfig], Trunk]] = {
    "ple": PLE,
    "mmoe": MMoE,
    "shared_bottom": SharedBottom,
    "single_task": SharedBottom,
}


class Network(nn.Module):
    """
    Embedding, trunk and towers, and perhaps a linear path past the two.

    Parameters
    ----------
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    tasks : int
        Number of heads.
    config : NetworkConfig
    regression : sequence of bool, optional
        Which heads predict a number; default: none.

    Examples
    --------
    >>> network = Network([0, 0, 5], 3, NetworkConfig(network="mmoe"))
    >>> network(torch.tensor([[0.1, float("nan"), 2.0]])).shape
    torch.Size([1, 3])
    """

    regression: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        tasks: int,
        config: NetworkConfig,
        *,
        regression: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        is_regression = torch.tensor(regression or [False] * tasks)
        self.register_buffer("regression", is_regression, persistent=False)
        self.embedding = FeatureEmbedding(
            cardinalities,
            numeric=config.numeric_embedding,
            width=config.embedding_dim,
            bins=config.bins,
            steps=config.steps,
            credible_rows=config.credible_rows,
            dropout=config.feature_dropout,
        )
        width = self.embedding.out_features
        self.members: MemberScalings | None = None
        if config.members > 1 or config.is_cut:
            self.members = MemberScalings(config.members, self.embedding.widths)
        self.trunk = TRUNKS[config.network](width, tasks, config)
        width = self.trunk.out_features
        self.linear = LinearPath(self.embedding.out_features, tasks) if config.linear_path else None
        self.towers = Towers(
            tasks, width, config.tower_units, members=config.members, dropout=config.dropout
        )

    def forward(self, x: Tensor, *, pooled: bool = True) -> Tensor:
        """
        Map encoded rows to one number per head.

        Parameters
        ----------
        x : Tensor of shape (batch, features)
        pooled : bool
            Whether to average the members.

        Returns
        -------
        Tensor of shape (batch, tasks), or (members, batch, tasks) if not pooled
        """
        return self.rest(self.first(self.embedding(x)), pooled=pooled)

    def first(self, embedded: Tensor) -> tuple[Tensor, ...]:
        """
        All that is affine in the embedded rows.

        Parameters
        ----------
        embedded : Tensor of shape (batch, in)

        Returns
        -------
        tuple of Tensor
            What the trunk does first, ``(…, members * batch, width)``, and the linear path if
            there is one, ``(batch, tasks)``.
        """
        # (members * batch, in)
        rows = embedded if self.members is None else self.members(embedded)
        parts = self.trunk.first(rows)
        return parts if self.linear is None else (*parts, self.linear(embedded))

    def rest(self, parts: Sequence[Tensor], *, pooled: bool = True) -> Tensor:
        """
        All that follows.

        Parameters
        ----------
        parts : sequence of Tensor
            As :meth:`first` gives them.
        pooled : bool
            Whether to average the members.

        Returns
        -------
        Tensor of shape (batch, tasks), or (members, batch, tasks) if not pooled
        """
        count = len(parts) if self.linear is None else len(parts) - 1
        # (members, batch, tasks)
        outputs = self.towers(self.trunk.rest(*parts[:count]))
        if self.linear is not None:
            outputs = outputs + parts[count]
        return pool_members(outputs, self.regression) if pooled else outputs

    def gated(self, x: Tensor) -> list[Gated]:
        """
        What gates and experts of each level say; members follow one another as further rows.

        Parameters
        ----------
        x : Tensor of shape (batch, features)

        Returns
        -------
        list of Gated
            None where the trunk has no gates.
        """
        if not isinstance(self.trunk, (MMoE, PLE)):
            return []
        embedded = self.embedding(x)
        return self.trunk.gated(embedded if self.members is None else self.members(embedded))

    def cut(self, members: int) -> Network:
        """A copy with the first of the members only."""
        smaller = copy.deepcopy(self)
        if self.members is None:
            return smaller
        smaller.members = self.members.cut(members)
        smaller.towers = self.towers.cut(members)
        return smaller

    def only(self, tasks: Sequence[int]) -> Network:
        """
        A copy with some of the heads, without what only the others use.

        Parameters
        ----------
        tasks : sequence of int
            Positions of the heads, in the order wanted.

        Returns
        -------
        Network
            Scores these heads as the whole network does.
        """
        smaller = copy.deepcopy(self)
        smaller.regression = self.regression[list(tasks)]
        smaller.trunk = self.trunk.only(tasks)
        smaller.linear = None if self.linear is None else self.linear.only(tasks)
        smaller.towers = self.towers.only(tasks)
        return smaller


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

    def cut(self, members: int) -> IndependentNetworks:
        """A copy with the first members of each network only."""
        networks = [network for network in self.networks if isinstance(network, Network)]
        return IndependentNetworks([network.cut(members) for network in networks])

    def only(self, tasks: Sequence[int]) -> IndependentNetworks:
        """A copy with the networks of some of the tasks."""
        return IndependentNetworks([copy.deepcopy(self.networks[task]) for task in tasks])
