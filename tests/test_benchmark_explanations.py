"""The benchmark of explanations runs as a user runs it, on few rows and a small network."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_explanations
import benchmark_explanations_page
import numpy as np
import pytest

from riskmtl import MultiTaskClassifier

# It trains twice and runs shap's slow explainers.
pytestmark = pytest.mark.slow

SMALL = {"epochs": 1, "expert_units": (8,), "shared_units": (8,), "bins": 4, "embedding_dim": 2}
FEWER = {
    "PORTFOLIO_ROWS": 4000,
    "REFERENCE_BUDGET": 12,
    "PERMUTATIONS": (1, 2, 3),
    "COALITIONS": (120,),
    "GRADIENTS": 20,
    "FEW": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one run."""
    with pytest.MonkeyPatch.context() as patch:
        found = tmp_path_factory.mktemp("explanations")
        run(patch, found)
    return found


def run(patch: pytest.MonkeyPatch, folder: Path) -> None:
    small = partial(MultiTaskClassifier, members=1, **SMALL)
    patch.setattr(benchmark_explanations, "MultiTaskClassifier", small)
    train = benchmark_explanations.train

    def with_less_background(rows: int) -> Any:
        models, explained = train(rows)
        for model in models.values():
            model.model_.background = model.model_.background[::2]
        return models, explained

    patch.setattr(benchmark_explanations, "train", with_less_background)
    for name, value in FEWER.items():
        patch.setattr(benchmark_explanations, name, value)
    arguments = ["--rows", "2", "--repetitions", "2", "--out", str(folder)]
    arguments += ["--scores", str(folder / "scores")]
    patch.setattr(sys, "argv", ["benchmark_explanations.py", *arguments])
    benchmark_explanations.main()


@pytest.fixture
def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "explanations.json").read_text())
    return found


