"""How a table falls into training, validation and test rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import DataError, among


@dataclass(frozen=True, slots=True)
class Part:
    """
    How one part of a split is chosen: exactly one of the four is set.

    Parameters
    ----------
    share : float, optional
        A random share of all rows.
    latest : float, optional
        The latest share of all rows by time.
    start : datetime, optional
        Rows at or after this moment.
    values : tuple, optional
        Rows whose split column holds one of these.
    """

    share: float | None = None
    latest: float | None = None
    start: datetime | None = None
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a table is split: the test part first, then the validation part of what remains."""

    test: Part | None = None
    validation: Part | None = None
    gap_days: int = 0
    column: str | None = None
    stratify: str | None = None
    seed: int = 0


class Split(NamedTuple):
    """The three parts of a table."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame


def split_table(
    frame: pl.DataFrame,
    rule: SplitRule,
    times: pl.Series | None,
    labels: pl.DataFrame | None,
    source: str,
) -> Split:
    """
    Split a table by a rule: the test part first, then the validation part of what remains.

    Parameters
    ----------
    frame : polars.DataFrame
    rule : SplitRule
    times : polars.Series, optional
        Moments of the rows, for ``start`` and ``latest``.
    labels : polars.DataFrame, optional
        With the column that `rule` stratifies by.
    source : str
        What error messages call the schema.

    Returns
    -------
    Split

    Raises
    ------
    DataError
        If a part that the rule defines is empty, or a column is missing.
    """
    rows = _Rows(frame, rule, times, labels, source)
    rest = np.ones(frame.height, dtype=bool)
    test = rows.part(rule.test, rest)
    gap = rows.gap_before(test) if rule.gap_days else np.zeros_like(rest)
    rest &= ~test & ~gap
    validation = rows.part(rule.validation, rest)
    rest &= ~validation
    for name, part, mask in (
        ("test", rule.test, test),
        ("validation", rule.validation, validation),
        ("train", True, rest),
    ):
        if part is not None and not mask.any():
            raise DataError(f"the split of schema {source!r} leaves no {name} rows")
    return Split(frame.filter(rest), frame.filter(validation), frame.filter(test))


_Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a table and all that a rule may look at."""

    frame: pl.DataFrame
    rule: SplitRule
    times: pl.Series | None
    labels: pl.DataFrame | None
    source: str

    def part(self, part: Part | None, rest: _Mask) -> _Mask:
        """Rows of a part among those that remain."""
        if part is None:
            return np.zeros(self.frame.height, dtype=bool)
        if part.values is not None:
            return self._with_values(part.values) & rest
        if part.share is not None:
            return self._random(part.share, rest)
        times = self._known_times()
        start = part.start or self._start_of_latest(times.filter(rest), part)
        return (times >= start).to_numpy() & rest

    def gap_before(self, test: _Mask) -> _Mask:
        """Rows within the gap before the first test row's day."""
        times = self._known_times()
        assert self.rule.test is not None
        start = self.rule.test.start or times.filter(test).min()
        assert isinstance(start, datetime)
        gap_start = start - timedelta(days=self.rule.gap_days)
        return ((times >= gap_start) & (times < start)).to_numpy() & ~test

    def _with_values(self, values: tuple[Any, ...]) -> _Mask:
        column = self.rule.column
        if column is None or column not in self.frame.columns:
            raise DataError(f"split column {column!r} is missing")
        chosen = among(column, values, self.frame.schema[column], "the split chooses")
        return self.frame.select(chosen.fill_null(False)).to_series().to_numpy()

    def _known_times(self) -> pl.Series:
        if self.times is None:
            raise DataError(f"schema {self.source!r} splits by time: the time column is missing")
        if self.times.null_count():
            raise DataError(
                f"column {self.times.name!r} is missing in some rows: the split needs it"
            )
        return self.times

    def _start_of_latest(self, times: pl.Series, part: Part) -> datetime:
        assert part.latest is not None
        wanted = max(1, round(part.latest * self.frame.height))
        if wanted > len(times):
            raise DataError(
                f"the split of schema {self.source!r} asks for more latest rows than there are"
            )
        start: datetime = times.sort()[-wanted]
        return start

    def _random(self, share: float, rest: _Mask) -> _Mask:
        strata = np.zeros(self.frame.height, dtype=np.int8)
        if self.labels is not None and self.rule.stratify is not None:
            strata = self.labels[self.rule.stratify].fill_null(-1).cast(pl.Int8).to_numpy()
        part = np.zeros(self.frame.height, dtype=bool)
        candidates = np.flatnonzero(rest)
        wanted = share * self.frame.height / max(1, len(candidates))
        rng = np.random.default_rng(self.rule.seed)
        for stratum in np.unique(strata[candidates]):
            rows = candidates[strata[candidates] == stratum]
            part[rng.permutation(rows)[: round(wanted * len(rows))]] = True
        return part
