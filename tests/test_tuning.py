"""Tuning: what is searched, what is kept, and how a search goes on from its journal."""

from __future__ import annotations

import datetime as dt
import fcntl
import importlib
import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from polars.testing import assert_frame_equal

from riskmtl import DataSchema, MultiTaskClassifier, RiskModel
from riskmtl.columns import Column, Task
from riskmtl.networks import TRUNKS
from riskmtl.training.balancing import BALANCING
from riskmtl.tuning import Tuned, _reached, space, tune
from riskmtl.tuning.trials import best_score

Frame = pl.DataFrame
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
QUICK = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": [8],
    "embedding_dim": 2,
    "bins": 4,
    "epochs": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def rows(cards: Frame) -> tuple[Frame, Frame]:
    """Training and validation rows."""
    return cards[:280], cards[280:]


@pytest.fixture
def search(rows: tuple[Frame, Frame], cards_schema: DataSchema) -> Callable[..., Tuned]:
    """Tune on the small table, quickly."""

    def call(trials: int = 3, fixed: dict[str, Any] = QUICK, **options: Any) -> Tuned:
        return tune(*rows, schema=cards_schema, trials=trials, fixed=fixed, **options)

    return call


def drawn(tuned: Tuned) -> Frame:
    """All of the trials but their durations."""
    return tuned.trials.drop("seconds")


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in QUICK.items() if name not in names}


def fitted(
    parameters: dict[str, Any], rows: tuple[Frame, Frame], schema: DataSchema
) -> MultiTaskClassifier:
    return MultiTaskClassifier(schema=schema, **parameters).fit(rows[0], X_val=rows[1])


# ---- what is found -------------------------------------------------------------------------------


def test_the_first_trial_is_the_defaults(
    search: Callable[..., Tuned], rows: tuple[Frame, Frame], cards_schema: DataSchema
) -> None:
    tuned = search(trials=1, seed=4)
    first = tuned.trials.row(0, named=True)
    defaults = MultiTaskClassifier()
    assert first["dropout"] == defaults.dropout
    assert first["feature_dropout"] == defaults.feature_dropout
    assert first["task_weight_default"] == first["task_weight_fraud"] == 1
    assert tuned.parameters["learning_rate"] == "auto"
    model = fitted({**QUICK, "random_state": 4}, rows, cards_schema)
    epochs = model.history_.group_by("epoch").agg(pl.col("val_log_loss_skill").mean())
    assert tuned.default_score == pytest.approx(epochs["val_log_loss_skill"].max())
    assert tuned.default_score == tuned.score == first["score"]


def test_the_best_trial_is_kept_and_its_parameters_give_its_score_again(
    search: Callable[..., Tuned], rows: tuple[Frame, Frame], cards_schema: DataSchema
) -> None:
    tuned = search(trials=6)
    complete = tuned.trials.filter(state="complete")
    assert tuned.score == complete["score"].max()
    assert tuned.score > tuned.default_score == tuned.trials["score"][0]
    assert QUICK.items() <= tuned.parameters.items()
    assert json.loads(json.dumps(tuned.parameters)) == tuned.parameters
    model = fitted(tuned.parameters, rows, cards_schema)
    best = model.history_.filter(epoch=model.best_epoch_)
    assert tuned.score == pytest.approx(best["val_log_loss_skill"].mean(), abs=1e-12)


@pytest.mark.parametrize("monitor", ["roc_auc", "average_precision"])
def test_the_score_is_that_of_the_monitor(
    search: Callable[..., Tuned],
    rows: tuple[Frame, Frame],
    cards_schema: DataSchema,
    monitor: str,
) -> None:
    fixed = {**QUICK, "monitor": monitor}
    tuned = search(trials=1, fixed=fixed)
    model = fitted({**fixed, "random_state": 0}, rows, cards_schema)
    best = model.history_.filter(epoch=model.best_epoch_)
    assert tuned.score == pytest.approx(best[f"val_{monitor}"].mean())


def test_independent_networks_have_a_best_epoch_each(
    search: Callable[..., Tuned], rows: tuple[Frame, Frame], cards_schema: DataSchema
) -> None:
    fixed = {**QUICK, "network": "single_task", "epochs": 3}
    tuned = search(trials=1, fixed=fixed)
    model = fitted({**fixed, "random_state": 0}, rows, cards_schema)
    best = model.history_.group_by("task").agg(pl.col("val_log_loss_skill").max())
    assert tuned.score == pytest.approx(best["val_log_loss_skill"].mean())
    assert tuned.trials["epochs"].to_list() == [None]


