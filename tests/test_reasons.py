"""Reasons: the columns that push towards the outcome, in an order that can be relied on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from riskmtl import MultiTaskClassifier, load_reasons
from riskmtl.encoding import EncodedColumn
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.reasons import SHAPE, reasons_of, until_separable
from riskmtl.explain.wording import Reason, ReasonTable, WordingError
from riskmtl.schema import Split

COLUMNS = [
    EncodedColumn("income", None),
    EncodedColumn("score", None),
    EncodedColumn("country", ("DE", "FR")),
    EncodedColumn("debt", None),
]
BACKGROUND = np.array(
    [[10, 1, 2, 0], [20, 2, 2, 5], [30, 3, 3, 5], [40, np.nan, 1, 9]], dtype=np.float32
)


def explanation(
    values: Any, errors: Any = 0.001, inputs: pl.DataFrame | None = None, **options: Any
) -> Explanation:
    """One head, "default", with the values given; rows are those of the background."""
    values = np.asarray(values, dtype=float)[:, :, None]
    rows = len(values)
    frame = pl.DataFrame(
        {
            "income": BACKGROUND[:rows, 0],
            "score": pl.Series(BACKGROUND[:rows, 1]).fill_nan(None),
            "country": ["DE", "DE", "FR", None][:rows],
            "debt": BACKGROUND[:rows, 3],
        }
    )
    shared: dict[str, Any] = {
        "features": [column.name for column in COLUMNS],
        "encoded": BACKGROUND[:rows].astype(float),
        **options,
    }
    return Explanation(
        values=values,
        errors=np.broadcast_to(np.asarray(errors, dtype=float), values.shape[:2])[:, :, None],
        base=np.zeros(1),
        outputs=values.sum(1),
        heads=["default"],
        inputs=frame if inputs is None else inputs,
        scale="log_odds",
        calibrated=True,
        method="sampled",
        background="abc",
        permutations=np.full(rows, 4),
        met=np.zeros(rows, dtype=bool),
        **shared,
    )


def reasons(found: Explanation, **options: Any) -> pl.DataFrame:
    return reasons_of(found, BACKGROUND, COLUMNS, head="default", **options)


# ---- which, and in what order --------------------------------------------------------------------


def test_adverse_columns_come_in_the_order_of_what_they_add() -> None:
    found = reasons(explanation([[0.1, -5, 0.4, 0.2], [0.0, 0.3, -0.1, 0.0]]))
    assert found.select("row", "rank", "feature", "value").rows() == [
        (0, 1, "country", 0.4),
        (0, 2, "debt", 0.2),
        (0, 3, "income", 0.1),
        (1, 1, "score", 0.3),
    ]
    assert found.schema == pl.Schema(SHAPE)
    few = reasons(explanation([[0.1, -5, 0.4, 0.2]]), n=2)
    assert few["feature"].to_list() == ["country", "debt"]


def test_nothing_adverse_gives_no_line() -> None:
    found = reasons(explanation([[-0.1, -5, 0.0, -0.2]]))
    assert found.is_empty()
    assert found.schema == pl.Schema(SHAPE)


def test_ties_keep_the_order_of_the_columns_whatever_rounding_says() -> None:
    for wobble in (1e-9, -1e-9):
        found = reasons(explanation([[0.2, 0.2 + wobble, 0.2 - wobble, 0.3]]))
        assert found["feature"].to_list() == ["debt", "income", "score", "country"]
        assert found["separable"].to_list() == [True, False, False, True]


def test_a_reason_is_not_separable_within_two_errors_of_the_next() -> None:
    found = reasons(explanation([[0.50, 0.48, 0.40, 0.01]], errors=0.01))
    assert found["separable"].to_list() == [False, True, True, False]
    # The fourth is what tells the last one shown from the first one left out.
    assert reasons(explanation([[0.5, 0.41, 0.4, 0.1]], errors=0.01), n=2)[
        "separable"
    ].to_list() == [True, False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(1, 6))
def test_reasons_are_a_slow_sort(values: list[float], n: int) -> None:
    found = reasons(explanation([values]), n=n)
    rounded = [round(value, 6) for value in values]
    order = sorted(range(4), key=lambda i: (-rounded[i], i))
    expected = [COLUMNS[i].name for i in order if rounded[i] > 0][:n]
    assert found["feature"].to_list() == expected
    assert found["rank"].to_list() == list(range(1, len(expected) + 1))


def test_a_row_is_done_once_its_last_reason_is_apart() -> None:
    values = np.array([0.5, 0.3, 0.29, 0.1])[:, None]
    errors, every = np.full((4, 1), 0.01), np.ones(4, dtype=bool)
    assert until_separable(1, every)(values, errors)
    assert not until_separable(2, every)(values, errors)
    assert until_separable(3, every)(values, errors)
    # Where the third may be none, the second is apart from the fourth.
    assert until_separable(2, np.array([True, True, False, True]))(values, errors)
    assert until_separable(2, every)(-values, errors)
    near_nothing = np.array([0.5, 0.01, -1, -1])[:, None]
    assert not until_separable(4, every)(near_nothing, errors)


def test_what_has_no_errors_has_no_reasons() -> None:
    with pytest.raises(ValueError, match="need standard errors"):
        reasons(explanation([[1, 1, 1, 1]], errors=np.nan))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        reasons(explanation([[1, 1, 1, 1]]), n=0)
    with pytest.raises(ValueError, match="unknown head 'fraud'"):
        reasons_of(explanation([[1, 1, 1, 1]]), BACKGROUND, COLUMNS, head="fraud")


# ---- what an analyst sees ------------------------------------------------------------------------


def test_values_stand_beside_the_background() -> None:
    found = reasons(explanation([[0.4, 0.3, 0.2, 0.1]] * 4))
    by_row = {(row["row"], row["feature"]): row for row in found.iter_rows(named=True)}
    income = by_row[1, "income"]
    assert (income["input"], income["background_share"]) == ("20.0", 0.5)
    quartiles = [income[name] for name in ("lower_quartile", "median", "upper_quartile")]
    assert quartiles == [17.5, 25.0, 32.5]
    country = by_row[0, "country"]
    assert (country["input"], country["background_share"], country["median"]) == ("DE", 0.5, None)
    missing = by_row[3, "score"]
    assert (missing["input"], missing["background_share"], missing["median"]) == (None, None, 2.0)
    assert by_row[0, "score"]["background_share"] == pytest.approx(1 / 3)
    assert by_row[3, "country"]["background_share"] == 0.25
    assert found["code"].null_count() == found["reason"].null_count() == found.height
    assert set(found["background"]) == {"abc"}


# ---- what a customer reads -----------------------------------------------------------------------

WORDS = ReasonTable(
    ("default",),
    {
        "income": Reason("I", low="Income is low"),
        "score": Reason("S", low="Score is low", missing="No score"),
        "debt": Reason("D", high="Debt is high", low="Debt is low"),
    },
)


def test_only_what_has_words_for_the_case_is_a_reason() -> None:
    found = reasons(explanation([[0.4, 0.3, 0.9, 0.1]] * 4), words=WORDS)
    said = [found.filter(row=row).select("code", "reason", "feature").rows() for row in range(4)]
    low = [("I", "Income is low", "income")]
    assert said[0] == [*low, ("S", "Score is low", "score"), ("D", "Debt is low", "debt")]
    assert said[1] == [*low, ("S", "Score is low", "score"), ("D", "Debt is low", "debt")]
    assert said[2] == [("D", "Debt is low", "debt")]
    assert said[3] == [("S", "No score", "score"), ("D", "Debt is high", "debt")]


def test_what_cannot_be_a_reason_makes_none_inseparable() -> None:
    found = reasons(explanation([[0.4, 0.1, 0.4, -1]], errors=0.01), words=WORDS, n=1)
    assert found.select("feature", "separable").rows() == [("income", True)]


# ---- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def words(schema_file: Path) -> ReasonTable:
    return load_reasons(schema_file.parent / "reasons" / "risk_portfolio.yaml")


def test_every_head_of_a_model_gives_reasons(
    trained: MultiTaskClassifier, parts: Split, words: ReasonTable
) -> None:
    rows, compared = parts.test.head(4), parts.train.head(16)
    for model in (trained, trained.challenger_):
        found = model.reasons(rows, head="fraud", background=compared, n=3)
        values = model.explain(rows, background=compared, heads=["fraud"], budget=16)
        column = values.values[:, :, 0]
        for line in found.filter(pl.col("rank") == 1).iter_rows(named=True):
            place = values.features.index(line["feature"])
            near = column[line["row"]].max() - 5 * values.errors.max() - 1e-6
            assert column[line["row"], place] >= near
        assert found.group_by("row").len()["len"].max() == 3
        assert set(found["background"]) == {values.background}
    told = trained.reasons(rows, head="default", background=compared, words=words)
    assert set(told["feature"]) <= set(words.reasons)
    assert told["reason"].null_count() == 0
    assert not set(told["feature"]) & {"acc_age", "acc_region", "txn_cash_share"}


def test_reasons_are_the_same_in_any_company(trained: MultiTaskClassifier, parts: Split) -> None:
    rows, compared = parts.test.head(5), parts.train.head(16)
    together = trained.reasons(rows, head="takeover", background=compared)
    alone = trained.reasons(rows[3:4], head="takeover", background=compared)
    assert together.filter(row=3)["feature"].to_list() == alone["feature"].to_list(), (
        "a row has other reasons beside other rows"
    )
    np.testing.assert_allclose(together.filter(row=3)["value"], alone["value"], atol=1e-6)


def test_a_row_costs_no_more_than_its_reasons_need(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    from riskmtl.explain import reasons as module

    spent: list[NDArray[np.int64]] = []
    original = module.explain_rows

    def watched(*arguments: Any, **options: Any) -> Explanation:
        found = original(*arguments, **options)
        spent.append(found.permutations)
        return found

    monkeypatch.setattr(module, "explain_rows", watched)
    found = trained.reasons(parts.test.head(6), head="fraud", n=2, budget=32)
    last = found.group_by("row").agg(pl.col("separable").last()).sort("row")["separable"]
    assert len(set(spent[0].tolist())) > 1 or spent[0].max() < 32
    assert all(done or used == 32 for done, used in zip(last, spent[0], strict=True))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ReasonTable(("fraud",), {}), "words are for the head fraud, and 'default' is asked for"),
        (ReasonTable(("default",), {"acc_incme": Reason("1", "x")}), "unknown column 'acc_incme'"),
        (ReasonTable(("default",), {"gender": Reason("1", "x")}), "'gender' is protected"),
        (
            ReasonTable(("default",), {"g": Reason("1", "x", "x")}, {"g": ("gender",)}),
            "'gender' is protected",
        ),
        (
            ReasonTable(("default",), {"acc_region": Reason("1", high="x")}),
            "'acc_region' is no number",
        ),
    ],
)
def test_words_that_do_not_fit_the_model_are_refused(
    trained: MultiTaskClassifier, parts: Split, table: ReasonTable, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        trained.reasons(parts.test.head(1), head="default", words=table)


def test_words_have_groups_of_their_own(
    trained: MultiTaskClassifier, parts: Split, words: ReasonTable
) -> None:
    with pytest.raises(ValueError, match="leave groups out"):
        trained.reasons(
            parts.test.head(1), head="default", words=words, groups={"g": ["acc_income"]}
        )


# ---- the file ------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reasons.yaml"
    path.write_text(
        "heads: default\n"
        "reasons:\n"
        "  income: {code: A, low: Low}\n"
        "  device: {code: B, text: Device, missing: None seen}\n"
        "groups: {device: [os, model]}\n".replace("heads: default", "heads: [default]"),
        encoding="utf-8",
    )
    assert load_reasons(path) == ReasonTable(
        ("default",),
        {"income": Reason("A", low="Low"), "device": Reason("B", "Device", "Device", "None seen")},
        {"device": ("os", "model")},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads: [a]\nreasons: {x: {code: A}}", "reasons: x: there are no words"),
        ("heads: [a]\nreasons: {x: {text: A}}", "reasons: x: key 'code' is missing"),
        ("heads: [a]\nreasons: {x: {code: A, txt: B}}", "did you mean 'text'"),
        ("heads: [a]\nreasons: [x]", "reasons must be a mapping"),
        ("heads: [a]", "key 'reasons' is missing"),
        ("reasons: {x: {code: A, text: B}}", "heads must be a list with at least one"),
        (
            "heads: [a]\nreasons: {x: {code: A, text: B}}\ngroups: {g: [y]}",
            "group 'g' has no words",
        ),
        (
            "heads: [a]\nreasons: {g: {code: A, text: B}}\ngroups: {g: y}",
            "group 'g' must be a list with at least one column",
        ),
        ("heads: [a", "not a readable YAML file"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "reasons.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WordingError, match=re.escape(message)) as caught:
        load_reasons(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WordingError, match="no such file"):
        load_reasons(tmp_path / "nowhere.yaml")


def test_the_words_of_the_portfolio_say_nothing_of_who_someone_is(words: ReasonTable) -> None:
    used = {c for name in words.reasons for c in words.groups.get(name, (name,))}
    assert not {c for c in used if c.startswith("dev_")}
    assert not used & {"acc_age", "acc_region", "acc_residence", "txn_main_merchant"}
    codes = [reason.code for reason in words.reasons.values()]
    assert len(set(codes)) == len(codes)
