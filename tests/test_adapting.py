"""A head added to a trained network, heads taken out of it, and a network moved to other rows."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from itertools import accumulate, cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from riskmtl import DataSchema, MultiTaskClassifier, adapting, adding, saving
from riskmtl.adding import _held
from riskmtl.calibration import Calibrator
from riskmtl.metrics import log_loss, roc_auc
from riskmtl.model import Head, taken_by, uncalibrated
from riskmtl.networks import Network
from riskmtl.schema import DataError, Task
from riskmtl.training import fit
from riskmtl.training.fit import ResumeError
from riskmtl.training.rows import TrainingRows

SMALL: dict[str, Any] = {
    "members": 2,
    "expert_units": (16, 8),
    "shared_units": (16,),
    "tower_units": (8,),
    "embedding_dim": 4,
    "bins": 8,
    "steps": 1,
    "experts": 3,
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.02,
    "dropout": 0.0,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}
NETWORKS = ("ple", "mmoe", "shared_bottom", "single_task")
# Rounding of float32 products over another number of groups.
ROUNDING = 1e-5


def table(rows: int = 800, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Three outcomes of one risk, and an amount; each partly unobserved."""
    rng = np.random.default_rng(seed)
    X = pl.DataFrame(
        {
            "a": rng.normal(size=rows),
            "b": rng.normal(size=rows),
            "country": rng.choice(["FR", "DE", "NL"], rows),
        }
    )
    risk = (X["a"] + X["b"] * (X["country"] == "NL")).to_numpy()
    labels = {
        name: (rng.random(rows) < 1 / (1 + np.exp(1 - 2 * risk))).astype(float)
        for name in ("default", "fraud", "takeover")
    }
    labels["loss"] = risk + rng.normal(size=rows)
    hidden = {name: pl.Series(rng.random(rows) < 0.2) for name in labels}
    y = pl.DataFrame(labels)
    return X, y.with_columns(
        pl.when(hidden[name]).then(None).otherwise(name).alias(name) for name in labels
    )


X, Y = table()
OLD = Y.select("default", "fraud")


def fitted(network: str = "mmoe", y: pl.DataFrame = OLD, **changes: Any) -> MultiTaskClassifier:
    return MultiTaskClassifier(network, **{**SMALL, **changes}).fit(X, y)


@pytest.fixture(scope="module")
def models() -> dict[str, MultiTaskClassifier]:
    return {network: fitted(network) for network in NETWORKS}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each training is given."""
    found, train = [], fit.train

    def watched(*given: Any, **more: Any) -> Any:
        found.append(signature(train).bind(*given, **more).arguments)
        return train(*given, **more)

    monkeypatch.setattr(fit, "train", watched)
    return found


def margins(model: MultiTaskClassifier, tasks: Any = ("default", "fraud")) -> NDArray[np.float64]:
    outputs = model.model_.outputs(model.model_.encode(X))
    return np.column_stack([outputs[task] for task in tasks])


def apart(first: MultiTaskClassifier, second: MultiTaskClassifier, tasks: Any) -> float:
    """Largest difference of two models' answers."""
    one, two = (model.predict_frame(X).select(tasks).to_numpy() for model in (first, second))
    return float(abs(one - two).max())


def goes_the_whole_way(model: MultiTaskClassifier, folder: Path) -> None:
    """Saved and read again it answers the same, and its explanations add up."""
    model.save(folder)
    again = MultiTaskClassifier.load(folder)
    assert again.tasks_ == model.tasks_
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=1e-6)
    found = again.explain(X[:2], budget=4, background=X[:6])
    np.testing.assert_allclose(
        found.base + found.values.sum(1), again.decision_function(X[:2]), atol=1e-6
    )
    assert again.get_params()["members"] == model.get_params()["members"]


# ---- one more head -------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_old_heads_answer_as_before_and_the_new_one_learns(
    models: dict[str, MultiTaskClassifier], network: str, tmp_path: Path
) -> None:
    model = models[network]
    before, weights = margins(model), model.model_.scorer.network.state_dict()
    larger = model.add_task("takeover", X, Y["takeover"])
    assert larger.tasks_ == ["default", "fraud", "takeover"]
    assert abs(margins(larger) - before).max() < ROUNDING
    new, labels = table(seed=1)
    area = roc_auc(labels["takeover"].to_numpy(), larger.predict_proba(new)[:, 2])
    assert area > 0.75
    # The one that it was made from is untouched.
    assert model.tasks_ == ["default", "fraud"]
    assert np.array_equal(margins(model), before)
    again = model.model_.scorer.network.state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert larger.history_["task"].unique().to_list() == ["takeover"]
    goes_the_whole_way(larger, tmp_path / "model")


