"""Labels: read alike in every form that users hold them, refused in words where they are wrong."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from riskmtl.labels import TaskLabels, encode_labels, read_labels

NAN = float("nan")

# What is given, the name of its task, its classes. All say: no, yes, not observed.
ONE_COLUMN = {
    "list of ints": ([0, 1, None], "y", (0, 1)),
    "list of floats": ([0.0, 1.0, NAN], "y", (0, 1)),
    "list of text": (["no", "yes", None], "y", ("no", "yes")),
    "list of booleans": ([False, True, None], "y", (False, True)),
    "list of other numbers": ([-1, 1, None], "y", (-1, 1)),
    "tuple": ((0, 1, None), "y", (0, 1)),
    "array of floats": (np.array([0.0, 1.0, NAN]), "y", (0, 1)),
    "array of float32": (np.array([0.0, 1.0, NAN], dtype=np.float32), "y", (0, 1)),
    "array of objects": (np.array(["no", "yes", None], dtype=object), "y", ("no", "yes")),
    "array of numpy objects": (np.array([np.int64(0), 1, None], dtype=object), "y", (0, 1)),
    "array of pandas objects": (np.array([0, 1, pd.NA], dtype=object), "y", (0, 1)),
    "polars": (pl.Series("fraud", [0, 1, None]), "fraud", (0, 1)),
    "polars, unnamed": (pl.Series([0, 1, None]), "y", (0, 1)),
    "polars, NaN": (pl.Series("fraud", [0.0, 1.0, NAN]), "fraud", (0, 1)),
    "polars, text": (pl.Series("fraud", ["no", "yes", None]), "fraud", ("no", "yes")),
    "polars, categories": (
        pl.Series("fraud", ["no", "yes", None], dtype=pl.Categorical),
        "fraud",
        ("no", "yes"),
    ),
    "polars, booleans": (pl.Series("fraud", [False, True, None]), "fraud", (False, True)),
    "pandas": (pd.Series([0, 1, None], name="fraud"), "fraud", (0, 1)),
    "pandas, unnamed": (pd.Series([0.0, 1.0, NAN]), "y", (0, 1)),
    "pandas, text": (pd.Series(["no", "yes", None], name="fraud"), "fraud", ("no", "yes")),
    "pandas, nullable": (pd.Series([0, 1, None], dtype="Int64", name="fraud"), "fraud", (0, 1)),
    "pandas, boolean": (
        pd.Series([False, True, None], dtype="boolean", name="fraud"),
        "fraud",
        (False, True),
    ),
    "pandas, categories": (
        pd.Series(["no", "yes", None], dtype="category", name="fraud"),
        "fraud",
        ("no", "yes"),
    ),
    "pandas, objects": (
        pd.Series([False, True, None], dtype=object, name="fraud"),
        "fraud",
        (False, True),
    ),
    "moments": (
        pl.Series("fraud", [dt.date(2024, 1, 1), dt.date(2024, 1, 2), None]),
        "fraud",
        (dt.date(2024, 1, 1), dt.date(2024, 1, 2)),
    ),
}


@pytest.mark.parametrize(("given", "name", "classes"), ONE_COLUMN.values(), ids=ONE_COLUMN)
def test_one_column_is_read_alike_in_every_form(given, name, classes):
    labels = read_labels(given)
    assert labels.tasks == (TaskLabels(name, "binary", classes),)
    assert labels.values.dtype == np.float64
    assert_array_equal(labels.values, [[0.0], [1.0], [NAN]])
    assert labels.is_single
    assert_array_equal(encode_labels(given, labels.tasks), labels.values)


@pytest.mark.parametrize(
    "given",
    [
        np.array([0, 1]),
        np.array([False, True]),
        np.array(["a", "b"]),
        pa.chunked_array([["a", "b"]]),
        pd.Index([0, 1]),
    ],
    ids=["int64", "bool", "text", "Arrow", "pandas index"],
)
def test_one_column_without_gaps(given):
    labels = read_labels(given)
    assert labels.is_single
    assert labels.values.tolist() == [[0.0], [1.0]]


COLUMNS = {"default": [0, 1, None], "fraud": ["no", None, "yes"]}
TWO_COLUMNS = {
    "polars": pl.DataFrame(COLUMNS),
    "lazy": pl.LazyFrame(COLUMNS),
    "pandas": pd.DataFrame(COLUMNS),
    "pandas, nullable": pd.DataFrame(
        {"default": pd.array([0, 1, None], dtype="Int64"), "fraud": COLUMNS["fraud"]}
    ),
    "Arrow": pa.table(COLUMNS),
}


@pytest.mark.parametrize("given", TWO_COLUMNS.values(), ids=TWO_COLUMNS)
def test_a_frame_names_its_tasks(given):
    labels = read_labels(given)
    assert labels.tasks == (
        TaskLabels("default", "binary", (0, 1)),
        TaskLabels("fraud", "binary", ("no", "yes")),
    )
    assert not labels.is_single
    assert_array_equal(labels.values, [[0.0, 0.0], [1.0, NAN], [NAN, 1.0]])


@pytest.mark.parametrize(
    "given",
    [
        [[0, 1], [1, None], [None, 0]],
        np.array([[0, 1], [1, NAN], [NAN, 0]]),
        np.asfortranarray([[0, 1], [1, NAN], [NAN, 0]]),
        np.array([[0, 1], [1, None], [None, 0]], dtype=object),
    ],
    ids=["lists", "array", "array by columns", "objects"],
)
def test_rows_of_labels_have_a_task_a_column(given):
    labels = read_labels(given)
    assert [task.name for task in labels.tasks] == ["task_0", "task_1"]
    assert not labels.is_single
    assert_array_equal(labels.values, [[0.0, 1.0], [1.0, NAN], [NAN, 0.0]])


def test_as_many_rows_as_tasks_are_still_rows():
    square = np.asfortranarray([[0.0, 1.0], [0.0, NAN]])
    tasks = read_labels([[0, 0], [1, 1]]).tasks
    assert_array_equal(encode_labels(square, tasks), [[0.0, 1.0], [0.0, NAN]])


def test_one_task_in_two_dimensions_is_not_single():
    labels = read_labels([[0], [1]])
    assert not labels.is_single
    assert labels.values.tolist() == [[0.0], [1.0]]


def test_the_greater_value_is_the_positive_class():
    assert read_labels([7, 3, 7]).values.ravel().tolist() == [1.0, 0.0, 1.0]
    assert read_labels(["b", "a"]).values.ravel().tolist() == [1.0, 0.0]
    assert read_labels([True, False]).values.ravel().tolist() == [1.0, 0.0]


def test_a_regression_keeps_its_numbers():
    given = pl.DataFrame({"loss": [0.5, None, -2.0, NAN], "fraud": [0, 1, 0, 1]})
    labels = read_labels(given, regression=["loss"])
    assert labels.tasks[0] == TaskLabels("loss", "regression", ())
    assert_array_equal(labels.values[:, 0], [0.5, NAN, -2.0, NAN])
    assert labels.values[:, 1].tolist() == [0.0, 1.0, 0.0, 1.0]
    again = encode_labels(pl.DataFrame({"fraud": [1], "loss": [9]}), labels.tasks)
    assert again.tolist() == [[9.0, 1.0]]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.sampled_from([None, 0, 1]), min_size=2, max_size=12).filter(
        lambda v: {0, 1} <= set(v)
    ),
    classes=st.sampled_from([(0, 1), (False, True), ("no", "yes"), (-1.5, 2.0)]),
)
def test_labels_are_the_positions_of_their_classes(values, classes):
    spelled = [None if v is None else classes[v] for v in values]
    expected = np.array([NAN if v is None else v for v in values])
    for held in (spelled, pl.Series(spelled), pd.Series(spelled, dtype=object)):
        labels = read_labels(held)
        assert labels.tasks[0].classes == classes
        assert_array_equal(labels.values.ravel(), expected)
        only = [v for v in spelled if v != classes[1]]
        encoded = encode_labels(pl.Series(only, dtype=pl.Series(spelled).dtype), labels.tasks)
        assert np.nansum(encoded) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 1, None], r"task 'y' has only one class among its observed labels \(1"),
        (["no", "no"], r"task 'y' has only one class among its observed labels \('no'\)"),
        ([None, None], "task 'y' has no observed label: leave the task out"),
        ([NAN, NAN], "task 'y' has no observed label"),
        ([], "task 'y' has no observed label"),
        ([0, 1, 2], "multiclass. Label 'y' holds 3 values, among them 0, 1 and 2"),
        (["a", "b", "c"], "Label 'y' holds 3 values, among them 'a', 'b' and 'c'"),
        ([0.1, 0.2, 0.3], "continuous. Label 'y' holds 3 values"),
        ([0, np.inf], "label 'y' holds infinity: correct it, or set it to null"),
        ([0, 1, -np.inf], "label 'y' holds infinity"),
        (pl.DataFrame({"a": [0, 1], "b": [1, 1]}), "task 'b' has only one class"),
        (pl.DataFrame({"a": [0, 1], "b": [None, None]}), "task 'b' has no observed label"),
        (np.zeros((2, 2, 2)), "labels must have one or two dimensions, got 3"),
        (1, "labels must have one or two dimensions, got 0"),
        ([1j, 0], "Complex data not supported"),
    ],
)
def test_labels_that_cannot_be_learned_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        read_labels(given)


@pytest.mark.parametrize(
    ("given", "regression", "message"),
    [
        ([0.5, 1.5], ["loss"], "regression_tasks: unknown task 'loss': valid are y"),
        (["a", "b"], ["y"], "label 'y' of a regression task is not a number"),
        ([1.0, 1.0, None], ["y"], "task 'y' has fewer than two observed values"),
        ([1.0, np.inf], ["y"], "label 'y' holds infinity"),
    ],
)
def test_a_regression_that_cannot_be_learned_is_an_error(given, regression, message):
    with pytest.raises(ValueError, match=message):
        read_labels(given, regression=regression)


# --- Labels of other rows -------------------------------------------------------------------------


def test_columns_are_taken_by_the_names_of_the_tasks():
    tasks = read_labels(TWO_COLUMNS["polars"]).tasks
    given = pl.DataFrame({"fraud": ["yes"], "other": [3], "default": [1.0]})
    assert encode_labels(given, tasks).tolist() == [[1.0, 1.0]]
    assert encode_labels(given.to_pandas(), tasks).tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="labels of task 'default' are missing"):
        encode_labels(given.drop("default"), tasks)
    with pytest.raises(ValueError, match=r"labels have 3 column\(s\), the model has 2 task"):
        encode_labels([[0, 1, 0]], tasks)
    with pytest.raises(ValueError, match=r"labels have 1 column\(s\), the model has 2 task"):
        encode_labels([0, 1, 0], tasks)


@pytest.mark.parametrize(
    ("learned", "given", "expected"),
    [
        ([0, 1], [0.0, 1.0, NAN], [0.0, 1.0, NAN]),
        ([0, 1], [1, 1], [1.0, 1.0]),
        ([0.0, 1.0], [0, 1], [0.0, 1.0]),
        ([False, True], [0, 1], [0.0, 1.0]),
        ([0, 1], [None, None], [NAN, NAN]),
        ([0, 1], [NAN, NAN], [NAN, NAN]),
        (["a", "b"], pl.Series(["b", None], dtype=pl.Categorical), [1.0, NAN]),
        (["a", "b"], [None, None], [NAN, NAN]),
        (["a", "b"], pl.Series([None, None]), [NAN, NAN]),
        ([False, True], [None, None], [NAN, NAN]),
    ],
    ids=lambda value: str(list(value)),
)
def test_labels_are_read_with_the_classes_of_training(learned, given, expected):
    encoded = encode_labels(given, read_labels(learned).tasks)
    assert_array_equal(encoded.ravel(), expected)


@pytest.mark.parametrize(
    ("learned", "given", "message"),
    [
        ([0, 1], [0, 2], "label 'y' holds 2, which is neither 0 nor 1"),
        ([0, 1], [0, np.inf], "label 'y' holds infinity"),
        (["a", "b"], ["a", "c"], "label 'y' holds 'c', which is neither 'a' nor 'b'"),
        (["a", "b"], pl.Series(["c"], dtype=pl.Categorical), "label 'y' holds 'c'"),
        ([0, 1], ["0", "1"], "label 'y'"),
        (["a", "b"], [0, 1], "label 'y'"),
        (["a", "b"], [True, False], "label 'y'"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(list(value)),
)
def test_a_label_of_neither_class_is_an_error(learned, given, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(given, read_labels(learned).tasks)


def test_booleans_for_a_task_learned_on_numbers_are_read_or_named():
    tasks = read_labels([0, 1]).tasks
    try:
        encoded = encode_labels([True, False], tasks)
    except ValueError as error:
        assert "label 'y'" in str(error)  # noqa: PT017
    else:
        assert encoded.tolist() == [[1.0], [0.0]]


def test_text_for_a_regression_is_an_error():
    tasks = read_labels([0.5, 1.5], regression=["y"]).tasks
    with pytest.raises(ValueError, match="label 'y'"):
        encode_labels(["a"], tasks)
