"""Every table that a user may hold becomes a polars frame here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl


class TableError(ValueError):
    """A file that cannot be read as a table; the message names the file."""


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
    if data.dtype.kind == "O":
        return pl.DataFrame([_series(name, data[:, i]) for i, name in enumerate(names)])
    return pl.from_numpy(data, schema=names)


def _from_pandas(data: Any) -> pl.DataFrame:
    # polars' own conversion needs pyarrow for strings; columns go over one by one instead.
    columns = []
    for position, name in enumerate(data.columns):
        column = data.iloc[:, position]
        values = column.to_numpy() if isinstance(column.dtype, np.dtype) else None
        if values is None or values.dtype.kind not in "biufM":
            values = column.astype(object).where(column.notna(), None).to_numpy()
        columns.append(_series(str(name), values))
    return pl.DataFrame(columns)


def _series(name: str, values: np.ndarray[Any, Any]) -> pl.Series:
    """Build a series of an array; Python objects keep their common type, or become strings."""
    if values.dtype.kind != "O":
        return pl.Series(name, values)
    items = [None if v is None or v != v else v for v in values.tolist()]
    kinds = {type(v) for v in items if v is not None}
    if kinds <= {int, float}:
        return pl.Series(name, items, dtype=pl.Float64)
    if len(kinds) == 1:
        return pl.Series(name, items)
    return pl.Series(name, [None if v is None else str(v) for v in items], dtype=pl.String)


def read_table(path: str | Path) -> pl.DataFrame:
    """
    Read a Parquet file, or say in one sentence why it cannot be read.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    polars.DataFrame

    Raises
    ------
    TableError
        If the file is absent, empty, truncated or not Parquet.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: no such file")
    if path.is_dir():
        raise TableError(f"{path}: is a folder, a Parquet file was expected")
    if path.stat().st_size == 0:
        raise TableError(f"{path}: the file is empty")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PAR1":
        raise TableError(f"{path}: not a Parquet file (it does not begin with PAR1)")
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"{path}: damaged or truncated Parquet file ({reason})") from error
