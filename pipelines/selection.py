"""
What is known of the declined: the naive mask, the entire space, inverse propensities.

Run with ``make benchmark-selection``. Default is observed of the approved only; the simulator knows
the true probability of everybody. Each way is trained on the same months with an ``approved`` head
beside the others, and judged by its calibrated answers, as a user gets them, for the declined and
the approved rows of the test months. Finished fits are not repeated. Results: ``selection.json``
and ``.md`` in ``reports/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmark_tables import ROOT, SIMULATED, schema_of
from numpy.typing import NDArray

from riskmtl import DataSchema, MultiTaskClassifier, simulate_portfolio
from riskmtl.files import replacing
from riskmtl.metrics import roc_auc

ROWS = 50_000
# What makes the fits quick, and says as much about the ways.
QUICK: Mapping[str, Any] = {"epochs": 4, "members": 2}
RELATEDNESS = (0.3, 0.7)
TASK, SELECTING = "default", "approved"
BY: Mapping[str, Any] = {"selected_by": {TASK: SELECTING}}
# How the network is told of the selection; the first has no head for it.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "mask": {},
    "mask, approved head": {},
    "entire space": {**BY, "selection": "entire_space"},
    "inverse propensity": {**BY, "selection": "inverse_propensity"},
}
GROUPS = ("declined", "approved")
MEASURES = ("error", "bias", "roc_auc")


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "selection.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for relatedness, seed, way in _jobs(options):
        key = f"relatedness {relatedness:g}/{way}/seed {seed}"
        if key in results:
            continue
        print(key, flush=True)
        results[key] = {
            "relatedness": relatedness,
            "way": way,
            "seed": seed,
            "portfolio": options.rows,
            **_measure(way, relatedness, seed, options.rows),
        }
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(results, indent=1, sort_keys=True))
    with replacing(options.out / "selection.md") as scratch:
        scratch.write_text(as_page(results))


def _jobs(options: argparse.Namespace) -> Iterator[tuple[float, int, str]]:
    for seed in range(options.seeds):
        for relatedness in options.relatedness:
            for way in WAYS:
                yield relatedness, seed, way


def _measure(way: str, relatedness: float, seed: int, rows: int) -> dict[str, Any]:
    """Train one way on a table of its own seed, and judge its answers for the test months."""
    schema = schema_of(SIMULATED)
    portfolio = simulate_portfolio(rows, seed=seed, relatedness=relatedness)
    train, validation, test = schema.split(portfolio.frame)
    keys = ["account_id", "snapshot_date"]
    truth = test.select(keys).join(portfolio.truth, on=keys, maintain_order="left")
    has_head = way != "mask"
    model = MultiTaskClassifier(schema=schema, random_state=seed, **QUICK, **WAYS[way])
    started = time.perf_counter()
    model.fit(
        train,
        labels_of(schema, train, has_head),
        X_val=validation,
        y_val=labels_of(schema, validation, has_head),
    )
    seconds = time.perf_counter() - started
    encoded = model.model_.encode(test)
    answers = {
        name: 1 / (1 + np.exp(-model.model_.outputs(encoded, calibrated=calibrated)[TASK]))
        for name, calibrated in (("calibrated", True), ("uncalibrated", False))
    }
    is_approved = test[SELECTING].to_numpy()
    masks = dict(zip(GROUPS, (~is_approved, is_approved), strict=True))
    return {
        name: {group: judged(found, truth, mask) for group, mask in masks.items()}
        for name, found in answers.items()
    } | {
        "truth": {
            group: judged(truth[f"p_{TASK}"].to_numpy(), truth, mask)
            for group, mask in masks.items()
        },
        "rows": {group: int(mask.sum()) for group, mask in masks.items()},
        "best_epoch": model.best_epoch_,
        "seconds": round(seconds, 1),
        "git_commit": model.model_.lineage["git_commit"],
    }


def labels_of(schema: DataSchema, frame: pl.DataFrame, has_head: bool) -> pl.DataFrame:
    """Labels of the schema's tasks, and of the selection where there is a head for it."""
    labels = schema.labels(frame)
    return labels.with_columns(frame[SELECTING].cast(pl.Int8)) if has_head else labels


def judged(
    found: NDArray[np.float64], truth: pl.DataFrame, mask: NDArray[np.bool_]
) -> dict[str, float]:
    """
    Judge probabilities of some rows by the true ones, and by what happened.

    Parameters
    ----------
    found : ndarray of shape (rows,)
    truth : polars.DataFrame
        With ``p_default`` and ``default``.
    mask : ndarray of bool, shape (rows,)

    Returns
    -------
    dict of str to float
        Mean absolute error, bias (above 0: risk is overstated), mean true probability, ROC AUC.
    """
    probability = truth[f"p_{TASK}"].to_numpy()[mask]
    happened = truth[TASK].to_numpy()[mask].astype(np.float64)
    difference = found[mask] - probability
    return {
        "error": float(np.abs(difference).mean()),
        "bias": float(difference.mean()),
        "mean": float(probability.mean()),
        "roc_auc": roc_auc(happened, found[mask]),
    }


