"""Training a network to the epoch that validates best."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from riskmtl.device import resolve_device
from riskmtl.files import replacing
from riskmtl.networks import IndependentNetworks, Network, NetworkConfig, groups_of
from riskmtl.training.batches import TensorBatches
from riskmtl.training.callbacks import BestWeights, FitProgress, KeptHistory, Patience
from riskmtl.training.config import TrainingConfig
from riskmtl.training.diagnosis import draw_probe
from riskmtl.training.freezing import Frozen, FrozenSlices
from riskmtl.training.loss import observed_labels
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.penalties import Penalties, penalty_factors
from riskmtl.training.processes import SameRun, require_whole_networks
from riskmtl.training.rows import TaskPlan, TrainingRows
from riskmtl.training.sampling import make_sampling
from riskmtl.training.selection import as_learned, require_together
from riskmtl.training.targets import base_rates, smoothed

_VALIDATION_BATCH = 2048


class ResumeError(ValueError):
    """A checkpoint folder that belongs to another run; the message names the folder."""


@dataclass(frozen=True, slots=True)
class Trained:
    """
    A trained network, in evaluation mode on the CPU.

    Parameters
    ----------
    network : Module
    history : list of dict
        Per epoch and task what :class:`MultiTaskModule` tells, and whether the epoch was ``kept``.
    best_epochs : tuple of int
        The epoch whose weights each task has, from 0; the same for those of one network. -1: those
        that training started from, which no epoch bettered.
    seconds : float
        Wall time.
    """

    network: Network | IndependentNetworks
    history: list[dict[str, Any]]
    best_epochs: tuple[int, ...]
    seconds: float

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights these are; of several networks the latest."""
        return max(self.best_epochs)


def train(
    shape: NetworkConfig,
    cardinalities: Sequence[int],
    plan: TaskPlan,
    config: TrainingConfig,
    rows: TrainingRows,
    validation: TrainingRows,
    *,
    start: Network | IndependentNetworks | None = None,
    frozen: Frozen | None = None,
) -> Trained:
    """
    Train a network, or one network per task or group of tasks.

    ``shape.network == "single_task"`` asks for one per task, ``shape.groups`` for one per group.
    Each of several is trained by itself, with its own batches, clipping and best epoch: sharing
    those would already be sharing.

    Parameters
    ----------
    shape : NetworkConfig
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    plan : TaskPlan
    config : TrainingConfig
    rows, validation : TrainingRows
    start : Network or IndependentNetworks, optional
        Trained already: training goes on from a copy of it, embedding and all. Its weights count
        as those of an epoch before the first. Of several, one without an observed label stays.
    frozen : mapping of str to Tensor of bool, or True, optional
        Slices of a network's parameters that stay as they are; see
        :class:`riskmtl.training.freezing.FrozenSlices`. Not for independent networks.

    Returns
    -------
    Trained
    """
    groups = groups_of(shape, len(plan.names))
    require_together(plan, groups)
    if len(groups) == 1 and shape.network != "single_task":
        assert not isinstance(start, IndependentNetworks)
        return _train_one(
            shape, cardinalities, plan, config, rows, validation, start=start, frozen=frozen
        )
    starts: list[Any] = [None] * len(groups)
    if isinstance(start, IndependentNetworks):
        starts = list(start.networks)
    parts = []
    for position, group in enumerate(groups):
        own_plan, own_rows, begun = plan.only(group), rows.only(group), starts[position]
        if begun is not None and not len(own_rows.x):
            # Its heads only lend: there is nothing that it could learn from.
            parts.append(Trained(begun.eval(), [], (-1,) * len(group), 0.0))
            continue
        folder = config.checkpoint_dir
        name = "+".join(own_plan.names)
        own = replace(config, checkpoint_dir=None if folder is None else Path(folder) / name)
        parts.append(
            _train_one(
                shape.part(position),
                cardinalities,
                own_plan,
                own,
                own_rows,
                validation.only(group),
                start=begun,
            )
        )
    network = IndependentNetworks([part.network for part in parts], groups).eval()
    epochs = [epoch for part in parts for epoch in part.best_epochs]
    return Trained(
        network=network,
        history=[row for part in parts for row in part.history],
        best_epochs=tuple(epochs[place] for place in network.places),
        seconds=sum(part.seconds for part in parts),
    )


