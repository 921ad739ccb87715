"""The pipelines run as a user runs them, on few rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import polars as pl
import pytest

from riskmtl import MultiTaskClassifier

ROOT = Path(__file__).parents[1]


def pipeline(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "heads.svg"
    arguments = ["--rows", "8000", "--out", str(tmp_path / "demo"), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["risk_portfolio.py", *arguments])
    pipeline("risk_portfolio").main()
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for head in ("default", "fraud", "takeover"):
        # Events, then AUC and AP of network, challenger and best attainable.
        assert len(lines[head].split()) == 8
    for what in ("portfolio", "model", "scores", "figures"):
        assert Path(lines[what].split()[1]).exists()
    figures = pl.read_csv(tmp_path / "demo" / "figures.csv")
    assert figures["model"].unique().sort().to_list() == ["best attainable", "lightgbm", "network"]
    best = figures.filter(pl.col("model") == "best attainable")["roc_auc"]
    assert (best > 0.7).all()
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    test = pl.read_parquet(tmp_path / "demo" / "test.parquet")
    scores = pl.read_parquet(tmp_path / "demo" / "scores.parquet")
    loaded = MultiTaskClassifier.load(tmp_path / "demo" / "model")
    assert scores["p_fraud"].to_list() == pytest.approx(
        loaded.predict_frame(test)["fraud"].to_list()
    )


def test_the_benchmark_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = pipeline("benchmark")
    monkeypatch.setattr(benchmark, "SIMULATED_ROWS", 6000)
    arguments = ["--tables", "risk_portfolio", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--models", "logistic"])
    benchmark.main()
    assert capsys.readouterr().out.split("\n")[0] == "risk_portfolio/split 0/logistic/seed 0"
    first = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(first) == 1
    benchmark.main()
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "accuracy.json").read_text()) == first
    (record,) = first.values()
    page = (tmp_path / "accuracy.md").read_text()
    for task, best in zip(record["tasks"], record["best_attainable"], strict=True):
        share = (task["roc_auc"] - 0.5) / (best["roc_auc"] - 0.5)
        assert f"{best['roc_auc']:.4f} | {share:.1%}" in page
