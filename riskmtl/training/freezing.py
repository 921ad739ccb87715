"""Holding parts of a network as they are while the rest learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from riskmtl.networks import SHARED, Network

Frozen = Mapping[str, Tensor | bool]


def not_of(network: Network, tasks: Collection[int]) -> dict[str, Tensor]:
    """
    All of a network but what certain tasks own.

    Parameters
    ----------
    network : Network
    tasks : collection of int

    Returns
    -------
    dict of str to Tensor of bool
        For each parameter, by name, which slices along its first axis are not theirs.

    Examples
    --------
    >>> from riskmtl.networks import NetworkConfig
    >>> network = Network([0], 2, NetworkConfig(network="shared_bottom"))
    >>> frozen = not_of(network, [0])
    >>> frozen["towers.out.weight"], bool(frozen["trunk.body.layers.0.weight"].all())
    (tensor([False,  True]), True)
    """
    owners = network.owners()
    theirs = torch.tensor(sorted(tasks))
    return {
        name: ~torch.isin(owners.get(name, torch.full((len(parameter),), SHARED)).cpu(), theirs)
        for name, parameter in network.named_parameters()
    }


class FrozenSlices(pl.Callback):
    """
    Hold slices of a network's parameters as they are, to the bit.

    Their gradients are zeroed before the clipping, so that they take nothing of its norm; and after
    each step, in which decay and momentum move them all the same, they are put back.

    Parameters
    ----------
    network : Module
        The one that is trained.
    frozen : mapping of str to Tensor of bool, or True
        By name of a parameter: which slices along its first axis, or all of it.
    after : int
        Epochs of training before that.
    """

    def __init__(self, network: nn.Module, frozen: Frozen, *, after: int = 0) -> None:
        self.parameters = {
            name: (parameter, _slices(parameter, frozen[name]))
            for name, parameter in network.named_parameters()
            if name in frozen and bool(torch.as_tensor(frozen[name]).any())
        }
        self.after = after
        self.kept: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what is to be kept, once it is time."""
        if trainer.current_epoch >= self.after and not self.kept:
            for name, (parameter, frozen) in self.parameters.items():
                self.kept[name] = parameter.detach()[frozen.to(parameter.device)].clone()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Zero the gradients of what is kept."""
        for name in self.kept:
            parameter, frozen = self.parameters[name]
            if parameter.grad is not None:
                parameter.grad[frozen.to(parameter.device)] = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Put back what is kept."""
        with torch.no_grad():
            for name, kept in self.kept.items():
                parameter, frozen = self.parameters[name]
                parameter[frozen.to(parameter.device)] = kept


def _slices(parameter: Tensor, frozen: Tensor | bool) -> Tensor:
    return torch.full((len(parameter),), frozen) if isinstance(frozen, bool) else frozen
