"""
What each of two processes does for test_distributed.py.

``torchrun`` starts it twice; as a plain script it is started once, and Lightning starts it again
for the second process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytorch_lightning as lightning
import torch
from torch import Tensor

from riskmtl import MultiTaskClassifier
from riskmtl.networks import NetworkConfig
from riskmtl.training.batches import TensorBatches
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import Trained, train
from riskmtl.training.rows import TaskPlan, TrainingRows

TOGETHER: dict[str, Any] = {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}

# ---- Gradients -----------------------------------------------------------------------------------

SHAPE = NetworkConfig(
    network="ple",
    levels=2,
    embedding_dim=4,
    bins=8,
    steps=4,
    expert_units=(16, 8),
    shared_units=(16,),
    tower_units=(8,),
    dropout=0.0,
)
PLAN = TaskPlan(
    ("default", "fraud", "takeover", "loss"),
    (False, False, False, True),
    (1.0, 0.5, 1.0, 0.25),
    (2.5, 1.0, 1.0, 1.0),
)
CONFIG = TrainingConfig(
    epochs=1,
    patience=1,
    # Odd, so that the shares differ in their rows too.
    batch_size=65,
    learning_rate=5e-3,
    weight_decay=1e-2,
    clip=0.05,
    device="cpu",
)
ROWS = 131  # two batches, and a row that no batch has
GRADIENT_CASES = {
    f"{network} of {members}, {batches} batches to a step, {balancing} {options}": (
        *(network, members, batches, balancing, options),
    )
    for network, members, batches, balancing, options in (
        ("ple", 3, 1, "sum", {}),
        ("ple", 1, 2, "sum", {}),
        ("mmoe", 2, 1, "sum", {}),
        ("shared_bottom", 3, 2, "sum", {}),
        ("mmoe", 2, 1, "uncertainty", {}),
        ("mmoe", 2, 1, "geometric_mean", {}),
        ("ple", 2, 1, "pcgrad", {}),
        ("mmoe", 1, 2, "upgrad", {"every": 2}),
        ("shared_bottom", 2, 1, "mgda", {"at": "representation"}),
    )
}
NAIVE = "ple of 3, each process with its own mean"


def unequal_rows() -> TrainingRows:
    """
    Rows of whose labels the two processes see very unequal shares in every batch.

    Of ``default`` the first sees nearly all and the second few, of ``fraud`` only the second any,
    of ``takeover`` nobody, and of ``loss`` each a few.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    x[rng.random(ROWS) < 0.2, 1] = np.nan
    x[:, 3] = rng.integers(0, 4, ROWS)
    y = (rng.random((ROWS, 4)) < 0.4).astype(np.float32)
    y[:, 3] = x[:, 0]
    first = share_of(0)
    observed = np.where(first[:, None], [0.95, 0.0, 0.0, 0.1], [0.1, 0.7, 0.0, 0.3])
    y[rng.random((ROWS, 4)) >= observed] = np.nan
    return TrainingRows(x, y, rng.uniform(0.2, 3.0, ROWS).astype(np.float32))


