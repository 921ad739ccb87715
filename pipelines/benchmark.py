"""
The judge: networks, LightGBM and logistic regression on the same rows, with the defaults.

Run with ``make benchmark``; ``RISKMTL_DATA`` names the folder of the public tables. Every finished
fit is written down at once and not repeated, so a run that was stopped goes on where it was.
Results: ``accuracy.json``, ``accuracy.md`` and ``accuracy.svg`` in ``reports/benchmarks``. The
scores that differences are computed from stay in a folder of their own, which is not committed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_page
import numpy as np
from benchmark_tables import (
    FILES,
    LARGE,
    ROOT,
    Parts,
    add_data_option,
    read_parts,
    schema_of,
    splits_at_random,
)
from numpy.typing import NDArray

from riskmtl import LightGBMBaseline, LogisticBaseline, MultiTaskClassifier
from riskmtl.base import MultiTaskEstimator
from riskmtl.blending import blend_weight
from riskmtl.files import replacing
from riskmtl.metrics import evaluate
from riskmtl.model import sigmoid
from riskmtl.sizing import Sizes
from riskmtl.validation.comparison import auc_difference, bootstrap_differences, holm

# In the order of their importance: what is first is measured first.
MODELS = (
    "lightgbm",
    "network",
    "shared_bottom",
    "mmoe",
    "single_task",
    "one_member",
    "logistic",
    "ple",
)
LIGHTGBM_TRIALS = 30
PAIRS = (
    ("network", "lightgbm"),
    ("blend", "lightgbm"),
    ("one_member", "lightgbm"),
    ("network", "single_task"),
    ("network", "one_member"),
)


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    options.scores.mkdir(parents=True, exist_ok=True)
    path = options.out / "accuracy.json"
    results = _read(path)
    for table, split, model, seed in _jobs(options):
        key = f"{table}/split {split}/{model}/seed {seed}"
        done = results["fits"].get(key)
        kept = options.scores / f"{key.replace('/', '__')}.npz"
        # LightGBM's settings are on record: its scores, if they are not here, cost no search.
        if done is not None and (model != "lightgbm" or split or kept.exists()):
            continue
        print(key, flush=True)
        parts = read_parts(table, options.data, split=split)
        record, scores = _measure(parts, model, seed, results["fits"], key)
        np.savez(kept, **scores)
        if done is not None:
            _require_same(key, done, record)
            continue
        # Another run may have written results of its own meanwhile.
        results = _read(path)
        results["fits"][key] = {
            "table": table,
            "split": split,
            "model": model,
            "seed": seed,
            **record,
        }
        _write(results, path)
    blends, comparisons = _comparisons(results["fits"], options)
    results = _read(path)
    results["fits"] |= blends
    results["comparisons"] = _in_order([*results["comparisons"], *comparisons])
    _write(results, path)
    with replacing(options.out / "accuracy.md") as scratch:
        scratch.write_text(benchmark_page.as_page(results))
    with replacing(options.out / "accuracy.svg") as scratch:
        benchmark_page.draw(results, scratch)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"fits": {}, "comparisons": []}
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def _write(results: dict[str, Any], path: Path) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(results, indent=1, sort_keys=True))


def _require_same(key: str, done: dict[str, Any], again: dict[str, Any]) -> None:
    """Stop if a fit that was made again is not what it was."""
    for then, now in zip(done["tasks"], again["tasks"], strict=True):
        if abs(then["roc_auc"] - now["roc_auc"]) > 1e-4:
            raise RuntimeError(f"{key}: AUC was {then['roc_auc']}, is {now['roc_auc']}")


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    """What is to be measured: seeds on the fixed split, then one seed on each further split."""
    for model in options.models:
        for table in options.tables:
            seeds = min(options.seeds, 3) if table in LARGE else options.seeds
            # A logistic regression does not depend on the seed.
            for seed in range(1 if model == "logistic" else seeds):
                if _is_of_its_own(table, model, options.data):
                    yield table, 0, model, seed
    for table in options.tables:
        if splits_at_random(table):
            for split in range(1, options.splits):
                for model in ("network", "lightgbm"):
                    if model in options.models:
                        yield table, split, model, 0


def _is_of_its_own(table: str, model: str, folder: Path) -> bool:
    """Whether a model differs from the others: the default is some network, too."""
    if model == MultiTaskClassifier().network:
        return False
    if model == "one_member":
        return Sizes.make(read_parts(table, folder).train.height).members > 1
    return model != "single_task" or len(schema_of(table).tasks) > 1


def _measure(
    parts: Parts, model: str, seed: int, fits: dict[str, Any], key: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit one model; give its record, and its log-odds on validation and test rows."""
    estimator = _estimator(model, parts, seed, fits, key)
    started = time.perf_counter()
    estimator.fit(parts.train, X_val=parts.validation)
    seconds = time.perf_counter() - started
    fitted = estimator.model_
    encoded = fitted.encode(parts.test)
    started = time.perf_counter()
    test = fitted.margins(encoded)
    scoring = time.perf_counter() - started
    figures = evaluate(parts.labels(parts.test), sigmoid(test), fitted.tasks)
    record = {
        "train_rows": parts.train.height,
        "seconds": round(seconds, 1),
        "rows_per_second": round(len(test) / scoring),
        "parameters": _size(estimator),
        "tasks": figures.to_dicts(),
        "git_commit": fitted.lineage["git_commit"],
    }
    if isinstance(estimator, LightGBMBaseline):
        record["settings"] = estimator.best_params_
    if parts.truth is not None:
        record["best_attainable"] = _best(parts)
    return record, {"validation": fitted.margins(fitted.encode(parts.validation)), "test": test}


