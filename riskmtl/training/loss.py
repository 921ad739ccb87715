"""The loss of each task over the rows whose outcome is observed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def task_losses(
    outputs: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    positive_weight: Tensor | None = None,
    regression: Tensor | None = None,
    over_processes: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """
    Weighted mean loss of each task over its observed rows.

    Parameters
    ----------
    outputs : Tensor of shape (batch, tasks)
        Log-odds of binary tasks, predictions of regression tasks.
    labels : Tensor of shape (batch, tasks)
        NaN where the outcome is not observed.
    weights : Tensor of shape (batch,) or (batch, tasks), optional
        Sample weights, of a row or of a row for each task.
    positive_weight : Tensor of shape (tasks,), optional
        Factor on the events of each binary task.
    regression : Tensor of bool, shape (tasks,), optional
        Which tasks are regressions (squared error); the others have the logistic loss.
    over_processes : callable, optional
        Where several processes each hold a share of the batch: maps a tensor to its mean over
        them. The mean over the processes of what is returned, and so of its gradient, is then the
        mean over the observed rows of the whole batch, however few a process has of them.

    Returns
    -------
    Tensor of shape (tasks,)
        Exactly 0, with gradient 0, for a task that no row of the batch observes.

    Examples
    --------
    >>> labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    >>> task_losses(torch.zeros(2, 2), labels)
    tensor([0.6931, 0.0000])
    """
    observed = ~torch.isnan(labels)
    target = torch.where(observed, labels, torch.zeros_like(labels))
    loss = functional.binary_cross_entropy_with_logits(
        outputs, target, reduction="none", pos_weight=positive_weight
    )
    if regression is not None:
        loss = torch.where(regression, (outputs - target).square(), loss)
    # Chosen, not multiplied by 0: an output may have overflowed where nothing is observed.
    loss = torch.where(observed, loss, torch.zeros_like(loss))
    share = observed.to(loss.dtype)
    if weights is not None:
        loss, share = loss * per_task(weights), share * per_task(weights)
    total = share.sum(0)
    if over_processes is not None:
        total = over_processes(total)
    return loss.sum(0) / torch.where(total > 0, total, torch.ones_like(total))


def observed_labels(labels: Tensor, weights: Tensor | None) -> Tensor:
    """
    Which labels count.

    Parameters
    ----------
    labels : Tensor of shape (batch, tasks)
        NaN where the outcome is not observed.
    weights : Tensor of shape (batch,) or (batch, tasks), optional
        Sample weights; a label of weight 0 is none.

    Returns
    -------
    Tensor of bool, shape (batch, tasks)

    Examples
    --------
    >>> labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    >>> observed_labels(labels, torch.tensor([1.0, 0.0]))
    tensor([[ True, False],
            [False, False]])
    """
    known = ~torch.isnan(labels)
    return known if weights is None else known & (per_task(weights) > 0)


def per_task(weights: Tensor) -> Tensor:
    """Weights of rows, ``(batch,)`` or ``(batch, tasks)``, as factors of ``(batch, tasks)``."""
    return weights.unsqueeze(1) if weights.dim() == 1 else weights
