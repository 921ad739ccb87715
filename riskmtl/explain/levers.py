"""What one column of a row can change to, what that costs, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import Column
from riskmtl.encoding import FIRST_KNOWN, EncodedColumn
from riskmtl.frames import category_text

# Values tried per numeric column, besides the ends of its range.
_QUANTILES = 16
# Digits of a change that are told, fewest first; each is tried rounded to the nearest and outwards.
_DIGITS = (3, 5)
WAYS = 2 * len(_DIGITS) + 1
# Of the distance over the range, in shares of background rows.
_DISTANCE_COST = 1e-3

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CategoryLever:
    """A category or boolean that can change; values are codes, held as float64."""

    name: str
    now: float
    tried: Values
    words: pl.Series

    def cost(self, codes: Values) -> Values:
        """What changes to some codes cost."""
        return np.asarray(codes != self.now, dtype=np.float64)

    def between(self, far: Values, share: Values) -> Values:
        """Nothing lies between two categories."""
        return far

    def ways(self, codes: Values) -> list[Values]:
        """Ways to write codes down: they have no digits."""
        return [codes] * WAYS

    def raw(self, codes: Values, dtype: pl.DataType) -> pl.Series:
        """Codes as the raw frame holds them; null where its type cannot."""
        texts = self.words.gather(codes.astype(np.int64)).alias(self.name)
        return texts == "true" if dtype == pl.Boolean else texts.cast(dtype, strict=False)


@dataclass(frozen=True, slots=True, eq=False)
class NumberLever:
    """
    A number that can change; values are float32, held as float64.

    ``known`` are the background's values in order. From ``low`` to ``high`` it takes any value, or
    any whole one, or those ``listed``.
    """

    name: str
    now: float
    tried: Values
    known: Values
    low: float
    high: float
    is_whole: bool
    listed: Values | None

    def cost(self, values: Values) -> Values:
        """What changes to some values cost."""
        shares = np.abs(self._shares(values) - self._shares(np.array([self.now])))
        ends = np.concatenate([self.known, self.tried, [self.now]])
        return np.asarray(shares + _DISTANCE_COST * np.abs(values - self.now) / np.ptp(ends))

    def _shares(self, values: Values) -> Values:
        below = np.searchsorted(self.known, values, side="left")
        not_above = np.searchsorted(self.known, values, side="right")
        return np.asarray((below + not_above) / (2 * max(1, len(self.known))))

    def between(self, far: Values, share: Values) -> Values:
        """Values that keep a share of the way to others; whole numbers are rounded outwards."""
        if self.listed is not None:
            return far
        near = self.now + share * (far - self.now)
        if self.is_whole:
            near = np.where(far > self.now, np.ceil(near), np.floor(near))
        near = np.clip(near, self.low, self.high).astype(np.float32)
        return np.where(share == 1, far, near)

    def ways(self, values: Values) -> list[Values]:
        """Ways to write values down, the shortest first and the last as they are."""
        if self.listed is not None:
            nearest = np.abs(values[:, None] - self.listed).argmin(1)
            return [self.listed[nearest]] * WAYS
        exact = _decimals(values)
        if self.is_whole:
            return [np.clip(exact, self.low, self.high)] * WAYS
        rounded = [way for digits in _DIGITS for way in _rounded(exact, self.now, digits)]
        return [np.clip(way, self.low, self.high) for way in (*rounded, exact)]

    def raw(self, values: Values, dtype: pl.DataType) -> pl.Series:
        """Values as the raw frame holds them; null where its type cannot."""
        return pl.Series(self.name, values).cast(dtype, strict=False)


def _decimals(values: Values) -> Values:
    """The shortest decimals that are the same in float32: 0.3, not 0.30000001192."""
    return values.astype(np.float32).astype(str).astype(np.float64)


def _rounded(values: Values, now: float, digits: int) -> list[Values]:
    """Round values to some digits of their distance: to the nearest, and away from ``now``."""
    distance = np.abs(values - now)
    places = digits - 1 - np.floor(np.log10(np.where(distance > 0, distance, 1)))
    scale = 10.0 ** np.abs(places)
    # Rounded first: a decimal times a power of ten may miss its whole number.
    steps = np.round(np.where(places > 0, values * scale, values / scale), 6)
    outwards = np.where(values > now, np.ceil(steps), np.floor(steps))
    # Plus nothing, which turns a negative zero round.
    return [
        np.where(places > 0, whole / scale, whole * scale) + 0.0
        for whole in (np.rint(steps), outwards)
    ]


def make_lever(
    column: EncodedColumn,
    declared: Column | None,
    dtype: pl.DataType,
    now: float,
    background: NDArray[np.float32],
    direction: str,
) -> CategoryLever | NumberLever:
    """What one column can change to."""
    enum = None if declared is None else declared.enum
    if column.vocabulary is not None:
        return _category(column.name, now, column.vocabulary, enum)
    if dtype == pl.Boolean:
        words = pl.Series(["false", "true"])
        return CategoryLever(column.name, now, np.array([1 - now]), words)
    known = np.sort(background[~np.isnan(background)]).astype(np.float64)
    low, high = _range(declared, known, now, direction)
    is_whole = dtype.is_integer() or (declared is not None and declared.type == "integer")
    if is_whole:
        low, high = float(np.ceil(low)), float(np.floor(high))
    listed = None
    if enum is not None:
        listed = np.array([float(value) for value in enum if low <= value <= high])
    tried = _numbers_to_try(known, low, high, is_whole) if listed is None else listed
    tried = np.unique(tried.astype(np.float32)).astype(np.float64)
    return NumberLever(column.name, now, tried[tried != now], known, low, high, is_whole, listed)


def _category(
    name: str, now: float, vocabulary: Sequence[str], enum: Sequence[Any] | None
) -> CategoryLever:
    """Take the values known from training; with an enum, those of it."""
    words = pl.Series([*[""] * FIRST_KNOWN, *vocabulary], dtype=pl.String)
    tried = np.arange(FIRST_KNOWN, len(words))
    if enum is not None:
        is_allowed = words.is_in(category_text(pl.Series(list(enum), strict=False)).implode())
        tried = tried[is_allowed.to_numpy()[FIRST_KNOWN:]]
    return CategoryLever(name, now, tried[tried != now].astype(np.float64), words)


def _range(
    declared: Column | None, known: Values, now: float, direction: str
) -> tuple[float, float]:
    """From where to where a number may go."""
    low, high = _decimals(known[[0, -1]]) if len(known) else (now, now)
    if declared is not None and declared.minimum is not None:
        low = declared.minimum
    if declared is not None and declared.maximum is not None:
        high = declared.maximum
    low = max(low, now) if direction == "up" else low
    high = min(high, now) if direction == "down" else high
    return float(low), float(high)


def _numbers_to_try(known: Values, low: float, high: float, is_whole: bool) -> Values:
    """Quantiles of the background within a range, and its ends; or all, if they are few."""
    if not low <= high:
        return np.empty(0)
    if is_whole and high - low < _QUANTILES:
        return np.arange(low, high + 1)
    within = known[(known >= low) & (known <= high)]
    if len(within) == 0:
        return np.array([low, high])
    places = np.linspace(0, len(within) - 1, _QUANTILES).round().astype(np.int64)
    tried = np.concatenate([within[places], [low, high]])
    return np.rint(tried) if is_whole else tried
