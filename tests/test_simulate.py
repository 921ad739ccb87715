"""The simulated portfolio: its masks follow their rules, and its truth is the best attainable."""

import datetime as dt
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from riskmtl import simulate
from riskmtl.schema_file import load_schema
from riskmtl.simulate import TASKS, Portfolio, simulate_portfolio

SCHEMA = Path(__file__).parents[1] / "data_schemas" / "risk_portfolio.yaml"
NEVER_OF_EFFECT = ["acc_region", "acc_months_since_delinquency", "txn_count", "gender"]


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    return simulate_portfolio(100_000, seed=5)


@pytest.fixture(scope="module", params=[0.0, 0.5, 1.0])
def at_relatedness(request: pytest.FixtureRequest) -> Portfolio:
    return simulate_portfolio(100_000, seed=11, relatedness=request.param)


def logits(portfolio: Portfolio, task: str) -> np.ndarray:
    p = portfolio.truth[f"p_{task}"].to_numpy()
    return np.log(p / (1 - p))


# --- The draw -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 400),
    seed=st.integers(0, 2**32 - 1),
    relatedness=st.floats(0, 1),
    months=st.integers(6, 60),
)
def test_any_arguments_give_a_whole_and_repeatable_table(n, seed, relatedness, months):
    first = simulate_portfolio(n, seed, relatedness=relatedness, months=months)
    again = simulate_portfolio(n, seed, relatedness=relatedness, months=months)
    assert_frame_equal(first.frame, again.frame)
    assert_frame_equal(first.truth, again.truth)
    assert first.frame.height == first.truth.height == n
    assert first.frame["snapshot_date"].min() >= dt.date(2023, 1, 1)
    assert first.frame["snapshot_date"].max() <= first.as_of
    probabilities = first.truth.select("p_default", "p_fraud", "p_takeover")
    assert (
        probabilities.select(pl.all().is_between(0, 1, closed="none").all()).row(0) == (True,) * 3
    )


def test_seed_changes_the_draw_and_relatedness_only_the_outcomes():
    base, other = simulate_portfolio(500, seed=1), simulate_portfolio(500, seed=2)
    related = simulate_portfolio(500, seed=1, relatedness=0.1)
    assert not base.frame["acc_utilisation"].equals(other.frame["acc_utilisation"])
    assert_frame_equal(base.frame.drop(TASKS), related.frame.drop(TASKS))
    assert not base.truth["p_fraud"].equals(related.truth["p_fraud"])


@pytest.mark.parametrize(("months", "last"), [(6, (2023, 6, 30)), (14, (2024, 2, 29))])
def test_table_is_drawn_on_the_last_day_of_the_window(months, last):
    portfolio = simulate_portfolio(3_000, months=months)
    assert portfolio.as_of == dt.date(*last)
    assert portfolio.frame["snapshot_date"].dt.strftime("%Y-%m").n_unique() == months


def test_accounts_live_through_consecutive_months_in_order(portfolio):
    keys = portfolio.frame.select("account_id", "snapshot_date")
    assert_frame_equal(keys, portfolio.truth.select("account_id", "snapshot_date"))
    assert_frame_equal(keys, keys.sort("snapshot_date", "account_id"))
    month = pl.col("snapshot_date").dt.year() * 12 + pl.col("snapshot_date").dt.month()
    steps = keys.select(step=month.diff().over("account_id")).drop_nulls()
    assert steps["step"].unique().to_list() == [1]
    assert 5 < keys.height / keys["account_id"].n_unique() < 7


