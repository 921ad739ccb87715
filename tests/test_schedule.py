"""Which rows and tasks each step trains, how tasks come in, and what drawing events often does."""

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
from reference import networks as loops
from test_training import CONFIG, PLAN, KillAfter, Killed, assert_same_bits, fit, rows, weights
from torch import Tensor

from riskmtl import MultiTaskClassifier
from riskmtl.training.batches import TensorBatches
from riskmtl.training.loss import task_losses
from riskmtl.training.rows import TaskPlan, TrainingRows
from riskmtl.training.sampling import (
    BySize,
    MoreEvents,
    OneTask,
    Sampling,
    Unresolved,
    make_sampling,
    row_rates,
    systematic,
    unresolved,
)
from riskmtl.training.targets import constant_losses
from riskmtl.training.warm_up import warm_up_factors, warmed

NAN = float("nan")
seeds = st.integers(0, 2**32 - 1)
SCHEDULES: dict[str, dict[str, Any]] = {
    "round_robin": {"schedule": "round_robin"},
    "by_size": {"schedule": "by_size", "plan": replace(PLAN, warm_up=(0.0, 2.5))},
    "by_uncertainty": {
        "schedule": "by_uncertainty",
        "freeze_shared_after": 1,
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "members": 2,
    },
    "balanced_events": {"plan": replace(PLAN, event_rates=(4.0, 2.0))},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observed(n: int = 40, shares: tuple[float, ...] = (0.9, 0.3, 0.0)) -> Tensor:
    return torch.rand(n, len(shares), generator=generator(1)) < torch.tensor(shares)


# ---- counts --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(0, 500), seeds)
def test_counts_are_what_is_expected_up_to_one(shares: list[float], total: int, seed: int) -> None:
    if sum(shares) < 1e-3:
        shares[0] = 1.0
    found = systematic(torch.tensor(shares), total, generator(seed))
    expected = torch.tensor(shares, dtype=torch.float64) * total / sum(np.float32(shares))
    assert int(found.sum()) == total
    assert ((found - expected).abs() < 1 + 1e-3).all()


def test_counts_are_right_on_average() -> None:
    shares = torch.tensor([1.0, 2.0, 0.5])
    one = generator()
    mean = torch.stack([systematic(shares, 4, one) for _ in range(2000)]).double().mean(0)
    torch.testing.assert_close(mean, 4 * shares.double() / 3.5, atol=0.04, rtol=0)


# ---- one task per step ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OneTask, BySize])
def test_every_step_trains_one_task_on_rows_that_observe_it(kind: type[OneTask]) -> None:
    seen = observed()
    drawn, tasks = kind(seen).draw(generator(), epoch=0, steps=9, size=7)
    assert drawn.shape == (9, 7)
    assert tasks is not None
    for chosen, task in zip(drawn, tasks, strict=True):
        assert seen[chosen, task].all()
    # Nobody observes the last one.
    assert set(tasks.tolist()) == {0, 1}


def test_in_turn_goes_on_where_the_last_epoch_ended() -> None:
    sampling = OneTask(torch.ones(20, 3, dtype=torch.bool))
    found = [sampling.sequence(generator(), epoch=e, steps=4).tolist() for e in range(3)]
    assert found == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]


def test_a_task_goes_through_all_its_rows_before_one_comes_again() -> None:
    seen = observed()
    drawn, tasks = OneTask(seen).draw(generator(), epoch=0, steps=10, size=8)
    for task in (0, 1):
        times = torch.bincount(drawn[tasks == task].flatten(), minlength=40)[seen[:, task]]
        assert times.max() - times.min() <= 1


def test_by_size_has_the_shares_of_the_rows() -> None:
    seen = torch.zeros(100, 2, dtype=torch.bool)
    seen[:, 0], seen[:25, 1] = True, True
    tasks = BySize(seen).sequence(generator(), epoch=0, steps=50)
    assert torch.bincount(tasks).tolist() == [40, 10]