@pytest.mark.parametrize("network", ["ple", "mmoe"])
def test_only_what_the_new_head_owns_has_moved(
    models: dict[str, MultiTaskClassifier], network: str
) -> None:
    larger = models[network].add_task("takeover", X, Y["takeover"], learning_rate=0.05)
    old, new = (m.model_.scorer.network for m in (models[network], larger))
    assert isinstance(new, Network)
    before, after = old.state_dict(), new.state_dict()
    owners = new.owners()
    for name, value in before.items():
        if name not in owners:
            assert torch.equal(after[name], value), name
    assert torch.equal(after["towers.out.weight"][:4], before["towers.out.weight"])
    moved = after["towers.hidden.layers.0.weight"][4:]
    assert not torch.equal(moved, torch.zeros_like(moved))


def test_distilled_heads_are_held_while_everything_learns(
    models: dict[str, MultiTaskClassifier], tmp_path: Path
) -> None:
    model = models["ple"]
    larger = model.add_task("takeover", X, Y["takeover"], shared="distilled", learning_rate=0.01)
    old, new = model.predict_proba(X), larger.predict_proba(X)
    assert 1e-6 < abs(new[:, :2] - old).max() < 0.2
    assert np.corrcoef(new[:, 0], old[:, 0])[0, 1] > 0.98
    np.testing.assert_allclose(new[:, :2].mean(0), old.mean(0), atol=0.01)
    # Each is calibrated to what it said before.
    assert larger.model_.heads[0].calibrator != model.model_.heads[0].calibrator
    shared = "trunk.levels.0.experts.layers.0.weight"
    states = [m.model_.scorer.network.state_dict()[shared] for m in (model, larger)]
    assert not torch.equal(states[0][-1], states[1][-1])
    assert set(larger.history_["task"]) == {"default", "fraud", "takeover"}
    goes_the_whole_way(larger, tmp_path / "model")


def test_a_new_task_counts_as_much_as_it_is_observed(
    models: dict[str, MultiTaskClassifier], trainings: list[dict[str, Any]]
) -> None:
    few = Y["takeover"].to_list()[:200] + [None] * 600
    models["shared_bottom"].add_task("takeover", X, few, shared="distilled", epochs=1)
    observed = sum(label is not None for label in few) / 800
    assert trainings[0]["plan"].weights[:2] == (1.0, 1.0)
    assert trainings[0]["plan"].weights[2] == pytest.approx(observed, abs=0.02)


def test_an_added_task_is_trained_plainly(trainings: list[dict[str, Any]]) -> None:
    """From its base rate on, whatever the fit did to many tasks, and gently where all learn."""
    model = fitted(
        "shared_bottom",
        balancing="dwa",
        schedule="round_robin",
        label_smoothing=0.1,
        mixup=0.2,
        freeze_shared_after=1,
        epochs=1,
        learning_rate="auto",
    )
    trainings.clear()
    for shared in ("frozen", "distilled"):
        model.add_task("takeover", X, Y["takeover"], shared=shared)
    configs = [call["config"] for call in trainings]
    for config in configs:
        assert (config.balancing, config.schedule, config.freeze_shared_after) == (
            ("sum", "joint", None)
        )
        assert (config.label_smoothing, config.mixup) == (0, 0)
    assert configs[1].learning_rate == pytest.approx(0.1 * configs[0].learning_rate, rel=0.05)
    for call in trainings:
        seen = call["rows"].y[:, 2]
        rate = seen[~np.isnan(seen)].mean()
        bias = call["start"].towers.out.bias.detach().numpy().ravel()
        np.testing.assert_allclose(bias[-2:], np.log(rate / (1 - rate)), rtol=1e-4)


def test_a_new_task_is_balanced_as_those_of_the_fit(trainings: list[dict[str, Any]]) -> None:
    model = fitted("shared_bottom", event_weight="balanced", epochs=1, calibrate=False)
    larger = model.add_task("takeover", X, Y["takeover"], epochs=1)
    seen = trainings[-1]["rows"].y[:, 2]
    rate = seen[~np.isnan(seen)].mean()
    factor = (1 - rate) / rate
    assert factor > 1.2
    assert trainings[-1]["plan"].positive_weights == pytest.approx((1.0, 1.0, factor))
    assert larger.model_.heads[2].shift == pytest.approx(np.log(factor))


