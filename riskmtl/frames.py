"""Every table that a user may hold becomes a polars frame here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl


def as_frame(data: Any, *, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """
    Convert a table to a polars frame without copying more than its type asks for.

    Parameters
    ----------
    data : polars DataFrame or LazyFrame, pandas DataFrame, Arrow table or batch, 2-d array
        The table. A 2-d array has no names of its own: they are `columns`, or ``x0, x1, …``.
    columns : sequence of str, optional
        Names for the columns of an array.

    Returns
    -------
    polars.DataFrame

    Raises
    ------
    TypeError
        If `data` is none of these.

    Examples
    --------
    >>> as_frame(np.array([[1.0, 2.0]])).columns
    ['x0', 'x1']
    """
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, np.ndarray):
        return _from_array(data, columns)
    if nw.dependencies.is_pandas_dataframe(data):
        return _from_pandas(data)
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
        return pl.DataFrame(data)
    raise TypeError(
        f"a table of type {type(data).__name__} cannot be read: give a polars or pandas frame, "
        "an Arrow table or a 2-d array"
    )


def _from_array(data: np.ndarray[Any, Any], columns: Sequence[str] | None) -> pl.DataFrame:
    if data.ndim != 2:
        raise ValueError(f"expected a 2-d array, got one of {data.ndim} dimension(s)")
    names = list(columns) if columns is not None else [f"x{i}" for i in range(data.shape[1])]
    if len(names) != data.shape[1]:
        raise ValueError(f"the array has {data.shape[1]} columns, {len(names)} were expected")
    if data.dtype.kind == "O":
        return pl.DataFrame([_series(name, data[:, i]) for i, name in enumerate(names)])
    return pl.from_numpy(data, schema=names, orient="row")


def _from_pandas(data: Any) -> pl.DataFrame:
    # polars' own conversion needs pyarrow for strings; columns go over one by one instead.
    names = [str(name) for name in data.columns]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"column {name!r} appears more than once: rename one")
    return pl.DataFrame(
        [_from_pandas_column(name, data.iloc[:, i]) for i, name in enumerate(names)]
    )


def _from_pandas_column(name: str, column: Any) -> pl.Series:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufM":
        return pl.Series(name, column.to_numpy())
    values = _series(name, column.astype(object).where(column.notna(), None).to_numpy())
    is_category = type(column.dtype).__name__ == "CategoricalDtype"
    return category_text(values) if is_category and values.dtype.is_numeric() else values


def _series(name: str, values: np.ndarray[Any, Any]) -> pl.Series:
    """Build a series of an array; Python objects keep their common type, or become strings."""
    if values.dtype.kind != "O":
        return pl.Series(name, values)
    items = [_plain(value) for value in values.tolist()]
    kinds = {type(v) for v in items if v is not None}
    if kinds <= {int, float}:
        return pl.Series(name, items, dtype=pl.Float64)
    if len(kinds) == 1:
        return pl.Series(name, items)
    return pl.Series(name, [None if v is None else str(v) for v in items], dtype=pl.String)


def _plain(value: Any) -> Any:
    """Unwrap a numpy scalar; the ways that pandas and numpy write "missing" become ``None``."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def category_text(values: pl.Series) -> pl.Series:
    """
    Categories as text, the same for a whole number whether it is stored as integer or float.

    Parameters
    ----------
    values : polars.Series

    Returns
    -------
    polars.Series of String
        Null for missing.

    Raises
    ------
    ValueError
        If the values cannot be categories.

    Examples
    --------
    >>> category_text(pl.Series([1.0, 2.5, float("nan")])).to_list()
    ['1', '2.5', None]
    """
    if values.dtype.is_nested() or values.dtype in (pl.Object, pl.Binary):
        raise ValueError(f"column {values.name!r} is {values.dtype}, which cannot be a category")
    if not values.dtype.is_float():
        return values.cast(pl.String)
    if values.is_infinite().any():
        raise ValueError(f"column {values.name!r} holds infinity, which cannot be a category")
    number = pl.col("value").fill_nan(None)
    # Beyond 2^53 a float is no exact integer.
    is_whole = (number % 1 == 0) & (number.abs() < 2**53)
    text = (
        pl.when(is_whole)
        .then(number.cast(pl.Int64, strict=False).cast(pl.String))
        .otherwise(number.cast(pl.String))
    )
    return values.alias("value").to_frame().select(text).to_series().alias(values.name)
