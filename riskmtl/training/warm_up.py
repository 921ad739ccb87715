"""Tasks that come in by and by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def warm_up_factors(epochs: Sequence[float], progress: float) -> Tensor:
    """
    Factor on each task's loss: from 0, linearly over so many epochs, to 1.

    Parameters
    ----------
    epochs : sequence of float
        Of each task; 0: its loss counts whole from the first step.
    progress : float
        Epochs trained so far, with fractions.

    Returns
    -------
    Tensor of shape (tasks,)

    Examples
    --------
    >>> warm_up_factors([0, 2, 0.25], 0.5)
    tensor([1.0000, 0.2500, 1.0000])
    """
    return torch.tensor([1.0 if e <= 0 else min(1.0, progress / e) for e in epochs])


def warmed(losses: Tensor, factors: Tensor) -> Tensor:
    """
    Losses as they are, whose gradients count by a factor.

    The factor is in the gradients alone, so that a balancing that compares losses with each other,
    or with what they were, is not misled by it.

    Parameters
    ----------
    losses, factors : Tensor of shape (tasks,)

    Returns
    -------
    Tensor of shape (tasks,)
    """
    seen = losses.detach()
    return seen + factors * (losses - seen)
