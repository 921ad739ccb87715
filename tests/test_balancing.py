"""Weights of losses: their values by hand, what they promise, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import balancing as loops
from test_training import CONFIG, KillAfter, Killed, assert_same_bits, fit, rows, weights
from torch import Tensor

from riskmtl import MultiTaskClassifier
from riskmtl.training.balancing import (
    BALANCING,
    check_balancing,
    make_balancing,
    options_of,
)
from riskmtl.training.rows import TaskPlan, TrainingRows
from riskmtl.training.weighing import (
    FAMO,
    Balancing,
    DynamicWeightAverage,
    GeometricMean,
    Uncertainty,
)

OF_LOSSES = ["static", "uncertainty", "dwa", "random", "geometric_mean", "famo"]
ALWAYS = ["sum", "static", "uncertainty", "dwa", "geometric_mean", "famo"]  # nothing is drawn
losses_of = st.lists(st.floats(0.01, 5.0), min_size=2, max_size=4)


def everybody(tasks: int) -> Tensor:
    return torch.ones(tasks, dtype=torch.bool)


def gradient(balancing: Balancing, losses: list[float], present: Tensor | None = None) -> Tensor:
    """What each loss is multiplied by in the gradient."""
    given = torch.tensor(losses, requires_grad=True)
    seen = everybody(len(losses)) if present is None else present
    balancing.backward(balancing(given, seen), torch.nn.Identity())
    assert given.grad is not None
    return given.grad


def make(name: str, tasks: int, **options: Any) -> Balancing:
    made = BALANCING[name](torch.ones(tasks), **options)
    made.start_epoch(0)
    return made


# ---- Values --------------------------------------------------------------------------------------


def test_uncertainty_is_the_papers_form_and_learns_the_log_of_twice_the_loss() -> None:
    balancing = Uncertainty(torch.tensor([1.0, 3.0]), torch.tensor([False, True]))
    given = torch.tensor([0.2, 0.8])
    optimizer = torch.optim.SGD(balancing.parameters(), lr=0.1)
    assert balancing(given, everybody(2)).item() == pytest.approx(0.2 + 3 * 0.8 / 2)
    for _ in range(2000):
        optimizer.zero_grad()
        balancing(given, everybody(2)).backward()
        optimizer.step()
    # exp(-s) L = 1/2 for the binary task, exp(-s) L / 2 = 1/2 for the regression.
    assert balancing.log_variances.tolist() == pytest.approx([math.log(0.4), math.log(0.8)])
    # So weights are 1 / (2 L) each, times the user's.
    balancing(given, everybody(2))
    assert balancing.latest.tolist() == pytest.approx([1 / 0.4, 3 / 1.6], rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(losses_of.map(lambda x: (x + x)[:3]), min_size=1, max_size=5), st.floats(0.5, 4))
def test_dwa_equals_its_loop(epochs: list[list[float]], temperature: float) -> None:
    balancing = DynamicWeightAverage(torch.ones(3), temperature=temperature)
    for epoch, losses in enumerate(epochs):
        balancing.start_epoch(epoch)
        for factor in (0.5, 1.5):  # an epoch is known by its mean
            found = gradient(balancing, [factor * loss for loss in losses])
        expected = loops.dwa(epochs[:epoch], temperature) if epoch else [1.0] * 3
        assert found.tolist() == pytest.approx(expected, rel=1e-4)
        assert found.sum().item() == pytest.approx(3, rel=1e-5)


def test_dwa_takes_epochs_that_do_not_observe_a_task_for_no_news() -> None:
    balancing = DynamicWeightAverage(torch.ones(2))
    for epoch, present in enumerate([[1, 1], [1, 0], [1, 1]]):
        balancing.start_epoch(epoch)
        gradient(balancing, [2.0 * x for x in present], torch.tensor(present).bool())
    assert balancing.latest.tolist() == pytest.approx([1.0, 1.0])


@settings(max_examples=30, deadline=None)
@given(losses_of, st.lists(st.floats(0.1, 2), min_size=4, max_size=4))
def test_the_geometric_mean_equals_its_loop(losses: list[float], task_weights: list[float]) -> None:
    task_weights = task_weights[: len(losses)]
    balancing = GeometricMean(torch.tensor(task_weights))
    value = balancing(torch.tensor(losses), everybody(len(losses))).item()
    expected = loops.geometric_mean(losses, task_weights)
    assert value == pytest.approx(expected, rel=1e-4)
    # The gradient is that of the mean: a difference quotient says so.
    step = losses[0] * 1e-4
    slope = (loops.geometric_mean([losses[0] + step, *losses[1:]], task_weights) - expected) / step
    assert gradient(balancing, losses)[0].item() == pytest.approx(slope, rel=1e-3)


def test_famo_equals_its_loop_over_steps() -> None:
    balancing, loop = FAMO(torch.ones(3), gamma=0.01, learning_rate=0.1), loops.FAMO(3, 0.1, 0.01)
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = rng.uniform(0.1, 2, (2, 3)).tolist()
        assert gradient(balancing, before).tolist() == pytest.approx(loop.factors(before), rel=1e-4)
        balancing.look_back(torch.tensor(after), everybody(3))
        loop.update(before, after)
    assert balancing.logits.abs().max() > 0.1


def test_famo_looks_back_on_tasks_that_took_part_alone() -> None:
    balancing = FAMO(torch.ones(3))
    gradient(balancing, [1.0, 1.0, 1.0], torch.tensor([True, True, False]))
    balancing.look_back(torch.tensor([0.5, 1.0, 0.1]), everybody(3))
    assert balancing.logits.tolist() == pytest.approx([-0.025, 0.025, 0.0], rel=1e-4)


def test_random_weights_are_shares_of_the_number_of_tasks() -> None:
    drawn = make("random", 3)
    found = torch.stack([gradient(drawn, [1.0, 1.0, 1.0]) for _ in range(2000)])
    assert (found > 0).all()
    assert found.sum(1).allclose(torch.tensor(3.0))
    # Log-ratios of shares are differences of two normal numbers.
    ratios = (found[:, 0] / found[:, 1]).log()
    assert ratios.std().item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert found.mean(0).tolist() == pytest.approx([1.0] * 3, abs=0.05)


def test_random_weights_follow_from_the_seed_of_the_epoch_alone() -> None:
    one, other = make("random", 3), make("random", 3)
    torch.manual_seed(1)
    first = gradient(one, [1.0, 2.0, 3.0])
    torch.manual_seed(2)
    assert torch.equal(first, gradient(other, [3.0, 2.0, 1.0]))
    other.start_epoch(1)
    assert not torch.equal(first, gradient(other, [1.0, 2.0, 3.0]))


# ---- What all promise ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALWAYS)
def test_tasks_that_are_alike_are_summed(name: str) -> None:
    balancing = make(name, 3)
    for epoch in range(4):
        balancing.start_epoch(epoch)
        assert gradient(balancing, [0.7] * 3).tolist() == pytest.approx([1.0] * 3, rel=1e-5)
        balancing.look_back(torch.tensor([0.6] * 3), everybody(3))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ALWAYS), st.permutations(range(3)), st.integers(0, 2**31))
def test_permuting_tasks_permutes_weights(name: str, order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = make(name, 3), make(name, 3)
    for epoch in range(4):
        one.start_epoch(epoch)
        other.start_epoch(epoch)
        losses, after = rng.uniform(0.05, 3, (2, 3)).astype(np.float32)
        first = gradient(one, losses.tolist())
        second = gradient(other, losses[order].tolist())
        assert second.tolist() == pytest.approx(first[order].tolist(), rel=1e-4)
        one.look_back(torch.tensor(after), everybody(3))
        other.look_back(torch.tensor(after[order]), everybody(3))


@pytest.mark.parametrize("name", ["geometric_mean", "famo", "dwa"])
def test_the_scale_of_a_loss_does_not_decide_how_much_it_moves(name: str) -> None:
    plain, scaled = make(name, 2), make(name, 2)
    rng = np.random.default_rng(1)
    for epoch in range(4):
        plain.start_epoch(epoch)
        scaled.start_epoch(epoch)
        losses, after = rng.uniform(0.5, 2, (2, 2))
        factor = np.array([1.0, 100.0])
        one = gradient(plain, losses.tolist()) * torch.tensor(losses)
        other = gradient(scaled, (losses * factor).tolist()) * torch.tensor(losses * factor)
        if name == "dwa":  # weighs by ratios alone
            other = other / torch.tensor(factor)
        assert (one[0] / one[1]).item() == pytest.approx((other[0] / other[1]).item(), rel=1e-4)
        plain.look_back(torch.tensor(after), everybody(2))
        scaled.look_back(torch.tensor(after * factor), everybody(2))


@pytest.mark.parametrize("name", OF_LOSSES)
def test_the_users_weight_multiplies_what_a_method_makes(name: str) -> None:
    plain = BALANCING[name](torch.ones(2))
    weighted = BALANCING[name](torch.tensor([1.0, 0.25]))
    for balancing in (plain, weighted):
        balancing.start_epoch(0)
    one, other = gradient(plain, [1.0, 2.0]), gradient(weighted, [1.0, 2.0])
    assert (other / one)[1].item() == pytest.approx(0.25 * (other / one)[0].item())
    assert other.tolist() == pytest.approx(weighted.latest.tolist())


@pytest.mark.parametrize("name", ["sum", *OF_LOSSES])
def test_a_task_that_a_batch_does_not_observe_shifts_nothing(name: str) -> None:
    with_it, without = make(name, 3), make(name, 2)
    rng = np.random.default_rng(0)
    for epoch in range(4):
        with_it.start_epoch(epoch)
        without.start_epoch(epoch)
        before, after = rng.uniform(0.1, 2, (2, 2)).tolist()
        present = torch.tensor([True, False, True])
        found = gradient(with_it, [before[0], 0.0, before[1]], present)
        assert found.isfinite().all()
        if name != "random":
            assert found[[0, 2]].tolist() == pytest.approx(gradient(without, before).tolist())
        else:
            assert found[[0, 2]].sum().item() == pytest.approx(2)
        with_it.look_back(torch.tensor([after[0], 0.0, after[1]]), present)
        without.look_back(torch.tensor(after), everybody(2))
        # Its own weight stays where it was.
        assert with_it.latest[1] == 1
        assert with_it.mean_weights()[1] == 1
    if name == "uncertainty":
        assert with_it.log_variances.grad[1] == 0
    assert all(
        value[1] in (0, 1) for key, value in with_it.state_dict().items() if "past" not in key
    )


@pytest.mark.parametrize("name", ["sum", *OF_LOSSES])
def test_a_batch_that_observes_nothing_gives_no_nan(name: str) -> None:
    balancing = make(name, 2)
    nobody = torch.zeros(2, dtype=torch.bool)
    for epoch in range(3):
        balancing.start_epoch(epoch)
        assert gradient(balancing, [0.0, 0.0], nobody).isfinite().all()
        balancing.look_back(torch.zeros(2), nobody)
    assert gradient(balancing, [1.0, 1.0]).isfinite().all()
    assert balancing.latest.isfinite().all()


def test_mean_weights_are_those_of_the_epoch() -> None:
    balancing = GeometricMean(torch.ones(2))
    balancing.start_epoch(0)
    gradient(balancing, [1.0, 4.0])  # 2 and 1/2
    gradient(balancing, [1.0, 1.0])
    gradient(balancing, [3.0, 0.0], torch.tensor([True, False]))
    assert balancing.mean_weights().tolist() == pytest.approx([(2 + 1 + 1) / 3, (0.5 + 1) / 2])
    assert balancing.latest.tolist() == [1.0, 1.0]
    balancing.start_epoch(1)
    gradient(balancing, [4.0, 1.0])
    assert balancing.mean_weights().tolist() == pytest.approx([0.5, 2.0])


# ---- In training ---------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "uncertainty": {},
    "gradnorm": {},
    "famo": {},
    "dwa": {},
    "random": {},
    "gradvac": {"every": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    options = {"network": "mmoe", "rows": rows(200), "validation": rows(100, seed=1), "epochs": 3}
    plain = fit(**options)
    options |= {"balancing": name, "balancing_options": RESUMED[name]}
    whole = fit(**options, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(Killed):
        fit(**options, checkpoint_dir=tmp_path / "cut", callbacks=[KillAfter(2, 0)])
    resumed = fit(**options, checkpoint_dir=tmp_path / "cut")
    assert_same_bits(whole, resumed)
    assert resumed.history == whole.history
    assert not torch.equal(weights(plain)["towers.out.weight"], weights(whole)["towers.out.weight"])


@pytest.mark.parametrize("name", ["uncertainty", "famo", "mgda"])
def test_one_task_alone_is_plainly_summed(name: str) -> None:
    options = {"network": "single_task", "epochs": 1}
    assert_same_bits(fit(**options), fit(**options, balancing=name))


def test_static_weights_of_one_are_the_sum() -> None:
    assert_same_bits(fit(epochs=1), fit(epochs=1, balancing="static"))


def test_famo_sees_the_batch_as_the_step_saw_it() -> None:
    # At a rate of nothing the losses before and after are the same, dropout and all.
    seen = []

    class Seen(FAMO):
        def look_back(self, losses: Tensor, present: Tensor) -> None:
            assert self._before is not None
            seen.append((self._before[0], losses))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BALANCING, "famo", Seen)
        fit(balancing="famo", dropout=0.4, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    assert len(seen) == 9
    assert all(torch.equal(before, after) for before, after in seen)
    assert len({tuple(before.tolist()) for before, _ in seen}) == 9


def test_looking_back_draws_nothing_from_the_steps_numbers() -> None:
    class Blind(FAMO):
        def factors(self, losses: Tensor, present: Tensor) -> Tensor:
            super().factors(losses, present)
            return torch.ones_like(losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BALANCING, "famo", Blind)
        assert_same_bits(fit(balancing="famo", epochs=2), fit(epochs=2))


def test_accumulated_batches_are_looked_back_on_once_per_step() -> None:
    calls = []

    class Counted(FAMO):
        def look_back(self, losses: Tensor, present: Tensor) -> None:
            calls.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BALANCING, "famo", Counted)
        fit(balancing="famo", epochs=1, trainer_options={"accumulate_grad_batches": 3})
    assert len(calls) == 3  # nine batches


@pytest.mark.parametrize("name", [*OF_LOSSES, "gradnorm"])
def test_a_head_that_is_never_observed_harms_nobody(name: str) -> None:
    seen = rows()
    y = seen.y.copy()
    y[:, 1] = np.nan
    blind = TrainingRows(seen.x, y)
    trained = fit(rows=blind, balancing=name, epochs=2, members=2)
    assert all(parameter.isfinite().all() for parameter in trained.network.parameters())


@pytest.mark.parametrize("name", ["dwa", "geometric_mean", "famo", "gradnorm"])
def test_labels_of_weight_nothing_are_none(name: str) -> None:
    # Few rows observe the second task, and in many batches none of weight.
    seen = rows(200)
    counts = np.ones((200, 2), np.float32)
    counts[np.random.default_rng(0).random(200) > 0.05, 1] = 0
    weightless = TrainingRows(seen.x, seen.y, counts)
    unknown = TrainingRows(seen.x, np.where(counts > 0, seen.y, np.float32(np.nan)), counts)
    options = {"balancing": name, "epochs": 3, "batch_size": 16}
    one, other = fit(rows=weightless, **options), fit(rows=unknown, **options)
    assert_same_bits(one, other)
    for key in ("task_weight", "train_loss"):
        assert [row[key] for row in one.history] == [row[key] for row in other.history]


def test_bfloat16_and_members_train() -> None:
    for name in ("uncertainty", "famo"):
        trained = fit(balancing=name, precision="bf16", members=2, epochs=2)
        assert trained.history[-1]["train_loss"] < 0.7


# ---- What a user may say -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smu", {}, "unknown balancing 'smu': did you mean 'sum'"),
        ("dwa", {"temperatur": 1}, "unknown option of 'dwa' 'temperatur': did you mean"),
        ("sum", {"c": 1}, "balancing='sum' takes none, got 'c'"),
        ("random", {"c": 1}, "balancing='random' takes none, got 'c'"),
        ("dwa", {"temperature": 0}, "temperature must be a positive number, got 0"),
        ("dwa", {"temperature": "hot"}, "temperature must be a positive number, got 'hot'"),
        ("famo", {"gamma": -1.0}, "gamma must be a number of at least 0, got -1.0"),
        ("famo", {"learning_rate": math.nan}, "learning_rate must be a positive number"),
        ("gradnorm", {"alpha": True}, "alpha must be a number of at least 0, got True"),
        ("gradnorm", {"at": "heads"}, "at must be 'parameters' or 'representation', got 'heads'"),
        ("mgda", {"every": 0}, "every must be a whole number of at least 1, got 0"),
        ("mgda", {"every": 1.5}, "every must be a whole number of at least 1, got 1.5"),
        ("gradvac", {"beta": 2}, "beta must be a number from 0 to 1, got 2"),
        ("cagrad", {"pref_vector": 2}, "unknown option of 'cagrad' 'pref_vector'"),
        ("aligned_mtl", {"scale_mode": "max"}, "scale_mode must be 'min' or 'median' or 'rmse'"),
    ],
)
def test_a_wrong_balancing_is_named(name: str, options: dict[str, Any], message: str) -> None:
    model = MultiTaskClassifier(balancing=name, balancing_options=options)
    with pytest.raises(ValueError, match=message):
        model.fit(np.zeros((20, 2)), np.zeros((20, 2)))


def test_every_option_can_be_said() -> None:
    for name in BALANCING:
        defaults = dict.fromkeys(set(options_of(name)) & {"every"}, 3)
        check_balancing(name, defaults)
        made = make_balancing(
            replace(CONFIG, balancing=name, balancing_options=defaults),
            TaskPlan(("a", "b"), (False, True), (1.0, 0.5), (1.0, 1.0)),
        )
        assert type(made) is BALANCING[name]
        assert made.latest.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("name", ["uncertainty", "random", "famo", "gradnorm"])
def test_comparing_tasks_of_a_batch_does_nothing_where_it_has_one(name: str) -> None:
    options = {"schedule": "round_robin", "rows": rows(100), "epochs": 4, "batch_size": 32}
    plain, balanced = weights(fit(**options)), weights(fit(**options, balancing=name))
    is_idle = all(torch.equal(value, balanced[key]) for key, value in plain.items())
    assert is_idle == BALANCING[name].compares


def test_uncertainty_knows_which_head_is_a_regression() -> None:
    plan = TaskPlan(("a", "b"), (False, True), (1.0, 1.0), (1.0, 1.0))
    made = make_balancing(replace(CONFIG, balancing="uncertainty"), plan)
    assert gradient(made, [1.0, 1.0]).tolist() == [1.0, 0.5]


def test_learned_variances_neither_decay_nor_are_clipped() -> None:
    class Noted(lightning.Callback):
        decay, slopes = math.nan, Tensor()

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            variances = pl_module.balancing.log_variances
            (self.decay,) = (
                group["weight_decay"]
                for group in optimizer.param_groups
                if any(parameter is variances for parameter in group["params"])
            )
            if variances.grad is not None:
                self.slopes = variances.grad.clone()

    noted = Noted()
    fit(balancing="uncertainty", epochs=1, clip=1e-9, weight_decay=0.5, callbacks=[noted])
    assert noted.decay == 0
    assert noted.slopes.abs().min() > 1e-3


def test_static_needs_weights_and_takes_no_automatic_ones(monkeypatch: Any) -> None:
    x = pl.DataFrame({"amount": np.arange(200.0)})
    y = pl.DataFrame({"a": [0, 1] * 100, "b": [1, None, None, 0] * 50, "c": [0, 1] * 100})
    with pytest.raises(ValueError, match="takes the weights from task_weights: give one task"):
        MultiTaskClassifier(balancing="static").fit(x, y)
    plans = []
    from riskmtl.training import fit as fitting

    def noted(shape: Any, cardinalities: Any, plan: TaskPlan, *rest: Any) -> None:
        plans.append(plan)
        raise Killed

    monkeypatch.setattr(fitting, "train", noted)
    for options in ({"balancing": "static", "task_weights": {"a": 2.0}}, {"balancing": "dwa"}):
        with pytest.raises(Killed):
            MultiTaskClassifier(**options).fit(x, y)
    assert plans[0].weights == (2.0, 1.0, 1.0)
    assert plans[1].weights[1] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("options", [{"at": "representation"}, {"every": 2}])
def test_a_loss_that_reaches_what_another_owns_needs_exact_gradients(
    options: dict[str, Any],
) -> None:
    check_balancing("mgda", options)
    check_balancing("mgda", {}, multiplied=True)
    with pytest.raises(ValueError, match="only at='parameters' with every=1 keeps its gradient"):
        check_balancing("mgda", options, multiplied=True)
    x, y = pl.DataFrame({"amount": np.arange(200.0)}), {"default": [0, 1] * 100, "seen": [1] * 200}
    model = MultiTaskClassifier(
        balancing="mgda", balancing_options=options, selected_by={"default": "seen"}
    )
    with pytest.raises(ValueError, match="in the entire space"):
        model.fit(x, pl.DataFrame(y))


@pytest.mark.parametrize("name", ["uncertainty", "random"])
def test_a_task_that_another_process_observes_is_present(name: str) -> None:
    # Two processes, of which the second sees no label of the second task.
    one, other, whole = (make(name, 2) for _ in range(3))
    seen = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for balancing in (one, other):
        balancing.over_processes = lambda _: seen.mean(0)
    # Each has its share of the whole loss (0.6, 0.9), the mean over both.
    first = gradient(one, [0.4, 1.8], seen[0] > 0)
    second = gradient(other, [0.8, 0.0], seen[1] > 0)
    together = gradient(whole, [0.6, 0.9])
    assert torch.equal(first, together)
    assert torch.equal(second, together)
    if name == "uncertainty":
        slopes = [made.log_variances.grad for made in (one, other, whole)]
        assert ((slopes[0] + slopes[1]) / 2).tolist() == pytest.approx(slopes[2].tolist())
