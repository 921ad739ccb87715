"""Training through the estimator's back door: what it learns, repeats, resumes and leaves alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger

from riskmtl.metrics import log_loss_skill, roc_auc
from riskmtl.networks import IndependentNetworks, NetworkConfig
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import ResumeError, Trained, base_outputs, train
from riskmtl.training.rows import TaskPlan, TrainingRows

SHAPE = NetworkConfig(
    network="ple",
    embedding_dim=4,
    bins=8,
    expert_units=(16, 8),
    shared_units=(16,),
    tower_units=(8,),
)
CONFIG = TrainingConfig(
    epochs=4,
    patience=4,
    batch_size=64,
    learning_rate=5e-3,
    weight_decay=1e-2,
    device="cpu",
)
PLAN = TaskPlan(("default", "fraud"), (False, False), (1.0, 1.0), (1.0, 1.0))


def rows(n: int = 600, seed: int = 0, observed: float = 0.7) -> TrainingRows:
    """Two tasks, both learnable from the first column, partly observed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[:, 3] = rng.integers(0, 4, n)
    chance = 1 / (1 + np.exp(-2 * x[:, :1] + 1))
    y = (rng.random((n, 2)) < chance).astype(np.float32)
    y[rng.random((n, 2)) > observed] = np.nan
    return TrainingRows(x, y)


def fit(**changes: Any) -> Trained:
    shape = replace(SHAPE, **{k: v for k, v in changes.items() if hasattr(SHAPE, k)})
    config = replace(CONFIG, **{k: v for k, v in changes.items() if hasattr(CONFIG, k)})
    plan = changes.get("plan", PLAN)
    seen, held_out = changes.get("rows", rows()), changes.get("validation", rows(300, seed=1))
    return train(shape, [0, 0, 0, 4], plan, config, seen, held_out)


