"""The shape of a network, as plain values that a manifest can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """
    The shape of a network.

    Parameters
    ----------
    network : str
        A name in :data:`riskmtl.networks.TRUNKS`.
    members : int
        Weight-sharing members whose answers are averaged.
    is_cut : bool
        Whether there were more members in training.
    numeric_embedding : {"piecewise_linear", "periodic", "standardize"}
    embedding_dim : int
        Numbers per embedded feature.
    bins : int
        Bins of the piecewise-linear embedding.
    steps : int
        Steps of the piecewise-linear embedding.
    credible_rows : float
        Training rows at which a category's vector counts half.
    experts : int
        Experts of MMoE.
    task_experts, shared_experts : int
        Experts of PLE: own ones per task, and shared ones, per level.
    levels : int
        Levels of PLE.
    expert_units : tuple of int
        Layers of an expert.
    shared_units : tuple of int
        Layers of a body: the shared bottom, the encoder, or each task's own.
    tower_units : tuple of int
        Hidden layers of a tower.
    tie : {"l2", "trace_norm", "cross_stitch"}
        What ties the bodies of soft sharing to one another.
    code_width : int
        Width of the code between encoder and decoders.
    decoder_units : tuple of int
        Layers of a decoder.
    gating : {"softmax", "top_k", "dselect_k"}
        How the gates of MMoE and PLE weigh experts.
    active_experts : int
        Experts that a sparse gate lets through: the largest of ``"top_k"``, or the selectors of
        ``"dselect_k"``.
    expert_dropout : float
        Share of the experts that each gate does without in a training step.
    groups : tuple of tuple of int
        Positions of the tasks that share a network; none: all share one.
    cut_trunks : tuple of (int, tuple of int)
        For each network: the number of tasks of its trunk, and those that it answers for, where it
        keeps a trunk of more tasks; 0 and none where it does not. Empty: no network does.
    linear_path : bool
        Whether a linear path leads from the embedded features to each head.
    dropout : float
        Dropout in experts, shared body and towers.
    feature_dropout : float
        Share of the embedded features dropped whole.
    """

    network: str = "ple"
    members: int = 1
    is_cut: bool = False
    numeric_embedding: str = "piecewise_linear"
    embedding_dim: int = 16
    bins: int = 48
    steps: int = 256
    credible_rows: float = 300.0
    experts: int = 8
    task_experts: int = 2
    shared_experts: int = 2
    levels: int = 1
    expert_units: tuple[int, ...] = (128, 64)
    shared_units: tuple[int, ...] = (256, 128)
    tower_units: tuple[int, ...] = (32,)
    tie: str = "l2"
    code_width: int = 32
    decoder_units: tuple[int, ...] = (64,)
    gating: str = "softmax"
    active_experts: int = 2
    expert_dropout: float = 0.0
    groups: tuple[tuple[int, ...], ...] = ()
    cut_trunks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    linear_path: bool = False
    dropout: float = 0.3
    feature_dropout: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Build a shape from what :func:`dataclasses.asdict` gave, lists for tuples allowed."""
        return cls(**{name: _frozen(value) for name, value in values.items()})

    def part(self, position: int) -> NetworkConfig:
        """Shape of one of several networks by itself."""
        return replace(self, groups=(), cut_trunks=self.cut_trunks[position : position + 1])


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
