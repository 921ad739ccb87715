"""Calibration figures agree with statsmodels and scipy, and tests keep their size."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, chi2, norm
from sklearn.isotonic import IsotonicRegression

from riskmtl.grades import MASTER_SCALE
from riskmtl.validation.reliability import (
    brier_parts,
    calibration_index,
    calibration_line,
    grade_table,
    herfindahl,
    hosmer_lemeshow,
    jeffreys,
    natural_spline,
    reliability_curve,
    spiegelhalter,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import statsmodels.api as sm


def drawn(rows: int, seed: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    margin = generator.normal(-2, 1, rows)
    p = 1 / (1 + np.exp(-margin))
    true = 1 / (1 + np.exp(-margin - shift))
    return (generator.random(rows) < true).astype(float), p


def test_intercept_and_slope_are_those_of_statsmodels() -> None:
    y, p = drawn(3000, 0, shift=0.3)
    margin = np.log(p / (1 - p))
    found = calibration_line(y, p)
    large = sm.GLM(y, np.ones((len(y), 1)), family=sm.families.Binomial(), offset=margin).fit(
        tol=1e-14
    )
    line = sm.GLM(y, sm.add_constant(margin), family=sm.families.Binomial()).fit(tol=1e-14)
    assert found.intercept == pytest.approx(large.params[0], abs=1e-9)
    assert found.intercept_low == pytest.approx(large.conf_int()[0][0], abs=1e-8)
    assert found.slope == pytest.approx(line.params[1], abs=1e-9)
    assert found.slope_high == pytest.approx(line.conf_int()[1][1], abs=1e-8)
    assert found.ratio == pytest.approx(y.sum() / p.sum())
    assert found.ratio_low == pytest.approx(chi2.ppf(0.025, 2 * y.sum()) / 2 / p.sum())


def test_the_smooth_curve_is_that_of_statsmodels() -> None:
    y, p = drawn(3000, 1, shift=0.4)
    margin = np.log(p / (1 - p))
    knots = np.quantile(margin, [0.05, 0.35, 0.65, 0.95])
    design = sm.add_constant(natural_spline(margin, knots))
    smooth = sm.GLM(y, design, family=sm.families.Binomial()).fit(tol=1e-14).predict(design)
    found = calibration_index(y, p)
    assert found.ici == pytest.approx(np.abs(smooth - p).mean(), abs=1e-8)
    assert found.emax == pytest.approx(np.abs(smooth - p).max(), abs=1e-7)


def test_the_smooth_curve_is_found_far_from_the_start() -> None:
    """Rare events and log-odds with long tails, where plain Newton steps run away."""
    generator = np.random.default_rng(0)
    margin = -5 + 1.5 * generator.standard_t(4, 30_000)
    p = 1 / (1 + np.exp(-np.clip(margin, -30, 30)))
    y = (generator.random(len(p)) < p).astype(float)
    found = calibration_index(y, p)
    assert found.ici < 0.005
    assert found.e90 < 0.02


def test_a_natural_spline_is_straight_beyond_its_ends() -> None:
    x = np.array([-9.0, -8, -7, 7, 8, 9])
    basis = natural_spline(x, np.array([-1.0, 0, 0.5, 2]))
    for ends in (basis[:3], basis[3:]):
        np.testing.assert_allclose(np.diff(ends, 2, axis=0), 0, atol=1e-9)


def test_brier_parts_add_up_and_worked_values_hold() -> None:
    y, p = drawn(2000, 2)
    parts = brier_parts(y, p)
    assert parts.score == pytest.approx(((p - y) ** 2).mean())
    assert parts.score == pytest.approx(
        parts.miscalibration - parts.discrimination + parts.uncertainty, abs=1e-12
    )
    # Two groups of two: isotonic rates are 0 and 1/2 where 0.1 and 0.9 were said.
    worked = brier_parts(np.array([0, 0, 0, 1]), np.array([0.1, 0.1, 0.9, 0.9]))
    assert worked.uncertainty == pytest.approx(3 / 16)
    assert worked.discrimination == pytest.approx(3 / 16 - 1 / 8)
    assert worked.miscalibration == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4 - 1 / 8)


def test_brier_parts_are_those_of_isotonic_regression() -> None:
    y, p = drawn(2000, 6, shift=0.5)
    p = p.round(2)  # ties
    best = IsotonicRegression(y_min=0, y_max=1).fit(p, y).predict(p)
    parts = brier_parts(np.append(y, np.nan), np.append(p, 0.5))
    at_best = ((best - y) ** 2).mean()
    assert parts.miscalibration == pytest.approx(((p - y) ** 2).mean() - at_best, abs=1e-12)
    assert parts.discrimination == pytest.approx(y.var() - at_best, abs=1e-12)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_one_class_has_a_ratio_but_no_line(outcome: float) -> None:
    line = calibration_line(np.full(100, outcome), np.linspace(0.01, 0.3, 100))
    assert np.isnan([line.intercept, line.intercept_high, line.slope, line.slope_low]).all()
    assert line.ratio == pytest.approx(outcome * 100 / 15.5)
    events = int(outcome * 100)
    assert line.ratio_high == pytest.approx(chi2.ppf(0.975, 2 * events + 2) / 2 / 15.5)
    assert np.isnan(calibration_line(np.full(9, outcome), np.zeros(9)).ratio)


def test_certain_groups_are_right_or_rule_the_probabilities_out() -> None:
    y, p = np.repeat([0.0, 1, 0], [50, 10, 40]), np.repeat([0.0, 0.2], 50)
    found = hosmer_lemeshow(y, p)
    assert found.statistic == pytest.approx(0, abs=1e-12)
    y[0], y[50] = 1, 1
    assert hosmer_lemeshow(y, p).statistic == np.inf
    assert hosmer_lemeshow(y, p).p_value == 0


@pytest.mark.parametrize("values", [1, 2])
def test_few_probabilities_are_compared_with_their_rates(values: int) -> None:
    p = np.repeat([0.1, 0.4][:values], 1000)
    y = np.tile([1.0, 0, 0, 0], 250 * values)
    found = calibration_index(y, p)
    assert found.ici == pytest.approx(0.15, abs=1e-8)
    assert found.emax == pytest.approx(0.15, abs=1e-8)


def test_herfindahl_is_one_over_the_number_of_equal_shares() -> None:
    assert herfindahl(np.full(8, 1 / 8)) == pytest.approx(1 / 8)
    assert herfindahl(np.array([1.0, 0, 0])) == 1


def test_spiegelhalter_and_hosmer_lemeshow_are_worked_out() -> None:
    y, p = drawn(500, 3)
    z = ((y - p) * (1 - 2 * p)).sum() / np.sqrt(((1 - 2 * p) ** 2 * p * (1 - p)).sum())
    assert spiegelhalter(y, p).statistic == pytest.approx(z)
    assert spiegelhalter(y, p).p_value == pytest.approx(2 * norm.sf(abs(z)))
    order = np.argsort(p)
    statistic = 0.0
    for rows in np.array_split(order, 10):
        mean = p[rows].mean()
        statistic += (y[rows].sum() - p[rows].sum()) ** 2 / (len(rows) * mean * (1 - mean))
    assert hosmer_lemeshow(y, p).statistic == pytest.approx(statistic)
    assert hosmer_lemeshow(y, p).p_value == pytest.approx(chi2.sf(statistic, 10))


def test_certain_probabilities_are_right_or_ruled_out() -> None:
    p = np.array([0.0, 1, 0, 1])
    assert spiegelhalter(p, p).p_value == 1
    assert spiegelhalter(np.array([0.0, 1, 1, 1]), p).p_value == 0
    assert spiegelhalter(np.array([0.0, 1]), np.array([0.5, 0.5])).p_value == 1


@pytest.mark.parametrize("test", [spiegelhalter, hosmer_lemeshow])
def test_right_probabilities_are_rejected_as_seldom_as_promised(test: object) -> None:
    rejected = [test(*drawn(1000, seed)).p_value < 0.05 for seed in range(1000)]  # type: ignore[operator]
    assert 0.03 <= np.mean(rejected) <= 0.07


def test_bands_hold_as_many_rates_as_promised() -> None:
    inside = []
    for seed in range(60):
        curve = reliability_curve(*drawn(2000, seed), bins=10, draws=400, level=0.9)
        inside += (
            (curve["low"] <= curve["observed"]) & (curve["observed"] <= curve["high"])
        ).to_list()
    assert 0.88 <= np.mean(inside) <= 0.95  # above 0.9: rates are whole numbers of events
    off = reliability_curve(*drawn(2000, 0, shift=1), bins=10)
    assert (off["observed"] > off["high"]).mean() > 0.5


def test_jeffreys_is_the_beta_distribution() -> None:
    assert jeffreys(7, 200, 0.02) == pytest.approx(beta(7.5, 193.5).cdf(0.02), abs=1e-12)
    many = jeffreys(np.random.default_rng(0).binomial(400, 0.05, 4000), 400, 0.05)
    assert 0.035 <= np.mean(many < 0.05) <= 0.065


def test_grades_hold_their_rows() -> None:
    y, p = drawn(4000, 4)
    table = grade_table(y, p)
    assert table.height == len(MASTER_SCALE)
    assert table["rows"].sum() == 4000
    for row in table.iter_rows(named=True):
        inside = (p > row["lower"]) & (p <= row["upper"])
        assert row["rows"] == inside.sum()
        assert row["events"] == y[inside].sum()
        if row["rows"]:
            assert row["p_value"] == pytest.approx(
                jeffreys(y[inside].sum(), inside.sum(), p[inside].mean())
            )
        else:
            assert row["rate"] is None


@pytest.mark.parametrize("bounds", [(0.1, 0.5), (0.5, 0.1, 1.0), (), (0.0, 1.0), (np.nan, 1.0)])
def test_wrong_bounds_are_named(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending upper bounds that end in 1"):
        grade_table(np.array([0.0, 1]), np.array([0.1, 0.2]), bounds)


def test_bad_probabilities_are_named() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration_line(np.array([0.0, 1]), np.array([0.1, 1.2]))
    with pytest.raises(ValueError, match="no label is observed"):
        brier_parts(np.array([np.nan]), np.array([0.1]))


def test_a_million_rows_take_seconds() -> None:
    y, p = drawn(1_000_000, 5)
    started = time.perf_counter()
    calibration_line(y, p)
    calibration_index(y, p)
    brier_parts(y, p)
    reliability_curve(y, p)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("figure", "options", "message"),
    [
        (reliability_curve, {"bins": 0}, "bins is 0: ask for at least 1"),
        (reliability_curve, {"draws": 0}, "draws is 0: ask for at least 1"),
        (reliability_curve, {"level": 90}, "level is 90: give a confidence between 0 and 1"),
        (calibration_index, {"knots": 0}, "knots is 0: ask for at least 1"),
        (hosmer_lemeshow, {"groups": -1}, "groups is -1: ask for at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(
    figure: Callable[..., Any], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        figure(*drawn(100, 0), **options)