def outputs(trained: Trained, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return trained.network(torch.from_numpy(x)).numpy()


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def assert_same_bits(one: Trained, other: Trained) -> None:
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("network", ["ple", "mmoe", "shared_bottom", "single_task"])
def test_every_network_learns(network: str, members: int) -> None:
    test = rows(1000, seed=2, observed=1.0)
    scores = outputs(fit(network=network, members=members, epochs=6), test.x)
    for task in range(2):
        assert roc_auc(test.y[:, task], scores[:, task]) > 0.8


def test_same_seed_same_bits() -> None:
    assert_same_bits(fit(seed=3), fit(seed=3))


def test_another_seed_gives_other_weights() -> None:
    one, other = weights(fit(seed=3)), weights(fit(seed=4))
    assert not torch.equal(one["towers.out.weight"], other["towers.out.weight"])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_what_lies_behind_a_mask_changes_nothing() -> None:
    # NaN payloads differ, the mask does not: every bit of the weights must agree.
    seen = rows()
    other = seen.y.copy()
    hidden = np.isnan(other)
    other.view(np.uint32)[hidden] = np.float32(np.nan).view(np.uint32) | 0x1234
    assert np.isnan(other[hidden]).all()
    assert_same_bits(fit(rows=seen), fit(rows=TrainingRows(seen.x, other)))


@pytest.mark.parametrize("decay", ["weight_decay", "embedding_decay"])
def test_each_decay_acts_on_its_own_matrices(decay: str) -> None:
    # At this decay nearly all that decays is gone after the first epoch.
    options = {"learning_rate": 2e-3, "epochs": 1, "network": "shared_bottom", "weight_decay": 0.0}
    free, decayed = weights(fit(**options)), weights(fit(**{**options, decay: 300.0}))
    for name, own in (
        ("embedding.categorical.weight", "embedding_decay"),
        ("embedding.numeric.weight", "embedding_decay"),
        ("embedding.numeric.step_weight", "embedding_decay"),
        ("trunk.body.layers.0.weight", "weight_decay"),
        ("towers.out.weight", "weight_decay"),
        ("embedding.numeric.bias", "neither"),
    ):
        kept = (decayed[name].abs().mean() / free[name].abs().mean()).item()
        assert (kept < 0.6) == (own == decay), name


def test_a_head_never_observed_keeps_its_start() -> None:
    seen = rows()
    y = seen.y.copy()
    y[:, 1] = np.nan
    blind = TrainingRows(seen.x, y)
    trained = fit(rows=blind, weight_decay=0.0, network="shared_bottom", seed=7)
    start = fit(rows=blind, weight_decay=0.0, network="shared_bottom", seed=7, learning_rate=1e-30)
    name = "towers.out.weight"
    assert torch.equal(weights(trained)[name][1], weights(start)[name][1])
    assert not torch.equal(weights(trained)[name][0], weights(start)[name][0])


def test_the_best_epoch_is_restored() -> None:
    # A rate that ruins the network later on: the best epoch is not the last.
    trained = fit(epochs=12, patience=12, learning_rate=0.5)
    score = [
        np.mean([row["val_log_loss_skill"] for row in group])
        for _, group in itertools.groupby(trained.history, key=lambda row: row["epoch"])
    ]
    assert trained.best_epoch == int(np.argmax(score))
    held_out = rows(300, seed=1)
    found = 1 / (1 + np.exp(-outputs(trained, held_out.x)))
    again = [log_loss_skill(held_out.y[:, i], found[:, i]) for i in range(2)]
    assert np.mean(again) == pytest.approx(max(score), abs=1e-6)


def test_validation_takes_the_factors_on_events_out() -> None:
    factors = (6.0, 0.5)
    trained = fit(plan=replace(PLAN, positive_weights=factors), epochs=1, network="shared_bottom")
    held_out = rows(300, seed=1)
    found = 1 / (1 + np.exp(np.log(factors) - outputs(trained, held_out.x)))
    for i, row in enumerate(trained.history):
        expected = log_loss_skill(held_out.y[:, i], found[:, i])
        assert row["val_log_loss_skill"] == pytest.approx(expected, abs=1e-5)


def test_the_first_of_equal_epochs_is_kept() -> None:
    trained = fit(rows=rows(100), learning_rate=1e-30, weight_decay=0.0, epochs=3)
    assert trained.best_epoch == 0


def test_patience_ends_training() -> None:
    trained = fit(epochs=40, patience=2, learning_rate=0.5)
    assert trained.history[-1]["epoch"] == trained.best_epoch + 2


def test_history_has_a_row_per_epoch_and_task() -> None:
    history = fit(epochs=3, patience=3).history
    assert [(row["epoch"], row["task"]) for row in history] == [
        (epoch, task) for epoch in range(3) for task in ("default", "fraud")
    ]
    losses = [row["train_loss"] for row in history]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[1]


class Killed(Exception):
    """Stands for a process that was killed."""


class KillAfter(pl.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == self.at:
            raise Killed


@pytest.mark.parametrize(
    "shape", [("ple", 1), ("single_task", 1), ("ple", 2), ("single_task", 2)], ids=str
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, shape: tuple[str, int]) -> None:
    network, members = shape
    options: dict[str, Any] = {"network": network, "members": members}
    undisturbed = fit(**options, checkpoint_dir=tmp_path / "whole")
    with pytest.raises(Killed):
        fit(**options, checkpoint_dir=tmp_path / "cut", callbacks=[KillAfter(2, 1)])
    resumed = fit(**options, checkpoint_dir=tmp_path / "cut")
    assert_same_bits(undisturbed, resumed)
    assert resumed.history == undisturbed.history


def test_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    assert_same_bits(fit(), fit(checkpoint_dir=tmp_path))


def test_numbers_can_be_of_numpy(tmp_path: Path) -> None:
    options = {"epochs": np.int64(1), "label_smoothing": np.float32(0.1), "rows": rows(100)}
    options |= {"balancing": "gradnorm", "balancing_options": {"every": np.int64(2)}}
    first, again = (fit(**options, checkpoint_dir=tmp_path) for _ in range(2))
    assert_same_bits(first, again)


def test_a_run_that_has_ended_is_not_trained_further(tmp_path: Path) -> None:
    for name, options in {"early": {"epochs": 30, "patience": 1}, "late": {"epochs": 2}}.items():
        options |= {"learning_rate": 0.05, "rows": rows(200), "checkpoint_dir": tmp_path / name}
        first, again = fit(**options), fit(**options)
        assert len(first.history) < 2 * 30
        assert again.history == first.history
        assert_same_bits(first, again)


def test_another_run_cannot_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    fit(epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(ResumeError, match=r"other settings or data; choose another"):
        fit(epochs=2, checkpoint_dir=tmp_path)
    with pytest.raises(ResumeError):
        fit(epochs=1, checkpoint_dir=tmp_path, rows=rows(seed=9))
    with pytest.raises(ResumeError):
        fit(epochs=1, checkpoint_dir=tmp_path, members=2)


def test_lightnings_own_tools_work(tmp_path: Path) -> None:
    class Counter(pl.Callback):
        epochs = 0

        def on_train_epoch_end(self, *args: Any) -> None:
            self.epochs += 1

    given, counter = Counter(), Counter()
    logger = CSVLogger(tmp_path)
    trained = fit(
        epochs=2,
        callbacks=[given],
        logger=logger,
        trainer_options={"callbacks": [counter], "limit_train_batches": 3, "log_every_n_steps": 1},
    )
    assert (given.epochs, counter.epochs) == (2, 2)
    logged = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "fraud/val_roc_auc" in logged
    assert trained.history


def test_one_callback_or_none_among_the_trainers_options() -> None:
    for callbacks in (None, KillAfter(9, 0)):
        assert fit(epochs=1, rows=rows(100), trainer_options={"callbacks": callbacks}).history


@pytest.mark.parametrize(
    "options",
    [
        {"limit_val_batches": 0},
        {"max_steps": 1},
        {"max_epochs": 0},
        {"check_val_every_n_epoch": 3},
    ],
    ids=str,
)
def test_a_training_without_a_validation_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="before any epoch was validated"):
        fit(epochs=2, rows=rows(200), trainer_options=options)


def test_a_training_without_an_end_is_named() -> None:
    options = {"max_epochs": -1, "max_time": "00:00:00:01"}
    with pytest.raises(ValueError, match=r"must have an end, got max_epochs=-1$"):
        fit(rows=rows(100), trainer_options=options)


def test_a_training_that_diverges_is_named() -> None:
    with pytest.raises(ValueError, match=r"diverged in epoch 0: .*'default', 'fraud' .* lower lea"):
        fit(rows=rows(100), learning_rate=1e30)


def test_gradients_can_be_clipped_by_value() -> None:
    class Largest(pl.Callback):
        found = 0.0

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
            self.found = max([self.found, *(float(g.abs().max()) for g in gradients)])

    for precision in ("32", "bf16"):
        largest = Largest()
        options = {"gradient_clip_algorithm": "value", "gradient_clip_val": 1e-3}
        fit(epochs=1, precision=precision, callbacks=[largest], trainer_options=options)
        assert largest.found == pytest.approx(1e-3)


def test_heads_start_at_the_rate_that_weights_say() -> None:
    y = np.array([[1, 0], [0, np.nan], [0, 1]], np.float32)
    weights = np.array([3, 2, 1], np.float32)
    plan = TaskPlan(("a", "b"), (False, False), (1.0, 1.0), (1.0, 2.0))
    found = base_outputs(TrainingRows(y, y, weights), plan)
    assert found.tolist() == pytest.approx([np.log(3 / 3), np.log(2 * 1 / 3)])
    by_task = np.stack([weights, np.zeros(3, np.float32)], 1)
    assert base_outputs(TrainingRows(y, y, by_task), plan).tolist() == [0, 0]  # nothing is seen


def test_sample_weights_decide_what_is_learned() -> None:
    # Half of the rows say the opposite; the weights say whom to believe.
    seen = rows(800, observed=1.0)
    lying = np.arange(800) % 2 == 0
    y = np.where(lying[:, None], 1 - seen.y, seen.y).astype(np.float32)
    test = rows(1000, seed=2, observed=1.0)
    for trusted, better in ((~lying, True), (lying, False)):
        weight = np.where(trusted, 1.98, 0.02).astype(np.float32)
        trained = fit(rows=TrainingRows(seen.x, y, weight), validation=test)
        if better:
            assert roc_auc(test.y[:, 0], outputs(trained, test.x)[:, 0]) > 0.8
        else:
            assert trained.history[-1]["val_roc_auc"] < 0.3


def test_bfloat16_trains() -> None:
    test = rows(1000, seed=2, observed=1.0)
    assert roc_auc(test.y[:, 0], outputs(fit(precision="bf16"), test.x)[:, 0]) > 0.7


def test_a_regression_head_is_learned_beside_a_binary_one() -> None:
    seen, held_out = rows(800), rows(400, seed=1)
    for part in (seen, held_out):
        part.y[:, 1] = part.x[:, 0]
    plan = TaskPlan(("default", "amount"), (False, True), (1.0, 1.0), (1.0, 1.0))
    trained = fit(plan=plan, rows=seen, validation=held_out, epochs=8, patience=8)
    assert trained.history[-1]["task"] == "amount"
    assert trained.history[-1]["val_squared_error"] < 0.3


def test_a_regression_alone_is_judged_by_its_error() -> None:
    seen, held_out = rows(800), rows(400, seed=1)
    for part in (seen, held_out):
        part.y[:, 1] = part.x[:, 0]
    plan = TaskPlan(("default", "amount"), (False, True), (1.0, 1.0), (1.0, 1.0))
    trained = fit(
        network="single_task", plan=plan, rows=seen, validation=held_out, epochs=8, patience=8
    )
    error = outputs(trained, held_out.x)[:, 1] - held_out.y[:, 1]
    assert np.mean(error**2) < 0.5


def test_more_epochs_by_trainer_options_have_a_schedule_too() -> None:
    trained = fit(epochs=1, patience=9, trainer_options={"max_epochs": 3})
    assert trained.history[-1]["epoch"] == 2


def test_the_control_shares_nothing() -> None:
    trained = fit(network="single_task")
    assert isinstance(trained.network, IndependentNetworks)
    alone = train(
        replace(SHAPE, network="single_task"),
        [0, 0, 0, 4],
        PLAN.only([1]),
        CONFIG,
        rows().only([1]),
        rows(300, seed=1).only([1]),
    )
    x = rows(50, seed=3).x
    assert np.array_equal(outputs(trained, x)[:, 1], outputs(alone, x)[:, 0])


def test_cuda_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        fit(device="cuda")
