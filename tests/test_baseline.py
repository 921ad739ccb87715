"""The challengers: the same face, their own traps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from riskmtl import LightGBMBaseline, LogisticBaseline, MultiTaskClassifier
from riskmtl.metrics import roc_auc

CHALLENGERS = {
    "lightgbm": LightGBMBaseline(trials=1, n_estimators=60, n_jobs=1, random_state=0),
    "logistic": LogisticBaseline(random_state=0),
}


def portfolio(n: int = 2000, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two tasks; the country matters as much as the amount."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    country = rng.integers(0, 4, n)
    chance = 1 / (1 + np.exp(1 - 1.5 * amount - np.array([-1.5, 0, 1.5, 0])[country]))
    X = pl.DataFrame(
        {
            "amount": np.where(rng.random(n) < 0.1, np.nan, amount),
            "country": pl.Series(np.array(["FR", "DE", "IT", "ES"])[country]),
            "noise": rng.normal(size=n),
        }
    )
    y = pl.DataFrame(
        {name: (rng.random(n) < chance).astype(float) for name in ("default", "fraud")}
    )
    hidden = pl.Series(rng.random(n) < 0.4)
    return X, y.with_columns(fraud=pl.when(hidden).then(None).otherwise("fraud"))


X, Y = portfolio()


@pytest.fixture(scope="module", params=CHALLENGERS)
def challenger(request: pytest.FixtureRequest) -> Any:
    return CHALLENGERS[request.param].fit(X, Y)


def test_challengers_have_the_networks_face(challenger: Any) -> None:
    new, labels = portfolio(seed=1)
    found = challenger.predict_proba(new)
    assert found.shape == (2000, 2)
    assert challenger.tasks_ == ["default", "fraud"]
    for i, task in enumerate(challenger.tasks_):
        observed = labels[task].fill_null(np.nan).to_numpy()
        assert roc_auc(observed, found[:, i]) > 0.8
    assert challenger.predict_frame(new).columns == challenger.tasks_
    assert challenger.score(new, labels) > 0.8
    shared = {"fit", "predict", "predict_proba", "predict_frame", "decision_function"}
    for name in shared | {"save", "load", "score", "read_labels", "explain"}:
        assert hasattr(MultiTaskClassifier, name)
        assert hasattr(challenger, name)


def test_polars_categories_do_not_abort_the_process() -> None:
    # Handed to LightGBM as they are, these end the process with a signal, not an exception.
    code = """
import numpy as np, polars as pl
from riskmtl import LightGBMBaseline
for kind in (pl.String, pl.Categorical, pl.Enum(["FR", "DE", "IT", "ES"])):
    table = pl.DataFrame({"country": pl.Series(["FR", "DE", "IT", "ES"] * 100).cast(kind)})
    model = LightGBMBaseline(trials=1, n_estimators=5, n_jobs=1, random_state=0)
    model.fit(table, np.array([0, 1, 0, 0] * 100))
    print(model.predict_proba(table)[:4, 1].argmax())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "1"]


def test_column_order_is_put_right(challenger: Any) -> None:
    np.testing.assert_array_equal(
        challenger.predict_proba(X.select("noise", "country", "amount")),
        challenger.predict_proba(X),
    )


def test_unobserved_labels_are_no_negatives(challenger: Any) -> None:
    # With the unobserved third of the events hidden at random, the rate must not fall.
    new, labels = portfolio(seed=1)
    rate = labels["fraud"].drop_nulls().mean()
    assert challenger.predict_proba(new)[:, 1].mean() == pytest.approx(rate, rel=0.1)
    seen = Y["fraud"].is_not_null()
    alone = CHALLENGERS[challenger.model_.scorer.name]
    again = type(alone)(**alone.get_params()).fit(
        X.filter(seen), Y["fraud"].filter(seen), X_val=X.filter(seen), y_val=Y["fraud"].filter(seen)
    )
    both = type(alone)(**alone.get_params()).fit(X, Y, X_val=X, y_val=Y)
    assert again.predict_proba(X)[:, 1].mean() == pytest.approx(
        both.predict_proba(X)[:, 1].mean(), rel=0.05
    )


