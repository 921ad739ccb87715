"""Whatever table a user holds, the polars frame made of it holds the same."""

import datetime as dt
import decimal
import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from riskmtl.files import TableError, read_table
from riskmtl.frames import as_frame

DAY = dt.datetime(2024, 2, 29, 12)


def test_a_polars_frame_is_handed_on_as_it_is():
    frame = pl.DataFrame({"a": [1, None], "b": ["x", "y"]})
    assert as_frame(frame) is frame
    assert_frame_equal(as_frame(frame.lazy()), frame)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?"], ids=lambda d: np.dtype(d).name
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_keeps_its_values_and_takes_the_names_given(dtype, order):
    array = np.array([[0, 1], [1, 1], [0, 0]], dtype=dtype, order=order)
    frame = as_frame(array)
    assert frame.columns == ["x0", "x1"]
    assert frame.to_numpy().tolist() == array.tolist()
    assert as_frame(array, columns=["b", "a"])["b"].to_list() == array[:, 0].tolist()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (2, 3), (3, 2), (1, 3), (3, 1)], ids=str)
def test_a_row_stays_a_row_whatever_the_shape_and_the_layout(shape, order):
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape).copy(order=order)
    names = [f"c{i}" for i in range(shape[1])]
    assert as_frame(array).rows() == [tuple(row) for row in array.tolist()]
    assert as_frame(array, columns=names).rows() == [tuple(row) for row in array.tolist()]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), ()])
def test_an_array_must_have_rows_and_columns(shape):
    with pytest.raises(ValueError, match=rf"expected a 2-d array, got one of {len(shape)} dim"):
        as_frame(np.zeros(shape))


@pytest.mark.parametrize("dtype", [float, object])
@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_an_array_of_another_width_than_its_names_is_an_error(dtype, names):
    with pytest.raises(ValueError, match=r"\b2\b"):
        as_frame(np.ones((3, 2), dtype=dtype), columns=names)


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([1, 2.5, None], [1.0, 2.5, None], pl.Float64),
        ([1, None], [1.0, None], pl.Float64),
        ([1.0, float("nan")], [1.0, None], pl.Float64),
        (["a", None], ["a", None], pl.String),
        (["a", float("nan")], ["a", None], pl.String),
        ([True, None], [True, None], pl.Boolean),
        ([DAY, None], [DAY, None], pl.Datetime("us")),
        ([DAY.date(), None], [DAY.date(), None], pl.Date),
        (["a", 1, None], ["a", "1", None], pl.String),
        ([None, None], [None, None], pl.Float64),
        ([np.float64(1.0), np.float64("nan")], [1.0, None], pl.Float64),
        ([np.int64(1), 2, None], [1.0, 2.0, None], pl.Float64),
        ([np.float64(1.5), 2, None], [1.5, 2.0, None], pl.Float64),
        ([np.int64(1), 2.5], [1.0, 2.5], pl.Float64),
        ([1, pd.NA], [1.0, None], pl.Float64),
        (["a", pd.NA], ["a", None], pl.String),
    ],
    ids=str,
)
def test_objects_keep_their_common_type(values, expected, dtype):
    column = as_frame(np.array(values, dtype=object)[:, None])["x0"]
    assert column.dtype == dtype
    assert column.to_list() == expected


PANDAS = {
    "Int64": (pd.array([1, None], dtype="Int64"), [1.0, None]),
    "Float64": (pd.array([1.5, None], dtype="Float64"), [1.5, None]),
    "boolean": (pd.array([True, None], dtype="boolean"), [True, None]),
    "bool": (np.array([True, False]), [True, False]),
    "string": (pd.array(["a", None], dtype="string"), ["a", None]),
    "object": (np.array(["a", None], dtype=object), ["a", None]),
    "category of text": (pd.Categorical(["a", None]), ["a", None]),
    "category of flags": (pd.Categorical([True, None]), [True, None]),
    "Arrow integers": (pd.array([1, None], dtype="int64[pyarrow]"), [1.0, None]),
    "Arrow text": (pd.array(["1", None], dtype="string[pyarrow]"), ["1", None]),
    "moments": (pd.to_datetime([DAY, None]), [DAY, None]),
    "moments in a zone": (
        pd.to_datetime([DAY, None], utc=True),
        [DAY.replace(tzinfo=dt.UTC), None],
    ),
    "dates": (np.array([DAY.date(), None], dtype=object), [DAY.date(), None]),
    "decimals": (np.array([decimal.Decimal("1.5"), None], dtype=object), [1.5, None]),
    "int8": (np.array([1, -2], dtype="i1"), [1, -2]),
    "uint64": (np.array([1, 2**63], dtype="u8"), [1, 2**63]),
}


