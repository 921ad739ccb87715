"""Evaluation: the figures of a model and of its challenger, on the rows that observe each task."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from riskmtl import DataSchema, LogisticBaseline, MultiTaskClassifier, RiskModel, __version__
from riskmtl.schema import DataError, Split
from riskmtl.validation.evaluation import evaluate_model, evaluation_record

TASKS = ["default", "fraud", "takeover"]
METRICS = {
    "roc_auc": roc_auc_score,
    "average_precision": average_precision_score,
    "brier": brier_score_loss,
    "log_loss": log_loss,
}


@pytest.fixture(scope="module")
def weighted(cards: pl.DataFrame, cards_schema: DataSchema) -> RiskModel:
    """A model of a schema with weights."""
    fitted = LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards)
    return fitted.model_


def figure(table: pl.DataFrame, task: str, model: str, metric: str) -> float:
    return float(table.filter(task=task, model=model)[metric].item())


def test_one_row_per_task_and_model(trained: MultiTaskClassifier, parts: Split) -> None:
    table = evaluate_model(trained.model_, parts.test)
    assert list(zip(table["task"], table["model"], strict=True)) == [
        (task, model) for task in TASKS for model in ("network", "lightgbm")
    ]
    assert table.columns[:5] == ["task", "model", "observed", "events", "rate"]
    assert {"recall_at_1pct_fpr", "recall_at_5pct_fpr"} < set(table.columns)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("metric", METRICS)
def test_figures_are_those_of_the_observed_rows(
    trained: MultiTaskClassifier, parts: Split, task: str, metric: str
) -> None:
    """The table is null where an outcome is not observed, so no schema is needed to check it."""
    table = evaluate_model(trained.model_, parts.test)
    seen = parts.test[task].is_not_null()
    labels = parts.test[task].filter(seen).to_numpy()
    for name, model in (("network", trained), ("lightgbm", trained.challenger_)):
        scores = model.predict_frame(parts.test)[task].filter(seen).to_numpy()
        assert figure(table, task, name, metric) == pytest.approx(METRICS[metric](labels, scores))
        assert figure(table, task, name, "observed") == len(labels)
        assert figure(table, task, name, "events") == labels.sum()
        assert figure(table, task, name, "rate") == pytest.approx(labels.mean())


def test_rows_without_an_outcome_change_nothing(trained: MultiTaskClassifier, parts: Split) -> None:
    table = evaluate_model(trained.model_, parts.test)
    observed = evaluate_model(trained.model_, parts.test.filter(pl.col("default").is_not_null()))
    columns = ["model", "observed", "events", "roc_auc", "brier"]
    for frame in (table, observed):
        assert frame.filter(task="default").height == 2
    assert (
        table.filter(task="default").select(columns).rows()
        == observed.filter(task="default").select(columns).rows()
    )


def test_weights_of_the_schema_count(weighted: RiskModel, cards: pl.DataFrame) -> None:
    table = evaluate_model(weighted, cards)
    labels, weights = (cards["bad"] == "late").to_numpy(), cards["weight"].to_numpy()
    scores = weighted.predict_frame(cards)["default"].to_numpy()
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert expected != pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert figure(table, "default", "logistic", "roc_auc") == pytest.approx(expected)
    assert figure(table, "default", "logistic", "brier") == pytest.approx(
        np.average((scores - labels) ** 2, weights=weights)
    )
    # Filters of the schema decide which rows observe the outcome.
    assert figure(table, "fraud", "logistic", "observed") == cards["online"].sum()


def test_weights_of_equal_size_change_nothing(weighted: RiskModel, cards: pl.DataFrame) -> None:
    """A row of weight two counts as two rows."""
    twice = cards.with_columns(weight=pl.when(pl.col("amount") > 50).then(2.0).otherwise(1.0))
    repeated = pl.concat([twice, twice.filter(pl.col("weight") == 2)]).with_columns(weight=1.0)
    for metric in ("roc_auc", "average_precision", "brier", "log_loss"):
        assert figure(
            evaluate_model(weighted, twice), "default", "logistic", metric
        ) == pytest.approx(
            figure(evaluate_model(weighted, repeated), "default", "logistic", metric)
        )


def test_tables_of_pandas_are_evaluated_too(weighted: RiskModel, cards: pl.DataFrame) -> None:
    expected = evaluate_model(weighted, cards)
    assert evaluate_model(weighted, cards.to_pandas()).equals(expected)


def test_a_model_without_schema_cannot_be_evaluated(cards: pl.DataFrame) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    model = LogisticBaseline(strengths=(0.1,), random_state=0).fit(x, y).model_
    with pytest.raises(DataError, match="no schema"):
        evaluate_model(model, cards)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda f: f.drop("bad"), "bad"),
        (lambda f: f.drop("amount"), "amount"),
        (lambda f: f.drop("online"), "online"),
        (lambda f: f.drop("weight"), "weight"),
        (lambda f: f.with_columns(bad=pl.lit("stolen")), "stolen"),
    ],
    ids=["label", "input", "filter", "weight", "value"],
)
def test_a_table_that_cannot_be_evaluated_is_refused(
    weighted: RiskModel, cards: pl.DataFrame, change: object, word: str
) -> None:
    assert callable(change)
    with pytest.raises(DataError, match=word):
        evaluate_model(weighted, change(cards))


def test_one_class_gives_no_figure_that_needs_two(weighted: RiskModel, cards: pl.DataFrame) -> None:
    paid = cards.with_columns(bad=pl.lit("paid"), is_fraud=pl.lit(None, pl.Int8))
    figures = evaluate_model(weighted, paid)
    record = evaluation_record(weighted, figures)
    default, fraud = record["figures"]
    assert (default["observed"], default["events"]) == (400, 0)
    assert default["roc_auc"] is None
    assert default["brier"] > 0
    assert (fraud["observed"], fraud["rate"], fraud["brier"]) == (0, None, None)
    json.dumps(record, allow_nan=False)


def test_a_record_says_what_was_measured(
    model_folder: Path, parts: Split, schema: DataSchema
) -> None:
    model = RiskModel.load(model_folder, with_challenger=True)
    figures = evaluate_model(model, parts.validation)
    record = json.loads(json.dumps(evaluation_record(model, figures), allow_nan=False))
    assert record["model_id"] == model.lineage["model_id"]
    assert record["schema_sha256"] == schema.hash
    assert record["version"] == __version__
    assert record["created"].endswith("+00:00")
    assert [row["model"] for row in record["figures"]] == ["network", "lightgbm"] * 3
    assert record["figures"][0]["brier"] == pytest.approx(figures["brier"][0])
