"""A schema: which rows it refuses, what the model sees, which labels count, how it splits."""

import datetime as dt
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from reference import schema as reference

from riskmtl.files import read_table
from riskmtl.schema import Column, DataError, DataSchema, Part, Split, SplitRule, Task
from riskmtl.schema_file import load_schema

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RISKMTL_DATA") or ROOT.parent / "shared" / "data")

SCHEMA = DataSchema(
    name="cards",
    columns=(
        Column("id", "integer", "key"),
        Column("day", "date", "time"),
        Column("opened", "date", "numeric"),
        Column(
            "amount",
            "number",
            "numeric",
            required=True,
            minimum=0,
            maximum=100,
            missing_values=(-9.0, 50.0),
        ),
        Column("age", "integer", "numeric", minimum=18, enum=(17, 18, 30), missing_values=(0,)),
        Column("country", "string", "categorical", enum=("FR", "DE"), missing_values=("?",)),
        Column("online", "boolean", "categorical", enum=(True,)),
        Column("year", "year", "categorical", maximum=2024),
        Column("weight", "number", "weight"),
        Column("approved", "boolean", "ignored"),
    ),
    tasks=(
        Task(
            "default",
            "bad",
            positive=("late", "lost"),
            negative=("paid",),
            where={"approved": (True,), "country": ("FR", "DE")},
            maturity_days=30,
        ),
        Task("fraud", "is_fraud"),
    ),
    as_of=dt.datetime(2024, 3, 1),
)
TYPES = {
    "id": pl.Int64,
    "day": pl.Date,
    "opened": pl.Date,
    "amount": pl.Float64,
    "age": pl.Int64,
    "country": pl.String,
    "online": pl.Boolean,
    "year": pl.Int32,
    "weight": pl.Float64,
    "approved": pl.Boolean,
    "bad": pl.String,
    "is_fraud": pl.Int8,
}
GOOD_ROW: dict[str, Any] = {
    "id": 1,
    "day": dt.date(2024, 1, 15),
    "opened": dt.date(2024, 1, 5),
    "amount": 10.0,
    "age": 30,
    "country": "FR",
    "online": True,
    "year": 2020,
    "weight": 1.0,
    "approved": True,
    "bad": "paid",
    "is_fraud": 0,
}

_days = st.dates(dt.date(2024, 1, 25), dt.date(2024, 2, 5))
_values = {
    "id": st.sampled_from([1, 2, None]),
    "day": st.none() | _days,
    "opened": st.none() | _days,
    "amount": st.sampled_from(
        [0.0, -0.5, 100.0, 100.5, 1e38, -1e38, -9.0, 50.0, np.inf, -np.inf, None]
    ),
    "age": st.sampled_from([17, 18, 19, 30, 0, None]),
    "country": st.sampled_from(["FR", "DE", "ES", "?", "", None]),
    "online": st.sampled_from([True, False, None]),
    "year": st.sampled_from([2024, 2025, None]),
    "weight": st.sampled_from([0.0, 1.0, -1.0, np.inf, None]),
    "approved": st.sampled_from([True, False, None]),
    "bad": st.sampled_from(["late", "lost", "paid", None]),
    "is_fraud": st.sampled_from([0, 1, None]),
}
# Most values are good, so that later rules are reached and good rows occur.
rows = st.lists(
    st.fixed_dictionaries(
        {
            name: st.integers(0, 9).flatmap(
                lambda pick, name=name, drawn=drawn: drawn if pick == 0 else st.just(GOOD_ROW[name])
            )
            for name, drawn in _values.items()
        }
    ),
    min_size=1,
    max_size=12,
)
wild_rows = st.lists(st.fixed_dictionaries(_values), min_size=1, max_size=8)