def test_by_uncertainty_begins_alike_and_then_follows_the_losses() -> None:
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.25)]
    y = np.array([[1, 1], [0, 0], [1, 0], [0, 0]], dtype=np.float32)
    data = TrainingRows(np.zeros((4, 1), np.float32), y)
    assert constant_losses(data, PLAN) == pytest.approx(entropy)
    history: list[dict[str, Any]] = []
    config = replace(CONFIG, schedule="by_uncertainty")
    sampling = make_sampling(data, PLAN, config, lambda: history)
    assert isinstance(sampling, Unresolved)
    assert torch.bincount(sampling.sequence(generator(), epoch=0, steps=40)).tolist() == [20, 20]
    # Of the first a quarter is left, of the second three quarters.
    history += [{"train_loss": 0.25 * entropy[0]}, {"train_loss": 0.75 * entropy[1]}]
    assert torch.bincount(sampling.sequence(generator(), epoch=1, steps=40)).tolist() == [10, 30]


def test_the_loss_of_the_best_constant_answer_knows_the_factor_on_events() -> None:
    # One event of four that counts three times: even odds, on a weight of 3 / 4 for either.
    y = np.array([[1], [0], [0], [0]], np.float32)
    plan = TaskPlan(("fraud",), (False,), (1.0,), (3.0,))
    found = constant_losses(TrainingRows(y, y), plan)
    assert found.tolist() == pytest.approx([1.5 * np.log(2)])


def test_a_task_without_a_step_keeps_what_was_known_of_it() -> None:
    constant = torch.tensor([0.5, 0.5, 0.5])
    found = unresolved([[0.4, 0.3, 0.0], [0.2, 0.0, 0.0], [0.1, NAN, 0.0]], constant)
    assert found.tolist() == pytest.approx([0.2, 0.6, 1.0])


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_hide_the_other_tasks_and_processes_share_them(processes: int) -> None:
    seen = observed()
    number = torch.arange(40.0)[:, None]
    y = torch.where(seen, number, torch.tensor(NAN))
    shares = [
        list(
            TensorBatches(
                *(number, y, number[:, 0]),
                size=8,
                seed=3,
                epoch=lambda: 1,
                process=process,
                processes=processes,
                sampling=OneTask(seen),
            )
        )
        for process in range(processes)
    ]
    assert len(shares[0]) == 40 // 8
    for parts in zip(*shares, strict=True):
        x, labels, weight = (torch.cat(column) for column in zip(*parts, strict=True))
        assert len(x) == 8
        assert torch.equal(x[:, 0], weight)
        # One column holds the labels, the others nothing.
        (task,) = (~torch.isnan(labels)).any(0).nonzero().flatten().tolist()
        assert torch.equal(labels[:, task], x[:, 0])


@pytest.mark.parametrize("kind", ["joint", "one task", "events"])
def test_an_epoch_is_that_of_seed_and_epoch(kind: str) -> None:
    sampling = {
        "joint": Sampling(40),
        "one task": BySize(observed()),
        "events": MoreEvents(torch.arange(1.0, 41)),
    }[kind]
    now = [1]
    batches = TensorBatches(
        torch.arange(40.0)[:, None],
        torch.zeros(40, 3),
        size=8,
        seed=5,
        epoch=lambda: now[0],
        sampling=sampling,
    )

    def order() -> list[float]:
        return torch.cat([x.flatten() for x, _, _ in batches]).tolist()

    first = order()
    torch.rand(3)
    assert order() == first
    now[0] = 2
    assert order() != first


# ---- events that are drawn often -----------------------------------------------------------------


def test_a_row_is_drawn_by_the_rarest_of_its_events() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [NAN, 1.0], [0.0, NAN], [NAN, NAN], [0.5, 0.0]])
    assert row_rates(labels, [2.0, 10.0]).tolist() == [10.0, 2.0, 10.0, 1.0, 1.0, 1.0]
    # Below 1, so that events come less often.
    assert row_rates(labels, [0.5, 0.25]).tolist() == [0.5, 0.5, 0.25, 1.0, 1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 15), st.lists(st.integers(1, 6), min_size=1, max_size=3), seeds)