@pytest.mark.parametrize(("values", "expected"), PANDAS.values(), ids=PANDAS)
def test_a_pandas_column_of_any_type_keeps_its_values(values, expected):
    frame = as_frame(pd.DataFrame({"a": values}, index=[7, 3]))
    assert frame["a"].to_list() == expected


def test_a_pandas_frame_keeps_order_and_names():
    frame = as_frame(pd.DataFrame({"b": [1.5], 7: ["x"]}))
    assert frame.to_dict(as_series=False) == {"b": [1.5], "7": ["x"]}
    assert as_frame(pd.DataFrame(index=[1, 2])).width == 0


def test_pandas_names_that_clash_are_an_error_that_names_them():
    with pytest.raises(ValueError, match="'a'"):
        as_frame(pd.DataFrame([[1, 2]], columns=["a", "a"]))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, width=64),
            st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.none() | st.booleans(),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_pandas_and_arrow_give_what_polars_gives(values):
    types = {"number": pl.Float64, "text": pl.String, "flag": pl.Boolean}
    frame = pl.DataFrame(values, schema=types, orient="row")
    table = pa.table(
        {
            "number": pa.array([v[0] for v in values], pa.float64()),
            "text": pa.array([v[1] for v in values], pa.string()),
            "flag": pa.array([v[2] for v in values], pa.bool_()),
        }
    )
    assert_frame_equal(as_frame(table), frame)
    nullable = pd.DataFrame(
        {
            "number": pd.array([v[0] for v in values], dtype="Float64"),
            "text": pd.array([v[1] for v in values], dtype="string"),
            "flag": pd.array([v[2] for v in values], dtype="boolean"),
        }
    )
    # A column without any value has no type of its own in Python objects.
    known = [name for name in types if frame[name].null_count() < frame.height]
    assert_frame_equal(as_frame(nullable).select(known), frame.select(known))


def test_arrow_tables_batches_and_dictionaries_are_read():
    columns = {"a": pa.array([1, None]), "b": pa.array(["x", None]).dictionary_encode()}
    for held in (pa.table(columns), pa.record_batch(columns)):
        frame = as_frame(held)
        assert frame["a"].to_list() == [1, None]
        assert frame["b"].cast(pl.String).to_list() == ["x", None]


@pytest.mark.parametrize("data", [[[1, 2]], {"a": [1]}, "table.parquet", None, 3])
def test_anything_else_is_an_error_that_names_its_type(data):
    with pytest.raises(TypeError, match=f"a table of type {type(data).__name__} cannot be read"):
        as_frame(data)


# --- Files ----------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    pl.DataFrame({"a": range(1000), "b": ["x"] * 1000}).write_parquet(path)
    return path


def test_a_parquet_file_is_read(table: Path):
    frame = read_table(table)
    assert frame["a"].to_list() == list(range(1000))
    assert_frame_equal(read_table(str(table)), frame)


def test_a_name_with_signs_of_a_pattern_is_one_file(table: Path):
    odd = table.rename(table.with_name("t[1]*.parquet"))
    assert read_table(odd).height == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "the file is empty"),
        (lambda whole: whole[: len(whole) // 2], "damaged or truncated Parquet file"),
        (lambda whole: whole[:-1], "damaged or truncated Parquet file"),
        (lambda whole: whole[:4], "damaged or truncated Parquet file"),
        (
            lambda whole: whole[:20] + b"\xff" * 100 + whole[120:],
            "damaged or truncated Parquet file",
        ),
        (lambda whole: b"a,b\n1,x\n2,y\n", r"not a Parquet file \(it does not begin with PAR1\)"),
        (lambda whole: b"P", "not a Parquet file"),
    ],
    ids=["empty", "half", "a byte short", "magic only", "damaged", "CSV renamed", "one byte"],
)
def test_a_bad_file_is_named_in_one_sentence(table: Path, content, message):
    table.write_bytes(content(table.read_bytes()))
    with pytest.raises(TableError, match=re.escape(str(table)) + ": " + message) as raised:
        read_table(table)
    assert "\n" not in str(raised.value)


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"absent\.parquet: no such file"):
        read_table(tmp_path / "absent.parquet")
    with pytest.raises(TableError, match=re.escape(str(tmp_path)) + ": is a folder"):
        read_table(tmp_path)