def frame_of(values: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(values, schema=TYPES)


# --- Checking -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(values=rows | wild_rows)
def test_the_rows_refused_are_those_a_row_by_row_reading_refuses(values):
    frame = frame_of(values)
    expected = [reference.first_refusal(SCHEMA, row) for row in values]
    good, quarantine = SCHEMA.check(frame)
    refused = [i for i, rule in enumerate(expected) if rule is not None]
    assert quarantine["_row"].to_list() == refused
    assert quarantine["_rule"].to_list() == [expected[i] for i in refused]
    assert_frame_equal(quarantine.drop("_row", "_rule"), frame[refused])
    assert_frame_equal(good, frame[[i for i, rule in enumerate(expected) if rule is None]])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"id": None}, "id: missing"),
        ({"day": None}, "day: missing"),
        ({"amount": None}, "amount: missing"),
        ({"amount": -9.0}, "amount: missing"),
        ({"amount": np.inf}, "amount: infinite"),
        ({"amount": -0.01}, "amount: below 0"),
        ({"amount": 100.01}, "amount: above 100"),
        ({"age": 17}, "age: below 18"),
        ({"age": 19}, "age: not an allowed value"),
        ({"country": "ES"}, "country: not an allowed value"),
        ({"online": False}, "online: not an allowed value"),
        ({"year": 2025}, "year: above 2024"),
        ({"weight": -1.0}, "weight: negative weight"),
        ({"weight": None}, "weight: missing"),
        ({"amount": -1.0, "weight": -1.0, "id": None}, "id: missing"),
        ({"weight": -1.0, "amount": 101.0}, "amount: above 100"),
        ({"age": 0, "country": "?", "online": None, "year": None, "opened": None}, None),
        ({"amount": 0.0, "weight": 0.0, "age": 18}, None),
    ],
)
def test_the_first_rule_broken_is_named(changes, rule):
    checked = SCHEMA.check(frame_of([GOOD_ROW, {**GOOD_ROW, **changes}]))
    assert checked.refusals() == ({} if rule is None else {rule: 1})
    assert checked.good.height == (2 if rule is None else 1)


def test_refusals_are_counted_most_frequent_first():
    values = [GOOD_ROW, *[{**GOOD_ROW, "amount": -1.0}] * 2, *[{**GOOD_ROW, "age": 19}] * 3]
    refusals = SCHEMA.check(frame_of(values)).refusals()
    assert list(refusals.items()) == [("age: not an allowed value", 3), ("amount: below 0", 2)]


def test_a_table_without_rules_is_good():
    schema = DataSchema("s", (Column("a", "integer", "numeric"),), (Task("t", "y"),))
    frame = pl.DataFrame({"a": [1, None], "y": [0, 1]})
    good, quarantine = schema.check(frame)
    assert_frame_equal(good, frame)
    assert quarantine.columns == ["_row", "_rule", "a", "y"]
    assert quarantine.is_empty()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.clear(), "the table has no rows"),
        (lambda f: f.drop("amount"), "column 'amount' is missing from the table: schema 'cards'"),
        (lambda f: f.drop("amount", "age"), r"column 'amount' is missing .*\(and 1 more\)"),
        (lambda f: f.drop("bad"), "column 'bad' is missing"),
        (lambda f: f.drop("weight"), "column 'weight' is missing"),
        (lambda f: f.drop("approved"), "column 'approved' is missing"),
        (lambda f: f.with_columns(x=1), "column 'x' is not in schema 'cards': drop it, or declare"),
        (
            lambda f: f.with_columns(pl.col("amount").cast(pl.String)),
            "column 'amount' is String in the table, schema 'cards' says number: convert it",
        ),
        (lambda f: f.with_columns(country=1), "column 'country' is Int32 .* says string"),
        (lambda f: f.with_columns(online=1), "column 'online' is Int32 .* says boolean"),
        (lambda f: f.with_columns(day=pl.lit("2024")), "column 'day' is String .* says date"),
        (lambda f: f.with_columns(opened=20240101), "column 'opened' is Int32 .* says date"),
    ],
)
def test_a_table_of_another_shape_is_an_error_that_names_the_column(change, message):
    with pytest.raises(DataError, match=message):
        SCHEMA.check(change(frame_of([GOOD_ROW])))


def test_rows_to_be_scored_need_no_labels_weights_or_filters():
    unlabelled = frame_of([GOOD_ROW]).drop("bad", "is_fraud", "weight", "approved")
    assert SCHEMA.check(unlabelled, labelled=False).good.height == 1
    with pytest.raises(DataError, match="column 'day' is missing"):
        SCHEMA.check(unlabelled.drop("day"), labelled=False)


