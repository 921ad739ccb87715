"""Weights of gradients: by hand, beside TorchJD's own aggregation, and what each promises."""

from __future__ import annotations

import builtins
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import balancing as loops
from reference import networks as slow
from test_training import CONFIG, PLAN, assert_same_bits, fit
from torch import Tensor
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from riskmtl import MultiTaskClassifier
from riskmtl.networks import Network, NetworkConfig, Trace
from riskmtl.training.balancing import BALANCING, make_balancing
from riskmtl.training.conflict import GradientWeighing, GradNorm
from riskmtl.training.gradients import Owned
from riskmtl.training.loss import task_losses
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.warm_up import warmed

NAN = math.nan
SURGERY = [
    "pcgrad", "gradvac", "cagrad", "mgda", "nash_mtl", "fairgrad", "aligned_mtl", "upgrad",
    "dual_proj", "imtl_g",
]  # fmt: skip
# TorchJD's aggregators of whole gradients, and what brings each to the scale of the sum of three.
AGGREGATORS: dict[str, tuple[Any, float | None]] = {
    "pcgrad": (aggregation.PCGrad, 1),
    "gradvac": (aggregation.GradVac, 1),
    "cagrad": (lambda: aggregation.CAGrad(0.5), 3 / 1.5),
    "mgda": (aggregation.MGDA, 3),
    "aligned_mtl": (aggregation.AlignedMTL, 3),
    "upgrad": (aggregation.UPGrad, 3),
    "dual_proj": (aggregation.DualProj, 3),
    "imtl_g": (aggregation.IMTLG, 3),
    # Its scale is not TorchJD's: the direction is.
    "fairgrad": (lambda: aggregation.FairGrad(2.0), None),
}


def weights_of(name: str, gradients: Tensor, **options: Any) -> Tensor:
    """Weights of gradients, (tasks, numbers)."""
    balancing = BALANCING[name](torch.ones(len(gradients)), **options)
    assert isinstance(balancing, GradientWeighing)
    balancing.start_epoch(0)
    tasks = list(range(len(gradients)))
    balancing.refresh(gradients @ gradients.T, torch.ones(len(gradients)), tasks)
    return balancing.weights


# ---- Values by hand ------------------------------------------------------------------------------

RIGHT = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # at a right angle, one twice as long


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pcgrad", [1.0, 1.0]),
        ("gradvac", [1.0, 1.0]),
        ("upgrad", [1.0, 1.0]),
        ("dual_proj", [1.0, 1.0]),
        # The shortest combination stands on the line between the two: (0.2, 0.8).
        ("mgda", [0.4, 1.6]),
        # Equal projections on both directions: weights as 1 / length.
        ("imtl_g", [2 / 3, 4 / 3]),
        # Both as long as the shorter one.
        ("aligned_mtl", [0.5, 1.0]),
        # G a = 1 / a: weights as 1 / length too.
        ("nash_mtl", [2 / 3, 4 / 3]),
        # G w = w ** (-1 / 2): weights as length ** (-4 / 3).
        ("fairgrad", [2 / (1 + 2 ** (4 / 3)), 2 / (1 + 2 ** (-4 / 3))]),
    ],
)
def test_gradients_at_a_right_angle(name: str, expected: list[float]) -> None:
    assert weights_of(name, RIGHT).tolist() == pytest.approx(expected, abs=2e-3)


def test_equal_projections_never_raise_all_losses() -> None:
    # Between the other two and short: C w = 1 is solved by (4.3, 4.3, -4.8) for the cosines C, and
    # over the lengths that makes (4.3, 4.3, -48), which adds up to less than nothing.
    third = [0.068, 0.068, 0.1 * math.sqrt(1 - 2 * 0.68**2)]
    gradients = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], third])
    found = weights_of("imtl_g", gradients)
    lengths = gradients.norm(dim=1)
    projections = gradients @ (found @ gradients) / lengths
    assert projections.tolist() == pytest.approx([projections[0].item()] * 3, rel=1e-3)
    assert projections[0] > 0


def test_pcgrad_of_opposite_gradients_is_nothing() -> None:
    gradients = torch.tensor([[3.0], [-1.0]])
    # Each loses all of itself: 3 - 3 and -1 + 1.
    assert (weights_of("pcgrad", gradients) @ gradients).item() == pytest.approx(0, abs=1e-6)


