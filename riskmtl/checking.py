"""Which rows of a table keep what its columns promise, and which rule refused the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from riskmtl.columns import (
    DATE_TYPES,
    LARGEST,
    LARGEST_YEAR,
    NUMBER_TYPES,
    Column,
    DataError,
    decoded,
    out_of_years,
    parsed,
)


class RefusedRows(DataError):
    """A table too many of whose rows break the schema."""


class Checked(NamedTuple):
    """Rows that keep the schema, and rows that do not with the rule that refused each."""

    good: pl.DataFrame
    quarantine: pl.DataFrame

    def refusals(self) -> dict[str, int]:
        """Rule to number of rows that it refused, most frequent first."""
        if self.quarantine.is_empty():
            return {}
        counts = self.quarantine["_rule"].value_counts()
        counts = counts.sort("count", "_rule", descending=[True, False])
        return dict(zip(counts["_rule"].to_list(), counts["count"].to_list(), strict=True))

    def require_few_refused(self, max_bad: float, *, source: str) -> None:
        """
        Refuse a table too many of whose rows break the schema.

        Parameters
        ----------
        max_bad : float
            Largest share of refused rows that is accepted.
        source : str
            What the message calls the table.

        Raises
        ------
        RefusedRows
            With the most frequent rule and its first row.
        """
        refused = self.quarantine.height
        rows = self.good.height + refused
        if refused <= max_bad * rows:
            return
        rule, count = next(iter(self.refusals().items()))
        row = self.quarantine.filter(pl.col("_rule") == rule)["_row"][0]
        raise RefusedRows(
            f"{source}: {refused:,} of {rows:,} rows break the schema, most often by {rule!r} "
            f"({count:,} rows, first row {row}): correct them, or accept a share with --max-bad"
        )


def separated(
    frame: pl.DataFrame, columns: Sequence[Column], broken: pl.Series | None = None
) -> Checked:
    """Separate rows; see :meth:`riskmtl.schema.DataSchema.check`."""
    refused = _where(frame, list(_tests(columns, frame.schema)))
    if broken is not None:
        refused = refused | broken.is_not_null()
    if not refused.any():
        return Checked(frame, _quarantine(frame.clear(), pl.Series([], dtype=pl.String)))
    bad = frame.filter(refused)
    rules = _rules(columns, frame.schema)
    named: list[pl.Expr] = [pl.when(fails).then(pl.lit(text)) for fails, text in rules]
    if broken is not None:
        named.insert(0, pl.lit(broken.filter(refused)))
    rule = bad.select(pl.coalesce(*named).alias("_rule"))["_rule"]
    return Checked(frame.filter(~refused), _quarantine(bad, rule, refused.arg_true()))


def from_text(frame: pl.DataFrame, columns: Sequence[Column]) -> tuple[pl.DataFrame, pl.Series]:
    """Read values that are written as text; see :meth:`riskmtl.schema.DataSchema.from_text`."""
    others = [c for c in columns if c.name in frame.columns and c.type != "string"]
    values = frame.with_columns(parsed(column) for column in others)
    unread = [
        pl.when(pl.col(column.name).str.contains(r"\S") & values[column.name].is_null()).then(
            pl.lit(f"{column.name}: no {column.type}")
        )
        for column in others
    ]
    rule = pl.coalesce(*unread, pl.lit(None, pl.String)).alias("_rule")
    return values, frame.with_columns(rule)["_rule"]


def _tests(columns: Sequence[Column], dtypes: Mapping[str, pl.DataType]) -> Iterator[pl.Expr]:
    """What fails where any rule is broken, in fewer steps than it takes to name the rule."""
    for column in columns:
        if column.name not in dtypes:
            continue
        value = decoded(column)
        if _is_needed(column):
            yield value.is_null()
        if column.type in ("number", "integer") and not column.is_input:
            yield value.cast(pl.Float64).is_infinite()
        if _is_reckoned(column):
            yield out_of_years(column, dtypes[column.name])
        low, high = _range(column)
        if (low, high) != (-math.inf, math.inf):
            yield ~value.is_between(low, high)
        if column.enum is not None:
            yield _is_no_choice(column, value)


def _rules(
    columns: Sequence[Column], dtypes: Mapping[str, pl.DataType]
) -> Iterator[tuple[pl.Expr, str]]:
    for column in columns:
        if column.name not in dtypes:
            continue
        value = decoded(column)
        if _is_needed(column):
            yield value.is_null(), f"{column.name}: missing"
        if column.role == "weight":
            yield value < 0, f"{column.name}: negative weight"
        if column.type in ("number", "integer"):
            number = value.cast(pl.Float64)
            yield number.is_infinite(), f"{column.name}: infinite"
            if column.is_input:
                yield number.abs() > LARGEST, f"{column.name}: beyond ±{LARGEST:g}"
        if _is_reckoned(column):
            far = out_of_years(column, dtypes[column.name])
            yield far, f"{column.name}: beyond the years ±{LARGEST_YEAR}"
        if column.minimum is not None:
            yield value < column.minimum, f"{column.name}: below {column.minimum:g}"
        if column.maximum is not None:
            yield value > column.maximum, f"{column.name}: above {column.maximum:g}"
        if column.enum is not None:
            yield _is_no_choice(column, value), f"{column.name}: not an allowed value"


def _is_needed(column: Column) -> bool:
    return column.required or column.role in ("key", "time", "weight")


def _is_reckoned(column: Column) -> bool:
    """Whether a column holds dates that are counted with."""
    return column.type in DATE_TYPES and (column.is_input or column.role == "time")


def _range(column: Column) -> tuple[float, float]:
    """Between which numbers a column's values must lie."""
    low = -math.inf if column.minimum is None else column.minimum
    high = math.inf if column.maximum is None else column.maximum
    if column.type in ("number", "integer") and column.is_input:
        low, high = max(low, -LARGEST), min(high, LARGEST)
    return (max(low, 0.0) if column.role == "weight" else low), high


def _is_no_choice(column: Column, value: pl.Expr) -> pl.Expr:
    allowed: list[Any] = list(column.enum or ())
    if column.type in NUMBER_TYPES:
        value, allowed = value.cast(pl.Float64), [float(v) for v in allowed]
    return ~value.is_in(allowed)


def _where(frame: pl.DataFrame, fails: Sequence[pl.Expr]) -> pl.Series:
    """Whether any of the tests fails, row by row."""
    if not fails:
        return pl.repeat(False, frame.height, eager=True)
    return frame.select(pl.any_horizontal(fails).fill_null(False)).to_series()


def _quarantine(
    rows: pl.DataFrame, rules: pl.Series, positions: pl.Series | None = None
) -> pl.DataFrame:
    where = positions if positions is not None else pl.Series([], dtype=pl.UInt32)
    return rows.select(
        where.cast(pl.Int64).alias("_row"), rules.cast(pl.String).alias("_rule"), pl.all()
    )