def test_a_head_sees_what_its_own_factor_on_events_would_give(
    n: int, rates: list[int], seed: int
) -> None:
    # All that can be drawn, each row as often as its rate says.
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, len(rates))).astype(float)
    labels[rng.random(labels.shape) < 0.3] = NAN
    sample = rng.uniform(0.5, 2, n)
    outputs = torch.from_numpy(rng.normal(0, 2, labels.shape))
    y = torch.from_numpy(labels)
    times = row_rates(y, [float(rate) for rate in rates])
    drawn = torch.arange(n).repeat_interleave(times.long())
    data = TrainingRows(np.zeros((n, 1), np.float32), labels.astype(np.float32), sample)
    weight = torch.from_numpy(MoreEvents(times).corrected(data).weights)
    found = task_losses(
        outputs[drawn],
        y[drawn],
        weight[drawn].double(),
        positive_weight=torch.tensor(rates).double(),
    )
    plain = loops.task_losses(outputs, y, sample.tolist(), rates, [False] * len(rates))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_events_come_as_often_as_asked_for_in_every_epoch() -> None:
    y = (torch.arange(1000) % 50 == 0).float()[:, None]  # 20 events
    sampling = MoreEvents(row_rates(y, [10.0]))
    for epoch in range(3):
        drawn, tasks = sampling.draw(generator(epoch), epoch=epoch, steps=10, size=100)
        assert tasks is None
        # 200 of 1180 shares.
        assert abs(float(y[drawn].sum()) - 1000 * 200 / 1180) <= 20
        # Spread over the batches.
        assert (y[drawn].sum(1) > 5).all()


def test_corrected_weights_are_those_of_the_row_or_of_each_task() -> None:
    sampling = MoreEvents(torch.tensor([1.0, 4.0]))
    y = np.zeros((2, 2), np.float32)
    plain = TrainingRows(np.zeros((2, 1), np.float32), y)
    by_row = TrainingRows(plain.x, y, np.array([2, 2], np.float32))
    by_task = TrainingRows(plain.x, y, np.array([[2, 4], [2, 4]], np.float32))
    found = [sampling.corrected(data).weights for data in (plain, by_row, by_task)]
    assert [value.tolist() for value in found if value is not None] == [
        [1, 0.25],
        [2, 0.5],
        [[2, 4], [0.5, 1]],
    ]