@pytest.mark.parametrize("how", ["event_weight", "balanced_events"])
def test_tuning_counts_events_as_the_fit_did(trainings: list[dict[str, Any]], how: str) -> None:
    """Their factor is subtracted from the log-odds still, with a calibrator or without."""
    options: dict[str, Any] = {how: {"fraud": 5.0}, "warm_up": {"default": 1}}
    model = fitted("shared_bottom", **options, epochs=1, calibrate=False)
    trainings.clear()
    model.fine_tune(X, OLD, epochs=1)
    plan = trainings[0]["plan"]
    assert plan.positive_weights == pytest.approx((1.0, 5.0))
    # Once: no row is drawn more often as well; and no task comes in late a second time.
    assert plan.event_factors == pytest.approx((1.0, 5.0))
    assert plan.warm_up == ()


def test_distilled_heads_are_calibrated_to_what_was_said(
    models: dict[str, MultiTaskClassifier],
) -> None:
    model = models["mmoe"].model_
    steeper = replace(
        model, heads=[replace(h, calibrator=Calibrator(slope=2.0, intercept=1.0))
                      for h in model.heads]
    )  # fmt: skip
    x = model.encode(X)
    data: Any = SimpleNamespace(validation=TrainingRows(x, np.zeros((len(x), 1), np.float32)))
    larger = models["mmoe"].add_task("takeover", X, Y["takeover"], epochs=1).model_
    held = replace(larger, heads=[*_held(larger, steeper, data), larger.heads[-1]])
    np.testing.assert_allclose(held.margins(x)[:, :2], steeper.margins(x), atol=0.02)


def test_independent_networks_get_one_more(models: dict[str, MultiTaskClassifier]) -> None:
    model = models["single_task"]
    larger = model.add_task("takeover", X, Y["takeover"], shared="distilled")
    assert np.array_equal(margins(larger), margins(model))
    assert larger.model_.scorer.network.groups == [[0], [1], [2]]


def test_several_heads_one_after_the_other_a_regression_among_them(
    models: dict[str, MultiTaskClassifier], tmp_path: Path
) -> None:
    larger = models["mmoe"].add_task("loss", X, Y["loss"], kind="regression")
    found = larger.predict_frame(X)["loss"].to_numpy()
    known = Y["loss"].is_not_null().to_numpy()
    assert np.corrcoef(found[known], Y["loss"].to_numpy()[known])[0, 1] > 0.5
    third = larger.add_task("takeover", X, Y["takeover"].to_numpy())
    assert third.tasks_ == ["default", "fraud", "takeover"]
    np.testing.assert_allclose(third.predict_frame(X)["loss"], found, atol=1e-4)
    assert third.regression_tasks == ["loss"]
    # A clone can be trained on all of them at once.
    clone = MultiTaskClassifier(**{**third.get_params(), "epochs": 1})
    assert clone.fit(X, Y).tasks_ == third.tasks_
    how = third.model_.lineage["made_from"]
    assert how["how"] == "add_task('takeover', shared='frozen')"
    assert how["made_from"]["how"] == "add_task('loss', shared='frozen')"
    assert list(third.model_.lineage["tasks"]) == ["default", "fraud", "loss", "takeover"]
    third.save(tmp_path / "model")
    again = MultiTaskClassifier.load(tmp_path / "model")
    assert again.model_.lineage["made_from"] == json.loads(json.dumps(how))


def test_a_blend_stays_a_blend(tmp_path: Path, tiny: dict[str, Any]) -> None:
    options = {"challenger": "blend", "challenger_options": tiny["challenger_options"]}
    model = fitted(**options)
    larger = model.add_task("takeover", X, Y["takeover"])
    assert abs(margins(larger) - margins(model)).max() < ROUNDING
    assert set(larger.blend_weights_) == {"default", "fraud", "takeover"}
    assert larger.challenger_.tasks_ == larger.tasks_
    goes_the_whole_way(larger, tmp_path / "larger")
    alone = larger.only("takeover", report=False)
    assert apart(alone, larger, ["takeover"]) < 1e-6
    assert alone.challenger_.tasks_ == ["takeover"]
    goes_the_whole_way(alone, tmp_path / "alone")
    tuned = larger.fine_tune(X, Y, epochs=1)
    assert set(tuned.blend_weights_) == {"default", "fraud", "takeover"}
    goes_the_whole_way(tuned, tmp_path / "tuned")