# ---- page ----------------------------------------------------------------------------------------


def as_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Lay the results out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``selection.json``.

    Returns
    -------
    str
    """
    lines = [
        "# The declined",
        "",
        "Default is observed of the approved only. Simulated portfolios of "
        f"{_portfolios(results)} rows,",
        f"a table of its own for each seed; {QUICK['epochs']} epochs, {QUICK['members']} members,",
        "and default settings but for the way named. `mask` has no head for approval; the others",
        "have one. Error is the mean absolute difference from the true probability, bias the mean",
        "difference (above 0: risk is overstated), AUC is against what happened, which the",
        "simulator knows of the declined too. In percentage points, but for the AUC; mean over",
        "seeds (number in brackets) ± their standard deviation. `truth` is the true probability",
        "itself. Selection here is by columns that the network sees; against what nobody recorded,",
        "no way would help.",
    ]
    for answers, title in (
        ("calibrated", "Calibrated answers, as a user gets them"),
        ("uncalibrated", "The same before calibration on the approved validation rows"),
    ):
        lines += ["", f"## {title}", "", _HEAD, "|---" * (_HEAD.count("|") - 1) + "|"]
        for relatedness in RELATEDNESS:
            lines += _lines(results, answers, relatedness)
    return "\n".join([*lines, "", *_summary(results), ""])


_HEAD = (
    "| relatedness | way | error, declined | bias, declined | AUC, declined |"
    " error, approved | bias, approved | AUC, approved |"
)


def _lines(
    results: Mapping[str, Mapping[str, Any]], answers: str, relatedness: float
) -> Iterator[str]:
    for way in WAYS:
        runs = _runs(results, relatedness, way)
        if runs:
            yield _line(f"{way} ({len(runs)})", relatedness, [run[answers] for run in runs])
    everything = [run for way in WAYS for run in _runs(results, relatedness, way)]
    if everything:
        # The same test rows for every way.
        by_seed = {run["seed"]: run["truth"] for run in everything}
        yield _line("truth", relatedness, list(by_seed.values()))


def _line(name: str, relatedness: float, runs: Sequence[Mapping[str, Any]]) -> str:
    cells = [f"{relatedness:g}", name]
    for group in GROUPS:
        for measure in MEASURES:
            values = np.array([run[group][measure] for run in runs])
            cells.append(_cell(values, measure))
    return f"| {' | '.join(cells)} |"


def _cell(values: NDArray[np.float64], measure: str) -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    if measure == "roc_auc":
        return f"{values.mean():.4f} ± {spread:.4f}"
    sign = "+" if measure == "bias" else ""
    return f"{100 * values.mean():{sign}.2f} ± {100 * spread:.2f}"


def _runs(
    results: Mapping[str, Mapping[str, Any]], relatedness: float, way: str
) -> list[Mapping[str, Any]]:
    found = [r for r in results.values() if r["relatedness"] == relatedness and r["way"] == way]
    return sorted(found, key=lambda run: int(run["seed"]))


def _portfolios(results: Mapping[str, Mapping[str, Any]]) -> str:
    sizes = sorted({run["portfolio"] for run in results.values()})
    return " and ".join(f"{rows:,}" for rows in sizes)


def _summary(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in words what each way does to the error on the declined, against the one before it."""
    mask, with_head, *told = WAYS
    lines = []
    for relatedness in RELATEDNESS:
        for way, other in ((with_head, mask), *((way, with_head) for way in told)):
            errors = [
                {
                    run["seed"]: 100 * run["calibrated"]["declined"]["error"]
                    for run in _runs(results, relatedness, name)
                }
                for name in (way, other)
            ]
            gains = [errors[0][seed] - errors[1][seed] for seed in errors[0].keys() & errors[1]]
            if gains:
                lower = sum(gain < 0 for gain in gains)
                lines.append(
                    f"- Relatedness {relatedness:g}, {way} against {other}: error on the declined "
                    f"{np.mean(gains):+.2f} points, lower for {lower} of {len(gains)} seeds."
                )
    moved = [
        100 * (run["calibrated"]["declined"]["error"] - run["uncalibrated"]["declined"]["error"])
        for run in results.values()
    ]
    lowered = sum(gain < 0 for gain in moved)
    lines.append(
        "- Calibration, fitted on approved rows alone: error on the declined "
        f"{np.mean(moved):+.2f} points, lower for {lowered} of {len(moved)} fits."
    )
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--relatedness", nargs="+", type=float, choices=RELATEDNESS, default=list(RELATEDNESS)
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