def test_fixed_parameters_are_not_searched(
    search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = failing(monkeypatch, 0, AssertionError())
    fixed = {**QUICK, "dropout": 0.11, "task_weights": {"fraud": 2.0}, "challenger": "lightgbm"}
    tuned = search(trials=3, fixed=fixed)
    assert tuned.trials.columns == [
        *("number", "state", "score", "epochs", "seconds", "error"),
        *("linear_path", "learning_rate", "feature_dropout", "embedding_decay"),
        "balancing",
    ]
    assert fixed.items() <= tuned.parameters.items()
    # The challenger is for the training to come: no trial needs one.
    assert [parameters["challenger"] for parameters in made] == [None] * 3
    assert [parameters["dropout"] for parameters in made] == [0.11] * 3


def test_what_is_searched(search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Any]] = []
    observed: dict[str, float] = {}

    def fit(self: MultiTaskClassifier, X: Any, **_: Any) -> MultiTaskClassifier:
        counts = {task: self.schema.labels(X)[task].count() for task in ("default", "fraud")}
        observed.update({task: count / max(counts.values()) for task, count in counts.items()})
        tried.append(self.get_params(deep=False))
        self.history_ = pl.DataFrame({"epoch": [0], "task": ["a"], "val_log_loss_skill": [0.5]})
        return self

    monkeypatch.setattr(MultiTaskClassifier, "fit", fit)
    tuned = search(trials=60, fixed={})
    networks = {parameters["network"] for parameters in tried}
    assert networks <= set(TRUNKS)
    assert len(networks) > 4
    assert {parameters["members"] for parameters in tried} == {1, 2, 4, 8}
    assert {parameters["linear_path"] for parameters in tried} == {False, True}
    automatic = tuned.trials["learning_rate"][0]
    for parameters, row in zip(tried, tuned.trials.iter_rows(named=True), strict=True):
        assert parameters["expert_units"] == [round(n * row["width"]) for n in (128, 64)]
        assert parameters["shared_units"] == [round(n * row["width"]) for n in (256, 128)]
        assert 0.3 * automatic <= row["learning_rate"] <= 3 * automatic
        factors = {task: row[f"task_weight_{task}"] for task in ("default", "fraud")}
        if set(factors.values()) == {1.0}:
            assert parameters["task_weights"] is None
        else:
            # Factors on what is automatic: the seldom observed task weighs less.
            weights = parameters["task_weights"]
            assert {task: weights[task] / factors[task] for task in factors} == pytest.approx(
                observed, rel=0.01
            )
        assert (parameters["challenger"], parameters["random_state"]) == (None, 0)
    widths = tuned.trials["width"]
    assert widths[0] == 1
    assert widths.min() < 0.8 < 1.5 < widths.max()


def test_one_task_has_no_weight_and_no_network_of_its_own(cards: Frame) -> None:
    schema = DataSchema(
        name="cards",
        columns=(Column("amount", "number", "numeric"), Column("country", "string", "categorical")),
        tasks=(Task("fraud", label="is_fraud"),),
    )
    table = cards.select("amount", "country", "is_fraud")
    tuned = tune(table, schema=schema, trials=12, fixed=without("network") | {"epochs": 1})
    assert "single_task" not in tuned.trials["network"].to_list()
    assert not [name for name in tuned.trials.columns if name.startswith("task_weight")]


# ---- which tasks have a network together ---------------------------------------------------------


@pytest.fixture(scope="module")
def three(cards: Frame) -> tuple[Frame, DataSchema]:
    """A table with three tasks."""
    table = cards.with_columns(old=(pl.col("age") > 50).cast(pl.Int8))
    schema = DataSchema(
        name="cards",
        columns=(Column("amount", "number", "numeric"), Column("country", "string", "categorical")),
        tasks=(
            Task("fraud", label="is_fraud"),
            Task("old", label="old"),
            Task("abroad", label="online"),
        ),
    )
    return table.select("amount", "country", "is_fraud", "old", "online"), schema


