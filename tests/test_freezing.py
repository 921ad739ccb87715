"""Slices that are frozen stay as they are to the bit, while the rest learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from test_training import CONFIG, PLAN, SHAPE, fit, rows
from torch import Tensor

from riskmtl.networks import SHARED, Network
from riskmtl.training.batches import TensorBatches
from riskmtl.training.fit import _quiet_lightning
from riskmtl.training.freezing import FrozenSlices, not_of
from riskmtl.training.module import MultiTaskModule


def network_of(trunk: str = "ple", members: int = 1) -> Network:
    torch.manual_seed(0)
    network = Network([0, 0, 0, 4], 2, replace(SHAPE, network=trunk, members=members))
    network.embedding.fit(rows().x)
    return network


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def train_on(network: Network, *callbacks: lightning.Callback, **changes: Any) -> None:
    """A few steps with strong decay, so that what is not held moves."""
    data = rows(200)
    parts = torch.from_numpy(data.x), torch.from_numpy(data.y), None
    config = replace(CONFIG, weight_decay=5.0, embedding_decay=5.0, **changes)
    with _quiet_lightning():
        lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
            callbacks=list(callbacks),
        ).fit(
            MultiTaskModule(network, PLAN, config),
            TensorBatches(*parts, size=64, seed=0),
            TensorBatches(*parts, size=200),
        )


# ---- which slices --------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["ple", "mmoe", "shared_bottom"])
def test_all_but_what_the_tasks_own_is_named(trunk: str) -> None:
    network = network_of(trunk, members=2)
    both, first = not_of(network, [0, 1]), not_of(network, [0])
    assert both.keys() == first.keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        owners = network.owners().get(name)
        assert len(both[name]) == len(parameter)
        if owners is None:
            assert both[name].all()
            assert first[name].all()
        else:
            assert torch.equal(both[name], owners == SHARED)
            assert torch.equal(first[name], owners != 0)
    # Two members of two tasks.
    assert first["towers.out.weight"].tolist() == [False, False, True, True]


# ---- held to the bit -----------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("trunk", ["ple", "mmoe", "shared_bottom"])
def test_a_new_head_learns_on_a_frozen_rest(trunk: str, members: int) -> None:
    network = network_of(trunk, members)
    before, frozen = state(network), not_of(network, [1])
    x = torch.from_numpy(rows(30, seed=3).x)
    said = network.eval()(x).detach()
    train_on(network.train(), FrozenSlices(network, frozen))
    for name, value in network.named_parameters():
        held = frozen[name]
        assert torch.equal(value[held], before[name][held]), name
        assert (value[~held] != before[name][~held]).any() or held.all(), name
    after = network.eval()(x).detach()
    assert torch.equal(after[:, 0], said[:, 0])
    assert not torch.equal(after[:, 1], said[:, 1])


def test_a_parameter_can_be_frozen_whole() -> None:
    network = network_of()
    before = state(network)
    name = "embedding.numeric.weight"
    frozen = {name: True, "towers.out.bias": False}
    train_on(network, FrozenSlices(network, frozen))
    found = state(network)
    assert torch.equal(found[name], before[name])
    assert not torch.equal(found["towers.out.bias"], before["towers.out.bias"])


def test_nothing_frozen_changes_nothing() -> None:
    one, other = network_of(), network_of()
    train_on(one)
    train_on(other, FrozenSlices(other, dict.fromkeys(state(other), False)))
    assert all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


class Gradients(lightning.Callback):
    """Norm of the gradient as the optimiser has it, in each step, and whose it is."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.names: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        found = {
            name: parameter.grad.norm()
            for name, parameter in pl_module.network.named_parameters()
            if parameter.grad is not None
        }
        self.norms.append(torch.stack(list(found.values())).norm().item())
        self.names |= {name for name, norm in found.items() if norm > 0}


def test_what_is_frozen_takes_nothing_of_the_clipped_norm() -> None:
    # Large gradients, so that every step is clipped to a norm of 1: all of it is the towers'.
    network, gradients = network_of("shared_bottom"), Gradients()
    with torch.no_grad():
        network.towers.out.weight.mul_(300)
    train_on(network, FrozenSlices(network, not_of(network, [0, 1])), gradients)
    assert gradients.norms == pytest.approx([1.0] * len(gradients.norms), rel=1e-4)
    assert {name.split(".")[0] for name in gradients.names} == {"towers"}


# ---- from some epoch on --------------------------------------------------------------------------


class States(lightning.Callback):
    """The network at the end of each epoch."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []
        self.network: Network | None = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.network = pl_module.network
        self.found.append(state(pl_module.network))


@pytest.mark.parametrize("trunk", ["ple", "shared_bottom"])
def test_the_shared_part_learns_until_it_is_frozen(trunk: str) -> None:
    states = States()
    fit(
        network=trunk,
        rows=rows(200),
        freeze_shared_after=2,
        weight_decay=1.0,
        embedding_decay=1.0,
        epochs=4,
        callbacks=[states],
    )
    assert states.network is not None
    shared = not_of(states.network, [0, 1])
    first, second, *frozen = states.found
    for name, held in shared.items():
        if held.any() and name.endswith("weight"):
            assert not torch.equal(first[name][held], second[name][held]), name
        for later in frozen:
            assert torch.equal(later[name][held], second[name][held]), name
    for one, other in ((second, frozen[0]), (frozen[0], frozen[1])):
        assert not torch.equal(one["towers.out.weight"], other["towers.out.weight"])


def test_a_network_of_one_task_shares_nothing_to_freeze() -> None:
    options = {"network": "single_task", "rows": rows(200), "epochs": 3}
    frozen, free = fit(freeze_shared_after=1, **options), fit(**options)
    for name, value in free.network.state_dict().items():
        assert torch.equal(value, frozen.network.state_dict()[name]), name