def test_months_are_about_equally_full(portfolio):
    size = portfolio.frame.group_by(pl.col("snapshot_date").dt.strftime("%Y-%m")).len()["len"]
    assert size.max() < 1.15 * size.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1 row, got 0"),
        ({"months": 5}, "months must be at least 6, got 5"),
        ({"relatedness": -0.01}, "relatedness must lie between 0 and 1, got -0.01"),
        ({"relatedness": 1.01}, "relatedness must lie between 0 and 1, got 1.01"),
        ({"relatedness": float("nan")}, "relatedness must lie between 0 and 1, got nan"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_portfolio(**{"n": 10} | options)


def test_hundred_thousand_rows_take_less_than_five_seconds():
    start = time.perf_counter()
    simulate_portfolio(100_000, seed=99)
    assert time.perf_counter() - start < 5


# --- The columns ----------------------------------------------------------------------------------


def test_device_columns_are_empty_exactly_where_nobody_logged_in(portfolio):
    device = portfolio.frame.select(pl.col("^dev_.*$"))
    login = device["dev_digital_login"]
    assert 0.6 < login.mean() < 0.7
    offline, online = device.filter(~login), device.filter(login)
    sometimes_missing = {"dev_typing_speed"}
    for name in set(device.columns) - {"dev_digital_login"}:
        if device.schema[name] == pl.String:
            assert offline[name].unique().to_list() == ["none"]
            assert "none" not in online[name].unique().to_list()
        else:
            assert offline[name].null_count() == offline.height
            assert (online[name].null_count() > 0) == (name in sometimes_missing)


def test_missing_codes_and_nulls_are_there(portfolio):
    frame = portfolio.frame
    for name in ("acc_bureau_score", "acc_months_since_delinquency"):
        assert frame.filter(pl.col(name) < 0)[name].unique().sort().to_list() == [-99, -9]
    assert "unknown" in frame["acc_employment"].unique().to_list()
    for name in ("acc_income", "acc_residence", "txn_salary_change"):
        assert 0.02 < frame[name].null_count() / frame.height < 0.4


def test_income_is_withheld_more_often_where_risk_is_high(portfolio):
    withheld = portfolio.frame["acc_income"].is_null()
    risk = portfolio.truth["p_default"]
    assert risk.filter(withheld).mean() > 1.1 * risk.filter(~withheld).mean()


@pytest.mark.parametrize(
    ("name", "first_newcomer"), [("txn_main_merchant", "M4000"), ("dev_model", "model_32")]
)
def test_late_months_hold_categories_that_early_months_do_not(portfolio, name, first_newcomer):
    start = portfolio.frame.filter(pl.col("snapshot_date") < dt.date(2023, 2, 1))[name]
    assert start.filter(start != "none").max() < first_newcomer
    early = pl.col("snapshot_date") < dt.date(2024, 4, 1)
    known = portfolio.frame.filter(early)[name].unique()
    unseen = ~portfolio.frame.filter(~early)[name].is_in(known.implode())
    assert 0.005 < unseen.mean() < 0.2


def test_merchants_are_many_and_unequal(portfolio):
    count = portfolio.frame["txn_main_merchant"].value_counts(sort=True)["count"]
    assert 4_000 < count.len() <= 5_000
    assert count[0] > 100 * count.median()


def test_columns_drift_over_the_months(portfolio):
    frame = portfolio.frame
    first = frame.filter(pl.col("snapshot_date") < dt.date(2023, 4, 1))
    last = frame.filter(pl.col("snapshot_date") >= dt.date(2024, 10, 1))
    for name in ("txn_online_share", "dev_digital_login", "dev_vpn"):
        assert last[name].mean() > 1.05 * first[name].mean()


# --- The outcomes ---------------------------------------------------------------------------------


def test_rates(at_relatedness):
    for task, rate in {"default": 0.04, "fraud": 0.012, "takeover": 0.004}.items():
        assert at_relatedness.truth[f"p_{task}"].mean() == pytest.approx(rate, rel=0.15)
        assert at_relatedness.truth[task].mean() == pytest.approx(rate, rel=0.25)
    assert at_relatedness.frame["approved"].mean() == pytest.approx(0.75, abs=0.02)


def test_outcomes_happen_as_often_as_their_probabilities_say(at_relatedness):
    truth = at_relatedness.truth
    for task in TASKS:
        p = truth[f"p_{task}"].to_numpy()
        group = np.searchsorted(np.quantile(p, [0.5, 0.9, 0.99]), p)
        expected = np.bincount(group, p)
        noise = np.sqrt(np.bincount(group, p * (1 - p)))
        happened = np.bincount(group, truth[task].to_numpy())
        assert np.all(np.abs(happened - expected) < 4.5 * noise)


def test_labels_are_observed_exactly_where_the_rules_say(portfolio):
    frame, truth = portfolio.frame, portfolio.truth
    age = pl.lit(portfolio.as_of) - pl.col("snapshot_date")
    rules = {
        "default": pl.col("approved") & (age >= pl.duration(days=120)),
        "fraud": age >= pl.duration(days=45),
        "takeover": pl.col("dev_digital_login"),
    }
    for task, rule in rules.items():
        observed = frame.select(rule).to_series()
        assert 0 < observed.sum() < frame.height
        assert frame[task].is_not_null().equals(observed)
        assert frame[task].filter(observed).equals(truth[task].filter(observed))


def test_probabilities_are_a_function_of_the_recorded_inputs(portfolio):
    frame = portfolio.frame.drop("approved", *TASKS)
    order = np.random.default_rng(0).permutation(frame.height)[:5_000]
    some = frame[order].with_columns(
        pl.col(name).shuffle(seed=0) for name in ["account_id", "snapshot_date", *NEVER_OF_EFFECT]
    )
    probabilities = simulate._law(0.7).probabilities(simulate._indices(some))
    for task in TASKS:
        np.testing.assert_allclose(probabilities[task], portfolio.truth[f"p_{task}"][order])


def test_takeover_is_small_but_possible_without_a_login(portfolio):
    login = portfolio.frame["dev_digital_login"]
    p = portfolio.truth["p_takeover"]
    assert p.filter(~login).min() > 0
    assert p.filter(~login).mean() < 0.1 * p.filter(login).mean()


def test_declined_accounts_default_more_often(at_relatedness):
    approved = at_relatedness.frame["approved"]
    default = at_relatedness.truth["default"]
    assert default.filter(~approved).mean() > 2 * default.filter(approved).mean()


def test_relatedness_raises_the_correlation_of_the_true_logits():
    levels = (0.0, 0.25, 0.5, 0.75, 1.0)
    drawn = [simulate_portfolio(20_000, seed=4, relatedness=level) for level in levels]
    for pair in combinations(TASKS, 2):
        correlation = []
        for portfolio in drawn:
            login = portfolio.frame["dev_digital_login"].to_numpy()
            first, second = (logits(portfolio, task)[login] for task in pair)
            correlation.append(np.corrcoef(first, second)[0, 1])
        assert abs(correlation[0]) < 0.05
        assert np.all(np.diff(correlation) > 0.1)
        assert correlation[-1] > 0.85


# --- The best attainable --------------------------------------------------------------------------


def test_best_attainable_lies_in_the_intended_range(at_relatedness):
    # A hundred thousand rows hold some 400 takeovers: 0.02 is two standard errors of the AUC.
    for task, low, high in [
        ("default", 0.80, 0.85),
        ("fraud", 0.88, 0.92),
        ("takeover", 0.92, 0.95),
    ]:
        assert low - 0.02 < at_relatedness.best_attainable(task)["roc_auc"] < high + 0.02


def test_best_attainable_takes_rows_in_three_forms(portfolio):
    early = pl.col("snapshot_date") < dt.date(2024, 1, 1)
    series = portfolio.frame.select(early).to_series()
    expected = portfolio.best_attainable("fraud", early)
    assert portfolio.best_attainable("fraud", series) == expected
    assert portfolio.best_attainable("fraud", series.to_numpy()) == expected
    assert portfolio.best_attainable("fraud") != expected


def test_other_scores_do_not_beat_the_true_probability(portfolio):
    truth = portfolio.truth
    for task, other in [("default", "fraud"), ("fraud", "takeover"), ("takeover", "default")]:
        swapped = truth.with_columns(pl.col(f"p_{other}").alias(f"p_{task}"))
        worse = Portfolio(portfolio.frame, swapped, portfolio.as_of).best_attainable(task)
        best = portfolio.best_attainable(task)
        assert worse["roc_auc"] < best["roc_auc"]
        assert worse["average_precision"] < best["average_precision"]


def test_best_attainable_names_an_unknown_task_and_labels_all_alike(portfolio):
    with pytest.raises(ValueError, match="unknown task 'churn'"):
        portfolio.best_attainable("churn")
    with pytest.raises(ValueError, match="labels of 'fraud' in these rows are all alike"):
        portfolio.best_attainable("fraud", pl.col("snapshot_date") > portfolio.as_of)


# --- The schema file ------------------------------------------------------------------------------


def test_schema_file_describes_the_table(portfolio):
    schema = load_schema(SCHEMA)
    declared = [column.name for column in schema.columns]
    assert declared == portfolio.frame.drop(TASKS).columns
    assert 45 <= len(schema.input_columns) <= 55
    assert schema.check(portfolio.frame).quarantine.is_empty()


def test_schema_file_observes_the_same_labels(portfolio):
    unmasked = portfolio.frame.with_columns(portfolio.truth.select(TASKS))
    labels = load_schema(SCHEMA).labels(unmasked).cast(pl.Int8)
    assert_frame_equal(labels, portfolio.frame.select(TASKS))


def test_schema_file_splits_by_time_with_outcomes_in_every_part(portfolio):
    schema = load_schema(SCHEMA)
    parts = schema.split(portfolio.frame)
    assert parts.train["snapshot_date"].max() <= parts.validation["snapshot_date"].min()
    assert parts.validation["snapshot_date"].max() <= parts.test["snapshot_date"].min()
    for part in parts:
        assert part.select(pl.col(TASKS).sum() > 20).row(0) == (True,) * 3
