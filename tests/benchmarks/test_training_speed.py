"""
Speed of training, as ratios measured within one run.

Machines differ and are shared, so no figure stands alone: both sides of a ratio take turns, and
the best turn of each counts. ``RISKMTL_WRITE_REPORTS=1`` writes the figures to ``reports/``;
``RISKMTL_BENCHMARK_THREADS`` sets the number of threads of all sides.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peers
import polars as pl
import pytest
import pytorch_lightning
import torch
from peers import BATCH, EPOCHS, EXPERT_UNITS, EXPERTS, INPUTS, ROWS, TASKS, TOWER_UNITS
from torch import Tensor, nn

from riskmtl import MultiTaskClassifier
from riskmtl.networks import Network, NetworkConfig
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import train
from riskmtl.training.loss import task_losses
from riskmtl.training.rows import TaskPlan, TrainingRows

pytestmark = pytest.mark.benchmark

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "benchmarks" / "training_speed"
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
TURNS = 3
SHORT_TURNS = 12  # of comparisons that take a second each
STEPS = 60
EPOCH_ROWS = 64 * 1024

SHAPE = NetworkConfig(
    network="mmoe",
    numeric_embedding="standardize",
    experts=EXPERTS,
    expert_units=EXPERT_UNITS,
    tower_units=TOWER_UNITS,
    dropout=0.0,
)
TASK_NAMES = [f"y{i}" for i in range(TASKS)]

Figure = dict[str, Any]


@pytest.fixture(scope="module")
def data() -> peers.Data:
    return peers.simulated()


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(peers.THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def figures() -> Iterator[list[Figure]]:
    """Ratios of this run; printed as they come, and written at its end if asked for."""
    rows: list[Figure] = []
    yield rows
    if os.environ.get("RISKMTL_WRITE_REPORTS") == "1":
        _write(rows)


def _best(turns: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Fewest seconds of each side, with the sides taking turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(turns):
        for name, seconds in sides.items():
            best[name] = min(best[name], seconds())
    return best


def _state(
    figures: list[Figure], what: str, seconds: Mapping[str, float], rows: int, floor: float | None
) -> float:
    """Note and print how many times as fast the first side is as the second."""
    (ours, own_seconds), (other, other_seconds) = seconds.items()
    figure = {
        "what": what,
        "ratio": other_seconds / own_seconds,
        "floor": floor,
        "rows_per_second": {ours: rows / own_seconds, other: rows / other_seconds},
    }
    figures.append(figure)
    print("\n" + _line(figure))
    return other_seconds / own_seconds


# ---- the package against a bare loop -------------------------------------------------------------


class Stopwatch(pytorch_lightning.Callback):
    """Seconds of training, and of its epochs' batches without the validation after them."""

    def __init__(self) -> None:
        self.training = 0.0
        self.epochs: list[float] = []

    def on_train_start(self, *args: Any) -> None:
        self._training_started = time.perf_counter()

    def on_train_epoch_start(self, *args: Any) -> None:
        self._epoch_started = time.perf_counter()

    def on_validation_start(self, *args: Any) -> None:
        self.epochs.append(time.perf_counter() - self._epoch_started)

    def on_train_end(self, *args: Any) -> None:
        self.training = time.perf_counter() - self._training_started


def _package_epoch(data: peers.Data, batch: int) -> float:
    """Best seconds of an epoch's batches under the package's own training."""
    watch = Stopwatch()
    train(
        SHAPE,
        [0] * INPUTS,
        TaskPlan(tuple(TASK_NAMES), (False,) * TASKS, (1.0,) * TASKS, (1.0,) * TASKS),
        TrainingConfig(
            epochs=3,
            patience=3,
            batch_size=batch,
            learning_rate=4e-3,
            weight_decay=1e-2,
            device="cpu",
            callbacks=[watch],
        ),
        TrainingRows(data.x[:EPOCH_ROWS], data.y[:EPOCH_ROWS]),
        TrainingRows(data.x_val, data.y_val),
    )
    return min(watch.epochs)