def test_what_is_drawn_differs_from_step_to_step_and_is_the_same_in_each_run_of_an_epoch() -> None:
    """The order of PCGrad's tasks; what GradVac remembers is not carried over an epoch's end."""
    gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) - 0.3
    for name, least in (("pcgrad", 3), ("gradvac", 3)):
        balancing = BALANCING[name](torch.ones(4))
        epochs = []
        for _ in range(2):
            balancing.start_epoch(5)
            epoch = []
            for step in range(6):
                balancing._step = step
                balancing.refresh(gradients @ gradients.T, torch.ones(4), range(4))
                epoch.append(tuple(balancing.weights.tolist()))
            epochs.append(epoch)
        assert len(set(epochs[0])) >= least
        assert epochs[0] == epochs[1]


def test_pcgrad_of_two_in_conflict() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    # Without its part along the other, (1, 0) becomes (1/2, 1/2) and (-1, 1) becomes (0, 1).
    found = weights_of("pcgrad", gradients) @ gradients
    assert found.tolist() == pytest.approx([0.5, 1.5])
    looped = loops.pcgrad(list(gradients), [[1, 0], [0, 1]])
    assert found.tolist() == pytest.approx(looped.tolist())


def test_cagrad_keeps_within_its_ball() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    mean = gradients.mean(0)
    found = weights_of("cagrad", gradients, c=0.4) @ gradients / 2 * 1.4
    assert (found - mean).norm().item() == pytest.approx(0.4 * mean.norm().item(), rel=1e-3)
    # The worst-off task is better off than with the mean.
    assert (gradients @ found).min() > (gradients @ mean).min()
    assert weights_of("cagrad", gradients, c=0.0).tolist() == pytest.approx([1.0, 1.0])


def test_gradnorm_equals_its_loop() -> None:
    balancing = GradNorm(torch.tensor([1.0, 0.5, 1.0]), alpha=1.5, learning_rate=0.1)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(20, 3, generator=generator) + 0.1
    loop = loops.GradNorm(losses[0].tolist(), 1.5, 0.1)
    for now in losses:
        gradients = torch.randn(3, 5, generator=generator)
        before = [weight.value for weight in loop.weights]
        loop.update(now.tolist(), gradients.norm(dim=1).tolist())
        # The balancing is shown losses and gradients with the user's weights.
        shown = gradients * balancing.task_weights[:, None]
        balancing.refresh(shown @ shown.T, now * balancing.task_weights, [0, 1, 2])
        assert balancing.weights.tolist() == pytest.approx(before, rel=1e-3)
        assert balancing.upcoming.sum().item() == pytest.approx(3, rel=1e-5)
    assert (balancing.weights - 1).abs().max() > 0.1


def test_gradnorm_without_favour_makes_gradients_equally_long() -> None:
    balancing = GradNorm(torch.ones(2), alpha=0.0)
    for _ in range(400):
        balancing.refresh(RIGHT @ RIGHT.T, torch.ones(2), [0, 1])
    lengths = balancing.weights * torch.tensor([2.0, 1.0])
    assert lengths[0].item() == pytest.approx(lengths[1].item(), rel=0.1)


# ---- What all promise ----------------------------------------------------------------------------


def _is_no_line(cosine: float) -> bool:
    """Whether gradients are clearly one direction, or clearly several."""
    return cosine == 1 or cosine < 0.99


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([*SURGERY, "gradnorm"]), st.integers(2, 4), st.floats(0, 1).filter(_is_no_line)
)
@example("mgda", 2, 1.0)
def test_gradients_that_are_alike_and_in_no_conflict_are_summed(
    name: str, tasks: int, cosine: float
) -> None:
    gramian = torch.full((tasks, tasks), cosine) + (1 - cosine) * torch.eye(tasks)
    balancing = BALANCING[name](torch.ones(tasks))
    balancing.start_epoch(0)
    balancing.refresh(7.0 * gramian, torch.ones(tasks), list(range(tasks)))
    expected = 1.0
    if name == "aligned_mtl" and cosine < 1:  # the least singular value over the first
        expected = math.sqrt((1 - cosine) / (1 + (tasks - 1) * cosine))
    if name == "mgda" and cosine == 1:  # whoever has the weight, the step is the same
        assert balancing.weights.sum().item() == pytest.approx(tasks)
    else:
        assert balancing.weights.tolist() == pytest.approx([expected] * tasks, abs=5e-3)


