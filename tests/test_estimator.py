"""The network behind scikit-learn's fit and predict."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from riskmtl import (
    LightGBMBaseline,
    LogisticBaseline,
    MultiTaskClassifier,
    load_schema,
    simulate_portfolio,
)
from riskmtl.holdout import latest_rows
from riskmtl.metrics import brier, roc_auc
from riskmtl.schema import Column, DataError, DataSchema, Task

SMALL: dict[str, Any] = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": (16,),
    "tower_units": (8,),
    "embedding_dim": 4,
    "bins": 8,
    "dropout": 0.0,
    "batch_size": 32,
    "learning_rate": 0.01,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}


def small(**changes: Any) -> MultiTaskClassifier:
    return MultiTaskClassifier(**{**SMALL, "epochs": 4, **changes})


def portfolio(n: int = 600, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two tasks driven by the same amount, both partly unobserved."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    country = rng.choice(["FR", "DE", "IT"], n)
    chance = 1 / (1 + np.exp(1.5 - 2.5 * amount - (country == "IT")))
    X = pl.DataFrame({"amount": amount, "country": country, "noise": rng.normal(size=n)})
    y = pl.DataFrame({name: (rng.random(n) < chance).astype(int) for name in ("default", "fraud")})
    hidden = pl.Series(rng.random(n) < 0.3)
    return X, y.with_columns(fraud=pl.when(hidden).then(None).otherwise("fraud"))


X, Y = portfolio()
FIRST = pl.Series(range(600)).clip(0, 1).cast(float)
DAYS = pl.duration(days=pl.int_range(600))


@pytest.fixture(scope="module")
def model() -> MultiTaskClassifier:
    return small(epochs=6).fit(X, Y)


# ---- scikit-learn's own checks -------------------------------------------------------------------


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    reasons = {
        "check_classifier_multioutput": (
            "classes_ is a list with an array per task, as in scikit-learn's forests; the check "
            "indexes it as one array"
        )
    }
    if isinstance(estimator, MultiTaskClassifier):
        reasons["check_methods_subset_invariance"] = (
            "in float32 a batch of another shape adds up in another order: 1e-7 of a log-odds"
        )
    if not isinstance(estimator, LightGBMBaseline):
        reasons["check_sample_weight_equivalence_on_dense_data"] = (
            "with repeated rows the batches of a stochastic training, and the scale of the inputs, "
            "are others than with weights"
        )
    return reasons


@parametrize_with_checks(
    [
        # Accuracy on 30-row toy data takes more steps than a default fit of a large table.
        MultiTaskClassifier(**SMALL, epochs=40, patience=40),
        LightGBMBaseline(trials=1, n_jobs=1, random_state=0),
        LogisticBaseline(random_state=0),
    ],
    expected_failed_checks=expected_failures,
    # Whether rounding shows depends on the machine.
    xfail_strict=False,
)
def test_scikit_learns_checks(estimator: BaseEstimator, check: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        # The checks themselves fit constant columns and frames without names.
        warnings.filterwarnings("ignore", message="column .* in every training row")
        check(estimator)


# ---- answers -------------------------------------------------------------------------------------


def test_probabilities_rank_and_have_a_column_per_task(model: MultiTaskClassifier) -> None:
    new, labels = portfolio(seed=1)
    found = model.predict_proba(new)
    assert found.shape == (600, 2)
    assert model.tasks_ == ["default", "fraud"]
    assert ((found > 0) & (found < 1)).all()
    for i, task in enumerate(model.tasks_):
        assert roc_auc(labels[task].cast(float).fill_null(np.nan).to_numpy(), found[:, i]) > 0.8


def test_the_answers_agree_with_each_other(model: MultiTaskClassifier) -> None:
    probability, margin = model.predict_proba(X), model.decision_function(X)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-margin)))
    np.testing.assert_array_equal(model.predict(X), (margin > 0).astype(int))
    frame = model.predict_frame(X)
    assert frame.columns == ["default", "fraud"]
    np.testing.assert_array_equal(frame.to_numpy(), probability)


@pytest.mark.parametrize(
    "convert",
    [
        pl.DataFrame.lazy,
        pl.DataFrame.to_arrow,
        lambda frame: pd.DataFrame(frame.to_dict(as_series=False)),
        lambda frame: frame.select(reversed(frame.columns)),
    ],
    ids=["lazy", "arrow", "pandas", "reordered"],
)
def test_any_table_in_any_column_order_scores_alike(
    model: MultiTaskClassifier, convert: Any
) -> None:
    np.testing.assert_array_equal(model.predict_proba(convert(X)), model.predict_proba(X))


def test_row_order_and_batches_change_nothing(model: MultiTaskClassifier) -> None:
    order = np.random.default_rng(0).permutation(X.height)
    whole = model.predict_proba(X)
    np.testing.assert_allclose(model.predict_proba(X[order]), whole[order], atol=1e-6)
    parts = [model.predict_proba(part) for part in X.iter_slices(97)]
    np.testing.assert_allclose(np.vstack(parts), whole, atol=1e-6)


def test_new_categories_and_missing_values_are_scored(model: MultiTaskClassifier) -> None:
    new = pl.DataFrame(
        {"amount": [None, 1e9], "country": ["XX", None], "noise": [0.0, float("nan")]}
    )
    assert np.isfinite(model.predict_proba(new)).all()


def test_one_column_of_labels_follows_scikit_learns_binary_form() -> None:
    fitted = small().fit(X, Y["default"])
    assert fitted.predict_proba(X).shape == (600, 2)
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)
    assert fitted.decision_function(X).shape == (600,)
    assert fitted.tasks_ == ["default"]
    as_table = small().fit(X, Y.select("default"))
    assert as_table.predict_proba(X).shape == (600, 1)
    np.testing.assert_array_equal(as_table.predict_proba(X)[:, 0], fitted.predict_proba(X)[:, 1])


@pytest.mark.parametrize(
    ("negative", "positive"), [("no", "yes"), (False, True), (-1, 7), (0.5, 2.5)]
)
def test_any_two_labels_will_do(negative: Any, positive: Any) -> None:
    labels = np.where(Y["default"].to_numpy() == 1, positive, negative)
    fitted = small(epochs=1).fit(X, labels)
    plain = small(epochs=1).fit(X, Y["default"])
    assert list(fitted.classes_) == [negative, positive]
    np.testing.assert_array_equal(fitted.predict_proba(X), plain.predict_proba(X))
    assert set(fitted.predict(X)) <= {negative, positive}


def test_labels_of_words_beside_numbers_stay_what_they_are() -> None:
    labels = Y.select(
        pl.when(pl.col("default") == 1).then(pl.lit("bad")).otherwise(pl.lit("good")), "fraud"
    )
    found = small(epochs=1).fit(X, labels).predict(X)
    assert set(found[:, 0]) <= {"bad", "good"}
    assert set(found[:, 1]) <= {0, 1}


def test_a_value_behind_the_mask_changes_nothing() -> None:
    schema = DataSchema(
        "s",
        (Column("amount", "number", "numeric"), Column("approved", "boolean", "ignored")),
        (Task("default", "default", where={"approved": (True,)}),),
    )
    approved = np.random.default_rng(0).random(600) < 0.6
    table = X.select("amount").with_columns(
        approved=pl.Series(approved), default=Y["default"].cast(int)
    )
    other = table.with_columns(
        default=pl.when("approved").then("default").otherwise(1 - pl.col("default"))
    )
    one, two = small(schema=schema).fit(table), small(schema=schema).fit(other)
    np.testing.assert_array_equal(one.predict_proba(table), two.predict_proba(table))


def test_regression_heads_are_auxiliary() -> None:
    labels = Y.with_columns(loss=X["amount"] * 1000 + 5000)
    fitted = small(epochs=8, patience=8, regression_tasks=["loss"]).fit(X, labels)
    assert fitted.tasks_ == ["default", "fraud"]
    assert fitted.predict_proba(X).shape == (600, 2)
    frame = fitted.predict_frame(X)
    assert frame.columns == ["default", "fraud", "loss"]
    assert np.corrcoef(frame["loss"], labels["loss"])[0, 1] > 0.9
    assert 3000 < frame["loss"].mean() < 7000


# ---- probabilities stay right --------------------------------------------------------------------


def rare(n: int, seed: int) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    chance = 1 / (1 + np.exp(4 - 1.2 * amount))
    return pl.DataFrame({"amount": amount}), (rng.random(n) < chance).astype(int), chance


@pytest.mark.parametrize("event_weight", ["balanced", {"y": 25.0}])
def test_reweighted_events_are_corrected_for(event_weight: Any) -> None:
    table, labels, _ = rare(8000, seed=0)
    new, _, chance = rare(4000, seed=1)
    fitted = small(event_weight=event_weight, calibrate=False, epochs=8).fit(table, labels)
    found = fitted.predict_proba(new)[:, 1]
    assert found.mean() == pytest.approx(chance.mean(), rel=0.25)
    head = fitted.model_.heads[0]
    assert head.shift > 2
    raw = fitted.model_.scorer.raw(fitted.model_.encode(new))[:, 0]
    assert (1 / (1 + np.exp(-raw))).mean() > 5 * chance.mean()


def test_calibration_is_fitted_where_events_suffice_and_says_where_not() -> None:
    table, labels, _ = rare(20_000, seed=0)
    few = np.where(np.arange(20_000) < 300, labels.astype(float), np.nan)
    fitted = small(epochs=1).fit(table, pl.DataFrame({"many": labels, "few": few}))
    many, scarce = (head.calibrator for head in fitted.model_.heads)
    assert many.is_fitted
    assert not scarce.is_fitted
    assert "of at least 50 events" in scarce.note


def test_calibration_repairs_the_scale() -> None:
    table, labels, _ = rare(20_000, seed=0)
    new, new_labels, _ = rare(20_000, seed=1)
    # One epoch at a large rate is far from calibrated.
    options = {"epochs": 1, "learning_rate": 0.05}
    plain = small(calibrate=False, **options).fit(table, labels).predict_proba(new)[:, 1]
    mapped = small(calibrate=True, **options).fit(table, labels).predict_proba(new)[:, 1]
    truth = new_labels.astype(float)
    assert brier(truth, mapped) <= brier(truth, plain)
    assert roc_auc(truth, mapped) == pytest.approx(roc_auc(truth, plain))


# ---- held-out rows -------------------------------------------------------------------------------


def test_validation_rows_are_used_as_given() -> None:
    new, labels = portfolio(seed=1)
    given = small().fit(X, Y, X_val=new, y_val=labels)
    again = small().fit(X, Y, X_val=new, y_val=labels.select("fraud", "default"))
    np.testing.assert_array_equal(given.predict_proba(X), again.predict_proba(X))
    assert not np.array_equal(given.predict_proba(X), small().fit(X, Y).predict_proba(X))


def test_without_a_time_the_share_held_out_is_stratified() -> None:
    fitted = small(epochs=1).fit(X, Y)
    events = int(Y["default"].sum() * 0.15)
    assert fitted.model_.heads[0].calibrator.events == pytest.approx(events, abs=2)


def test_with_a_time_the_latest_rows_are_held_out() -> None:
    moments = pl.Series([dt.datetime(2024, 1, 1) + dt.timedelta(days=i) for i in range(100)])
    y = np.zeros((100, 2))
    chosen = latest_rows(y, moments, share=0.2)
    assert chosen[80:].all()
    assert not chosen[:79].any()
    # Outcomes of the last 30 days are not known: the part begins earlier, so that some are.
    y[70:, 1] = np.nan
    chosen = latest_rows(y, moments, share=0.2)
    assert chosen[56:].all()
    assert not chosen[:55].any()


def test_fewer_rows_than_can_be_held_out_still_fit() -> None:
    fitted = small(epochs=1).fit(X[:40], Y["default"][:40])
    assert fitted.model_.heads[0].calibrator.note == "not fitted: no rows were held out"


def test_the_challenger_holds_out_the_same_rows() -> None:
    generator = np.random.RandomState(3)
    fitted = small(
        epochs=1, random_state=generator, challenger="lightgbm", challenger_options={"trials": 1}
    ).fit(X, Y)
    network, trees = fitted.model_.lineage, fitted.challenger_.model_.lineage
    assert network["seed"] == trees["seed"]
    assert network["data_sha256"] == trees["data_sha256"]
    assert not hasattr(fitted.set_params(challenger=None).fit(X, Y), "challenger_")


# ---- within scikit-learn's tools -----------------------------------------------------------------


def test_parameters_are_stored_untouched_and_cloned() -> None:
    units = [16]
    estimator = small(shared_units=units, event_weight={"fraud": 2})
    assert estimator.get_params()["shared_units"] is units
    copy = clone(estimator.fit(X, Y))
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "model_")
    assert estimator.set_params(dropout=0.5).dropout == 0.5


def test_same_seed_same_probabilities() -> None:
    one, two = small().fit(X, Y), small().fit(X, Y)
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))


def test_a_pipeline_with_named_output() -> None:
    numbers = X.select("amount", "noise")
    pipeline = make_pipeline(StandardScaler().set_output(transform="polars"), small())
    pipeline.fit(numbers, Y["default"])
    assert list(pipeline[-1].feature_names_in_) == ["amount", "noise"]
    assert pipeline.score(numbers, Y["default"]) > 0.75


def test_grid_search_with_an_explicit_splitter_and_missing_labels() -> None:
    search = GridSearchCV(
        small(epochs=2), {"embedding_dim": [2, 4]}, cv=KFold(2), error_score="raise"
    )
    search.fit(X, Y)
    assert search.best_score_ > 0.6


def test_score_is_the_mean_auc_of_the_tasks(model: MultiTaskClassifier) -> None:
    new, labels = portfolio(seed=1)
    margins = model.decision_function(new)
    observed = labels.cast(float).fill_null(np.nan).to_numpy()
    expected = np.mean([roc_auc(observed[:, i], margins[:, i]) for i in range(2)])
    assert model.score(new, labels) == pytest.approx(expected)


# ---- with a schema -------------------------------------------------------------------------------


def test_a_schema_reads_inputs_labels_and_time() -> None:
    schema = load_schema("data_schemas/risk_portfolio.yaml")
    train, validation, test = schema.split(simulate_portfolio(8000, seed=0).frame)
    fitted = small(schema=schema, challenger="lightgbm", challenger_options={"trials": 1}).fit(
        train, X_val=validation
    )
    assert fitted.tasks_ == ["default", "fraud", "takeover"]
    assert fitted.challenger_.tasks_ == fitted.tasks_
    assert fitted.predict_proba(test).shape == (test.height, 3)
    assert fitted.score(test) > 0.55
    without_labels = test.drop("default", "fraud", "takeover", "approved")
    np.testing.assert_array_equal(fitted.predict_proba(without_labels), fitted.predict_proba(test))


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "pel"}, "unknown network 'pel': did you mean 'ple'"),
        ({"numeric_embedding": "periodical"}, "did you mean 'periodic'"),
        ({"monitor": "auc"}, "unknown monitor 'auc'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"shared_units": 16}, "shared_units must be a sequence"),
        ({"shared_units": ()}, "shared_units must be a sequence"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"learning_rate": -1}, "learning_rate must be a positive number"),
        ({"validation_share": 1.5}, "validation_share must lie between 0 and 1"),
        ({"event_weight": "balance"}, "did you mean 'balanced'"),
        ({"event_weight": {"frod": 2}}, "event_weight: unknown task 'frod': did you mean 'fraud'"),
        ({"task_weights": {"fraud": 0}}, "task_weights of 'fraud' must be a positive number"),
        ({"members": 0}, "members must be a whole number of at least 1, got 0"),
        ({"members": 2.0}, "members must be a whole number of at least 1, got 2.0"),
        ({"challenger": "lightgmb"}, "did you mean 'lightgbm'"),
        ({"challenger": "blended"}, "unknown challenger 'blended': did you mean 'blend'"),
        (
            {"challenger": "lightgbm", "challenger_options": {"trial": 1}},
            "challenger_options: unknown option 'trial': did you mean 'trials'",
        ),
        ({"regression_tasks": ["los"]}, "regression_tasks: unknown task 'los'"),
        ({"categorical_features": ["contry"]}, "unknown column 'contry': did you mean 'country'"),
    ],
)
def test_a_wrong_parameter_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options).fit(X, Y)


@pytest.mark.parametrize(
    ("table", "labels", "message"),
    [
        (X, None, "requires y to be passed"),
        (X, Y[:5], "inconsistent numbers of samples"),
        (X, Y.with_columns(fraud=pl.lit(None)), "task 'fraud' has no observed label"),
        (X, Y.with_columns(fraud=pl.lit(1)), "task 'fraud' has only one class"),
        (X, Y.with_columns(fraud=pl.Series(range(600))), "'fraud' holds 600 values"),
        (X[:1], Y["default"][:1], "has only one class"),
        (X[:0], Y[:0], "the table has no rows"),
        (X.with_columns(amount=1 / FIRST), Y, "column 'amount' holds inf in row 0"),
        (X.with_columns(amount=1e300 * FIRST), Y, "column 'amount' holds 1e\\+300 in row 1"),
        (X.with_columns(day=dt.date(2024, 1, 1) + DAYS), Y, "column 'day' is Date, not a number"),
    ],
)
def test_wrong_rows_are_named(table: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(epochs=1).fit(table, labels)


def test_a_missing_or_extra_column_is_named(model: MultiTaskClassifier) -> None:
    with pytest.raises(ValueError, match="column 'country' is missing"):
        model.predict_proba(X.drop("country"))
    with pytest.raises(ValueError, match="column 'more' was not there in training"):
        model.predict_proba(X.with_columns(more=1))


def test_a_constant_column_warns_without_a_schema_and_fails_with_one() -> None:
    constant = X.with_columns(noise=pl.lit(1.0))
    with pytest.warns(UserWarning, match="column 'noise' has one value in every training row"):
        small(epochs=1).fit(constant, Y)
    schema = DataSchema("s", (Column("noise", "number", "numeric"),), (Task("default", "default"),))
    with pytest.raises(DataError, match="column 'noise' holds one value in all training rows"):
        small(schema=schema).fit(constant.with_columns(Y))


def test_an_estimator_that_is_not_fitted_says_so() -> None:
    from sklearn.exceptions import NotFittedError

    for method in ("predict_proba", "predict", "decision_function", "predict_frame"):
        with pytest.raises(NotFittedError):
            getattr(small(), method)(X)


def test_a_task_weighs_as_much_as_it_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    from riskmtl.training import fit as training

    plans = []
    train = training.train

    def noted(shape: Any, cardinalities: Any, plan: Any, *rest: Any) -> Any:
        plans.append(plan)
        return train(shape, cardinalities, plan, *rest)

    monkeypatch.setattr(training, "train", noted)
    rows = pl.DataFrame({"x": [float(i % 7) for i in range(80)]})
    few = pl.DataFrame({"often": [0, 1] * 40, "seldom": [0, 1] * 10 + [None] * 60})
    small(epochs=1).fit(rows, few)
    small(epochs=1, task_weights={"seldom": 3.0}).fit(rows, few)
    assert plans[0].weights == pytest.approx((1.0, 0.25))
    assert plans[1].weights == pytest.approx((1.0, 3.0))
