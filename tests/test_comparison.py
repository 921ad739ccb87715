"""Comparisons: DeLong's variance, the bootstrap and Holm's steps against slow versions of them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from riskmtl.metrics import average_precision, brier, log_loss, recall_at_fpr
from riskmtl.validation.comparison import (
    Difference,
    auc_difference,
    bootstrap_differences,
    holm,
)
from tests.reference import comparison as slow

NAN = float("nan")
METRICS = ["average_precision", "brier", "log_loss", "recall_at_1pct_fpr", "recall_at_5pct_fpr"]
GRID = st.integers(0, 20).map(lambda i: i / 20)


@st.composite
def contest(draw, grid=GRID):
    """Labels of both classes, and tied scores of one to three fits of each of two models."""
    rows = draw(st.integers(4, 25))
    labels = draw(hnp.arrays(float, rows, elements=st.sampled_from([0.0, 1.0])))
    labels[:4] = draw(st.permutations([0.0, 0.0, 1.0, 1.0]))
    fits = st.integers(1, 3)
    first, second = (draw(hnp.arrays(float, (draw(fits), rows), elements=grid)) for _ in range(2))
    return labels, first, second


def portfolio(rows, rate, fits, *, steps=None, seed=0):
    """Labels, and probabilities of as many fits of two models as are asked for."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < rate).astype(float)
    models = []
    for count, skill in zip(fits, (1.5, 1.0), strict=True):
        logits = skill * labels + rng.normal(size=(count, rows)) - 2
        probabilities = 1 / (1 + np.exp(-logits))
        models.append(probabilities if steps is None else np.round(probabilities * steps) / steps)
    return labels, *models


def numbers(difference: Difference) -> list[float]:
    return [difference.estimate, difference.low, difference.high, difference.p_value]


# --- Areas under the curve ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=contest(), level=st.sampled_from([0.5, 0.95]))
def test_an_auc_difference_is_that_of_all_pairs(data, level):
    labels, first, second = data
    difference = auc_difference(labels, first, second, level=level)
    expected = slow.auc_difference(labels, first, second, level)
    # The slow variance of equal models is nought but for rounding, under a square root.
    assert numbers(difference)[:3] == pytest.approx(expected[:3], abs=1e-7)
    if difference.high - difference.low > 1e-6:
        assert difference.p_value == pytest.approx(expected[3], abs=1e-7)
    for mean, fits in ((difference.first, first), (difference.second, second)):
        areas = [roc_auc_score(labels, scores) for scores in fits]
        assert mean == pytest.approx(np.mean(areas), abs=1e-12)


# The first model's events win 2 and 1 of 2 pairs, its non-events 1 and 2; the second wins all.
SMALL = np.array([1.0, 1.0, 0.0, 0.0])
FLAWED, PERFECT = np.array([0.9, 0.4, 0.5, 0.1]), np.array([0.6, 0.7, 0.1, 0.2])


