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

from riskmtl.networks.aitm import AITM
from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.cross_attention import CrossAttention
from riskmtl.networks.embedding import NUMERIC_EMBEDDINGS, FeatureEmbedding
from riskmtl.networks.encoder_decoder import EncoderDecoder
from riskmtl.networks.layers import LinearPath, Towers
from riskmtl.networks.members import MemberScalings, pool_members
from riskmtl.networks.mmoe import MMoE
from riskmtl.networks.ple import PLE
from riskmtl.networks.shared_bottom import SharedBottom
from riskmtl.networks.soft_sharing import soft_sharing
from riskmtl.networks.trunk import SHARED, Gated, SomeTasks, Trace, Trunk, owned

__all__ = [
    "NUMERIC_EMBEDDINGS",
    "SHARED",
    "TRUNKS",
    "Gated",
    "IndependentNetworks",
    "Network",
    "NetworkConfig",
    "Trace",
    "groups_of",
]

TRUNKS: dict[str, Callable[[int, int, NetworkConfig], Trunk]] = {
    "ple": PLE,
    "mmoe": MMoE,
    "shared_bottom": SharedBottom,
    "soft_sharing": soft_sharing,
    "encoder_decoder": EncoderDecoder,
    "cross_attention": CrossAttention,
    "aitm": AITM,
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
        trunk_tasks, answered = config.cut_trunks[0] if config.cut_trunks else (0, ())
        self.trunk = TRUNKS[config.network](width, trunk_tasks or tasks, config)
        if trunk_tasks:
            self.trunk = SomeTasks(self.trunk, answered)
        width = self.trunk.out_features
        self.linear = LinearPath(self.embedding.out_features, tasks) if config.linear_path else None
        self.towers = Towers(
            tasks, width, config.tower_units, members=config.members, dropout=config.dropout
        )

    def forward(self, x: Tensor, *, pooled: bool = True, trace: Trace | None = None) -> Tensor:
        """
        Map encoded rows to one number per head.

        Parameters
        ----------
        x : Tensor of shape (batch, features)
        pooled : bool
            Whether to average the members.
        trace : Trace, optional
            Filled with what this pass leaves behind.

        Returns
        -------
        Tensor of shape (batch, tasks), or (members, batch, tasks) if not pooled
        """
        return self.answer(self.embedding(x), pooled=pooled, trace=trace)

    def answer(
        self, embedded: Tensor, *, pooled: bool = True, trace: Trace | None = None
    ) -> Tensor:
        """
        Map embedded rows to one number per head.

        Parameters
        ----------
        embedded : Tensor of shape (batch, in)
        pooled, trace
            As for :meth:`forward`.

        Returns
        -------
        Tensor of shape (batch, tasks), or (members, batch, tasks) if not pooled
        """
        return self.rest(self.first(embedded, trace=trace), pooled=pooled, trace=trace)

    def first(self, embedded: Tensor, *, trace: Trace | None = None) -> tuple[Tensor, ...]:
        """
        All that is affine in the embedded rows.

        Parameters
        ----------
        embedded : Tensor of shape (batch, in)
        trace : Trace, optional

        Returns
        -------
        tuple of Tensor
            What the trunk does first, ``(…, members * batch, width)``, and the linear path if
            there is one, ``(batch, tasks)``.
        """
        # (members * batch, in)
        rows = embedded if self.members is None else self.members(embedded)
        if trace is not None:
            trace.rows = rows
        parts = self.trunk.first(rows)
        return parts if self.linear is None else (*parts, self.linear(embedded))

    def rest(
        self, parts: Sequence[Tensor], *, pooled: bool = True, trace: Trace | None = None
    ) -> Tensor:
        """
        All that follows.

        Parameters
        ----------
        parts : sequence of Tensor
            As :meth:`first` gives them.
        pooled : bool
            Whether to average the members.
        trace : Trace, optional

        Returns
        -------
        Tensor of shape (batch, tasks), or (members, batch, tasks) if not pooled
        """
        count = len(parts) if self.linear is None else len(parts) - 1
        # (members, batch, tasks)
        outputs = self.towers(self.trunk.rest(*parts[:count], trace=trace))
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
            Empty where the trunk has no gates.
        """
        trace = Trace()
        self(x, trace=trace)
        return trace.gated

    def owners(self) -> dict[str, Tensor]:
        """
        Whose each parameter is.

        Returns
        -------
        dict of str to Tensor of int
            For each parameter of which a task owns a part: the task of each slice along its first
            axis, or :data:`SHARED`. A parameter that is not named is shared whole.
        """
        found = {f"trunk.{name}": owners for name, owners in self.trunk.owners().items()}
        found |= owned(self.towers, "towers", self.towers.owners())
        if self.linear is not None:
            found |= owned(self.linear, "linear", torch.arange(self.towers.tasks))
        return found

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
    Several whole networks that share nothing, each for some of the tasks.

    With one per task this is the control that joint training must beat.

    Parameters
    ----------
    networks : sequence of Network
    groups : sequence of sequence of int, optional
        Positions of the tasks of each network; default: the next one for each.

    Attributes
    ----------
    places : list of int
        Where each task is among the outputs of all networks side by side.
    """

    def __init__(
        self, networks: Sequence[nn.Module], groups: Sequence[Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.groups = [list(group) for group in groups or [[i] for i in range(len(networks))]]
        order = [task for group in self.groups for task in group]
        self.places = [order.index(task) for task in range(len(order))]

    def forward(self, x: Tensor) -> Tensor:
        """Map encoded rows ``(batch, features)`` to one number per head, ``(batch, tasks)``."""
        found = torch.cat([network(x) for network in self.networks], dim=1)
        return found if self.places == sorted(self.places) else found[:, self.places]

    def cut(self, members: int) -> IndependentNetworks:
        """A copy with the first members of each network only."""
        networks = [network for network in self.networks if isinstance(network, Network)]
        return IndependentNetworks([network.cut(members) for network in networks], self.groups)

    def only(self, tasks: Sequence[int]) -> IndependentNetworks:
        """A copy with what answers for some of the tasks."""
        networks, groups = [], []
        for network, group in zip(self.networks, self.groups, strict=True):
            kept = [task for task in group if task in tasks]
            if kept:
                assert isinstance(network, Network)
                networks.append(network.only([group.index(task) for task in kept]))
                groups.append([list(tasks).index(task) for task in kept])
        return IndependentNetworks(networks, groups)


def groups_of(config: NetworkConfig, tasks: int) -> tuple[tuple[int, ...], ...]:
    """
    Which tasks have a network together.

    Parameters
    ----------
    config : NetworkConfig
    tasks : int

    Returns
    -------
    tuple of tuple of int
        Positions of the tasks of each network.
    """
    if config.network == "single_task":
        return tuple((task,) for task in range(tasks))
    return config.groups or (tuple(range(tasks)),)
