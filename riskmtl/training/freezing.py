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
        name: ~torch.isin(owners.get(name, torch.full(parameter.shape[:1], SHARED)).cpu(), theirs)
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
        self.network = network
        self.frozen = {name: where for name, where in frozen.items() if _any(where)}
        self.after = after
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # with mask and values

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what is to be kept, once it is time."""
        if trainer.current_epoch < self.after or self.kept:
            return
        for name, parameter in self.network.named_parameters():
            if name in self.frozen:
                mask = _mask(parameter, self.frozen[name])
                self.kept.append((parameter, mask, parameter.detach().clone()))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Zero the gradients of what is kept."""
        for parameter, mask, _ in self.kept:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Put back what is kept."""
        with torch.no_grad():
            for parameter, mask, values in self.kept:
                parameter.copy_(torch.where(mask, values, parameter))


def _any(frozen: Tensor | bool) -> bool:
    return bool(frozen.any()) if isinstance(frozen, Tensor) else frozen


def _mask(parameter: Tensor, frozen: Tensor | bool) -> Tensor:
    """The frozen slices, as a mask that goes along with all the other axes."""
    if not isinstance(frozen, Tensor):
        return torch.tensor(frozen, device=parameter.device)
    return frozen.to(parameter.device).view(-1, *[1] * (parameter.dim() - 1))