@pytest.mark.parametrize("name", ['a"b', "{x: 1}", "a:b", "a[0]", "a,b", "größe in €", " "])
def test_any_column_name_will_do(challenger: Any, name: str) -> None:
    odd = X.rename({"amount": name})
    again = type(challenger)(**challenger.get_params()).fit(odd, Y)
    np.testing.assert_array_equal(again.predict_proba(odd), challenger.predict_proba(X))


def test_trees_equal_lightgbm_on_the_same_rows() -> None:
    model = LightGBMBaseline(
        trials=1, n_estimators=40, calibrate=False, n_jobs=1, random_state=0
    ).fit(X, Y["default"], X_val=X, y_val=Y["default"])
    encoded = model.model_.encode(X)
    settings = {k: v for k, v in model.best_params_["default"].items() if k in _LIGHTGBM_NAMES}
    data = lightgbm.Dataset(encoded, Y["default"].to_numpy(), categorical_feature=[1])
    booster = lightgbm.train(
        {
            **settings,
            "objective": "binary",
            "bagging_freq": 1,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbose": -1,
        },
        data,
        model.best_params_["default"]["trees"],
    )
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], booster.predict(encoded), atol=1e-12)


_LIGHTGBM_NAMES = (
    "learning_rate",
    "num_leaves",
    "min_data_in_leaf",
    "feature_fraction",
    "bagging_fraction",
    "lambda_l2",
    "cat_smooth",
)


def test_the_search_is_seeded_and_keeps_the_lowest_validation_loss() -> None:
    options: dict[str, Any] = {"trials": 4, "n_estimators": 30, "n_jobs": 1}
    one = LightGBMBaseline(**options, random_state=3).fit(X, Y)
    two = LightGBMBaseline(**options, random_state=3).fit(X, Y)
    other = LightGBMBaseline(**options, random_state=4).fit(X, Y)
    assert one.trials_ == two.trials_
    assert one.trials_["default"][1] != other.trials_["default"][1]
    for task in one.tasks_:
        assert len(one.trials_[task]) == 4
        losses = [trial["validation_loss"] for trial in one.trials_[task]]
        assert one.best_params_[task]["validation_loss"] == min(losses)
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))


# ---- settings from an earlier search -------------------------------------------------------------

SEARCH: dict[str, Any] = {
    "n_estimators": 40,
    "n_jobs": 1,
    "random_state": 3,
    "regression_tasks": ["loss"],
}
LABELS = Y.with_columns(loss=X["noise"] * 100 + 1000)


@pytest.fixture(scope="module")
def searched() -> LightGBMBaseline:
    return LightGBMBaseline(**SEARCH, trials=4).fit(X, LABELS)


def test_settings_found_earlier_give_the_same_model_at_once(searched: LightGBMBaseline) -> None:
    kept = [searched.trials_[task].index(best) for task, best in searched.best_params_.items()]
    assert any(kept), "the search must have found other settings than the first"
    again = LightGBMBaseline(**SEARCH, trials=1, settings=searched.best_params_).fit(X, LABELS)
    assert again.predict_frame(X).equals(searched.predict_frame(X))
    assert again.model_.scorer.models == searched.model_.scorer.models
    assert again.best_params_ == searched.best_params_
    assert again.trials_ == {task: [best] for task, best in searched.best_params_.items()}
    assert [h.calibrator for h in again.model_.heads] == [
        h.calibrator for h in searched.model_.heads
    ]


def test_further_trials_are_the_random_ones_of_any_search(searched: LightGBMBaseline) -> None:
    given = {"default": {"num_leaves": 3, "learning_rate": 0.2}}
    model = LightGBMBaseline(**SEARCH, trials=2, settings=given).fit(X, LABELS)
    found = ("trees", "validation_loss")
    for task, trials in model.trials_.items():
        assert len(trials) == 2
        # The sound settings stay where nothing else is said.
        first = {**searched.trials_[task][0], **given.get(task, {})}
        assert {k: v for k, v in trials[0].items() if k not in found} == {
            k: v for k, v in first.items() if k not in found
        }
        assert trials[1] == searched.trials_[task][1]
    assert model.trials_["fraud"][0] == searched.trials_["fraud"][0]
    assert model.trials_["default"][0] != searched.trials_["default"][0]