def test_partitions_of_few_tasks_are_all_but_each_by_itself() -> None:
    assert space.partitions(["a"]) == [[["a"]]]
    assert space.partitions(["a", "b"]) == [[["a", "b"]]]
    said = [space.said(groups) for groups in space.partitions(["a", "b", "c"])]
    assert said[0] == "a+b+c"
    assert sorted(said[1:]) == ["a | b+c", "a+b | c", "a+c | b"]
    # Bell's number of 4 is 15.
    assert len(space.partitions(["a", "b", "c", "d"])) == 14


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_each_partition_is_one_of_all_tasks(count: int) -> None:
    tasks = [f"task {i}" for i in range(count)]
    found = space.partitions(tasks)
    assert found[0] == [tasks]
    for groups in found:
        assert sorted(task for group in groups for task in group) == tasks
    said = [space.said(groups) for groups in found]
    assert len(set(said)) == len(said)
    if count > 4:
        assert len(found) == 1 + count + count * (count - 1) // 2


def test_groups_are_searched_from_three_tasks_on(
    three: tuple[Frame, DataSchema], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = failing(monkeypatch, 0, AssertionError())
    fixed = without("network") | {"epochs": 1, "expert_units": [4]}
    tuned = tune(three[0], schema=three[1], trials=8, fixed=fixed, seed=2)
    together = "fraud+old+abroad"
    assert tuned.trials["groups"][0] == together
    apart = 0
    for parameters, row in zip(made, tuned.trials.iter_rows(named=True), strict=True):
        if row["groups"] == together or row["network"] == "single_task":
            assert parameters.get("groups") is None
        else:
            assert space.said(parameters["groups"]) == row["groups"]
            apart += row["state"] == "complete"
    assert apart > 0
    assert json.loads(json.dumps(tuned.parameters)) == tuned.parameters
    monkeypatch.undo()
    model = MultiTaskClassifier(schema=three[1], **tuned.parameters).fit(three[0])
    assert best_score(model) == pytest.approx(tuned.score)


def test_the_score_of_groups_is_that_of_their_best_epochs(
    three: tuple[Frame, DataSchema],
) -> None:
    fixed = {**QUICK, "epochs": 3, "groups": [["abroad", "fraud"], ["old"]]}
    tuned = tune(three[0], schema=three[1], trials=1, fixed=fixed)
    assert "groups" not in tuned.trials.columns
    model = MultiTaskClassifier(schema=three[1], **fixed, random_state=0).fit(three[0])
    kept = model.history_.filter(
        pl.col("epoch") == pl.col("task").replace_strict(model.best_epochs_)
    )
    assert kept.height == 3
    assert tuned.score == pytest.approx(kept["val_log_loss_skill"].mean())
    assert tuned.trials["epochs"].to_list() == [None]


def test_given_groups_leave_no_network_per_task(three: tuple[Frame, DataSchema]) -> None:
    names = [task.name for task in three[1].tasks]
    groups = {"groups": [["fraud"], ["old", "abroad"]]}
    assert "single_task" in space.space_of(names, 0.01, {})["network"].choices
    assert "single_task" not in space.space_of(names, 0.01, groups)["network"].choices
    alone = space.space_of(names, 0.01, {"network": "single_task"})
    assert not {"groups", "balancing"} & set(alone)


def test_a_selected_task_is_never_apart_from_what_selects_it(
    three: tuple[Frame, DataSchema],
) -> None:
    names = ["default", "fraud", "approved"]
    fixed = {"selected_by": {"default": "approved"}}
    searched = space.space_of(names, 0.01, fixed)
    assert "single_task" not in searched["network"].choices
    assert searched["groups"].choices == ("default+fraud+approved", "default+approved | fraud")
    # Where all depend on one another, there is nothing to choose.
    chain = {"selected_by": {"default": "approved", "fraud": "default"}}
    assert "groups" not in space.space_of(names, 0.01, chain)
    assert "groups" in space.space_of(names, 0.01, {"selected_by": {}})
    fixed = {**without("network"), "epochs": 1, "expert_units": [4], "members": 1}
    fixed |= {"selected_by": {"fraud": "old"}, "selection": "inverse_propensity"}
    table = three[0].with_columns(pl.when(pl.col("old") == 1).then(pl.col("is_fraud")))
    tuned = tune(table, schema=three[1], trials=8, fixed=fixed, seed=2)
    assert "failed" not in tuned.trials["state"]


def test_balancing_is_searched_where_there_is_something_to_balance(
    three: tuple[Frame, DataSchema],
) -> None:
    names = [task.name for task in three[1].tasks]
    searched = space.space_of(names, 0.01, {})["balancing"].choices
    assert searched[0] == "sum"
    assert set(searched) < set(BALANCING)
    for fixed in (
        {"balancing": "sum"},
        {"balancing_options": {}},
        {"network": "single_task"},
        {"schedule": "by_size"},
    ):
        assert "balancing" not in space.space_of(names, 0.01, fixed)
    assert "balancing" not in space.space_of(names[:1], 0.01, {})
    search = space.lay_out(three[0], None, three[1], {"random_state": 0})
    assert search.defaults["balancing"] == "sum"
    drawn = {**search.defaults, "network": "mmoe", "balancing": "uncertainty"}
    assert search.parameters(drawn)["balancing"] == "uncertainty"
    assert "balancing" not in search.parameters({**drawn, "network": "single_task"})


def test_a_journal_of_another_space_is_refused(
    search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    fixed = without("network")
    search(trials=1, fixed=fixed, journal=journal)
    monkeypatch.setattr(space, "TRUNKS", ["ple", "mmoe", "shared_bottom"])
    with pytest.raises(ValueError, match=r"another search \(other search space\)"):
        search(trials=2, fixed=fixed, journal=journal)


def test_without_validation_rows_the_estimator_holds_some_out(
    rows: tuple[Frame, Frame], cards_schema: DataSchema
) -> None:
    tuned = tune(rows[0], schema=cards_schema, trials=2, fixed=QUICK)
    model = MultiTaskClassifier(schema=cards_schema, **QUICK, random_state=0).fit(rows[0])
    best = model.history_.filter(epoch=model.best_epoch_)
    assert tuned.default_score == pytest.approx(best["val_log_loss_skill"].mean())


def test_what_is_held_out_counts_for_no_automatic_rate(
    rows: tuple[Frame, Frame], cards_schema: DataSchema
) -> None:
    settings = {**QUICK, "validation_share": 0.5}
    many = pl.concat([rows[0]] * 200)
    held_out = space.lay_out(many, None, cards_schema, settings)
    half = space.lay_out(many[::2], rows[1], cards_schema, settings)
    given = space.lay_out(many, rows[1], cards_schema, settings)
    assert held_out.rate == half.rate != given.rate


def _within(values: BaseDistribution) -> st.SearchStrategy[Any]:
    if isinstance(values, FloatDistribution):
        return st.floats(values.low, values.high)
    return st.sampled_from(values.choices)  # type: ignore[attr-defined]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), units=st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_whatever_is_drawn_can_be_trained(
    cards: Frame, cards_schema: DataSchema, data: st.DataObject, units: list[int]
) -> None:
    search = space.lay_out(cards, None, cards_schema, {"random_state": 0})
    search = replace(search, units={"expert_units": units, "shared_units": units})
    draw = {name: data.draw(_within(values)) for name, values in search.space.items()}
    parameters = search.parameters(draw)
    MultiTaskClassifier(**parameters)._check_parameters()
    assert all(isinstance(unit, int) for unit in parameters["expert_units"])
    assert yaml.safe_load(yaml.safe_dump(parameters)) == parameters
    assert search.parameters(search.defaults)["expert_units"] == units
    for name, values in search.space.items():
        assert values._contains(values.to_internal_repr(search.defaults[name])), name


# ---- trials that are cut short, fail or are not begun --------------------------------------------


def test_trials_behind_the_median_are_cut_short(search: Callable[..., Tuned]) -> None:
    tuned = search(trials=14, fixed={**QUICK, "epochs": 4, "patience": 4}, seed=5)
    pruned = tuned.trials.filter(state="pruned")
    complete = tuned.trials.filter(state="complete")
    assert pruned.height + complete.height == 14
    assert pruned.height > 0
    assert pruned["number"].min() >= 5
    # Nothing is judged in the first quarter.
    assert pruned["epochs"].is_between(2, 3).all()
    assert (complete["epochs"] == 4).all()
    assert pruned["score"].is_finite().all()


def test_what_was_cut_short_has_its_best_epoch_as_score() -> None:
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED, intermediate_values={0: 0.3, 1: 0.5, 2: 0.4}
    )
    assert _reached(trial) == 0.5


