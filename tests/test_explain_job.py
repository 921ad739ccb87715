"""Explaining a file: which rows, what is written, and what happens if it is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from riskmtl import MultiTaskClassifier, load_reasons
from riskmtl.artefact import load_model
from riskmtl.explain import job
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.job import TABLES, Settings, explain_file
from riskmtl.explain.policy import RowPolicy
from riskmtl.model import RiskModel
from riskmtl.schema import Split
from tests.conftest import Run

# ---- which rows ----------------------------------------------------------------------------------


@given(
    scores=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    share=st.floats(0.01, 1),
)
def test_the_rows_of_a_rule_are_those_of_a_slow_one(
    scores: list[tuple[float, float]], share: float
) -> None:
    table = np.array(scores)
    count = int(np.ceil(share * len(scores)))
    top = {
        i
        for head in (0, 1)
        for i in sorted(range(len(scores)), key=lambda i: (-scores[i][head], i))[:count]
    }
    assert RowPolicy("top", share).choose(table).tolist() == sorted(top)
    above = [i for i, row in enumerate(scores) if max(row) >= share]
    assert RowPolicy("score", share).choose(table).tolist() == above
    drawn = RowPolicy("sample", share).choose(table, seed=1)
    assert len(drawn) == len(set(drawn.tolist())) == count
    assert drawn.tolist() == sorted(drawn)
    assert RowPolicy("all").choose(table).tolist() == list(range(len(scores)))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", RowPolicy("all")),
        ("top:1%", RowPolicy("top", 0.01)),
        ("top:100%", RowPolicy("top", 1.0)),
        ("top:500", RowPolicy("top", 500)),
        ("score>=0.2", RowPolicy("score", 0.2)),
        ("sample:5000", RowPolicy("sample", 5000)),
        ("sample:2.5%", RowPolicy("sample", 0.025)),
    ],
)
def test_rules_are_read(text: str, policy: RowPolicy) -> None:
    found = RowPolicy.parse(text)
    assert found == policy
    assert type(found.amount) is type(policy.amount)


@pytest.mark.parametrize(
    "text", ["", "top", "top:", "top:0", "top:0%", "top:2.5", "top:101%", "score>0.2", "score>=0",
             "score>=1.5", "sample:-1", "sample:1.2.3", "some:5", "top:1%%"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^rows: "):
        RowPolicy.parse(text)


# ---- the job -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(model_folder: Path) -> RiskModel:
    """With a small background, so that a row costs little."""
    model = load_model(model_folder)
    assert model.background is not None
    return replace(model, background=model.background[::16])


@pytest.fixture(scope="module")
def table(parts: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "table.parquet"
    parts.test.head(60).write_parquet(path)
    return path


def explain(model: RiskModel, table: Path, out: Path, **settings: Any) -> list[str]:
    said: list[str] = []
    explain_file(model, table, out, Settings(**settings), announce=said.append)
    return said


def read(out: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(out / f"{name}.parquet") for name in TABLES}


def test_tables_hold_what_explain_and_reasons_say(
    model: RiskModel, table: Path, parts: Split, schema_file: Path, tmp_path: Path
) -> None:
    words = load_reasons(schema_file.parent / "reasons" / "risk_portfolio.yaml")
    said = explain(model, table, tmp_path / "out", rows="top:10%", words=words, n=3)
    assert re.fullmatch(r"\d+ of 60 rows to explain, about \d+ (s|min|h)", said[0])
    assert len(said) == 1
    found = read(tmp_path / "out")
    scores = model.probabilities(model.encode(parts.test.head(60)))
    places = RowPolicy("top", 0.1).choose(scores)
    rows = found["rows"]
    assert rows["_row"].unique().to_list() == places.tolist()
    chosen = parts.test[places]
    assert rows.filter(head="fraud")["account_id"].to_list() == chosen["account_id"].to_list()
    margins = model.margins(model.encode(chosen))
    np.testing.assert_allclose(rows.filter(head="fraud")["log_odds"], margins[:, 1], atol=1e-6)
    values = found["values"]
    sums = values.group_by("_row", "head").agg(pl.col("value").sum())
    added = rows.join(sums, on=["_row", "head"])
    np.testing.assert_allclose(added["base"] + added["value"], added["log_odds"], atol=1e-9)
    assert added.height == rows.height == 3 * len(places)
    features = values["feature"].unique()
    assert "spending" in features
    assert "txn_cash_share" not in features
    reasons = found["reasons"]
    told = reasons.filter(head="default")
    assert told["reason"].null_count() == 0
    assert (
        reasons.filter(head="fraud")["reason"].null_count() == reasons.filter(head="fraud").height
    )
    line = reasons.filter(head="fraud", rank=1).row(0, named=True)
    same = values.filter(_row=line["_row"], head="fraud").sort("value", descending=True)
    assert (line["feature"], line["value"]) == (same["feature"][0], same["value"][0])
    assert reasons["rank"].max() == 3
    for name in TABLES:
        lineage = json.loads(pl.read_parquet_metadata(tmp_path / f"out/{name}.parquet")["riskmtl"])
        assert lineage["model_id"] == model.lineage["model_id"]
        assert lineage["data"]["bytes"] == table.stat().st_size
        assert lineage["settings"]["rows"] == "top:10%"


def test_a_killed_job_goes_on_to_the_same_tables(
    model: RiskModel, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_ROWS_PER_PART", 2)
    settings: dict[str, Any] = {"rows": "sample:7", "heads": ["takeover", "fraud"]}
    explain(model, table, tmp_path / "whole", **settings)
    original, calls = job._write_part, []

    def killed(*arguments: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        original(*arguments)

    monkeypatch.setattr(job, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        explain(model, table, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds parts of another job"):
        explain(model, table, tmp_path / "out", **{**settings, "budget": 6})
    calls.clear()
    monkeypatch.setattr(job, "_write_part", lambda *a: (calls.append(a), original(*a)))
    said = explain(model, table, tmp_path / "out", **settings)
    assert said[0].startswith("3 of 60 rows")
    assert len(calls) == 2
    for name, frame in read(tmp_path / "whole").items():
        assert_frame_equal(frame, read(tmp_path / "out")[name])
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_rows_that_break_the_schema_are_not_explained(
    model: RiskModel, table: Path, tmp_path: Path
) -> None:
    frame = pl.read_parquet(table).head(6)
    bad = frame.with_columns(
        acc_age=pl.when(pl.int_range(6) == 2)
        .then(5)
        .otherwise("acc_age")
        .cast(frame["acc_age"].dtype)
    )
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"1 of 6 rows break the schema, most often by 'acc_age"):
        explain(model, tmp_path / "bad.parquet", tmp_path / "out")
    assert not list(tmp_path.glob("*.unfinished"))
    explain(model, tmp_path / "bad.parquet", tmp_path / "out", max_bad=0.2, heads=["fraud"])
    assert read(tmp_path / "out")["rows"]["_row"].to_list() == [0, 1, 3, 4, 5]


def test_a_model_without_schema_explains_its_columns(
    cards: pl.DataFrame, tiny: dict[str, Any], tmp_path: Path
) -> None:
    X, y = cards.select("amount", "country", "age"), cards.select(fraud="is_fraud")
    fitted = MultiTaskClassifier(**{**tiny, "challenger": None}).fit(X, y)
    fitted.save(tmp_path / "model")
    X.head(3).write_parquet(tmp_path / "x.parquet")
    explain(load_model(tmp_path / "model"), tmp_path / "x.parquet", tmp_path / "out")
    found = read(tmp_path / "out")
    assert found["values"].columns[:3] == ["_row", "head", "feature"]
    whole: Explanation = fitted.explain(X.head(3))
    np.testing.assert_allclose(
        found["values"]["value"], whole.values.transpose(0, 2, 1).ravel(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "best:5"}, "rows: 'best:5' is no rule"),
        ({"rows": "score>=1"}, "no row fits 'score>=1'"),
        ({"heads": ["frod"]}, "heads: unknown head 'frod'"),
        ({"budget": 5}, "budget must be an even number"),
        ({"tolerance": -1}, "tolerance must not be negative"),
        ({"n": 0}, "n must be at least 1"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    model: RiskModel, table: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        explain(model, table, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_refused(model: RiskModel, table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty, choose a new folder"):
        explain(model, table, tmp_path / "out")
    with pytest.raises(ValueError, match="keeps no background"):
        explain(replace(model, background=None), table, tmp_path / "other")


# ---- the verb ------------------------------------------------------------------------------------


def test_the_verb_explains(
    run: Callable[..., Run], model_folder: Path, table: Path, tmp_path: Path, schema_file: Path
) -> None:
    words = schema_file.parent / "reasons" / "risk_portfolio.yaml"
    arguments = ["explain", "--model", model_folder, "--data", table, "--rows", "sample:2"]
    done = run(*arguments, "--out", tmp_path / "out", "--words", words, "--reasons", 2)
    assert done.code == 0, done.err
    first, last = done.out.splitlines()
    assert first.startswith("2 of 60 rows to explain, about ")
    assert last == f"2 of 60 rows explained: {tmp_path / 'out'}"
    assert read(tmp_path / "out")["reasons"]["rank"].max() <= 2
    again = run(*arguments, "--out", tmp_path / "out")
    assert again.code == 1
    assert "is not empty, choose a new folder" in again.err
    wrong = run(*arguments, "--out", tmp_path / "new", "--words", tmp_path / "none.yaml")
    assert wrong.code == 1
    assert "none.yaml: no such file" in wrong.err
