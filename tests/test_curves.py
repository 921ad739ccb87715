"""Figures of a ranking agree with scikit-learn and scipy; intervals cover what they promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from riskmtl.metrics import recall_at_fpr
from riskmtl.validation.comparison import auc_difference
from riskmtl.validation.curves import (
    Ranking,
    auc_interval,
    bootstrap_intervals,
    gains,
    gains_by_decile,
)


def drawn(rows: int, seed: int, *, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = (generator.random(rows) < 0.1).astype(float)
    s = y + generator.normal(size=rows)
    y[generator.random(rows) < 0.1] = np.nan
    return y, s.round(1) if ties else s


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
def test_figures_are_those_of_sklearn_and_scipy(seed: int, ties: bool) -> None:
    y, s = drawn(2000, seed, ties=ties)
    seen = ~np.isnan(y)
    found = Ranking.of(y, s)
    assert found.auc == pytest.approx(roc_auc_score(y[seen], s[seen]), abs=1e-12)
    assert found.average_precision == pytest.approx(
        average_precision_score(y[seen], s[seen]), abs=1e-12
    )
    assert found.ks == pytest.approx(ks_2samp(s[y == 1], s[y == 0]).statistic, abs=1e-12)
    for fpr in (0.01, 0.05, 0.3):
        assert found.recall_at_fpr(fpr) == pytest.approx(recall_at_fpr(y, s, fpr=fpr), abs=1e-9)


def test_capture_counts_events_among_the_highest_scores() -> None:
    y, s = drawn(1000, 3, ties=False)
    y = np.nan_to_num(y)
    top = np.argsort(-s)[:50]
    found = Ranking.of(y, s)
    assert found.capture(0.05) == pytest.approx(y[top].sum() / y.sum())
    assert found.precision(0.05) == pytest.approx(y[top].mean())


def test_tenths_hold_all_rows_and_events() -> None:
    y, s = drawn(1003, 4)
    found = gains_by_decile(Ranking.of(y, s))
    assert found["rows"].sum() == pytest.approx((~np.isnan(y)).sum())
    assert found["events"].sum() == pytest.approx(np.nansum(y))
    assert found["captured"][-1] == pytest.approx(1)
    curve = gains(Ranking.of(y, s))
    assert curve.height <= 101
    assert curve.select("share", "recall", "fpr").row(0) == (0, 0, 0)
    assert curve.select("share", "recall", "fpr").row(-1) == (1, 1, 1)


def slow_variance(y: np.ndarray, s: np.ndarray) -> float:
    """DeLong's variance from all pairs."""
    a, b = s[y == 1], s[y == 0]
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    return wins.mean(1).var(ddof=1) / len(a) + wins.mean(0).var(ddof=1) / len(b)


def error_of(interval: object) -> float:
    """The standard error of the area that an interval was made from."""
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    low, high, area = (getattr(interval, name) for name in ("low", "high", "estimate"))
    return float((logit(high) - logit(low)) / (2 * norm.ppf(0.975)) * area * (1 - area))


def test_the_interval_is_delongs() -> None:
    y, s = drawn(300, 7)
    seen = ~np.isnan(y)
    found = auc_interval(y, s)
    assert error_of(found) ** 2 == pytest.approx(slow_variance(y[seen], s[seen]), rel=1e-9)


# 113 patients with a haemorrhage: outcome good or poor, WFNS score, and S100B in 0.01 µg/l
# (N. Turck and others 2010, Intensive Care Medicine 36, 107-115; table ``aSAH`` of R's pROC).
OUTCOME = (
    "GGGGPPGPGGPGPPGGPGPPPGPGGGGGGGGGPGGPPGPPGGGGGGGGGPPGGGPGGG"
    "PGPGGPPPGPPGPPPPGGGPPGPGGGGGGPGGGGGGGGGGGGPPPPPPGGGPGGG"
)
WFNS = (
    "11113254125255125225211112121134214541425511241125521251222"
    "151125214524414121421232421451154221113125225552445111"
)
S100B = """
    13 14 10 4 13 10 47 16 18 10 12 10 44 71 4 8 49 4 7 33 9 9 7 11 7 17 7 11 13 19 5 16 41 14 34
    35 48 9 96 25 50 46 16 7 43 45 11 8 9 86 52 8 6 13 207 10 14 15 7 6 77 5 9 30 3 9 4 23 70 9 27
    71 8 26 8 16 9 13 10 8 11 33 11 28 7 10 32 22 7 5 24 38 10 15 8 14 10 7 4 19 56 14 58 32 82 74
    15 47 17 44 15 50 48
"""


