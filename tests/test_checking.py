"""Rows written as text, as a CSV file gives them, and rows apart from those that break a rule."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riskmtl.columns import LARGEST, Column
from riskmtl.schema import DataSchema, Task

TASKS = (Task("fraud", label="is_fraud"),)
COLUMNS = (
    Column("id", "string", "key"),
    Column("seen", "datetime", "time"),
    Column("opened", "date", "numeric"),
    Column("amount", "number", "numeric", maximum=100),
    Column("age", "integer", "numeric"),
    Column("online", "boolean", "categorical"),
    Column("built", "year", "numeric"),
)
GOOD = {
    "id": "a",
    "seen": "2024-01-02T03:04:05",
    "opened": "2024-01-02",
    "amount": "5.5",
    "age": "30",
    "online": "true",
    "built": "1999",
}


def read(**changes: str | None) -> tuple[dict[str, object], str | None]:
    schema = DataSchema("text", COLUMNS, TASKS)
    frame = pl.DataFrame({**GOOD, **changes}, schema=dict.fromkeys(GOOD, pl.String))
    values, broken = schema.from_text(frame)
    return values.row(0, named=True), broken[0]


def test_values_get_the_types_of_the_schema() -> None:
    values, broken = read()
    assert broken is None
    assert values == {
        "id": "a",
        "seen": dt.datetime(2024, 1, 2, 3, 4, 5),
        "opened": dt.date(2024, 1, 2),
        "amount": 5.5,
        "age": 30,
        "online": True,
        "built": 1999,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("amount", "1e3", 1000.0),
        ("amount", " 7 ", 7.0),
        ("amount", "", None),
        ("amount", None, None),
        ("age", "30.0", 30),
        ("age", "9007199254740993", 9007199254740993),
        ("online", "FALSE", False),
        ("online", "1", True),
        ("seen", "2024-01-02", dt.datetime(2024, 1, 2)),
        ("seen", "2024-01-02 03:04:05.5", dt.datetime(2024, 1, 2, 3, 4, 5, 500_000)),
        ("seen", "2024-01-02T03:04:05+02:00", dt.datetime(2024, 1, 2, 1, 4, 5)),
        ("seen", "2024-01-02T03:04:05Z", dt.datetime(2024, 1, 2, 3, 4, 5)),
        ("opened", "2024-01-02T23:00:00", dt.date(2024, 1, 2)),
    ],
)
def test_forms_of_a_value(name: str, text: str | None, value: object) -> None:
    values, broken = read(**{name: text})
    assert (values[name], broken) == (value, None)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("amount", "1,5", "amount: no number"),
        ("amount", "much", "amount: no number"),
        ("age", "30.5", "age: no integer"),
        ("online", "yes", "online: no boolean"),
        ("seen", "02.01.2024", "seen: no datetime"),
        ("opened", "2024-13-01", "opened: no date"),
        ("built", "MCM", "built: no year"),
    ],
)
def test_what_cannot_be_read_is_a_broken_rule(name: str, text: str, rule: str) -> None:
    assert read(**{name: text})[1] == rule


def test_the_first_column_that_cannot_be_read_is_named() -> None:
    assert read(age="x", amount="y")[1] == "amount: no number"


def test_text_of_text_columns_alone_breaks_no_rule() -> None:
    """Each row has its answer, though no column can be unreadable."""
    columns = (Column("id", "string", "key"), Column("land", "string", "categorical", enum=("FR",)))
    schema = DataSchema("words", columns, TASKS)
    frame = pl.DataFrame({"id": ["a", "b", "c"], "land": ["FR", "DE", None]})
    values, broken = schema.from_text(frame)
    assert broken.to_list() == [None, None, None]
    good, quarantine = schema.check(values, labelled=False, broken=broken)
    assert good["id"].to_list() == ["a", "c"]
    assert quarantine["_rule"].to_list() == ["land: not an allowed value"]


def test_rows_broken_before_are_refused_first_by_that() -> None:
    schema = DataSchema("text", (COLUMNS[3],), TASKS)
    frame = pl.DataFrame({"amount": [5.0, 500.0, 500.0]})
    broken = pl.Series([None, "amount: no number", None], dtype=pl.String)
    good, quarantine = schema.check(frame, labelled=False, broken=broken)
    assert good.height == 1
    assert quarantine["_row"].to_list() == [1, 2]
    assert quarantine["_rule"].to_list() == ["amount: no number", "amount: above 100"]


NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([-1.0, 0.0])


@given(
    st.lists(NUMBERS, min_size=1, max_size=30),
    st.sampled_from(["numeric", "weight", "protected", "key"]),
    st.sampled_from([pl.Float32, pl.Float64]),
    st.sampled_from([(None, None), (-5.0, None), (None, 5.0), (0.1, 0.1)]),
)
@settings(max_examples=150, deadline=None)
def test_every_refused_row_has_a_rule_and_no_other_breaks_one(
    values: list[float | None],
    role: str,
    dtype: type[pl.DataType],
    ends: tuple[float | None, float | None],
) -> None:
    """What tells quickly that a row is refused agrees with what names the rule."""
    low, high = ends
    column = Column("x", "number", role, minimum=low, maximum=high)
    schema = DataSchema("one", (column, Column("y", "number", "numeric")), TASKS)
    frame = pl.DataFrame({"x": values}, schema={"x": dtype}).with_columns(y=pl.lit(1.0))
    good, quarantine = schema.check(frame, labelled=False)
    assert quarantine["_rule"].null_count() == 0
    kept = good["x"].fill_nan(None).drop_nulls().to_numpy()
    assert not np.isinf(kept).any()
    if low is not None:
        assert (kept >= kept.dtype.type(low)).all()
    if high is not None:
        assert (kept <= kept.dtype.type(high)).all()
    if role == "numeric":
        assert (np.abs(kept) <= LARGEST).all()
    if role in ("weight", "key"):
        assert good["x"].fill_nan(None).null_count() == 0
    if role == "weight":
        assert (kept >= 0).all()
