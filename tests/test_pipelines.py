"""The pipelines run as a user runs them, on few rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from riskmtl import LightGBMBaseline, MultiTaskClassifier
from riskmtl.metrics import evaluate
from riskmtl.networks import TRUNKS
from riskmtl.training.balancing import BALANCING

ROOT = Path(__file__).parents[1]


def pipeline(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for its own module
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
    scores = pl.read_parquet(tmp_path / "demo" / "scores" / "part-*.parquet")
    loaded = MultiTaskClassifier.load(tmp_path / "demo" / "model")
    assert scores["p_fraud"].to_list() == pytest.approx(
        loaded.predict_frame(test)["fraud"].to_list()
    )


FEW_TREES = {"n_estimators": 20, "early_stopping": 10, "n_jobs": 1}
SMALL = {"epochs": 1, "expert_units": (8,), "shared_units": (8,), "bins": 4, "embedding_dim": 2}


@pytest.fixture
def small_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few simulated rows, and models that train in a moment."""
    import benchmark_tables

    monkeypatch.setattr(benchmark_tables, "SIMULATED_ROWS", 6000)
    network, trees = MultiTaskClassifier.__init__, LightGBMBaseline.__init__

    def small_network(self: Any, *args: Any, **given: Any) -> None:
        network(self, *args, **{**SMALL, **given})

    def few_trees(self: Any, **given: Any) -> None:
        trees(self, **{**FEW_TREES, **given, "trials": min(2, given.get("trials", 2))})

    small_network.__signature__ = signature(network)  # type: ignore[attr-defined]
    few_trees.__signature__ = signature(trees)  # type: ignore[attr-defined]
    monkeypatch.setattr(MultiTaskClassifier, "__init__", small_network)
    monkeypatch.setattr(LightGBMBaseline, "__init__", few_trees)