@pytest.mark.parametrize(
    "column",
    [
        Column("a", "number", "numeric", maximum=5),
        Column("a", "number", "numeric", minimum=0, maximum=5),
        Column("a", "number", "numeric", enum=(1.0, 2.0)),
    ],
    ids=["maximum", "both", "enum"],
)
def test_a_nan_is_missing_and_breaks_no_rule_of_values(column):
    schema = DataSchema("s", (column,), (Task("t", "y"),))
    frame = pl.DataFrame({"a": [1.0, float("nan"), None], "y": [0, 1, 0]})
    assert schema.check(frame).refusals() == {}


@pytest.mark.parametrize("role", ["numeric", "weight"])
def test_a_nan_is_missing_where_a_value_is_required(role):
    columns = (Column("a", "number", role, required=True), Column("b", "number", "numeric"))
    schema = DataSchema("s", columns, (Task("t", "y"),))
    frame = pl.DataFrame({"a": [1.0, float("nan")], "b": [1.0, 2.0], "y": [0, 1]})
    assert schema.check(frame).refusals() == {"a: missing": 1}


NUMBER_TYPES = [pl.Float64, pl.Float32, pl.Int64, pl.Int8, pl.Decimal(10, 2)]


@pytest.mark.parametrize("held", NUMBER_TYPES, ids=str)
@pytest.mark.parametrize("declared", ["number", "integer"])
@pytest.mark.parametrize("as_written", [int, float])
def test_codes_and_allowed_values_do_not_depend_on_how_a_number_is_held(held, declared, as_written):
    column = Column(
        "a",
        declared,
        "numeric",
        enum=tuple(map(as_written, (1, 2))),
        missing_values=tuple(map(as_written, (-9, -8))),
    )
    schema = DataSchema("s", (column,), (Task("t", "y"),))
    frame = pl.DataFrame({"a": pl.Series([1, -9, 3, None], dtype=held), "y": [0, 1, 0, 1]})
    assert schema.check(frame).quarantine["_row"].to_list() == [2]
    assert schema.inputs(frame)["a"].is_null().to_list() == [False, True, False, True]


def test_a_column_of_categories_is_checked_as_text():
    frame = frame_of([{**GOOD_ROW, "country": c} for c in ("FR", "?", "ES")])
    for dtype in (pl.Categorical, pl.Enum(["?", "ES", "FR"])):
        held = frame.with_columns(pl.col("country").cast(dtype))
        assert SCHEMA.check(held).quarantine["_row"].to_list() == [2]
        assert SCHEMA.inputs(held)["country"].to_list() == ["FR", None, "ES"]


def test_inputs_that_teach_nothing_are_refused():
    columns = tuple(Column(name, "number", "numeric", missing_values=(-9.0,)) for name in "ab")
    schema = DataSchema("s", columns, (Task("t", "y"),))
    varied = pl.DataFrame({"a": [1.0, 2.0], "b": [3.0, None]})
    schema.require_informative(varied)
    with pytest.raises(DataError, match="column 'b' is missing in every training row"):
        schema.require_informative(varied.with_columns(b=pl.Series([-9.0, None])))
    with pytest.raises(DataError, match="column 'a' holds one value in all training rows"):
        schema.require_informative(varied.with_columns(a=1.0))


# --- Inputs ---------------------------------------------------------------------------------------


def test_inputs_are_the_numeric_and_categorical_columns_in_order():
    values = SCHEMA.inputs(frame_of([GOOD_ROW]).select(reversed(TYPES)))
    assert values.columns == ["opened", "amount", "age", "country", "online", "year"]


def test_missing_codes_become_null_and_nothing_else_changes():
    values = SCHEMA.inputs(
        frame_of(
            [
                {**GOOD_ROW, "amount": -9.0, "age": 0, "country": "?"},
                {**GOOD_ROW, "amount": 50.0, "age": -9, "country": "??"},
                {**GOOD_ROW, "amount": -1.0, "age": None, "country": None},
            ]
        )
    )
    assert values["amount"].to_list() == [None, None, -1.0]
    assert values["age"].to_list() == [None, -9, None]
    assert values["country"].to_list() == [None, "??", None]


