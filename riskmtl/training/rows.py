"""Encoded rows with their labels, as every learner takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """
    Encoded rows with their labels.

    Parameters
    ----------
    x : ndarray of float32, shape (rows, features)
    y : ndarray of float32, shape (rows, tasks)
        NaN where the outcome is not observed; a regression label is standardised.
    weights : ndarray of float32, shape (rows,), optional
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None

    def where(self, mask: NDArray[np.bool_]) -> TrainingRows:
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[mask]
        return TrainingRows(self.x[mask], self.y[mask], weights)

    def only(self, task: int) -> TrainingRows:
        """Rows that observe one task, with that label alone."""
        seen = self.where(~np.isnan(self.y[:, task]))
        return TrainingRows(seen.x, seen.y[:, task : task + 1], seen.weights)


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """
    The tasks as the loss sees them.

    Parameters
    ----------
    names : tuple of str
    regression : tuple of bool
    weights : tuple of float
        Factor on each task's loss.
    positive_weights : tuple of float
        Factor on the events of each binary task.
    """

    names: tuple[str, ...]
    regression: tuple[bool, ...]
    weights: tuple[float, ...]
    positive_weights: tuple[float, ...]

    def only(self, task: int) -> TaskPlan:
        """One task by itself."""
        return TaskPlan(
            (self.names[task],), (self.regression[task],), (1.0,), (self.positive_weights[task],)
        )
