"""
From a frame to one float32 matrix: one raw column is one encoded column.

The encoder only casts. A numeric column keeps its values, missing is NaN. A categorical column
becomes integer codes: 0 for a value never seen in training (or too rare there to be learned),
1 for missing, 2 and up for the values kept. Scaling, bins and embeddings belong to the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from riskmtl.columns import LARGEST
from riskmtl.errors import unknown_name
from riskmtl.frames import as_frame, category_text

UNSEEN = 0
MISSING = 1
FIRST_KNOWN = 2

# A code must survive the trip through float32.
_MOST_CODES = 2**24 - FIRST_KNOWN
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class EncodedColumn:
    """
    How one raw column is encoded.

    Parameters
    ----------
    name : str
    vocabulary : tuple of str or None
        Values of a categorical column in code order (the first has code 2); ``None``: numeric.
    low, high : float
        Range of a numeric column in training.
    """

    name: str
    vocabulary: tuple[str, ...] | None
    low: float = 0.0
    high: float = 0.0

    @property
    def is_categorical(self) -> bool:
        """Whether the column holds codes."""
        return self.vocabulary is not None

    @property
    def cardinality(self) -> int:
        """Number of codes, those for unseen and missing included; 0 for a numeric column."""
        return 0 if self.vocabulary is None else len(self.vocabulary) + FIRST_KNOWN


class FeatureEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """
    Encode a table as one float32 matrix with a column for each raw column.

    Parameters
    ----------
    categorical_features : "from_dtype", or sequence of str, int or bool
        Which columns are categories. ``"from_dtype"``: strings, categoricals and booleans.
    min_count : int or "auto"
        Categories with fewer training rows share code 0 with those never seen, so that the code
        for "never seen" is itself learned. ``"auto"``: one in 20,000 rows, from 1 to 10.

    Attributes
    ----------
    columns_ : list of EncodedColumn
    feature_names_in_ : ndarray of str
    n_features_in_ : int

    Examples
    --------
    >>> frame = pl.DataFrame({"amount": [10.0, None], "country": ["FR", "DE"]})
    >>> FeatureEncoder().fit(frame).transform(pl.DataFrame({"amount": [5.0, 1.0],
    ...                                                     "country": ["DE", "XX"]}))
    array([[5., 2.],
           [1., 0.]], dtype=float32)
    """

    columns_: list[EncodedColumn]

    def __init__(
        self,
        categorical_features: str | Sequence[str] | Sequence[int] | Sequence[bool] = "from_dtype",
        *,
        min_count: int | str = "auto",
    ) -> None:
        self.categorical_features = categorical_features
        self.min_count = min_count

    def fit(self, X: Any, y: Any = None) -> FeatureEncoder:
        """
        Learn the columns and the vocabulary of each category.

        Parameters
        ----------
        X : table
            See :func:`riskmtl.frames.as_frame`.
        y : ignored

        Returns
        -------
        FeatureEncoder

        Raises
        ------
        ValueError
            If a column has a type that cannot be encoded, holds infinity, or an option is unknown.
        """
        frame = as_frame(X)
        floor = self._floor(frame.height)
        categorical = _categorical_names(self.categorical_features, frame)
        self.columns_ = [
            _learn_categories(column, floor) if column.name in categorical else _learn_range(column)
            for column in frame
        ]
        self.feature_names_in_ = np.array(frame.columns, dtype=object)
        self.n_features_in_ = frame.width
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """
        Encode a table.

        Parameters
        ----------
        X : table with the columns seen in fit
            Columns are taken by name, in any order.

        Returns
        -------
        ndarray of float32, shape (rows, columns)
            In C order.

        Raises
        ------
        ValueError
            If a column is missing, is not known, has the wrong type or holds infinity.
        """
        check_is_fitted(self, "columns_")
        names = [column.name for column in self.columns_]
        frame = as_frame(X, columns=names if isinstance(X, np.ndarray) else None)
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing: the model was trained with it")
        extra = [name for name in frame.columns if name not in set(names)]
        if extra:
            raise ValueError(f"column {extra[0]!r} was not there in training: drop it")
        return _side_by_side(
            [
                _numbers(frame[column.name])
                if column.vocabulary is None
                else _codes(frame[column.name], column.vocabulary)
                for column in self.columns_
            ],
            frame.height,
        )

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the encoded columns: those of the raw ones."""
        check_is_fitted(self, "columns_")
        return self.feature_names_in_

    @property
    def cardinalities_(self) -> list[int]:
        """Number of codes per column; 0 for a numeric column."""
        return [column.cardinality for column in self.columns_]

    def simulate(self, rows: int, seed: int) -> pl.DataFrame:
        """
        Draw rows that look like nobody: each column by itself, flat over its range or vocabulary.

        Parameters
        ----------
        rows : int
        seed : int

        Returns
        -------
        polars.DataFrame
            With missing and unseen values among them.
        """
        rng = np.random.default_rng(seed)
        return pl.DataFrame([_simulated(column, rows, rng) for column in self.columns_])

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "categorical_features": [c.name for c in self.columns_ if c.is_categorical],
            "columns": [
                {"name": c.name, "vocabulary": c.vocabulary, "low": c.low, "high": c.high}
                for c in self.columns_
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureEncoder:
        """Build an encoder from what :meth:`to_dict` gave."""
        encoder = cls(values["categorical_features"])
        encoder.columns_ = [
            EncodedColumn(
                name=c["name"],
                vocabulary=None if c["vocabulary"] is None else tuple(c["vocabulary"]),
                low=c["low"],
                high=c["high"],
            )
            for c in values["columns"]
        ]
        encoder.feature_names_in_ = np.array([c.name for c in encoder.columns_], dtype=object)
        encoder.n_features_in_ = len(encoder.columns_)
        return encoder

    def _floor(self, rows: int) -> int:
        if self.min_count == "auto":
            return min(10, max(1, rows // 20_000))
        if isinstance(self.min_count, str) or self.min_count < 1:
            raise ValueError(f"min_count must be 'auto' or at least 1, got {self.min_count!r}")
        return self.min_count


def _side_by_side(columns: Sequence[NDArray[Any]], rows: int) -> NDArray[np.float32]:
    """Lay columns side by side, some rows at a time: a block stays in the cache."""
    encoded = np.empty((rows, len(columns)), dtype=np.float32)
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        for position, values in enumerate(columns):
            encoded[block, position] = values[block]
    return encoded


def _categorical_names(given: Any, frame: pl.DataFrame) -> set[str]:
    """Names of the categorical columns, from names, positions, a mask, or the types."""
    if isinstance(given, str):
        if given != "from_dtype":
            raise ValueError(unknown_name("categorical_features", given, ["from_dtype"]))
        return {name for name, dtype in frame.schema.items() if _is_category(dtype)}
    if not isinstance(given, (Sequence, np.ndarray, set)):
        raise ValueError(f"categorical_features must be a list of columns, got {given!r}")
    items = list(given)
    if items and all(isinstance(item, (bool, np.bool_)) for item in items):
        if len(items) != frame.width:
            raise ValueError(
                f"categorical_features is a mask of {len(items)} for {frame.width} columns"
            )
        return {name for name, chosen in zip(frame.columns, items, strict=True) if chosen}
    names = set()
    for item in items:
        if isinstance(item, (int, np.integer)):
            if not 0 <= item < frame.width:
                raise ValueError(f"categorical_features: there is no column {item}")
            names.add(frame.columns[item])
        elif item in frame.columns:
            names.add(item)
        else:
            raise ValueError("categorical_features: " + unknown_name("column", item, frame.columns))
    return names


def _is_category(dtype: pl.DataType) -> bool:
    return dtype == pl.Boolean or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))


def _learn_categories(values: pl.Series, floor: int) -> EncodedColumn:
    text = category_text(values).alias("value").drop_nulls()
    kept = text.value_counts().filter(pl.col("count") >= floor)["value"].sort()
    if len(kept) > _MOST_CODES:
        raise ValueError(
            f"column {values.name!r} has {len(kept):,} frequent values: a column of keys cannot "
            "be a category, give it role key or ignored"
        )
    return EncodedColumn(values.name, tuple(kept.to_list()))


def _learn_range(values: pl.Series) -> EncodedColumn:
    numbers = _numbers(values)
    seen = numbers[~np.isnan(numbers)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    return EncodedColumn(values.name, None, low, high)


def _codes(values: pl.Series, vocabulary: Sequence[str]) -> NDArray[np.uint32]:
    labels = category_text(values)
    known = labels.cast(pl.Enum(vocabulary), strict=False).to_physical().cast(pl.UInt32)
    codes = (known + FIRST_KNOWN).fill_null(UNSEEN)
    missing = labels.is_null()
    if missing.any():
        codes = codes.set(missing, MISSING)
    return codes.to_numpy()


def _numbers(values: pl.Series) -> NDArray[np.float32]:
    dtype = values.dtype
    if dtype == pl.Null:
        return np.full(len(values), np.nan, dtype=np.float32)
    if not (dtype.is_numeric() or dtype == pl.Boolean):
        remedy = (
            "name it in categorical_features"
            if _is_category(dtype)
            else "turn it into a number, or use a schema for dates"
        )
        raise ValueError(f"column {values.name!r} is {dtype}, not a number: {remedy}")
    numbers = values.cast(pl.Float32).to_numpy()
    if (numbers > LARGEST).any() or (numbers < -LARGEST).any():
        row = int(np.flatnonzero(np.abs(numbers) > LARGEST)[0])
        raise ValueError(
            f"column {values.name!r} holds {values[row]} in row {row}: infinity, or a value too "
            "large for float32, cannot be encoded; correct it or set it to missing"
        )
    return numbers


def _simulated(column: EncodedColumn, rows: int, rng: np.random.Generator) -> pl.Series:
    missing = rng.random(rows) < 0.1
    if column.vocabulary is None:
        numbers = rng.uniform(column.low, column.high, rows).astype(np.float32)
        return pl.Series(column.name, np.where(missing, np.nan, numbers))
    choices = [*column.vocabulary, "a value never seen"]
    picked = pl.Series(column.name, choices, dtype=pl.String).gather(
        rng.integers(len(choices), size=rows)
    )
    return picked.set(pl.Series(missing), None)
