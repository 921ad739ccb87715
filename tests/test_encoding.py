"""The encoder: one matrix from every kind of frame, codes that mean what they meant in training."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from polars.testing import assert_frame_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from riskmtl.encoding import EncodedColumn, FeatureEncoder

ROOT = Path(__file__).parents[1]

FRAME = pl.DataFrame(
    {
        "amount": [1.5, None, -2.0, 3.25],
        "count": [3, 1, None, 1],
        "country": ["FR", None, "DE", "FR"],
        "online": [True, None, False, False],
    }
)
MATRIX = np.array(
    [
        [1.5, 3.0, 3.0, 3.0],
        [np.nan, 1.0, 1.0, 1.0],
        [-2.0, np.nan, 2.0, 2.0],
        [3.25, 1.0, 3.0, 2.0],
    ],
    dtype=np.float32,
)


def _pandas(**types: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=types[name])
            for name, values in FRAME.to_dict(as_series=False).items()
        }
    )


FORMS = {
    "polars": FRAME,
    "polars, categories": FRAME.with_columns(pl.col("country").cast(pl.Categorical)),
    "polars, fixed categories": FRAME.with_columns(
        pl.col("country").cast(pl.Enum(["XX", "FR", "DE"]))
    ),
    "polars, small types": FRAME.cast({"amount": pl.Float32, "count": pl.Int8}),
    "polars, NaN": FRAME.with_columns(pl.col("amount").fill_null(float("nan"))),
    "lazy": FRAME.lazy(),
    "pandas": _pandas(amount="float64", count="float64", country="str", online="object"),
    "pandas, categories": _pandas(
        amount="float64", count="float64", country="category", online="category"
    ),
    "pandas, nullable": _pandas(
        amount="Float64", count="Int64", country="string", online="boolean"
    ),
    "pandas, objects": _pandas(amount="object", count="object", country="object", online="object"),
    "pandas, Arrow": _pandas(
        amount="float64[pyarrow]",
        count="int64[pyarrow]",
        country="string[pyarrow]",
        online="bool[pyarrow]",
    ),
    "Arrow": FRAME.to_arrow(),
    "Arrow, dictionary": FRAME.with_columns(pl.col("country").cast(pl.Categorical)).to_arrow(),
    "objects": np.array(FRAME.rows(), dtype=object),
}


@pytest.fixture(scope="module")
def encoder() -> FeatureEncoder:
    return FeatureEncoder().fit(FRAME)


@pytest.mark.parametrize("held", FORMS.values(), ids=FORMS)
def test_every_kind_of_frame_gives_the_same_matrix(held, encoder):
    encoded = encoder.transform(held)
    assert encoded.dtype == np.float32
    assert encoded.flags.c_contiguous
    assert_array_equal(encoded, MATRIX)


@pytest.mark.parametrize("held", FORMS.values(), ids=FORMS)
def test_every_kind_of_frame_teaches_the_same(held, encoder):
    learned = FeatureEncoder().fit(held)
    assert learned.n_features_in_ == 4
    assert learned.cardinalities_ == [0, 0, 4, 4]
    if not isinstance(held, np.ndarray):
        assert learned.columns_ == encoder.columns_
        assert_array_equal(learned.transform(FRAME), MATRIX)
        assert learned.get_feature_names_out().tolist() == FRAME.columns
    else:
        assert learned.get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3"]
    assert_array_equal(learned.transform(held), MATRIX)


def test_objects_with_the_missing_sign_of_pandas_give_the_same_matrix(encoder):
    held = FORMS["pandas, nullable"].to_numpy()
    assert_array_equal(encoder.transform(held), MATRIX)


def test_an_array_of_numbers_keeps_its_values():
    array = np.array([[1.5, np.nan], [2.5, 3.0]])
    for held in (array, np.asfortranarray(array), array.astype(np.float32)):
        assert_array_equal(FeatureEncoder().fit(held).transform(held), array)


@pytest.mark.parametrize(
    "held",
    [
        pl.DataFrame({"a": pl.Series(["x", "y"], dtype=pl.Categorical)}),
        pd.DataFrame({"a": pd.Categorical(["x", "y"])}),
        pd.DataFrame({"a": pd.Categorical([1, 2])}),
        pd.DataFrame({"a": pd.Categorical([1, 2]).rename_categories([1.5, 2.5])}),
    ],
    ids=["polars", "pandas text", "pandas integers", "pandas floats"],
)
def test_a_column_of_categories_is_a_category_whatever_its_categories_are(held):
    encoder = FeatureEncoder().fit(held)
    assert encoder.columns_[0].is_categorical
    assert_array_equal(encoder.transform(held), [[2], [3]])


# --- Codes ----------------------------------------------------------------------------------------


def test_unseen_is_0_missing_is_1_known_is_2_and_up_in_order():
    encoder = FeatureEncoder().fit(pl.DataFrame({"a": ["b", "a", None, "c", ""]}))
    assert encoder.columns_ == [EncodedColumn("a", ("", "a", "b", "c"))]
    encoded = encoder.transform(pl.DataFrame({"a": ["", "a", "b", "c", "d", None]}))
    assert encoded.ravel().tolist() == [2, 3, 4, 5, 0, 1]


def test_a_column_that_was_never_there_in_training_is_unseen_or_missing():
    nothing = pl.DataFrame({"a": [None, None]}, schema={"a": pl.String})
    encoder = FeatureEncoder().fit(nothing)
    assert encoder.cardinalities_ == [2]
    assert encoder.transform(pl.DataFrame({"a": ["x", None]})).ravel().tolist() == [0, 1]
    blank = FeatureEncoder().fit(pl.DataFrame({"a": [None, None]}))
    assert_array_equal(blank.transform(pl.DataFrame({"a": [1.0, None]})), [[1.0], [np.nan]])
    known = FeatureEncoder().fit(pl.DataFrame({"a": ["x", "y"]}))
    assert known.transform(pl.DataFrame({"a": [None, None]})).ravel().tolist() == [1, 1]


def test_rare_categories_share_code_0_with_those_never_seen():
    frame = pl.DataFrame({"a": ["x"] * 3 + ["y"] * 2 + ["z"] + [None]})
    codes = {
        floor: FeatureEncoder(min_count=floor).fit(frame).transform(frame).ravel().tolist()
        for floor in (1, 2, 3, 4)
    }
    assert codes[1] == [2, 2, 2, 3, 3, 4, 1]
    assert codes[2] == [2, 2, 2, 3, 3, 0, 1]
    assert codes[3] == [2, 2, 2, 0, 0, 0, 1]
    assert codes[4] == [0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("rows", "floor"), [(1_000, 1), (39_999, 1), (40_000, 2), (100_000, 5), (500_000, 10)]
)
def test_the_floor_grows_with_the_table(rows, floor):
    values = ["common"] * (rows - 2 * floor + 1) + ["enough"] * floor + ["rare"] * (floor - 1)
    encoder = FeatureEncoder().fit(pl.DataFrame({"a": values}))
    assert encoder.columns_[0].vocabulary == ("common", "enough")


@pytest.mark.parametrize("value", [0, -1, "none"])
def test_a_floor_that_means_nothing_is_an_error(value):
    with pytest.raises(ValueError, match="min_count must be 'auto' or at least 1, got"):
        FeatureEncoder(min_count=value).fit(FRAME)


def test_a_whole_number_has_one_code_in_integers_floats_and_text():
    integers = pl.DataFrame({"a": [10, 2, None]})
    encoder = FeatureEncoder(["a"]).fit(integers)
    expected = [2, 3, 1]
    for held in (
        integers,
        integers.cast(pl.Float64),
        integers.cast(pl.UInt8),
        integers.cast(pl.Float64).fill_null(float("nan")),
        integers.cast(pl.String),
        pd.DataFrame({"a": [10, 2, None]}),
        pd.DataFrame({"a": pd.array([10, 2, None], dtype="Int64")}),
    ):
        assert encoder.transform(held).ravel().tolist() == expected
        assert FeatureEncoder(["a"]).fit(held).transform(integers).ravel().tolist() == expected


@pytest.mark.parametrize("other", [2.5, 1e20, -1e300], ids=str)
def test_the_code_of_a_number_does_not_depend_on_the_rows_beside_it(other):
    beside = FeatureEncoder(["a"]).fit(pl.DataFrame({"a": [1.0, 2.0, other]}))
    alone = FeatureEncoder(["a"]).fit(pl.DataFrame({"a": [1.0, 2.0]}))
    rows = pl.DataFrame({"a": [1.0, other]})
    assert alone.transform(rows).ravel().tolist() == [2, 0]
    whole = beside.transform(rows)
    by_row = np.concatenate([beside.transform(rows[i : i + 1]) for i in range(2)])
    assert_array_equal(whole, by_row)
    assert (whole >= 2).all()
    assert beside.transform(pl.DataFrame({"a": [1]})).ravel().tolist() == [whole[0, 0]]


def test_infinity_is_no_category():
    frame = pl.DataFrame({"a": [1.0, float("inf")]})
    with pytest.raises(ValueError, match="column 'a' holds"):
        FeatureEncoder(["a"]).fit(frame)


def test_booleans_are_categories_unless_a_number_is_asked_for():
    frame = pl.DataFrame({"a": [True, False, None]})
    assert FeatureEncoder().fit(frame).transform(frame).ravel().tolist() == [3, 2, 1]
    as_number = FeatureEncoder([]).fit(frame)
    assert_array_equal(as_number.transform(frame), [[1.0], [0.0], [np.nan]])
    only_true = FeatureEncoder().fit(frame[:1])
    assert only_true.transform(frame).ravel().tolist() == [2, 0, 1]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.floats(-1e30, 1e30),
            st.none() | st.sampled_from(["a", "b", "c", ""]),
            st.none() | st.integers(-3, 3).map(lambda i: i / 2),
            st.none() | st.booleans(),
        ),
        min_size=2,
        max_size=15,
    ),
    data=st.data(),
)
def test_each_row_is_encoded_by_itself(rows, data):
    types = {"n": pl.Float64, "c": pl.String, "code": pl.Float64, "b": pl.Boolean}
    frame = pl.DataFrame(rows, schema=types, orient="row")
    seen = data.draw(st.integers(1, len(rows)))
    encoder = FeatureEncoder(["c", "code", "b"]).fit(frame[:seen])
    whole = encoder.transform(frame)
    order = data.draw(st.permutations(range(len(rows))))
    assert_array_equal(encoder.transform(frame[order]), whole[order])
    part = data.draw(st.integers(1, len(rows)))
    assert_array_equal(encoder.transform(frame[:part]), whole[:part])
    codes = whole[:seen, [1, 2, 3]]
    missing = frame[:seen].select("c", "code", "b").select(pl.all().is_null()).to_numpy()
    assert_array_equal(codes == 1, missing)
    assert (codes[~missing] >= 2).all()


# --- Columns --------------------------------------------------------------------------------------


def test_columns_are_taken_by_name(encoder):
    assert_array_equal(encoder.transform(FRAME.select(reversed(FRAME.columns))), MATRIX)


def test_rows_without_any_give_a_matrix_without_any(encoder):
    assert encoder.transform(FRAME.clear()).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("count"), "column 'count' is missing: the model was trained with it"),
        (lambda f: f.with_columns(y=1), "column 'y' was not there in training: drop it"),
        (lambda f: f.rename({"count": "Count"}), "column 'count' is missing"),
        (
            lambda f: f.with_columns(amount=pl.lit("much")),
            "column 'amount' is String, not a number",
        ),
        (lambda f: f.with_columns(amount=dt.date(2024, 1, 1)), "column 'amount' is Date, not a"),
        (lambda f: f.with_columns(country=pl.lit([1])), "column 'country' is List.* cannot be a"),
        (
            lambda f: f.with_columns(amount=pl.Series([1.0, 2.0, np.inf, 3.0])),
            "column 'amount' holds inf in row 2: infinity, or a value too large for float32",
        ),
        (
            lambda f: f.with_columns(amount=pl.Series([1.0, -np.inf, np.nan, 3.0])),
            "column 'amount' holds -inf in row 1",
        ),
        (
            lambda f: f.with_columns(amount=pl.Series([1.0, 2.0, 3.0, 1e39])),
            r"column 'amount' holds 1e\+39 in row 3",
        ),
    ],
)
def test_a_column_that_cannot_be_encoded_is_named(change, message, encoder):
    with pytest.raises(ValueError, match=message):
        encoder.transform(change(FRAME))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"a": [1.0, np.inf]}), "column 'a' holds inf in row 1"),
        (pl.DataFrame({"a": [dt.date(2024, 1, 1)]}), "column 'a' is Date.*use a schema for dates"),
        (pl.DataFrame({"a": [[1]]}), "column 'a' is List"),
    ],
)
def test_a_column_that_cannot_be_learned_is_named(frame, message):
    with pytest.raises(ValueError, match=message):
        FeatureEncoder().fit(frame)


@pytest.mark.parametrize("dtype", [float, object])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("rows", [2, 3])
def test_an_array_of_another_width_is_an_error(dtype, width, rows):
    encoder = FeatureEncoder().fit(np.ones((3, 2)))
    with pytest.raises(ValueError, match=rf"\b{width}\b"):
        encoder.transform(np.ones((rows, width), dtype=dtype))


@pytest.mark.parametrize(
    "given",
    [["count", "country"], [1, 2], [False, True, True, False], np.array([1, 2]), ("count", 2)],
    ids=str,
)
def test_categories_can_be_named_counted_or_masked(given):
    frame = FRAME.with_columns(pl.col("online").cast(pl.Int8))
    encoder = FeatureEncoder(given).fit(frame)
    assert [column.is_categorical for column in encoder.columns_] == [False, True, True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("auto", "unknown categorical_features 'auto'.*from_dtype"),
        (["contry"], "unknown column 'contry': did you mean 'country'"),
        ([4], "categorical_features: there is no column 4"),
        ([-1], "categorical_features: there is no column -1"),
        ([True, False], "categorical_features is a mask of 2 for 4 columns"),
        (["amount"], "column 'country' is String, not a number: name it in categorical_features"),
    ],
)
def test_categories_that_are_not_there_are_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        FeatureEncoder(given).fit(FRAME)


# --- As a transformer, and as plain values --------------------------------------------------------


def test_an_encoder_comes_back_from_json(encoder):
    again = FeatureEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again.columns_ == encoder.columns_
    assert again.to_dict() == encoder.to_dict()
    assert_array_equal(again.transform(FORMS["pandas"]), MATRIX)
    assert_array_equal(again.transform(FORMS["objects"]), MATRIX)
    assert again.get_feature_names_out().tolist() == FRAME.columns
    assert again.n_features_in_ == 4
    assert clone(again).fit(FRAME).columns_ == encoder.columns_


def test_scikit_learn_can_clone_and_configure_it(encoder):
    copy = clone(FeatureEncoder(["country", "online"], min_count=2))
    assert copy.get_params() == {"categorical_features": ["country", "online"], "min_count": 2}
    with pytest.raises(NotFittedError):
        copy.transform(FRAME)
    with pytest.raises(NotFittedError):
        copy.get_feature_names_out()
    assert not hasattr(clone(encoder), "columns_")


@pytest.mark.parametrize(
    ("container", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)]
)
def test_set_output_gives_named_columns(container, kind):
    encoder = FeatureEncoder().set_output(transform=container)
    encoded = encoder.fit_transform(FRAME)
    assert isinstance(encoded, kind)
    assert list(encoded.columns) == FRAME.columns
    assert_array_equal(encoded.to_numpy(), MATRIX)


def test_set_output_keeps_the_index_of_a_pandas_frame():
    held = FORMS["pandas"].set_index(pd.Index([5, 3, 8, 1]))
    encoded = FeatureEncoder().set_output(transform="pandas").fit_transform(held)
    assert encoded.index.tolist() == [5, 3, 8, 1]


# --- Simulated rows -------------------------------------------------------------------------------


def test_simulated_rows_can_be_encoded_and_hold_every_kind_of_value():
    frame = FRAME.with_columns(
        wide=pl.Series([-1e37, 1e37, 0.0, None]),
        code=pl.Series([1, 2, 2, None]),
        part=pl.Series([0.5, 1.5, 1.5, None]),
        blank=pl.lit(None),
    )
    encoder = FeatureEncoder(["country", "online", "code", "part"]).fit(frame)
    rows = encoder.simulate(2_000, seed=3)
    assert rows.columns == frame.columns
    encoded = encoder.transform(rows)
    assert encoded.shape == (2_000, 8)
    for position, column in enumerate(encoder.columns_):
        values = encoded[:, position]
        if column.is_categorical:
            assert set(values) == set(range(column.cardinality))
        else:
            known = values[~np.isnan(values)]
            assert known.min() >= np.float32(column.low)
            assert known.max() <= np.float32(column.high)
            assert np.isnan(values).any()
    assert_frame_equal(rows, encoder.simulate(2_000, seed=3))
    assert not rows.equals(encoder.simulate(2_000, seed=4))


# --- Size -----------------------------------------------------------------------------------------

MILLION = """
import resource
import polars as pl
from riskmtl.encoding import FeatureEncoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

frame = pl.select(pl.int_range(1_000_000).cast(pl.String).alias("a"))
FeatureEncoder().fit_transform(frame[:100])
before = peak()
encoder = FeatureEncoder(min_count=1).fit(frame)
encoded = encoder.transform(frame)
print(peak() - before, encoder.cardinalities_[0], encoded.min(), encoded.max())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_a_million_categories_take_under_300_mb():
    ran = subprocess.run(
        [sys.executable, "-c", MILLION], cwd=ROOT, capture_output=True, text=True, check=True
    )
    extra, cardinality, low, high = map(float, ran.stdout.split())
    assert (cardinality, low, high) == (1_000_002, 2, 1_000_001)
    assert extra / 1024 < 300
