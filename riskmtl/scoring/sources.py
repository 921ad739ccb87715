"""What a job reads: Parquet and CSV files, some rows at a time, and whether they stay the same."""

from __future__ import annotations

import glob
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from riskmtl.files import TableError, count_rows, open_table, read_table, readable

PART_ROWS = 131_072
_KINDS = (".parquet", ".csv")
_SAMPLED_BYTES = 65_536
_SCANNED_BYTES = 1 << 24


class Part(NamedTuple):
    """
    A run of rows of one file.

    Parameters
    ----------
    start, rows : int
        Its first row, counted from nought, and their number.
    begin, end : int
        The bytes that hold them in a CSV file; nought for Parquet.
    """

    start: int
    rows: int
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """
    One file of a job, as it was when the job began.

    Parameters
    ----------
    path : Path
    size, modified_ns : int
        Its bytes, and when it was written.
    fingerprint : str
        Of its size, its first and its last bytes, where a Parquet file says what it holds.
    dtypes : polars.Schema
        Its columns; all of a CSV file's are text.
    parts : tuple of Part
    """

    path: Path
    size: int
    modified_ns: int
    fingerprint: str
    dtypes: pl.Schema
    parts: tuple[Part, ...]

    @property
    def is_text(self) -> bool:
        """Whether all its columns are text."""
        return self.path.suffix.lower() == ".csv"

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(part.rows for part in self.parts)

    def read(self, part: Part, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """
        Read one part.

        Parameters
        ----------
        part : Part
        columns : sequence of str, optional
            Default: all.

        Returns
        -------
        polars.DataFrame

        Raises
        ------
        TableError
            If the file is damaged, or was changed since the job began.
        """
        self.require_unchanged()
        if self.is_text:
            with readable(self.path, "CSV"):
                frame = self._read_text(part, columns)
        else:
            frame = read_table(self.path, start=part.start, rows=part.rows, columns=columns)
        self.require_unchanged()
        if frame.height != part.rows:
            raise TableError(
                f"{self.path}: {frame.height:,} rows where {part.rows:,} were counted, from row "
                f"{part.start:,}: the file is damaged"
            )
        return frame

    def _read_text(self, part: Part, columns: Sequence[str] | None) -> pl.DataFrame:
        with self.path.open("rb") as file:
            names = file.read(self.parts[0].begin)
            file.seek(part.begin)
            lines = file.read(part.end - part.begin)
        frame = pl.read_csv(io.BytesIO(names + lines), infer_schema=False)
        return frame if columns is None else frame.select(columns)

    def require_unchanged(self) -> None:
        """Refuse a file that was written since the job began."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise TableError(f"{self.path}: went away while the job read it") from error
        if (found.st_size, found.st_mtime_ns) != (self.size, self.modified_ns):
            raise TableError(
                f"{self.path}: was changed while the job read it: finish writing, then begin the "
                "job anew with --restart"
            )


def find_files(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """
    Find the files that names, folders and patterns stand for.

    Parameters
    ----------
    given : str, Path, or sequence of them
        A file; a folder, for all Parquet and CSV files in it and below but for those whose name
        begins with ``.`` or ``_``; or a pattern such as ``in/*.parquet``.

    Returns
    -------
    list of Path
        In order, each once.

    Raises
    ------
    TableError
        If nothing is found, or a file is neither Parquet nor CSV by its name.
    """
    found: list[Path] = []
    for item in [given] if isinstance(given, str | Path) else given:
        with readable(item):
            found += _matches(item)
    for path in found:
        if path.suffix.lower() not in _KINDS:
            raise TableError(f"{path}: neither Parquet nor CSV: name it .parquet or .csv")
    return list(dict.fromkeys(found))


def _matches(item: str | Path) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        matches = sorted(_inside(path))
        nothing = f"{path}: the folder holds no Parquet or CSV file"
    elif path.exists() or not glob.has_magic(str(item)):
        return [path]
    else:
        matches = [Path(name) for name in sorted(glob.glob(str(item), recursive=True))]
        nothing = f"{item}: no file fits this pattern"
    if not matches:
        raise TableError(nothing)
    return matches


def _inside(folder: Path) -> Iterator[Path]:
    """Tables in a folder and below it; what cannot be listed raises and is not passed over."""
    with os.scandir(folder) as found:
        items = list(found)
    for item in items:
        path = folder / item.name
        if item.name[0] in "._":
            continue
        if item.is_dir(follow_symlinks=False):
            yield from _inside(path)
        elif path.suffix.lower() in _KINDS:
            yield path


def open_source(path: str | Path, *, part_rows: int = PART_ROWS) -> Source:
    """
    Look at a file: its columns, and how it falls into parts.

    Parameters
    ----------
    path : str or Path
    part_rows : int
        Most rows of a part.

    Returns
    -------
    Source

    Raises
    ------
    TableError
        If it cannot be read.
    """
    path = Path(path)
    with readable(path):
        if path.suffix.lower() == ".csv":
            dtypes, parts = _look_at_text(path, part_rows)
        else:
            dtypes = open_table(path).collect_schema()
            rows = count_rows(path)
            parts = [Part(at, min(part_rows, rows - at)) for at in range(0, rows, part_rows)]
        found, fingerprint = path.stat(), _fingerprint(path)
    return Source(path, found.st_size, found.st_mtime_ns, fingerprint, dtypes, tuple(parts))


def _look_at_text(path: Path, part_rows: int) -> tuple[pl.Schema, list[Part]]:
    if not path.exists():
        raise TableError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise TableError(f"{path}: the file is empty")
    with readable(path, "CSV"):
        dtypes = pl.scan_csv(path, infer_schema=False, glob=False).collect_schema()
        ends, fields = (np.concatenate(found) for found in zip(*_lines(path), strict=True))
    # The first line holds the names.
    short = np.flatnonzero(fields[1:] < fields[0])
    if len(short):
        raise TableError(
            f"{path}: row {short[0]:,} has {fields[short[0] + 1]} of {fields[0]} fields: the file "
            "is damaged or truncated"
        )
    parts = []
    for first in range(0, len(ends) - 1, part_rows):
        last = min(first + part_rows, len(ends) - 1)
        parts.append(Part(first, last - first, int(ends[first]), int(ends[last])))
    return dtypes, parts


def _lines(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the lines of a CSV file end, in bytes from its beginning, and their fields."""
    begin, quotes, commas, last = 0, 0, 0, b"\n"
    with path.open("rb") as file:
        while data := file.read(_SCANNED_BYTES):
            found = np.frombuffer(data, dtype=np.uint8)
            is_quote = found == ord('"')
            breaks, stops = (np.flatnonzero(found == ord(sign)) for sign in "\n,")
            if quotes % 2 or is_quote.any():
                # What lies within quotes ends nothing.
                before = quotes + np.cumsum(is_quote)
                breaks, stops = (at[before[at] % 2 == 0] for at in (breaks, stops))
                quotes += int(is_quote.sum())
            ends = np.searchsorted(stops, breaks)
            yield begin + breaks + 1, np.diff(ends, prepend=-commas) + 1
            commas = len(stops) - int(ends[-1]) if len(ends) else commas + len(stops)
            begin, last = begin + len(data), data[-1:]
    if quotes % 2:
        raise TableError(f"{path}: a quote is never closed: the file is damaged")
    if last != b"\n":
        yield np.array([begin]), np.array([commas + 1])


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLED_BYTES))
        file.seek(max(0, path.stat().st_size - _SAMPLED_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