def _estimator(
    model: str, parts: Parts, seed: int, fits: dict[str, Any], key: str
) -> MultiTaskEstimator:
    common: dict[str, Any] = {"schema": parts.schema, "random_state": seed}
    if model == "logistic":
        return LogisticBaseline(**common)
    if model == "lightgbm":
        searched = fits.get(key.replace(f"seed {seed}", "seed 0"))
        if searched is None:
            return LightGBMBaseline(trials=LIGHTGBM_TRIALS, **common)
        # The search is the same for every seed; what differs is the sampling of rows and columns.
        return LightGBMBaseline(trials=1, settings=searched["settings"], **common)
    if model == "network":
        return MultiTaskClassifier(**common)
    if model == "one_member":
        return MultiTaskClassifier(members=1, **common)
    return MultiTaskClassifier(network=model, **common)


def _size(estimator: MultiTaskEstimator) -> int | None:
    """Trained numbers of a network."""
    network = getattr(estimator.model_.scorer, "network", None)
    return None if network is None else sum(p.numel() for p in network.parameters())


def _best(parts: Parts) -> list[dict[str, Any]]:
    assert parts.truth is not None
    true = parts.truth.select(f"p_{task}" for task in parts.tasks).to_numpy()
    return evaluate(parts.labels(parts.test), true, parts.tasks).to_dicts()


# ---- who is better -------------------------------------------------------------------------------


def _comparisons(
    fits: dict[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Blends, and differences on the fixed splits, where the scores are here."""
    blends: dict[str, Any] = {}
    comparisons: list[dict[str, Any]] = []
    for table in options.tables:
        runs = {(f["model"], f["seed"]) for f in fits.values() if _is_fixed(f, table)}
        if not runs:
            continue
        parts = read_parts(table, options.data)
        scores = _Scores(options.scores, table, runs, parts)
        labels = parts.labels(parts.test)
        for seed, blend in zip(scores.blended, scores.of("blend"), strict=True):
            blends[f"{table}/split 0/blend/seed {seed}"] = {
                "table": table,
                "split": 0,
                "model": "blend",
                "seed": seed,
                "tasks": evaluate(labels, blend, parts.tasks).to_dicts(),
            }
        for first, second in PAIRS:
            ours, theirs = scores.of(first), scores.of(second)
            if not len(ours) or not len(theirs):
                continue
            for position, task in enumerate(parts.tasks):
                y, a, b = labels[:, position], ours[:, :, position], theirs[:, :, position]
                for difference in (auc_difference(y, a, b), *bootstrap_differences(y, a, b)):
                    comparisons.append(
                        {
                            "table": table,
                            "task": task,
                            "events": int(np.nansum(y)),
                            "first_model": first,
                            "second_model": second,
                            **difference.to_dict(),
                        }
                    )
    return blends, comparisons


def _in_order(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest of each comparison, in the page's order, whatever the order of measuring."""
    pairs, tables = list(PAIRS), list(FILES)
    latest = {_place(c): c for c in comparisons}
    ordered = sorted(
        latest.values(),
        key=lambda c: (
            pairs.index((c["first_model"], c["second_model"])),
            tables.index(c["table"]),
        ),
    )
    _adjust(ordered)
    return ordered


def _place(comparison: dict[str, Any]) -> tuple[str, ...]:
    names = ("table", "task", "first_model", "second_model", "metric")
    return tuple(comparison[name] for name in names)


def _is_fixed(fit: dict[str, Any], table: str) -> bool:
    return bool(fit["table"] == table and fit["split"] == 0)


def _adjust(comparisons: list[dict[str, Any]]) -> None:
    """Add Holm's p-values, over the heads of all tables, for each pair of models and metric."""
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for c in comparisons:
        families.setdefault((c["first_model"], c["second_model"], c["metric"]), []).append(c)
    for family in families.values():
        for c, p_value in zip(family, holm([c["p_value"] for c in family]), strict=True):
            c["p_holm"] = p_value


class _Scores:
    """Probabilities of the test rows of one table, by model."""

    def __init__(self, folder: Path, table: str, runs: set[tuple[str, int]], parts: Parts) -> None:
        self.labels = parts.labels(parts.validation)
        self.runs: dict[str, dict[int, Any]] = {}
        for model, seed in sorted(runs):
            path = folder / f"{table}__split 0__{model}__seed {seed}.npz"
            if path.exists():
                self.runs.setdefault(model, {})[seed] = np.load(path)

    @property
    def blended(self) -> list[int]:
        """Seeds that both parts of a blend have."""
        return [s for s in self.runs.get("network", {}) if s in self.runs.get("lightgbm", {})]

    def of(self, model: str) -> NDArray[np.float64]:
        """Probabilities ``(seeds, rows, tasks)``; none where there are no scores."""
        runs = self.runs
        if model == "blend":
            pairs = [(runs["network"][seed], runs["lightgbm"][seed]) for seed in self.blended]
            return np.array([self._blend(*pair) for pair in pairs])
        return np.array([sigmoid(run["test"]) for run in runs.get(model, {}).values()])

    def _blend(self, network: Any, trees: Any) -> NDArray[np.float64]:
        """What ``challenger="blend"`` makes of the same two fits."""
        own, other = network["validation"], trees["validation"]
        weights = [
            blend_weight(self.labels[:, i], own[:, i], other[:, i]) for i in range(own.shape[1])
        ]
        return sigmoid(weights * network["test"] + (1 - np.array(weights)) * trees["test"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--seeds", type=int, default=5, help="seeds on the fixed split; 3 at most on large tables"
    )
    parser.add_argument("--splits", type=int, default=5, help="random splits, the fixed one first")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    parser.add_argument(
        "--scores", type=Path, default=ROOT / ".benchmark", help="folder for scores"
    )
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
