"""The Lightning module: what one step, one epoch and one validation do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riskmtl.metrics import METRICS
from riskmtl.networks import Network, Trace
from riskmtl.training.balancing import make_balancing
from riskmtl.training.batches import Batch, epoch_seed
from riskmtl.training.config import TrainingConfig
from riskmtl.training.diagnosis import known, look_at
from riskmtl.training.freezing import FrozenSlices, not_of
from riskmtl.training.loss import observed_labels
from riskmtl.training.mixup import Mix, draw_mix
from riskmtl.training.objective import Objective
from riskmtl.training.penalties import Penalties
from riskmtl.training.processes import mean_over_processes
from riskmtl.training.randomness import RandomState
from riskmtl.training.rows import TaskPlan
from riskmtl.training.warm_up import warm_up_factors, warmed

VALIDATED = ("log_loss", "log_loss_skill", "roc_auc", "average_precision")


class MultiTaskModule(pl.LightningModule):
    """
    Train a network on several tasks, each over the rows that observe it.

    Parameters
    ----------
    network : Network
        Maps ``(batch, features)`` to ``(batch, tasks)``.
    plan : TaskPlan
    config : TrainingConfig
    penalties : Penalties, optional
        Default: none.
    probe : tuple of Tensor, optional
        Training rows that each epoch is looked at on; see :mod:`riskmtl.training.diagnosis`.

    Attributes
    ----------
    history : list of dict
        One entry per epoch and task, of plain values: training loss, validation metrics, the
        task's weight, and what :func:`riskmtl.training.diagnosis.look_at` says.

    Notes
    -----
    What is minimised is what the balancing makes of the tasks' masked means, and the penalties
    asked for. Nothing is logged within an epoch: losses are added up on the device and read once.
    Of several processes each trains on its share of every batch and validates on all rows.
    """

    def __init__(
        self,
        network: Network,
        plan: TaskPlan,
        config: TrainingConfig,
        *,
        penalties: Penalties | None = None,
        probe: Batch | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.config = config
        self.probe = probe
        self.balancing = make_balancing(config, plan)
        self.objective = Objective(plan, config)
        self.penalties = Penalties({}) if penalties is None else penalties
        self._over_processes: Callable[[Tensor], Tensor] | None = None
        self._loss_sums: Tensor | None = None
        self._present: list[Tensor] = []
        self._steps = 0
        self._before = RandomState()
        self._outputs: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._weights: list[Tensor] = []
        self.history: list[dict[str, Any]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, features)`` to ``(batch, tasks)``."""
        return self.network(x)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle rate; only matrices decay."""
        config = self.config
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            decay = 0.0
            if name.endswith("weight"):
                is_embedding = name.startswith("embedding.")
                decay = config.embedding_decay if is_embedding else config.weight_decay
            groups.setdefault(decay, []).append(parameter)
        for parameter in self.balancing.parameters():
            groups.setdefault(0.0, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for decay, group in groups.items()],
            lr=config.learning_rate,
            fused=True,
        )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(
                "trainer_options: the learning rate is laid out over all epochs, which must have "
                f"an end, got max_epochs={self.trainer.max_epochs!r}"
            )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            # One more than is taken: Lightning steps the schedule after the last batch too.
            total_steps=int(steps) + 1,
            pct_start=0.15,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        """What holds the shared part still from some epoch on, if asked for."""
        tasks, after = range(len(self.plan.names)), self.config.freeze_shared_after
        # A network of one task shares nothing.
        if after is None or len(tasks) == 1:
            return []
        return [FrozenSlices(self.network, not_of(self.network, tasks), after=after)]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip ourselves: Lightning refuses a fused optimiser under mixed precision."""
        if gradient_clip_val is None:
            return
        is_by_value = gradient_clip_algorithm == "value"
        clip = nn.utils.clip_grad_value_ if is_by_value else nn.utils.clip_grad_norm_
        clip(self.network.parameters(), gradient_clip_val)

    def on_train_start(self) -> None:
        """Find out whether others train along."""
        self._over_processes = mean_over_processes if self.trainer.world_size > 1 else None
        self.balancing.over_processes = self._over_processes
        self._steps = self.trainer.global_step

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed run repeats it to the bit."""
        torch.manual_seed(
            epoch_seed(self.config.seed, self.current_epoch, self.trainer.global_rank)
        )
        self._loss_sums = None
        self._present.clear()
        # The same in all processes, and another than batches are drawn by.
        self.balancing.start_epoch(epoch_seed(self.config.seed, self.current_epoch, -1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What one batch gives to be minimised."""
        if self.balancing.looks_back:
            self._before = RandomState.of(self.device)
        losses, present, outputs, trace = self._task_losses(batch)
        self._note(losses.detach(), present)
        losses, present, warmth = self._warmed(losses, present, batch_idx)
        shared = None if trace is None else trace.shared
        return self.balancing(losses, present, shared, warmth) + self.penalties(outputs, trace)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Let the balancing say how the gradients of the tasks become one."""
        self.balancing.backward(loss, self.network)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Show the balancing what a step did to the losses, if it asks."""
        if not self.balancing.looks_back or self.trainer.global_step == self._steps:
            return
        self._steps = self.trainer.global_step
        with self._before.again(), torch.no_grad(), self.trainer.precision_plugin.forward_context():
            losses, present, _, _ = self._task_losses(batch)
        losses, present, _ = self._warmed(losses, present, batch_idx)
        self.balancing.look_back(losses, present)

    def _task_losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Trace | None]:
        """Losses, whether the batch observes each task, and the pass that they come from."""
        x, y, weights = batch
        trace = Trace() if self.balancing.wants_shared else self.penalties.trace()
        outputs, mix = self._outputs_of(x, trace)
        losses = self.objective(outputs, y, weights, mix=mix, over_processes=self._over_processes)
        return losses, observed_labels(y, weights).any(0), outputs, trace

    def _outputs_of(self, x: Tensor, trace: Trace | None) -> tuple[Tensor, Mix | None]:
        """Outputs ``(members, batch, tasks)`` of the rows, or of what they were mixed to."""
        if not self.config.mixup:
            return self.network(x, pooled=False, trace=trace), None
        mix = draw_mix(len(x), self.config.mixup, x.device)
        rows = mix.of(self.network.embedding(x))
        return self.network.answer(rows, pooled=False, trace=trace), mix

    def _warmed(
        self, losses: Tensor, present: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses in their warm-up, and its factors; at its start a task is not there yet."""
        epochs = self.plan.warm_up
        if not epochs or self.current_epoch >= max(epochs):
            return losses, present, None
        progress = self.current_epoch + step / float(self.trainer.num_training_batches)
        factors = warm_up_factors(epochs, progress).to(losses)
        return warmed(losses, factors), present & (factors > 0), factors

    def _note(self, losses: Tensor, present: Tensor) -> None:
        self._loss_sums = losses if self._loss_sums is None else self._loss_sums + losses
        self._present.append(present)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep outputs and labels of one batch for the end of the epoch."""
        x, y, weights = batch
        self._outputs.append(self.network(x).float())
        self._labels.append(y)
        if weights is not None:
            self._weights.append(weights)

    def on_validation_epoch_end(self) -> None:
        """Compute the validation metrics of every task and log them, with their mean."""
        outputs = torch.cat(self._outputs).double().cpu().numpy()
        labels = torch.cat(self._labels).double().cpu().numpy()
        weights = torch.cat(self._weights).double().cpu().numpy() if self._weights else None
        self._outputs.clear()
        self._labels.clear()
        self._weights.clear()
        self._require_numbers(outputs)
        shift = np.log(self.plan.event_factors)
        probabilities = 1 / (1 + np.exp(np.clip(shift - outputs, -500, 500)))
        train_losses, looks = self._train_losses(), self._looks()
        for position, task in enumerate(self.plan.names):
            row: dict[str, Any] = {
                "epoch": self.current_epoch,
                "task": task,
                "train_loss": train_losses[position],
            }
            y = labels[:, position]
            if self.plan.regression[position]:
                error = (outputs[:, position] - y) ** 2
                row["val_squared_error"] = _mean(error, weights)
            else:
                for name in VALIDATED:
                    row[f"val_{name}"] = METRICS[name](y, probabilities[:, position], weights)
            self.history.append({**row, **looks[position]})
        self._log_epoch()

    def _require_numbers(self, outputs: NDArray[np.float64]) -> None:
        lost = [self.plan.names[task] for task in np.unique(np.isnan(outputs).nonzero()[1])]
        if lost:
            raise ValueError(
                f"training diverged in epoch {self.current_epoch}: the answers for "
                f"{', '.join(map(repr, lost))} are no numbers any more; lower learning_rate, or "
                "what else is very large of decays, penalties, task_weights and event_weight"
            )

    def _train_losses(self) -> list[float]:
        if self._loss_sums is None:
            return [float("nan")] * len(self.plan.names)
        sums, present = self._loss_sums, torch.stack(self._present).to(self._loss_sums)
        if self._over_processes is not None:
            sums, present = self._over_processes(sums), self._over_processes(present)
        # Steps in which any process observed the task; where there was none, the mean is NaN.
        means: list[float] = (sums / (present > 0).sum(0)).tolist()
        return means

    def _looks(self) -> list[dict[str, Any]]:
        """What can be said of each task after this epoch beside its losses and metrics."""
        weights = self.balancing.mean_weights().tolist()
        found = [{"task_weight": known(weight)} for weight in weights]
        if self.probe is None:
            return found
        looks = look_at(self.network, self.probe, self.objective, self.plan.names)
        return [{**weight, **look} for weight, look in zip(found, looks, strict=True)]

    def _log_epoch(self) -> None:
        rows = self.history[-len(self.plan.names) :]
        values = {
            f"{row['task']}/{key}": float(value)
            for row in rows
            for key, value in row.items()
            if key != "epoch" and isinstance(value, (int, float))
        }
        # The mean of what all processes found alike, lest unlike machines choose unlike epochs.
        self.log_dict({**values, "val_score": self._score(rows)}, sync_dist=True)

    def _score(self, rows: list[dict[str, Any]]) -> float:
        """Mean of the monitored metric over the heads that have it; higher is better."""
        scores = [row.get(f"val_{self.config.monitor}", np.nan) for row in rows]
        if not np.isnan(scores).all():
            return float(np.nanmean(scores))
        # No head has both classes among the validation rows: what can be compared is the loss.
        losses = [
            row["val_log_loss" if "val_log_loss" in row else "val_squared_error"] for row in rows
        ]
        return -float(np.nanmean(losses)) if not np.isnan(losses).all() else 0.0


def _mean(values: Any, weights: Any) -> float:
    seen = ~np.isnan(values)
    if not seen.any():
        return float("nan")
    return float(np.average(values[seen], weights=None if weights is None else weights[seen]))
