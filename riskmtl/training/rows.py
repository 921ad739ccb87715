"""Encoded rows with their labels, as every learner takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    weights : ndarray of float32, shape (rows,) or (rows, tasks), optional
        Or (rows, tasks), where a row counts differently for each task.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None

    def where(self, mask: NDArray[np.bool_]) -> TrainingRows:
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[mask]
        return TrainingRows(self.x[mask], self.y[mask], weights)

    def only(self, tasks: Sequence[int]) -> TrainingRows:
        """Rows that observe some of the tasks, with those labels alone."""
        labels = self.y[:, list(tasks)]
        mask = ~np.isnan(labels).all(1)
        weights = None if self.weights is None else self.weights[mask]
        return TrainingRows(self.x[mask], labels[mask], weights)


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
    warm_up : tuple of float
        Epochs over which each task's loss comes in; empty: from the first step.
    event_rates : tuple of float
        How many times as often batches draw a row with an event of each task; empty: once.
    selected_by : tuple of (int or None)
        The task whose event decides whether each task is observed at all; empty: none.
    """

    names: tuple[str, ...]
    regression: tuple[bool, ...]
    weights: tuple[float, ...]
    positive_weights: tuple[float, ...]
    warm_up: tuple[float, ...] = ()
    event_rates: tuple[float, ...] = ()
    selected_by: tuple[int | None, ...] = ()

    @property
    def event_factors(self) -> tuple[float, ...]:
        """Factor on the events of each task, by weight and by rate; their log is in the output."""
        rates = self.event_rates or (1.0,) * len(self.names)
        return tuple(w * rate for w, rate in zip(self.positive_weights, rates, strict=True))

    def only(self, tasks: Sequence[int]) -> TaskPlan:
        """Some of the tasks; the weight of one by itself is 1."""
        tasks = list(tasks)

        def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[task] for task in tasks) if values else ()

        return TaskPlan(
            names=some(self.names),
            regression=some(self.regression),
            weights=some(self.weights) if len(tasks) > 1 else (1.0,),
            positive_weights=some(self.positive_weights),
            warm_up=some(self.warm_up),
            event_rates=some(self.event_rates),
            selected_by=tuple(
                tasks.index(by) if by in tasks else None for by in some(self.selected_by)
            ),
        )
