"""Validation through its public face: each section catches what the simulator provokes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

from riskmtl import DataSchema, LogisticBaseline, MultiTaskClassifier, RiskModel, simulate_portfolio
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.explanation import Explanation
from riskmtl.schema import Split
from riskmtl.validation import Evidence, Finding, Result, Settings, Verdict, load_settings, section
from riskmtl.validation import validate as validate_model
from riskmtl.validation.comparison import auc_difference
from riskmtl.validation.sections import (
    SECTIONS,
    calibration,
    challengers,
    data,
    discrimination,
    explanations,
    fairness,
    joint,
    limits,
    robustness,
    stability,
    use,
)


@pytest.fixture(scope="module")
def portfolio_parts(schema: DataSchema) -> Split:
    return schema.split(simulate_portfolio(120_000, seed=11).frame)


@pytest.fixture(scope="module")
def logistic(portfolio_parts: Split, schema: DataSchema) -> RiskModel:
    """A sound model that is fitted in seconds."""
    model = LogisticBaseline(schema=schema, random_state=0)
    return model.fit(portfolio_parts.train, X_val=portfolio_parts.validation).model_


@pytest.fixture(scope="module")
def later(portfolio_parts: Split) -> pl.DataFrame:
    return portfolio_parts.test


def _of(result: Result, head: str, what: str) -> Finding:
    return next(f for f in result.findings if f.head == head and what in f.what)


# ---- what the simulator provokes -----------------------------------------------------------------


def test_a_leaked_column_is_caught_by_data(logistic: RiskModel, later: pl.DataFrame) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, later.height)
    leaked = later.with_columns(
        txn_inflow_ratio=pl.col("default").fill_null(0).cast(pl.Float64) + 1 + pl.Series(noise)
    )
    clean, found = data(logistic, later), data(logistic, leaked)
    assert clean.verdict is Verdict.PASS
    finding = _of(found, "default", "alone")
    assert finding.verdict is Verdict.FAIL
    assert "txn_inflow_ratio" in finding.what
    assert _of(found, "fraud", "alone").verdict is Verdict.PASS


def test_a_leaked_category_and_a_telling_gap_are_caught(
    logistic: RiskModel, later: pl.DataFrame
) -> None:
    event = pl.col("fraud").fill_null(0) == 1
    by_name = later.with_columns(
        acc_channel=pl.when(event).then(pl.lit("late")).otherwise(pl.lit("early"))
    )
    assert _of(data(logistic, by_name), "fraud", "alone").verdict is Verdict.FAIL
    by_gap = later.with_columns(acc_income=pl.when(~event).then("acc_income"))
    finding = _of(data(logistic, by_gap), "fraud", "acc_income")
    assert finding.verdict is Verdict.FAIL


def test_rows_of_the_training_are_caught(
    logistic: RiskModel, portfolio_parts: Split, later: pl.DataFrame
) -> None:
    both = pl.concat([later, portfolio_parts.train.head(1000)])
    clean = data(logistic, later, reference=portfolio_parts.train)
    found = data(logistic, both, reference=portfolio_parts.train)
    assert _of(clean, "", "also in training").verdict is Verdict.PASS
    finding = _of(found, "", "also in training")
    assert finding.verdict is Verdict.FAIL
    assert finding.value == pytest.approx(1000 / both.height)


def test_a_date_after_its_row_is_caught(logistic: RiskModel, later: pl.DataFrame) -> None:
    late = later.with_columns(pl.col("snapshot_date").dt.offset_by("3d").alias("acc_opened_date"))
    finding = _of(data(logistic, late), "", "dates after the row")
    assert (finding.verdict, finding.value) == (Verdict.FAIL, 1.0)


def test_rows_that_break_the_schema_are_counted(logistic: RiskModel, later: pl.DataFrame) -> None:
    broken = later.with_columns(
        acc_age=pl.when(pl.int_range(pl.len()) < later.height // 50)
        .then(pl.lit(3, pl.Int64))
        .otherwise(pl.col("acc_age"))
    )
    found = data(logistic, broken)
    assert _of(found, "", "refused").verdict is Verdict.FAIL
    assert found.table("refused").row(0) == ("acc_age: below 18", later.height // 50)


def test_it_says_how_late_outcomes_arrive(logistic: RiskModel, later: pl.DataFrame) -> None:
    """Defaults are known after 120 days, frauds after 45, and takeovers on the day."""
    table = next(t for t in data(logistic, later).tables if t.key == "lateness")
    assert "months from the row to 2024-12-31" in table.note
    assert "from age 4 on for default" in table.note
    assert "from age 2 on for fraud" in table.note
    assert "at every age for takeover" in table.note
    ages = table.frame["age in months"].to_list()
    assert ages == list(range(9))
    whole = later.filter(
        pl.col("snapshot_date").is_between(pl.date(2024, 8, 1), pl.date(2024, 8, 31))
    )
    known = table.frame.filter(pl.col("age in months") == 4).row(0, named=True)
    assert known["rows"] == whole.height
    assert known["default observed"] == pytest.approx(whole["default"].is_not_null().mean())
    assert known["fraud observed"] == 1.0


def test_outcomes_that_never_level_off_are_said_so(
    cards_schema: DataSchema, cards: pl.DataFrame
) -> None:
    model = LogisticBaseline(schema=cards_schema, random_state=0).fit(cards)
    months = pl.int_range(pl.len()) // 34
    rising = cards.with_columns(
        day=pl.date(2024, 1 + months, 1), online=pl.int_range(pl.len()) % 12 >= months
    )
    table = next(t for t in data(model, rising).tables if t.key == "lateness")
    # The schema names no day of record, and defaults are known of all rows.
    assert "to the last row" in table.note
    assert "among the oldest rows only for fraud" in table.note
    assert table.frame.columns == ["age in months", "rows", "fraud observed"]
    known = cards.with_columns(online=pl.lit(True))
    assert "lateness" not in [t.key for t in data(model, known).tables]


def test_drift_is_caught_by_stability(
    logistic: RiskModel, portfolio_parts: Split, later: pl.DataFrame
) -> None:
    drifted = later.with_columns(
        acc_utilisation=pl.col("acc_utilisation") * 2 + 0.4,
        acc_payment_ratio=pl.col("acc_payment_ratio") * 0.4,
        txn_low_balance_days=(pl.col("txn_low_balance_days") + 9).clip(0, 31),
    )
    clean = stability(logistic, later, reference=portfolio_parts.train)
    found = stability(logistic, drifted, reference=portfolio_parts.train)
    assert {f.verdict for f in clean.findings if f.head} == {Verdict.PASS}
    assert _of(found, "default", "PSI").verdict is Verdict.FAIL
    assert _of(found, "", "CSI").verdict is Verdict.WATCH
    assert found.table("column_stability")["column"][0] in (
        "acc_utilisation",
        "acc_payment_ratio",
        "txn_low_balance_days",
    )
    clean_auc, drift_auc = (
        float(next(t.note for t in r.tables if t.key == "drift_classifier").split("AUC ")[1][:5])
        for r in (clean, found)
    )
    assert drift_auc > max(0.9, clean_auc + 0.05)


def test_stability_is_shown_by_the_month_or_any_other_vintage(
    logistic: RiskModel, later: pl.DataFrame
) -> None:
    def by(vintage: str) -> pl.DataFrame:
        settings = Settings(vintage=vintage, min_events=2, graded=())
        return stability(logistic, later, settings=settings).table("vintages")

    monthly = by("")
    assert monthly["vintage"].unique().sort().to_list() == [f"2024-{m:02}" for m in range(4, 13)]
    assert by("snapshot_date").equals(monthly)
    products = by("acc_product").filter(pl.col("head") == "fraud")
    assert products["vintage"].to_list() == later["acc_product"].unique().sort().to_list()
    known = later.filter(pl.col("fraud").is_not_null())
    assert (
        products["rows"].to_list()
        == known.group_by("acc_product").len().sort("acc_product")["len"].to_list()
    )
    # Numbers keep their order, and a row that has none belongs to no vintage.
    later = later.with_columns(
        acc_tenure_months=pl.when(pl.col("acc_age") > 30).then(pl.col("acc_age").clip(0, 60) // 4)
    )
    tenures = by("acc_tenure_months").filter(pl.col("head") == "fraud")
    numbers = [int(vintage) for vintage in tenures["vintage"]]
    assert numbers == sorted(numbers)
    assert numbers[0] < 10 <= numbers[-1]
    assert tenures["rows"].sum() == known.filter(pl.col("acc_age") > 30).height


def test_miscalibration_is_caught_by_calibration(logistic: RiskModel, later: pl.DataFrame) -> None:
    heads = [
        replace(h, calibrator=replace(h.calibrator, intercept=h.calibrator.intercept + 0.7))
        if h.task == "fraud"
        else h
        for h in logistic.heads
    ]
    found = calibration(replace(logistic, heads=heads), later)
    assert _of(found, "fraud", "expected over events").verdict is Verdict.FAIL
    clean = calibration(logistic, later)
    assert _of(clean, "fraud", "expected over events").verdict is Verdict.PASS
    assert _of(clean, "fraud", "events over expected").verdict is Verdict.PASS


def test_a_simpler_model_that_ranks_better_is_caught(
    logistic: RiskModel, later: pl.DataFrame, trained: MultiTaskClassifier
) -> None:
    found = joint(trained, later, challengers={"single_task": logistic})
    assert _of(found, "default", "lost by joint").verdict in (Verdict.WATCH, Verdict.FAIL)
    same = joint(logistic, later, challengers={"single_task": logistic})
    assert {f.verdict for f in same.findings} == {Verdict.PASS}
    beaten = challengers(trained, later, challengers={"logistic": logistic})
    assert _of(beaten, "default", "AUC of logistic").verdict in (Verdict.WATCH, Verdict.FAIL)


@pytest.mark.slow
def test_negative_transfer_is_caught_by_joint(schema: DataSchema) -> None:
    """Heads that share no causes, squeezed through one unit that only fraud shapes."""
    parts = schema.split(simulate_portfolio(60_000, seed=5, relatedness=0).frame)
    small: dict[str, Any] = {
        "schema": schema,
        "epochs": 4,
        "members": 1,
        "embedding_dim": 4,
        "bins": 8,
        "few_events": 0,
        "random_state": 0,
    }
    networks = {
        "single_task": {"network": "single_task", "expert_units": [16]},
        "sound": {"network": "ple", "expert_units": [16]},
        "squeezed": {
            "network": "shared_bottom",
            "expert_units": [1],
            "task_weights": {"default": 1e-4, "fraud": 1.0, "takeover": 1e-4},
        },
    }
    models = {
        name: MultiTaskClassifier(**small, **options).fit(parts.train, X_val=parts.validation)
        for name, options in networks.items()
    }
    single = {"single_task": models["single_task"]}
    hurt = joint(models["squeezed"], parts.test, challengers=single)
    verdicts = {f.head: f.verdict for f in hurt.findings}
    assert verdicts == {
        "default": Verdict.FAIL,
        "fraud": Verdict.PASS,
        "takeover": Verdict.FAIL,
    }
    sound = joint(models["sound"], parts.test, challengers=single)
    assert {f.verdict for f in sound.findings} == {Verdict.PASS}


def test_heads_of_a_challenger_are_found_by_name(
    trained: MultiTaskClassifier, later: pl.DataFrame
) -> None:
    model = trained.model_
    order = list(reversed(range(len(model.heads))))
    turned = replace(
        model,
        scorer=model.scorer.only(order),
        heads=[model.heads[i] for i in order],
        challenger=None,
    )
    assert turned.tasks == model.tasks[::-1]
    evidence = Evidence(model, later[:200], challengers={"turned": turned})
    assert evidence.contenders["turned"] == pytest.approx(evidence.rows.scores, abs=1e-5)


def test_intervals_of_gaps_hold_for_all_heads_at_once(
    logistic: RiskModel, later: pl.DataFrame, trained: MultiTaskClassifier
) -> None:
    evidence = Evidence(logistic, later, challengers={"network": trained})
    row = evidence.compared("network").row(0, named=True)
    labels, scores = evidence.of("default")
    alone = auc_difference(labels, scores, evidence.contenders["network"][:, 0])
    wider = norm.ppf(1 - 0.05 / 6) / norm.ppf(0.975)
    assert row["high"] - row["low"] == pytest.approx(wider * (alone.high - alone.low))
    assert evidence.compared("network") is evidence.compared("network")


def test_an_unfair_proxy_is_caught_by_fairness(logistic: RiskModel, later: pl.DataFrame) -> None:
    settings = Settings(protected=("gender",), alert_budget={"default": 0.3})
    groups = later["gender"].drop_nulls().unique().sort()
    is_one = pl.col("gender") == groups[0]
    unfair = later.with_columns(
        acc_utilisation=pl.when(is_one).then(pl.lit(1.2)).otherwise("acc_utilisation"),
        acc_payment_ratio=pl.when(is_one).then(pl.lit(0.05)).otherwise("acc_payment_ratio"),
        txn_low_balance_days=pl.when(is_one)
        .then(pl.lit(15, later.schema["txn_low_balance_days"]))
        .otherwise("txn_low_balance_days"),
    )
    clean = fairness(logistic, later, settings=settings)
    assert clean.verdict is Verdict.PASS
    assert (
        _of(fairness(logistic, unfair, settings=settings), "default", "impact ratio").verdict
        is Verdict.FAIL
    )


def test_a_group_that_is_always_flagged_fails_and_a_tiny_group_hides_no_other(
    logistic: RiskModel, later: pl.DataFrame
) -> None:
    settings = Settings(protected=("gender",), alert_budget={"default": 0.3})
    flagged = logistic.predict_frame(later)["default"]
    cutoff = flagged.quantile(0.7)
    never = later.with_columns(
        gender=pl.when(flagged >= cutoff).then(pl.lit("all flagged")).otherwise(pl.lit("none"))
    )
    finding = _of(fairness(logistic, never, settings=settings), "default", "impact ratio")
    assert finding.verdict is Verdict.FAIL
    assert "all flagged" in finding.what
    turned = pl.int_range(pl.len())
    large = pl.when((flagged >= cutoff) & (turned % 2 == 0)).then(pl.lit("large"))
    tiny = pl.when((flagged >= cutoff) & (turned % 2 == 1) & (turned < 60)).then(pl.lit("tiny"))
    mixed = later.with_columns(
        gender=pl.coalesce(tiny, large, pl.when(turned % 4 == 0).then(pl.lit("large")),
                           pl.when(turned < 40).then(pl.lit("tiny")), pl.lit("rest"))
    )  # fmt: skip
    finding = _of(fairness(logistic, mixed, settings=settings), "default", "impact ratio")
    assert finding.verdict is Verdict.FAIL
    assert "large" in finding.what


def test_too_few_events_give_no_verdict(logistic: RiskModel, later: pl.DataFrame) -> None:
    few = later.with_columns(takeover=pl.when(pl.col("takeover") == 0).then("takeover"))
    for found in (discrimination(logistic, few), calibration(logistic, few)):
        assert {f.verdict for f in found.findings if f.head == "takeover"} == {Verdict.TOO_FEW}
        assert {f.verdict for f in found.findings if f.head == "default"} == {Verdict.PASS}
    found = limits(logistic, few, settings=Settings(explained_rows=2))
    assert any("takeover: 0 events" in note for note in found.notes)


def test_events_of_few_customers_give_no_verdict(logistic: RiskModel, later: pl.DataFrame) -> None:
    event = (pl.col("default") == 1).fill_null(False)
    few = later.with_columns(
        account_id=pl.when(event).then(pl.lit("one customer")).otherwise("account_id")
    )
    finding = _of(discrimination(logistic, few), "default", "AUC")
    assert finding.verdict is Verdict.TOO_FEW
    assert "customers" in finding.bound
    assert _of(discrimination(logistic, few), "fraud", "AUC").verdict is Verdict.PASS


def test_a_model_that_does_not_rank_is_caught(logistic: RiskModel, later: pl.DataFrame) -> None:
    shuffled = later.with_columns(pl.col("default").shuffle(seed=1))
    assert _of(discrimination(logistic, shuffled), "default", "AUC").verdict is not Verdict.PASS


@pytest.mark.slow
def test_a_weak_segment_is_caught_by_robustness(logistic: RiskModel, later: pl.DataFrame) -> None:
    extra = np.random.default_rng(0).random(later.height) < 0.25
    worse = later.with_columns(
        default=pl.when(
            (pl.col("txn_gambling_share") > pl.col("txn_gambling_share").quantile(0.9))
            & pl.Series(extra)
            & pl.col("default").is_not_null()
        )
        .then(pl.lit(1, pl.Int8))
        .otherwise("default")
    )
    finding = _of(robustness(logistic, worse), "default", "where")
    assert finding.verdict is Verdict.FAIL
    assert "txn_gambling_share" in finding.what
    clean = [f for f in robustness(logistic, later).findings if "where" in f.what]
    assert {f.verdict for f in clean} == {Verdict.PASS}


# ---- other sections ------------------------------------------------------------------------------


@pytest.mark.slow
def test_segments_are_said_in_words(logistic: RiskModel, later: pl.DataFrame) -> None:
    generator = np.random.default_rng(3)
    hit = pl.Series(generator.random(later.height) < 0.5)
    event = pl.lit(1, pl.Int8)
    known = pl.col("default").is_not_null()
    by_name = later.with_columns(
        default=pl.when((pl.col("acc_channel") == "branch") & hit & known)
        .then(event)
        .otherwise("default")
    )
    finding = _of(robustness(logistic, by_name), "default", "where")
    assert finding.verdict is Verdict.FAIL
    assert "acc_channel in branch" in finding.what
    assert "missing" not in finding.what
    by_gap = later.with_columns(
        default=pl.when(pl.col("acc_income").is_null() & hit & known)
        .then(event)
        .otherwise("default"),
        acc_income=pl.when(pl.Series(generator.random(later.height) < 0.9)).then("acc_income"),
    ).with_columns(
        default=pl.when(pl.col("acc_income").is_null() & hit & known)
        .then(event)
        .otherwise("default")
    )
    assert "acc_income missing" in _of(robustness(logistic, by_gap), "default", "where").what


@pytest.mark.slow
def test_a_column_that_all_hangs_on_is_watched(logistic: RiskModel, later: pl.DataFrame) -> None:
    finding = _of(robustness(logistic, later), "default", "AUC lost")
    assert finding.low < finding.value < finding.high
    strict = Settings(bounds={"column_missing": {"watch": 0.0, "fail": 0.5}})
    found = robustness(logistic, later, settings=strict)
    assert _of(found, "default", "AUC lost").verdict is Verdict.WATCH


def test_values_beyond_training_are_counted(logistic: RiskModel, later: pl.DataFrame) -> None:
    odd = later.with_columns(
        acc_limit=pl.when(pl.int_range(pl.len()) < 100).then(1e9).otherwise("acc_limit"),
        acc_channel=pl.when(pl.int_range(pl.len()) < 50)
        .then(pl.lit("kiosk"))
        .otherwise("acc_channel"),
    )
    table = limits(logistic, odd, settings=Settings(explained_rows=2)).table("outside")
    shares = dict(zip(table["column"], table["share of rows"], strict=True))
    assert shares["acc_limit"] >= 100 / odd.height
    assert shares["acc_channel"] == pytest.approx(50 / odd.height)


def test_explanations_name_the_columns_of_the_law(logistic: RiskModel, later: pl.DataFrame) -> None:
    found = explanations(logistic, later, settings=Settings(explained_rows=200))
    top = found.table("columns").filter(pl.col("head") == "default")["column"].head(6).to_list()
    assert "acc_utilisation" in top
    assert found.table("explanation_stability")["rank correlation"].min() > 0.8
    shares = found.table("reasons")["share of rows"]
    assert shares.is_between(0, 1).all()


@pytest.mark.slow
def test_top_columns_are_compared_with_those_of_other_networks(
    trained: MultiTaskClassifier,
    logistic: RiskModel,
    parts: Split,
    schema: DataSchema,
    tiny: dict[str, Any],
) -> None:
    options = {**tiny, "random_state": 1, "challenger": None}
    seed_1 = MultiTaskClassifier(schema=schema, **options).fit(parts.train, X_val=parts.validation)
    settings = Settings(explained_rows=120)
    given = {"itself": trained, "seed_1": seed_1, "logistic": logistic}
    found = explanations(trained, parts.test, challengers=given, settings=settings)
    table = next(t for t in found.tables if t.key == "other_networks")
    assert "Over 60 of the rows" in table.note
    frame = table.frame
    assert frame["network"].unique().sort().to_list() == ["itself", "seed_1"]
    same = frame.filter(pl.col("network") == "itself")
    assert same["rank correlation"].to_list() == pytest.approx([1.0] * 3)
    assert same["top columns in common"].to_list() == same["of"].to_list() == [10] * 3
    other = frame.filter(pl.col("network") == "seed_1")
    assert other["rank correlation"].is_between(-1, 0.999).all()
    assert other["top columns in common"].is_between(0, 10).all()
    for model, beside in ((trained, {"logistic": logistic}), (logistic, {"itself": trained})):
        few = Settings(explained_rows=2)
        found = explanations(model, parts.test, challengers=beside, settings=few)
        assert "other_networks" not in [t.key for t in found.tables]


def test_reasons_that_tie_are_counted_from_the_explanations_that_are_there(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(*arguments: Any, **options: Any) -> Explanation:
        asked.append(1)
        return explain_rows(*arguments, **options)

    monkeypatch.setattr("riskmtl.validation.explained.explain_rows", counted)
    evidence = Evidence(trained, parts.test, settings=Settings(explained_rows=20))
    explanations.examine(evidence)
    table = limits.examine(evidence).table("ties")
    assert len(asked) == 1
    assert evidence.explained is not None
    found = evidence.explained.explanation
    for position, head in enumerate(found.heads):
        tied = 0
        for values, errors in zip(
            found.values[:, :, position], found.errors[:, :, position], strict=True
        ):
            order = np.argsort(-values)[:5]
            gains, spread = np.maximum(values[order], 0), np.where(values > 0, errors, 0)[order]
            last = min(int((gains > 0).sum()), 4) - 1
            reach = 2 * np.hypot(spread[last], spread[last + 1])
            tied += last >= 0 and gains[last] - gains[last + 1] < reach
        row = table.filter(pl.col("head") == head).row(0, named=True)
        assert row["explained rows"] == 20
        assert row["share whose last reason ties"] == pytest.approx(tied / 20)
    assert 0 < table["share whose last reason ties"].max() <= 1


def test_use_finds_the_cheapest_cut_off(logistic: RiskModel, later: pl.DataFrame) -> None:
    from riskmtl.validation.settings import Costs

    settings = Settings(costs={"default": Costs(missed=20, false_alarm=1)}, decision="approved")
    found = use(logistic, later, settings=settings)
    row = found.table("costs").row(0, named=True)
    evidence = Evidence(logistic, later)
    y, p = evidence.of("default")
    y, p = y[~np.isnan(y)], p[~np.isnan(y)]
    cost = lambda c: (20 * (y[p < c]).sum() + (1 - y[p >= c]).sum()) / len(y)  # noqa: E731
    assert row["cost per row"] == pytest.approx(
        min(cost(c) for c in np.quantile(p, np.linspace(0, 1, 400))), rel=0.01
    )
    assert row["flagging none"] == pytest.approx(20 * y.mean())
    assert row["cost per row"] < min(row["flagging none"], row["flagging all"])
    overrides = found.table("overrides").filter(pl.col("head") == "default")
    assert overrides["rows"].sum() == later.height


def test_an_adversary_lowers_scores_by_allowed_changes_only(
    logistic: RiskModel, later: pl.DataFrame
) -> None:
    found = robustness(logistic, later).table("adversary")
    shares = found.filter(pl.col("head") == "default")["share that escapes"].to_list()
    assert len(shares) == 3
    assert shares == sorted(shares)
    assert shares[-1] > 0


# ---- the whole -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(
    logistic: RiskModel, portfolio_parts: Split, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("report")
    settings = Settings(explained_rows=60, protected=("gender",))
    report = validate_model(
        logistic, portfolio_parts.test, reference=portfolio_parts.train, settings=settings
    )
    report.write(folder)
    return folder


def test_the_files_hold_all_sections(written: Path) -> None:
    record = json.loads((written / "validation.json").read_text())
    assert list(record["sections"]) == [s.key for s in SECTIONS]
    page = (written / "validation.html").read_text()
    assert len(page.encode()) < 3_000_000
    for s in SECTIONS:
        assert f'<section id="{s.key}">' in page
        for key in record["sections"][s.key]["tables"]:
            assert (written / "tables" / f"{key}.csv").exists()
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_section_of_ones_own(logistic: RiskModel, later: pl.DataFrame) -> None:
    @section("size", "Size", "Is it large enough?")
    def size(evidence: Evidence) -> Result:
        return Result([Finding("", "rows", Verdict.WATCH, float(evidence.rows.frame.height))])

    report = validate_model(logistic, later, sections=[size])
    assert report.verdict is Verdict.WATCH
    assert "Is it large enough?" in report.to_html()
    assert size(logistic, later).verdict is Verdict.WATCH


def test_text_of_the_data_cannot_break_the_page(logistic: RiskModel, later: pl.DataFrame) -> None:
    odd = later.with_columns(
        gender=pl.when(pl.col("gender") == "F")
        .then(pl.lit("<script>x()</script>"))
        .otherwise("gender")
    )
    page = validate_model(
        logistic, odd, sections=[fairness], settings=Settings(protected=("gender",))
    ).to_html()
    assert "<script>x()" not in page


def test_the_command_line(
    run: Callable[..., Any], model_folder: Path, portfolio_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        "explained_rows: 20\nprotected: [gender]\nbounds: {refused_rows: {watch: 0.5}}\n"
    )
    arguments = ["--model", model_folder, "--data", portfolio_file, "--part", "test"]
    done = run("validate", *arguments, "--out", tmp_path / "r", "--config", config)
    assert done.code == 0, done.err
    assert (tmp_path / "r" / "validation.html").exists()
    assert "Discrimination" in done.out
    record = json.loads((tmp_path / "r" / "validation.json").read_text())
    bounds = [f["bound"] for f in record["sections"]["data"]["findings"]]
    assert any("set by the user" in bound for bound in bounds)


def test_refused_rows_are_reported_with_a_part_and_do_not_move_the_split(
    run: Callable[..., Any], model_folder: Path, portfolio_file: Path, tmp_path: Path
) -> None:
    whole = pl.read_parquet(portfolio_file)
    broken = whole.with_columns(
        acc_age=pl.when(pl.int_range(pl.len()) < 40).then(3).otherwise("acc_age").cast(pl.Int64)
    )
    broken.write_parquet(tmp_path / "broken.parquet")
    few = tmp_path / "few.yaml"
    few.write_text("explained_rows: 5")
    arguments = ["--model", model_folder, "--data", tmp_path / "broken.parquet", "--config", few]
    done = run("validate", *arguments, "--part", "test", "--out", tmp_path / "r")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "r" / "validation.json").read_text())
    assert record["sections"]["data"]["tables"]["refused"] == [
        {"rule": "acc_age: below 18", "rows": 40}
    ]
    schema = RiskModel.load(model_folder).schema
    assert schema is not None
    assert record["rows"] == schema.split(schema.check(broken).good).test.height


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bounds: {acu: {watch: 1}}", "unknown criterion 'acu': did you mean 'auc'"),
        ("bounds: {auc: {wach: 1}}", "unknown bound 'wach'"),
        ("bounds: {auc: {watch: high}}", "watch must be a number"),
        ("protectd: [gender]", "unknown key 'protectd': did you mean 'protected'"),
        ("alert_budget: 2", "alert_budget must lie between 0 and 1"),
        ("costs: {fraud: {missed: 1}}", "give missed and false_alarm"),
        ("min_events: 0", "at least 2"),
    ],
)
def test_mistakes_in_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_settings(path)


def test_mistakes_are_named_before_the_work(
    run: Callable[..., Any], model_folder: Path, portfolio_file: Path, tmp_path: Path
) -> None:
    arguments = ["--model", model_folder, "--data", portfolio_file, "--out", tmp_path / "r"]
    assert "write NAME=FOLDER" in run("validate", *arguments, "--challenger", "x").err
    odd = tmp_path / "odd.yaml"
    odd.write_text("protected: [gendr]\nexplained_rows: 2\n")
    done = run("validate", *arguments, "--config", odd)
    assert done.code == 1
    assert "did you mean 'gender'" in done.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(graded=("defualt",)), "graded: unknown head 'defualt': did you mean 'default'"),
        (Settings(alert_budget={"frud": 0.1}), "alert_budget: unknown head 'frud'"),
        (Settings(decision="aproved"), "decision: unknown column 'aproved'"),
        (Settings(vintage="acc_prodct"), "vintage: unknown column 'acc_prodct'"),
        (Settings(vintage="account_id"), "vintage: column 'account_id' has .* and may have 60"),
    ],
)
def test_names_in_settings_are_checked_first(
    logistic: RiskModel, later: pl.DataFrame, settings: Settings, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Evidence(logistic, later, settings=settings)


def test_a_model_without_a_schema_is_refused(cards: pl.DataFrame) -> None:
    x = pl.DataFrame({"a": [0.0, 1.0] * 50})
    model = LogisticBaseline().fit(x, pl.DataFrame({"fraud": [0, 1] * 50}))
    with pytest.raises(ValueError, match="no schema"):
        validate_model(model, cards)