def _bare_epoch(data: peers.Data, batch: int) -> float:
    """Best seconds of an epoch of the shortest loop that takes the same steps."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(rows[:EPOCH_ROWS]) for rows in (data.x, data.y))
    network = Network([0] * INPUTS, TASKS, SHAPE)
    network.embedding.fit(data.x)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, fused=True)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=3 * steps)
    epochs = []
    for _ in range(3):
        started = time.perf_counter()
        order = torch.randperm(len(x))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            optimizer.zero_grad()
            task_losses(network(x[chosen]), y[chosen]).sum().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        epochs.append(time.perf_counter() - started)
    return min(epochs)


@pytest.mark.parametrize("batch", [1024, 4096])
def test_training_costs_little_more_than_a_bare_loop(
    data: peers.Data, figures: list[Figure], batch: int
) -> None:
    seconds = _best(
        SHORT_TURNS,
        {
            "package": lambda: _package_epoch(data, batch),
            "bare loop": lambda: _bare_epoch(data, batch),
        },
    )
    what = f"training against a bare loop, batch {batch}"
    ratio = _state(figures, what, seconds, EPOCH_ROWS, 0.85)
    assert ratio >= 0.85


# ---- the batched network against a loop over layers ----------------------------------------------


def _layers(widths: list[int]) -> nn.Sequential:
    """Linear and ReLU per width."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers)


class LoopMMoE(nn.Module):
    """The same MMoE with a module for each expert, gate and tower, called one after another."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.experts = nn.ModuleList(_layers([INPUTS, *EXPERT_UNITS]) for _ in range(EXPERTS))
        self.gates = nn.ModuleList(nn.Linear(INPUTS, EXPERTS, bias=False) for _ in range(TASKS))
        self.towers = nn.ModuleList(
            nn.Sequential(*_layers([EXPERT_UNITS[-1], *TOWER_UNITS]), nn.Linear(TOWER_UNITS[-1], 1))
            for _ in range(TASKS)
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.embedding(x)
        experts = torch.stack([expert(z) for expert in self.experts], dim=1)
        outputs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(z).softmax(-1)
            outputs.append(tower((weights.unsqueeze(-1) * experts).sum(1)))
        return torch.cat(outputs, dim=1)


def _copy_weights(network: Network, loop: LoopMMoE) -> None:
    """Give the loop's layers the weights of the batched network."""
    groups = [
        (network.trunk.experts.layers, loop.experts),
        ([network.trunk.gates.linear], [nn.Sequential(gate) for gate in loop.gates]),
        ([*network.towers.hidden.layers, network.towers.out], loop.towers),
    ]
    with torch.no_grad():
        for batched, modules in groups:
            for group, module in enumerate(modules):
                linears = [layer for layer in module if isinstance(layer, nn.Linear)]
                for source, target in zip(batched, linears, strict=True):
                    target.weight.copy_(source.weight[group].T)
                    if target.bias is not None:
                        target.bias.copy_(source.bias[group, 0])