def test_a_date_input_is_the_days_before_the_time_of_the_row():
    columns = (
        Column("at", "datetime", "time"),
        Column("opened", "date", "numeric"),
        Column("login", "datetime", "numeric"),
        Column("born", "year", "numeric", missing_values=(0,)),
    )
    schema = DataSchema("s", columns, (Task("t", "y"),))
    frame = pl.DataFrame(
        {
            "at": [dt.datetime(2024, 1, 2, 12), dt.datetime(2024, 1, 2), dt.datetime(2023, 1, 2)],
            "opened": [dt.date(2024, 1, 1), None, dt.date(2023, 1, 12)],
            "login": [dt.datetime(2024, 1, 2, 6), dt.datetime(2024, 1, 2), None],
            "born": [2024, 2023, 0],
        }
    )
    values = schema.inputs(frame)
    assert values["opened"].to_list() == [1.5, None, -10.0]
    assert values["login"].to_list() == [0.25, 0.0, None]
    assert values["born"].to_list() == [1.5, 366.0, None]
    aware = frame.with_columns(pl.col("at", "login").dt.replace_time_zone("UTC"))
    assert_frame_equal(schema.inputs(aware), values)


def test_inputs_need_their_columns_in_their_types():
    frame = frame_of([GOOD_ROW])
    with pytest.raises(DataError, match="column 'age' is missing"):
        SCHEMA.inputs(frame.drop("age"))
    with pytest.raises(DataError, match=r"column 'age' is String in the table.* says integer"):
        SCHEMA.inputs(frame.with_columns(age=pl.lit("30")))
    dated = DataSchema("s", (Column("d", "date", "numeric"),), (Task("t", "y"),))
    with pytest.raises(DataError, match="column 'd' is a date input: give a column role time"):
        dated.inputs(pl.DataFrame({"d": [dt.date(2024, 1, 1)]}))


def test_a_date_input_without_the_time_of_the_row_names_the_time_column():
    with pytest.raises(DataError, match="column 'day'"):
        SCHEMA.inputs(frame_of([GOOD_ROW]).drop("day"))


def test_weights_keys_and_times():
    frame = frame_of([GOOD_ROW, {**GOOD_ROW, "id": 2, "weight": 2.5}])
    assert SCHEMA.weights(frame).tolist() == [1.0, 2.5]
    assert SCHEMA.keys(frame).to_dict(as_series=False) == {
        "id": [1, 2],
        "day": [dt.date(2024, 1, 15)] * 2,
    }
    assert SCHEMA.times(frame).to_list() == [dt.datetime(2024, 1, 15)] * 2
    assert SCHEMA.times(frame.drop("day")) is None
    assert DataSchema("s", (), ()).weights(frame) is None


# --- Labels ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(values=wild_rows)
def test_labels_are_those_of_a_row_by_row_reading(values):
    expected = {
        task.name: [
            reference.label(
                task,
                row,
                row["day"] and dt.datetime.combine(row["day"], dt.time()),
                SCHEMA.as_of,
            )
            for row in values
        ]
        for task in SCHEMA.tasks
    }
    assert SCHEMA.labels(frame_of(values)).to_dict(as_series=False) == expected


@settings(max_examples=40, deadline=None)
@given(values=wild_rows, data=st.data())
def test_a_label_behind_the_mask_never_matters(values, data):
    frame = frame_of(values)
    labels = SCHEMA.labels(frame)
    shuffled = data.draw(
        st.lists(
            st.sampled_from(["late", "lost", "paid", None]),
            min_size=len(values),
            max_size=len(values),
        )
    )
    hidden = labels["default"].is_null() & frame["bad"].is_not_null()
    other = pl.Series("bad", shuffled, dtype=pl.String)
    changed = frame.with_columns(pl.when(hidden).then(other).otherwise("bad").alias("bad"))
    assert_frame_equal(SCHEMA.labels(changed), labels)


def single(task: Task, *more: Column) -> DataSchema:
    return DataSchema("s", (Column("a", "number", "numeric"), *more), (task,))


def test_a_label_counts_from_the_day_its_window_closes():
    schema = single(Task("t", "y", maturity_days=30), Column("day", "datetime", "time"))
    closed = dt.datetime(2024, 1, 31)
    frame = pl.DataFrame(
        {
            "day": [
                closed - dt.timedelta(microseconds=1),
                closed,
                closed + dt.timedelta(microseconds=1),
            ],
            "y": [1, 1, 1],
        }
    )
    assert schema.labels(frame, as_of=dt.date(2024, 3, 1))["t"].to_list() == [1.0, 1.0, None]
    assert schema.labels(frame, as_of=dt.date(2024, 3, 2))["t"].to_list() == [1.0, 1.0, 1.0]
    with pytest.raises(DataError, match="task 't' has maturityDays: give asOf"):
        schema.labels(frame)


