"""What an estimator learns from: encoded rows, heads at their beginning, and checks of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.blending import UNDECIDED, blend_weight
from riskmtl.calibration import Calibrator, fit_calibrator
from riskmtl.encoding import FeatureEncoder
from riskmtl.labels import Labels, TaskLabels
from riskmtl.model import Head, RiskModel, uncalibrated
from riskmtl.scorers import Scorer
from riskmtl.training.rows import TrainingRows


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    What a subclass learns from.

    Parameters
    ----------
    encoder : FeatureEncoder
    tasks : tuple of TaskLabels
    heads : list of Head
        Without calibrators yet; a regression's labels in `rows` are standardised by its head.
    rows, validation : TrainingRows
    seed : int
    is_single : bool
        Whether labels came as one column.
    """

    encoder: FeatureEncoder
    tasks: tuple[TaskLabels, ...]
    heads: list[Head]
    rows: TrainingRows
    validation: TrainingRows
    seed: int
    is_single: bool

    @property
    def is_held_out(self) -> bool:
        """Whether validation rows are others than those trained on."""
        return self.validation is not self.rows


def warn_of_uninformative(inputs: pl.DataFrame) -> None:
    """Say which columns teach nothing; a fold of a cross-validation may have such by chance."""
    distinct = inputs.select(pl.all().n_unique()).row(0)
    if inputs.height < 2:
        return
    for column, count in zip(inputs, distinct, strict=True):
        if count == 1:
            what = "is missing" if column.null_count() == inputs.height else "has one value"
            warnings.warn(
                f"column {column.name!r} {what} in every training row: it teaches nothing",
                UserWarning,
                stacklevel=3,
            )


def require_weighted_classes(labels: Labels, weights: NDArray[np.float64] | None) -> None:
    """Refuse weights that leave a task with one class."""
    if weights is None:
        return
    values = labels.values[weights > 0]
    for position, task in enumerate(labels.tasks):
        seen = values[~np.isnan(values[:, position]), position]
        if task.kind == "binary" and len(np.unique(seen)) < 2:
            raise ValueError(
                f"task {task.name!r} has only one class among the rows with a sample weight above 0"
            )


def make_head(task: TaskLabels, values: NDArray[np.float64]) -> Head:
    """Begin a head, from the labels of its training rows."""
    if task.kind == "binary":
        return Head(task.name, "binary", task.classes)
    mean, scale = float(np.nanmean(values)), float(np.nanstd(values))
    return Head(task.name, "regression", (), mean=mean, scale=scale)


def make_rows(
    encoded: NDArray[np.float32],
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    heads: Sequence[Head],
) -> TrainingRows:
    """Rows as training wants them: float32, regressions standardised, weights of mean 1."""
    mean = np.array([head.mean for head in heads])
    scale = np.array([head.scale for head in heads])
    y = ((values - mean) / scale).astype(np.float32)
    if weights is None:
        return TrainingRows(encoded, y)
    return TrainingRows(encoded, y, (weights / weights.mean()).astype(np.float32))


def calibrated(scorer: Scorer, heads: list[Head], data: Prepared) -> list[Head]:
    """Heads with a calibrator each, fitted on the validation rows."""
    if not data.is_held_out:
        note = Calibrator(note="not fitted: no rows were held out")
        return [replace(head, calibrator=note) for head in heads]
    held_out = data.validation
    found = uncalibrated(heads, scorer.raw(held_out.x))
    return [
        replace(
            head,
            calibrator=fit_calibrator(
                held_out.y[:, i].astype(np.float64), found[:, i], held_out.weights
            ),
        )
        if head.kind == "binary"
        else head
        for i, head in enumerate(heads)
    ]


def blended(
    model: RiskModel, data: Prepared, columns: Mapping[int, int] | None = None
) -> list[Head]:
    """
    Heads with the network's share in a blend; half, where no rows were held out to fit it on.

    Parameters
    ----------
    model : RiskModel
        With a challenger.
    data : Prepared
    columns : mapping of int to int, optional
        Which heads get a new share, each with the column of its labels; default: all, in order.

    Returns
    -------
    list of Head
    """
    assert model.challenger is not None
    columns = {i: i for i in range(len(model.heads))} if columns is None else columns
    shares = dict.fromkeys(columns, UNDECIDED)
    if data.is_held_out:
        rows = data.validation
        alone = replace(model, heads=[replace(head, blend=1.0) for head in model.heads])
        own, other = alone.outputs(rows.x), model.challenger.outputs(rows.x)
        for i, column in columns.items():
            head = model.heads[i]
            if head.kind == "binary":
                labels = rows.y[:, column]
                shares[i] = blend_weight(labels, own[head.task], other[head.task], rows.weights)
    return [
        replace(head, blend=shares[i]) if i in shares else head
        for i, head in enumerate(model.heads)
    ]
