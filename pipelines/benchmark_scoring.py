"""
How fast scoring is, beside what the machine can compute and beside LightGBM, and what it needs.

Run with ``make benchmark-scoring``. Speeds are ratios within one run, measured in turns; the page
is ``reports/benchmarks/scoring.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from riskmtl import MultiTaskClassifier, RiskModel
from riskmtl.columns import Column, Task
from riskmtl.files import replacing
from riskmtl.model import Head
from riskmtl.schema import DataSchema
from riskmtl.scorers import NetworkScorer, TreeScorer
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.local import score_files
from riskmtl.threads import one_thread_each

ROOT = Path(__file__).parents[1]
HEADS = ("default", "fraud", "takeover")
INPUTS, EXPERTS, UNITS, TOWER = 50, 8, (128, 64), 32
TREES = 300
_TRAINED_ON = 20_000
_ROWS = 5_000_000
_TREE_ROWS = 131_072

FIRST_BATCH = """
import sys
import polars as pl
from riskmtl.artefact import load_model
from riskmtl.scoring.batches import score_batches
model = load_model(sys.argv[1])
next(score_batches(model, [pl.scan_parquet(sys.argv[2]).head(1024).collect()]))
print("scored", flush=True)
"""
PEAK = """
import sys
from riskmtl.artefact import load_model
from riskmtl.scoring.local import score_files
score_files(load_model(sys.argv[1]), sys.argv[2], sys.argv[3], restart=True, threads=2)
# Not getrusage, whose peak is that of the parent if this one was larger.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def main() -> None:
    """Measure what was not measured yet, and write the page."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    record = options.out / "scoring.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    model_folder = _model(work)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(work, model_folder, options.rounds),
        "challengers": lambda: challengers(work, model_folder, options.rounds),
        "memory": lambda: memory(work, model_folder),
        "start": lambda: start(work, model_folder),
        "lookup": lambda: lookup(options.rounds),
    }
    for name, step in steps.items():
        if name in found and not options.again:
            continue
        found[name] = {**step(), "machine": _machine()}
        with replacing(record) as scratch:
            scratch.write_text(json.dumps(found, indent=1))
        print(name, json.dumps(found[name]), flush=True)
    with replacing(options.out / "scoring.md") as scratch:
        scratch.write_text(page(found))


# ---- what is measured --------------------------------------------------------------------------


def speed(work: Path, model_folder: Path, rounds: int) -> dict[str, Any]:
    """The job of the network alone, beside matrix products and three LightGBM models."""
    table = _table(work, _ROWS)
    model = RiskModel.load(model_folder, with_challenger=True)
    assert model.challenger is not None
    encoded = model.encode(pl.scan_parquet(table).head(_TREE_ROWS).collect())
    trees = model.challenger.scorer
    assert isinstance(trees, TreeScorer)
    lines = []
    for _ in range(rounds):
        seconds, outside = _job(model, table, work / "scores", ScoreSettings())
        lines.append(
            {
                "job": _ROWS / seconds,
                "outside": outside,
                "limit": _products_per_second(1024, 1024, 1024) / _flops(),
                "limit_of_shapes": 1 / _seconds_of_shapes(),
                "bare_network": len(encoded) / _bare_network(model, encoded),
                "trees": len(encoded) / _seconds(lambda: _predicted(trees, encoded)),
            }
        )
    return {"rounds": lines}


def challengers(work: Path, model_folder: Path, rounds: int) -> dict[str, Any]:
    """The job with the challenger's scores, beside bare prediction of the three LightGBM models."""
    rows = 2 * _TREE_ROWS
    table = _table(work, rows)
    model = RiskModel.load(model_folder, with_challenger=True)
    assert model.challenger is not None
    trees = model.challenger.scorer
    assert isinstance(trees, TreeScorer)
    encoded = model.encode(pl.read_parquet(table))
    lines = []
    for _ in range(rounds):
        seconds, _ = _job(model, table, work / "scores", ScoreSettings(challenger=True))
        bare = _seconds(lambda: _predicted(trees, encoded))
        lines.append({"job": rows / seconds, "trees": rows / bare})
    return {"rounds": lines}


