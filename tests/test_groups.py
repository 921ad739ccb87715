"""Figures by group agree with a plain loop and statsmodels; intervals cover."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

from riskmtl.validation.groups import group_gaps, group_rates, ratio_of_shares, wilson

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from statsmodels.stats.proportion import (
        confint_proportions_2indep,
        proportion_confint,
    )


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, pl.Series]:
    generator = np.random.default_rng(0)
    p = generator.random(900)
    y = (generator.random(900) < p).astype(float)
    y[::7] = np.nan
    groups = pl.Series(generator.choice(["a", "b", "c"], 900, p=[0.5, 0.3, 0.2]))
    return y, p, groups.set(pl.Series(np.arange(900) < 20), None)


@pytest.mark.parametrize(("k", "n"), [(0, 9), (3, 9), (9, 9), (500, 2000)])
def test_wilson_is_that_of_statsmodels(k: int, n: int) -> None:
    assert wilson(k, n)[1:] == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)


def test_ratio_and_gap_are_those_of_statsmodels() -> None:
    found = ratio_of_shares(40, 100, 30, 120)
    expected = confint_proportions_2indep(40, 100, 30, 120, compare="ratio", method="log")
    assert found[1:] == pytest.approx(expected, abs=1e-9)
    y, p, groups = np.ones(220), np.r_[np.arange(100) < 40, np.arange(120) < 30].astype(float), None
    groups = pl.Series(["x"] * 100 + ["y"] * 120)
    gap = group_gaps(y, p, groups, cutoff=0.5, reference="y").row(0, named=True)
    expected = confint_proportions_2indep(40, 100, 30, 120, compare="diff", method="newcomb")
    assert (gap["recall_gap_low"], gap["recall_gap_high"]) == pytest.approx(expected, abs=1e-9)


def test_rates_are_those_of_a_plain_loop(rows: tuple[np.ndarray, np.ndarray, pl.Series]) -> None:
    y, p, groups = rows
    table = group_rates(y, p, groups, cutoff=0.6)
    assert set(table["group"]) == {"a", "b", "c", "(missing)"}
    for row in table.iter_rows(named=True):
        own = groups.is_null() if row["group"] == "(missing)" else groups == row["group"]
        mask = own.fill_null(False).to_numpy()
        seen = mask & ~np.isnan(y)
        assert row["flagged"] == pytest.approx((p[mask] >= 0.6).mean())
        assert row["events_over_expected"] == pytest.approx(y[seen].sum() / p[seen].sum())
        assert row["recall"] == pytest.approx((p[mask & (y == 1)] >= 0.6).mean())
        assert row["false_alarms"] == pytest.approx((p[mask & (y == 0)] >= 0.6).mean())
    gaps = group_gaps(y, p, groups, cutoff=0.6)
    assert gaps["reference"].unique().to_list() == ["a"]
    logit = np.log(p / (1 - p))
    b, a = (logit[(groups == g).fill_null(False).to_numpy()] for g in "ba")
    pooled = np.sqrt(
        ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    )
    assert gaps.filter(group="b")["smd"][0] == pytest.approx((b.mean() - a.mean()) / pooled)


def test_the_interval_of_the_impact_ratio_covers() -> None:
    generator = np.random.default_rng(1)
    groups = pl.Series(["a"] * 400 + ["b"] * 300)
    y, inside, truth = np.full(700, np.nan), 0, 0.7 / 0.9
    for _ in range(600):
        p = np.r_[generator.random(400) < 0.1, generator.random(300) < 0.3].astype(float)
        row = group_gaps(y, p, groups, cutoff=0.5).row(0, named=True)
        inside += row["impact_ratio_low"] <= truth <= row["impact_ratio_high"]
    assert 0.92 <= inside / 600 <= 0.97


def test_a_group_of_which_none_passes_has_a_ratio_of_nought() -> None:
    found = ratio_of_shares(0, 50, 80, 100)
    assert found[:2] == (0, 0)
    assert found[2] == pytest.approx(wilson(0, 50)[2] / 0.8)
    turned = ratio_of_shares(80, 100, 0, 50)
    assert turned == pytest.approx((np.inf, 1 / found[2], np.inf))
    assert np.isnan(ratio_of_shares(0, 5, 0, 5)).all()


def test_mistakes_are_named(rows: tuple[np.ndarray, np.ndarray, pl.Series]) -> None:
    y, p, groups = rows
    with pytest.raises(ValueError, match="give one per row"):
        group_rates(y, p, groups[:5], cutoff=0.5)
    with pytest.raises(ValueError, match="unknown group 'd'"):
        group_gaps(y, p, groups, cutoff=0.5, reference="d")
    with pytest.raises(ValueError, match="labels must be"):
        group_rates(np.where(y == 1, 2, y), p, groups, cutoff=0.5)
    for wrong in (np.nan, 1.5):
        with pytest.raises(ValueError, match="probabilities must be"):
            group_gaps(y, np.where(np.isnan(y), wrong, p), groups, cutoff=0.5)


def test_a_column_may_have_any_name(rows: tuple[np.ndarray, np.ndarray, pl.Series]) -> None:
    y, p, groups = rows
    expected = group_rates(y, p, groups, cutoff=0.5)
    assert group_rates(y, p, groups.alias("count"), cutoff=0.5).equals(expected)