def test_settings_given_are_not_changed(searched: LightGBMBaseline) -> None:
    given = {task: dict(best) for task, best in searched.best_params_.items()}
    model = LightGBMBaseline(**SEARCH, trials=1, settings=given)
    model.fit(X, LABELS)
    assert model.get_params()["settings"] is given
    assert given == searched.best_params_
    assert clone(model).settings == given


def test_settings_come_back_from_disk(searched: LightGBMBaseline, tmp_path: Path) -> None:
    model = LightGBMBaseline(**SEARCH, trials=1, settings=searched.best_params_).fit(X, LABELS)
    model.save(tmp_path / "model")
    loaded = LightGBMBaseline.load(tmp_path / "model")
    assert loaded.settings == searched.best_params_
    loaded.set_params(n_jobs=1).fit(X, LABELS)
    assert loaded.predict_frame(X).equals(searched.predict_frame(X))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"defualt": {}}, "settings: unknown task 'defualt': did you mean 'default'"),
        (
            {"fraud": {"num_leafs": 5}},
            "settings of 'fraud': unknown setting 'num_leafs': did you mean 'num_leaves'",
        ),
        ({"fraud": {"objective": "l2"}}, "settings of 'fraud': unknown setting 'objective'"),
    ],
)
def test_unknown_settings_are_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightGBMBaseline(trials=1, n_jobs=1, settings=given).fit(X, Y)


@pytest.mark.parametrize("given", [3, ["default"], {"default": 3}, {"default": None}], ids=str)
def test_settings_that_are_no_mapping_are_named(given: Any) -> None:
    with pytest.raises(ValueError, match="settings"):
        LightGBMBaseline(trials=1, n_jobs=1, settings=given).fit(X, Y)


def test_the_time_budget_is_kept() -> None:
    model = LightGBMBaseline(trials=1000, max_seconds=0.5, n_jobs=1, random_state=0).fit(X, Y)
    assert all(1 <= len(trials) < 1000 for trials in model.trials_.values())


def test_logistic_equals_scikit_learns_on_numbers() -> None:
    numbers = X.select("noise").with_columns(amount=X["amount"].fill_nan(0.0))
    model = LogisticBaseline(strengths=[0.1], calibrate=False).fit(
        numbers, Y["default"], X_val=numbers, y_val=Y["default"]
    )
    values = numbers.to_numpy()
    clipped = np.clip(values, *np.quantile(values, [0.005, 0.995], axis=0))
    scaled = (clipped - clipped.mean(0)) / clipped.std(0)
    expected = LogisticRegression(C=0.1).fit(scaled, Y["default"]).predict_proba(scaled)[:, 1]
    np.testing.assert_allclose(model.predict_proba(numbers)[:, 1], expected, atol=2e-3)


def test_a_task_not_observed_in_validation_still_fits(challenger: Any) -> None:
    blind = Y.with_columns(fraud=pl.lit(None, pl.Float64))
    again = type(challenger)(**challenger.get_params()).fit(X, Y, X_val=X, y_val=blind)
    assert np.isfinite(again.predict_proba(X)).all()


def test_regression_tasks_fit_trees_too() -> None:
    labels = Y.with_columns(loss=X["noise"] * 100 + 1000)
    model = LightGBMBaseline(
        trials=1, n_estimators=60, regression_tasks=["loss"], n_jobs=1, random_state=0
    ).fit(X, labels)
    assert model.tasks_ == ["default", "fraud"]
    found = model.predict_frame(X)["loss"]
    assert np.corrcoef(found, labels["loss"])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LightGBMBaseline(trials=0), "trials must be a whole number of at least 1"),
        (LightGBMBaseline(max_seconds=0), "max_seconds must be positive"),
        (LogisticBaseline(strengths=[]), "strengths must be positive numbers"),
    ],
)
def test_a_wrong_parameter_is_named(estimator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator.fit(X, Y)
