"""
Training speed of MMoE in torch-rechub and DeepCTR-Torch, each through its own way of training.

Run by the interpreter that ``make peers`` sets up, for instance
``.venv-peers/bin/python tests/benchmarks/peers.py deepctr-torch``; prints seconds as JSON.
The data are made here too, so that the package and its peers see the same.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, VALIDATION_ROWS, INPUTS, TASKS = 100_000, 2_000, 50, 3
EXPERTS, EXPERT_UNITS, TOWER_UNITS = 8, (128, 64), (32,)
BATCH, EPOCHS = 1024, 2
# Two threads on two busy cores mostly wait for each other: a shared machine is better asked for 1.
THREADS = int(os.environ.get("RISKMTL_BENCHMARK_THREADS", "2"))


@dataclass(frozen=True)
class Data:
    """Rows for training and validation: inputs ``(rows, inputs)`` and labels ``(rows, tasks)``."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    x_val: NDArray[np.float32]
    y_val: NDArray[np.float32]


def simulated(seed: int = 0) -> Data:
    """Draw binary labels that depend on the inputs through a logistic model."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS + VALIDATION_ROWS, INPUTS), dtype=np.float32)
    margins = x @ rng.normal(0, 0.2, size=(INPUTS, TASKS)) - 1
    y = (rng.random(margins.shape) < 1 / (1 + np.exp(-margins))).astype(np.float32)
    return Data(x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:])


def torch_rechub(data: Data) -> None:
    """Train as torch-rechub's documentation shows: a named feature per column."""
    from torch_rechub.basic.features import DenseFeature

    names = [f"x{i}" for i in range(INPUTS)]
    _fit_torch_rechub(
        [DenseFeature(name) for name in names],
        dict(zip(names, data.x.T, strict=True)),
        dict(zip(names, data.x_val.T, strict=True)),
        data,
    )


def torch_rechub_vector(data: Data) -> None:
    """Train with all columns as one feature: the least work that its data loader can have."""
    from torch_rechub.basic.features import DenseFeature

    features = [DenseFeature("x", embed_dim=INPUTS)]
    _fit_torch_rechub(features, {"x": data.x}, {"x": data.x_val}, data)


def _fit_torch_rechub(features: list[Any], x: Any, x_val: Any, data: Data) -> None:
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    kinds = ["classification"] * TASKS
    model = MMOE(
        features,
        kinds,
        n_expert=EXPERTS,
        expert_params={"dims": list(EXPERT_UNITS)},
        tower_params_list=[{"dims": list(TOWER_UNITS)}] * TASKS,
    )
    train, validation, _ = DataGenerator(x, data.y).generate_dataloader(
        x_val=x_val, y_val=data.y_val, x_test=x_val, y_test=data.y_val, batch_size=BATCH
    )
    with TemporaryDirectory() as folder:
        MTLTrainer(model, kinds, n_epoch=EPOCHS, model_path=folder).fit(train, validation)


def deepctr_torch(data: Data) -> None:
    """Train as DeepCTR-Torch's documentation shows, but silent: its bar costs a metric a batch."""
    from deepctr_torch.inputs import DenseFeat
    from deepctr_torch.models import MMOE

    names = [f"x{i}" for i in range(INPUTS)]
    model = MMOE(
        [DenseFeat(name) for name in names],
        num_experts=EXPERTS,
        expert_dnn_hidden_units=EXPERT_UNITS,
        gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=TOWER_UNITS,
        task_types=["binary"] * TASKS,
        task_names=[f"y{i}" for i in range(TASKS)],
    )
    model.compile("adam", loss=["binary_crossentropy"] * TASKS, metrics=["auc"])
    model.fit(
        dict(zip(names, data.x.T, strict=True)),
        data.y,
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        validation_data=(dict(zip(names, data.x_val.T, strict=True)), data.y_val),
    )


PEERS: dict[str, Callable[[Data], None]] = {
    "torch-rechub": torch_rechub,
    "torch-rechub (one vector)": torch_rechub_vector,
    "deepctr-torch": deepctr_torch,
}


def _import_peers() -> None:
    """Import all that training imports, so that the clock does not count it."""
    # DeepCTR-Torch looks on the network for a newer version when it is imported, with a library
    # that it does not declare; an empty module makes it give up.
    sys.modules["requests"] = types.ModuleType("requests")
    for name in ("deepctr_torch.models", "torch_rechub.models.multi_task", "torch_rechub.trainers"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


def main() -> None:
    """Train one peer and print the seconds it took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("peer", choices=PEERS)
    peer = PEERS[parser.parse_args().peer]
    with contextlib.redirect_stdout(sys.stderr):
        _import_peers()
        data = simulated()
        # The first step imports what torch leaves for later; the package's best turn has it too.
        peer(Data(data.x[:BATCH], data.y[:BATCH], data.x_val, data.y_val))
        started = time.perf_counter()
        peer(data)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "rows_per_second": ROWS * EPOCHS / seconds}))


if __name__ == "__main__":
    main()