gradients_of = st.integers(0, 2**31).map(
    lambda seed: torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([name for name in SURGERY if name not in ("pcgrad", "gradvac")]),
    st.permutations(range(3)),
    gradients_of,
)
def test_permuting_tasks_permutes_weights(name: str, order: list[int], gradients: Tensor) -> None:
    straight, permuted = weights_of(name, gradients), weights_of(name, gradients[order])
    assert permuted.tolist() == pytest.approx(straight[order].tolist(), abs=0.02, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SURGERY), gradients_of, st.sampled_from([1e-4, 1e3]))
def test_the_scale_of_all_gradients_changes_no_weight(
    name: str, gradients: Tensor, factor: float
) -> None:
    found = []
    for scale in (1.0, factor):
        torch.manual_seed(0)  # the order of PCGrad
        found.append(weights_of(name, scale * gradients).tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-2, abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["nash_mtl", "imtl_g"]), gradients_of, st.sampled_from([0.1, 10.0]))
def test_who_is_loud_has_no_more_say_where_that_is_promised(
    name: str, gradients: Tensor, factor: float
) -> None:
    louder = gradients * torch.tensor([[factor], [1.0], [1.0]])
    plain = weights_of(name, gradients) @ gradients
    found = weights_of(name, louder) @ louder
    cosine = (found @ plain) / (found.norm() * plain.norm())
    # A weight of IMTL-G can change its sign with the sum that it is divided by.
    assert cosine.abs().item() == pytest.approx(1, abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**31))
def test_nash_mtl_solves_its_equation(tasks: int, seed: int) -> None:
    gradients = torch.randn(tasks, 6, generator=torch.Generator().manual_seed(seed)).double()
    alpha = weights_of("nash_mtl", gradients).double()
    # Up to the scale: what a task gains, times its weight, is the same for all.
    gains = gradients @ gradients.T @ alpha * alpha
    assert (gains / gains.mean()).tolist() == pytest.approx([1.0] * tasks, rel=1e-3)


def test_nash_mtl_of_opposite_gradients_is_nothing() -> None:
    gradients = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    found = weights_of("nash_mtl", gradients)
    assert (found @ gradients).norm() < 1e-3
    assert found.sum().item() == pytest.approx(2)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["upgrad", "dual_proj", "mgda", "nash_mtl"]), gradients_of)
def test_no_task_is_harmed_where_that_is_promised(name: str, gradients: Tensor) -> None:
    step = weights_of(name, gradients) @ gradients
    gains = gradients @ step / (gradients.norm(dim=1) * step.norm().clamp_min(1e-6))
    assert gains.min() > -0.02


@pytest.mark.parametrize("name", [*SURGERY, "gradnorm"])
def test_a_gradient_of_nothing_or_of_no_number_shifts_nothing(name: str) -> None:
    gradients = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-0.5, 2.0, 0.0]])
    found, without = weights_of(name, gradients), weights_of(name, gradients[[0, 2]])
    assert found[1] == 1
    assert found[[0, 2]].tolist() == pytest.approx(without.tolist(), rel=1e-5)
    gradients[1] = math.inf
    assert weights_of(name, gradients).tolist() == [1.0] * 3


# ---- In a network --------------------------------------------------------------------------------


def small(network: str = "mmoe", members: int = 1, tasks: int = 3) -> Network:
    torch.manual_seed(1)
    config = NetworkConfig(
        network=network, members=members, experts=3, embedding_dim=3, bins=4, steps=1,
        expert_units=(6,), shared_units=(6,), tower_units=(5,), linear_path=True, dropout=0.0,
    )  # fmt: skip
    made = Network([0, 0, 3], tasks, config)
    torch.nn.init.normal_(made.linear.weight)
    return made


def batch(rows: int = 12, tasks: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator)
    x[:, 2] = torch.randint(0, 3, (rows,), generator=generator)
    y = torch.randint(0, 2, (rows, tasks), generator=generator).float()
    return x, y


