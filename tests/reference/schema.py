"""A schema's rules and labels, one row and one value at a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from riskmtl.schema import Column, DataSchema, Task


def decoded(column: Column, value: Any) -> Any:
    """The value, or ``None`` where it is a code for missing."""
    return None if value in column.missing_values else value


def refusal(column: Column, value: Any) -> str | None:
    """The first rule of a column that a value breaks."""
    value = decoded(column, value)
    if value is None:
        must = column.required or column.role in ("key", "time", "weight")
        return f"{column.name}: missing" if must else None
    if column.role == "weight" and value < 0:
        return f"{column.name}: negative weight"
    if column.type == "number" and value in (float("inf"), float("-inf")):
        return f"{column.name}: infinite"
    if column.type in ("number", "integer") and column.is_input and abs(value) > 1e37:
        return f"{column.name}: beyond ±1e+37"
    if column.minimum is not None and value < column.minimum:
        return f"{column.name}: below {column.minimum:g}"
    if column.maximum is not None and value > column.maximum:
        return f"{column.name}: above {column.maximum:g}"
    if column.enum is not None and value not in column.enum:
        return f"{column.name}: not an allowed value"
    return None


def first_refusal(schema: DataSchema, row: Mapping[str, Any]) -> str | None:
    """The first rule that a row breaks, columns taken in the schema's order."""
    for column in schema.columns:
        broken = refusal(column, row[column.name])
        if broken is not None:
            return broken
    return None


def label(
    task: Task, row: Mapping[str, Any], time: datetime | None, as_of: datetime | None
) -> float | None:
    """One label: 0, 1, or ``None`` where it is not observed."""
    value = row[task.label]
    if value is None:
        return None
    for column, values in task.where.items():
        if row[column] not in values:
            return None
    if task.maturity_days is not None and (time is None or as_of is None):
        return None
    if task.maturity_days is not None and as_of - time < timedelta(days=task.maturity_days):
        return None
    return 1.0 if value in task.positive else 0.0
