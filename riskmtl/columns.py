"""The columns and tasks of a table, and how their values are read as polars expressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

TYPES = ("number", "integer", "string", "boolean", "date", "datetime", "year")
ROLES = ("numeric", "categorical", "key", "time", "weight", "protected", "ignored")
KINDS = ("binary", "regression")
DATE_TYPES = ("date", "datetime", "year")
NUMBER_TYPES = ("number", "integer", "year")
DIRECTIONS = ("both", "up", "down")
RESERVED = ("_row", "_rule")
# The range of a column must itself be a float32 number.
LARGEST = 1e37
# Of a date: far beyond any that is meant, and well within what microseconds can count.
LARGEST_YEAR = 9999
_FIRST_DAY, _LAST_DAY = -4_371_587, 2_932_896  # of these years, counted from 1970

_TEXT = (pl.String, pl.Categorical, pl.Enum)


class DataError(ValueError):
    """A table that does not keep what its schema promises; the message names the column."""


def score_columns(tasks: Iterable[str]) -> set[str]:
    """Names that a table of scores may have for itself."""
    forms = ("{}", "p_{}", "p_{}_challenger", "margin_{}", "grade_{}", "reasons_{}")
    return {"quarantined"} | {form.format(task) for task in tasks for form in forms}


@dataclass(frozen=True, slots=True)
class Column:
    """
    One column of a table.

    Parameters
    ----------
    name : str
    type : {"number", "integer", "string", "boolean", "date", "datetime", "year"}
    role : {"numeric", "categorical", "key", "time", "weight", "protected", "ignored"}
        `numeric` and `categorical` columns are inputs. A `protected` column is no input and kept
        for fairness evidence; an input that is also protected has ``protected=True``.
    required : bool
        Rows without a value are refused.
    minimum, maximum : float, optional
        Rows outside are refused.
    enum : tuple, optional
        Rows with another value are refused.
    missing_values : tuple
        Codes that mean missing.
    protected : bool
        Whether an input is also a protected characteristic.
    changeable : {"", "both", "up", "down"}
        Ways in which a person can change an input, for counterfactuals; empty: in none.
    """

    name: str
    type: str
    role: str
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[Any, ...] | None = None
    missing_values: tuple[Any, ...] = ()
    protected: bool = False
    changeable: str = ""

    @property
    def is_input(self) -> bool:
        """Whether the model sees this column."""
        return self.role in ("numeric", "categorical")

    def accepts(self, dtype: pl.DataType) -> bool:
        """Whether a polars type can hold this column's values."""
        if dtype == pl.Null:
            return True
        if self.type in NUMBER_TYPES:
            return dtype.is_numeric()
        if self.type == "boolean":
            return dtype == pl.Boolean
        if self.type == "string":
            return isinstance(dtype, _TEXT)
        return dtype == pl.Date or isinstance(dtype, pl.Datetime)


@dataclass(frozen=True, slots=True)
class Task:
    """
    One outcome, and when its label counts as observed.

    Parameters
    ----------
    name : str
    label : str
        The label column.
    kind : {"binary", "regression"}
    positive : tuple
        Label values of the positive class.
    negative : tuple, optional
        Label values of the negative class; ``None``: the one other value in the data.
    negative_rest : bool
        Every value that is not positive is negative.
    where : mapping
        Column to tuple of values: the label is observed only where each column holds one of its
        values.
    maturity_days : int, optional
        The label is observed only if the row's time lies at least so many days before `as_of`.
    """

    name: str
    label: str
    kind: str = "binary"
    positive: tuple[Any, ...] = (1,)
    negative: tuple[Any, ...] | None = None
    negative_rest: bool = False
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    maturity_days: int | None = None


def label_column(task: Task) -> Column:
    """
    A column to ignore that holds a task's label.

    Parameters
    ----------
    task : Task

    Returns
    -------
    Column
        Of the type that the task's positive value has.
    """
    kinds = {bool: "boolean", str: "string", int: "integer", float: "number"}
    kind = "number" if task.kind == "regression" else kinds.get(type(task.positive[0]), "string")
    return Column(task.label, kind, "ignored")


def decoded(column: Column) -> pl.Expr:
    """Values of a column with its missing codes, and NaN, as null."""
    value = pl.col(column.name)
    if column.type == "string":
        value = value.cast(pl.String)
        if not column.missing_values:
            return value
        is_missing = value.is_in(list(column.missing_values))
    elif column.type in NUMBER_TYPES:
        # Compared as floats, whatever the width or kind of number that the table has.
        number = value.cast(pl.Float64)
        is_missing = number.is_nan()
        if column.missing_values:
            is_missing |= number.is_in([float(v) for v in column.missing_values])
    else:
        return value
    return pl.when(is_missing).then(None).otherwise(value).alias(column.name)


def parsed(column: Column) -> pl.Expr:
    """Values of a column that is written as text; null where they cannot be read."""
    text = pl.col(column.name).str.strip_chars()
    if column.type in NUMBER_TYPES:
        number = text.cast(pl.Float64, strict=False)
        if column.type == "number":
            return number
        whole = pl.when(number == number.round()).then(number).cast(pl.Int64, strict=False)
        return pl.coalesce(text.cast(pl.Int64, strict=False), whole)
    if column.type == "boolean":
        words = {"true": True, "false": False, "1": True, "0": False}
        return text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    forms = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")
    zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_zone="UTC", strict=False)
    moments = [text.str.to_datetime(form, time_unit="us", strict=False) for form in forms]
    found = pl.coalesce(*moments, zoned.dt.replace_time_zone(None))
    return found.dt.date() if column.type == "date" else found


def among(
    name: str, values: Iterable[Any], dtype: pl.DataType, what: str, *, noun: str = "column"
) -> pl.Expr:
    """Whether a column holds one of some values, compared as its type in the table allows."""
    column = pl.col(name)
    kinds: tuple[type, ...]
    if dtype == pl.Null:
        return pl.lit(None, pl.Boolean)
    if dtype.is_numeric():
        column, kinds = column.cast(pl.Float64), (int, float)
    elif dtype == pl.Boolean:
        column, kinds = column.cast(pl.Float64), (bool,)
    else:
        column, kinds = column.cast(pl.String), (str,)
    values = list(values)
    for value in values:
        if not isinstance(value, kinds) and not (dtype == pl.Boolean and value in (0, 1)):
            raise DataError(
                f"{noun} {name!r} is {dtype} in the table, so it never holds {value!r}, which "
                f"{what}: correct the schema"
            )
    return column.is_in(values if str in kinds else [float(value) for value in values])


def out_of_years(column: Column, dtype: pl.DataType) -> pl.Expr:
    """Where a date lies beyond the years that can be reckoned with."""
    value = pl.col(column.name)
    if column.type == "year":
        return value.cast(pl.Float64).abs() > LARGEST_YEAR
    if dtype == pl.Null:
        return pl.lit(False)
    # In the unit that they are kept in, since a conversion would fail. Nanoseconds end in 2262.
    units = {"ms": 10**3, "us": 10**6, "ns": 0}
    a_day = 86_400 * units[dtype.time_unit] if isinstance(dtype, pl.Datetime) else 1
    if not a_day:
        return pl.lit(False)
    within = value.to_physical().cast(pl.Int64)
    return ~within.is_between(_FIRST_DAY * a_day, (_LAST_DAY + 1) * a_day - 1)


def moment(column: Column) -> pl.Expr:
    """Values of a date, datetime or year column as naive moments."""
    value = decoded(column)
    if column.type == "year":
        value = pl.date(value.cast(pl.Int32), 1, 1)
    return value.cast(pl.Datetime("us"))
