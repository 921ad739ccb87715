"""
Every way of sharing and of training on the same rows: what each is worth, and what it costs.

Run with ``make benchmark-strategies``. One thing is changed at a time from the reference, PLE with
plain sums, one member and the package's defaults otherwise. Finished fits and timings are not
repeated. Results: ``strategies.json`` and ``.md`` in ``reports/benchmarks``; the scores that
intervals are computed from stay in a folder of their own, which is not committed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import strategies_page
from benchmark_tables import ROOT, SIMULATED, Parts, add_data_option, read_parts
from numpy.typing import NDArray
from pytorch_lightning import Callback

from riskmtl import MultiTaskClassifier
from riskmtl.files import replacing
from riskmtl.metrics import evaluate
from riskmtl.model import sigmoid
from riskmtl.validation.comparison import auc_difference, holm

# Table, relatedness of its heads where it is simulated, training rows.
TABLES: Mapping[str, tuple[str, float, int]] = {
    "census income": ("census_income", 0.7, 40_000),
    "card transactions": ("card_transactions", 0.7, 100_000),
    "simulated, relatedness 0.2": (SIMULATED, 0.2, 50_000),
    "simulated, relatedness 0.8": (SIMULATED, 0.8, 50_000),
}
VALIDATION_SHARE = 0.25  # validation rows, as a share of the training rows
REFERENCE = "sum"
# All that a strategy leaves alone: one member, so that the whole page takes hours and not days.
COMMON: Mapping[str, Any] = {"members": 1}
COST_TASKS = (2, 3, 8)
COST_ROWS, COST_BATCH = 16_384, 512
# Where the machine was disturbed, so that the reference drifted, the timing is made again.
COST_TRIES, COST_DRIFT = 4, 0.08


@dataclass(frozen=True, slots=True)
class Strategy:
    """
    One thing done otherwise than in the reference.

    Parameters
    ----------
    group : str
        The part of the page.
    parameters : dict
        Of the estimator.
    per_task : str, optional
        A parameter that maps tasks to numbers: ``"task_weights"`` (a task's loss over its entropy),
        ``"warm_up"`` or ``"balanced_events"`` (the rarest task).
    """

    group: str
    parameters: Mapping[str, Any]
    per_task: str | None = None

    def of(self, labels: pl.DataFrame) -> dict[str, Any]:
        """Parameters for a table with these training labels."""
        rates = {name: float(labels[name].cast(pl.Float64).mean()) for name in labels.columns}  # type: ignore[arg-type]
        rarest = min(rates, key=lambda name: rates[name])
        per_task: Mapping[str, dict[str, float]] = {
            "task_weights": _over_entropy(rates),
            "warm_up": {rarest: 2.0},
            "balanced_events": {rarest: 5.0},
        }
        if self.per_task is None:
            return dict(self.parameters)
        return {**self.parameters, self.per_task: per_task[self.per_task]}


def _over_entropy(rates: Mapping[str, float]) -> dict[str, float]:
    entropy = {n: -p * np.log(p) - (1 - p) * np.log(1 - p) for n, p in rates.items()}
    mean = float(np.mean([1 / value for value in entropy.values()]))
    return {name: float(1 / value / mean) for name, value in entropy.items()}


def _named(group: str, **strategies: Mapping[str, Any]) -> dict[str, Strategy]:
    return {
        name.replace("__", ", ").replace("_", " "): Strategy(group, parameters)
        for name, parameters in strategies.items()
    }


def _balancings(group: str, *names: str) -> dict[str, Strategy]:
    return {name: Strategy(group, {"balancing": name}) for name in names}


STRATEGIES: Mapping[str, Strategy] = {
    REFERENCE: Strategy("reference", {}),
    **_named(
        "sharing",
        single_task={"network": "single_task"},
        shared_bottom={"network": "shared_bottom"},
        soft_sharing__l2={"network": "soft_sharing"},
        soft_sharing__trace_norm={"network": "soft_sharing", "tie": "trace_norm"},
        cross_stitch={"network": "soft_sharing", "tie": "cross_stitch"},
        encoder_decoder={"network": "encoder_decoder"},
        encoder_decoder__no_reconstruction={
            "network": "encoder_decoder",
            "penalties": {"reconstruction": 0.0},
        },
        mmoe={"network": "mmoe"},
        mmoe__top_k={"network": "mmoe", "gating": "top_k"},
        mmoe__dselect_k={"network": "mmoe", "gating": "dselect_k"},
        ple__two_levels={"levels": 2},
        cross_attention={"network": "cross_attention"},
        aitm={"network": "aitm"},
    ),
    "static": Strategy("loss weights", {"balancing": "static"}, "task_weights"),
    **_balancings(
        "loss weights",
        *("uncertainty", "dwa", "gradnorm", "famo", "random", "geometric_mean"),
    ),
    **_balancings(
        "gradient conflict",
        *("pcgrad", "gradvac", "cagrad", "mgda", "nash_mtl", "fairgrad"),
        *("aligned_mtl", "upgrad", "dual_proj", "imtl_g"),
    ),
    "pcgrad, representation": Strategy(
        "gradient conflict", {"balancing": "pcgrad", "balancing_options": {"at": "representation"}}
    ),
    "upgrad, every 4 steps": Strategy(
        "gradient conflict", {"balancing": "upgrad", "balancing_options": {"every": 4}}
    ),
    **_named(
        "schedule",
        round_robin={"schedule": "round_robin"},
        by_size={"schedule": "by_size"},
        by_uncertainty={"schedule": "by_uncertainty"},
        shared_part_frozen_after_5_epochs={"freeze_shared_after": 5},
    ),
    "warm-up of the rarest": Strategy("schedule", {}, "warm_up"),
    "balanced batches": Strategy("schedule", {}, "balanced_events"),
    **_named(
        "regularisation",
        label_smoothing={"label_smoothing": 0.05},
        mixup={"mixup": 0.2},
        expert_dropout={"expert_dropout": 0.2},
        gate_entropy={"penalties": {"gate_entropy": 0.01}},
        load_balance={"penalties": {"load_balance": 0.01}},
    ),
}


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    options.scores.mkdir(parents=True, exist_ok=True)
    path = options.out / "strategies.json"
    for table, seed, name in _jobs(options):
        key = f"{table}/{name}/seed {seed}"
        if key in _read(path)["fits"]:
            continue
        print(key, flush=True)
        record, scores = _measure(_sampled(table, options.data), name, seed)
        np.savez(options.scores / _file(key), test=scores)
        # Another run may have written results of its own meanwhile.
        results = _read(path)
        results["fits"][key] = {"table": table, "strategy": name, "seed": seed, **record}
        _write(results, path)
    for tasks, name in _timings(options):
        key = f"{name}/{tasks} tasks"
        if key not in _read(path)["cost"]:
            print(f"cost of {key}", flush=True)
            cost = _cost(name, tasks)
            results = _read(path)
            results["cost"][key] = {"strategy": name, "tasks": tasks, **cost}
            _write(results, path)
    results = _read(path)
    found = _differences(results["fits"], options)
    results["differences"] = _adjusted(_of_most_seeds([*results["differences"], *found]))
    _write(results, path)
    with replacing(options.out / "strategies.md") as scratch:
        scratch.write_text(strategies_page.as_page(results, _groups()))


def _groups() -> dict[str, str]:
    return {name: strategy.group for name, strategy in STRATEGIES.items()}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"fits": {}, "cost": {}, "differences": []}
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def _write(results: dict[str, Any], path: Path) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(results, indent=1, sort_keys=True))


def _file(key: str) -> str:
    return f"{key.replace('/', '__')}.npz"


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for seed in range(options.seeds):
        for table in options.tables:
            for name in options.strategies:
                yield table, seed, name


# ---- what each is worth --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _sampled(table: str, folder: Path) -> Parts:
    """A table with fewer training and validation rows, and all of its test rows."""
    name, relatedness, rows = TABLES[table]
    parts = read_parts(name, folder, relatedness=relatedness)
    return replace(
        parts,
        train=_some(parts.train, rows),
        validation=_some(parts.validation, round(rows * VALIDATION_SHARE)),
    )


def _some(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Some of the rows, in their order, the same for every strategy and seed."""
    if frame.height <= rows:
        return frame
    drawn = np.random.default_rng(0).choice(frame.height, rows, replace=False)
    return frame[np.sort(drawn)]


def _measure(parts: Parts, name: str, seed: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Fit one strategy; give its record, and its log-odds on the test rows."""
    given = STRATEGIES[name].of(parts.schema.labels(parts.train).select(parts.tasks))
    model = MultiTaskClassifier(**{**COMMON, **given}, schema=parts.schema, random_state=seed)
    started = time.perf_counter()
    model.fit(parts.train, X_val=parts.validation)
    seconds = time.perf_counter() - started
    margins = model.model_.margins(model.model_.encode(parts.test))
    figures = evaluate(parts.labels(parts.test), sigmoid(margins), model.tasks_)
    record = {
        "train_rows": parts.train.height,
        "seconds": round(seconds, 1),
        "epochs": int(model.history_["epoch"].max()) + 1,  # type: ignore[arg-type]
        "tasks": figures.to_dicts(),
        "git_commit": model.model_.lineage["git_commit"],
    }
    return record, margins.astype(np.float32)


def _differences(
    fits: Mapping[str, Mapping[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each strategy less the reference, on the seeds of both, where the scores are here."""
    found = []
    for table in TABLES:
        reference = _scores(fits, table, REFERENCE, options.scores)
        if not reference:
            continue
        parts = _sampled(table, options.data)
        labels = parts.labels(parts.test)
        for name in STRATEGIES:
            others = _scores(fits, table, name, options.scores)
            seeds = sorted(reference.keys() & others.keys())
            if name == REFERENCE or not seeds:
                continue
            ours, theirs = (
                np.stack([kind[seed] for seed in seeds]) for kind in (others, reference)
            )
            for position, task in enumerate(parts.tasks):
                y, a, b = labels[:, position], ours[:, :, position], theirs[:, :, position]
                difference = auc_difference(y, a, b).to_dict()
                place = {"table": table, "task": task, "strategy": name, "seeds": len(seeds)}
                found.append({**place, **difference})
    return found


def _scores(
    fits: Mapping[str, Mapping[str, Any]], table: str, name: str, folder: Path
) -> dict[int, NDArray[np.float64]]:
    """Log-odds of the test rows by seed."""
    found = {}
    for key, fit in fits.items():
        path = folder / _file(key)
        if (fit["table"], fit["strategy"]) == (table, name) and path.exists():
            found[int(fit["seed"])] = np.load(path)["test"].astype(np.float64)
    return found


def _of_most_seeds(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest of each difference, unless an earlier one, whose scores are gone, had more."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for difference in differences:
        place = difference["table"], difference["strategy"], difference["task"]
        if place not in best or difference["seeds"] >= best[place]["seeds"]:
            best[place] = difference
    tables, names = list(TABLES), list(STRATEGIES)
    return sorted(
        best.values(), key=lambda d: (tables.index(d["table"]), names.index(d["strategy"]))
    )


def _adjusted(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add Holm's p-values over all strategies and heads of a table."""
    for table in {difference["table"] for difference in differences}:
        family = [difference for difference in differences if difference["table"] == table]
        for difference, p in zip(family, holm([d["p_value"] for d in family]), strict=True):
            difference["p_holm"] = p
    return differences


# ---- what each costs -----------------------------------------------------------------------------


def _timings(options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    if options.cost:
        for tasks in COST_TASKS:
            for name in options.strategies:
                if name != REFERENCE:
                    yield tasks, name


class _StepTimes(Callback):
    """Seconds between the ends of two steps of one epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._ended = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._ended = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        if self._ended:
            self.seconds.append(now - self._ended)
        self._ended = now


def _cost(name: str, tasks: int) -> dict[str, float]:
    """Median step of a strategy as a multiple of the reference, timed before and after it."""
    found = []
    for _ in range(COST_TRIES):
        before, own, after = (_step(kind, tasks) for kind in (REFERENCE, name, REFERENCE))
        found.append({"multiple": own / ((before + after) / 2), "reference_drift": after / before})
        if abs(found[-1]["reference_drift"] - 1) < COST_DRIFT:
            break
    return min(found, key=lambda cost: abs(cost["reference_drift"] - 1))


def _step(name: str, tasks: int) -> float:
    rng = np.random.default_rng(0)
    X = pl.DataFrame(rng.normal(size=(COST_ROWS, 30)).astype(np.float32))
    labels = {f"task_{i}": (rng.random(COST_ROWS) < 0.1).astype(int) for i in range(tasks)}
    y = pl.DataFrame(labels)
    times = _StepTimes()
    model = MultiTaskClassifier(
        **{**COMMON, **STRATEGIES[name].of(y), "epochs": 2, "batch_size": COST_BATCH},
        random_state=0,
        callbacks=[times],
    )
    model.fit(X, y)
    # Networks that train one after another take their steps one after another.
    alone = tasks if STRATEGIES[name].parameters.get("network") == "single_task" else 1
    return median(times.seconds) * alone


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES)
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cost", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    parser.add_argument(
        "--scores", type=Path, default=ROOT / ".benchmark" / "strategies", help="folder of scores"
    )
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