def test_areas_of_a_published_table_are_those_of_other_programs() -> None:
    """
    What Stata's roctab (area, error) and pROC's roc.test (z, p) say of it, digit by digit.

    Both follow DeLong, DeLong and Clarke-Pearson; see X. Robin and others (2011), BMC
    Bioinformatics 12, 77.
    """
    y = np.array([outcome == "P" for outcome in OUTCOME], dtype=float)
    wfns, s100b = np.array(list(WFNS), dtype=float), np.array(S100B.split(), dtype=float)
    found = auc_interval(y, s100b)
    assert found.estimate == pytest.approx(0.7314, abs=5e-5)
    assert error_of(found) == pytest.approx(0.05165929, abs=5e-9)
    difference = auc_difference(y, wfns, s100b)
    error = (difference.high - difference.low) / (2 * norm.ppf(0.975))
    assert difference.estimate / error == pytest.approx(2.209, abs=5e-4)
    assert difference.p_value == pytest.approx(0.02718, abs=5e-6)


def test_customers_of_one_row_change_little_and_copies_widen() -> None:
    y, s = drawn(3000, 8)
    alone = auc_interval(y, s)
    each = auc_interval(y, s, clusters=np.arange(len(y)))
    assert error_of(each) == pytest.approx(error_of(alone), rel=0.01)
    y4, s4 = np.tile(y, 4), np.tile(s, 4)
    copies = auc_interval(y4, s4, clusters=np.tile(np.arange(len(y)), 4))
    assert error_of(copies) == pytest.approx(error_of(each), rel=0.01)
    assert error_of(auc_interval(y4, s4)) == pytest.approx(error_of(alone) / 2, rel=0.01)


def test_few_customers_with_events_have_obuchowskis_variance() -> None:
    generator = np.random.default_rng(6)
    y = np.repeat([1.0, 0.0], [10, 200])
    s = y + generator.normal(size=210)
    # A customer per row: then it is DeLong's, whose factors are those of the classes.
    found = auc_interval(y, s, clusters=np.arange(210))
    assert error_of(found) ** 2 == pytest.approx(slow_variance(y, s), rel=1e-9)
    who = np.arange(210) // 3
    a, b = s[y == 1], s[y == 0]
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    of_event, of_other = (np.bincount(who[y == c], w, minlength=70) for c, w in
                          ((1, (wins.mean(1) - wins.mean()) / 10),
                           (0, (wins.mean(0) - wins.mean()) / 200)))  # fmt: skip
    with_events, with_others = (len(np.unique(who[y == c])) for c in (1, 0))
    expected = with_events / (with_events - 1) * (of_event**2).sum()
    expected += with_others / (with_others - 1) * (of_other**2).sum()
    expected += 2 * 70 / 69 * (of_event * of_other).sum()
    assert error_of(auc_interval(y, s, clusters=who)) ** 2 == pytest.approx(expected, rel=1e-9)


def test_events_of_one_customer_say_nothing_of_others() -> None:
    y, s = np.repeat([1.0, 0.0], [40, 160]), np.arange(200.0) % 37
    who = np.r_[np.zeros(40, dtype=int), np.arange(1, 161)]
    found = auc_interval(y, s, clusters=who)
    assert (found.low, found.high) == (0, 1)
    drawn_ = bootstrap_intervals(Ranking.of(y, s, who), ["ks", "average_precision"])
    assert {(one.low, one.high) for one in drawn_.values()} == {(0.0, 1.0)}


def test_customers_are_drawn_as_a_whole() -> None:
    y, s = drawn(2000, 9)
    y = np.nan_to_num(y)
    names = ["ks", "average_precision", "capture_at_5pct"]
    alone = bootstrap_intervals(Ranking.of(y, s), names, draws=600)
    copies = Ranking.of(np.tile(y, 4), np.tile(s, 4), np.tile(np.arange(2000), 4))
    for name, found in bootstrap_intervals(copies, names, draws=600).items():
        reach = alone[name].high - alone[name].low
        assert found.high - found.low == pytest.approx(reach, rel=0.25)


@pytest.mark.parametrize("use", [auc_interval, Ranking.of])
def test_customers_of_other_rows_are_named(use: object) -> None:
    y = np.array([0.0, 0, 1, 1])
    with pytest.raises(ValueError, match="give a customer per row"):
        use(y, y, clusters=np.arange(3))  # type: ignore[operator]


def test_the_interval_of_the_area_covers() -> None:
    truth, inside = norm.cdf(1 / np.sqrt(2)), 0
    generator = np.random.default_rng(0)
    y = np.repeat([1.0, 0.0], [40, 200])
    for _ in range(1000):
        found = auc_interval(y, y + generator.normal(size=len(y)))
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 1000 <= 0.97