def test_one_task_and_another_are_two_and_both_are_calibrated() -> None:
    model = MultiTaskClassifier("shared_bottom", **{**SMALL, "epochs": 1}).fit(X, Y["fraud"])
    labels = Y["takeover"]
    larger = model.add_task("takeover", X, labels, X_val=X, y_val=labels, epochs=1)
    assert model.model_.made_by["is_single"]
    assert not larger.model_.made_by["is_single"]
    assert larger.model_.heads[1].calibrator.is_fitted


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([["default", "fraud"]], [["default", "fraud", "takeover"]]),
        ([["fraud"], ["default"]], [["fraud"], ["default"], ["takeover"]]),
    ],
)
def test_a_new_task_joins_the_only_group_or_has_its_own(
    groups: list[list[str]], expected: list[list[str]], tmp_path: Path
) -> None:
    model = fitted("shared_bottom", epochs=1, groups=groups)
    larger = model.add_task("takeover", X, Y["takeover"], epochs=1)
    assert larger.groups == expected
    larger.save(tmp_path / "model")
    again = MultiTaskClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), larger.predict_proba(X))


def test_only_what_was_fitted_anew_is_blended_anew(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    def shared(model: Any, data: Any, places: dict[int, int]) -> list[Head]:
        return [replace(h, blend=0.25) if i in places else h for i, h in enumerate(model.heads)]

    options = {"challenger": "blend", "challenger_options": tiny["challenger_options"]}
    model = fitted("shared_bottom", epochs=1, **options)
    before = [head.blend for head in model.model_.heads]
    assert 0.25 not in before
    for module in (adding, adapting):
        monkeypatch.setattr(module, "blended", shared)
    larger = model.add_task("takeover", X, Y["takeover"], epochs=1)
    assert [head.blend for head in larger.model_.heads] == [*before, 0.25]
    # Without labels there is neither a calibrator nor a share.
    labels = OLD.with_columns(fraud=pl.lit(None, pl.Float64))
    tuned = model.fine_tune(X, labels, X_val=X, y_val=labels, epochs=1)
    assert [head.blend for head in tuned.model_.heads] == [0.25, before[1]]


def test_a_model_with_a_schema_knows_the_new_task(
    cards: pl.DataFrame, cards_schema: DataSchema, tmp_path: Path
) -> None:
    online = cards_schema.tasks[1]
    less = replace(cards_schema, tasks=cards_schema.tasks[:1])
    model = MultiTaskClassifier(schema=less, **SMALL).fit(cards)
    by_schema = model.add_task(online, cards.drop("bad"))
    assert by_schema.schema == cards_schema
    assert by_schema.score(cards) > 0.5
    observed = by_schema.model_.lineage["tasks"]["fraud"]["observed"]
    assert observed < cards["online"].sum()
    by_name = model.add_task("late", cards, cards["bad"], epochs=1)
    assert by_name.schema.tasks[-1] == Task("late", "late", positive=(1,), negative=(0,))
    by_name.save(tmp_path / "model")
    again = MultiTaskClassifier.load(tmp_path / "model")
    labelled = cards.with_columns(late=(pl.col("bad") == "paid").cast(pl.Int8))
    assert np.array_equal(again.read_labels(labelled)[:, 1], labelled["late"].to_numpy())
    with pytest.raises(DataError, match="label 'amount' is an input"):
        model.add_task(Task("large", "amount"), cards)


def test_given_validation_rows_and_checkpoints(tmp_path: Path) -> None:
    model = fitted("shared_bottom", members=1, epochs=1, checkpoint_dir=str(tmp_path))
    new, labels = table(300, seed=2)
    options: dict[str, Any] = {"X_val": new, "y_val": labels["takeover"]}
    larger = model.add_task("takeover", X, Y["takeover"], **options)
    assert larger.model_.lineage["rows"] == Y["takeover"].count()
    assert (tmp_path / "add_task takeover frozen" / "last.ckpt").exists()
    # The same again goes on from the end; other weights to start from are another run.
    again = model.add_task("takeover", X, Y["takeover"], **options)
    np.testing.assert_array_equal(again.predict_proba(X), larger.predict_proba(X))
    other = fitted("shared_bottom", members=1, epochs=1, random_state=1)
    other.checkpoint_dir, other.random_state = str(tmp_path), 0
    with pytest.raises(ResumeError, match="a run with other settings or data"):
        other.add_task("takeover", X, Y["takeover"], **options)


def test_heads_that_read_one_another_are_refused() -> None:
    model = fitted("ple", levels=2, epochs=1)
    with pytest.raises(ValueError, match="with this shape lets the heads there are depend"):
        model.add_task("takeover", X, Y["takeover"])
    part = model.only("fraud", report=False)
    with pytest.raises(ValueError, match="keeps the trunk of a larger model"):
        part.add_task("takeover", X, Y["takeover"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fraud"}, "has a task 'fraud' already: choose another name, or fine_tune"),
        ({"name": "a"}, "'a' is an input: a head would read its own answer"),
        ({"name": ""}, "name must be the name of a task, or a Task, got ''"),
        ({"y": None}, "labels of task 'takeover' are missing: give y, or a Task as name"),
        ({"y": Y}, "y has 4 columns, but 'takeover' is one task: give its column alone"),
        ({"y": Y["takeover"][:9]}, "X has 800 rows, y has 9"),
        ({"y": Y["takeover"].clear().extend_constant(None, 800)}, "has no observed label"),
        ({"name": Task("takeover", "t"), "y": None}, "the model has no schema to read labels"),
        (
            {"name": Task("takeover", "t"), "kind": "regression"},
            "the Task is of the kind 'binary': leave out kind='regression'",
        ),
        ({"shared": "melted"}, "unknown shared 'melted': valid are frozen, distilled"),
        ({"kind": "ordinal"}, "unknown kind 'ordinal': valid are binary, regression"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number, got -1.0"),
        ({"X_val": X}, "X_val was given without y_val"),
        ({"X": X.drop("b")}, "column 'b' is missing: the model was trained with it"),
    ],
)
def test_what_add_task_cannot_read(
    models: dict[str, MultiTaskClassifier], change: dict[str, Any], message: str
) -> None:
    given = {"name": "takeover", "X": X, "y": Y["takeover"], **change}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        models["mmoe"].add_task(**given)


# ---- fewer heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "linear_path"),
    [("ple", True), ("mmoe", False), ("shared_bottom", True), ("single_task", False)],
)
def test_a_part_scores_as_the_whole(network: str, linear_path: bool, tmp_path: Path) -> None:
    model = fitted(network, Y, linear_path=linear_path, epochs=1, regression_tasks=["loss"])
    for number, kept in enumerate([["fraud"], ["default", "loss"], ["default", "takeover"]]):
        part = model.only(*kept, report=False)
        assert apart(part, model, kept) < 1e-6
        assert part.saving_.parameters_kept < 1
        goes_the_whole_way(part, tmp_path / f"part{number}")
    assert part.only("takeover", report=False).tasks_ == ["takeover"]
    assert list(part.model_.lineage["tasks"]) == ["default", "takeover"]


def test_a_trunk_that_mixes_all_heads_stays_whole(tmp_path: Path) -> None:
    model = fitted("ple", Y.drop("loss"), levels=2, epochs=1)
    part = model.only("default", "takeover", report=False).only("takeover", report=False)
    assert part.model_.scorer.shape.cut_trunks == ((3, (2,)),)
    assert apart(part, model, ["takeover"]) < 1e-6
    goes_the_whole_way(part, tmp_path / "part")
    with pytest.raises(ValueError, match="keeps the gates and experts of heads that it does not"):
        part.gates(X)
    assert part.fine_tune(X, Y["takeover"], epochs=1).tasks_ == ["takeover"]


def test_who_is_leant_on_stays_behind_the_scenes(tmp_path: Path) -> None:
    scarce = Y.drop("loss").with_columns(
        pl.when(pl.int_range(len(Y)) % 20 == 0).then("takeover").alias("takeover")
    )
    model = MultiTaskClassifier("ple", **SMALL).fit(X, scarce, X_val=X, y_val=Y.drop("loss"))
    assert model.model_.heads[2].lent > 0
    part = model.only("takeover", report=False)
    assert part.tasks_ == ["takeover"]
    assert [head.task for head in part.model_.lenders] == ["default", "fraud"]
    assert apart(part, model, ["takeover"]) < 1e-6
    goes_the_whole_way(part, tmp_path / "part")
    with pytest.raises(ValueError, match="keeps a task 'fraud', which others lean on"):
        part.add_task("fraud", X, Y["fraud"])
    # A newcomer lends to nobody, here and in the whole.
    for each in (part, model):
        larger = each.add_task("late", X, Y["takeover"], epochs=1)
        assert larger.tasks_ == [*each.tasks_, "late"]
        assert abs(margins(larger, ["takeover"]) - margins(each, ["takeover"])).max() < ROUNDING
    # Nothing is said of heads that do not answer.
    for each, tasks in (
        (part.fine_tune(X, Y["takeover"], epochs=1), ["takeover"]),
        (part.add_task("late", X, Y["takeover"], shared="distilled"), ["takeover", "late"]),
    ):
        assert each.tasks_ == tasks
        assert list(each.best_epochs_) == tasks
        assert list(each.model_.lineage["tasks"]) == tasks
    assert model.only("fraud", report=False).model_.lenders == []


def test_a_network_that_only_lends_is_left_as_it_is() -> None:
    scarce = Y.drop("loss").with_columns(
        pl.when(pl.int_range(len(Y)) % 20 == 0).then("takeover").alias("takeover")
    )
    apart = {"groups": [["default", "fraud"], ["takeover"]]}
    model = MultiTaskClassifier("mmoe", **SMALL, **apart)
    model.fit(X, scarce, X_val=X, y_val=Y.drop("loss"))
    part = model.only("takeover", report=False)
    assert [head.task for head in part.model_.lenders] == ["default", "fraud"]
    tuned = part.fine_tune(X, Y["takeover"], learning_rate=0.02, epochs=2)
    assert tuned.tasks_ == list(tuned.best_epochs_) == ["takeover"]
    assert tuned.best_epoch_ >= 0
    before, after = (each.model_.scorer.raw(each.model_.encode(X)) for each in (part, tuned))
    assert (before[:, 1:] == after[:, 1:]).all()
    assert (before[:, 0] != after[:, 0]).any()


def test_a_tuned_blend_keeps_the_share_of_a_head_without_labels(tiny: dict[str, Any]) -> None:
    options = {"challenger": "blend", "challenger_options": tiny["challenger_options"]}
    model = fitted("mmoe", OLD, **options)
    model.model_.heads[1] = replace(model.model_.heads[1], blend=0.3)
    tuned = model.fine_tune(X, OLD.with_columns(fraud=pl.lit(None, pl.Float64)), epochs=1)
    assert tuned.blend_weights_["fraud"] == 0.3
    assert tuned.model_.background is not None
    assert not np.array_equal(tuned.model_.background, model.model_.background)
    assert np.array_equal(tuned.challenger_.model_.background, tuned.model_.background)


def test_a_task_taken_from_what_selects_it_is_selected_no_more() -> None:
    labels = Y.select("default", approved="fraud").with_columns(
        pl.when(pl.col("approved") == 1).then("default").alias("default")
    )
    model = fitted("mmoe", labels, selected_by={"default": "approved"}, epochs=1)
    part = model.only("default", report=False)
    assert part.selected_by == {}
    assert part.fine_tune(X, labels["default"], epochs=1).tasks_ == ["default"]
    assert model.only("default", "approved", report=False).selected_by == model.selected_by


def test_leaning_on_some_of_the_others() -> None:
    heads = [Head("a"), Head("b"), Head("c", own=0.5, lent=0.5, leans_on=("a",))]
    raw = np.array([[1.0, 10.0, 3.0]])
    assert uncalibrated(heads, raw).tolist() == [[1.0, 10.0, 2.0]]
    assert taken_by(heads, [2]) == [0, 2]
    assert Head.from_dict(json.loads(json.dumps(heads[2].to_dict()))) == heads[2]


def test_what_is_saved_is_printed(
    models: dict[str, MultiTaskClassifier], capsys: pytest.CaptureFixture[str]
) -> None:
    part = models["ple"].only("fraud")
    whole = sum(p.numel() for p in models["ple"].model_.scorer.network.parameters())
    own = sum(p.numel() for p in part.model_.scorer.network.parameters())
    assert part.saving_.parameters == own
    assert part.saving_.parameters_kept == own / whole
    out = capsys.readouterr().out
    assert out.startswith(f"fraud: {own:,} parameters, {own / whole:.0%} of all; ")
    assert "of the scoring time saved" in out
    assert part.model_.lineage["made_from"]["saving"]["parameters"] == own


def test_time_saved_is_what_the_part_does_not_take(
    models: dict[str, MultiTaskClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seconds pass as the whole scores, ten each time, and as the part does, four.
    seconds = accumulate(cycle([0, 10, 0, 4]))
    monkeypatch.setattr(saving, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    part = models["ple"].only("fraud", report=False)
    assert part.saving_.time_saved == pytest.approx(0.6)


def test_groups_and_parameters_follow_their_tasks(tmp_path: Path) -> None:
    model = fitted("mmoe", OLD, epochs=1, task_weights={"default": 2.0, "fraud": 1.0})
    model.selected_by = {"fraud": "default"}
    model.model_.lineage["model_id"] = "another"
    part = model.only("fraud", report=False)
    assert part.task_weights == {"fraud": 1.0}
    assert part.selected_by == {}
    assert "model_id" not in part.model_.lineage
    assert model.task_weights == {"default": 2.0, "fraud": 1.0}
    for heads, message in [
        (("frud",), "unknown head 'frud': did you mean 'fraud'"),
        ((), "at least one binary head"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.only(*heads)


def test_a_schema_forgets_the_other_tasks(cards: pl.DataFrame, cards_schema: DataSchema) -> None:
    model = MultiTaskClassifier(schema=cards_schema, **{**SMALL, "epochs": 1}).fit(cards)
    part = model.only("fraud", report=False)
    assert [task.name for task in part.schema.tasks] == ["fraud"]
    # The other label may still be in the table, or not.
    for frame in (cards, cards.drop("bad")):
        assert part.model_.schema.check(frame).good.height == cards.height
        np.testing.assert_allclose(
            part.predict_proba(frame)[:, 0], model.predict_proba(cards)[:, 1]
        )
    assert part.score(cards.drop("bad")) > 0


# ---- other rows ----------------------------------------------------------------------------------


def shifted(rows: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Another portfolio: the same risk, a lower level, and a part that has turned round."""
    rng = np.random.default_rng(seed)
    X, _ = table(rows, seed)
    risk = (X["a"] + X["b"] * (X["country"] == "NL") - 0.7 * X["b"]).to_numpy()
    chance = 1 / (1 + np.exp(2 - 2 * risk))
    return X, pl.DataFrame(
        {name: (rng.random(rows) < chance).astype(float) for name in ("default", "fraud")}
    )


@pytest.mark.parametrize("network", ["ple", "single_task"])
def test_tuning_moves_a_network_to_other_rows(
    models: dict[str, MultiTaskClassifier], network: str, tmp_path: Path
) -> None:
    model = models[network]
    before = margins(model)
    few, labels = shifted(600, 1)
    tuned = model.fine_tune(few, labels, learning_rate=0.01)
    new, truth = shifted(3000, 2)
    losses = [
        np.mean([log_loss(truth[t].to_numpy(), m.predict_proba(new)[:, i])
                 for i, t in enumerate(m.tasks_)])
        for m in (model, tuned)
    ]  # fmt: skip
    assert losses[1] < losses[0] - 0.01
    assert np.array_equal(margins(model), before)
    assert tuned.model_.encoder is model.model_.encoder
    assert tuned.model_.lineage["made_from"]["how"] == "fine_tune(shared='learned')"
    # What it is explained beside and watched against are the new rows.
    assert len(tuned.model_.background) == 256
    assert not np.array_equal(tuned.model_.background, model.model_.background)
    assert tuned.model_.reference is not model.model_.reference
    goes_the_whole_way(tuned, tmp_path / "tuned")


def test_a_frozen_shared_part_stays(models: dict[str, MultiTaskClassifier]) -> None:
    few, labels = shifted(300, 1)
    tuned = models["mmoe"].fine_tune(few, labels, shared="frozen", learning_rate=0.05)
    before, after = (m.model_.scorer.network.state_dict() for m in (models["mmoe"], tuned))
    owned = tuned.model_.scorer.network.owners()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved
    assert moved <= set(owned)


def test_where_no_epoch_is_better_nothing_moves(models: dict[str, MultiTaskClassifier]) -> None:
    model = models["shared_bottom"]
    # Labels without any sense cannot be learned.
    rng = np.random.default_rng(0)
    labels = (rng.random((800, 2)) < model.predict_proba(X)).astype(float)
    tuned = model.fine_tune(X, labels, learning_rate=1.0, epochs=2)
    assert tuned.best_epoch_ == -1
    before, after = (m.model_.scorer.network.state_dict() for m in (model, tuned))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_history_of_tuning_begins_with_its_first_epoch(
    models: dict[str, MultiTaskClassifier],
) -> None:
    """What the start was worth is no epoch."""
    tuned = models["shared_bottom"].fine_tune(X, OLD, epochs=1)
    assert tuned.history_["epoch"].to_list() == [0, 0]


def test_a_task_without_labels_is_left_to_the_others(
    models: dict[str, MultiTaskClassifier],
) -> None:
    labels = OLD.with_columns(fraud=pl.lit(None, pl.Float64))
    tuned = models["ple"].fine_tune(X, labels, epochs=1)
    assert tuned.model_.heads[1].calibrator == models["ple"].model_.heads[1].calibrator
    with pytest.raises(ValueError, match="no label of 'fraud' is observed, whose network is its"):
        models["single_task"].fine_tune(X, labels)


def test_reweighted_events_are_taken_out_again(tmp_path: Path) -> None:
    model = fitted("mmoe", OLD, event_weight={"default": 5.0}, calibrate=False, epochs=4)
    tuned = model.fine_tune(X, OLD, epochs=2)
    assert tuned.model_.heads[0].shift == pytest.approx(np.log(5))
    assert tuned.predict_proba(X)[:, 0].mean() == pytest.approx(OLD["default"].mean(), abs=0.08)
    larger = model.add_task("takeover", X, Y["takeover"])
    assert abs(margins(larger) - margins(model)).max() < ROUNDING
    assert larger.model_.heads[2].shift == 0


def test_a_frozen_shared_part_stays_whatever_the_fit_froze_later() -> None:
    model = fitted(epochs=2, freeze_shared_after=1)
    tuned = model.fine_tune(X, OLD, shared="frozen", learning_rate=0.05, epochs=2)
    before, after = (m.model_.scorer.network for m in (model, tuned))
    assert tuned.best_epoch_ >= 0
    assert torch.equal(after.trunk.experts.layers[0].weight, before.trunk.experts.layers[0].weight)
    assert not torch.equal(after.towers.out.weight, before.towers.out.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "fine_tune needs y: the model has no schema to read labels with"),
        ({"y": OLD.select(pl.all().replace(0.0, None).replace(1.0, None))}, "no observed label"),
        ({"y": OLD + 1}, "label 'default' holds 2.0, which is neither 0.0 nor 1.0"),
        ({"y": OLD["fraud"]}, "labels have 1 column.*, the model has 2 task"),
        ({"shared": "melted"}, "unknown shared 'melted': valid are learned, frozen"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"X_val": X}, "X_val was given without y_val"),
    ],
)
def test_what_fine_tune_cannot_read(
    models: dict[str, MultiTaskClassifier], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        models["mmoe"].fine_tune(**{"X": X, "y": OLD, **change})
    with pytest.raises(ValueError, match="have no shared part to freeze"):
        models["single_task"].fine_tune(X, OLD, shared="frozen")


def portfolio(
    rows: int, seed: int, *, moved: float, level: float
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two outcomes of ten columns, with weights that have moved, at a level that has."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(rows, 10))
    law, other = (np.random.default_rng(i).normal(size=(2, 10)) / 2 for i in (0, 1))
    risk = columns @ (law + moved * other).T + 0.8 * columns[:, [0]] * columns[:, [1]]
    y = (rng.random((rows, 2)) < 1 / (1 + np.exp(level - risk))).astype(float)
    names = [f"c{i}" for i in range(10)]
    return pl.DataFrame(columns, schema=names), pl.DataFrame(y, schema=["default", "fraud"])


def test_few_labels_of_another_portfolio_teach_more_than_training_anew() -> None:
    options = {**SMALL, "learning_rate": 0.01, "epochs": 4}
    model = MultiTaskClassifier("mmoe", **options)
    model.fit(*portfolio(5000, 0, moved=0.0, level=1.0))
    few, labels = portfolio(500, 1, moved=0.4, level=2.0)
    new, truth = portfolio(5000, 2, moved=0.4, level=2.0)
    tuned = model.fine_tune(few, labels, epochs=10)
    anew = MultiTaskClassifier("mmoe", **{**SMALL, "epochs": 10}).fit(few, labels)

    def loss(of: MultiTaskClassifier) -> float:
        p = of.predict_proba(new)
        return float(np.mean([log_loss(truth[:, i].to_numpy(), p[:, i]) for i in (0, 1)]))

    was, other, now = (loss(m) for m in (model, anew, tuned))
    assert now < was - 0.02
    assert now < other - 0.01


def test_what_is_missing_for_the_first_time_is_learned(tmp_path: Path) -> None:
    """The same whether the model was in memory all the while or on disk."""
    X_full = X.with_columns(a=pl.col("a").fill_null(0.0))
    model = MultiTaskClassifier("shared_bottom", **SMALL).fit(X_full, OLD)
    model.save(tmp_path / "model")
    is_missing = pl.int_range(X.height) % 2 == 0
    holey = X_full.with_columns(a=pl.when(is_missing).then(None).otherwise("a"))
    labels = OLD.with_columns(fraud=pl.when(is_missing).then(1.0).otherwise("fraud"))
    tuned = [
        one.fine_tune(holey, labels, learning_rate=0.02)
        for one in (model, MultiTaskClassifier.load(tmp_path / "model"))
    ]
    assert apart(*tuned, ["default", "fraud"]) == 0
    vectors = tuned[0].model_.scorer.network.embedding.numeric.missing
    assert vectors[0].all()
    assert not vectors[1].any()