def run_pipeline(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    pipeline(name).main()


@pytest.mark.usefixtures("small_fits")
def test_the_judge_goes_on_where_it_was_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores"
    folders = ["--out", str(out), "--scores", str(scores)]
    options = ["--tables", "risk_portfolio", "--seeds", "2", *folders, "--models"]
    run_pipeline(monkeypatch, "benchmark", *options, "logistic", "lightgbm")
    assert capsys.readouterr().out.split() == [
        *("risk_portfolio/split", "0/logistic/seed", "0"),
        *("risk_portfolio/split", "0/lightgbm/seed", "0"),
        *("risk_portfolio/split", "0/lightgbm/seed", "1"),
    ]
    first = json.loads((out / "accuracy.json").read_text())
    assert first["comparisons"] == []
    run_pipeline(monkeypatch, "benchmark", *options, "logistic", "lightgbm", "network")
    assert "lightgbm" not in capsys.readouterr().out
    results = json.loads((out / "accuracy.json").read_text())
    for key, fit in first["fits"].items():
        assert results["fits"][key] == fit
    # The second seed trains with what the first one found.
    found = [results["fits"][f"risk_portfolio/split 0/lightgbm/seed {s}"] for s in (0, 1)]
    kept = [{k: v for k, v in f["settings"]["fraud"].items() if k in ("num_leaves", "lambda_l2")}
            for f in found]  # fmt: skip
    assert kept[0] == kept[1]
    assert found[0]["tasks"] != found[1]["tasks"]
    against = {(c["first_model"], c["second_model"]) for c in results["comparisons"]}
    assert against == {("network", "lightgbm"), ("blend", "lightgbm")}
    (one,) = (
        c
        for c in results["comparisons"]
        if (c["task"], c["metric"], c["first_model"]) == ("fraud", "roc_auc", "network")
    )
    assert one["low"] < one["estimate"] < one["high"]
    assert one["p_holm"] >= one["p_value"]
    areas = {
        model: [
            fit["tasks"][1]["roc_auc"] for fit in results["fits"].values() if fit["model"] == model
        ]
        for model in ("network", "lightgbm")
    }
    assert one["estimate"] == pytest.approx(
        sum(areas["network"]) / 2 - sum(areas["lightgbm"]) / 2, abs=1e-9
    )
    page = (out / "accuracy.md").read_text()
    assert f"{one['estimate']:+.4f}" in page
    assert "| risk_portfolio | fraud |" in page
    assert "blend (2)" in page
    for task, best in zip(fit["tasks"], first["fits"][key]["best_attainable"], strict=True):
        assert f"| {task['task']} | lightgbm (2) |" in page
        assert f"{best['roc_auc']:.4f} |" in page
    assert ElementTree.parse(out / "accuracy.svg").getroot().tag.endswith("svg")


@pytest.mark.usefixtures("small_fits")
def test_a_blend_of_the_judge_is_that_of_the_estimator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark_tables import read_parts

    out = tmp_path / "out"
    folders = ["--out", str(out), "--scores", str(tmp_path / "scores")]
    options = ["--tables", "risk_portfolio", "--seeds", "1", *folders]
    run_pipeline(monkeypatch, "benchmark", *options, "--models", "lightgbm", "network")
    results = json.loads((out / "accuracy.json").read_text())
    parts = read_parts("risk_portfolio", tmp_path)
    blend = MultiTaskClassifier(schema=parts.schema, challenger="blend", random_state=0)
    blend.fit(parts.train, X_val=parts.validation)
    judged = results["fits"]["risk_portfolio/split 0/blend/seed 0"]["tasks"]
    found = evaluate(
        blend.read_labels(parts.test), blend.predict_proba(parts.test), blend.tasks_
    ).to_dicts()
    for one, other in zip(judged, found, strict=True):
        assert one["roc_auc"] == pytest.approx(other["roc_auc"], abs=1e-6)


@pytest.mark.usefixtures("small_fits")
def test_the_search_sees_validation_rows_only_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmark_search

    arguments = ["--tables", "risk_portfolio", "--seeds", "1", "--out", str(tmp_path)]
    arguments += ["--candidates", "defaults", "one_member"]
    run_pipeline(monkeypatch, "benchmark_search", *arguments)
    assert capsys.readouterr().out.split() == [
        *("risk_portfolio/defaults/seed", "0"),
        *("risk_portfolio/one_member/seed", "0"),
    ]
    run_pipeline(monkeypatch, "benchmark_search", *arguments)
    assert capsys.readouterr().out == ""
    results = json.loads((tmp_path / "search.json").read_text())
    first, second = (results[f"risk_portfolio/{n}/seed 0"] for n in ("defaults", "one_member"))
    gain = sum(second["skill"]) / 3 - sum(first["skill"]) / 3
    page = (tmp_path / "search.md").read_text()
    assert "| defaults | +0.00 | +0.00 | +0.00 | 1.0 |" in page
    assert f"| one_member (members=1) | {100 * gain:+.2f} |" in page
    stops, measures = benchmark_search.halves(pl.DataFrame({"row": range(1000)}))
    assert sorted([*stops["row"], *measures["row"]]) == list(range(1000))
    assert 400 < stops.height < 600


@pytest.mark.usefixtures("small_fits")
def test_scarce_labels_are_hidden_from_one_head_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import scarce_labels

    labels = pl.DataFrame({"a": [0, 1, None, 1] * 500, "b": [1, 0, 0, None] * 500})
    half, tenth = (scarce_labels.hide(labels, "a", share, seed=0) for share in (0.5, 0.1))
    assert half["b"].equals(labels["b"])
    assert 600 < half["a"].drop_nulls().len() < 900
    kept = tenth["a"].is_not_null()
    assert half.filter(kept)["a"].equals(tenth.filter(kept)["a"])
    assert scarce_labels.hide(labels, "a", 1.0, seed=0).equals(labels)

    setting = "simulated default, relatedness 1"
    monkeypatch.setattr(sys, "argv", [
        *("scarce_labels.py", "--settings", setting, "--shares", "1", "0.5"),
        *("--seeds", "1", "--out", str(tmp_path)),
    ])  # fmt: skip
    scarce_labels.main()
    assert len(capsys.readouterr().out.splitlines()) == 6
    scarce_labels.main()
    assert capsys.readouterr().out == ""
    results = json.loads((tmp_path / "scarce_labels.json").read_text())
    whole, less = (results[f"{setting}/{share}/joint/seed 0"] for share in ("1", "0.5"))
    assert less["labels"] < 0.6 * whole["labels"]
    gain = whole["roc_auc"] - results[f"{setting}/1/single/seed 0"]["roc_auc"]
    page = (tmp_path / "scarce_labels.md").read_text()
    assert f"{gain:+.4f}" in page
    assert ElementTree.parse(tmp_path / "scarce_labels.svg").getroot().tag.endswith("svg")


@pytest.mark.usefixtures("small_fits")
def test_strategies_are_held_against_the_plain_sum_and_not_fitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--scores", str(tmp_path / "scores")]
    table = "simulated, relatedness 0.2"
    options = ["--tables", table, "--seeds", "1", *folders, "--no-cost", "--strategies"]
    run_pipeline(monkeypatch, "strategies", *options, "sum")
    run_pipeline(monkeypatch, "strategies", *options, "sum", "shared bottom")
    assert capsys.readouterr().out.splitlines() == [
        f"{table}/sum/seed 0",
        f"{table}/shared bottom/seed 0",
    ]
    results = json.loads((tmp_path / "out" / "strategies.json").read_text())
    fits = results["fits"]
    for difference in results["differences"]:
        both = [
            next(
                task["roc_auc"]
                for task in fits[f"{table}/{name}/seed 0"]["tasks"]
                if task["task"] == difference["task"]
            )
            for name in ("shared bottom", "sum")
        ]
        assert difference["estimate"] == pytest.approx(both[0] - both[1], abs=1e-6)
        assert difference["p_holm"] >= difference["p_value"]
    assert [d["task"] for d in results["differences"]] == ["default", "fraud", "takeover"]
    page = (tmp_path / "out" / "strategies.md").read_text()
    assert f"{results['differences'][0]['estimate']:+.4f}" in page
    ours, theirs = (
        [task["average_precision"] for task in fits[f"{table}/{name}/seed 0"]["tasks"]]
        for name in ("shared bottom", "sum")
    )
    area = np.mean([d["estimate"] for d in results["differences"]])
    precision = np.mean(ours) - np.mean(theirs)
    assert f"| shared bottom | {area:+.4f} | {precision:+.4f} |" in page
    assert f" / {ours[2]:.4f} |\n" in page
    # Where the scores are gone, what was found with them stays.
    for path in (tmp_path / "scores").iterdir():
        path.unlink()
    run_pipeline(monkeypatch, "strategies", *options, "sum", "shared bottom")
    again = json.loads((tmp_path / "out" / "strategies.json").read_text())
    assert again == results


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"fraud": 0.0, "default": 0.0}, "better than plain sums on any head, and 0 of 1 are"),
        ({"fraud": -0.01, "default": 0.0}, "better than plain sums on any head, and 1 of 1 are"),
        ({"fraud": 0.02, "default": -0.01}, "on any head without being worse on another"),
        ({"fraud": 0.02, "default": 0.0}, "worse on none: `mmoe` (on 1 of 2, +0.0100 over all"),
    ],
)
def test_the_page_of_strategies_says_who_is_better(found: dict[str, float], said: str) -> None:
    figures = [{"task": task, "roc_auc": 0.8, "average_precision": 0.3} for task in found]
    fit = {"table": "cards", "seed": 0, "train_rows": 10, "epochs": 3, "tasks": figures}
    fits = {name: {**fit, "strategy": name} for name in ("sum", "mmoe")}
    differences = [
        {"table": "cards", "task": task, "strategy": "mmoe", "seeds": 1, "estimate": estimate,
         "low": estimate, "high": estimate, "p_holm": 0.01 if estimate else 1.0}
        for task, estimate in found.items()
    ]  # fmt: skip
    results = {"fits": fits, "differences": differences, "cost": {}}
    page = pipeline("strategies_page").as_page(results, {"sum": "reference", "mmoe": "sharing"})
    assert said in page


