"""The losses of the tasks over one batch, with all that changes what they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riskmtl.training.config import TrainingConfig
from riskmtl.training.loss import task_losses
from riskmtl.training.mixup import Mix
from riskmtl.training.rows import TaskPlan
from riskmtl.training.selection import make_selection


class Objective(nn.Module):
    """
    The mean loss of each task over all members and the rows that observe it.

    Parameters
    ----------
    plan : TaskPlan
    config : TrainingConfig
    """

    event_factor: Tensor
    regression: Tensor

    def __init__(self, plan: TaskPlan, config: TrainingConfig) -> None:
        super().__init__()
        self.register_buffer("event_factor", torch.tensor(plan.event_factors))
        self.register_buffer("regression", torch.tensor(plan.regression))
        self._has_regression = any(plan.regression)
        self._reweights = any(factor != 1 for factor in plan.event_factors)
        self.selection = make_selection(plan, config)

    def forward(
        self,
        outputs: Tensor,
        y: Tensor,
        weights: Tensor | None,
        *,
        mix: Mix | None = None,
        over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """
        Losses of a batch.

        Parameters
        ----------
        outputs : Tensor of shape (members, batch, tasks)
        y : Tensor of shape (batch, tasks)
            NaN where the outcome is not observed.
        weights : Tensor of shape (batch,) or (batch, tasks), optional
        mix : Mix, optional
            How the rows were mixed.
        over_processes : callable, optional
            See :func:`riskmtl.training.loss.task_losses`.

        Returns
        -------
        Tensor of shape (tasks,)
        """
        if mix is None:
            return self._losses(outputs, y, weights, over_processes)
        others = None if weights is None else weights[mix.partner]
        own = self._losses(outputs, y, weights, over_processes)
        partners = self._losses(outputs, y[mix.partner], others, over_processes)
        return mix.share * own + (1 - mix.share) * partners

    def _losses(
        self,
        outputs: Tensor,
        y: Tensor,
        weights: Tensor | None,
        over_processes: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        members = len(outputs)
        flat = outputs.flatten(0, 1)  # (members * batch, tasks)
        # Each member learns from every row.
        labels = y.repeat(members, 1)
        by_row = None if weights is None else weights.repeat(members, *[1] * (weights.dim() - 1))
        if self.selection is not None:
            flat, by_row = self.selection(flat, by_row)
        return task_losses(
            flat,
            labels,
            by_row,
            positive_weight=self.event_factor if self._reweights else None,
            regression=self.regression if self._has_regression else None,
            over_processes=over_processes,
        )
