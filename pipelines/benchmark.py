"""
Accuracy on public tables and on the simulated portfolio, with the package's defaults.

Run with ``make benchmark``; ``RISKMTL_DATA`` names the folder of the public tables. Every finished
fit is written down at once and not repeated, so a run that was stopped goes on where it was.
Results: ``reports/benchmarks/accuracy.json`` and ``accuracy.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from riskmtl import (
    DataSchema,
    LightGBMBaseline,
    LogisticBaseline,
    MultiTaskClassifier,
    load_schema,
    simulate_portfolio,
)
from riskmtl.base import MultiTaskEstimator
from riskmtl.files import read_table, replacing
from riskmtl.metrics import evaluate
from riskmtl.splits import Split

ROOT = Path(__file__).parents[1]
SIMULATED = "risk_portfolio"
TABLES: Mapping[str, tuple[str, ...]] = {
    "census_income": ("census_income_train", "census_income_test"),
    "card_transactions": ("card_transactions",),
    "taiwan_default": ("taiwan_default",),
    "give_me_some_credit": ("give_me_some_credit",),
    "heloc": ("heloc",),
    "kdd09_churn_appetency_upselling": ("kdd09_churn_appetency_upselling",),
    "vehicle_claims": ("vehicle_claims",),
    SIMULATED: (),
}
NETWORKS = ("ple", "mmoe", "shared_bottom", "single_task")
MODELS = ("ple", "lightgbm", "logistic")
SIMULATED_ROWS = 200_000


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "accuracy.json"
    records: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for table, split, model, seed in _jobs(options):
        key = f"{table}/split {split}/{model}/seed {seed}"
        if options.rows is not None:
            key += f"/{options.rows} rows"
        if key in records:
            continue
        print(key, flush=True)
        records[key] = _measure(table, split, model, seed, options)
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(records, indent=1, sort_keys=True))
    with replacing(options.out / "accuracy.md") as scratch:
        scratch.write_text(as_page(records))


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    """What is to be measured: seeds on the fixed split, then one seed on each further split."""
    for table in options.tables:
        for seed in range(options.seeds):
            for model in options.models:
                # A logistic regression does not depend on the seed.
                if seed == 0 or model != "logistic":
                    yield table, 0, model, seed
    for table in options.tables:
        if table != SIMULATED and _splits_at_random(_schema(table)):
            for split in range(1, options.splits):
                for model in options.models:
                    yield table, split, model, 0


def _measure(
    table: str, split: int, model: str, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    schema = _schema(table)
    rule = schema.split_rule
    schema = replace(schema, split_rule=replace(rule, seed=rule.seed + split))
    frame, truth = _read(table, options.data)
    parts = schema.split(schema.check(frame).good)
    train = parts.train if options.rows is None else parts.train.sample(options.rows, seed=0)
    estimator = _estimator(model, schema, seed)
    started = time.perf_counter()
    estimator.fit(train, X_val=parts.validation)
    seconds = time.perf_counter() - started
    labels = estimator.read_labels(parts.test)
    scores = estimator.model_.probabilities(estimator.model_.encode(parts.test))
    record = {
        "table": table,
        "split": split,
        "model": model,
        "seed": seed,
        "train_rows": train.height,
        "seconds": round(seconds, 1),
        "tasks": evaluate(labels, scores, estimator.tasks_).to_dicts(),
    }
    if truth is not None:
        record["best_attainable"] = _best(parts, truth, labels, estimator.tasks_)
    return record


def _estimator(model: str, schema: DataSchema, seed: int) -> MultiTaskEstimator:
    if model == "lightgbm":
        return LightGBMBaseline(schema=schema, random_state=seed)
    if model == "logistic":
        return LogisticBaseline(schema=schema, random_state=seed)
    return MultiTaskClassifier(network=model, schema=schema, random_state=seed)


def _schema(table: str) -> DataSchema:
    return load_schema(ROOT / "data_schemas" / f"{table}.yaml")


def _splits_at_random(schema: DataSchema) -> bool:
    return schema.split_rule.test is not None and schema.split_rule.test.share is not None


def _read(table: str, folder: Path) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Read a table, with the truth behind it if it is the simulated one."""
    if table == SIMULATED:
        portfolio = simulate_portfolio(SIMULATED_ROWS, seed=0)
        return portfolio.frame, portfolio.truth
    files = [read_table(folder / f"{name}.parquet") for name in TABLES[table]]
    return pl.concat(files, how="diagonal"), None