def share_of(process: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows a process trains on in the first epoch."""
    number = torch.arange(float(ROWS))[:, None]
    batches = TensorBatches(
        number, number, size=CONFIG.batch_size, seed=CONFIG.seed, process=process, processes=2
    )
    chosen = torch.cat([x.flatten() for x, _, _ in batches]).long().numpy()
    return np.isin(np.arange(ROWS), chosen)


class Gradients(lightning.Callback):
    """Keep the gradients of the first step, before and after they are clipped."""

    def __init__(self) -> None:
        self.whole: dict[str, Tensor] = {}
        self.clipped: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.whole = gradients_of(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.clipped = gradients_of(pl_module)


class OwnMeans(lightning.Callback):
    """What distributed training does of itself: each process divides by its own labels."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module._over_processes = None


def gradients_of(module: lightning.LightningModule) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def first_step(
    network: str,
    members: int,
    batches: int,
    balancing: str,
    balancing_options: dict[str, Any],
    *callbacks: lightning.Callback,
    **options: Any,
) -> dict[str, Any]:
    """Gradients of the first step, in float64, and the loss that the history tells."""
    rows, gradients = unequal_rows(), Gradients()
    config = replace(
        CONFIG,
        balancing=balancing,
        balancing_options=balancing_options,
        callbacks=[gradients, *callbacks],
        trainer_options={
            "precision": "64-true",
            "limit_train_batches": batches,
            "accumulate_grad_batches": batches,
            **options,
        },
    )
    shape = replace(SHAPE, network=network, members=members)
    trained = train(shape, [0, 0, 0, 4], PLAN, config, rows, rows)
    return {
        "whole": gradients.whole,
        "clipped": gradients.clipped,
        "losses": [row["train_loss"] for row in trained.history],
    }


def all_gradients() -> dict[str, Any]:
    found = {name: first_step(*case, **TOGETHER) for name, case in GRADIENT_CASES.items()}
    found[NAIVE] = first_step("ple", 3, 1, "sum", {}, OwnMeans(), **TOGETHER)
    return found


# ---- Stopping, going on, disagreeing -------------------------------------------------------------


class Killed(Exception):
    """Stands for processes that were killed."""


class KillAfter(lightning.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (1, 1):
            raise Killed


def longer(**changes: Any) -> Trained:
    """A training of some epochs, with dropout."""
    rows = unequal_rows()
    config = replace(CONFIG, epochs=3, patience=3, trainer_options=TOGETHER, **changes)
    shape = replace(SHAPE, dropout=0.3, feature_dropout=0.1)
    return train(shape, [0, 0, 0, 4], PLAN, config, rows, rows)


def told(trained: Trained) -> dict[str, Any]:
    return {
        "weights": trained.network.state_dict(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
    }


def stopped_and_resumed(out: Path) -> dict[str, Any]:
    found = {"whole": told(longer())}
    try:
        longer(checkpoint_dir=out / "cut", callbacks=[KillAfter()])
    except Killed:
        found["resumed"] = told(longer(checkpoint_dir=out / "cut"))
    found["row by row"] = told(longer(batch_size=1))
    try:
        longer(seed=int(os.environ["LOCAL_RANK"]))
    except ValueError as error:
        found["refused"] = str(error)
    return found


# ---- The public face -----------------------------------------------------------------------------


def fitted(case: str, **changes: Any) -> dict[str, Any]:
    """What a small classifier says after a fit to a table."""
    rng = np.random.default_rng(1)
    amount, country = rng.normal(size=500), rng.choice(["FR", "DE"], 500)
    chance = 1 / (1 + np.exp(1 - 2 * amount - (country == "FR")))
    labels = {name: (rng.random(500) < chance).astype(int) for name in ("default", "fraud")}
    hidden = pl.Series(rng.random(500) < 0.5)
    table = pl.DataFrame({"amount": amount, "country": country})
    model = MultiTaskClassifier(
        **FITTED[case],
        members=2,
        embedding_dim=4,
        bins=8,
        expert_units=(16, 8),
        shared_units=(16,),
        tower_units=(8,),
        dropout=0.0,
        batch_size=64,
        learning_rate=0.03,
        epochs=5,
        precision="32",
        device="cpu",
        random_state=0,
        **changes,
    ).fit(
        table,
        pl.DataFrame(labels).with_columns(fraud=pl.when(hidden).then(None).otherwise("fraud")),
    )
    return {
        "weights": model.model_.scorer.network.state_dict(),
        "history": model.history_.to_dicts(),
        "best_epoch": model.best_epoch_,
        "chances": model.predict_proba(table),
    }


FITTED: dict[str, dict[str, Any]] = {
    "ple": {"network": "ple"},
    "single_task": {"network": "single_task"},
    "one task per step": {
        "network": "ple",
        "schedule": "by_uncertainty",
        "freeze_shared_after": 3,
        "warm_up": {"fraud": 1.5},
    },
    "losses at the same rate": {"network": "mmoe", "balancing": "famo"},
    "gradients without conflict": {
        "network": "mmoe",
        "balancing": "gradvac",
        "penalties": {"gate_entropy": 0.01},
    },
    "events often": {
        "network": "mmoe",
        "balanced_events": {"fraud": 3},
        "label_smoothing": 0.05,
        "penalties": {"gate_entropy": 0.01},
    },
}


def main() -> None:
    out = Path(sys.argv[2])
    if sys.argv[1] == "torchrun":
        found = {**all_gradients(), **stopped_and_resumed(out)}
    else:
        found = {
            case: fitted(case, trainer_options=TOGETHER, checkpoint_dir=str(out / case))
            for case in FITTED
        }
    torch.save(found, out / f"{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    # If they wait for each other in vain, both end and say where.
    faulthandler.dump_traceback_later(180, exit=True)
    warnings.simplefilter("error")
    # The gradient of a share of one row, or of none, has strides of its own: slower, not wrong.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    main()
