"""Tables that are wrong in one way each, with what a scoring job must make of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from riskmtl import DataSchema
from riskmtl.schema_file import parse_schema

Rng = np.random.Generator
Frame = pl.DataFrame
Write = Callable[[Path], object]

ROWS = 24
HUGE = 1_000_000
SCORED, OTHER, TOO_MANY, UNREADABLE = 0, 1, 3, 4


@dataclass(frozen=True)
class Case:
    """
    One input of a job.

    Parameters
    ----------
    kind : str
        What is wrong with it.
    name : str
        Of the file.
    write : callable
        Makes the file of that path, or whatever lies there instead.
    codes : set of int
        Exit codes that are right.
    rows : int, optional
        Of the table, if it can be told.
    bad : frozenset of int, optional
        Rows that must be quarantined, and no others; ``None``: whichever.
    max_bad : str
    """

    kind: str
    name: str
    write: Write
    codes: frozenset[int]
    rows: int | None = ROWS
    bad: frozenset[int] | None = frozenset()
    max_bad: str = "100%"


def schema() -> DataSchema:
    """One column of every type."""
    number = {"minimum": 0, "maximum": 100}
    fields: list[dict[str, Any]] = [
        {"name": "id", "type": "string", "role": "key"},
        {"name": "account", "type": "integer", "role": "key"},
        {"name": "seen", "type": "datetime", "role": "time"},
        {"name": "amount", "type": "number", "missingValues": -9, "constraints": number},
        {"name": "age", "type": "integer"},
        {"name": "since", "type": "date"},
        {"name": "born", "type": "year"},
        {"name": "country", "type": "string", "missingValues": "?"},
        {"name": "tier", "type": "string", "constraints": {"enum": ["gold", "plain"]}},
        {"name": "online", "type": "boolean"},
        {"name": "note", "type": "string", "role": "ignored"},
    ]
    task = {"name": "fraud", "label": "is_fraud", "positive": 1, "negative": 0}
    return parse_schema({"name": "malformed", "fields": fields, "tasks": [task]})


def table(rows: int, rng: Rng) -> Frame:
    """Rows that keep the schema."""
    day = datetime(2024, 1, 1)
    return pl.DataFrame(
        {
            "id": [f"c{i}" for i in range(rows)],
            "account": np.arange(rows) + 10**6,
            "seen": [day + timedelta(hours=int(h)) for h in rng.integers(0, 9000, rows)],
            "amount": np.where(rng.random(rows) < 0.1, -9.0, rng.uniform(0, 100, rows).round(2)),
            "age": rng.integers(18, 90, rows),
            "since": [day.date() - timedelta(days=int(d)) for d in rng.integers(0, 9000, rows)],
            "born": rng.integers(1930, 2006, rows),
            "country": rng.choice(["FR", "DE", "NL", "?"], rows),
            "tier": rng.choice(["gold", "plain"], rows),
            "online": rng.random(rows) < 0.5,
            "note": rng.choice(["", "called", "à rappeler"], rows),
        }
    )


def cases(count: int, seed: int) -> Iterator[Case]:
    """Draw cases, each way of being wrong in turn."""
    rng = np.random.default_rng(seed)
    return (make(rng) for make in islice(cycle(WAYS), count))


# ---- Parquet -----------------------------------------------------------------------------------


def _parquet(kind: str, frame: Frame, *codes: int, **more: Any) -> Case:
    return Case(kind, "data.parquet", frame.write_parquet, frozenset(codes), **more)


def _with(frame: Frame, name: str, values: dict[int, Any], dtype: Any = None) -> Frame:
    """Other values in some rows of a column."""
    items = frame[name].to_list()
    for row, value in values.items():
        items[row] = value
    return frame.with_columns(pl.Series(name, items, dtype=dtype or frame.schema[name]))


def _some(rng: Rng) -> list[int]:
    return sorted(int(i) for i in rng.choice(ROWS, size=int(rng.integers(1, 6)), replace=False))


FAR = (1 << 31) - 1  # days: the last date that polars has, some millions of years from now
BAD_VALUES: list[tuple[str, Any, Any]] = [
    ("amount", float("inf"), None),
    ("amount", float("-inf"), None),
    ("amount", 1e300, None),
    ("amount", 100.01, None),
    ("amount", -1.0, None),
    ("amount", 1e-3 - 1, None),
    ("age", float("inf"), pl.Float64),
    ("age", 1e38, pl.Float64),
    ("age", -1e308, pl.Float64),
    ("age", 10**38, pl.Int128),
    ("born", float("inf"), pl.Float64),
    ("born", 1e300, pl.Float64),
    ("born", 1e10, pl.Float64),
    ("born", 2**40, pl.Int64),
    ("born", -(2**40), pl.Int64),
    ("born", 500_000, pl.Int64),
    ("id", None, None),
    ("account", None, None),
    ("account", float("inf"), pl.Float64),
    ("seen", None, None),
    ("tier", "zinc", None),
    ("tier", "", None),
    ("tier", "g" * HUGE, None),
    ("tier", "gold\x00", None),
]


def bad_values(rng: Rng) -> Case:
    name, value, dtype = BAD_VALUES[rng.integers(len(BAD_VALUES))]
    rows, accepts = _some(rng), bool(rng.random() < 0.7)
    frame = _with(table(ROWS, rng), name, dict.fromkeys(rows, value), dtype)
    code, share = (SCORED, "100%") if accepts else (TOO_MANY, "1%")
    kind = f"bad value in {name}: {str(value)[:20]}"
    return _parquet(kind, frame, code, bad=frozenset(rows), max_bad=share)


def far_dates(rng: Rng) -> Case:
    """Dates that do not fit into microseconds are bad rows where the model needs them."""
    rows, days = _some(rng), int(rng.choice([FAR, -FAR, 10**9, 107_000_000]))
    frame = table(ROWS, rng)
    raw = _with(frame.cast({"since": pl.Int32}), "since", dict.fromkeys(rows, days))
    bad = frozenset(rows)
    return _parquet(f"date {days}", raw.cast({"since": pl.Date}), SCORED, bad=bad)


ODD_VALUES: list[tuple[str, Any, Any]] = [
    ("amount", float("nan"), None),
    ("amount", None, None),
    ("amount", -0.0, None),
    ("amount", 5e-324, None),
    ("age", None, None),
    ("age", -5, None),
    ("age", 2**63 - 1, pl.Int64),
    ("age", 2**64 - 1, pl.UInt64),
    ("age", float("nan"), pl.Float64),
    ("age", 12.5, pl.Float64),
    ("since", date(1, 1, 1), None),
    ("since", date(1969, 12, 31), None),
    ("since", date(2262, 4, 12), None),
    ("since", date(9999, 12, 31), None),
    ("since", None, None),
    ("seen", datetime(1, 1, 1), None),
    ("seen", datetime(9999, 12, 31), None),
    ("born", None, None),
    ("born", 0, None),
    ("born", -44, None),
    ("born", 9999, None),
    ("country", None, None),
    ("country", "", None),
    ("country", "x" * HUGE, None),
    ("country", "\x00", None),
    ("country", "F\r\nR\n", None),
    ("country", "\u202eRF\U0001f600\ufeff", None),
    ("country", "=cmd|'/c calc'!A1", None),
    ("id", "", None),
    ("id", "c0", None),
    ("id", "i" * HUGE, None),
    ("id", "\x00\x1b[31m", None),
    ("account", 1_000_000, None),
    ("account", -(2**63), None),
    ("online", None, None),
    ("tier", None, None),
    ("note", "n" * HUGE, None),
]


def odd_values(rng: Rng) -> Case:
    """Strange, but nothing that the schema forbids; a key may come twice."""
    name, value, dtype = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    frame = _with(table(ROWS, rng), name, dict.fromkeys(_some(rng), value), dtype)
    return _parquet(f"odd value in {name}: {str(value)[:20]!r}", frame, SCORED)


GOOD_TYPES: list[tuple[str, Any]] = [
    ("id", pl.Categorical),
    ("account", pl.Int128),
    ("account", pl.Float64),
    ("account", pl.Decimal(38, 0)),
    ("seen", pl.Datetime("ms")),
    ("seen", pl.Datetime("ns")),
    ("seen", pl.Datetime("us", "UTC")),
    ("seen", pl.Datetime("ns", "Pacific/Apia")),
    ("seen", pl.Datetime("ms", "Europe/Paris")),
    ("seen", pl.Date),
    ("amount", pl.Float32),
    ("amount", pl.Decimal(10, 2)),
    ("amount", pl.Decimal(38, 2)),
    ("age", pl.Int8),
    ("age", pl.UInt8),
    ("age", pl.UInt64),
    ("age", pl.Int128),
    ("age", pl.Decimal(20, 3)),
    ("since", pl.Datetime("ms")),
    ("since", pl.Datetime("ns")),
    ("since", pl.Datetime("us", "America/New_York")),
    ("born", pl.Int16),
    ("born", pl.UInt16),
    ("born", pl.Float32),
    ("born", pl.Decimal(8, 1)),
    ("country", pl.Categorical),
    ("country", pl.Enum(["FR", "DE", "NL", "?"])),
    ("tier", pl.Categorical),
    ("tier", pl.Enum(["plain", "gold", "zinc"])),
    *((name, pl.Null) for name in ("amount", "age", "since", "born", "country", "tier", "online")),
]


def good_types(rng: Rng) -> Case:
    name, dtype = GOOD_TYPES[rng.integers(len(GOOD_TYPES))]
    frame = table(ROWS, rng)
    if dtype == pl.Null:
        return _parquet(f"{name} is null", frame.with_columns(pl.lit(None).alias(name)), SCORED)
    return _parquet(f"{name} as {dtype}", frame.cast({name: dtype}), SCORED)


def _nested(name: str) -> list[pl.Expr]:
    value = pl.col(name)
    return [
        pl.concat_list(value).alias(name),
        pl.struct(value).alias(name),
        pl.concat_list(value).list.to_array(1).alias(name),
        pl.concat_list(pl.struct(pl.concat_list(value))).alias(name),
    ]


FLAT: dict[str, Any] = {
    "text": pl.lit("7"),
    "empty text": pl.lit(""),
    "binary": pl.lit(b"\xff\x00"),
    "duration": pl.lit(timedelta(days=3)),
    "time": pl.lit(datetime(2024, 1, 1, 7, 8)).dt.time(),
    "date": pl.lit(date(2024, 1, 1)),
    "zoned": pl.lit(datetime(2024, 1, 1)).dt.replace_time_zone("Asia/Kathmandu"),
    "boolean": pl.lit(True),
    "number": pl.lit(1.5),
    "decimal": pl.lit(1).cast(pl.Decimal(10, 2)),
    "categories": pl.lit("7").cast(pl.Categorical),
}
FITTING = {
    "string": {"text", "empty text", "categories"},
    "number": {"number", "decimal"},
    "integer": {"number", "decimal"},
    "year": {"number", "decimal"},
    "boolean": {"boolean"},
    "date": {"date", "zoned"},
    "datetime": {"date", "zoned"},
}


def wrong_types(rng: Rng) -> Case:
    columns = [column for column in schema().columns if column.name != "note"]
    column = columns[rng.integers(len(columns))]
    frame = table(ROWS, rng)
    if rng.random() < 0.4:
        forms = _nested(column.name)
        return _parquet(f"{column.name} nested", frame.with_columns(forms[rng.integers(4)]), OTHER)
    kinds = [kind for kind in FLAT if kind not in FITTING[column.type]]
    kind = kinds[rng.integers(len(kinds))]
    made = frame.with_columns(FLAT[kind].alias(column.name))
    return _parquet(f"{column.name} is {kind}", made, OTHER)


def wrong_columns(rng: Rng) -> Case:
    frame = table(ROWS, rng)
    names = [name for name in frame.columns if name not in ("note",)]
    name = names[rng.integers(len(names))]
    changes: list[tuple[str, Frame]] = [
        ("missing", frame.drop(name)),
        ("renamed", frame.rename({name: f"{name} "})),
        ("upper case", frame.rename({name: name.upper()})),
        ("two swapped", frame.rename({"amount": "country", "country": "amount"})),
        ("extra", frame.with_columns(pl.lit(1).alias(f"{name}\n\x1b[31m"))),
        ("name of a megabyte", frame.with_columns(pl.lit(1).alias("n" * HUGE))),
        ("empty name", frame.with_columns(pl.lit(1).alias(""))),
        ("reserved", frame.with_columns(pl.lit(1).alias("_row"))),
        ("pattern", frame.with_columns(pl.lit(1).alias("^.*$"))),
        ("no columns", pl.DataFrame()),
        ("no rows", frame.clear()),
        ("other table", pl.DataFrame({"x": [1], "y": ["a"]})),
    ]
    kind, made = changes[rng.integers(len(changes))]
    return _parquet(f"columns: {kind} {name}", made, OTHER, UNREADABLE)


def double_columns(rng: Rng) -> Case:
    """Two columns of one name, which polars would not write."""
    rows = table(ROWS, rng).to_arrow()
    at = int(rng.integers(rows.num_columns))
    arrays = [*rows.columns, rows.column(at)]
    names = [*rows.column_names, rows.column_names[at]]
    double = pa.Table.from_arrays(arrays, names=names)
    return Case("double column", "data.parquet", lambda path: pq.write_table(double, path),
                frozenset([OTHER, UNREADABLE]))  # fmt: skip


def other_writer(rng: Rng) -> Case:
    """Sound files in the dress of another library."""
    rows = table(ROWS, rng).to_arrow().cast(pa.schema(_arrow_fields()))
    options: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "gzip", "data_page_version": "2.0"},
        {"compression": "brotli", "row_group_size": 5},
        {"compression": "lz4", "use_dictionary": False},
        {"version": "1.0", "flavor": "spark"},
        {"store_schema": False, "write_statistics": False},
        {"use_deprecated_int96_timestamps": True},
        {"write_page_checksum": True, "row_group_size": 1},
    ]
    chosen = options[rng.integers(len(options))]
    return Case(f"written with {chosen}", "data.parquet",
                lambda path: pq.write_table(rows, path, **chosen), frozenset([SCORED]))  # fmt: skip


def _arrow_fields() -> list[tuple[str, pa.DataType]]:
    kinds = {"id": pa.string(), "account": pa.int64(), "seen": pa.timestamp("us"),
             "amount": pa.float64(), "age": pa.int32(), "since": pa.date32(), "born": pa.int32(),
             "country": pa.string(), "tier": pa.string(), "online": pa.bool_(),
             "note": pa.string()}  # fmt: skip
    return list(kinds.items())


# ---- damaged files -----------------------------------------------------------------------------


def _bytes_case(kind: str, name: str, data: bytes, codes: Sequence[int], **more: Any) -> Case:
    return Case(kind, name, lambda path: path.write_bytes(data), frozenset(codes), **more)


def _whole(rng: Rng) -> bytes:
    file = io.BytesIO()
    table(ROWS, rng).write_parquet(file)
    return file.getvalue()


def truncated(rng: Rng) -> Case:
    data = _whole(rng)
    end = int(rng.integers(0, len(data)))
    return _bytes_case(f"truncated at {end}", "data.parquet", data[:end], [UNREADABLE])


def cut_out(rng: Rng) -> Case:
    data = _whole(rng)
    start = int(rng.integers(4, len(data) - 8))
    count = int(rng.integers(1, 200))
    gap = data[:start] + data[min(start + count, len(data) - 8) :]
    codes = [SCORED, OTHER, UNREADABLE]
    return _bytes_case(f"{count} bytes cut out at {start}", "data.parquet", gap, codes, bad=None)


def flipped(rng: Rng) -> Case:
    """A flipped bit of a value cannot be noticed: then there is a score for every row."""
    data = bytearray(_whole(rng))
    for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
        data[at] ^= 1 << int(rng.integers(8))
    codes = [SCORED, OTHER, UNREADABLE]
    return _bytes_case("bits flipped", "data.parquet", bytes(data), codes, bad=None)


def overwritten(rng: Rng) -> Case:
    data = bytearray(_whole(rng))
    start, count = int(rng.integers(0, len(data))), int(rng.integers(8, 600))
    fill = (b"\x00", b"\xff", b"PAR1", rng.bytes(count))[rng.integers(4)]
    block = (fill * count)[: min(count, len(data) - start)]
    data[start : start + len(block)] = block
    codes = [SCORED, OTHER, UNREADABLE]
    return _bytes_case("overwritten", "data.parquet", bytes(data), codes, bad=None)


def no_table(rng: Rng) -> Case:
    contents = [
        b"",
        b"PAR1",
        b"PAR1PAR1",
        b"PAR1\x00\x00\x00\x00PAR1",
        b"PAR1\xff\xff\xff\x7fPAR1",
        b"PAR1" + b"\x15" * 50 + b"\x32\x00\x00\x00PAR1",
        b"PARE" + rng.bytes(300) + b"PARE",
        b"PAR1" + rng.bytes(300) + b"PAR1",
        rng.bytes(500),
        b"\x1f\x8b\x08" + rng.bytes(100),
        b"PK\x03\x04" + rng.bytes(100),
        b"id,account\n1,2\n",
        b"ARROW1\x00\x00" + rng.bytes(100),
    ]
    data = contents[rng.integers(len(contents))]
    return _bytes_case("no Parquet", "data.parquet", data, [UNREADABLE])


def no_file(rng: Rng) -> Case:
    def nothing(path: Path) -> None:
        pass

    def to_itself(path: Path) -> None:
        path.symlink_to(path.name)

    def to_nowhere(path: Path) -> None:
        path.symlink_to(path.with_name("nowhere"))

    def as_text(path: Path) -> None:
        path.write_text("id\n1\n")

    def folder_within(path: Path) -> None:
        (path / "inner.parquet").mkdir(parents=True)

    def text_folder_within(path: Path) -> None:
        (path / "inner.csv").mkdir(parents=True)

    ways: list[tuple[str, Write]] = [
        ("none.parquet", nothing),
        ("none.csv", nothing),
        ("z*.parquet", nothing),
        ("[.parquet", nothing),
        (f"{'n' * 300}.parquet", nothing),
        (f"{'n' * 300}.csv", nothing),
        ("loop.parquet", to_itself),
        ("loop.csv", to_itself),
        ("link.parquet", to_nowhere),
        ("folder.parquet", Path.mkdir),
        ("folder.csv", Path.mkdir),
        ("folder", Path.mkdir),
        ("within", folder_within),
        ("text_within", text_folder_within),
        ("table.txt", as_text),
        ("table", as_text),
    ]
    name, write = ways[rng.integers(len(ways))]
    return Case(f"no file: {name[:20]}", name, write, frozenset([UNREADABLE]))


# ---- CSV ---------------------------------------------------------------------------------------


def _text(rng: Rng) -> list[list[str]]:
    """A header, and the rows of a table, as lists of fields."""
    frame = table(ROWS, rng)
    rows = [[_field(value) for value in row] for row in frame.rows()]
    return [frame.columns, *rows]


def _field(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value).lower() if isinstance(
        value, bool) else str(value)  # fmt: skip


def _joined(lines: Sequence[Sequence[str]], **form: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, **{"lineterminator": "\n", **form}).writerows(lines)
    return out.getvalue().encode("utf-8", "surrogateescape")


def _csv(kind: str, data: bytes, *codes: int, **more: Any) -> Case:
    return _bytes_case(f"CSV: {kind}", "data.csv", data, codes, **more)


def csv_forms(rng: Rng) -> Case:
    """Other ways to write the same."""
    lines = _text(rng)
    plain = _joined(lines)
    forms = {
        "plain": plain,
        "CRLF": _joined(lines, lineterminator="\r\n"),
        "all quoted": _joined(lines, quoting=csv.QUOTE_ALL),
        "BOM": b"\xef\xbb\xbf" + plain,
        "no last line end": plain.rstrip(b"\n"),
        "reversed columns": _joined([line[::-1] for line in lines]),
    }
    kind = list(forms)[rng.integers(len(forms))]
    return _csv(kind, forms[kind], SCORED)


UNREAD: list[tuple[str, str]] = [
    ("amount", "seven"),
    ("amount", "1,5"),
    ("amount", "0x10"),
    ("amount", "1e999"),
    ("amount", "--1"),
    ("amount", "5 %"),
    ("amount", "\x00"),
    ("amount", "9" * 400),
    ("amount", "a" * HUGE),
    ("amount", "inf"),
    ("age", "12.5"),
    ("age", "NULL"),
    ("age", "1_000"),
    ("account", ""),
    ("account", "  "),
    ("account", "NaN"),
    ("account", "n/a"),
    ("id", ""),
    ("seen", "yesterday"),
    ("seen", "2024-02-30"),
    ("seen", "2024-13-01T00:00:00"),
    ("seen", "01.02.2024"),
    ("seen", "2024-01-01T25:00:00"),
    ("seen", ""),
    ("since", "0000-00-00"),
    ("since", "99999999-01-01"),
    ("since", "1/1/24"),
    ("born", "2024-01-01"),
    ("born", "99999999999999999999"),
    ("born", "500000"),
    ("born", "1e300"),
    ("tier", "zinc"),
    ("tier", "gold "),
    ("online", "yes"),
    ("online", "2"),
    ("online", "wahr"),
]
READ: list[tuple[str, str]] = [
    ("amount", ""),
    ("amount", " 7 "),
    ("amount", "1e1"),
    ("amount", "+5"),
    ("amount", "nan"),
    ("age", "12.0"),
    ("age", "-0"),
    ("since", "1969-12-31"),
    ("since", "2300-01-01"),
    ("since", ""),
    ("seen", "2024-01-01"),
    ("seen", "2024-01-01 10:11:12"),
    ("seen", "2024-01-01T10:11:12.123456"),
    ("seen", "2024-01-01T10:11:12+02:00"),
    ("seen", "2024-01-01T10:11:12Z"),
    ("online", "TRUE"),
    ("online", "0"),
    ("online", ""),
    ("country", "a,b"),
    ("country", 'say "hi"'),
    ("country", "two\nlines"),
    ("country", "x" * HUGE),
    ("country", "\x00"),
    ("country", "\u2028"),
    ("note", "\ufeff"),
    ("tier", ""),
    ("born", "1984.0"),
]


def csv_values(rng: Rng) -> Case:
    is_bad = bool(rng.random() < 0.6)
    name, value = (UNREAD if is_bad else READ)[rng.integers(len(UNREAD if is_bad else READ))]
    lines, rows = _text(rng), _some(rng)
    for row in rows:
        lines[row + 1][lines[0].index(name)] = value
    bad = frozenset(rows if is_bad else [])
    return _csv(f"{name}: {value[:20]!r}", _joined(lines), SCORED, bad=bad)


def csv_encodings(rng: Rng) -> Case:
    lines = _text(rng)
    for line in lines[1:]:
        line[-1] = "déjà vu"
    data = _joined(lines)
    text = data.decode()
    encodings = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "cp037"]
    encoding = encodings[rng.integers(len(encodings))]
    return _csv(encoding, text.encode(encoding), OTHER, UNREADABLE)


def csv_bad_bytes(rng: Rng) -> Case:
    """A byte that UTF-8 does not know, in a column that is read."""
    lines = _text(rng)
    places = [i for i, name in enumerate(lines[0]) if name in ("id", "country", "tier")]
    row, column = int(rng.integers(1, ROWS + 1)), int(rng.choice(places))
    lines[row][column] = "\udcff" + lines[row][column]
    return _csv("no UTF-8", _joined(lines), UNREADABLE)


def csv_shapes(rng: Rng) -> Case:
    lines = _text(rng)
    at = int(rng.integers(1, ROWS + 1))
    plain = _joined(lines)
    forms: dict[str, tuple[bytes, list[int], dict[str, Any]]] = {}

    def add(kind: str, data: bytes, *codes: int, **more: Any) -> None:
        forms[kind] = (data, list(codes), more)

    for separator in ";\t|":
        add(f"separator {separator!r}", _joined(lines, delimiter=separator), OTHER)
    add("no header", _joined(lines[1:]), OTHER)
    add("header only", _joined(lines[:1]), OTHER)
    add("CR only", _joined(lines, lineterminator="\r"), OTHER, UNREADABLE)
    add("double header", _joined([lines[0], *lines]), SCORED, rows=ROWS + 1, bad=frozenset([0]))
    add("one field more", _joined([*lines[:at], [*lines[at], "7"], *lines[at + 1 :]]), UNREADABLE)
    add("one field less", _joined([*lines[:at], lines[at][:-1], *lines[at + 1 :]]), UNREADABLE)
    add("half a line", _joined(lines)[: -len(",".join(lines[-1])) // 2], UNREADABLE)
    add("double column", _joined([[*line, line[0]] for line in lines]), OTHER)
    add("extra column", _joined([[*line, "1"] for line in lines]).replace(b",1\n", b",x\n", 1),
        OTHER)  # fmt: skip
    add("missing column", _joined([line[:3] + line[4:] for line in lines]), OTHER)
    add("title above", b"Scores of May\n" + plain, OTHER, UNREADABLE)
    add("quote never closed", plain.replace(b"\nc5,", b'\n"c5,', 1), UNREADABLE)
    add("quote within", plain.replace(b"\nc5,", b'\nc"5,', 1).replace(b"\nc9,", b'\nc"9,', 1),
        UNREADABLE)  # fmt: skip
    add("after quote", plain.replace(b"\nc5,", b'\n"c5"x,', 1), UNREADABLE)
    blank = [*lines[:at], [], *lines[at:]]
    add("blank line", _joined(blank), SCORED, UNREADABLE, rows=ROWS + 1, bad=frozenset([at - 1]))
    add("blank at end", plain + b"\n", SCORED, UNREADABLE, rows=ROWS + 1, bad=frozenset([ROWS]))
    add("blank first", b"\n" + plain, SCORED, OTHER, UNREADABLE)
    add("only blank", b"\n\n\n", OTHER, UNREADABLE)
    add("only NUL", b"\x00" * 100, OTHER, UNREADABLE)
    add("empty", b"", UNREADABLE)
    add("noise", rng.bytes(400), OTHER, UNREADABLE)
    add("Parquet in a CSV", _whole(rng), OTHER, UNREADABLE)
    add("a line of a megabyte", plain + b"x" * HUGE + b"\n", UNREADABLE)
    kind = list(forms)[rng.integers(len(forms))]
    data, codes, more = forms[kind]
    return _csv(kind, data, *codes, **more)


WAYS: list[Callable[[Rng], Case]] = [
    bad_values,
    odd_values,
    far_dates,
    good_types,
    wrong_types,
    wrong_columns,
    double_columns,
    other_writer,
    truncated,
    cut_out,
    flipped,
    overwritten,
    no_table,
    no_file,
    csv_forms,
    csv_values,
    csv_values,
    csv_encodings,
    csv_bad_bytes,
    csv_shapes,
]
