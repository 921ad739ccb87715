"""The loss of each task over its observed rows, and the batches it is taken over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import networks as loops
from torch import Tensor

from riskmtl.networks import TRUNKS, Network, NetworkConfig
from riskmtl.training.batches import TensorBatches, epoch_seed
from riskmtl.training.loss import task_losses

NAN = float("nan")
seeds = st.integers(0, 2**32 - 1)


class Case:
    """Random outputs, labels and weights of a batch; the last task may be a regression."""

    def __init__(self, rows: int, tasks: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, (rows, tasks)).astype(float)
        self.regression = torch.from_numpy(rng.random(tasks) < 0.4)
        labels = np.where(self.regression, rng.normal(3, 2, (rows, tasks)), labels)
        labels[rng.random((rows, tasks)) < 0.4] = NAN
        self.outputs = torch.from_numpy(rng.normal(0, 2, (rows, tasks))).requires_grad_()
        self.labels = torch.from_numpy(labels)
        self.weights = torch.from_numpy(rng.integers(1, 4, rows).astype(float))
        self.positive_weight = torch.from_numpy(rng.uniform(0.5, 4, tasks))

    def losses(self, rows: Any = slice(None), tasks: Any = slice(None), **changed: Any) -> Tensor:
        given = {"weights": self.weights[rows], **changed}
        return task_losses(
            self.outputs[rows][:, tasks],
            self.labels[rows][:, tasks],
            given["weights"],
            positive_weight=self.positive_weight[tasks],
            regression=self.regression[tasks],
        )


cases = st.builds(Case, st.integers(1, 12), st.integers(1, 4), seeds)


def gradient_of(losses: Tensor, outputs: Tensor) -> Tensor:
    factors = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    (gradient,) = torch.autograd.grad((losses * factors).sum(), outputs)
    return gradient


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# --- What the loss is -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(cases)
def test_loss_equals_its_loop(case: Case) -> None:
    looped = loops.task_losses(
        case.outputs,
        case.labels,
        case.weights.tolist(),
        case.positive_weight.tolist(),
        case.regression.tolist(),
    )
    losses = case.losses()
    assert_close(losses, looped)
    if looped.requires_grad:
        assert_close(gradient_of(losses, case.outputs), gradient_of(looped, case.outputs))


def test_options_left_out_are_neutral() -> None:
    case = Case(20, 3, seed=0)
    plain = task_losses(case.outputs, torch.nan_to_num(case.labels, nan=1.0).clamp(0, 1))
    explicit = task_losses(
        case.outputs,
        torch.nan_to_num(case.labels, nan=1.0).clamp(0, 1),
        torch.ones(20, dtype=torch.float64),
        positive_weight=torch.ones(3, dtype=torch.float64),
        regression=torch.zeros(3, dtype=torch.bool),
    )
    assert_close(plain, explicit)


def test_regression_is_the_mean_squared_error_and_has_no_event_weight() -> None:
    outputs = torch.tensor([[1.0, 0.0], [4.0, 0.0], [9.0, 0.0]])
    labels = torch.tensor([[3.0, 1.0], [3.0, 0.0], [NAN, 0.0]])
    losses = task_losses(
        outputs,
        labels,
        positive_weight=torch.tensor([50.0, 4.0]),
        regression=torch.tensor([True, False]),
    )
    assert losses.tolist() == pytest.approx([(4 + 1) / 2, (4 + 1 + 1) / 3 * np.log(2)])


def test_extreme_outputs_have_a_finite_loss() -> None:
    outputs = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    losses = task_losses(outputs, torch.tensor([[0.0], [1.0]]))
    assert losses.item() == pytest.approx(1e4)
    assert gradient_of(losses, outputs).flatten().tolist() == pytest.approx([0.5, -0.5])


# --- What is not observed -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(0, 3))
def test_a_head_without_labels_has_loss_and_gradient_exactly_zero(case: Case, task: int) -> None:
    task = task % case.labels.shape[1]
    case.labels[:, task] = NAN
    losses = case.losses()
    assert losses[task].item() == 0
    gradient = gradient_of(losses, case.outputs)
    assert torch.equal(gradient[:, task], torch.zeros_like(gradient[:, task]))


@settings(max_examples=40, deadline=None)
@given(cases, seeds)
def test_outputs_of_unobserved_rows_change_nothing_to_the_bit(case: Case, seed: int) -> None:
    losses, hidden = case.losses(), torch.isnan(case.labels)
    before = gradient_of(losses, case.outputs)
    other = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed)).double() * 50
    case.outputs = torch.where(hidden, other, case.outputs.detach()).requires_grad_()
    assert torch.equal(case.losses(), losses)
    after = gradient_of(case.losses(), case.outputs)
    assert torch.equal(after, before)
    assert torch.equal(after[hidden], torch.zeros_like(after[hidden]))


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(0, 3), st.floats(0.1, 100))
def test_weights_of_unobserved_rows_change_nothing_to_the_bit(
    case: Case, task: int, factor: float
) -> None:
    task = task % case.labels.shape[1]
    hidden = torch.isnan(case.labels[:, task])
    changed = torch.where(hidden, case.weights * factor, case.weights)
    assert torch.equal(case.losses(weights=changed)[task], case.losses()[task])


@settings(max_examples=40, deadline=None)
@given(cases)
def test_rows_that_observe_nothing_can_be_left_out(case: Case) -> None:
    some = ~torch.isnan(case.labels).all(1)
    kept = some.nonzero().flatten()
    without = case.losses(rows=kept) if len(kept) else torch.zeros(case.labels.shape[1]).double()
    assert_close(case.losses(), without)


def test_a_batch_that_observes_nothing_has_loss_zero() -> None:
    outputs = torch.randn(4, 3, requires_grad=True)
    losses = task_losses(outputs, torch.full((4, 3), NAN), torch.ones(4))
    assert torch.equal(losses, torch.zeros(3))
    assert torch.equal(gradient_of(losses, outputs), torch.zeros(4, 3))


def small_network(trunk: str) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(
        network=trunk, levels=1, expert_units=(6,), shared_units=(6,), tower_units=(5,), dropout=0.0
    )
    return Network([0, 0, 3], 3, config).double()


def small_batch(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (rows, 3), generator=generator).double()
    y = torch.randint(0, 2, (rows, 3), generator=generator).double()
    return x, y


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_what_belongs_to_an_unobserved_head_does_not_move(trunk: str) -> None:
    network, (x, y) = small_network(trunk), small_batch()
    y[:, 1] = NAN
    task_losses(network(x), y).sum().backward()
    owners, parameters = network.owners(), dict(network.named_parameters())
    assert len(owners) >= len(list(network.towers.parameters()))
    for name, owner in owners.items():
        gradient = parameters[name].grad
        assert torch.equal(gradient[owner == 1], torch.zeros_like(gradient[owner == 1]))
        for task in (0, 2):
            assert gradient[owner == task].any() == (owner == task).any(), name


def parameter_gradients(network: Network, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.sum(), list(network.parameters())))


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_an_unobserved_head_leaves_the_gradients_of_the_others_to_the_bit(trunk: str) -> None:
    network, (x, y) = small_network(trunk), small_batch()
    y[:, 1] = NAN
    with_it = parameter_gradients(network, task_losses(network(x), y))
    without = parameter_gradients(network, task_losses(network(x), y)[[0, 2]])
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_features_of_rows_that_observe_nothing_change_nothing_to_the_bit(trunk: str) -> None:
    network, (x, y) = small_network(trunk), small_batch()
    y[3:6] = NAN
    other = x.clone()
    other[3:6] = torch.tensor([[0.3, NAN, 1.0], [-9.0, 0.7, 0.0], [NAN, 5.0, 2.0]])
    first, second = task_losses(network(x), y), task_losses(network(other), y)
    assert not torch.equal(network(x)[3:6], network(other)[3:6])
    assert torch.equal(first, second)
    for a, b in zip(
        parameter_gradients(network, first), parameter_gradients(network, second), strict=True
    ):
        assert torch.equal(a, b)


# --- Weights, events, tasks -----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(cases)
def test_sample_weights_equal_repeated_rows(case: Case) -> None:
    rows = torch.arange(len(case.weights)).repeat_interleave(case.weights.long())
    repeated = case.losses(rows=rows, weights=None)
    assert_close(case.losses(), repeated)
    assert_close(gradient_of(case.losses(), case.outputs), gradient_of(repeated, case.outputs))


@settings(max_examples=40, deadline=None)
@given(cases, st.sampled_from([1e-12, 0.3, 1e9]))
def test_only_proportions_of_sample_weights_matter(case: Case, factor: float) -> None:
    assert_close(case.losses(weights=case.weights * factor), case.losses())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), seeds)
def test_positive_weights_equal_repeated_events(factor: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs = torch.from_numpy(rng.normal(0, 2, (rows, 1)))
    labels = torch.from_numpy(rng.integers(0, 2, (rows, 1)).astype(float))
    weighted = task_losses(outputs, labels, positive_weight=torch.tensor([float(factor)]).double())
    repeats = torch.where(labels[:, 0] == 1, factor, 1)
    chosen = torch.arange(rows).repeat_interleave(repeats)
    # The factor scales what events add up to; the mean stays one over the rows that are there.
    assert_close(weighted * rows, task_losses(outputs[chosen], labels[chosen]) * len(chosen))


@settings(max_examples=40, deadline=None)
@given(cases, st.data())
def test_permuting_tasks_permutes_losses(case: Case, data: st.DataObject) -> None:
    tasks = torch.tensor(data.draw(st.permutations(range(case.labels.shape[1]))))
    assert_close(case.losses(tasks=tasks), case.losses()[tasks])


@settings(max_examples=40, deadline=None)
@given(cases, st.data())
def test_permuting_rows_keeps_losses(case: Case, data: st.DataObject) -> None:
    rows = torch.tensor(data.draw(st.permutations(range(case.labels.shape[0]))))
    assert_close(case.losses(rows=rows), case.losses())


# --- Batches --------------------------------------------------------------------------------------


def batches_of(
    rows: int, size: int, seed: int | None, epoch: Callable[[], int] = lambda: 0
) -> TensorBatches:
    """Batches whose features, labels and weights all tell the number of the row."""
    number = torch.arange(float(rows))
    return TensorBatches(
        number[:, None], -number[:, None], number * 2, size=size, seed=seed, epoch=epoch
    )


def order_of(batches: TensorBatches) -> list[int]:
    return [int(row) for x, _, _ in batches for row in x.flatten()]


row_counts = st.integers(1, 50)


@settings(max_examples=60, deadline=None)
@given(row_counts, st.integers(1, 60), seeds, st.integers(0, 100))
def test_an_epoch_visits_each_row_once_up_to_a_last_short_batch(
    rows: int, size: int, seed: int, epoch: int
) -> None:
    batches = batches_of(rows, size, seed, lambda: epoch)
    order = order_of(batches)
    assert len(order) == len(set(order))
    assert set(order) <= set(range(rows))
    assert rows - len(order) == rows % min(size, rows)
    lengths = [len(x) for x, _, _ in batches]
    assert lengths == [min(size, rows)] * len(batches)


@settings(max_examples=60, deadline=None)
@given(row_counts, st.integers(1, 60))
def test_without_a_seed_all_rows_come_in_their_order(rows: int, size: int) -> None:
    batches = batches_of(rows, size, None)
    assert order_of(batches) == list(range(rows))
    lengths = [len(x) for x, _, _ in batches]
    assert len(lengths) == len(batches)
    assert set(lengths[:-1]) <= {size}
    assert 1 <= lengths[-1] <= size


@pytest.mark.parametrize("seed", [None, 3])
def test_features_labels_and_weights_stay_together(seed: int | None) -> None:
    for x, y, weights in batches_of(23, 5, seed):
        assert weights is not None
        assert torch.equal(y, -x)
        assert torch.equal(weights, 2 * x[:, 0])


@pytest.mark.parametrize("seed", [None, 3])
def test_without_weights_batches_have_none(seed: int | None) -> None:
    batches = TensorBatches(torch.zeros(4, 1), torch.zeros(4, 1), size=2, seed=seed)
    assert [weights for _, _, weights in batches] == [None, None]


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(0, 50))
def test_order_is_that_of_seed_and_epoch(seed: int, epoch: int) -> None:
    now = [epoch]
    batches = batches_of(40, 8, seed, lambda: now[0])
    first = order_of(batches)
    torch.rand(3)  # other draws in between must not matter
    assert order_of(batches) == first
    assert order_of(batches_of(40, 8, seed, lambda: epoch)) == first
    assert order_of(batches_of(40, 8, seed + 1, lambda: epoch)) != first
    now[0] += 1
    assert order_of(batches) != first
    now[0] -= 1
    assert order_of(batches) == first


def test_shuffling_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    order_of(batches_of(20, 4, 1))
    assert torch.equal(torch.rand(4), expected)


def test_every_row_is_dropped_in_some_epoch_only() -> None:
    now = [0]
    batches = batches_of(9, 4, 0, lambda: now[0])
    dropped = []
    for epoch in range(60):
        now[0] = epoch
        dropped += sorted(set(range(9)) - set(order_of(batches)))
    assert set(dropped) == set(range(9))


@given(st.integers(0, 2**63), st.integers(0, 10_000))
def test_seed_of_an_epoch_is_one_that_torch_takes(seed: int, epoch: int) -> None:
    torch.Generator().manual_seed(epoch_seed(seed, epoch))
    assert epoch_seed(seed, epoch) != epoch_seed(seed, epoch + 1)
