"""The page of the benchmark of a head added last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import added_task
import pytest


def record(area: float, head: str) -> dict[str, Any]:
    others = dict.fromkeys(added_task.HEADS, 0.9)
    change = {"log_odds": 0.25, "probability": 0.02, "mean_probability": 1e-4}
    return {"roc_auc": {**others, head: area}, "seconds": 7.0, "largest_change": change}


def test_the_page_has_a_line_for_each_way() -> None:
    runs = {f"{way}/{n}": record(0.75, "income") for way in added_task.WAYS
            for n in added_task.LABELS}  # fmt: skip
    runs["joint/2000"] = record(0.85, "income")
    tuned = {f"{way}/{n}": {"roc_auc": {"a": 0.7, "b": 0.8}, "log_loss": {"a": 0.1, "b": 0.3},
                            "seconds": 1.0} for way in added_task.TUNINGS
             for n in added_task.FEW}  # fmt: skip
    page = added_task.as_page(
        {
            "census/income/seed 0": {"pair": record(0.5, "income"), **runs},
            "census/income/seed 1": {"pair": record(0.5, "income"), **runs},
            "portfolio/near/seed 0": tuned,
        }
    )
    assert "| income | 2,000 | 0.7500 (2) | 0.7500 (2) | 0.8500 (2) | 0.7500 (2) |" in page
    assert "| income | 40,000 | distilled | 2.0e-02 | 2.5e-01 | 1.0e-04 | 0.9000 | 0.9000 |" in page
    assert "| near | 500 | anew | 0.7500 (1) | 0.2000 | 1.0 |" in page
    # What was not run is not on it.
    assert "bachelors" not in page
    assert "| far |" not in page


@pytest.mark.slow
def test_a_small_portfolio_is_measured_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(added_task, "PORTFOLIO_ROWS", 6000)
    monkeypatch.setattr(added_task, "FEW", (400,))
    monkeypatch.setattr(added_task, "PORTFOLIOS", {"near": (0.7, 0.3)})
    arguments = ["added_task.py", "--heads", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    added_task.main()
    assert capsys.readouterr().out.split("\n")[0] == "portfolio/near/seed 0"
    assert "| near | 400 | tuned |" in (tmp_path / "added_task.md").read_text()
    added_task.main()
    assert capsys.readouterr().out == ""