def test_nothing_is_cut_short_after_the_last_epoch(search: Callable[..., Tuned]) -> None:
    tuned = search(trials=10, fixed={**QUICK, "epochs": 1})
    assert set(tuned.trials["state"]) == {"complete"}


def test_independent_networks_are_never_cut_short(search: Callable[..., Tuned]) -> None:
    tuned = search(trials=8, fixed={**QUICK, "network": "single_task"})
    assert set(tuned.trials["state"]) == {"complete"}
    assert tuned.trials["epochs"].null_count() == 8


def failing(monkeypatch: pytest.MonkeyPatch, on: int, error: BaseException) -> list[Any]:
    """Let one fit of several fail."""
    fit, calls = MultiTaskClassifier.fit, []

    def fit_or_fail(self: MultiTaskClassifier, *rows: Any, **options: Any) -> MultiTaskClassifier:
        calls.append(self.get_params(deep=False))
        if len(calls) == on:
            raise error
        return fit(self, *rows, **options)

    monkeypatch.setattr(MultiTaskClassifier, "fit", fit_or_fail)
    return calls


@pytest.mark.parametrize(
    "error", [ValueError("Input contains NaN."), RuntimeError("out of\nmemory")]
)
def test_a_trial_that_fails_does_not_end_the_search(
    search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, 2, error)
    tuned = search(trials=4)
    assert tuned.trials["state"].to_list() == ["complete", "failed", "complete", "complete"]
    assert tuned.trials["error"].to_list() == [None, str(error).replace("\n", " "), None, None]
    assert tuned.trials["score"].null_count() == 1