def test_the_day_given_goes_before_that_of_the_schema():
    frame = frame_of([{**GOOD_ROW, "day": dt.date(2024, 2, 10)}])
    assert SCHEMA.labels(frame)["default"].to_list() == [None]
    later = SCHEMA.labels(frame, as_of=dt.date(2024, 3, 11))
    assert later["default"].to_list() == [0.0]


@pytest.mark.parametrize(
    ("task", "values", "expected"),
    [
        (Task("t", "y"), [0, 1, None], [0.0, 1.0, None]),
        (Task("t", "y", positive=(0,)), [0, 1, None], [1.0, 0.0, None]),
        (Task("t", "y", positive=(2, 3)), [2, 3, 7, None], [1.0, 1.0, 0.0, None]),
        (Task("t", "y", positive=("a",)), ["a", "b", None], [1.0, 0.0, None]),
        (Task("t", "y", positive=("a",), negative_rest=True), ["a", "b", "c"], [1.0, 0.0, 0.0]),
        (Task("t", "y", positive=(1,), negative=(0, -1)), [1, 0, -1], [1.0, 0.0, 0.0]),
        (Task("t", "y", positive=(True,)), [True, False, None], [1.0, 0.0, None]),
        (Task("t", "y", positive=(1.0,)), [1.0, 0.0, float("nan")], [1.0, 0.0, None]),
        (Task("t", "y"), [0, 0], [0.0, 0.0]),
        (Task("t", "y"), [None, None], [None, None]),
        (
            Task("t", "y", kind="regression"),
            [1.5, -2.0, float("nan"), None],
            [1.5, -2.0, None, None],
        ),
        (Task("t", "y", kind="regression"), [3, None], [3.0, None]),
    ],
    ids=str,
)
def test_labels_in_every_spelling(task, values, expected):
    frame = pl.DataFrame({"a": 1.0, "y": pl.Series(values)})
    labels = single(task).labels(frame)
    assert labels.columns == ["t"]
    assert labels.dtypes == [pl.Float64]
    assert labels["t"].to_list() == expected


@pytest.mark.parametrize("held", [*NUMBER_TYPES, pl.UInt8], ids=str)
@pytest.mark.parametrize("positive", [1, 1.0])
def test_a_numeric_label_reads_the_same_however_it_is_held(held, positive):
    schema = single(Task("t", "y", positive=(positive,)))
    frame = pl.DataFrame({"y": pl.Series([1, 0, None], dtype=held)})
    assert schema.labels(frame)["t"].to_list() == [1.0, 0.0, None]


@pytest.mark.parametrize(
    "task",
    [Task("t", "y"), Task("t", "y", negative=(0,)), Task("t", "y", negative_rest=True)],
    ids=["one other", "named", "rest"],
)
@pytest.mark.parametrize("values", [[True, False], ["1", "0"]], ids=["booleans", "text"])
def test_a_label_of_another_type_than_its_positive_is_named_or_read(task, values):
    try:
        labels = single(task).labels(pl.DataFrame({"y": values}))
    except DataError as error:
        assert "label 'y'" in str(error)  # noqa: PT017
    else:
        assert labels["t"].to_list() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (Task("t", "y"), [0, 1, 2], "label 'y' of task 't' holds .*neither its positive value"),
        (Task("t", "y", negative=(0,)), [0, 1, 2], r"holds 2, which is neither .* \(1\) nor its n"),
        (Task("t", "y", negative=(0,)), [2, None], "holds 2"),
        (Task("t", "y", positive=("yes",)), ["yes", "no", "No"], "nor the only other value"),
        (Task("t", "y", kind="regression"), ["a", "b"], "label 'y' of task 't' is not a number"),
        (Task("t", "z"), [0, 1], "column 'z' is missing: task 't' needs it"),
        (Task("t", "y", where={"f": (1,)}), [0, 1], "column 'f' is missing: task 't' needs it"),
    ],
)
def test_a_label_that_cannot_be_read_is_an_error(task, values, message):
    with pytest.raises(DataError, match=message):
        single(task).labels(pl.DataFrame({"y": values}))


