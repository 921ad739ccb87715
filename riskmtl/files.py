"""Files: a table is read or refused in one sentence, and what is written appears whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

_ROWS_READ_AT_ONCE = 131_072


class TableError(ValueError):
    """A file that cannot be read as a table; the message names the file."""


def open_table(path: str | Path) -> pl.LazyFrame:
    """
    Open a Parquet file without reading its rows.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    polars.LazyFrame

    Raises
    ------
    TableError
        If the file is absent, empty, truncated or not Parquet.
    """
    path = Path(path)
    with readable(path):
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
    with readable(path):
        table = pl.scan_parquet(path, glob=False)
        table.collect_schema()
    return table


def read_table(
    path: str | Path,
    *,
    start: int = 0,
    rows: int | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """
    Read a Parquet file, or a run of its rows.

    Parameters
    ----------
    path : str or Path
        The file.
    start : int
        First row.
    rows : int, optional
        Number of rows; default: all.
    columns : sequence of str, optional
        Default: all.

    Returns
    -------
    polars.DataFrame

    Raises
    ------
    TableError
        As :func:`open_table`.
    """
    table = open_table(path)
    with readable(path):
        chosen = table if columns is None else table.select(columns)
        return chosen.slice(start, rows).collect()


def count_rows(path: str | Path) -> int:
    """Number of rows of a Parquet file; raises as :func:`open_table`."""
    table = open_table(path)
    with readable(path):
        return int(table.select(pl.len()).collect().item())


def read_batches(path: str | Path) -> Iterator[pl.DataFrame]:
    """
    Read a Parquet file some rows at a time.

    Parameters
    ----------
    path : str or Path

    Yields
    ------
    polars.DataFrame
        In order.

    Raises
    ------
    TableError
        As :func:`open_table`.
    """
    for start in range(0, count_rows(path), _ROWS_READ_AT_ONCE):
        yield read_table(path, start=start, rows=_ROWS_READ_AT_ONCE)


@contextmanager
def readable(path: str | Path, kind: str = "Parquet") -> Iterator[None]:
    """Say in one sentence what is wrong with a file that polars cannot read."""
    try:
        yield
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TableError(f"{path}: damaged or truncated {kind} file ({reason})") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """
    Give a temporary path that takes the place of a file if all goes well.

    Parameters
    ----------
    path : str or Path
        The file to be written; its folder is made if need be.

    Yields
    ------
    Path
        Write here. After an error nothing is left of it, and an older file stays as it was.

    Examples
    --------
    >>> target = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> with replacing(target) as scratch:
    ...     _ = scratch.write_text("a,b")
    >>> target.read_text()
    'a,b'
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, choose a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
        sync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
