"""How the losses of the tasks become the one number that a step minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from riskmtl.training.config import TrainingConfig
from riskmtl.training.rows import TaskPlan


class Balancing(nn.Module):
    """
    The sum of the tasks' losses, each with its weight; base of all that weigh otherwise.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
        Factor on each task's loss, whatever a subclass makes of it.

    Examples
    --------
    >>> balancing = Balancing(torch.tensor([1.0, 0.5]))
    >>> balancing(torch.tensor([3.0, 2.0]), torch.tensor([True, True])).item()
    4.0
    """

    task_weights: Tensor

    def __init__(self, task_weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("task_weights", task_weights)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """
        Turn losses into what is minimised.

        Parameters
        ----------
        losses : Tensor of shape (tasks,)
        present : Tensor of bool, shape (tasks,)
            Whether any row of the batch observes the task; if none does, its loss is 0.

        Returns
        -------
        Tensor of shape ()
        """
        return (losses * self.task_weights).sum()


BALANCING: Mapping[str, Callable[..., Balancing]] = {"sum": Balancing}


def make_balancing(config: TrainingConfig, plan: TaskPlan) -> Balancing:
    """
    Make the balancing that a training asks for.

    Parameters
    ----------
    config : TrainingConfig
    plan : TaskPlan

    Returns
    -------
    Balancing
    """
    return BALANCING[config.balancing](torch.tensor(plan.weights), **config.balancing_options)
