"""A night as a scheduler runs it: fetched, scored, looked at, published, and run again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from nightly_scoring import main

from riskmtl.schema import Split

Lines = list[dict[str, Any]]


@pytest.fixture
def rows(parts: Split) -> pl.DataFrame:
    """Rows as they were in training."""
    return parts.train.sample(fraction=1, shuffle=True, seed=0)


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    config = {
        "inbox": "inbox",
        "model": str(model_folder),
        "nights": "nights",
        "published": "out/latest",
        "max_bad": 0.01,
        "settled": 0,
    }
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def night(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Lines]]:
    def run(day: str, **changes: Any) -> tuple[int, Lines]:
        path = place / "night.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
        code = main([str(path), "--night", day])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def deliver(place: Path, name: str, frame: pl.DataFrame) -> None:
    frame.write_parquet(place / "inbox" / name)


def published(place: Path) -> pl.DataFrame:
    assert (place / "out" / "latest" / "_MANIFEST.json").exists()
    return pl.read_parquet(place / "out" / "latest" / "part-*.parquet")


def test_two_nights(place: Path, night: Callable[..., Any], rows: pl.DataFrame) -> None:
    first, second = rows[:1200], rows[1200:2400]
    deliver(place, "a.parquet", first)
    code, lines = night("2026-11-23")
    assert (code, [(line["step"], line["event"]) for line in lines]) == (
        0,
        [("fetch", "fetched"), ("score", "scored"), ("monitor", "pass"), ("publish", "published")],
    )
    assert {line["night"] for line in lines} == {"2026-11-23"}
    assert published(place)["account_id"].to_list() == first["account_id"].to_list()
    deliver(place, "b.parquet", second)
    assert night("2026-11-24")[0] == 0
    # What the night before has fetched is not scored again.
    assert published(place)["account_id"].to_list() == second["account_id"].to_list()
    page = place / "nights" / "2026-11-24" / "monitoring" / "monitoring.html"
    assert "2026-11-23" in page.read_text()
    code, lines = night("2026-11-25")
    assert (code, [line["event"] for line in lines]) == (0, ["nothing new"])


def test_a_night_that_is_run_again_stays_as_it_is(
    place: Path, night: Callable[..., Any], rows: pl.DataFrame
) -> None:
    deliver(place, "a.parquet", rows[:500])
    night("2026-11-23")
    before = (place / "out" / "latest" / "_MANIFEST.json").read_bytes()
    # A file that arrives later belongs to the next night.
    deliver(place, "b.parquet", rows[500:600])
    code, lines = night("2026-11-23")
    assert code == 0
    assert next(line for line in lines if line["step"] == "score")["kept"] == 500
    assert (place / "out" / "latest" / "_MANIFEST.json").read_bytes() == before


def test_a_night_goes_on_after_bad_rows_are_accepted(
    place: Path, night: Callable[..., Any], rows: pl.DataFrame
) -> None:
    frame = rows[:100].with_columns(
        acc_age=pl.when(pl.int_range(pl.len()) < 3).then(5).otherwise("acc_age")
    )
    deliver(place, "a.parquet", frame)
    code, lines = night("2026-11-23")
    assert (code, lines[-1]["event"], lines[-1]["code"]) == (3, "failed", 3)
    assert "acc_age: below 18" in lines[-1]["reason"]
    assert not (place / "out").exists()
    bounds = {"refused_rows": {"watch": 0.5, "fail": 0.5}}
    code, lines = night("2026-11-23", max_bad=0.05, bounds=bounds)
    assert code == 0
    assert published(place)["quarantined"].sum() == 3


def test_a_broken_bound_holds_the_scores_back(
    place: Path, night: Callable[..., Any], rows: pl.DataFrame
) -> None:
    deliver(place, "a.parquet", rows[:1000])
    night("2026-11-23")
    kept = published(place)
    deliver(place, "b.parquet", rows[1000:2000].with_columns(dev_model=pl.lit("new")))
    code, lines = night("2026-11-24")
    assert (code, lines[-1]["event"]) == (11, "held back")
    alerts = next(line for line in lines if line["step"] == "monitor")["alerts"]
    assert "dev_model" in str(alerts)
    assert published(place).equals(kept)
    code, _ = night(
        "2026-11-24", bounds={"unseen_rise": {"fail": 2.0}, "column_psi": {"watch": 50}}
    )
    assert code == 10
    assert not published(place).equals(kept)


def test_unsettled_changed_and_unreadable_files(
    place: Path, night: Callable[..., Any], rows: pl.DataFrame
) -> None:
    deliver(place, "a.parquet", rows[:50])
    code, lines = night("2026-11-23", settled=3600)
    assert (code, [line["event"] for line in lines]) == (0, ["not settled", "nothing new"])
    night("2026-11-23", settled=0)
    deliver(place, "a.parquet", rows[:40])
    code, lines = night("2026-11-24")
    assert (code, "other content" in lines[-1]["reason"]) == (4, True)
    os.remove(place / "inbox" / "a.parquet")
    (place / "inbox" / "b.parquet").write_bytes(b"PAR1 and no more")
    code, lines = night("2026-11-24")
    assert (code, "b.parquet" in lines[-1]["reason"]) == (4, True)


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"inbx": "x"}, 1, "'inbox'"),
        ({"model": "nothing"}, 5, "not a model"),
        ({"max_bad": "many"}, 1, "max_bad"),
        ({"reasons": "top:1%"}, 1, "riskmtl explain"),
    ],
)
def test_a_configuration_that_cannot_be(
    place: Path,
    night: Callable[..., Any],
    rows: pl.DataFrame,
    changes: dict[str, Any],
    code: int,
    word: str,
) -> None:
    deliver(place, "a.parquet", rows[:50])
    found, lines = night("2026-11-23", **changes)
    assert (found, word in lines[-1]["reason"]) == (code, True)


def test_a_place_that_is_no_link_is_left_alone(
    place: Path, night: Callable[..., Any], rows: pl.DataFrame
) -> None:
    deliver(place, "a.parquet", rows[:800])
    (place / "out" / "latest").mkdir(parents=True)
    code, lines = night("2026-11-23")
    assert (code, "is no link" in lines[-1]["reason"]) == (1, True)
    shutil.rmtree(place / "out")
    assert night("2026-11-23")[0] == 0