@pytest.mark.parametrize(
    ("type_", "values", "wanted"),
    [("boolean", [True, False], 1), ("string", ["1", "0"], 1), ("integer", [1.0, 0.0], 1)],
    ids=["boolean", "text", "float"],
)
def test_a_filter_of_another_type_than_its_column_is_named_or_read(type_, values, wanted):
    task = Task("t", "y", where={"approved": (wanted,)})
    schema = single(task, Column("approved", type_, "ignored"))
    frame = pl.DataFrame({"approved": values, "y": [1, 1]})
    try:
        labels = schema.labels(frame)
    except DataError as error:
        assert "'approved'" in str(error)  # noqa: PT017
        assert type_ != "integer", "a whole number is the same in a float column"
    else:
        assert labels["t"].to_list() == [1.0, None]


@pytest.mark.parametrize(
    "task",
    [
        Task("t", "y", negative_rest=True),
        Task("t", "y", negative=(0,)),
        Task("t", "y", kind="regression"),
    ],
    ids=["rest", "named", "regression"],
)
def test_a_missing_code_of_a_label_that_is_a_field_is_no_outcome(task):
    schema = single(task, Column("y", "integer", "ignored", missing_values=(-9,)))
    labels = schema.labels(pl.DataFrame({"a": [1.0] * 3, "y": [1, 0, -9]}))
    assert labels["t"].to_list() == [1.0, 0.0, None]


# --- Splits ---------------------------------------------------------------------------------------


def table(n: int = 200, start: dt.date = dt.date(2024, 1, 1)) -> pl.DataFrame:
    """One row a day, every fifth with an event, labels missing in every seventh, out of order."""
    frame = pl.DataFrame(
        {
            "a": np.arange(n, dtype=np.float64),
            "day": [start + dt.timedelta(days=i) for i in range(n)],
            "part": ["abc"[i % 3] for i in range(n)],
            "y": [None if i % 7 == 0 else int(i % 5 == 0) for i in range(n)],
        }
    )
    return frame.sample(fraction=1, shuffle=True, seed=1)


def split_by(**rule: Any) -> DataSchema:
    columns = (
        Column("a", "number", "numeric"),
        Column("day", "date", "time"),
        Column("part", "string", "ignored"),
    )
    return DataSchema("s", columns, (Task("t", "y"),), SplitRule(**rule))


def numbers(part: pl.DataFrame) -> set[int]:
    return set(part["a"].cast(pl.Int64).to_list())


def sizes(split: Split) -> tuple[int, ...]:
    return tuple(part.height for part in split)


RULES = {
    "none": {},
    "share": {"test": Part(share=0.25), "validation": Part(share=0.15)},
    "stratified": {"test": Part(share=0.25), "validation": Part(share=0.15), "stratify": "t"},
    "latest": {"test": Part(latest=0.25), "validation": Part(latest=0.15)},
    "from": {
        "test": Part(start=dt.datetime(2024, 6, 1)),
        "validation": Part(start=dt.datetime(2024, 5, 1)),
    },
    "values": {"test": Part(values=("a",)), "validation": Part(values=("b",)), "column": "part"},
    "values, then share": {
        "test": Part(values=("a",)),
        "validation": Part(share=0.2),
        "column": "part",
    },
    "from, then share": {
        "test": Part(start=dt.datetime(2024, 6, 1)),
        "validation": Part(share=0.1),
    },
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_parts_are_disjoint_and_leave_no_row_out(rule):
    frame = table()
    parts = split_by(**rule).split(frame)
    assert sum(sizes(parts)) == frame.height
    assert_frame_equal(pl.concat(parts).sort("a"), frame.sort("a"))
    for part in parts:
        kept = frame.filter(pl.col("a").is_in(part["a"].implode()))
        assert_frame_equal(part, kept)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(10, 300),
    test=st.floats(0.1, 0.5),
    validation=st.floats(0.1, 0.4),
    seed=st.integers(0, 1000),
    stratify=st.sampled_from([None, "t"]),
)
def test_a_share_is_of_all_rows_within_each_stratum(n, test, validation, seed, stratify):
    schema = split_by(
        test=Part(share=test), validation=Part(share=validation), seed=seed, stratify=stratify
    )
    frame = table(n)
    parts = schema.split(frame)
    strata = 1 if stratify is None else 3
    assert abs(parts.test.height - test * n) <= strata / 2 + 1e-9
    assert abs(parts.validation.height - validation * n) <= strata
    assert sum(sizes(parts)) == n
    if stratify is not None:
        for value in (0, 1, None):
            of_value = frame.filter(pl.col("y").eq_missing(value)).height
            in_test = parts.test.filter(pl.col("y").eq_missing(value)).height
            assert abs(in_test - test * of_value) <= 0.5 + 1e-9