def test_delong_by_hand():
    # Components differ by 0 and -1/2 on either side: a variance of 1/8, halved, twice.
    difference = auc_difference(SMALL, FLAWED, PERFECT)
    assert (difference.metric, difference.first, difference.second) == ("roc_auc", 0.75, 1.0)
    assert difference.estimate == -0.25
    assert difference.low == pytest.approx(-0.25 - 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert difference.high == pytest.approx(-0.25 + 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert difference.p_value == pytest.approx(0.479500, abs=1e-6)  # z = 1/√2


def test_fits_average_their_components_and_add_the_variance_of_their_areas():
    # Mean components differ by 0 and -1/4: 1/32. Areas 3/4 and 1 vary by 1/32, over two fits.
    difference = auc_difference(SMALL, np.stack([FLAWED, PERFECT]), PERFECT)
    assert difference.estimate == -0.125
    error = (difference.high - difference.low) / 2 / 1.959964
    assert error**2 == pytest.approx(1 / 32 + 1 / 64, rel=1e-5)


SKILLS = 1.2, 0.8


def simulated(fits, spread, own, runs=2000):
    """
    Differences of two models on ever new rows.

    Scores of both models share noise of the row. A fit's skill varies by ``spread``, and ``own``
    is the share of a model's own noise that is new in each fit.
    """
    rng, labels = np.random.default_rng(0), np.repeat([1.0, 0.0], [50, 150])
    differences = []
    for _ in range(runs):
        shared = rng.normal(size=200)
        models = []
        for skill in SKILLS:
            skills = skill + spread * rng.normal(size=(fits, 1))
            noise = math.sqrt(1 - own) * rng.normal(size=200)
            noise = noise + math.sqrt(own) * rng.normal(size=(fits, 200))
            models.append(skills * labels + (shared + noise) / math.sqrt(2))
        differences.append(auc_difference(labels, *models))
    return differences


def errors(differences):
    return np.array([(d.high - d.low) / 2 / 1.959964 for d in differences])


@pytest.mark.parametrize(("fits", "spread"), [(1, 0.0), (5, 0.3)])
def test_delong_intervals_cover_as_often_as_they_say(fits, spread):
    # The expected area of a skill that is N(d, spread²) is Φ(d / √(2 + spread²)).
    areas = [0.5 + math.erf(d / math.sqrt(2 + spread**2) / math.sqrt(2)) / 2 for d in SKILLS]
    truth = areas[0] - areas[1]
    differences = simulated(fits, spread, own=0.0)
    estimates = np.array([d.estimate for d in differences])
    assert estimates.mean() == pytest.approx(truth, abs=0.01)
    assert np.mean(errors(differences) ** 2) == pytest.approx(estimates.var(ddof=1), rel=0.1)
    assert 0.925 < np.mean([d.low <= truth <= d.high for d in differences]) < 0.97
    excluded = [not d.low <= 0 <= d.high for d in differences]
    assert excluded == [d.p_value < 0.05 for d in differences]
    assert 0 < sum(excluded) < len(differences)


def test_noise_of_one_fit_on_one_row_widens_the_interval_at_most_by_root_two():
    # No fit is better than another here, and yet their areas differ.
    differences = simulated(5, 0.0, own=1.0, runs=400)
    ratio = np.mean(errors(differences) ** 2) / np.var([d.estimate for d in differences], ddof=1)
    assert 1.2 < ratio < 2.4


def test_only_the_order_of_scores_counts_for_an_auc():
    labels, first, second = portfolio(300, 0.2, (2, 1))
    again = auc_difference(labels, np.log(first), 1e6 * second - 7)
    assert again == auc_difference(labels, first, second)


@pytest.mark.parametrize("fits", [1, 3])
def test_a_model_without_chance_in_its_seeds_does_not_differ_from_itself(fits):
    # A third of a sum of three equal numbers is not always that number in floating point.
    labels, scores, _ = portfolio(200, 0.3, (1, 1), steps=10)
    difference = auc_difference(labels, scores, np.repeat(scores, fits, axis=0))
    assert numbers(difference) == [0.0, 0.0, 0.0, 1.0]


def test_an_error_of_nought_leaves_no_doubt():
    difference = auc_difference(SMALL, SMALL, 1 - SMALL)
    assert numbers(difference) == [1.0, 1.0, 1.0, 0.0]


# --- Bootstrap ------------------------------------------------------------------------------------


def check_bootstrap(labels, first, second, draws, seed=3):
    found = bootstrap_differences(labels, first, second, draws=draws, level=0.8, seed=seed)
    assert [difference.metric for difference in found] == METRICS
    for difference in found:
        gaps = slow.bootstrap_gaps(difference.metric, labels, first, second, draws, seed)
        # Equal models may differ by a rounding in one of the two versions.
        gaps = np.round(gaps, 12)
        side = min(sum(gaps <= 0), sum(gaps >= 0))
        low, high = np.quantile(gaps, [0.1, 0.9])
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-9)
        if np.all(gaps):
            assert difference.p_value == pytest.approx(min(1, 2 * (side + 1) / (draws + 1)))
        whole = np.ones(len(labels))
        for mean, fits in ((difference.first, first), (difference.second, second)):
            values = [
                slow.WEIGHTED[difference.metric](labels, p, sample_weight=whole) for p in fits
            ]
            assert mean == pytest.approx(np.mean(values), abs=1e-12)
        assert difference.estimate == difference.first - difference.second


@settings(max_examples=25, deadline=None)
@given(data=contest(grid=st.integers(1, 19).map(lambda i: i / 20)))
def test_a_bootstrap_is_that_of_scikit_learn_with_weights(data):
    check_bootstrap(*data, draws=4)


@pytest.mark.parametrize("steps", [None, 400, 20])
@pytest.mark.parametrize("rate", [0.03, 0.5])
def test_a_bootstrap_of_more_rows_is_that_of_scikit_learn(steps, rate):
    labels, first, second = portfolio(600, rate, (3, 2), steps=steps)
    inside = [np.clip(p, 0.001, 0.999) for p in (first, second)]
    check_bootstrap(labels, *inside, draws=9)


def test_metrics_are_those_of_the_metrics_module():
    # A hundred and a thousand non-events: a share of 1 % falls on a point of the curve.
    rng = np.random.default_rng(0)
    for non_events in (100, 1000):
        labels = np.repeat([1.0, 0.0], [30, non_events])
        first, second = rng.random((2, len(labels)))
        first[:2], first[-1] = (0.0, 1.0), 0.0  # certain, right and wrong
        found = bootstrap_differences(labels, first, second, draws=1)
        for means, p in (([d.first for d in found], first), ([d.second for d in found], second)):
            assert means == pytest.approx(
                [
                    average_precision(labels, p),
                    brier(labels, p),
                    log_loss(labels, p),
                    recall_at_fpr(labels, p, fpr=0.01),
                    recall_at_fpr(labels, p, fpr=0.05),
                ],
                rel=1e-12,
            )


def test_bootstrap_intervals_cover_as_often_as_they_say():
    # Errors are uniform on (0, 0.7) and (0, 0.8), so mean squares are 0.49 / 3 and 0.64 / 3.
    rng, runs, inside = np.random.default_rng(1), 200, 0
    labels = np.repeat([1.0, 0.0], [30, 60])
    for run in range(runs):
        wrong = rng.random(90) * 0.7, rng.random(90) * 0.8
        first, second = (np.where(labels == 1, 1 - error, error) for error in wrong)
        [difference] = bootstrap_differences(
            labels, first, second, metrics=["brier"], draws=200, level=0.9, seed=run
        )
        inside += difference.low <= -0.05 <= difference.high
    assert 0.84 < inside / runs < 0.95


def test_the_spread_of_seeds_is_in_the_interval():
    labels, first, second = portfolio(400, 0.3, (1, 1))
    uneven = np.concatenate([first, first, 0.5 * first, 0.25 * first])
    width = {}
    for name, model in (("one", first), ("alike", np.repeat(first, 4, axis=0)), ("four", uneven)):
        [found] = bootstrap_differences(labels, model, second, metrics=["log_loss"], draws=200)
        width[name] = found.high - found.low
    assert width["alike"] == pytest.approx(width["one"])
    assert width["four"] > 1.5 * width["one"]


def test_a_p_value_counts_draws_on_the_far_side():
    labels, good, _ = portfolio(200, 0.5, (1, 1))
    [clear] = bootstrap_differences(labels, labels, 1 - labels, metrics=["brier"], draws=99)
    assert clear.p_value == pytest.approx(2 / 100)
    [none] = bootstrap_differences(labels, good, good, metrics=["brier"], draws=99)
    assert numbers(none) == [0.0, 0.0, 0.0, 1.0]


def test_the_same_seed_gives_the_same_draws():
    data = portfolio(200, 0.2, (2, 3))
    once = bootstrap_differences(*data, draws=20, seed=4)
    assert once == bootstrap_differences(*data, draws=20, seed=4)
    assert once != bootstrap_differences(*data, draws=20, seed=5)


def test_a_metric_has_the_same_draws_alone_and_among_others():
    data = portfolio(200, 0.2, (2, 1))
    together = bootstrap_differences(*data, draws=20)
    alone = [bootstrap_differences(*data, metrics=[name], draws=20)[0] for name in METRICS]
    assert alone == together


# --- Both ways of comparing -----------------------------------------------------------------------


def compare(labels, first, second):
    area = auc_difference(labels, first, second)
    return [area, *bootstrap_differences(labels, first, second, draws=40)]


@settings(max_examples=25, deadline=None)
@given(data=contest())
def test_models_swapped_negate_the_difference(data):
    labels, first, second = data
    first, second = first[0], second[0]
    for there, back in zip(
        compare(labels, first, second), compare(labels, second, first), strict=True
    ):
        assert (back.first, back.second) == (there.second, there.first)
        assert [back.estimate, -back.high, -back.low, back.p_value] == pytest.approx(
            [-there.estimate, there.low, there.high, there.p_value], abs=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(data=contest(), noise=st.sampled_from([0.5, NAN, -1e300, 1e300]))
def test_rows_that_are_not_observed_never_matter(data, noise):
    labels, first, second = data
    gaps = [0, 2, len(labels)]
    more = [np.insert(model, gaps, noise, axis=1) for model in (first, second)]
    assert compare(np.insert(labels, gaps, NAN), *more) == compare(labels, first, second)


@settings(max_examples=25, deadline=None)
@given(data=contest())
def test_a_model_does_not_differ_from_itself(data):
    labels, scores, _ = data
    for difference in compare(labels, scores, scores):
        assert difference.estimate == 0
        assert difference.low <= 0 <= difference.high
        assert difference.p_value > 0.3


def test_a_single_fit_may_be_a_vector():
    labels, first, second = portfolio(100, 0.3, (1, 1))
    assert compare(labels, first[0], second[0]) == compare(labels, first, second)
    assert compare(labels.astype(int), first, second) == compare(labels, first, second)


def test_a_difference_is_plain_values():
    record = auc_difference(SMALL, FLAWED, PERFECT).to_dict()
    assert list(record) == ["metric", "first", "second", "estimate", "low", "high", "p_value"]
    assert json.loads(json.dumps(record)) == record
    assert {type(value) for value in record.values()} == {str, float}
    [brier_row] = bootstrap_differences(SMALL, FLAWED, PERFECT, metrics=["brier"], draws=3)
    assert Difference(**json.loads(json.dumps(brier_row.to_dict()))) == brier_row
    assert {type(value) for value in brier_row.to_dict().values()} == {str, float}


@pytest.mark.parametrize(
    ("labels", "first", "second", "message"),
    [
        ([0, 0, 0, NAN], FLAWED, PERFECT, "labels show 0 events and 3 non-events: both classes"),
        ([1, 1, 1, 1], FLAWED, PERFECT, "labels show 4 events and 0 non-events"),
        ([1, 0, 0, 0], FLAWED, PERFECT, "at least two rows of each"),
        ([1, 1, 0, 2], FLAWED, PERFECT, "labels must be 0, 1, or NaN"),
        ([[1, 1, 0, 0]], FLAWED, PERFECT, r"labels \(1, 4\): give \(rows,\)"),
        (SMALL, FLAWED[:3], PERFECT, r"^first has shape \(3,\) and labels \(4,\)"),
        (SMALL, FLAWED, PERFECT[:, None], r"^second has shape \(4, 1\) and labels"),
        (SMALL, FLAWED, np.empty((0, 4)), r"^second has shape \(0, 4\)"),
        (SMALL, FLAWED, np.array([0.1, NAN, 0.3, 0.4]), "^second is NaN on a row"),
        (SMALL, np.array([0.1, 0.2, 0.3, NAN]), PERFECT, "^first is NaN on a row"),
    ],
)
@pytest.mark.parametrize("comparison", [auc_difference, bootstrap_differences])
def test_bad_input_is_named(comparison, labels, first, second, message):
    with pytest.raises(ValueError, match=message):
        comparison(np.array(labels, float), first, second)


@pytest.mark.parametrize("level", [0, 1, 95, NAN])
@pytest.mark.parametrize("comparison", [auc_difference, bootstrap_differences])
def test_a_level_is_a_share(comparison, level):
    with pytest.raises(ValueError, match=r"level is .*: give a confidence between 0 and 1"):
        comparison(SMALL, FLAWED, PERFECT, level=level)


@pytest.mark.parametrize("score", [-0.01, 1.01])
@pytest.mark.parametrize("row", [0, 3])
def test_a_bootstrap_needs_probabilities(score, row):
    scores = FLAWED.copy()
    scores[row] = score
    with pytest.raises(ValueError, match=r"^second must hold probabilities"):
        bootstrap_differences(SMALL, FLAWED, scores, draws=1)


def test_a_bootstrap_needs_a_known_metric_and_a_draw():
    with pytest.raises(ValueError, match="unknown metric 'briar': did you mean 'brier'"):
        bootstrap_differences(SMALL, FLAWED, PERFECT, metrics=["log_loss", "briar"])
    with pytest.raises(ValueError, match="draws is 0: ask for at least 1"):
        bootstrap_differences(SMALL, FLAWED, PERFECT, draws=0)


# --- Holm -----------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.02, NAN])), max_size=8))
def test_holm_is_the_textbooks(p_values):
    adjusted = holm(p_values)
    assert adjusted == pytest.approx(slow.holm(p_values), nan_ok=True)
    tested = [(p, a) for p, a in zip(p_values, adjusted, strict=True) if not math.isnan(p)]
    assert all(p <= a <= 1 for p, a in tested)
    assert [a for _, a in sorted(tested)] == sorted(a for _, a in tested)


def test_holm_by_hand():
    # 0.01 × 4, 0.02 × 3, then 0.022 × 2 raised to the step before it, and 0.6 as it is.
    assert holm([0.022, 0.01, NAN, 0.6, 0.02]) == pytest.approx(
        [0.06, 0.04, NAN, 0.6, 0.06], nan_ok=True
    )


@pytest.mark.parametrize("p", [-0.1, 1.1, math.inf])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="p_values must lie between 0 and 1"):
        holm([0.5, p])
