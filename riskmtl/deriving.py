"""What it takes to make another estimator of a fitted one: its rows, its training, its copy."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.base import MultiTaskEstimator
from riskmtl.given import require_count, require_positive
from riskmtl.holdout import held_out_rows
from riskmtl.labels import TaskLabels, encode_labels
from riskmtl.model import Head, RiskModel
from riskmtl.prepared import Prepared, make_head, make_rows
from riskmtl.scorers import NetworkScorer
from riskmtl.training.rows import TaskPlan, TrainingRows

if TYPE_CHECKING:
    from riskmtl.baseline import LightGBMBaseline
    from riskmtl.training.config import TrainingConfig

# Of the rate that training anew would take: what is there already should move, not be forgotten.
_GENTLE = 0.1
# What a copy takes from its own model.
_LEARNED = (
    *("challenger_", "blend_weights_", "saving_"),
    *("history_", "best_epoch_", "best_epochs_"),
)


class Rows(NamedTuple):
    """Encoded rows with labels as the model counts them, before they are standardised."""

    encoded: NDArray[np.float32]
    values: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    times: pl.Series | None


class DerivingMixin(MultiTaskEstimator, ABC):
    """What methods share that make another estimator of a fitted one; none changes it."""

    few_events: int
    network: str

    @abstractmethod
    def _training(self, rows: int, seed: int) -> TrainingConfig:
        """How a network is trained on so many rows."""

    @abstractmethod
    def _plan(self, data: Prepared, names: list[str]) -> TaskPlan:
        """The tasks as the loss sees them."""

    @abstractmethod
    def _beside(self) -> LightGBMBaseline:
        """The challenger to be trained."""

    def _encoded(self, X: Any, values: NDArray[np.float64], weights: Any) -> Rows:
        inputs, times = self._read_inputs(X, reset=False)
        if inputs.height != len(values):
            raise ValueError(f"X has {inputs.height} rows, y has {len(values)}")
        weights = self._read_weights(X, weights, inputs)
        return Rows(self.model_.encoder.transform(inputs), values, weights, times)

    def _validation(self, X: Any, y: Any, tasks: Sequence[TaskLabels]) -> Rows:
        if y is None:
            raise ValueError("X_val was given without y_val: give both, or neither")
        return self._encoded(X, encode_labels(y, tasks), None)

    def _held_out(
        self,
        rows: Rows,
        validation: Rows | None,
        tasks: Sequence[TaskLabels],
        seed: int,
        *,
        heads: list[Head] | None = None,
        keep_unobserved: bool = False,
    ) -> Prepared:
        """Rows to learn from and rows to watch, with heads at their beginning."""
        seen = ~np.isnan(rows.values)
        observed = seen.any(axis=0)
        held_out = np.zeros(len(rows.values), dtype=bool)
        if validation is None:
            share = self.validation_share
            held_out = held_out_rows(rows.values[:, observed], rows.times, share=share, seed=seed)
        if heads is None:
            heads = [make_head(t, rows.values[~held_out, i]) for i, t in enumerate(tasks)]
        all_rows = make_rows(rows.encoded, rows.values, rows.weights, heads)
        wanted = seen.any(axis=1) | keep_unobserved
        learned = all_rows.where(~held_out & wanted)
        if validation is not None:
            watched = make_rows(*validation[:3], heads)
        else:
            watched = all_rows.where(held_out & wanted) if held_out.any() else learned
        return Prepared(self.model_.encoder, tuple(tasks), heads, learned, watched, seed, False)

    def _continued(
        self,
        rows: int,
        seed: int,
        *,
        folder: str,
        epochs: int | None,
        learning_rate: float | str,
        is_gentle: bool,
    ) -> TrainingConfig:
        """How to go on training, beside the checkpoint of the first fit."""
        config = self._training(rows, seed)
        if epochs is not None:
            require_count("epochs", epochs)
            config = replace(config, epochs=int(epochs))
        if learning_rate != "auto":
            require_positive("learning_rate", learning_rate)
            config = replace(config, learning_rate=float(learning_rate))
        elif is_gentle:
            config = replace(config, learning_rate=_GENTLE * config.learning_rate)
        if config.checkpoint_dir is not None:
            config = replace(config, checkpoint_dir=Path(config.checkpoint_dir) / folder)
        return config

    def _derived(self, model: RiskModel, changes: Mapping[str, Any]) -> Self:
        """A copy of this estimator that answers with another model."""
        other = copy.copy(self)
        for attribute in _LEARNED:
            other.__dict__.pop(attribute, None)
        for name, value in changes.items():
            setattr(other, name, value)
        model.made_by = {
            **self.model_.made_by,
            "parameters": other._saved_parameters(),
            "is_single": self._is_single and len(model.heads) == len(self.model_.heads),
        }
        other._take_up(model)
        return other


def network_of(model: RiskModel) -> NetworkScorer:
    """The scorer of a model that has a network."""
    assert isinstance(model.scorer, NetworkScorer)
    return model.scorer


def spread(data: Prepared, heads: int, places: int | slice) -> Prepared:
    """The same rows with a column of labels per head, those of some heads filled."""

    def wider(rows: TrainingRows) -> TrainingRows:
        y = np.full((len(rows.y), heads), np.nan, dtype=np.float32)
        y[:, [places] if isinstance(places, int) else places] = rows.y
        return TrainingRows(rows.x, y, rows.weights)

    rows = wider(data.rows)
    return replace(data, rows=rows, validation=wider(data.validation) if data.is_held_out else rows)