def test_a_share_depends_on_the_seed_and_on_nothing_else():
    first = split_by(test=Part(share=0.3), seed=0).split(table())
    again = split_by(test=Part(share=0.3), seed=0).split(table())
    other = split_by(test=Part(share=0.3), seed=1).split(table())
    assert_frame_equal(first.test, again.test)
    assert numbers(first.test) != numbers(other.test)
    assert sizes(first) == sizes(other)


def test_rows_in_the_gap_before_the_test_belong_to_no_part():
    rule = {**RULES["from"], "gap_days": 7}
    train, validation, test = map(numbers, split_by(**rule).split(table()))
    start, gap = 152, 7  # 1 June is the 152nd day after 1 January of a leap year
    assert test == set(range(start, 200))
    assert validation == set(range(121, start - gap))
    assert train == set(range(121))


def test_the_latest_share_is_latest_and_keeps_its_gap():
    rule = {**RULES["latest"], "gap_days": 5}
    train, validation, test = map(numbers, split_by(**rule).split(table()))
    assert test == set(range(150, 200))
    assert validation == set(range(115, 145))
    assert train == set(range(115))


def test_rows_of_one_moment_are_not_torn_apart():
    frame = table().with_columns(day=pl.lit(dt.date(2024, 1, 1)) + pl.duration(days=pl.col("a")))
    weekly = frame.with_columns(pl.col("day").dt.truncate("1w").cast(pl.Date))
    train, _, test = split_by(test=Part(latest=0.25)).split(weekly)
    assert test.height >= 50
    assert train["day"].max() < test["day"].min()


def test_a_year_can_be_the_time_of_a_split():
    columns = (Column("a", "number", "numeric"), Column("year", "year", "time"))
    schema = DataSchema(
        "s", columns, (Task("t", "y"),), SplitRule(test=Part(start=dt.datetime(2023, 1, 1)))
    )
    frame = pl.DataFrame({"a": [1.0, 2.0, 3.0], "year": [2022, 2023, 2024], "y": [0, 1, 0]})
    assert schema.split(frame).test["a"].to_list() == [2.0, 3.0]


def test_values_of_a_column_choose_the_parts_and_null_is_none_of_them():
    frame = table().with_columns(
        part=pl.when(pl.col("a") < 10).then(None).otherwise(pl.col("part"))
    )
    train, validation, test = split_by(**RULES["values"]).split(frame)
    assert test["part"].unique().to_list() == ["a"]
    assert validation["part"].unique().to_list() == ["b"]
    assert set(train["part"].to_list()) == {"c", None}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"test": Part(start=dt.datetime(2030, 1, 1))},
            "the split of schema 's' leaves no test rows",
        ),
        ({"test": Part(start=dt.datetime(2020, 1, 1))}, "leaves no train rows"),
        (
            {"test": Part(values=("a", "b", "c")), "column": "part"},
            "leaves no train rows",
        ),
        ({"test": Part(share=0.6), "validation": Part(share=0.6)}, "leaves no train rows"),
        ({"test": Part(latest=0.6), "validation": Part(latest=0.6)}, "more latest rows than there"),
        (
            {**RULES["values"], "validation": Part(values=("z",))},
            "leaves no validation rows",
        ),
    ],
)
def test_a_part_without_rows_is_an_error(rule, message):
    with pytest.raises(DataError, match=message):
        split_by(**rule).split(table())