def memory(work: Path, model_folder: Path) -> dict[str, Any]:
    """Peak of a process that scores one million rows, and five."""
    found = {}
    for rows in (1_000_000, 5_000_000):
        table = _table(work, rows)
        command = [sys.executable, "-c", PEAK, *map(str, (model_folder, table, work / "scores"))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[str(rows)] = float(done.stdout)
    return {"mib": found}


def start(work: Path, model_folder: Path) -> dict[str, Any]:
    """Seconds from the start of a process to its first scored batch."""
    table = _table(work, 1_000_000)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", FIRST_BATCH, model_folder, table], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds}


# ---- how it is measured ------------------------------------------------------------------------


def lookup(rounds: int) -> dict[str, Any]:
    """The default network of one member, whose first layer is looked up, beside itself as it is."""
    trained, _, _ = _labelled()
    model = MultiTaskClassifier(schema=_schema(), members=1, epochs=1, random_state=0).fit(trained)
    scorer = model.model_.scorer
    assert isinstance(scorer, NetworkScorer)
    encoded = model.model_.encode(_rows(_TREE_ROWS, seed=0))
    began = time.perf_counter()
    ready = scorer.fold()
    made = time.perf_counter() - began
    assert ready.folded is not None
    lines = []
    with one_thread_each():
        for _ in range(rounds):
            as_it_is = _seconds(lambda: scorer.raw(encoded))
            lines.append({"as_it_is": as_it_is, "looked_up": _seconds(lambda: ready.raw(encoded))})
    answers = [1 / (1 + np.exp(-kind.raw(encoded))) for kind in (scorer, ready)]
    difference = float(np.abs(answers[0] - answers[1]).max())
    return {"rounds": lines, "seconds_to_make": made, "largest_difference": difference}


def _job(model: RiskModel, table: Path, out: Path, settings: ScoreSettings) -> tuple[float, float]:
    """Seconds of a job, and the share of its threads' time that is not the network's."""
    scorer = model.scorer
    assert isinstance(scorer, NetworkScorer)
    spent, lock, raw = [0.0], threading.Lock(), scorer.raw

    def timed(encoded: Any) -> NDArray[np.float64]:
        begun = time.perf_counter()
        found = raw(encoded)
        with lock:
            spent[0] += time.perf_counter() - begun
        return found

    scorer.raw = timed  # type: ignore[method-assign]
    try:
        threads = torch.get_num_threads()
        begun = time.perf_counter()
        score_files(model, table, out, settings, restart=True, threads=threads)
        seconds = time.perf_counter() - begun
    finally:
        scorer.raw = raw  # type: ignore[method-assign]
    return seconds, 1 - spent[0] / (threads * seconds)


def _flops() -> int:
    """Multiplications and additions that a row needs at least, in matrix products alone."""
    experts = EXPERTS * (INPUTS * UNITS[0] + UNITS[0] * UNITS[1])
    gates = len(HEADS) * (INPUTS * EXPERTS + EXPERTS * UNITS[1])
    towers = len(HEADS) * (UNITS[1] * TOWER + TOWER)
    return 2 * (experts + gates + towers)


def _products_per_second(a: int, b: int, c: int) -> float:
    """Floating-point operations per second of float32 products, in all threads side by side."""
    x, y = torch.rand(a, b), torch.rand(b, c)
    return 2 * a * b * c / _side_by_side(lambda: x @ y)


def _seconds_of_shapes() -> float:
    """Seconds per row, in all threads side by side, of the experts' products as they come."""
    rows = 1024
    x, first = torch.rand(rows, INPUTS), torch.rand(INPUTS, EXPERTS * UNITS[0])
    hidden, second = torch.rand(EXPERTS, rows, UNITS[0]), torch.rand(EXPERTS, *UNITS)

    def products() -> None:
        torch.mm(x, first)
        torch.bmm(hidden, second)

    return _side_by_side(products) / rows


def _bare_network(model: RiskModel, encoded: NDArray[np.float32]) -> float:
    """Seconds of the network alone, half of the rows in each thread."""
    halves = np.array_split(encoded, torch.get_num_threads())
    with one_thread_each() as threads, _pool(threads) as pool:
        return _seconds(lambda: list(pool.map(model.scorer.raw, halves)))


def _side_by_side(function: Callable[[], Any], calls: int = 200) -> float:
    """Seconds per call where each thread makes its calls at the same time as the others."""

    def repeated(_: int) -> None:
        with torch.inference_mode():
            for _ in range(calls):
                function()

    with one_thread_each() as threads, _pool(threads) as pool:
        seconds = _seconds(lambda: list(pool.map(repeated, range(threads))))
    return seconds / (threads * calls)


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def _seconds(function: Callable[[], Any]) -> float:
    function()
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _predicted(trees: TreeScorer, encoded: NDArray[np.float32]) -> None:
    trees.threads = torch.get_num_threads()
    trees.raw(encoded)


# ---- model and rows ----------------------------------------------------------------------------


def _schema() -> DataSchema:
    inputs = [Column(f"x{i}", "number", "numeric", minimum=-50, maximum=50) for i in range(INPUTS)]
    tasks = tuple(Task(head, label=head) for head in HEADS)
    return DataSchema("speed", (Column("id", "string", "key"), *inputs), tasks)


def _rows(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {f"x{i}": rng.normal(size=rows).astype(np.float32) for i in range(INPUTS)}
    return pl.DataFrame({"id": pl.Series(np.arange(rows)).cast(pl.String), **columns})


def _table(work: Path, rows: int) -> Path:
    """A Parquet file of so many rows, written million by million."""
    path = work / f"{rows}.parquet"
    if not path.exists():
        parts = []
        for i, at in enumerate(range(0, rows, 1_000_000)):
            parts.append(work / f".{rows}.{i}.parquet")
            _rows(min(1_000_000, rows - at), seed=i).write_parquet(parts[-1])
        with replacing(path) as scratch:
            pl.scan_parquet(parts, glob=False).sink_parquet(scratch, row_group_size=131_072)
        for part in parts:
            part.unlink()
    return path


def _labelled() -> tuple[pl.DataFrame, NDArray[np.float32], NDArray[np.bool_]]:
    """Rows to train on, with their inputs and events by themselves."""
    rows = _rows(_TRAINED_ON, seed=99)
    x = rows.select(pl.col("^x.*$")).to_numpy()
    noise = np.random.default_rng(0).normal(size=(len(x), len(HEADS)))
    risk = np.stack([x[:, i] + x[:, i + 3] * x[:, 9] for i in range(len(HEADS))], 1) + noise
    events = risk > 1.5
    named = [pl.Series(head, events[:, i].astype(np.int8)) for i, head in enumerate(HEADS)]
    return rows.with_columns(named), x, events


def _model(work: Path) -> Path:
    folder = work / "model"
    if not folder.exists():
        rows, x, events = _labelled()
        estimator = MultiTaskClassifier(
            network="mmoe",
            schema=_schema(),
            numeric_embedding="standardize",
            embedding_dim=1,
            members=1,
            experts=EXPERTS,
            expert_units=UNITS,
            tower_units=(TOWER,),
            epochs=1,
            random_state=0,
        ).fit(rows)
        model = estimator.model_
        model.challenger = _trees(model, x, events)
        shutil.rmtree(work / "unfinished", ignore_errors=True)
        estimator.save(folder)
    return folder


def _trees(model: RiskModel, x: NDArray[np.float32], events: NDArray[np.bool_]) -> RiskModel:
    import lightgbm

    settings = {"objective": "binary", "num_leaves": 31, "verbose": -1, "seed": 0}
    texts = [
        lightgbm.train(settings, lightgbm.Dataset(x, label=y), TREES).model_to_string()
        for y in events.T.astype(np.float64)
    ]
    heads = [Head(head) for head in HEADS]
    return RiskModel(model.encoder, TreeScorer(texts), heads, model.schema, dict(model.lineage), {})


# ---- the page ----------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """
    Lay the figures out beside what was asked.

    Parameters
    ----------
    found : dict
        As ``scoring.json`` holds it.

    Returns
    -------
    str
        Markdown.
    """
    rounds = found["speed"]["rounds"]
    middle = {name: median(line[name] for line in rounds) for name in rounds[0]}
    mixed = found["challengers"]["rounds"]
    peak = found["memory"]["mib"]
    one, five = peak["1000000"], peak["5000000"]
    figures = [
        ("job against matrix products of 1024×1024", _ratio(rounds, "job", "limit"), "≥ 0.65"),
        ("job against the experts' products alone", _ratio(rounds, "job", "limit_of_shapes"), "–"),
        ("job against the bare network", _ratio(rounds, "job", "bare_network"), "–"),
        ("time that is not inference", f"{middle['outside']:.0%}", "≤ 20 %"),
        (f"job against three LightGBM models of {TREES} trees",
         _ratio(rounds, "job", "trees"), "≥ 10"),
        ("job with challengers against bare LightGBM", _ratio(mixed, "job", "trees"), "≥ 0.9"),
        ("peak memory, 5 million rows against 1 million", f"{five / one:.2f}", "≤ 1.10"),
        ("peak memory, 5 million rows", f"{five / 1024:.2f} GiB", "< 1.5 GB"),
        ("start to first scored batch", f"{min(found['start']['seconds']):.1f} s", "< 3 s"),
    ]  # fmt: skip
    return "\n".join(
        [
            "# Scoring",
            "",
            "`make benchmark-scoring` writes this page. An MMoE of "
            f"{EXPERTS} experts of {'-'.join(map(str, UNITS))} on {INPUTS} inputs and "
            f"{len(HEADS)} heads scores {_ROWS:,} rows, from Parquet to synced Parquet. Ratios are "
            f"medians over {len(rounds)} rounds, in each of which all sides are measured in turn.",
            "",
            "| what | measured | asked |",
            "|---|---|---|",
            *(f"| {what} | {value} | {asked} |" for what, value, asked in figures),
            "",
            f"The job scored {middle['job']:,.0f} rows a second. {found['speed']['machine']}.",
            "",
            *_lookup(found["lookup"]),
            "- A row needs "
            f"{_flops():,} floating-point operations in products of matrices; the limit is how "
            "often the machine does so many, in products of 1024×1024, one thread a core.",
            "- The experts' products alone are of the network's own shapes, with nothing between "
            "them: no bias, activation, gate, tower or copy.",
            "- Inference is the network's time in all threads; the rest is reading, checking, "
            "encoding, counting, writing and syncing, and waiting.",
            "",
        ]
    )


def _lookup(found: dict[str, Any]) -> list[str]:
    return [
        "- The default network of one member, on the same inputs, takes "
        f"{_ratio(found['rounds'], 'looked_up', 'as_it_is')} of its time in jobs of 100,000 rows "
        "and more, which look its first layer up in a table; that takes "
        f"{found['seconds_to_make']:.1f} s to make. Largest difference of a probability: "
        f"{found['largest_difference']:.1e}. {found['machine']}."
    ]


def _ratio(rounds: list[dict[str, float]], first: str, second: str) -> str:
    return f"{median(line[first] / line[second] for line in rounds):.2f}"


def _machine() -> str:
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{name}, {torch.get_num_threads()} threads, load {load} at the end, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--work", type=Path, default=Path(".benchmark") / "scoring")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
