"""Whether joint training helped: what is compared with what, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.base import clone

from riskmtl import DataSchema, LightGBMBaseline, MultiTaskClassifier, transfer_report
from riskmtl.transfer import HELPED, HURT, TOO_FEW, UNDECIDED, _gains, alone_like
from riskmtl.validation.comparison import auc_difference, bootstrap_differences
from riskmtl.validation.sections.joint import joint

SMALL: dict[str, Any] = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": [8],
    "embedding_dim": 2,
    "bins": 4,
    "epochs": 1,
    "device": "cpu",
    "random_state": 3,
}


def table(rows: int = 600) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(0)
    X = pl.DataFrame({"amount": rng.normal(size=rows), "age": rng.normal(size=rows)})
    risk = X["amount"].to_numpy()
    labels = {
        task: np.where(rng.random(rows) < 1 / (1 + np.exp(-2 * risk)), "yes", "no")
        for task in ("fraud", "takeover")
    }
    hidden = pl.Series(rng.random(rows) < 0.4)
    y = pl.DataFrame(labels)
    return X, y.with_columns(takeover=pl.when(hidden).then(None).otherwise("takeover"))


X, Y = table()


class Fitted:
    """Answers that are known, in place of a model."""

    tasks_ = ("helped", "same", "hurt", "rare")

    def __init__(self, labels: np.ndarray, strength: list[float], seed: int) -> None:
        noise = np.random.default_rng(seed).normal(size=labels.shape)
        z = np.array(strength) * (np.nan_to_num(labels) - 0.5) + noise
        self.labels, self.scores = labels, 1 / (1 + np.exp(-z))

    def read_labels(self, X: Any, y: Any) -> np.ndarray:
        return self.labels

    def predict_proba(self, X: Any) -> np.ndarray:
        return self.scores


def compared(metrics: list[str]) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    labels = (rng.random((800, 4)) < 0.3).astype(float)
    labels[:, 3] = np.arange(800) < 9
    labels[rng.random((800, 4)) < 0.2] = np.nan
    joint = Fitted(labels, [3.0, 1.0, 0.5, 1.0], 2)
    alone = Fitted(labels, [1.0, 1.0, 2.0, 1.0], 3)
    return _gains([joint], [alone], (None, None), metrics, 0.95)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "metrics", [["roc_auc"], ["average_precision"], ["log_loss", "brier", "roc_auc"]]
)
def test_a_verdict_needs_the_whole_interval(metrics: list[str]) -> None:
    found = compared(metrics)
    assert found["metric"].unique(maintain_order=True).to_list() == metrics
    for metric in metrics:
        here = found.filter(metric=metric)
        assert here["head"].to_list() == list(Fitted.tasks_)
        assert here["verdict"].to_list() == [HELPED, UNDECIDED, HURT, TOO_FEW]
        gains = here["gain"].to_list()
        # Above 0 is better, for losses too.
        assert gains[0] > 0 > gains[2]
        for row in here.filter(pl.col("gain").is_not_null()).iter_rows(named=True):
            assert row["low"] < row["gain"] < row["high"]
            sides = {HELPED: row["low"] > 0, HURT: row["high"] < 0}
            assert sides.get(row["verdict"], row["low"] <= 0 <= row["high"])
    assert found.filter(head="rare")["events"][0] < 10
    assert found.filter(head="rare")["rows"][0] > 500


def test_the_numbers_are_those_of_the_same_rows_and_seeds() -> None:
    """Fitted by hand, on the parts that the report makes for itself."""
    template = MultiTaskClassifier(**SMALL)
    half, rest = (X[:300], Y[:300]), (X[300:], Y[300:])
    options = {"X_test": rest[0], "y_test": rest[1]}
    report = transfer_report(*half, model=template, **options)
    joint = clone(template).fit(*half)
    alone = clone(template).set_params(network="single_task").fit(*half)
    assert np.array_equal(report.joint.predict_proba(X), joint.predict_proba(X))
    assert np.array_equal(report.alone.predict_proba(X), alone.predict_proba(X))
    labels = joint.read_labels(*rest)
    for position, head in enumerate(("fraud", "takeover")):
        pair = [labels[:, position]] + [
            model.predict_proba(rest[0])[:, position] for model in (joint, alone)
        ]
        # Two heads at once: 97.5 % each.
        expected = [
            auc_difference(*pair, level=0.975),
            *bootstrap_differences(*pair, metrics=["average_precision", "log_loss"], level=0.975),
        ]
        rows = report.gains.filter(head=head)
        for row, difference in zip(rows.iter_rows(named=True), expected, strict=True):
            sign = -1 if row["metric"] == "log_loss" else 1
            ends = sorted([sign * difference.low, sign * difference.high])
            assert (row["joint"], row["alone"]) == (difference.first, difference.second)
            assert row["gain"] == pytest.approx(sign * difference.estimate)
            assert [row["low"], row["high"]] == pytest.approx(ends)
            assert row["p_value"] == difference.p_value
    assert not hasattr(template, "model_")


def test_rows_held_out_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fit = MultiTaskClassifier.fit

    def watched(self: MultiTaskClassifier, X: Any, y: Any = None, **kw: Any) -> Any:
        seen.append((X, y))
        return fit(self, X, y, **kw)

    monkeypatch.setattr(MultiTaskClassifier, "fit", watched)
    report = transfer_report(X, Y, model=MultiTaskClassifier(**SMALL), metrics=["roc_auc"])
    (first, labels), (second, _) = seen
    assert_frame_equal(first, second)
    assert X.height - first.height == pytest.approx(150, abs=3)
    observed = Y.filter(~X.to_struct().is_in(first.to_struct().implode()))
    assert report.gains["rows"].to_list() == [observed[t].count() for t in Y.columns]
    assert labels.columns == Y.columns


def test_arrays_and_a_fitted_model_will_do() -> None:
    y = Y.select(pl.all().replace_strict({"yes": 1.0, "no": 0.0}).fill_null(np.nan)).to_numpy()
    fitted = MultiTaskClassifier(**SMALL).fit(X.to_numpy(), y)
    before = fitted.predict_proba(X.to_numpy())
    report = transfer_report(X.to_numpy(), y, model=fitted, metrics=["roc_auc"])
    assert report.gains["head"].to_list() == ["task_0", "task_1"]
    assert np.array_equal(fitted.predict_proba(X.to_numpy()), before)
    named = transfer_report(X, Y, model=MultiTaskClassifier(**SMALL), metrics=["roc_auc"])
    assert_frame_equal(report.gains.drop("head"), named.gains.drop("head"))


def test_a_schema_reads_the_labels_and_holds_out_the_latest(
    cards: pl.DataFrame, cards_schema: DataSchema
) -> None:
    model = MultiTaskClassifier(**SMALL, schema=cards_schema, challenger="blend")
    report = transfer_report(cards, model=model, fits=2, metrics=["roc_auc", "log_loss"])
    assert report.verdicts.keys() == {"default", "fraud"}
    assert (report.fits, report.joint.random_state) == (2, 3)
    assert report.joint.challenger is None
    later = transfer_report(cards[:300], model=model, X_test=cards[300:], metrics=["roc_auc"])
    assert later.gains["rows"][0] == cards_schema.labels(cards[300:])["default"].count()


def test_a_fit_more_is_a_seed_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    fit = MultiTaskClassifier.fit

    def watched(self: MultiTaskClassifier, *args: Any, **kw: Any) -> Any:
        seeds.append((self.network, self.random_state, self.checkpoint_dir))
        return fit(self, *args, **kw)

    monkeypatch.setattr(MultiTaskClassifier, "fit", watched)
    report = transfer_report(X, Y, model=MultiTaskClassifier(**SMALL), metrics=["brier"], fits=2)
    assert [seed[:2] for seed in seeds] == [
        *(("shared_bottom", 3), ("shared_bottom", 4)),
        *(("single_task", 3), ("single_task", 4)),
    ]
    assert "2 fits" in str(report)


def test_checkpoints_of_several_trainings_lie_apart(tmp_path: Path) -> None:
    model = MultiTaskClassifier(**SMALL, checkpoint_dir=str(tmp_path))
    transfer_report(X, Y, model=model, metrics=["roc_auc"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone_3", "joint_3"]


def test_the_control_leaves_out_what_concerns_tasks_together() -> None:
    model = MultiTaskClassifier(
        **SMALL,
        groups=[["fraud"], ["takeover"]],
        task_weights={"fraud": 3.0},
        event_weight="balanced",
    )
    control = alone_like(model)
    assert (control.network, control.groups, control.task_weights) == ("single_task", None, None)
    assert (control.event_weight, control.shared_units) == ("balanced", [8])
    control._check_parameters()
    assert model.groups is not None
    # Whatever is said of tasks together.
    told = MultiTaskClassifier(
        balancing="dwa",
        balancing_options={"temperature": 1.0},
        penalties={"gate_entropy": 0.1},
        schedule="by_size",
        warm_up={"fraud": 1.0},
        freeze_shared_after=1,
        selected_by={"fraud": "takeover"},
    )
    alone = alone_like(told).get_params()
    defaults = MultiTaskClassifier("single_task").get_params()
    assert {name for name in alone if alone[name] != defaults[name]} == set()


def test_it_can_be_read() -> None:
    report = transfer_report(X, Y, model=MultiTaskClassifier(**SMALL), metrics=["roc_auc"])
    lines = str(report).splitlines()
    assert lines[0] == "joint training against a network per head (95% intervals, 1 fit)"
    assert lines[1].startswith("fraud, roc_auc: 0.")
    assert lines[1].endswith(report.verdicts["fraud"])
    assert "<table" in report._repr_html_()
    few = transfer_report(
        X, Y, model=MultiTaskClassifier(**SMALL), X_test=X[:15], y_test=Y[:15], metrics=["roc_auc"]
    )
    assert str(few).splitlines()[1] == "fraud, roc_auc: too few events"


def test_its_models_go_into_a_validation(cards: pl.DataFrame, cards_schema: DataSchema) -> None:
    model = MultiTaskClassifier(**SMALL, schema=cards_schema)
    report = transfer_report(cards[:300], model=model, X_test=cards[300:], metrics=["roc_auc"])
    found = joint(report.joint, cards[200:], challengers={"single_task": report.alone})
    heads = [finding.head for finding in found.findings]
    assert heads == ["default", "fraud"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["auc"]}, "unknown metric 'auc': did you mean 'roc_auc'"),
        ({"metrics": "roc_auc"}, "metrics must be a sequence such as"),
        ({"metrics": []}, "metrics must be a sequence such as"),
        ({"level": 1.0}, "level is 1.0"),
        ({"fits": 0}, "fits must be a whole number of at least 1, got 0"),
        ({"test_share": 1}, "test_share must lie between 0 and 1, got 1"),
        ({"y_test": Y}, "y_test was given without X_test"),
        ({"X_test": X}, "X_test was given without y_test, and no schema"),
        ({"X": X[:80], "y": Y[:80]}, "80 rows are too few to hold some out: give X_test"),
        ({"y": Y.select("fraud")}, "transfer is between tasks: give labels of at least two"),
        ({"model": MultiTaskClassifier("single_task")}, "model trains no tasks together"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"X": X, "y": Y, "model": MultiTaskClassifier(**SMALL), **options}
    with pytest.raises(ValueError, match=message):
        transfer_report(**arguments)


def test_trees_share_nothing() -> None:
    with pytest.raises(TypeError, match="must be a MultiTaskClassifier, got LightGBMBaseline"):
        transfer_report(X, Y, model=LightGBMBaseline())  # type: ignore[arg-type]


@pytest.mark.slow
def test_negative_transfer_is_named() -> None:
    """One shared unit that the head with all the weight takes for itself."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12_000, 4))
    risks = {"loud": 2 * rows[:, 0], "hurt": 2 * rows[:, 1]}
    y = pl.DataFrame({t: rng.random(len(rows)) < 1 / (1 + np.exp(1 - r)) for t, r in risks.items()})
    model = MultiTaskClassifier(
        **{**SMALL, "shared_units": [1], "epochs": 4},
        task_weights={"loud": 1.0, "hurt": 1e-4},
        few_events=0,
    )
    report = transfer_report(pl.DataFrame(rows), y, model=model)
    assert report.verdicts["hurt"] == HURT
    assert report.verdicts["loud"] != HURT
