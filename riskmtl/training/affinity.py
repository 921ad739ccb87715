"""
Task affinity: what training on one task does to the others' losses.

Either by steps looked ahead while all tasks train together (Fifty et al. 2021), or by training each
pair of tasks and comparing it with each task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from riskmtl.networks import Network, NetworkConfig
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import Trained, train
from riskmtl.training.gradients import Owned, task_gradients
from riskmtl.training.loss import observed_labels
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.rows import TaskPlan, TrainingRows

Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LookaheadAffinity(pl.Callback):
    r"""
    Measure, while tasks train together, how a step on each changes the losses of all.

    Every so many steps the shared parameters :math:`\theta_s` take a step on one task alone,
    :math:`\theta_{s|i} = \theta_s - \eta \nabla_{\theta_s} L_i`, and the losses of all tasks on the
    same batch are compared: :math:`Z_{i \to j} = 1 - L_j(\theta_{s|i}, \theta_j) / L_j(\theta_s,
    \theta_j)` (Fifty et al. 2021, equation 1), with :math:`\eta` the rate of the moment. Then the
    step is forgotten: the training is the same, to the bit, as without.

    Parameters
    ----------
    every : int
        Steps from one measurement to the next. One takes about as long as two steps per task.

    References
    ----------
    C. Fifty, E. Amid, Z. Zhao, T. Yu, R. Anil and C. Finn (2021), Efficiently identifying task
    groupings for multi-task learning, NeurIPS.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure now and then, before the step that the batch is for."""
        if trainer.global_step % self.every:
            return
        assert isinstance(pl_module, MultiTaskModule)
        assert isinstance(pl_module.network, Network)
        x, y, weights = batch
        found = lookahead(
            pl_module.network,
            x,
            y,
            weights,
            rate=trainer.optimizers[0].param_groups[0]["lr"],
            objective=pl_module.objective,
        )
        seen = ~torch.isnan(found)
        found = torch.where(seen, found, torch.zeros_like(found))
        self._sum = found if self._sum is None else self._sum + found
        self._count = seen.double() if self._count is None else self._count + seen

    def matrix(self) -> NDArray[np.float64]:
        """
        Mean over the measurements.

        Returns
        -------
        ndarray of shape (tasks, tasks)
            From each task (line) to each (column); NaN for two that no batch observed together.
        """
        if self._sum is None or self._count is None:
            raise ValueError("nothing was measured: train at least one step with this callback")
        total, count = self._sum.cpu().numpy(), self._count.cpu().numpy()
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def lookahead(
    network: Network,
    x: Tensor,
    y: Tensor,
    weights: Tensor | None = None,
    *,
    rate: float,
    objective: Objective,
) -> Tensor:
    """
    Affinity of tasks on one batch: relative fall of each loss after a shared step on each task.

    Parameters
    ----------
    network : Network
        Left as it is.
    x : Tensor of shape (batch, features)
    y : Tensor of shape (batch, tasks)
        NaN where the outcome is not observed.
    weights : Tensor of shape (batch,), optional
    rate : float
        Of the step.
    objective : callable
        Gives a loss per task from outputs ``(members, batch, tasks)``, `y` and `weights`.

    Returns
    -------
    Tensor of float64, shape (tasks, tasks)
        From each task (line) to each (column); NaN where the batch observes one of them nowhere.

    Notes
    -----
    Losses are those of training but without dropout, which would blur so small a difference.
    """
    present = observed_labels(y, weights).any(0)
    tasks = y.shape[1]
    found = torch.full((tasks, tasks), torch.nan, dtype=torch.float64, device=y.device)

    owned = Owned.of(network)

    def losses(parameters: Sequence[Tensor]) -> Tensor:
        named = dict(zip(owned.names, parameters, strict=True))
        return objective(functional_call(network, named, (x,), {"pooled": False}), y, weights)

    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.enable_grad():
            before = losses(owned.parameters)
        for task in present.nonzero().flatten().tolist():
            one = torch.ones_like(before[task])
            (gradients,) = task_gradients(before, [task], owned.parameters, one)
            with torch.no_grad():
                moved = [
                    value - rate * gradient
                    for value, gradient in zip(
                        owned.parameters, owned.shared(gradients), strict=True
                    )
                ]
                ratio = losses(moved).double() / before.detach().double()
            found[task, present] = 1 - ratio[present]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found


def pair_gains(
    shape: NetworkConfig,
    cardinalities: Sequence[int],
    plan: TaskPlan,
    config: TrainingConfig,
    rows: TrainingRows,
    validation: TrainingRows,
) -> NDArray[np.float64]:
    """
    Affinity of tasks from trainings: each alone, and each pair together.

    Parameters
    ----------
    shape, cardinalities, plan, config, rows, validation
        As for :func:`riskmtl.training.fit.train`.

    Returns
    -------
    ndarray of shape (tasks, tasks)
        From each task (line) to each (column): by what share the validation loss of the second is
        lower if it is trained with the first, in the epoch that was kept; 0 on the diagonal.
    """
    count = len(plan.names)

    def losses(tasks: Sequence[int]) -> list[float]:
        own = replace(shape, groups=())
        part = plan.only(tasks), config, rows.only(tasks), validation.only(tasks)
        return _kept_losses(train(own, cardinalities, *part), part[0])

    alone = [losses([task])[0] for task in range(count)]
    found = np.zeros((count, count))
    for i, j in combinations(range(count), 2):
        with_j, with_i = losses([i, j])
        found[j, i] = 1 - with_j / alone[i]
        found[i, j] = 1 - with_i / alone[j]
    return found


def _kept_losses(trained: Trained, plan: TaskPlan) -> list[float]:
    """Validation loss of each task in its best epoch."""
    found = []
    for task, is_regression, epoch in zip(
        plan.names, plan.regression, trained.best_epochs, strict=True
    ):
        kept = [r for r in trained.history if (r["task"], r["epoch"]) == (task, epoch)]
        found.append(float(kept[-1]["val_squared_error" if is_regression else "val_log_loss"]))
    return found