def table(n: int = 2500, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame, Any]:
    """A common and a rare outcome, partly observed, and their true probabilities."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    chance = 1 / (1 + np.exp(-np.column_stack([amount - 1, 1.5 * amount - 4.5])))
    y = (rng.random((n, 2)) < chance).astype(float)
    y[rng.random((n, 2)) < 0.2] = NAN
    labels = pl.DataFrame(y, schema=["default", "fraud"]).fill_nan(None)
    return pl.DataFrame({"amount": amount, "noise": rng.normal(size=n)}), labels, chance


SMALL: dict[str, Any] = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": (16,),
    "tower_units": (8,),
    "embedding_dim": 4,
    "bins": 8,
    "steps": 1,
    "dropout": 0.0,
    "batch_size": 64,
    "learning_rate": 0.01,
    "epochs": 4,
    "calibrate": False,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}


@pytest.mark.parametrize(
    "options",
    [
        {"balanced_events": {"fraud": 10}},
        {"balanced_events": {"fraud": 10, "default": 2}, "event_weight": {"fraud": 2}},
        {"schedule": "by_size", "label_smoothing": 0.2},
    ],
    ids=str,
)
def test_probabilities_stay_right(options: dict[str, Any]) -> None:
    X, y, chance = table()
    found = MultiTaskClassifier(**SMALL, **options).fit(X, y).predict_proba(X)
    assert found.mean(0) == pytest.approx(chance.mean(0), rel=0.25)
    assert (np.corrcoef(found[:, 1], chance[:, 1])[0, 1]) > 0.65


def test_without_the_correction_they_would_be_far_off() -> None:
    X, y, chance = table()
    model = MultiTaskClassifier(**SMALL, balanced_events={"fraud": 10}).fit(X, y)
    (head,) = (head for head in model.model_.heads if head.task == "fraud")
    assert head.shift == pytest.approx(math.log(10))
    raw = model.model_.scorer.raw(model.model_.encode(X))[:, 1]
    assert (1 / (1 + np.exp(-raw))).mean() > 4 * chance[:, 1].mean()


def test_heads_start_and_are_validated_at_what_their_rate_adds() -> None:
    data = rows(400)
    options = {"rows": data, "validation": data, "learning_rate": 1e-30, "epochs": 1}
    often = fit(plan=replace(PLAN, event_rates=(6.0, 1.0)), **options)
    bias = (
        weights(often)["towers.out.bias"].flatten()
        - weights(fit(**options))["towers.out.bias"].flatten()
    )
    assert bias.tolist() == pytest.approx([math.log(6), 0], abs=1e-5)
    # Nothing is learned, and the start says the base rates: no better and hardly worse than those.
    for row in often.history:
        assert row["val_log_loss_skill"] == pytest.approx(0, abs=0.05)


# ---- coming in -----------------------------------------------------------------------------------


def test_factors_rise_from_nothing_to_one() -> None:
    steps = [warm_up_factors([0, 2], progress)[1].item() for progress in (0, 0.5, 1, 2, 3)]
    assert steps == [0, 0.25, 0.5, 1, 1]
    assert warm_up_factors([0, 2], 0)[0] == 1


def test_a_loss_that_comes_in_keeps_its_value_and_has_a_part_of_its_gradient() -> None:
    losses = torch.tensor([2.0, 3.0], requires_grad=True)
    found = warmed(losses, torch.tensor([1.0, 0.25]))
    assert found.tolist() == [2, 3]
    found.sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [1, 0.25]


class TowerGradients(lightning.Callback):
    def __init__(self) -> None:
        self.norms: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradient = pl_module.network.towers.out.weight.grad
        self.norms.append(gradient.flatten(1).norm(dim=1).tolist())


def test_a_task_that_comes_in_begins_without_a_gradient() -> None:
    warm, plain = TowerGradients(), TowerGradients()
    plan = replace(PLAN, warm_up=(0.0, 2.5))
    options: dict[str, Any] = {
        "learning_rate": 1e-30,
        "weight_decay": 0.0,
        "epochs": 3,
        "clip": 1e9,
    }
    options["rows"] = rows(200)
    fit(plan=plan, callbacks=[warm], **options)
    fit(callbacks=[plain], **options)
    steps = len(plain.norms) // 3
    for step, (ours, theirs) in enumerate(zip(warm.norms, plain.norms, strict=True)):
        factor = min(1.0, step / steps / 2.5)
        assert ours == pytest.approx([theirs[0], factor * theirs[1]], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["mgda", "nash_mtl"])
def test_a_task_that_comes_in_weighs_as_if_it_were_here(name: str) -> None:
    # At a rate of nothing all steps have the same gradients, and so the same weights.
    options: dict[str, Any] = {"learning_rate": 1e-30, "epochs": 1, "dropout": 0.0}
    options |= {"balancing": name, "batch_size": 600}
    plain = fit(**options, trainer_options={"max_epochs": 4}).history
    plan = replace(PLAN, warm_up=(0.0, 4.0))
    warm = fit(plan=plan, **options, trainer_options={"max_epochs": 4}).history
    for one, other in zip(warm[2:], plain[2:], strict=True):  # in the first step it is not there
        assert one["task_weight"] == pytest.approx(other["task_weight"], rel=0.1)


# ---- whole trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    options = {**SCHEDULES[name], "rows": rows(200), "epochs": 3}
    undisturbed = fit(**options, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(Killed):
        fit(**options, checkpoint_dir=tmp_path / "cut", callbacks=[KillAfter(2, 1)])
    resumed = fit(**options, checkpoint_dir=tmp_path / "cut")
    assert_same_bits(undisturbed, resumed)
    assert str(resumed.history) == str(undisturbed.history)


@pytest.mark.parametrize("schedule", ["round_robin", "by_size", "by_uncertainty"])
def test_the_loss_of_a_task_is_that_of_its_own_steps(schedule: str) -> None:
    # At a rate of nothing each epoch's loss is near that of a joint training.
    alone = fit(schedule=schedule, learning_rate=1e-30, epochs=1, dropout=0.0).history
    joint = fit(learning_rate=1e-30, epochs=1, dropout=0.0).history
    for one, other in zip(alone, joint, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)


@pytest.mark.parametrize("schedule", ["round_robin", "by_size", "by_uncertainty"])
def test_a_task_that_nobody_observes_disturbs_no_schedule(schedule: str) -> None:
    seen = rows()
    y = seen.y.copy()
    y[:, 1] = np.nan
    trained = fit(rows=TrainingRows(seen.x, y), schedule=schedule, epochs=1)
    assert not any(torch.isnan(value).any() for value in weights(trained).values())
    assert np.isnan(trained.history[1]["train_loss"])


def test_an_epoch_without_a_step_for_a_task_has_no_loss_of_it() -> None:
    history = fit(schedule="round_robin", batch_size=600, epochs=2).history  # a step per epoch
    assert [np.isnan(row["train_loss"]) for row in history] == [False, True, True, False]


def test_a_task_without_a_step_keeps_its_weight_when_a_run_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "round_robin", "batch_size": 600, "epochs": 5}
    options |= {"balancing": "uncertainty", "learning_rate": 0.1, "patience": 9}
    undisturbed = fit(**options, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(Killed):
        fit(**options, checkpoint_dir=tmp_path / "cut", callbacks=[KillAfter(4, 0)])
    resumed = fit(**options, checkpoint_dir=tmp_path / "cut")
    assert undisturbed.history[-1]["task_weight"] != 1  # trained in the epoch before
    assert str(resumed.history) == str(undisturbed.history)


def test_labels_of_weight_nothing_get_no_steps() -> None:
    seen = rows(200)
    counts = np.ones((200, 2), np.float32)
    counts[20:, 1] = 0
    weightless = TrainingRows(seen.x, seen.y, counts)
    unknown = TrainingRows(seen.x, np.where(counts > 0, seen.y, np.float32(np.nan)), counts)
    options = {"schedule": "by_size", "epochs": 2, "batch_size": 16}
    assert_same_bits(fit(rows=weightless, **options), fit(rows=unknown, **options))


def test_a_single_task_knows_every_schedule() -> None:
    for name in SCHEDULES:
        assert fit(network="single_task", rows=rows(100), epochs=1, **SCHEDULES[name]).history


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "robin"}, "unknown schedule 'robin': did you mean 'round_robin'"),
        ({"warm_up": {"frod": 2}}, "warm_up: unknown task 'frod': did you mean 'fraud'"),
        ({"warm_up": {"fraud": -1}}, "warm_up of 'fraud' must be a positive number, got -1"),
        ({"warm_up": {"fraud": np.inf}}, "warm_up of 'fraud' must be finite, got inf"),
        ({"weight_decay": np.nan}, "weight_decay must be a number from 0 up, got nan"),
        ({"warm_up": 3}, "warm_up must be a mapping of names to values, got 3"),
        ({"freeze_shared_after": 0}, "freeze_shared_after must be a whole number of at least 1"),
        ({"balanced_events": {"fraud": 0}}, "balanced_events of 'fraud' must be a positive"),
        (
            {"balanced_events": {"fraud": 5}, "schedule": "by_size"},
            "balanced_events needs schedule='joint', got 'by_size': .* use event_weight",
        ),
        (
            {"balancing": "pcgrad", "schedule": "by_size"},
            "'pcgrad' weighs .* use schedule='joint', or one of sum, static, uncertainty, dwa$",
        ),
        (
            {"balanced_events": {"loss": 5}, "regression_tasks": ["loss"]},
            "balanced_events: 'loss' is a regression and has no events",
        ),
    ],
)
def test_a_wrong_parameter_is_named(options: dict[str, Any], message: str) -> None:
    X, y, _ = table(300)
    y = y.with_columns(loss=X["amount"])
    regression = options.get("regression_tasks", [])
    y = y if regression else y.drop("loss")
    with pytest.raises(ValueError, match=message):
        MultiTaskClassifier(**SMALL, **options).fit(X, y)
