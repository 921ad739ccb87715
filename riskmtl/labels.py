"""Reading labels and weights in every form that users hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.frames import as_frame


@dataclass(frozen=True, slots=True)
class TaskLabels:
    """
    What training learned about one task's labels.

    Parameters
    ----------
    name : str
    kind : {"binary", "regression"}
    classes : tuple
        Negative and positive label; empty for a regression.
    """

    name: str
    kind: str
    classes: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """
    Labels of all tasks.

    Parameters
    ----------
    tasks : tuple of TaskLabels
    values : ndarray of float64, shape (rows, tasks)
        0 or 1 for binary tasks, numbers for regressions, NaN where not observed.
    is_single : bool
        Whether they came as one column without a task axis, as scikit-learn's users give them.
    """

    tasks: tuple[TaskLabels, ...]
    values: NDArray[np.float64]
    is_single: bool


def read_labels(y: Any, *, regression: Sequence[str] = ()) -> Labels:
    """
    Read the labels of training rows and find out their classes.

    Parameters
    ----------
    y : frame, series, list or array, of shape (rows,) or (rows, tasks)
        Labels with null or NaN where the outcome is not observed. Two values of any one type; the
        greater is the positive class, as in scikit-learn.
    regression : sequence of str
        Names of columns that are regressions.

    Returns
    -------
    Labels

    Raises
    ------
    ValueError
        If a task has no observed label, only one class, or more than two values.

    Examples
    --------
    >>> labels = read_labels(pl.DataFrame({"fraud": ["no", "yes", None]}))
    >>> labels.values.ravel(), labels.tasks[0].classes
    (array([ 0.,  1., nan]), ('no', 'yes'))
    """
    frame, is_single = label_frame(y)
    for name in regression:
        if name not in frame.columns:
            raise ValueError("regression_tasks: " + unknown_name("task", name, frame.columns))
    tasks = tuple(
        _regression(column) if column.name in regression else _binary(column) for column in frame
    )
    return Labels(tasks, _encode(frame, tasks), is_single)


def read_label(y: Any, name: str, *, kind: str = "binary") -> Labels:
    """
    Read the labels of one task, whatever their column is called.

    Parameters
    ----------
    y : as in :func:`read_labels`
        One column.
    name : str
        What the task is to be called.
    kind : {"binary", "regression"}

    Returns
    -------
    Labels

    Raises
    ------
    ValueError
        If there are several columns, or as in :func:`read_labels`.

    Examples
    --------
    >>> read_label([0, 1, 1], "fraud").tasks[0].name
    'fraud'
    """
    frame, _ = label_frame(y)
    if frame.width != 1:
        raise ValueError(
            f"y has {frame.width} columns, but {name!r} is one task: give its column alone"
        )
    frame = frame.rename({frame.columns[0]: name})
    return read_labels(frame, regression=[name] if kind == "regression" else [])


def encode_labels(y: Any, tasks: Sequence[TaskLabels]) -> NDArray[np.float64]:
    """
    Read labels of other rows with the classes found in training.

    Parameters
    ----------
    y : as in :func:`read_labels`
    tasks : sequence of TaskLabels

    Returns
    -------
    ndarray of float64, shape (rows, tasks)

    Raises
    ------
    ValueError
        If a task is missing or a label is neither of its two classes.
    """
    frame, is_single = label_frame(y)
    names = [task.name for task in tasks]
    if not is_single and not isinstance(y, (np.ndarray, list)):
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ValueError(f"labels of task {missing[0]!r} are missing")
        frame = frame.select(names)
    if frame.width != len(names):
        raise ValueError(f"labels have {frame.width} column(s), the model has {len(names)} task(s)")
    return _encode(frame.rename(dict(zip(frame.columns, names, strict=True))), tasks)


def label_frame(y: Any) -> tuple[pl.DataFrame, bool]:
    """
    Labels of any form as a frame.

    Parameters
    ----------
    y : as in :func:`read_labels`

    Returns
    -------
    frame : polars.DataFrame
        A column per task, with the values as they are.
    is_single : bool
        Whether they came as one column without a task axis.
    """
    if isinstance(y, pl.Series) or nw.dependencies.is_into_series(y):
        series = nw.from_native(y, series_only=True)
        name = "y" if series.name in (None, "") else str(series.name)
        frame = as_frame(series.to_frame().to_native())
        return frame.rename({frame.columns[0]: name}), True
    if isinstance(y, (pl.DataFrame, pl.LazyFrame)) or hasattr(y, "columns"):
        return as_frame(y), False
    values = np.asarray(y)
    if values.ndim == 0 or values.ndim > 2:
        raise ValueError(f"labels must have one or two dimensions, got {values.ndim}")
    if np.iscomplexobj(values):
        raise ValueError("Complex data not supported")
    if values.dtype.kind == "S":
        raise ValueError("labels are bytes: decode them to text")
    if values.dtype.kind == "U":
        values = values.astype(object)
    if values.ndim == 1:
        return as_frame(values[:, None], columns=["y"]), True
    return as_frame(values, columns=[f"task_{i}" for i in range(values.shape[1])]), False


def _known(column: pl.Series) -> pl.Series:
    if column.dtype.is_float():
        if column.is_infinite().any():
            raise ValueError(f"label {column.name!r} holds infinity: correct it, or set it to null")
        column = column.fill_nan(None)
    return column.drop_nulls()


def _binary(column: pl.Series) -> TaskLabels:
    seen = _known(column).unique().sort().to_list()
    if not seen:
        raise ValueError(f"task {column.name!r} has no observed label: leave the task out")
    if len(seen) == 1:
        raise ValueError(
            f"task {column.name!r} has only one class among its observed labels ({seen[0]!r}): "
            "both an event and a non-event are needed"
        )
    if len(seen) > 2:
        kind = "continuous" if column.dtype.is_float() else "multiclass"
        raise ValueError(
            f"Unknown label type: {kind}. Label {column.name!r} holds {len(seen)} values, among "
            f"them {seen[0]!r}, {seen[1]!r} and {seen[2]!r}. Only binary classification is "
            "supported. The type of the target must have two values; name a number to be "
            "predicted in regression_tasks"
        )
    return TaskLabels(column.name, "binary", (seen[0], seen[1]))


def _require_number(column: pl.Series) -> None:
    if not column.dtype.is_numeric():
        raise ValueError(f"label {column.name!r} of a regression task is not a number")


def _regression(column: pl.Series) -> TaskLabels:
    _require_number(column)
    if _known(column).n_unique() < 2:
        raise ValueError(f"task {column.name!r} has fewer than two observed values")
    return TaskLabels(column.name, "regression", ())


def _encode(frame: pl.DataFrame, tasks: Sequence[TaskLabels]) -> NDArray[np.float64]:
    values = np.full((frame.height, len(tasks)), np.nan)
    for position, task in enumerate(tasks):
        column = frame[task.name]
        known = _known(column)
        if not len(known):
            continue
        if task.kind == "regression":
            _require_number(column)
            values[:, position] = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
            continue
        negative, positive = task.classes
        seen = known.unique().to_list()
        strange = [value for value in seen if value not in task.classes]
        if strange:
            raise ValueError(
                f"label {task.name!r} holds {strange[0]!r}, which is neither {negative!r} nor "
                f"{positive!r}"
            )
        is_positive = column.is_in([value for value in seen if value == positive])
        if column.dtype.is_float():
            is_positive = is_positive.set(column.is_nan().fill_null(False), None)
        values[:, position] = is_positive.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values
