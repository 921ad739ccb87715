"""Metrics: scikit-learn's on the observed rows, and nothing else ever counts."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from riskmtl.metrics import LOWER_IS_BETTER, METRICS, evaluate, log_loss, recall_at_fpr

NAN = float("nan")
SCIKIT = {
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "brier": sk.brier_score_loss,
    "log_loss": sk.log_loss,
}


@st.composite
def scored(draw, both: bool = True):
    """Labels with gaps, probabilities with ties, weights."""
    rows = draw(st.integers(2, 30))
    labels = draw(hnp.arrays(float, rows, elements=st.sampled_from([0.0, 1.0, NAN])))
    if both:
        labels[:2] = draw(st.permutations([0.0, 1.0]))
    grid = st.integers(1, 19).map(lambda i: i / 20)
    probabilities = draw(hnp.arrays(float, rows, elements=grid))
    weights = draw(hnp.arrays(float, rows, elements=st.integers(1, 8).map(lambda i: i / 2)))
    return labels, probabilities, weights


@pytest.mark.parametrize("name", SCIKIT)
@settings(max_examples=30, deadline=None)
@given(data=scored())
def test_a_metric_is_that_of_scikit_learn_on_the_observed_rows(name, data):
    labels, probabilities, weights = data
    seen = ~np.isnan(labels)
    y, p, w = labels[seen], probabilities[seen], weights[seen]
    plain = METRICS[name](labels, probabilities, None)
    assert plain == pytest.approx(SCIKIT[name](y, p), abs=1e-12)
    weighted = METRICS[name](labels, probabilities, weights)
    assert weighted == pytest.approx(SCIKIT[name](y, p, sample_weight=w), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=25, deadline=None)
@given(data=scored(both=False), noise=st.floats(0.01, 0.99))
def test_rows_that_are_not_observed_never_matter(name, data, noise):
    labels, probabilities, weights = data
    seen = ~np.isnan(labels)
    alone = METRICS[name](labels[seen], probabilities[seen], weights[seen])
    for other in (noise, NAN, -1e300):
        p = np.where(seen, probabilities, other)
        w = np.where(seen, weights, other)
        assert METRICS[name](labels, p, w) == pytest.approx(alone, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=25, deadline=None)
@given(data=scored())
def test_a_whole_weight_is_so_many_rows(name, data):
    labels, probabilities, weights = data
    times = np.ceil(weights).astype(int)
    repeated = METRICS[name](np.repeat(labels, times), np.repeat(probabilities, times), None)
    assert METRICS[name](labels, probabilities, times) == pytest.approx(repeated)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("labels", [[NAN, NAN], [NAN, 0.0], [1.0, 1.0], []], ids=str)
def test_a_ranking_of_one_class_is_nan(name, labels):
    y = np.array(labels)
    value = METRICS[name](y, np.full(len(y), 0.5), None)
    if name in LOWER_IS_BETTER and not np.isnan(y).all():
        assert value == pytest.approx({"brier": 0.25, "log_loss": np.log(2)}[name])
    else:
        assert np.isnan(value)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "weights", [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]], ids=str
)
def test_a_row_of_weight_nought_is_no_row(name, weights):
    y, p, w = np.array([0.0, 0, 1, 1]), np.array([0.2, 0.6, 0.4, 0.9]), np.array(weights, float)
    kept = w > 0
    expected = METRICS[name](y[kept], p[kept], None)
    assert METRICS[name](y, p, w) == pytest.approx(expected, nan_ok=True)


def test_the_better_model_has_the_better_figures():
    y = np.array([0.0, 0, 0, 1, 1])
    good, bad = np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([0.9, 0.8, 0.3, 0.2, 0.1])
    for name, metric in METRICS.items():
        lower = metric(y, good, None) < metric(y, bad, None)
        assert lower == (name in LOWER_IS_BETTER)


def test_certainty_costs_much_but_not_all():
    y = np.array([1.0, 0.0])
    assert log_loss(y, np.array([1.0, 0.0])) == pytest.approx(0, abs=1e-12)
    assert log_loss(y, np.array([0.0, 1.0])) == pytest.approx(
        -np.log(np.finfo(float).eps), rel=0.01
    )
    assert np.isfinite(log_loss(y, np.array([0, 1], dtype=np.float32)))


# Ten non-events and four events. From the top: event, event, non-event, event, non-event, …, event.
RANKED = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=float)
SCORES = np.linspace(0.95, 0.05, 14)


@pytest.mark.parametrize(
    ("fpr", "recall"),
    [(0.0, 0.5), (0.05, 0.5), (0.1, 0.75), (0.15, 0.75), (0.2, 0.75), (0.99, 0.75), (1.0, 1.0)],
)
def test_recall_at_a_share_of_false_alarms_by_hand(fpr, recall):
    # The first false alarm, a tenth of them all, comes after two events and before the third.
    assert recall_at_fpr(RANKED, SCORES, fpr=fpr) == pytest.approx(recall)


def test_recall_follows_a_line_between_tied_scores():
    # One threshold catches two of four events with five of ten non-events.
    y = np.array([1.0] * 2 + [0.0] * 5 + [1.0] * 2 + [0.0] * 5)
    p = np.array([0.9] * 7 + [0.1] * 7)
    assert recall_at_fpr(y, p, fpr=0.25) == pytest.approx(0.25)
    assert recall_at_fpr(y, p, fpr=0.5) == pytest.approx(0.5)
    assert recall_at_fpr(y, p, fpr=0.75) == pytest.approx(0.75)


def test_recall_weighs_events_and_false_alarms():
    y, p = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.7, 0.5, 0.3])
    weights = np.array([3.0, 1.0, 1.0, 9.0])
    assert recall_at_fpr(y, p, weights, fpr=0.05) == pytest.approx(0.75)
    assert recall_at_fpr(y, p, weights, fpr=0.1) == pytest.approx(1.0)


def test_the_table_has_a_row_a_task_and_every_metric():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 3)).astype(float)
    labels[rng.random((300, 3)) < 0.3] = NAN
    labels[:, 2] = NAN
    labels[:5, 2] = 0.0
    probabilities = rng.random((300, 3))
    weights = rng.random(300)
    table = evaluate(labels, probabilities, ["a", "b", "c"], weights)
    assert table["task"].to_list() == ["a", "b", "c"]
    assert table["observed"].to_list() == (~np.isnan(labels)).sum(axis=0).tolist()
    assert table["events"].to_list() == np.nansum(labels, axis=0).astype(int).tolist()
    assert table["rate"].to_list() == pytest.approx(np.nanmean(labels, axis=0).tolist())
    for task in range(2):
        row = table.row(task, named=True)
        y, p = labels[:, task], probabilities[:, task]
        for name in SCIKIT:
            assert row[name] == METRICS[name](y, p, weights)
        assert row["recall_at_1pct_fpr"] == recall_at_fpr(y, p, weights, fpr=0.01)
        assert row["recall_at_5pct_fpr"] == recall_at_fpr(y, p, weights, fpr=0.05)
    assert np.isnan(table["roc_auc"][2])
    assert table["brier"][2] == pytest.approx(
        np.average(probabilities[:5, 2] ** 2, weights=weights[:5])
    )


def test_a_task_without_any_label_has_no_figures():
    row = evaluate(np.full((4, 1), NAN), np.full((4, 1), 0.5), ["a"]).row(0, named=True)
    assert (row["observed"], row["events"]) == (0, 0)
    assert all(np.isnan(row[name]) for name in (*SCIKIT, "rate", "recall_at_1pct_fpr"))
    assert isinstance(evaluate(np.empty((0, 1)), np.empty((0, 1)), ["a"]), pl.DataFrame)
