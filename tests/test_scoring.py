"""Scoring: the same scores whatever the batches, and a reason for each row without one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from riskmtl import DataSchema, LightGBMBaseline, LogisticBaseline, MultiTaskClassifier, RiskModel
from riskmtl.explain.reasons import reasons_of
from riskmtl.grades import grades_of
from riskmtl.schema import DataError
from riskmtl.scoring.batches import ScoreSettings, score_batches
from riskmtl.simulate import Portfolio

TASKS = ["default", "fraud", "takeover"]


@pytest.fixture(scope="module")
def network(model_folder: Path) -> RiskModel:
    return RiskModel.load(model_folder)


@pytest.fixture(scope="module")
def logistic(cards: pl.DataFrame, cards_schema: DataSchema) -> RiskModel:
    fitted = LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards)
    return fitted.model_


@pytest.fixture(scope="module")
def trees(cards: pl.DataFrame, cards_schema: DataSchema) -> RiskModel:
    fitted = LightGBMBaseline(
        schema=cards_schema, trials=1, n_estimators=10, n_jobs=1, random_state=0
    ).fit(cards)
    return fitted.model_


def batches(frame: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    return (frame.slice(start, size) for start in range(0, frame.height, size))


def scores_of(model: RiskModel, tables: Any) -> pl.DataFrame:
    return pl.concat([batch.scores for batch in score_batches(model, tables)])


def assert_same(scores: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Scores and probabilities agree to 1e-6, task by task."""
    names = {name: name.removeprefix("p_") for name in scores.columns if name.startswith("p_")}
    assert list(names.values()) == expected.columns
    difference = scores.select(names.keys()).to_numpy() - expected.to_numpy()
    assert difference.shape[0] == expected.height
    assert np.abs(difference).max() <= 1e-6


# ---- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000, 1025, 6000, 10_000])
def test_scores_do_not_depend_on_the_batch_size(
    network: RiskModel, portfolio: Portfolio, size: int
) -> None:
    frame = portfolio.frame.head(20) if size == 1 else portfolio.frame.head(60 * size)
    scores = scores_of(network, batches(frame, size))
    assert_same(scores, network.predict_frame(frame))
    keys = ["account_id", "snapshot_date"]
    assert [name for name in scores.columns if name.startswith("p_")] == [f"p_{t}" for t in TASKS]
    assert scores["_row"].to_list() == list(range(frame.height))
    assert_frame_equal(scores.select(keys), frame.select(keys))


def test_scores_are_those_of_the_estimator(
    network: RiskModel, trained: MultiTaskClassifier, portfolio: Portfolio
) -> None:
    scores = scores_of(network, [portfolio.frame])
    assert_same(scores, trained.predict_frame(portfolio.frame))
    assert np.abs(
        scores.select("p_default", "p_fraud", "p_takeover").to_numpy()
        - trained.predict_proba(portfolio.frame)
    ).max() <= 1e-6  # fmt: skip


@pytest.mark.parametrize("kind", ["logistic", "trees"])
@pytest.mark.parametrize("size", [1, 150])
def test_challengers_score_in_batches_too(
    request: pytest.FixtureRequest, cards: pl.DataFrame, kind: str, size: int
) -> None:
    model = request.getfixturevalue(kind)
    assert_same(scores_of(model, batches(cards, size)), model.predict_frame(cards))


def test_scores_do_not_depend_on_the_other_rows(network: RiskModel, portfolio: Portfolio) -> None:
    frame = portfolio.frame.head(50)
    scores = scores_of(network, [frame.reverse()])
    assert_same(scores.reverse(), network.predict_frame(frame))


