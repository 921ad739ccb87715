"""Progressive layered extraction (Tang et al. 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.gating import make_gates
from riskmtl.networks.layers import GroupMLP, mix
from riskmtl.networks.trunk import SHARED, Gated, Trace, Trunk, owned


class ExtractionLayer(nn.Module):
    r"""
    One level: own experts per task and shared ones, a gate per task, and one for the shared part.

    Task :math:`k` mixes its own and the shared experts (equations 1 to 3); the shared gate mixes
    **all** experts (section 4.3). The last level has no shared gate, since nothing would read it.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``task_experts``, ``shared_experts``, ``expert_units``, ``dropout`` and what
        :func:`~riskmtl.networks.gating.make_gates` uses.
    is_last : bool

    Notes
    -----
    Experts are ordered by task, the shared ones last. Streams are the tasks, then the shared one.
    """

    stream: Tensor

    def __init__(
        self, in_features: int, tasks: int, config: NetworkConfig, *, is_last: bool
    ) -> None:
        super().__init__()
        own, shared = config.task_experts, config.shared_experts
        streams = torch.arange(tasks + 1)
        counts = torch.tensor([own] * tasks + [shared])
        self.register_buffer("stream", streams.repeat_interleave(counts), persistent=False)
        self.gated_streams = tasks if is_last else tasks + 1
        gate = streams[: self.gated_streams].unsqueeze(1)
        is_shared = self.stream == tasks
        selects = (gate == self.stream) | is_shared | (gate == tasks)
        self.experts = GroupMLP(
            len(self.stream), in_features, config.expert_units, dropout=config.dropout
        )
        self.gates = make_gates(in_features, selects, config)
        self.out_features = self.experts.out_features

    def forward(self, x: Tensor) -> Tensor:
        """
        Map streams to streams.

        Parameters
        ----------
        x : Tensor of shape (batch, in) or (tasks + 1, batch, in)
            The input of the first level, or the output of the level before.

        Returns
        -------
        Tensor of shape (tasks + 1, batch, out), or (tasks, batch, out) at the last level
        """
        level = self.gated(*self.first(x))
        return mix(level.weights, level.experts)

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First linear layer of the experts, and logits of the gates."""
        if x.dim() == 2:
            return self.experts.first(x), self.gates.linear(x)
        return self.experts.first(x[self.stream]), self.gates.linear(x[: self.gated_streams])

    def gated(self, experts: Tensor, gates: Tensor, *, trace: Trace | None = None) -> Gated:
        """What gates and experts say, from what :meth:`first` gives."""
        weights = self.gates.weights(gates, trace=trace)
        return Gated(weights, self.experts.rest(experts), self.stream)

    def only(self, tasks: Sequence[int]) -> ExtractionLayer:
        """A copy of an only level for some of the tasks: their gates, their experts, the shared."""
        shared = self.gated_streams
        streams = [*tasks, shared]
        kept = [expert for stream in streams for expert in self._experts_of(stream)]
        smaller = copy.deepcopy(self)
        smaller.experts = self.experts.only(kept)
        smaller.gates = self.gates.only(tasks, kept)
        smaller.stream = torch.tensor([streams.index(s) for s in self.stream[kept].tolist()])
        smaller.gated_streams = len(tasks)
        return smaller

    def owners(self) -> dict[str, Tensor]:
        """Whose the gates and experts of a last level are."""
        tasks = self.gated_streams
        experts = torch.where(self.stream == tasks, SHARED, self.stream)
        gates = owned(self.gates, "gates", torch.arange(tasks))
        return {**owned(self.experts, "experts", experts), **gates}

    def _experts_of(self, stream: int) -> list[int]:
        return (self.stream == stream).nonzero().flatten().tolist()


class PLE(Trunk):
    """
    Extraction layers on top of each other; with one level this is customised gate control (CGC).

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``levels`` and what :class:`ExtractionLayer` uses.
    """

    strengths = MappingProxyType({"gates": 1e-3})

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        levels = []
        width = in_features
        for level in range(config.levels):
            layer = ExtractionLayer(width, tasks, config, is_last=level == config.levels - 1)
            width = layer.out_features
            levels.append(layer)
        self.levels = nn.ModuleList(levels)
        self.out_features = width

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the first level's experts, and logits of its gates."""
        return self._level(0).first(x)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """All that follows."""
        level = self._level(0)
        found = level.gated(*parts, trace=trace)
        passed = [found]
        for position in range(1, len(self.levels)):
            level = self._level(position)
            streams = mix(found.weights, found.experts)  # (tasks + 1, batch, width)
            found = level.gated(*level.first(streams), trace=trace)
            passed.append(found)
        if trace is not None:
            trace.gated += passed
            trace.shared = found.experts
        return mix(found.weights, found.experts)

    def owners(self) -> dict[str, Tensor]:
        """Gates and own experts of the last level, and the gates of the tasks before it."""
        last = len(self.levels) - 1
        found = self._level(last).owners()
        owners = {f"levels.{last}.{name}": owner for name, owner in found.items()}
        if last:
            tasks = self._level(last).gated_streams
            streams = torch.tensor([*range(tasks), SHARED])
            owners |= owned(self._level(last - 1).gates, f"levels.{last - 1}.gates", streams)
        return owners

    def only(self, tasks: Sequence[int]) -> Trunk:
        """A trunk for some of the tasks; with several levels all experts feed the shared stream."""
        if len(self.levels) > 1:
            return super().only(tasks)
        smaller = copy.deepcopy(self)
        smaller.levels = nn.ModuleList([self._level(0).only(tasks)])
        return smaller

    def _level(self, position: int) -> ExtractionLayer:
        level = self.levels[position]
        assert isinstance(level, ExtractionLayer)
        return level