def test_no_way_of_sharing_or_balancing_is_missing_among_the_strategies() -> None:
    given = [strategy.parameters for strategy in pipeline("strategies").STRATEGIES.values()]
    reference = MultiTaskClassifier()
    for name, known in {"network": TRUNKS, "balancing": BALANCING}.items():
        assert {each.get(name, getattr(reference, name)) for each in given} == set(known)


def test_a_step_that_does_twice_the_work_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    strategies = pipeline("strategies")
    monkeypatch.setattr(strategies, "COST_ROWS", 3000)
    costs = strategies._cost("single task", 2)
    assert costs["multiple"] > 1
    assert 0.2 < costs["reference_drift"] < 5


def test_selection_is_judged_by_the_truth_of_the_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import selection

    truth = pl.DataFrame({"p_default": [0.1, 0.5, 0.3], "default": [0, 1, 0]})
    found = selection.judged(np.array([0.2, 0.2, 0.9]), truth, np.array([True, True, False]))
    assert found == pytest.approx({"error": 0.2, "bias": -0.1, "mean": 0.3, "roc_auc": 0.5})

    monkeypatch.setattr(selection, "QUICK", {"epochs": 1, "members": 1})
    monkeypatch.setattr(sys, "argv", [
        *("selection.py", "--relatedness", "0.7", "--seeds", "1", "--rows", "3000"),
        *("--out", str(tmp_path)),
    ])  # fmt: skip
    selection.main()
    assert len(capsys.readouterr().out.splitlines()) == len(selection.WAYS)
    selection.main()
    assert capsys.readouterr().out == ""
    results = json.loads((tmp_path / "selection.json").read_text())
    for run in results.values():
        assert run["truth"]["declined"]["error"] == 0
        assert run["truth"]["declined"]["mean"] > run["truth"]["approved"]["mean"]
    mask, space = (
        results[f"relatedness 0.7/{way}/seed 0"]["calibrated"]["declined"]["error"]
        for way in ("mask, approved head", "entire space")
    )
    assert mask != space
    page = (tmp_path / "selection.md").read_text()
    gain = f"error on the declined {100 * (space - mask):+.2f} points"
    assert f"entire space against mask, approved head: {gain}, lower for" in page
    assert "Simulated portfolios of 3,000 rows" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