def _train_one(
    shape: NetworkConfig,
    cardinalities: Sequence[int],
    plan: TaskPlan,
    config: TrainingConfig,
    rows: TrainingRows,
    validation: TrainingRows,
    *,
    start: Network | None = None,
    frozen: Frozen | None = None,
) -> Trained:
    started = time.perf_counter()
    if not len(validation.x):
        # Nobody observes this task in the validation rows: better its own rows than none.
        validation = rows
    run = cache(lambda: _run(shape, plan, config, rows, validation, start, frozen or {}))
    best = BestWeights()
    with torch.random.fork_rng(), _quiet_lightning():
        network = _beginning(shape, cardinalities, plan, config, rows, start)
        trained = copy.deepcopy(network)
        held = [FrozenSlices(network, frozen)] if frozen else []
        trainer = _trainer(
            config,
            [best, *held, SameRun(lambda: f"{run()} {checkpoint is not None}")],
            max(1, len(rows.x) // config.batch_size),
            ", ".join(plan.names),
        )
        require_whole_networks(trainer)
        checkpoint = _checkpoint(config, run)
        device = trainer.strategy.root_device
        factors = penalty_factors(
            network, shape.network, config.penalties, torch.from_numpy(rows.x[:2])
        )
        learned = as_learned(rows, plan.selected_by, config.selection)
        probe = draw_probe(learned, plan.regression, seed=config.seed)
        module = MultiTaskModule(
            network,
            plan,
            config,
            penalties=Penalties(factors, plan.event_factors),
            probe=_tensors(probe, device),
        )
        sampling = make_sampling(learned, plan, config, lambda: module.history)
        if config.label_smoothing:
            learned = smoothed(learned, plan.regression, config.label_smoothing)
        batches = TensorBatches(
            *_tensors(sampling.corrected(learned), device),
            size=config.batch_size,
            seed=config.seed,
            epoch=lambda: trainer.current_epoch,
            process=trainer.global_rank,
            processes=trainer.world_size,
            sampling=sampling,
        )
        if config.compile:
            network.compile()
        held_out = TensorBatches(*_tensors(validation, device), size=_VALIDATION_BATCH)
        if start is not None:
            trainer.validate(module, held_out, verbose=False)
            module.history.clear()
            best.epoch = -1
        trainer.fit(module, batches, held_out, ckpt_path=checkpoint)
        if not best.weights:
            raise ValueError(
                "trainer_options: training ended before any epoch was validated, and there is no "
                "network to keep: allow a whole epoch and its validation"
            )
        trained.load_state_dict(best.weights)
    seconds = time.perf_counter() - started
    history = [{**row, "kept": row["epoch"] == best.epoch} for row in module.history]
    return Trained(trained.eval(), history, (best.epoch,) * len(plan.names), seconds)


def _beginning(
    shape: NetworkConfig,
    cardinalities: Sequence[int],
    plan: TaskPlan,
    config: TrainingConfig,
    rows: TrainingRows,
    start: Network | None,
) -> Network:
    """The network that training begins with."""
    if start is not None:
        network = copy.deepcopy(start).cpu().train()
        network.embedding.learn_missing(rows.x)
        return network
    torch.manual_seed(config.seed)
    network = Network(cardinalities, len(plan.names), shape, regression=plan.regression)
    network.embedding.fit(rows.x)
    network.towers.start_at(base_outputs(rows, plan))
    return network


def _trainer(
    config: TrainingConfig, needed: Sequence[pl.Callback], steps: int, description: str
) -> pl.Trainer:
    device = resolve_device(config.device)
    callbacks = [
        *needed,
        Patience(config.patience),
    ]
    if config.progress:
        callbacks.append(FitProgress(description))
    if config.checkpoint_dir is not None:
        callbacks += [
            KeptHistory(),
            ModelCheckpoint(
                config.checkpoint_dir,
                filename="last",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
    options: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": 1,
        "max_epochs": int(config.epochs),  # Lightning takes none of numpy
        "precision": resolve_precision(config.precision, device),
        "gradient_clip_val": config.clip,
        "logger": config.logger if config.logger is not None else False,
        "log_every_n_steps": min(50, steps),
        "enable_checkpointing": config.checkpoint_dir is not None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **config.trainer_options,
    }
    given = options.pop("callbacks", None) or []
    callbacks += [*config.callbacks, *([given] if isinstance(given, pl.Callback) else given)]
    return pl.Trainer(callbacks=callbacks, **options)


def base_outputs(rows: TrainingRows, plan: TaskPlan) -> torch.Tensor:
    """
    What each head says before it knows anything: its base rate as log-odds.

    Parameters
    ----------
    rows : TrainingRows
        The rate is that of their weights.
    plan : TaskPlan
        With factors on events, which the log-odds hold too.

    Returns
    -------
    Tensor of shape (tasks,)
    """
    weights = None if rows.weights is None else torch.from_numpy(rows.weights)
    is_seen = observed_labels(torch.from_numpy(rows.y), weights).any(0).numpy()
    rates = np.clip(base_rates(rows), 1e-6, 1 - 1e-6)
    outputs = np.log(rates / (1 - rates) * np.array(plan.event_factors))
    known = np.where(is_seen & ~np.array(plan.regression), outputs, 0)
    return torch.from_numpy(known.astype(np.float32))


def _tensors(
    rows: TrainingRows, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    weights = None if rows.weights is None else torch.from_numpy(rows.weights).to(device)
    return torch.from_numpy(rows.x).to(device), torch.from_numpy(rows.y).to(device), weights


def resolve_precision(name: str, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """
    Turn the name of a precision into Lightning's.

    Parameters
    ----------
    name : {"auto", "32", "bf16"}
        ``"auto"``: bfloat16 where the device multiplies it natively.
    device : torch.device

    Returns
    -------
    str
    """
    if name == "auto":
        name = "bf16" if _multiplies_bf16(device) else "32"
    return "bf16-mixed" if name == "bf16" else "32-true"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older versions of torch cannot say what the processor does.
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def _checkpoint(config: TrainingConfig, run: Callable[[], str]) -> Path | None:
    """
    Path of the checkpoint to go on from, if there is one.

    The folder notes settings and data of the run it belongs to: going on with others would give a
    model that no single training could have made.
    """
    if config.checkpoint_dir is None:
        return None
    folder = Path(config.checkpoint_dir)
    note = folder / "run.json"
    if not note.exists():
        # Whole or not at all: other processes of this run may be reading it.
        with replacing(note) as scratch:
            scratch.write_text(run(), encoding="utf-8")
    if note.read_text(encoding="utf-8") != run():
        raise ResumeError(
            f"{folder}: holds the checkpoint of a run with other settings or data; choose another "
            "checkpoint_dir, or empty this one"
        )
    last = folder / "last.ckpt"
    return last if last.exists() else None


def _run(
    shape: NetworkConfig,
    plan: TaskPlan,
    config: TrainingConfig,
    rows: TrainingRows,
    validation: TrainingRows,
    start: Network | None,
    frozen: Frozen,
) -> str:
    """What a training is made of, as a text."""
    settings = {
        "shape": asdict(shape),
        "plan": asdict(plan),
        "training": config.essence(),
        "data": [_fingerprint(rows), _fingerprint(validation)],
    }
    if start is not None:
        weights = {name: value.cpu() for name, value in start.state_dict().items()}
        held = {name: torch.as_tensor(value).cpu() for name, value in frozen.items()}
        settings["start"] = [_digest(weights), _digest(held)]
    # Users give numbers of numpy too.
    return json.dumps(settings, sort_keys=True, default=lambda number: number.item())


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].numpy()).data)
    return digest.hexdigest()


def _fingerprint(rows: TrainingRows) -> str:
    digest = hashlib.sha256()
    for array in (rows.x, rows.y, rows.weights):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's announcements of devices and folders out of a notebook."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Rows sit on the device already: there is nothing for data loader workers to do.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 asks torch 2.13 in a way that is going out of use.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