def runs_of(results: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    start = "/".join(names)
    return [run for key, run in results["runs"].items() if key.startswith(start)]


def test_every_method_is_measured_in_the_same_game(results: dict[str, Any]) -> None:
    facts = results["facts"]
    own = runs_of(results, "network", "explain", "budget 4", "all")
    assert len(own) == 2
    # Four permutations of the columns per background row, less what is the same in both rows.
    most = 4 * facts["background_rows"] * facts["columns"]
    for of_model in ("network", "lightgbm"):
        (reference,) = runs_of(results, of_model, "explain", "reference")
        for method in ("explain/budget", "shap.PermutationExplainer"):
            for run in runs_of(results, of_model, method):
                assert run["residual"] < 1e-4
                assert 0 < run["error"] < 0.5
                assert 0 < run["evaluations"] < reference["evaluations"]
    assert 0.5 * most < own[0]["evaluations"] < most
    one, two, three = (
        runs_of(results, "network", "shap.PermutationExplainer", f"permutations {n}/")[0]
        for n in (1, 2, 3)
    )
    # Forwards and backwards is two of four permutations, against as many background rows.
    assert one["evaluations"] == pytest.approx(own[0]["evaluations"] / 2, rel=0.1)
    assert two["evaluations"] == pytest.approx(2 * one["evaluations"], rel=0.01)
    assert three["error"] < one["error"]
    assert own[0]["error"] < three["error"]
    assert own[0]["error"] != own[1]["error"]
    (kernel,) = runs_of(results, "network", "shap.KernelExplainer")
    assert kernel["rows"] == 1
    assert kernel["evaluations"] > 120 * facts["background_rows"]
    check = results["check"]["network"]
    together = np.hypot(check["reference_error"], check["shap_error"])
    assert check["difference"] < 2 * together
    assert check["shap_permutations"] == 6


def test_gradients_of_encoded_rows_are_shown_for_what_they_are(results: dict[str, Any]) -> None:
    gradient = runs_of(results, "network", "shap.GradientExplainer")[0]
    assert gradient["zero_categories"] == 1
    assert gradient["not_numbers"] > 0.05
    assert gradient["residual"] is None


def test_the_headlines_are_those_of_the_runs(results: dict[str, Any]) -> None:
    own = runs_of(results, "network", "explain", "budget 4", "all")
    first = runs_of(results, "network", "explain", "budget 4", "first")
    found = results["headlines"]["network"]
    assert found["is_extrapolated"]
    assert found["seconds"]["own"] == pytest.approx(np.median([r["seconds"] for r in own]))
    assert found["heads_ratio"] == pytest.approx(
        np.median([a["seconds"] / b["seconds"] for a, b in zip(own, first, strict=True)])
    )
    assert found["within_2"] == pytest.approx(np.mean([r["within_2"] for r in own]))
    assert 0.85 < found["within_2"] <= found["within_3"] <= 1


def test_equal_error_is_found_on_the_line_through_shaps_runs(results: dict[str, Any]) -> None:
    made = copy.deepcopy(results)
    for run in runs_of(made, "network", "shap.PermutationExplainer"):
        count = int(run["setting"].split()[1])
        run |= {"error": 0.3 / count**0.5, "seconds": 2.0 * count, "evaluations": 100 * count}
    for run in runs_of(made, "network", "explain", "budget 4", "all"):
        run |= {"error": 0.03, "seconds": 5.0, "evaluations": 200}
    found = benchmark_explanations_page.headlines(made, "network")
    line = {"own": 5, "shap": 200, "ratio": 40, "fitted_slope": -0.5, "fitted_ratio": 40}
    assert found["seconds"] == pytest.approx(line)
    assert found["evaluations"]["ratio"] == pytest.approx(50)
    assert found["is_extrapolated"]
    for run in runs_of(made, "network", "explain", "budget 4", "all"):
        run["error"] = 0.2
    found = benchmark_explanations_page.headlines(made, "network")
    assert found["seconds"]["ratio"] == pytest.approx(0.9)
    assert not found["is_extrapolated"]


def test_the_page_holds_the_figures(folder: Path, results: dict[str, Any]) -> None:
    page = (folder / "explanations.md").read_text()
    assert page == benchmark_explanations_page.as_page(results)
    for model, found in results["headlines"].items():
        assert f"**{found['seconds']['ratio']:.1f} times as long**" in page, model
        assert f"{100 * found['within_3']:.1f} %" in page
        assert f"{found['heads_ratio']:.2f} times" in page
        assert f"{found['seconds']['fitted_ratio']:.1f} times as long." in page
        assert f"{100 * results['check'][model]['difference']:.2f} %" in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    groups = {key.rsplit("/", 1)[0] for key in results["runs"]}
    assert len(lines) == 1 + len(groups)
    own = runs_of(results, "network", "explain", "budget 4", "all")
    error = np.sqrt(np.mean([run["error"] ** 2 for run in own]))
    (line,) = (li for li in lines if li.startswith("| network | explain | budget 4 | all |"))
    assert f"| 2 × 2 | {100 * error:.2f} % |" in line
    assert f"| {np.median([run['evaluations'] for run in own]):,.0f} |" in line
    (line,) = (li for li in lines if "GradientExplainer" in li)
    assert "every category gets exactly 0 |" in line
    assert "% of the values are no numbers" in line


def test_finished_runs_are_not_repeated(
    folder: Path,
    results: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = "network/explain/method path/all/run 1"
    (folder / "scores" / f"explanations__{lost.replace('/', '__')}.npz").unlink()
    capsys.readouterr()
    run(monkeypatch, folder)
    assert capsys.readouterr().out.splitlines() == [lost]
    again = json.loads((folder / "explanations.json").read_text())
    assert {key: r for key, r in again["runs"].items() if key != lost} == {
        key: r for key, r in results["runs"].items() if key != lost
    }


def test_one_repetition_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_explanations.py", "--repetitions", "1"])
    with pytest.raises(SystemExit):
        benchmark_explanations.main()
    assert "--repetitions must be at least 2" in capsys.readouterr().err