def _best(
    parts: Split, truth: pl.DataFrame, labels: np.ndarray[Any, Any], tasks: list[str]
) -> list[dict[str, Any]]:
    keys = ["account_id", "snapshot_date"]
    true = parts.test.select(keys).join(truth, on=keys, maintain_order="left")
    return evaluate(labels, true.select(f"p_{task}" for task in tasks).to_numpy(), tasks).to_dicts()


# ---- the page ------------------------------------------------------------------------------------


def as_page(records: Mapping[str, Any]) -> str:
    """
    Lay the records out as a Markdown page.

    Parameters
    ----------
    records : mapping
        As in ``accuracy.json``.

    Returns
    -------
    str
    """
    whole = [r for key, r in records.items() if not key.endswith("rows")]
    lines = [
        "# Accuracy with the package's defaults",
        "",
        "Test parts as the schemas in `data_schemas/` define them; mean over seeds (number in",
        "brackets), and the standard deviation where there are several. No public table carries",
        "credit default, fraud and account takeover labels of the same customers: the claim for",
        "the three heads together rests on the simulated portfolio, whose truth is known.",
        "",
        "LightGBM is tuned: 8 seeded trials per head on the validation rows. `s` is the wall time",
        "of a fit on two shared cores, all heads together.",
        "",
        *_table(
            [r for r in whole if r["split"] == 0],
            ("roc_auc", "average_precision", "brier"),
        ),
        "",
        "## Random splits",
        "",
        "Tables that are split at random, each figure the mean over the splits (number in",
        "brackets), of which the first is the one above.",
        "",
        *_table(
            [r for r in whole if _splits_at_random(_schema(r["table"])) and r["seed"] == 0],
            ("roc_auc", "average_precision"),
        ),
        "",
        "## The simulated portfolio and the best attainable",
        "",
        *_attainable([r for r in whole if "best_attainable" in r]),
        "",
    ]
    return "\n".join(lines)


_TITLES = {"roc_auc": "AUC", "average_precision": "AP", "brier": "Brier"}


def _table(records: list[dict[str, Any]], metrics: tuple[str, ...]) -> list[str]:
    lines = [
        "| table | head | events | model | " + " | ".join(_TITLES[m] for m in metrics) + " | s |",
        "|---|---|---|---|" + "---|" * (len(metrics) + 1),
    ]
    for table in TABLES:
        rows = [r for r in records if r["table"] == table]
        heads = [task["task"] for task in rows[0]["tasks"]] if rows else []
        for position, head in enumerate(heads):
            for model in dict.fromkeys(r["model"] for r in sorted(rows, key=_model_order)):
                runs = [r for r in rows if r["model"] == model]
                tasks = [r["tasks"][position] for r in runs]
                cells = [_cell([task[m] for task in tasks]) for m in metrics]
                seconds = f"{np.mean([r['seconds'] for r in runs]):.0f}"
                lines.append(
                    f"| {table} | {head} | {tasks[0]['events']:,} | {model} ({len(runs)}) | "
                    + " | ".join([*cells, seconds])
                    + " |"
                )
    return lines


def _attainable(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| head | model | AUC | best attainable | share of the way from 0.5 |",
        "|---|---|---|---|---|",
    ]
    for record in sorted(records, key=_model_order):
        for task, best in zip(record["tasks"], record["best_attainable"], strict=True):
            share = (task["roc_auc"] - 0.5) / (best["roc_auc"] - 0.5)
            lines.append(
                f"| {task['task']} | {record['model']}, seed {record['seed']} | "
                f"{task['roc_auc']:.4f} | {best['roc_auc']:.4f} | {share:.1%} |"
            )
    return lines


def _model_order(record: Mapping[str, Any]) -> tuple[int, int]:
    order = [*NETWORKS, "lightgbm", "logistic"]
    return order.index(record["model"]), record["seed"]


def _cell(values: list[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument(
        "--models", nargs="+", choices=[*NETWORKS, "lightgbm", "logistic"], default=list(MODELS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds on the fixed split")
    parser.add_argument("--splits", type=int, default=5, help="random splits, the fixed one first")
    parser.add_argument("--rows", type=int, help="training rows; default: all")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RISKMTL_DATA", "data")))
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