class Step:
    """One step of a balancing, up to the gradients."""

    def __init__(self, network: Network, name: str, **options: Any) -> None:
        self.network = network
        tasks = network.towers.tasks
        task_weights = options.pop("task_weights", [1.0] * tasks)
        self.balancing = BALANCING[name](torch.tensor(task_weights), **options)
        self.balancing.start_epoch(0)

    def losses(self, x: Tensor, y: Tensor, trace: Trace | None = None) -> Tensor:
        outputs = self.network(x, pooled=False, trace=trace)
        return task_losses(outputs.flatten(0, 1), y.repeat(len(outputs), 1))

    def backward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        trace = Trace()
        torch.manual_seed(0)
        losses = self.losses(x, y, trace)
        loss = self.balancing(losses, ~y.isnan().all(0), trace.shared)
        self.balancing.backward(loss * factor, self.network)
        return loss


def assert_same_parts(network: Network, shared: Tensor, own: dict[Any, Tensor]) -> None:
    found, found_own = loops.parts_of(network)
    torch.testing.assert_close(found, shared, rtol=1e-4, atol=1e-6)
    assert found_own.keys() == own.keys()
    for key, value in own.items():
        torch.testing.assert_close(found_own[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["mmoe", "ple", "shared_bottom"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_tasks_share_is_aggregated_as_torchjd_does_and_the_rest_is_plain(
    name: str, network: str
) -> None:
    step, (x, y) = Step(small(network, members=2), name), batch()
    shared, own = loops.split_gradients(step.network, step.losses(x, y).unbind())
    make, factor = AGGREGATORS[name]
    torch.manual_seed(0)
    # Brought to length 1 and back: TorchJD takes short gradients for none.
    length = torch.stack(shared).square().sum().div(3).sqrt()
    expected = make()(torch.stack(shared) / length) * length
    step.backward(x, y)
    if factor is None:
        factor = loops.parts_of(step.network)[0].norm() / expected.norm()
        assert step.balancing.latest.sum().item() == pytest.approx(3, rel=1e-5)
    found, _ = loops.parts_of(step.network)
    torch.testing.assert_close(found, expected * factor, rtol=5e-3, atol=5e-4)
    combined = (step.balancing.latest[:, None] * torch.stack(shared)).sum(0)
    assert_same_parts(step.network, combined, own)


def test_a_network_written_with_loops_has_the_gradients_of_mtl_backward() -> None:
    network, (x, y) = small(), batch(6)
    cardinalities = [0, 0, 3]
    trunk = network.trunk

    # One leaf per slice, put where the batched network has its slices.
    owners = network.owners()
    own: list[list[Tensor]] = [[], [], []]
    leaves: dict[str, list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if name in owners:
            leaves[name] = [part.detach().clone().requires_grad_() for part in parameter]
            for leaf, owner in zip(leaves[name], owners[name].tolist(), strict=True):
                own[owner].append(leaf)
    slices = {name: torch.stack(parts) for name, parts in leaves.items()}

    class Sliced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self) -> tuple[Tensor, list[Tensor]]:
            losses, features = [], []
            for row, labels in zip(x, y, strict=True):
                embedded = slow.features(network.embedding, cardinalities, row)
                experts = [slow.mlp(trunk.experts, i, embedded) for i in range(3)]
                # A tensor of its own, lest what goes through the experts is counted twice.
                embedded = embedded.clone()
                features += [embedded, *experts]
                answers = []
                for task in range(3):
                    weights = slow.gate_weights(
                        trunk.gates, NetworkConfig(), task, embedded, range(3)
                    )
                    mixed = slow.mixture(weights, experts)
                    hidden = slow.mlp(network.towers.hidden, task, mixed)
                    answer = slow.linear(network.towers.out, task, hidden)[0]
                    answers.append(answer + embedded @ network.linear.weight[task])
                losses.append(
                    torch.nn.functional.binary_cross_entropy_with_logits(
                        torch.stack(answers), labels, reduction="none"
                    )
                )
            return torch.stack(losses).mean(0), features

    sliced = Sliced()
    renamed = {f"network.{name}": value for name, value in slices.items()}
    losses, features = torch.func.functional_call(sliced, renamed)
    shared = [p for name, p in network.named_parameters() if name not in owners]
    mtl_backward(
        list(losses), features, tasks_params=own, shared_params=shared, retain_graph=True,
        parallel_chunk_size=1,
    )  # fmt: skip
    jac_to_grad(shared, aggregation.UPGrad())
    expected = torch.cat([parameter.grad.flatten() * 3 for parameter in shared])
    tasks = {(name, i): leaf.grad for name, parts in leaves.items() for i, leaf in enumerate(parts)}
    network.zero_grad()
    Step(network, "upgrad").backward(x, y)
    found, found_own = loops.parts_of(network)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    for key, value in tasks.items():
        torch.testing.assert_close(found_own[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtl_g", "gradnorm"])
@pytest.mark.parametrize("options", [{"at": "representation"}, {"every": 3, "at": "parameters"}])
def test_known_weights_take_one_pass_and_leave_what_is_owned_plain(
    name: str, options: dict[str, Any]
) -> None:
    step, (x, y) = Step(small("ple", members=2), name, **options), batch()
    shared, own = loops.split_gradients(step.network, step.losses(x, y).unbind())
    for _ in range(2):
        step.network.zero_grad()
        step.backward(x, y)
        factors = step.balancing.latest
        if name == "gradnorm":  # weighs the whole loss
            owners = step.network.owners()
            whole = {key: factors[owners[key[0]][key[1]]] * part for key, part in own.items()}
        else:
            whole = own
        assert_same_parts(step.network, factors @ torch.stack(shared), whole)


def test_weights_at_the_representation_come_from_its_gradients() -> None:
    step, (x, y) = Step(small(), "imtl_g", at="representation"), batch()
    trace = Trace()
    losses = step.losses(x, y, trace)
    gradients = [torch.autograd.grad(loss, trace.shared, retain_graph=True)[0] for loss in losses]
    step.backward(x, y)
    expected = weights_of("imtl_g", torch.stack(gradients).flatten(1))
    assert step.balancing.latest.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_weights_are_found_anew_every_so_many_steps_and_with_each_epoch() -> None:
    step, (x, y) = Step(small(), "mgda", every=3), batch()
    found = []
    for i in range(7):
        if i == 5:
            step.balancing.start_epoch(1)
        step.network.zero_grad()
        step.backward(x, y)
        found.append(step.balancing.latest.tolist())
        with torch.no_grad():
            for parameter in step.network.parameters():
                parameter -= 0.5 * parameter.grad
    changed = [one != other for one, other in itertools.pairwise(found)]
    assert changed == [False, False, True, False, True, False]


@pytest.mark.parametrize("name", [*SURGERY, "gradnorm"])
@pytest.mark.parametrize("at", ["parameters", "representation"])
def test_a_task_that_a_batch_does_not_observe_is_left_out(name: str, at: str) -> None:
    with_it, (x, y) = Step(small(), name, at=at), batch()
    y[:, 1] = NAN
    for _ in range(3):
        with_it.network.zero_grad()
        with_it.backward(x, y)
    shared, own = loops.split_gradients(with_it.network, with_it.losses(x, y).unbind())
    with_it.backward(x, y)
    assert with_it.balancing.weights[1] == 1
    factors = with_it.balancing.latest
    if at == "parameters" and name not in ("gradvac", "gradnorm", "nash_mtl", "pcgrad"):
        expected = weights_of(name, torch.stack(shared)[[0, 2]])
        assert factors[[0, 2]].tolist() == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-2)
    if name != "gradnorm":
        assert_same_parts(with_it.network, factors @ torch.stack(shared), own)


@pytest.mark.parametrize("name", ["mgda", "gradnorm"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_of_one_task_or_none_is_plain(name: str, alone: bool) -> None:
    step, (x, y) = Step(small(), name), batch()
    step.backward(x, y)
    y[:, [1, 2]] = NAN
    if not alone:
        y[:] = NAN
    step.network.zero_grad()
    shared, own = loops.split_gradients(step.network, step.losses(x, y).unbind())
    step.backward(x, y)
    assert_same_parts(step.network, torch.stack(shared).sum(0), own)


def test_the_users_weights_multiply_losses_beforehand() -> None:
    step = Step(small(), "upgrad", task_weights=[1.0, 0.1, 2.0])
    x, y = batch()
    shared, own = loops.split_gradients(
        step.network, (step.losses(x, y) * torch.tensor([1.0, 0.1, 2.0])).unbind()
    )
    step.backward(x, y)
    found = weights_of("upgrad", torch.stack(shared))
    assert_same_parts(step.network, found @ torch.stack(shared), own)
    expected = found * torch.tensor([1.0, 0.1, 2.0])
    assert step.balancing.latest.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", [*SURGERY, "gradnorm"])
@pytest.mark.parametrize("at", ["parameters", "representation"])
def test_a_task_that_comes_in_slowly_does_not_slow_the_others(name: str, at: str) -> None:
    plain, coming, (x, y) = Step(small(), name, at=at), Step(small(), name, at=at), batch()
    warmth = torch.tensor([1.0, 1e-3, 0.5])
    shared, own = loops.split_gradients(coming.network, (coming.losses(x, y) * warmth).unbind())
    for _ in range(3):
        plain.network.zero_grad()
        plain.backward(x, y)
        coming.network.zero_grad()
        trace = Trace()
        held = warmed(coming.losses(x, y, trace), warmth)
        loss = coming.balancing(held, ~y.isnan().all(0), trace.shared, warmth)
        coming.balancing.backward(loss, coming.network)
    assert coming.balancing.latest.tolist() == pytest.approx(plain.balancing.latest.tolist(), 1e-3)
    if name != "gradnorm":
        assert_same_parts(coming.network, coming.balancing.latest @ torch.stack(shared), own)


def test_penalties_and_the_trainers_factor_reach_the_gradient() -> None:
    plain, other, (x, y) = Step(small(), "mgda"), Step(small(), "mgda"), batch()
    plain.backward(x, y)
    losses = other.losses(x, y)
    penalty = other.network.towers.out.weight.square().sum() + 0.1 * losses[0]
    loss = (other.balancing(losses, ~y.isnan().all(0)) + penalty) / 4
    other.balancing.backward(loss, other.network)
    by_hand = small()
    outputs = by_hand(x)
    extra = by_hand.towers.out.weight.square().sum() + 0.1 * task_losses(outputs, y)[0]
    extra.backward()
    for one, two, three in zip(
        plain.network.parameters(), other.network.parameters(), by_hand.parameters(), strict=True
    ):
        more = torch.zeros_like(one) if three.grad is None else three.grad
        torch.testing.assert_close(two.grad, (one.grad + more) / 4, rtol=1e-4, atol=1e-6)


def test_gradients_of_batches_add_up() -> None:
    step, (x, y) = Step(small(), "mgda"), batch()
    step.backward(x[:6], y[:6])
    first, first_own = loops.parts_of(step.network)
    step.network.zero_grad()
    step.backward(x[6:], y[6:])
    second, second_own = loops.parts_of(step.network)
    step.network.zero_grad()
    step.backward(x[:6], y[:6])
    step.backward(x[6:], y[6:])
    summed = {key: value + second_own[key] for key, value in first_own.items()}
    assert_same_parts(step.network, first + second, summed)


def test_what_is_drawn_leaves_the_numbers_of_every_device_alone(monkeypatch: Any) -> None:
    seeded: list[Any] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    weights_of("pcgrad", torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeded


def test_parameters_that_are_frozen_stay_without_gradient() -> None:
    step, (x, y) = Step(small(), "upgrad"), batch()
    owners = step.network.owners()
    for name, parameter in step.network.named_parameters():
        parameter.requires_grad_(name in owners)
    step.backward(x, y)
    for name, parameter in step.network.named_parameters():
        assert (parameter.grad is not None) == (name in owners)


@pytest.mark.parametrize("weight", [0.0, 1e-9, -1e-9])
def test_what_is_owned_stays_plain_whatever_the_weight(weight: float) -> None:
    towers = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # one each
    owned = Owned(["towers"], [towers], [torch.tensor([0, 1])])
    losses = towers.square().sum(1)
    weights = torch.tensor([weight, 1.0])
    (found,) = owned.weighted(losses, weights, torch.tensor(1.0), own=False)
    torch.testing.assert_close(found, 2 * towers.detach())


def test_gradnorm_keeps_weights_positive_at_any_rate() -> None:
    balancing = GradNorm(torch.ones(2), learning_rate=5.0)
    for _ in range(3):
        balancing.refresh(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.ones(2), [0, 1])
        assert balancing.weights.min() > 0
        assert balancing.weights.sum().item() == pytest.approx(2)


def test_gradients_that_are_one_tensor_are_clipped_once() -> None:
    one, other = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    owned = Owned(["one", "other"], [one, other], [None, None])
    losses = (one + other).square().sum()[None]
    for own in (True, False):
        one.grad = other.grad = None
        owned.add(owned.weighted(losses, torch.tensor([2.0]), torch.tensor(1.0), own=own))
        torch.nn.utils.clip_grad_norm_([one, other], 1.0)
        assert torch.cat([one.grad, other.grad]).norm().item() == pytest.approx(1, rel=1e-4)


def test_no_shared_representation_is_said() -> None:
    step, (x, y) = Step(small(), "mgda", at="representation"), batch()
    with pytest.raises(ValueError, match=r"no representation .* use at='parameters'"):
        step.balancing(step.losses(x, y), ~y.isnan().all(0), None)


# ---- In training ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [("upgrad", "bf16"), ("gradnorm", "bf16")])
def test_surgery_trains_with_members_and_bfloat16(name: str, precision: str) -> None:
    trained = fit(balancing=name, members=2, precision=precision, epochs=2)
    assert trained.history[-1]["train_loss"] < 0.7


def test_what_is_aggregated_is_clipped() -> None:
    norms = []

    class Noting(MultiTaskModule):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(*args, **kwargs)
            parts = [p.grad.flatten() for p in self.network.parameters() if p.grad is not None]
            norms.append(torch.cat(parts).norm().item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riskmtl.training.fit.MultiTaskModule", Noting)
        fit(balancing="upgrad", epochs=1, clip=0.01)
    assert norms == pytest.approx([0.01] * 9, rel=1e-3)


def test_accumulated_batches_give_the_mean_of_their_gradients() -> None:
    gradients = []

    class Noting(MultiTaskModule):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            learning = [p for p in self.network.parameters() if p.requires_grad]
            gradients.append([parameter.grad.clone() for parameter in learning])

    still = {"learning_rate": 1e-30, "weight_decay": 0.0, "dropout": 0.0, "epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riskmtl.training.fit.MultiTaskModule", Noting)
        fit(balancing="mgda", **still)
        fit(balancing="mgda", **still, trainer_options={"accumulate_grad_batches": 9})
    *single, together = gradients
    assert len(single) == 9
    for i, found in enumerate(together):
        expected = torch.stack([step[i] for step in single]).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_one_task_alone_needs_no_surgery() -> None:
    options = {"network": "single_task", "epochs": 1}
    assert_same_bits(fit(**options), fit(**options, balancing="cagrad"))


def test_the_module_says_its_weights() -> None:
    seen = []

    class Noting(MultiTaskModule):
        def on_validation_epoch_end(self) -> None:
            seen.append((self.balancing.latest, self.balancing.mean_weights()))
            super().on_validation_epoch_end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riskmtl.training.fit.MultiTaskModule", Noting)
        fit(balancing="mgda", epochs=2)
    for latest, mean in seen:
        assert mean.sum().item() == pytest.approx(2, rel=1e-4)
        assert latest.sum().item() == pytest.approx(2, rel=1e-4)
        assert latest.tolist() != mean.tolist()


def test_a_compiled_network_is_refused() -> None:
    message = "balancing='mgda' takes the gradient of each task by itself.* use compile=False"
    with pytest.raises(ValueError, match=message):
        MultiTaskClassifier(balancing="mgda", compile=True).fit([[0.0]] * 20, [[0, 1]] * 20)
    with pytest.raises(ValueError, match=message):
        make_balancing(replace(CONFIG, balancing="mgda", compile=True), PLAN)
    make_balancing(replace(CONFIG, balancing="famo", compile=True), PLAN)


@pytest.mark.parametrize("missing", ["torchjd", "quadprog"])
def test_a_missing_package_is_named_with_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return plain(name, *args, **kwargs)

    if missing == "torchjd":
        monkeypatch.setattr(builtins, "__import__", without)
    else:
        monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"pip install 'riskmtl\[balancing\]' \(.*{missing}"):
        MultiTaskClassifier(balancing="upgrad").fit([[0.0]] * 20, [[0, 1]] * 20)


def test_the_estimator_takes_it_all(recwarn: pytest.WarningsRecorder) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator).numpy()
    y = (x[:, :2] > 0).astype(float)
    y[:100, 1] = NAN
    model = MultiTaskClassifier(
        network="mmoe", balancing="cagrad", balancing_options={"c": 0.4, "every": 2}, epochs=2,
        members=1, expert_units=(8,), device="cpu", random_state=0,
    ).fit(x, y)  # fmt: skip
    assert model.predict_proba(x).shape == (300, 2)
    assert not [warning for warning in recwarn if "torchjd" in str(warning.filename)]