FORMS: dict[str, Callable[[pl.DataFrame], Any]] = {
    "pandas": lambda frame: frame.to_pandas(),
    "pandas, Arrow types": lambda frame: frame.to_pandas(use_pyarrow_extension_array=True),
    "Arrow table": lambda frame: frame.to_arrow(),
    "Arrow batch": lambda frame: frame.to_arrow().combine_chunks().to_batches()[0],
    "lazy": lambda frame: frame.lazy(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_tables_of_other_libraries_score_the_same(
    network: RiskModel, portfolio: Portfolio, form: Callable[[pl.DataFrame], Any]
) -> None:
    frame = portfolio.frame.head(300)
    scored = list(score_batches(network, [form(frame.head(200)), form(frame.tail(100))]))
    assert [batch.quarantine.height for batch in scored] == [0, 0]
    assert_same(pl.concat([b.scores for b in scored]), network.predict_frame(frame))


@pytest.mark.parametrize("form", list(FORMS)[:4])
def test_a_small_table_of_other_libraries_scores_the_same(
    logistic: RiskModel, cards: pl.DataFrame, form: str
) -> None:
    scored = next(score_batches(logistic, [FORMS[form](cards)]))
    assert scored.quarantine.height == 0
    assert_same(scored.scores, logistic.predict_frame(cards))


@pytest.mark.parametrize("missing", [None, float("nan"), -9.0])
def test_missing_is_missing_in_every_form(
    logistic: RiskModel, cards: pl.DataFrame, missing: float | None
) -> None:
    """NaN is how pandas says null: a column with a maximum must not refuse it."""
    frame = cards.head(20).with_columns(pl.lit(missing, pl.Float64).alias("amount"))
    expected = logistic.predict_frame(cards.head(20).with_columns(amount=pl.lit(None, pl.Float64)))
    scored = next(score_batches(logistic, [frame]))
    assert scored.quarantine["_rule"].to_list() == []
    assert_same(scored.scores, expected)


def test_whole_numbers_may_come_as_floats(network: RiskModel, portfolio: Portfolio) -> None:
    """So they come from pandas wherever a value is missing, missing codes among them."""
    frame = portfolio.frame.head(300)
    whole = [name for name, dtype in frame.schema.items() if dtype.is_integer()]
    scored = next(score_batches(network, [frame.cast(dict.fromkeys(whole, pl.Float64))]))
    assert_same(scored.scores, network.predict_frame(frame))


def test_new_categories_and_missing_values_are_no_errors(
    network: RiskModel, portfolio: Portfolio
) -> None:
    frame = portfolio.frame.head(50).with_columns(
        pl.lit("never seen").alias("dev_model"),
        pl.lit(None).alias("txn_main_merchant"),
        pl.lit(None, pl.Float64).alias("txn_amount_sum"),
    )
    scored = next(score_batches(network, [frame]))
    assert scored.quarantine.height == 0
    values = scored.scores.select("p_default", "p_fraud", "p_takeover").to_numpy()
    assert np.isfinite(values).all()
    # What is new to the model must not move every row to the same score.
    assert len(np.unique(values[:, 0])) > 40


def test_refused_rows_are_counted_over_all_batches(
    network: RiskModel, portfolio: Portfolio
) -> None:
    bad_rows = [3, 250, 251, 599]
    frame = portfolio.frame.head(600).with_columns(
        acc_age=pl.when(pl.int_range(pl.len()).is_in(bad_rows)).then(0).otherwise("acc_age")
    )
    scored = list(score_batches(network, batches(frame, 200)))
    quarantine = pl.concat([batch.quarantine for batch in scored])
    assert quarantine["_row"].to_list() == bad_rows
    assert set(quarantine["_rule"]) == {"acc_age: below 18"}
    assert_frame_equal(quarantine.drop("_row", "_rule"), frame[bad_rows])
    assert [batch.scores.height for batch in scored] == [200, 200, 200]
    scores = pl.concat([b.scores for b in scored])
    assert scores["quarantined"].arg_true().to_list() == bad_rows
    answers = scores.filter("quarantined").select(pl.col("^(p|margin|grade)_.*$").is_null().all())
    assert all(answers.row(0))
    good = frame.filter(pl.col("acc_age") > 0)
    assert_same(scores.filter(~pl.col("quarantined")), network.predict_frame(good))


@pytest.mark.parametrize("kind", ["network", "logistic", "trees"])
def test_a_batch_may_be_refused_whole(
    request: pytest.FixtureRequest, cards: pl.DataFrame, portfolio: Portfolio, kind: str
) -> None:
    model = request.getfixturevalue(kind)
    if kind == "network":
        frame = portfolio.frame.head(30).with_columns(acc_age=pl.lit(0))
    else:
        frame = cards.head(30).with_columns(amount=pl.lit(500.0))
    scored = next(score_batches(model, [frame]))
    assert scored.quarantine.height == 30
    assert scored.scores["quarantined"].all()
    assert scored.scores["p_fraud"].is_null().all()


def test_batches_are_taken_one_at_a_time(network: RiskModel, portfolio: Portfolio) -> None:
    taken = []

    def stream() -> Iterator[pl.DataFrame]:
        for batch in batches(portfolio.frame.head(30), 10):
            taken.append(batch)
            yield batch

    scored = score_batches(network, stream())
    assert taken == []
    next(scored)
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda f: f.drop("acc_income"), "acc_income"),
        (lambda f: f.with_columns(surplus=pl.lit(1)), "surplus"),
        (lambda f: f.cast({"acc_income": pl.String}), "acc_income"),
    ],
    ids=["missing", "extra", "type"],
)
def test_a_bad_batch_is_refused(
    network: RiskModel,
    portfolio: Portfolio,
    spoil: Callable[[pl.DataFrame], pl.DataFrame],
    word: str,
) -> None:
    scored = score_batches(network, [portfolio.frame.head(10), spoil(portfolio.frame.head(10))])
    assert next(scored).scores.height == 10
    with pytest.raises(DataError, match=word):
        next(scored)


