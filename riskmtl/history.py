"""What training has recorded of each epoch and task, as a frame and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

_TYPES: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "epoch": pl.Int64,
    "task": pl.String,
    "gate_weights": pl.List(pl.Float64),
    "dead_experts": pl.Int64,
    "kept": pl.Boolean,
}
_NEEDED = ("epoch", "task", "kept")


def history_frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """
    Lay out what training has recorded.

    Parameters
    ----------
    rows : sequence of dict
        One per epoch and task, of plain values. What is not in :data:`_TYPES` is a number.

    Returns
    -------
    polars.DataFrame
        A column for each key of any row, null where a row has none, or no finite number.

    Raises
    ------
    ValueError
        If a row does not say its epoch, its task and whether it was kept, or a value has another
        type.

    Examples
    --------
    >>> history_frame([{"epoch": 0, "task": "fraud", "kept": True, "val_roc_auc": float("nan")}])
    shape: (1, 4)
    ┌───────┬───────┬──────┬─────────────┐
    │ epoch ┆ task  ┆ kept ┆ val_roc_auc │
    │ ---   ┆ ---   ┆ ---  ┆ ---         │
    │ i64   ┆ str   ┆ bool ┆ f64         │
    ╞═══════╪═══════╪══════╪═════════════╡
    │ 0     ┆ fraud ┆ true ┆ null        │
    └───────┴───────┴──────┴─────────────┘
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [_known(row.get(name)) for row in rows]
        kind = _TYPES.get(name, pl.Float64)
        if any(not _is_of(kind, value) for value in values if value is not None):
            raise ValueError(f"history: {name!r} has a value of another type than {kind}")
        if kind == pl.Float64:
            values = [None if value is None else float(value) for value in values]
        columns.append(pl.Series(name, values, dtype=kind))
    frame = pl.DataFrame(columns)
    for name in _NEEDED:
        if name not in frame.columns or frame[name].null_count():
            raise ValueError(f"history: a row does not say its {name!r}")
    return frame


def write_history(frame: pl.DataFrame) -> str:
    """Text of the file that :func:`read_history` reads."""
    return json.dumps(frame.to_dicts(), allow_nan=False)


def read_history(text: str, tasks: Sequence[str]) -> pl.DataFrame:
    """
    Read what :func:`write_history` wrote.

    Parameters
    ----------
    text : str
    tasks : sequence of str
        Of the model.

    Returns
    -------
    polars.DataFrame

    Raises
    ------
    ValueError
        If it is no history, or one of other tasks.
    """
    rows = json.loads(text)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("history: expected a list of rows")
    frame = history_frame(rows)
    strange = set(frame["task"]) - set(tasks)
    if strange:
        raise ValueError(f"history: task {min(strange)!r} is none of the model's")
    return frame


def kept_epochs(frame: pl.DataFrame) -> dict[str, int]:
    """
    The epoch whose weights each task has.

    Parameters
    ----------
    frame : polars.DataFrame
        As :func:`history_frame` makes it.

    Returns
    -------
    dict of str to int
        -1 where no epoch bettered the weights that training started from.

    Examples
    --------
    >>> rows = [{"epoch": 0, "task": "a", "kept": False}, {"epoch": 1, "task": "a", "kept": True}]
    >>> kept_epochs(history_frame(rows))
    {'a': 1}
    """
    kept = pl.when("kept").then("epoch").otherwise(-1).max()
    return dict(frame.group_by("task", maintain_order=True).agg(kept).rows())


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_of(kind: pl.DataType | type[pl.DataType], value: Any) -> bool:
    if isinstance(kind, pl.List):
        return isinstance(value, list) and all(
            item is None or _is_of(pl.Float64, item) for item in value
        )
    if isinstance(value, bool):
        return kind == pl.Boolean
    if kind == pl.String:
        return isinstance(value, str)
    if kind == pl.Boolean:
        return False
    return isinstance(value, int) or (kind == pl.Float64 and isinstance(value, float))