@pytest.mark.parametrize("error", [TypeError("a mistake in a program"), KeyError("fraud")])
def test_a_mistake_in_a_program_is_not_swallowed(
    search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, 2, error)
    with pytest.raises(type(error)):
        search(trials=4)


def test_no_trial_is_begun_after_the_timeout(search: Callable[..., Tuned], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert search(trials=5, timeout=1e-9, journal=journal).trials.height == 1
    assert search(trials=5, timeout=600, journal=journal).trials.height == 5


# ---- the journal ---------------------------------------------------------------------------------


def test_the_seed_decides_the_trials(search: Callable[..., Tuned]) -> None:
    tuned = search(trials=4, seed=1)
    assert tuned.trials["dropout"].n_unique() == 4
    assert_frame_equal(drawn(search(trials=4, seed=1)), drawn(tuned))
    other = search(trials=4, seed=2, fixed={**QUICK, "random_state": 1})
    assert other.default_score == tuned.default_score
    assert not set(other.trials["dropout"][1:]) & set(tuned.trials["dropout"][1:])


@pytest.mark.slow
def test_a_search_goes_on_to_more_trials_as_if_it_had_never_stopped(
    search: Callable[..., Tuned], tmp_path: Path
) -> None:
    journal = tmp_path / "new" / "journal"
    # Beyond the ten random trials with which the sampler begins.
    for trials in (2, 11, 13):
        parts = search(trials=trials, journal=journal)
        assert parts.trials.height == trials
    whole = search(trials=13)
    assert_frame_equal(drawn(parts), drawn(whole))
    assert parts.parameters == whole.parameters
    assert whole.trials["dropout"].n_unique() == 13
    # Fewer than there are: nothing is trained.
    assert_frame_equal(search(trials=5, journal=journal).trials, parts.trials)
    assert list(journal.parent.iterdir()) == [journal]


def test_an_interrupted_trial_is_made_again(
    search: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with monkeypatch.context() as patch:
        interrupted = failing(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            search(trials=5, journal=journal)
    with monkeypatch.context() as patch:
        made = failing(patch, 0, KeyboardInterrupt())
        tuned = search(trials=5, journal=journal)
    assert len(made) == 3
    assert made[0]["dropout"] == interrupted[2]["dropout"]
    assert_frame_equal(drawn(tuned), drawn(search(trials=5)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"train": lambda frame: frame[1:]}, "data"),
        ({"train": lambda frame: frame.with_columns(amount=pl.col("amount") + 1)}, "data"),
        ({"validation": lambda frame: frame[1:]}, "validation data"),
        ({"validation": lambda _: None}, "validation data"),
        ({"fixed": {**QUICK, "bins": 5}}, "fixed parameters"),
        ({"fixed": {**QUICK, "dropout": 0.3}}, "fixed parameters"),
        ({"seed": 1}, "seed"),
        ({"schema": lambda schema: replace(schema, title="other")}, "schema"),
    ],
    ids=str,
)
def test_the_journal_of_another_search_is_refused(
    rows: tuple[Frame, Frame],
    cards_schema: DataSchema,
    tmp_path: Path,
    change: dict[str, Any],
    word: str,
) -> None:
    journal = tmp_path / "journal"
    arguments: dict[str, Any] = {"train": rows[0], "validation": rows[1], "schema": cards_schema}
    common = {"trials": 1, "fixed": QUICK, "journal": journal}
    tune(**arguments, **common)
    before = journal.read_bytes()
    changed = {
        name: value(arguments[name]) if callable(value) else value for name, value in change.items()
    }
    with pytest.raises(ValueError, match=rf"journal: belongs to another search \(other {word}\)"):
        tune(**{**arguments, **common, **changed})
    assert journal.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_alone(
    search: Callable[..., Tuned], tmp_path: Path
) -> None:
    journal = tmp_path / "letters.txt"
    journal.write_text("dear")
    with pytest.raises(ValueError, match=r"letters\.txt: is not a journal"):
        search(journal=journal)
    assert journal.read_text() == "dear"


def test_a_line_that_was_not_finished_is_dropped(
    search: Callable[..., Tuned], tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    search(trials=2, journal=journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert_frame_equal(drawn(search(trials=3, journal=journal)), drawn(search(trials=3)))


def test_a_damaged_journal_is_refused(search: Callable[..., Tuned], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    search(trials=1, journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"{\n", *lines[4:]]))
    with pytest.raises(ValueError, match="journal: damaged journal"):
        search(trials=2, journal=journal)


def test_two_searches_do_not_share_a_journal(search: Callable[..., Tuned], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with journal.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="journal: another search is using this journal"):
            search(journal=journal)
    assert search(trials=1, journal=journal).trials.height == 1


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fixed": {"epoch": 2}}, "fixed: unknown parameter 'epoch': did you mean 'epochs'"),
        ({"fixed": {"checkpoint_dir": "x"}}, "fixed: unknown parameter 'checkpoint_dir'"),
        ({"fixed": {"callbacks": [1]}}, "fixed: unknown parameter 'callbacks'"),
        ({"fixed": {"network": "pel"}}, "unknown network 'pel'"),
        ({"fixed": {"dropout": 2}}, "dropout must lie"),
        ({"fixed": {"validation_share": 2}}, "validation_share"),
        ({"fixed": {"challenger": "lightgbm", "challenger_options": {"trials": 0}}}, "trials"),
        ({"fixed": {"random_state": object()}}, "fixed: random_state must be a plain value"),
        ({"fixed": {**QUICK, "task_weights": {"frod": 2}}}, "task_weights: unknown task 'frod'"),
        ({"trials": 0}, "trials must be a whole number"),
        ({"trials": True}, "trials must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"timeout": 0}, "timeout must be a positive number"),
    ],
    ids=str,
)
def test_a_mistake_is_named_before_any_trial(
    search: Callable[..., Tuned],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict[str, Any],
    words: str,
) -> None:
    def trained(*_: Any) -> None:
        raise AssertionError("a trial was trained")

    monkeypatch.setattr("riskmtl.training.fit.train", trained)
    with pytest.raises(ValueError, match=words):
        search(**options, journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_something_must_be_left_to_search(
    search: Callable[..., Tuned], rows: tuple[Frame, Frame]
) -> None:
    rest = {
        **{"learning_rate": 0.01, "dropout": 0, "feature_dropout": 0},
        **{"linear_path": False, "embedding_decay": 1, "task_weights": {}, "balancing": "sum"},
    }
    with pytest.raises(ValueError, match="leaves no parameter to search"):
        search(fixed={**QUICK, **rest})
    with pytest.raises(TypeError, match="schema must be a DataSchema"):
        tune(*rows, schema=None, fixed=QUICK)  # type: ignore[arg-type]


def test_a_mistake_in_the_rows_leaves_no_journal(
    rows: tuple[Frame, Frame], cards_schema: DataSchema, tmp_path: Path
) -> None:
    one_class = rows[0].with_columns(bad=pl.lit("paid"))
    arguments: dict[str, Any] = {"schema": cards_schema, "fixed": QUICK, "trials": 2}
    journal = tmp_path / "journal"
    with pytest.raises(ValueError, match="default"):
        tune(one_class, rows[1], journal=journal, **arguments)
    assert not journal.exists()
    no_events = rows[1].with_columns(bad=pl.lit("paid"), is_fraud=pl.lit(0, pl.Int8))
    with pytest.raises(ValueError, match="no task has both classes among the validation rows"):
        tune(rows[0], no_events, journal=journal, **arguments)
    assert not journal.exists()
    tune(*rows, journal=journal, **arguments)


def test_without_optuna_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "riskmtl.tuning")
    with pytest.raises(ImportError, match=re.escape("install riskmtl[tune]")):
        importlib.import_module("riskmtl.tuning")
    done = run("tune", "--data", "x", "--schema", "y", "--out", tmp_path / "tuned.yaml")
    assert done.code == 1
    assert done.err == (
        "riskmtl tune: tuning needs Optuna, an optional extra: install riskmtl[tune]\n"
    )


def test_the_command_line_does_not_load_optuna() -> None:
    code = "import sys, riskmtl.cli; assert not {'optuna', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optuna_is_quiet_and_left_as_it_was(
    search: Callable[..., Tuned], capfd: pytest.CaptureFixture[str]
) -> None:
    optuna.logging.set_verbosity(logging.DEBUG)
    try:
        search(trials=1)
        assert optuna.logging.get_verbosity() == logging.DEBUG
    finally:
        optuna.logging.set_verbosity(logging.INFO)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_the_best_score(
    search: Callable[..., Tuned], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = search(trials=2, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "2/2" in last
    assert f"best={tuned.score:.4f}" in last


# ---- the command line ----------------------------------------------------------------------------

SET = [f"--set={name}={json.dumps(value)}" for name, value in QUICK.items()]


@pytest.fixture
def files(cards: Frame, tmp_path: Path) -> tuple[Path, Path]:
    """Files of the small table and of its schema, with all three parts."""
    schema = {
        "name": "cards",
        "fields": [
            {"name": "id", "type": "integer", "role": "key"},
            {"name": "day", "type": "date", "role": "time"},
            {"name": "amount", "type": "number", "missingValues": -9},
            {"name": "country", "type": "string"},
        ],
        "tasks": [
            {"name": "default", "label": "bad", "positive": "late", "negative": "paid"},
            {"name": "fraud", "label": "is_fraud", "positive": 1, "negative": 0},
        ],
        "split": {
            "test": {"from": dt.date(2024, 3, 25)},
            "validation": {"from": dt.date(2024, 2, 25)},
        },
    }
    (tmp_path / "cards.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))
    cards.select("id", "day", "amount", "country", "bad", "is_fraud").write_parquet(
        tmp_path / "cards.parquet"
    )
    return tmp_path / "cards.parquet", tmp_path / "cards.yaml"


def test_a_killed_search_goes_on_with_the_same_trials(
    run: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, schema = files
    common = ["tune", "--data", data, "--schema", schema, "--trials", 6, *SET]
    whole, cut = tmp_path / "whole.yaml", tmp_path / "cut.yaml"
    journal = tmp_path / "cut.yaml.journal"
    assert run(*common, "--out", whole).code == 0

    command = [sys.executable, "-m", "riskmtl", *map(str, common), "--out", str(cut)]
    process = subprocess.Popen(command)
    while process.poll() is None and not (
        journal.exists() and b'"state":1,' in journal.read_bytes()
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not cut.exists()
    before = _trials(journal)
    assert 1 <= sum(trial.state.is_finished() for trial in before) < 6

    done = run(*common, "--out", cut)
    assert done.code == 0, done.err
    assert cut.read_text() == whole.read_text()
    ended = [trial for trial in _trials(journal) if trial.state.name in ("COMPLETE", "PRUNED")]
    expected = _trials(tmp_path / "whole.yaml.journal")
    assert [(t.params, t.value) for t in ended] == [(t.params, t.value) for t in expected]
    assert all(trial.state.is_finished() for trial in _trials(journal))
    assert not journal.with_name(f"{journal.name}.lock").is_symlink()


def _trials(journal: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="riskmtl", storage=storage).trials


def test_the_file_is_one_that_train_takes(
    run: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, schema = files
    out, model = tmp_path / "new" / "tuned.yaml", tmp_path / "model"
    done = run(
        *("tune", "--data", data, "--schema", schema, "--trials", 4, "--out", out, *SET),
        *("--network", "mmoe", "--set", "expert_units=[4]", "--set", "challenger=null"),
    )
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "4 trials: 4 complete, 0 cut short, 0 failed"
    defaults, best = map(float, re.findall(r"-?\d\.\d{4}", lines[1]))
    assert defaults <= best
    assert str(out) in lines[2]
    parameters = yaml.safe_load(out.read_text())
    assert (parameters["network"], parameters["expert_units"]) == ("mmoe", [4])
    assert {path.name for path in out.parent.iterdir()} == {"tuned.yaml", "tuned.yaml.journal"}

    program, *train = shlex.split(lines[3].partition(": ")[2])
    assert program == "riskmtl"
    trained = run(*[str(model) if word == "model" else word for word in train])
    assert trained.code == 0, trained.err
    saved = json.loads((model / "manifest.json").read_text())["estimator"]["parameters"]
    assert parameters.items() <= saved.items()
    assert RiskModel.load(model).tasks == ["default", "fraud"]


def test_the_test_rows_are_not_touched(
    run: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, schema = files
    out = tmp_path / "tuned.yaml"
    tune_it = ["tune", "--data", data, "--schema", schema, "--trials", 1, "--out", out, *SET]
    assert run(*tune_it).code == 0
    frame, is_test = pl.read_parquet(data), pl.col("day") >= pl.date(2024, 3, 25)
    # The journal notes which rows its scores come from: it would refuse others.
    frame.with_columns(
        bad=pl.when(is_test).then(None).otherwise("bad"),
        amount=pl.when(is_test).then(7.0).otherwise("amount"),
    ).write_parquet(data)
    assert run(*tune_it).code == 0
    frame.with_columns(amount=pl.when(is_test).then("amount").otherwise(7.0)).write_parquet(data)
    refused = run(*tune_it)
    assert refused.code == 1
    assert f"{out}.journal: belongs to another search (other data, validation" in refused.err


def test_bad_rows_are_left_out_only_if_accepted(
    run: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, schema = files
    spoilt = pl.int_range(pl.len()) < 3
    pl.read_parquet(data).with_columns(
        amount=pl.when(spoilt).then(float("inf")).otherwise("amount")
    ).write_parquet(data)
    out = tmp_path / "made" / "tuned.yaml"
    call = ["tune", "--data", data, "--schema", schema, "--trials", 1, "--out", out, *SET]
    refused = run(*call)
    assert (refused.code, out.parent.exists()) == (1, False)
    assert "3 of 400 rows break the schema" in refused.err
    done = run(*call, "--max-bad", "1%")
    assert done.code == 0, done.err
    assert "left out 3 rows: amount: infinite" in done.err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--network", "pel"], ["network", "'ple'"]),
        (["--set", "epoch=2"], ["'epoch'", "'epochs'"]),
        (["--set", "dropout=high"], ["dropout", "high"]),
        (["--set", "callbacks=[1]"], ["'callbacks'"]),
        (["--set", "checkpoint_dir=x"], ["'checkpoint_dir'"]),
        (["--trials", "0"], ["trials"]),
        (["--seed", "-1"], ["seed"]),
        (["--journal", "{data}"], ["--journal", "written over"]),
        (["--journal", "{schema}"], ["--journal", "written over"]),
        (["--journal", "{out}"], ["--journal", "written over"]),
        (["--journal", "{folder}"], ["--journal", "is a folder"]),
        (["--out", "{data}"], ["--out", "written over"]),
        (["--out", "{schema}"], ["--out", "written over"]),
        (["--data", "no.parquet"], ["no.parquet"]),
        (["--schema", "no.yaml"], ["no.yaml"]),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_refused_in_one_line(
    run: Callable[..., Any],
    files: tuple[Path, Path],
    tmp_path: Path,
    extra: list[str],
    words: list[str],
) -> None:
    data, schema = files
    out = tmp_path / "made" / "tuned.yaml"
    places = {"data": data, "schema": schema, "out": out, "folder": tmp_path}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(
        *("tune", "--data", data, "--schema", schema, "--out", out, *SET),
        *(word.format(**places) for word in extra),
    )
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("riskmtl tune: ")
    assert all(word in done.err for word in words), done.err
    assert done.out == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_commands_of_the_readme(
    run: Callable[..., Any],
    portfolio_file: Path,
    schema_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = [line for line in README.splitlines() if line.startswith("riskmtl tune ")]
    commands += [line for line in README.splitlines() if "--config tuned.yaml" in line]
    assert len(commands) == 2
    (tmp_path / "portfolio.parquet").symlink_to(portfolio_file)
    (tmp_path / "data_schemas").symlink_to(schema_file.parent)
    monkeypatch.chdir(tmp_path)
    for command, extra in zip(commands, ([*SET, "--trials=2"], []), strict=True):
        program, *arguments = shlex.split(command)
        assert program == "riskmtl"
        done = run(*arguments, *extra, "--set=challenger=null")
        assert done.code == 0, done.err