def _steps(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of some training steps on one batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    started = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        task_losses(network(x), y).sum().backward()
        optimizer.step()
    return time.perf_counter() - started


@pytest.mark.parametrize("batch", [128, 1024])
def test_batched_experts_beat_a_loop_over_experts(
    data: peers.Data, figures: list[Figure], batch: int
) -> None:
    torch.manual_seed(0)
    batched = Network([0] * INPUTS, TASKS, SHAPE)
    batched.embedding.fit(data.x)
    loop = LoopMMoE(batched.embedding)
    _copy_weights(batched, loop)
    x, y = torch.from_numpy(data.x[:batch]), torch.from_numpy(data.y[:batch])
    torch.testing.assert_close(batched(x), loop(x))

    seconds = _best(
        SHORT_TURNS,
        {"batched": lambda: _steps(batched, x, y), "loop": lambda: _steps(loop, x, y)},
    )
    what = f"batched MMoE against a loop over layers, batch {batch}"
    ratio = _state(figures, what, seconds, STEPS * batch, 1.3)
    if batch == 1024 and ratio < 1.3:
        pytest.xfail("both sides spend most of the step in the same matrix products")
    assert ratio >= 1.3


# ---- the package against its peers ---------------------------------------------------------------


def _package_fit(data: peers.Data, watch: Stopwatch) -> float:
    """Seconds of a whole fit, from the table on."""
    columns = [f"x{i}" for i in range(INPUTS)]
    X, X_val = (pl.DataFrame(x, schema=columns) for x in (data.x, data.x_val))
    y, y_val = (pl.DataFrame(y, schema=TASK_NAMES) for y in (data.y, data.y_val))
    classifier = MultiTaskClassifier(
        network="mmoe",
        numeric_embedding="standardize",
        experts=EXPERTS,
        expert_units=EXPERT_UNITS,
        tower_units=TOWER_UNITS,
        batch_size=BATCH,
        dropout=0,
        epochs=EPOCHS,
        calibrate=False,
        device="cpu",
        callbacks=[watch],
        random_state=0,
    )
    started = time.perf_counter()
    classifier.fit(X, y, X_val=X_val, y_val=y_val)
    return time.perf_counter() - started


def _peer_fit(peer: str) -> float:
    """Seconds of a peer's training, by an interpreter that has it."""
    done = subprocess.run(
        [PEERS_PYTHON, Path(__file__).with_name("peers.py"), peer],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


@pytest.mark.parametrize(
    ("peer", "floor"),
    [("torch-rechub", 3.0), ("torch-rechub (one vector)", None), ("deepctr-torch", 1.4)],
)
def test_fit_is_faster_than_peers(
    data: peers.Data, figures: list[Figure], peer: str, floor: float | None
) -> None:
    if not PEERS_PYTHON.exists():
        pytest.skip(".venv-peers is absent: make it with `make peers`")
    loops: list[float] = []

    def package() -> float:
        watch = Stopwatch()
        seconds = _package_fit(data, watch)
        loops.append(watch.training)
        return seconds

    seconds = _best(TURNS, {"package": package, peer: lambda: _peer_fit(peer)})
    rows = ROWS * EPOCHS
    ratio = _state(figures, f"whole fit against {peer}", seconds, rows, floor)
    loop = {"package": min(loops), peer: seconds[peer]}
    _state(figures, f"training loop against {peer}'s fit", loop, rows, None)
    assert floor is None or ratio >= floor


# ---- report --------------------------------------------------------------------------------------


def _line(figure: Figure) -> str:
    floor = "" if figure["floor"] is None else f" (at least {figure['floor']:g})"
    speeds = ", ".join(
        f"{name} {speed:,.0f} rows/s" for name, speed in figure["rows_per_second"].items()
    )
    return f"{figure['what']}: {figure['ratio']:.2f}{floor}; {speeds}"


def _write(figures: list[Figure]) -> None:
    machine = {
        "cpus": os.cpu_count(),
        "threads": peers.THREADS,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "turns": TURNS, "figures": figures}
    REPORT.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(_row(figure) for figure in figures)
    text = _REPORT.format(rows=rows, turns=TURNS, short_turns=SHORT_TURNS, **machine, **_SIZES)
    REPORT.with_suffix(".md").write_text(text, encoding="utf-8")


def _row(figure: Figure) -> str:
    floor = "–" if figure["floor"] is None else f"{figure['floor']:g}"
    (_, ours), (_, other) = figure["rows_per_second"].items()
    return f"| {figure['what']} | {figure['ratio']:.2f} | {floor} | {ours:,.0f} | {other:,.0f} |"


_SIZES = {"rows_trained": ROWS, "inputs": INPUTS, "tasks": TASKS, "experts": EXPERTS}

_REPORT = """\
# Training speed

`make benchmark-speed` with `RISKMTL_WRITE_REPORTS=1` writes this file. A ratio says how many times
as fast the first side is as the second, both measured in one run, in turns, best of {turns}
(against loops: of {short_turns}).

MMoE with {experts} experts, {rows_trained:,} rows, {inputs} numeric inputs, {tasks} binary tasks,
float32, on {cpus} CPUs with threads={threads} (load average {load}), Python {python},
torch {torch}.

| What | Ratio | Floor | Rows/s | Rows/s, other |
|---|---|---|---|---|
{rows}

- A bare loop draws a permutation and takes the same steps on the same tensors and network.
- A whole fit starts from a table and includes encoding and the validation after every epoch; the
  training loop leaves out encoding. A peer's time starts from arrays, its model still to build,
  and includes its validation after every epoch too.
- torch-rechub puts batch normalisation into every layer, which cannot be turned off. With
  "one vector" its inputs are one feature of all columns instead of the documented one per column.
"""