def test_the_interval_of_customers_covers_where_rows_of_one_depend() -> None:
    """Both classes share an effect of their customer; an interval by row would be too narrow."""
    generator = np.random.default_rng(1)
    who = np.repeat(np.arange(60), 6)
    y = np.tile([1.0, 0, 0, 1, 0, 0], 60)
    truth = norm.cdf(1 / 2)  # the difference of two scores has variance 2 * (1 + 1)
    inside = by_row = 0
    for _ in range(600):
        own = generator.normal(size=(2, 60))
        s = y + np.where(y == 1, own[0][who], own[1][who]) + generator.normal(size=len(y))
        found, naive = auc_interval(y, s, clusters=who), auc_interval(y, s)
        inside += found.low <= truth <= found.high
        by_row += naive.low <= truth <= naive.high
    assert 0.92 <= inside / 600 <= 0.97
    assert by_row < inside - 12


def test_bootstrap_intervals_cover() -> None:
    generator = np.random.default_rng(2)
    y = np.repeat([1.0, 0.0], [150, 1500])
    truth = norm.sf(norm.ppf(0.95) - 1.5)  # recall at 5 % false positives
    inside = 0
    for seed in range(400):
        ranking = Ranking.of(y, 1.5 * y + generator.normal(size=len(y)))
        found = bootstrap_intervals(ranking, ["recall_at_5pct_fpr"], draws=199, seed=seed)
        low, high = found["recall_at_5pct_fpr"].low, found["recall_at_5pct_fpr"].high
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.975


def test_draws_by_stretch_are_draws_of_rows() -> None:
    """The spread of the figures is that of resampled rows, sorted again each time."""
    y, s = drawn(800, 5)
    seen = ~np.isnan(y)
    y, s = y[seen], s[seen]
    found = bootstrap_intervals(Ranking.of(y, s), ["average_precision"], draws=2000)
    generator = np.random.default_rng(0)
    events, others = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    slow = []
    for _ in range(2000):
        rows = np.concatenate([generator.choice(events, len(events)),
                               generator.choice(others, len(others))])  # fmt: skip
        slow.append(average_precision_score(y[rows], s[rows]))
    low, high = np.quantile(slow, [0.025, 0.975])
    reach = high - low
    assert found["average_precision"].low == pytest.approx(low, abs=0.08 * reach)
    assert found["average_precision"].high == pytest.approx(high, abs=0.08 * reach)


def test_a_million_rows_take_seconds() -> None:
    generator = np.random.default_rng(0)
    y = (generator.random(1_000_000) < 0.01).astype(float)
    s = y + generator.normal(size=len(y))
    started = time.perf_counter()
    auc_interval(y, s)
    ranking = Ranking.of(y, s)
    bootstrap_intervals(ranking, ["ks", "average_precision", "capture_at_1pct"], draws=300)
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1.0, 0, 0], [1.0, 2, 3], "at least two rows of each"),
        ([1.0, 1, 0, 0], [1.0, 2, 3], "give"),
        ([1.0, 1, 0, 2], [1.0, 2, 3, 4], "0, 1, or NaN"),
        ([1.0, 1, 0, 0], [1.0, 2, np.nan, 4], "a score is NaN"),
    ],
)
def test_bad_rows_are_named(labels: list[float], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranking.of(np.array(labels), np.array(scores))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda r: auc_interval(r.labels, r.labels, level=1), "level is 1: give a confidence"),
        (lambda r: auc_interval(r.labels, r.labels, level=95), "level is 95: .* between 0 and 1"),
        (lambda r: bootstrap_intervals(r, ["ks"], level=0), "level is 0: give a confidence"),
        (lambda r: bootstrap_intervals(r, ["ks"], draws=0), "draws is 0: ask for at least 1"),
        (lambda r: r.capture(1.5), "budget is 1.5: give a share from 0 to 1"),
        (lambda r: r.capture(float("nan")), "budget is nan: give a share from 0 to 1"),
        (lambda r: r.recall_at_fpr(-0.1), "fpr is -0.1: give a share from 0 to 1"),
        (lambda r: r.precision(0), "budget is 0: give a share above 0 and at most 1"),
        (lambda r: gains(r, points=0), "points is 0: ask for at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(use: Callable[[Ranking], Any], message: str) -> None:
    ranking = Ranking.of(np.array([0, 1, 0, 1]), np.arange(4))
    with pytest.raises(ValueError, match=message):
        use(ranking)
    assert (ranking.capture(0), ranking.capture(1), ranking.precision(1)) == (0.0, 1.0, 0.5)


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'ks'"):
        bootstrap_intervals(Ranking.of(np.array([0, 0, 1, 1]), np.arange(4)), ["ksx"])
