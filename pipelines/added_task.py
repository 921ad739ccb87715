"""
A head added to a trained network, and a network moved to another portfolio.

Run with ``make benchmark-added-task``. On census income two heads are trained and the third is
added last, with all its labels or with few, to a frozen network and to one held by distillation;
beside these, all three trained jointly, and the third alone. On the simulator a network trained on
one portfolio is tuned on few labels of another, whose law is related, beside training anew on these
labels. Finished fits are not repeated. Results: ``added_task.json`` and ``.md`` in
``reports/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmark_tables import ROOT, Parts, add_data_option, read_parts, schema_of

from riskmtl import MultiTaskClassifier, simulate_portfolio
from riskmtl.files import replacing
from riskmtl.metrics import average_precision, log_loss, roc_auc

TABLE = "census_income"
HEADS = ("income", "bachelors", "never_married")
TRAINING_ROWS, VALIDATION_ROWS = 40_000, 10_000
# Labels of the head that comes last.
LABELS = (40_000, 2_000)
WAYS = ("frozen", "distilled", "joint", "alone")
# Of another portfolio, at another relatedness of the heads: near, and as far as can be.
FEW = (500, 2_000, 8_000)
PORTFOLIOS: Mapping[str, tuple[float, float]] = {"near": (0.7, 0.3), "far": (1.0, 0.0)}
PORTFOLIO_ROWS = 50_000
TUNINGS = ("as it was", "tuned", "tuned, shared part frozen", "anew")


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "added_task.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for key, measure in _jobs(options):
        if key in results:
            continue
        print(key, flush=True)
        results[key] = measure()
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(results, indent=1, sort_keys=True))
    with replacing(options.out / "added_task.md") as scratch:
        scratch.write_text(as_page(results))


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    common = {"members": options.members}
    for seed in range(options.seeds):
        for name in PORTFOLIOS:
            yield f"portfolio/{name}/seed {seed}", partial(_measure_portfolio, name, seed, common)
        for head in options.heads:
            measure = partial(_measure_census, options.data, head, seed, common)
            yield f"census/{head}/seed {seed}", measure


# ---- census income -------------------------------------------------------------------------------


def _measure_census(
    folder: Path, last: str, seed: int, common: Mapping[str, Any]
) -> dict[str, Any]:
    parts = read_parts(TABLE, folder)
    train = parts.train.sample(TRAINING_ROWS, seed=seed)
    validation = parts.validation.sample(VALIDATION_ROWS, seed=seed)
    labels, held = parts.schema.labels(train), parts.schema.labels(validation)
    others = [head for head in HEADS if head != last]
    options = {"schema": parts.schema.only(others), "random_state": seed, **common}
    started = time.perf_counter()
    pair = MultiTaskClassifier(**options).fit(
        train, labels[others], X_val=validation, y_val=held[others]
    )
    found: dict[str, Any] = {"pair": {"seconds": _since(started), **_areas(pair, parts)}}
    for count in LABELS:
        known = pl.int_range(TRAINING_ROWS, eager=True) < count
        few = labels.with_columns(pl.when(known).then(last).alias(last))
        for way in WAYS:
            started = time.perf_counter()
            if way in ("frozen", "distilled"):
                # Distilling takes rows without the label too.
                rows, y = (train, few[last]) if way == "distilled" else (
                    train.filter(known), labels[last].filter(known)
                )  # fmt: skip
                model = pair.add_task(last, rows, y, shared=way, X_val=validation, y_val=held[last])
            elif way == "joint":
                model = MultiTaskClassifier(**{**options, "schema": parts.schema}).fit(
                    train, few, X_val=validation, y_val=held
                )
            else:
                alone = {**options, "schema": parts.schema.only([last])}
                model = MultiTaskClassifier(**alone).fit(
                    train.filter(known),
                    labels.select(last).filter(known),
                    X_val=validation,
                    y_val=held.select(last),
                )
            record = {"seconds": _since(started), **_areas(model, parts)}
            if way in ("frozen", "distilled"):
                record["largest_change"] = _largest_change(pair, model, parts.test, others)
            found[f"{way}/{count}"] = record
    return found


def _areas(model: MultiTaskClassifier, parts: Parts) -> dict[str, Any]:
    labels = parts.labels(parts.test)
    scores = model.predict_frame(parts.test)
    return {
        "roc_auc": {
            task: roc_auc(labels[:, parts.tasks.index(task)], scores[task].to_numpy())
            for task in model.tasks_
        },
        "average_precision": {
            task: average_precision(labels[:, parts.tasks.index(task)], scores[task].to_numpy())
            for task in model.tasks_
        },
    }


def _largest_change(
    before: MultiTaskClassifier,
    after: MultiTaskClassifier,
    rows: pl.DataFrame,
    tasks: Sequence[str],
) -> dict[str, float]:
    """Of the old heads, in probability and in log-odds."""
    encoded = before.model_.encode(rows)
    old, new = before.model_.outputs(encoded), after.model_.outputs(encoded)
    log_odds = max(float(abs(old[task] - new[task]).max()) for task in tasks)
    shares = (model.predict_frame(rows).select(tasks).to_numpy() for model in (before, after))
    first, second = shares
    return {
        "log_odds": log_odds,
        "probability": float(abs(first - second).max()),
        "mean_probability": float(abs(first - second).mean()),
    }


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


# ---- another portfolio ---------------------------------------------------------------------------


def _measure_portfolio(name: str, seed: int, common: Mapping[str, Any]) -> dict[str, Any]:
    first, second = PORTFOLIOS[name]
    schema = schema_of("risk_portfolio")
    options = {"schema": schema, "random_state": seed, **common}
    here = simulate_portfolio(PORTFOLIO_ROWS, seed=seed, relatedness=first).frame
    elsewhere = simulate_portfolio(PORTFOLIO_ROWS, seed=seed + 1000, relatedness=second).frame
    test, pool = elsewhere[: PORTFOLIO_ROWS // 2], elsewhere[PORTFOLIO_ROWS // 2 :]
    model = MultiTaskClassifier(**options).fit(here)
    found: dict[str, Any] = {}
    for count in FEW:
        few = pool.sample(count, seed=seed)
        makers: dict[str, Callable[[], MultiTaskClassifier]] = {
            "as it was": lambda: model,
            "tuned": partial(model.fine_tune, few),
            "tuned, shared part frozen": partial(model.fine_tune, few, shared="frozen"),
            "anew": partial(MultiTaskClassifier(**options).fit, few),
        }
        for way in TUNINGS:
            started = time.perf_counter()
            tuned = makers[way]()
            seconds = _since(started)
            labels, scores = schema.labels(test), tuned.predict_frame(test)
            pairs = {t: (labels[t].to_numpy(), scores[t].to_numpy()) for t in tuned.tasks_}
            found[f"{way}/{count}"] = {
                "seconds": seconds,
                "best_epoch": tuned.best_epoch_,
                "roc_auc": {task: roc_auc(y, p) for task, (y, p) in pairs.items()},
                "log_loss": {task: log_loss(y, p) for task, (y, p) in pairs.items()},
            }
    return found


# ---- page ----------------------------------------------------------------------------------------


def as_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Lay the results out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``added_task.json``.

    Returns
    -------
    str
    """
    lines = [
        "# A head added last, and a network moved to another portfolio",
        "",
        "Default settings but for one member; one core of a busy machine.",
        "",
        f"Census income: {TRAINING_ROWS:,} training rows, {VALIDATION_ROWS:,} with all labels to",
        "stop and calibrate by, the test half to judge. Two heads are trained; the third is",
        "added with `add_task` to a frozen network, or to one held by distillation, which reads",
        "rows without the label too. `joint`: all three trained together; `alone`: a network for",
        "the third, on its labels. AUC of the third head, mean over seeds (number in brackets),",
        "and seconds of that fit, that of the two heads not counted.",
        "",
        "| head added | labels | frozen | distilled | joint | alone | s frozen | s distilled |"
        " s joint | s alone |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for head in HEADS:
        runs = _runs(results, f"census/{head}/")
        lines += [_census_line(head, count, runs) for count in LABELS if runs]
    lines += [
        "",
        "What became of the two old heads: the largest change of a test row's probability and",
        "log-odds, the mean change of a probability, and the AUC of the two (mean).",
        "",
        "| head added | labels | way | largest, probability | largest, log-odds |"
        " mean, probability | AUC before | AUC after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for head in HEADS:
        runs = _runs(results, f"census/{head}/")
        lines += [
            _change_line(head, count, way, runs) for count in LABELS for way in WAYS[:2] if runs
        ]
    lines += [
        "",
        "## Few labels of another portfolio",
        "",
        f"Simulator: trained on {PORTFOLIO_ROWS:,} rows, then few labelled rows at another",
        "relatedness of the heads, which is another law over the same columns ("
        + ", ".join(f"{name}: {a:g} to {b:g}" for name, (a, b) in PORTFOLIOS.items())
        + ");",
        f"{PORTFOLIO_ROWS // 2:,} rows of that to judge. `as it was`: not tuned; `anew`:",
        "trained on the few rows alone. Mean over the three heads, and over seeds (number in",
        "brackets).",
        "",
        "| portfolio | labelled rows | way | AUC | log-loss | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in PORTFOLIOS:
        runs = _runs(results, f"portfolio/{name}/")
        lines += [_tuning_line(name, count, way, runs) for count in FEW for way in TUNINGS if runs]
    return "\n".join([*lines, ""])


def _runs(results: Mapping[str, Mapping[str, Any]], start: str) -> list[Mapping[str, Any]]:
    return [record for key, record in sorted(results.items()) if key.startswith(start)]


def _census_line(head: str, count: int, runs: Sequence[Mapping[str, Any]]) -> str:
    cells = [head, f"{count:,}"]
    for way in WAYS:
        areas = [run[f"{way}/{count}"]["roc_auc"][head] for run in runs]
        cells.append(f"{np.mean(areas):.4f} ({len(areas)})")
    cells += [f"{np.mean([run[f'{way}/{count}']['seconds'] for run in runs]):.0f}" for way in WAYS]
    return f"| {' | '.join(cells)} |"


def _change_line(head: str, count: int, way: str, runs: Sequence[Mapping[str, Any]]) -> str:
    records = [run[f"{way}/{count}"] for run in runs]
    largest = [
        max(record["largest_change"][kind] for record in records)
        for kind in ("probability", "log_odds")
    ]
    mean = np.mean([record["largest_change"]["mean_probability"] for record in records])
    old = [task for task in HEADS if task != head]
    before = np.mean([run["pair"]["roc_auc"][task] for run in runs for task in old])
    after = np.mean([record["roc_auc"][task] for record in records for task in old])
    return (
        f"| {head} | {count:,} | {way} | {largest[0]:.1e} | {largest[1]:.1e} | {mean:.1e} |"
        f" {before:.4f} | {after:.4f} |"
    )


def _tuning_line(name: str, count: int, way: str, runs: Sequence[Mapping[str, Any]]) -> str:
    records = [run[f"{way}/{count}"] for run in runs]
    area, loss = (
        np.mean([value for record in records for value in record[name].values()])
        for name in ("roc_auc", "log_loss")
    )
    seconds = np.mean([record["seconds"] for record in records])
    return (
        f"| {name} | {count:,} | {way} | {area:.4f} ({len(records)}) | {loss:.4f} | {seconds:.1f} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--heads", nargs="*", choices=HEADS, default=["never_married", "income"])
    parser.add_argument("--members", type=int, default=1, help="members of every network")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