def test_a_model_without_schema_scores_its_inputs(cards: pl.DataFrame) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    model = LogisticBaseline(strengths=(0.1,), random_state=0).fit(x, y).model_
    scored = list(score_batches(model, batches(x, 150)))
    scores = pl.concat([batch.scores for batch in scored])
    assert scores.columns == ["_row", "p_is_fraud", "margin_is_fraud", "quarantined"]
    assert_same(scores, model.predict_frame(x))
    assert all(batch.quarantine.height == 0 for batch in scored)


def test_a_regression_keeps_its_name(cards: pl.DataFrame) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud", "age")
    model = (
        LightGBMBaseline(
            regression_tasks=["age"], trials=1, n_estimators=5, n_jobs=1, random_state=0
        )
        .fit(x, y)
        .model_
    )
    scores = next(score_batches(model, [x])).scores
    assert scores.columns == ["_row", "p_is_fraud", "margin_is_fraud", "age", "quarantined"]
    assert scores["age"].is_between(18, 90).all()


def test_an_empty_batch_gives_an_empty_table_of_the_same_columns(
    network: RiskModel, portfolio: Portfolio
) -> None:
    """So an empty partition does not stop a distributed job."""
    empty, full = score_batches(network, [portfolio.frame.head(0), portfolio.frame.head(5)])
    assert (empty.scores.height, empty.quarantine.height) == (0, 0)
    assert empty.scores.schema == full.scores.schema
    assert full.scores["_row"].to_list() == [0, 1, 2, 3, 4]


def test_margins_and_grades_follow_from_the_probabilities(
    network: RiskModel, portfolio: Portfolio
) -> None:
    scores = scores_of(network, [portfolio.frame])
    p = scores["p_default"].to_numpy().astype(np.float64)
    np.testing.assert_allclose(scores["margin_default"], np.log(p / (1 - p)), atol=1e-4)
    assert (scores["grade_default"] == grades_of(p)).all()
    assert "grade_fraud" not in scores.columns
    middle = float(scores["p_fraud"].median())
    both = ScoreSettings(graded=("default", "fraud"), grades=(middle, 1.0))
    graded = next(score_batches(network, [portfolio.frame], both)).scores
    assert ((graded["grade_fraud"] == 2) == (graded["p_fraud"] > middle)).all()


def test_the_challenger_scores_beside_the_network(
    model_folder: Path, trained: MultiTaskClassifier, portfolio: Portfolio
) -> None:
    model = RiskModel.load(model_folder, with_challenger=True)
    frame = portfolio.frame.head(200)
    scores = next(score_batches(model, [frame], ScoreSettings(challenger=True))).scores
    expected = trained.challenger_.predict_frame(frame)
    for task in TASKS:
        np.testing.assert_allclose(scores[f"p_{task}_challenger"], expected[task], atol=1e-6)
        assert (scores[f"p_{task}_challenger"] - scores[f"p_{task}"]).abs().max() > 1e-3


def test_reasons_are_those_of_the_estimator_where_the_rule_asks(
    network: RiskModel, trained: MultiTaskClassifier, portfolio: Portfolio
) -> None:
    frame = portfolio.frame.head(300)
    highest = trained.predict_proba(frame).max(1)
    cut = float(np.sort(highest)[-4])
    asked = ScoreSettings(reasons=f"score>={cut:.9f}")
    scores = next(score_batches(network, [frame], asked)).scores
    chosen = np.flatnonzero(highest >= cut - 1e-9)
    assert 3 <= len(chosen) <= 5
    for task in TASKS:
        given = scores[f"reasons_{task}"]
        assert given.is_not_null().arg_true().to_list() == chosen.tolist()
        found = reasons_of(
            trained.explain(frame[chosen], heads=[task], budget=4),
            trained.model_.background,
            trained.model_.encoder.columns_,
            head=task,
        )
        for row, place in enumerate(chosen):
            expected = found.filter(pl.col("row") == row)["feature"].to_list()
            assert given[int(place)].to_list() == expected


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ScoreSettings(challenger=True), "no challenger"),
        (ScoreSettings(reasons="top:1%"), "riskmtl explain"),
        (ScoreSettings(reasons="often"), "no rule"),
        (ScoreSettings(grades=(0.5, 0.2, 1.0)), "ascending"),
    ],
)
def test_settings_that_cannot_be(
    network: RiskModel, portfolio: Portfolio, settings: ScoreSettings, word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        next(score_batches(network, [portfolio.frame.head(2)], settings))
