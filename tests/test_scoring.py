"""Scoring: the same scores whatever the batches, and a reason for each row without one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from riskmtl import DataSchema, LightGBMBaseline, LogisticBaseline, MultiTaskClassifier, RiskModel
from riskmtl.files import TableError
from riskmtl.schema import DataError
from riskmtl.scoring.batches import score_batches
from riskmtl.scoring.local import ScoreReport, score_file
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
    assert scores.columns == [*keys, "p_default", "p_fraud", "p_takeover"]
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
    assert [batch.scores.height for batch in scored] == [199, 198, 199]
    good = frame.filter(pl.col("acc_age") > 0)
    assert_same(pl.concat([b.scores for b in scored]), network.predict_frame(good))


@pytest.mark.parametrize("kind", ["network", "logistic", "trees"])
def test_a_batch_may_be_refused_whole(
    request: pytest.FixtureRequest, cards: pl.DataFrame, portfolio: Portfolio, kind: str
) -> None:
    model = request.getfixturevalue(kind)
    if kind == "network":
        frame = portfolio.frame.head(30).with_columns(acc_age=pl.lit(0))
        columns = ["account_id", "snapshot_date", *(f"p_{task}" for task in TASKS)]
    else:
        frame = cards.head(30).with_columns(amount=pl.lit(500.0))
        columns = ["id", "day", "p_default", "p_fraud"]
    scored = next(score_batches(model, [frame]))
    assert (scored.scores.height, scored.quarantine.height) == (0, 30)
    assert scored.scores.columns == columns


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
        (lambda f: f.head(0), "no rows"),
    ],
    ids=["missing", "extra", "type", "empty"],
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
    assert scores.columns == ["p_is_fraud"]
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
    assert scores.columns == ["p_is_fraud", "age"]
    assert scores["age"].is_between(18, 90).all()


# ---- files -------------------------------------------------------------------------------------


def test_a_file_longer_than_one_read(
    logistic: RiskModel, cards: pl.DataFrame, tmp_path: Path
) -> None:
    """Longer than what is read at once: order, counts and refused rows run on."""
    times = 400
    frame = pl.concat([cards] * times).drop("weight", "bad", "is_fraud")
    bad_rows = [5, 100_000, 159_999]
    frame = frame.with_columns(
        amount=pl.when(pl.int_range(pl.len()).is_in(bad_rows)).then(500.0).otherwise("amount"),
        id=pl.int_range(pl.len()),
    )
    frame.write_parquet(tmp_path / "long.parquet")
    out = tmp_path / "scores.parquet"
    report = score_file(logistic, tmp_path / "long.parquet", out, max_bad=0.001)
    assert report == ScoreReport(160_000, 159_997, 3, out, tmp_path / "scores.quarantine.parquet")
    assert pl.read_parquet(report.quarantine)["_row"].to_list() == bad_rows
    scores = pl.read_parquet(out)
    expected = frame.filter(~pl.col("id").is_in(bad_rows))
    assert_frame_equal(scores.select("id", "day"), expected.select("id", "day"))
    assert_same(scores, logistic.predict_frame(expected))


def test_a_model_without_schema_scores_a_file(cards: pl.DataFrame, tmp_path: Path) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    model = LogisticBaseline(strengths=(0.1,), random_state=0).fit(x, y).model_
    x.write_parquet(tmp_path / "x.parquet")
    report = score_file(model, tmp_path / "x.parquet", tmp_path / "scores.parquet")
    assert (report.rows, report.scored, report.quarantined, report.quarantine) == (
        *(400, 400, 0),
        None,
    )
    assert_same(pl.read_parquet(report.out), model.predict_frame(x))


def test_scores_say_which_model_they_are_of(
    network: RiskModel, portfolio_file: Path, schema: DataSchema, tmp_path: Path
) -> None:
    report = score_file(network, str(portfolio_file), str(tmp_path / "scores.parquet"))
    lineage = json.loads(pl.read_parquet_metadata(report.out)["riskmtl"])
    assert lineage["model_id"] == network.lineage["model_id"]
    assert lineage["schema_sha256"] == schema.hash


def test_a_share_of_refused_rows_is_a_limit_not_a_target(
    logistic: RiskModel, cards: pl.DataFrame, tmp_path: Path
) -> None:
    """Exactly the share is accepted, one row more is not."""
    row = pl.int_range(pl.len())
    for bad, accepted in ((4, True), (5, False)):
        frame = cards.with_columns(amount=pl.when(row < bad).then(500.0).otherwise("amount"))
        frame.write_parquet(tmp_path / "data.parquet")
        folder = tmp_path / str(bad)
        if accepted:
            report = score_file(
                logistic, tmp_path / "data.parquet", folder / "out.parquet", max_bad=0.01
            )
            assert report.quarantined == bad
        else:
            with pytest.raises(DataError, match=r"5 of 400 rows.*amount: above 100.*first row 0"):
                score_file(
                    logistic, tmp_path / "data.parquet", folder / "out.parquet", max_bad=0.01
                )
            assert not folder.exists() or not list(folder.iterdir())


def test_a_value_too_large_for_the_model_is_a_bad_row(
    network: RiskModel, portfolio: Portfolio, tmp_path: Path
) -> None:
    """With a share of bad rows accepted, one absurd value must not stop the whole file."""
    row = pl.int_range(pl.len())
    frame = portfolio.frame.head(100).with_columns(
        acc_income=pl.when(row == 60).then(1e300).otherwise("acc_income")
    )
    frame.write_parquet(tmp_path / "data.parquet")
    report = score_file(network, tmp_path / "data.parquet", tmp_path / "out.parquet", max_bad=0.01)
    assert (report.scored, report.quarantined) == (99, 1)


def test_an_older_file_of_scores_survives_a_failed_job(
    network: RiskModel, portfolio: Portfolio, tmp_path: Path
) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "out" / "scores.parquet"
    portfolio.frame.head(10).write_parquet(data)
    score_file(network, data, out)
    before = out.read_bytes()
    portfolio.frame.head(10).drop("acc_income").write_parquet(data)
    with pytest.raises(DataError, match="acc_income"):
        score_file(network, data, out)
    with pytest.raises(TableError, match="no such file"):
        score_file(network, tmp_path / "none.parquet", out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_file_is_refused(network: RiskModel, portfolio: Portfolio, tmp_path: Path) -> None:
    portfolio.frame.clear().write_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet: the table has no rows"):
        score_file(network, tmp_path / "data.parquet", tmp_path / "out" / "scores.parquet")
    assert not (tmp_path / "out").exists()