def test_columns_that_a_split_needs_are_named():
    with pytest.raises(DataError, match="split column 'part' is missing"):
        split_by(**RULES["values"]).split(table().drop("part"))
    with pytest.raises(DataError, match="schema 's' splits by time: the time column is missing"):
        split_by(**RULES["latest"]).split(table().drop("day"))


def test_split_values_of_another_type_than_their_column_are_named_or_read():
    frame = table().with_columns(part=pl.col("part").replace_strict({"a": "1", "b": "2", "c": "3"}))
    try:
        test = split_by(test=Part(values=(1,)), column="part").split(frame).test
    except DataError as error:
        assert "'part'" in str(error)  # noqa: PT017
    else:
        assert test["part"].unique().to_list() == ["1"]


# --- Identity -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    part=st.sampled_from(
        [None, Part(share=0.2), Part(values=("a", 1)), Part(start=dt.datetime(2024, 1, 1, 6))]
    ),
    enum=st.none() | st.lists(st.integers() | st.text() | st.booleans(), min_size=1).map(tuple),
    codes=st.lists(st.integers() | st.text(), max_size=3).map(tuple),
    where=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple), max_size=2),
    as_of=st.none() | st.datetimes(),
)
def test_a_schema_comes_back_from_plain_values(part, enum, codes, where, as_of):
    schema = DataSchema(
        "s",
        (Column("a", "string", "categorical", enum=enum, missing_values=codes),),
        (Task("t", "y", where=where, negative=(0,)), Task("u", "z", negative_rest=True)),
        SplitRule(test=part, gap_days=3, column="a", stratify="t", seed=4),
        as_of,
    )
    again = DataSchema.from_dict(schema.to_dict())
    assert again == schema
    assert again.hash == schema.hash


def test_a_direction_that_there_is_not_is_refused() -> None:
    column = Column("a", "number", "numeric", changeable="up")
    plain = DataSchema("s", (column,), (Task("t", "y"),)).to_dict()
    assert DataSchema.from_dict(plain).columns == (column,)
    plain["columns"][0]["changeable"] = "sideways"
    with pytest.raises(ValueError, match="'a' changes in an unknown direction"):
        DataSchema.from_dict(plain)


# --- The public tables ----------------------------------------------------------------------------

TABLES = {
    "card_transactions": (296_928, 143_756, 373_700),
    "give_me_some_credit": (90_000, 22_500, 37_500),
    "heloc": (6_275, 1_569, 2_615),
    "kdd09_churn_appetency_upselling": (30_000, 10_000, 10_000),
    "taiwan_default": (18_000, 4_500, 7_500),
    "vehicle_claims": (9_024, 2_313, 4_083),
}
RATES = {
    "card_transactions": (0.006, 0.0028),
    "give_me_some_credit": (0.067,),
    "heloc": (0.522,),
    "kdd09_churn_appetency_upselling": (0.073, 0.018, 0.074),
    "taiwan_default": (0.221,),
    "vehicle_claims": (0.060,),
}


def public(name: str) -> pl.DataFrame:
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the folder of public tables (RISKMTL_DATA)")
    return read_table(path)


@pytest.mark.parametrize("name", TABLES)
def test_a_public_table_keeps_its_schema_and_falls_into_its_parts(name):
    schema = load_schema(ROOT / "data_schemas" / f"{name}.yaml")
    frame = public(name)
    assert schema.check(frame).refusals() == {}
    assert sizes(schema.split(frame)) == TABLES[name]
    rates = schema.labels(frame).mean().row(0)
    assert rates == pytest.approx(RATES[name], abs=0.0006)
    schema.require_informative(frame)


def test_the_census_tables_keep_their_schema_and_fall_into_their_parts():
    schema = load_schema(ROOT / "data_schemas" / "census_income.yaml")
    train, test = public("census_income_train"), public("census_income_test")
    assert schema.check(train).refusals() == {}
    assert schema.check(test).refusals() == {}
    parts = schema.split(pl.concat([train, test], how="diagonal"))
    assert sizes(parts) == (199_523, 49_881, 49_881)
    rates = schema.labels(parts.train).mean().row(0)
    assert rates == pytest.approx((0.062, 0.148, 0.433), abs=0.0006)
    inputs = {column.name for column in schema.input_columns}
    assert not inputs & {"income", "education", "marital_stat", "instance_weight", "split"}
