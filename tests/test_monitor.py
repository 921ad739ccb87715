"""Several nights of scores on one page: what is found, what is refused, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from riskmtl import RiskModel
from riskmtl.columns import DataError
from riskmtl.metrics import roc_auc
from riskmtl.schema import Split
from riskmtl.scoring.folder import JobError
from riskmtl.scoring.local import score_files
from riskmtl.scoring.monitor import monitor
from riskmtl.validation import Verdict
from riskmtl.validation.drift import stability_index

LATE = date(2030, 1, 1)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> RiskModel:
    return RiskModel.load(model_folder)


@pytest.fixture(scope="module")
def frames(parts: Split) -> list[pl.DataFrame]:
    """Three nights: as training was; the same; a new device, half of incomes missing, fewer."""
    rows = parts.train.sample(fraction=1, shuffle=True, seed=0)
    half = pl.int_range(pl.len()) % 2 == 0
    changed = rows[2400:2700].with_columns(
        dev_model=pl.lit("new"), acc_income=pl.when(half).then(None).otherwise("acc_income")
    )
    return [rows[:1300], rows[1300:2400], changed]


@pytest.fixture(scope="module")
def nights(
    model: RiskModel, frames: list[pl.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("nights")
    for i, frame in enumerate(frames):
        frame.write_parquet(folder / f"{i}.parquet")
        score_files(model, folder / f"{i}.parquet", folder / f"n{i}", time=datetime(2026, 1, 1 + i))
    return [folder / f"n{i}" for i in range(len(frames))]


def test_a_night_like_training_raises_no_alert(model: RiskModel, nights: list[Path]) -> None:
    report = monitor(model, nights[:2])
    assert report.verdict is Verdict.PASS
    assert [question.key for question, _, _ in report.sections] == ["nights", "scores", "columns"]
    assert report["nights"].table("nights")["night"].to_list() == ["2026-01-01", "2026-01-02"]
    assert report["nights"].table("nights")["rows"].to_list() == [1300, 1100]


def test_drift_missing_and_new_values_are_found(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame]
) -> None:
    report = monitor(model, [nights[2], nights[0], nights[1]])
    found = {finding.what: finding for finding in report["columns"].findings}
    missing = found["largest rise of missing values: acc_income"]
    assert missing.verdict is Verdict.FAIL
    assert missing.value == pytest.approx(0.5, abs=0.1)
    assert found["largest rise of new categories: dev_model"].value == pytest.approx(1, abs=0.1)
    assert found["largest CSI: dev_model"].verdict is Verdict.WATCH
    usual = report["nights"].findings[-1]
    assert usual.verdict is Verdict.WATCH
    assert usual.value == pytest.approx(1200 / 300)
    # The last is the latest by its time, in whatever order the folders are given.
    table = report["columns"].table("columns")
    assert table.row(0, named=True)["name"] == "dev_model"


def test_indices_are_those_of_the_scores(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame]
) -> None:
    table = monitor(model, nights)["scores"].table("scores")
    before, after = (model.margins(model.encode(frame))[:, 1] for frame in frames[:2])
    reference = model.reference.scores[1]
    for frame, night in ((before, "2026-01-01"), (after, "2026-01-02")):
        line = table.filter(name="fraud", night=night)
        counts = reference.count(frame.astype(np.float32))
        shares, kept = counts / counts.sum(), np.array(reference.counts) / sum(reference.counts)
        used = counts + np.array(reference.counts) > 0
        expected = ((shares - kept)[used] * np.log(shares[used] / kept[used])).sum()
        assert line["psi"][0] == pytest.approx(expected)
    assert stability_index(before, after).psi < 0.05


def test_outcomes_are_joined_by_key_and_time(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame]
) -> None:
    needed = model.schema.needed(labelled=True)
    outcomes = pl.concat(frames[:2]).select(
        name for name in needed if name[:4] not in ("acc_", "txn_") or name == "acc_opened_date"
    )
    report = monitor(model, nights[:2], outcomes=outcomes.reverse(), as_of=LATE)
    whole = pl.concat(frames[:2])
    labels = model.schema.labels(whole, as_of=LATE)["fraud"].to_numpy()
    scores = model.predict_frame(whole)["fraud"].to_numpy()
    found = {(f.head, f.what): f for f in report["outcomes"].findings}
    assert found["fraud", "AUC"].value == pytest.approx(roc_auc(labels, scores), abs=1e-6)
    ratio = np.nansum(labels) / scores[~np.isnan(labels)].sum()
    assert found["fraud", "events over expected"].value == pytest.approx(ratio, rel=1e-5)
    table = report["outcomes"].table("outcomes_fraud")
    assert table["known"].sum() == int((~np.isnan(labels)).sum())
    assert table["events"].sum() == int(np.nansum(labels))


def test_few_outcomes_give_no_verdict(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame]
) -> None:
    report = monitor(model, nights[:1], outcomes=frames[0].head(50), as_of=LATE)
    assert {f.verdict for f in report["outcomes"].findings} == {Verdict.TOO_FEW}


def test_immature_outcomes_are_not_known_yet(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame]
) -> None:
    """The day from which maturity counts back is that of the monitoring, not of the training."""
    report = monitor(model, nights[:1], outcomes=frames[0], as_of=date(2022, 1, 1))
    default = next(f for f in report["outcomes"].findings if f.head == "default")
    assert (default.verdict, default.value) == (Verdict.TOO_FEW, 0)


def test_what_cannot_be_monitored(
    model: RiskModel, nights: list[Path], frames: list[pl.DataFrame], tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="no finished scores"):
        monitor(model, [tmp_path])
    with pytest.raises(ValueError, match="at least one folder"):
        monitor(model, [])
    twice = pl.concat([frames[0].head(3), frames[0].head(3)])
    with pytest.raises(DataError, match="several rows have the same account_id"):
        monitor(model, nights[:1], outcomes=twice)
    with pytest.raises(DataError, match="none of the keys"):
        monitor(model, nights[:1], outcomes=frames[0].drop("account_id"))
    (tmp_path / "_MANIFEST.json").write_text("{")
    with pytest.raises(JobError, match="damaged"):
        monitor(model, [tmp_path])
    (tmp_path / "_MANIFEST.json").write_text(json.dumps({"model_id": "x", "counts": None}))
    with pytest.raises(JobError, match="another model"):
        monitor(model, [tmp_path])


def test_the_command_line_writes_a_page_and_tells_the_scheduler(
    run: Callable[..., Any], model_folder: Path, nights: list[Path], tmp_path: Path
) -> None:
    monitoring = ("monitor", "--model", model_folder, "--out", tmp_path / "page", "--scores")
    calm = run(*monitoring, *nights[:2])
    assert (calm.code, calm.err) == (0, "")
    assert "pass" in calm.out
    alarmed = run(*monitoring, *nights)
    assert alarmed.code == 11
    page = (tmp_path / "page" / "monitoring.html").read_text()
    assert "Monitoring report" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    record = json.loads((tmp_path / "page" / "monitoring.json").read_text())
    assert record["verdict"] == "fail"
    config = tmp_path / "config.yaml"
    config.write_text("bounds: {missing_rise: {fail: 2}, unseen_rise: {fail: 2}}")
    assert run(*monitoring, *nights, "--config", config).code == 10
    refused = run(*monitoring, tmp_path)
    assert (refused.code, "no finished scores" in refused.err) == (6, True)
