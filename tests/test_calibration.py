"""Calibration: two numbers a head, learned from enough events, and no ranking ever changed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from riskmtl.calibration import FEWEST_EVENTS, Calibrator, fit_calibrator
from riskmtl.metrics import log_loss

NAN = float("nan")


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture(scope="module")
def drawn():
    """Log-odds of 50,000 rows, and outcomes drawn from them."""
    rng = np.random.default_rng(4)
    margins = rng.normal(-2, 1.5, 50_000)
    return (rng.random(50_000) < sigmoid(margins)).astype(float), margins


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, 0), (0.5, -1), (2.5, 3), (0.01, 0.2), (50, -400)]
)
def test_a_known_map_is_found(drawn, slope, intercept):
    labels, margins = drawn
    raw = (margins - intercept) / slope
    fitted = fit_calibrator(labels, raw)
    assert fitted.is_fitted
    assert fitted.events == labels.sum()
    # Standard errors of 50,000 rows are near 0.012 of the slope and 0.02 of the level.
    assert fitted.slope == pytest.approx(slope, rel=0.04)
    assert np.abs(fitted.apply(raw) - margins).mean() < 0.06
    assert sigmoid(fitted.apply(raw)).mean() == pytest.approx(labels.mean(), abs=1e-4)


def test_the_fit_is_the_best_of_its_neighbours(drawn):
    labels, margins = drawn
    raw = 2 * margins + 1
    fitted = fit_calibrator(labels, raw)
    best = log_loss(labels, sigmoid(fitted.apply(raw)))
    assert best < log_loss(labels, sigmoid(raw))
    for slope, intercept in [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)]:
        other = Calibrator(fitted.slope + slope, fitted.intercept + intercept)
        assert best < log_loss(labels, sigmoid(other.apply(raw)))


def test_rows_not_observed_never_matter(drawn):
    labels, margins = drawn
    hidden = np.arange(len(labels)) % 3 == 0
    masked = np.where(hidden, NAN, labels)
    weights = np.linspace(1, 2, len(labels))
    fitted = fit_calibrator(masked, margins, weights)
    alone = fit_calibrator(labels[~hidden], margins[~hidden], weights[~hidden])
    garbage = fit_calibrator(
        masked, np.where(hidden, NAN, margins), np.where(hidden, -1e9, weights)
    )
    assert fitted == alone == garbage


def test_a_whole_weight_is_so_many_rows(drawn):
    labels, margins = (values[:4_000] for values in drawn)
    times = np.random.default_rng(1).integers(0, 4, len(labels))
    weighted = fit_calibrator(labels, margins, times.astype(float))
    repeated = fit_calibrator(np.repeat(labels, times), np.repeat(margins, times))
    assert weighted.is_fitted
    assert repeated.is_fitted
    assert weighted.slope == pytest.approx(repeated.slope, rel=2e-3)
    # The targets move with the number of rows, which repeating raises and weighting does not.
    assert weighted.intercept == pytest.approx(repeated.intercept, abs=5e-3)
    heavy = fit_calibrator(labels, margins, np.full(len(labels), 1e6))
    plain = fit_calibrator(labels, margins)
    assert (heavy.slope, heavy.intercept) == pytest.approx((plain.slope, plain.intercept), rel=1e-3)


@pytest.mark.parametrize("events", [0, 1, FEWEST_EVENTS - 1])
@pytest.mark.parametrize("rare", [0.0, 1.0])
def test_too_few_events_or_non_events_leave_a_head_as_it_is(events, rare):
    labels = np.full(1_000, 1 - rare)
    labels[:events] = rare
    margins = np.random.default_rng(0).normal(size=1_000) + labels
    fitted = fit_calibrator(labels, margins)
    assert fitted.note == f"not fitted: {events} of at least {FEWEST_EVENTS} events"
    assert fitted.events == labels.sum()
    assert not fitted.is_fitted
    assert fitted.apply(margins) == pytest.approx(margins)


def test_just_enough_events_are_enough():
    labels = np.zeros(1_000)
    labels[:FEWEST_EVENTS] = 1
    margins = np.random.default_rng(0).normal(size=1_000) + labels
    assert fit_calibrator(labels, margins).is_fitted
    labels[0] = NAN
    assert not fit_calibrator(labels, margins).is_fitted


def test_no_observed_row_leaves_a_head_as_it_is():
    fitted = fit_calibrator(np.full(3, NAN), np.zeros(3))
    assert fitted == Calibrator(events=0, note="not fitted: 0 of at least 50 events")


@pytest.mark.parametrize("kind", ["reversed", "constant"])
def test_a_head_that_does_not_rank_is_left_as_it_is(drawn, kind):
    labels, margins = drawn
    fitted = fit_calibrator(labels, -margins if kind == "reversed" else np.full(len(labels), 0.3))
    assert fitted.note == "not fitted: the head does not rank validation rows"
    assert (fitted.slope, fitted.intercept) == (1.0, 0.0)


def test_classes_that_never_meet_give_a_finite_map():
    labels = np.repeat([0.0, 1.0], 500)
    margins = np.where(labels == 1, 5.0, -5.0) + np.random.default_rng(0).normal(size=1_000) / 10
    fitted = fit_calibrator(labels, margins)
    assert fitted.is_fitted
    assert np.isfinite(fitted.apply(margins)).all()
    assert log_loss(labels, sigmoid(fitted.apply(margins))) < 0.05


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    margins=hnp.arrays(np.float64, 20, elements=st.floats(-30, 30)),
)
def test_no_ranking_is_changed(seed, margins):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 400).astype(float)
    raw = rng.normal(size=400) * rng.uniform(0.01, 20) + labels * rng.uniform(-1, 1)
    fitted = fit_calibrator(labels, raw)
    assert fitted.slope > 0
    order = np.argsort(margins, kind="stable")
    assert (np.diff(fitted.apply(margins)[order]) >= 0).all()


def test_a_map_comes_back_from_json(drawn):
    fitted = fit_calibrator(*drawn)
    again = Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    assert again.is_fitted
    assert not Calibrator().is_fitted


def test_single_precision_margins_are_fitted_in_double(drawn):
    labels, margins = drawn
    single = fit_calibrator(labels, margins.astype(np.float32))
    double = fit_calibrator(labels, margins)
    assert (single.slope, single.intercept) == pytest.approx(
        (double.slope, double.intercept), rel=1e-3, abs=1e-3
    )


def test_a_head_without_errors_does_not_become_certain():
    labels = np.repeat([0.0, 1.0], [900, 100])
    calibrator = fit_calibrator(labels, np.where(labels == 1, 5.0, -5.0))
    low, high = 1 / (1 + np.exp(-calibrator.apply(np.array([-5.0, 5.0]))))
    assert low == pytest.approx(1 / 902, rel=0.02)
    assert high == pytest.approx(101 / 102, rel=0.001)
