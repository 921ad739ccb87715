"""
Speed of training the default network on a GPU, and its share of a bare loop.

Run with ``make benchmark-gpu``; without a GPU it runs on the CPU alone, with small batches, and
writes that the GPU was not measured. Results: ``reports/benchmarks/gpu.md``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from torch import nn

from riskmtl import MultiTaskClassifier
from riskmtl.networks import Network, NetworkConfig
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import train
from riskmtl.training.loss import task_losses
from riskmtl.training.rows import TaskPlan, TrainingRows

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks" / "gpu.md"
NUMBERS, CATEGORIES, CODES, TASKS = 30, 10, 50, 3
PLAN = TaskPlan(("a", "b", "c"), (False,) * TASKS, (1.0,) * TASKS, (1.0,) * TASKS)
CARDINALITIES = [0] * NUMBERS + [CODES] * CATEGORIES
EPOCHS = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One way to train."""

    device: str
    batch: int
    members: int
    precision: str
    compile: bool


def main() -> None:
    """Measure every case, print it at once, and write the page."""
    options = _options()
    lines = [
        "| device | batch | members | precision | compiled | rows/s | share of a bare loop |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in _cases(options):
        lines.append(_measure(case, options.rows))
        print(lines[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(_page(lines), encoding="utf-8")


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    if torch.cuda.is_available():
        for members in (1, 16):
            for batch in (4096, 16_384, 65_536):
                for precision in ("32", "bf16"):
                    for is_compiled in (False, True):
                        yield Case("cuda", batch, members, precision, is_compiled)
    for precision in ("32", "bf16"):
        yield Case("cpu", options.cpu_batch, 1, precision, False)


def _measure(case: Case, rows: int) -> str:
    table = _rows(rows if case.device == "cuda" else min(rows, 16 * case.batch))
    package = _package_epoch(case, table)
    bare = _bare_epoch(case, table)
    steps = len(table.x) // case.batch
    cells = [
        case.device,
        f"{case.batch:,}",
        str(case.members),
        case.precision,
        "yes" if case.compile else "no",
        f"{steps * case.batch / package:,.0f}",
        f"{bare / package:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _rows(rows: int) -> TrainingRows:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, NUMBERS + CATEGORIES)).astype(np.float32)
    x[:, NUMBERS:] = rng.integers(0, CODES, size=(rows, CATEGORIES))
    y = (rng.random((rows, TASKS)) < 0.05).astype(np.float32)
    y[rng.random((rows, TASKS)) < 0.2] = np.nan
    return TrainingRows(x, y)


def _shape(case: Case) -> NetworkConfig:
    return MultiTaskClassifier(members=case.members)._shape(rows=0)


class _Epochs(pytorch_lightning.Callback):
    """Seconds of each epoch's batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        _wait()
        self._started = time.perf_counter()

    def on_validation_start(self, *args: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self._started)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _package_epoch(case: Case, table: TrainingRows) -> float:
    watch = _Epochs()
    few = TrainingRows(table.x[:4096], table.y[:4096])
    config = TrainingConfig(
        epochs=EPOCHS,
        patience=EPOCHS,
        batch_size=case.batch,
        learning_rate=4e-3,
        weight_decay=1e-2,
        device=case.device,
        precision=case.precision,
        compile=case.compile,
        callbacks=[watch],
    )
    train(_shape(case), CARDINALITIES, PLAN, config, table, few)
    return min(watch.seconds)


def _bare_epoch(case: Case, table: TrainingRows) -> float:
    """Best seconds of an epoch of the shortest loop that takes the same steps."""
    x, y = (torch.from_numpy(rows).to(case.device) for rows in (table.x, table.y))
    network = Network(CARDINALITIES, TASKS, _shape(case))
    network.embedding.fit(table.x)
    network.to(case.device)
    if case.compile:
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, fused=True)
    epochs = []
    for _ in range(EPOCHS):
        _wait()
        started = time.perf_counter()
        for chosen in torch.randperm(len(x), device=x.device).split(case.batch):
            if len(chosen) < case.batch:
                break
            optimizer.zero_grad()
            with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
                outputs = network(x[chosen], pooled=False)
                labels = y[chosen].repeat(case.members, 1)
                loss = task_losses(outputs.flatten(0, 1), labels).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        _wait()
        epochs.append(time.perf_counter() - started)
    return min(epochs)


def _page(lines: list[str]) -> str:
    has_gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if has_gpu else None
    measured = (
        f"Card: {card}."
        if has_gpu
        else "**Not measured**: no GPU was at hand. The rows below are of a CPU alone."
    )
    return "\n".join(
        [
            "# Training on a GPU",
            "",
            measured,
            "",
            f"The default network on {NUMBERS} numeric and {CATEGORIES} categorical columns and",
            f"{TASKS} heads; batches only, without validation, best of {EPOCHS} epochs; torch",
            f"{torch.__version__.split('+')[0]}, Python {platform.python_version()}. A bare loop",
            "takes the same steps with nothing around them; above 1 is noise.",
            "",
            *lines,
            "",
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_048_576, help="rows on the GPU")
    parser.add_argument("--cpu-batch", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=REPORT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
