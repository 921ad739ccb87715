"""
How columns and scores were distributed in training, in few numbers, and rows counted against it.

A model keeps it, so that each batch of new rows can be compared with training in the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.encoding import MISSING, UNSEEN, EncodedColumn
from riskmtl.spread import spread
from riskmtl.stability import stability_of_counts

_BINS = 10
_RARE = 0.01
_MOST_ROWS_FOR_EDGES = 200_000
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Bins:
    """
    Where the values of a column or score fall, and how many of training fell there.

    Parameters
    ----------
    name : str
    edges : tuple of float
        Upper ends of all bins of numbers but the last; a bin for missing values follows.
    codes : tuple of int or None
        Categories with a bin each; bins for the others, for those never seen and for missing ones
        follow. ``None``: the values are numbers.
    counts : tuple of int
        Rows of training in each bin.
    """

    name: str
    edges: tuple[float, ...]
    codes: tuple[int, ...] | None
    counts: tuple[int, ...]

    @classmethod
    def of_numbers(cls, name: str, values: NDArray[Any]) -> Self:
        """Bins of about equally many values."""
        known = values[~np.isnan(values)]
        edges: tuple[float, ...] = ()
        if len(known):
            inner = np.linspace(0, 1, _BINS + 1)[1:-1]
            # Edges are values that occur, so that a number with few of them has a bin for each.
            found = np.quantile(
                known[spread(len(known), _MOST_ROWS_FOR_EDGES)], inner, method="inverted_cdf"
            )
            edges = tuple(np.unique(found.astype(np.float64)).tolist())
        bins = cls(name, edges, None, ())
        return cls(name, edges, None, tuple(bins.count(values).tolist()))

    @classmethod
    def of_codes(cls, name: str, values: NDArray[Any]) -> Self:
        """A bin for each category that one row in a hundred has."""
        found, counts = np.unique(values.astype(np.int64), return_counts=True)
        common = (counts >= _RARE * len(values)) & (found != UNSEEN) & (found != MISSING)
        codes = tuple(found[common].tolist())
        bins = cls(name, (), codes, ())
        return cls(name, (), codes, tuple(bins.count(values).tolist()))

    def count(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """
        Count values by bin.

        Parameters
        ----------
        values : ndarray of shape (rows,)
            Numbers with NaN for missing, or codes; fastest where they lie side by side.

        Returns
        -------
        ndarray of int64, shape (bins,)

        Examples
        --------
        >>> Bins("x", (1.0, 2.0), None, ()).count(np.array([0.5, 1.0, 3.0, np.nan])).tolist()
        [2, 0, 1, 1]
        """
        if self.codes is not None:
            by_code = np.bincount(values.astype(np.int64), minlength=max(self.codes, default=1) + 1)
            own = by_code[list(self.codes)]
            others = [by_code[UNSEEN], by_code[MISSING]]
            return np.concatenate([own, [len(values) - own.sum() - sum(others)], others])
        # Counting those beyond each edge is many times quicker than placing each value.
        beyond = [np.count_nonzero(values > np.float32(edge)) for edge in self.edges]
        missing = np.count_nonzero(np.isnan(values))
        ends = np.array([len(values) - missing, *beyond, 0])
        return np.append(ends[:-1] - ends[1:], missing)


@dataclass(frozen=True, slots=True)
class Reference:
    """
    What a model's training rows and scores looked like.

    Parameters
    ----------
    columns : tuple of Bins
        Of encoded training rows.
    scores : tuple of Bins
        Of the log-odds of each binary task, over rows that the model was not fitted on where there
        were any.
    """

    columns: tuple[Bins, ...]
    scores: tuple[Bins, ...]

    @classmethod
    def of(
        cls,
        columns: Sequence[EncodedColumn],
        encoded: NDArray[np.float32],
        tasks: Sequence[str],
        margins: NDArray[np.float64],
    ) -> Self:
        """
        Describe training.

        Parameters
        ----------
        columns : sequence of EncodedColumn
        encoded : ndarray of shape (rows, columns)
        tasks : sequence of str
        margins : ndarray of shape (other rows, tasks)

        Returns
        -------
        Reference
        """
        return cls(
            tuple(
                (Bins.of_codes if column.is_categorical else Bins.of_numbers)(
                    column.name, np.ascontiguousarray(encoded[:, position])
                )
                for position, column in enumerate(columns)
            ),
            tuple(
                Bins.of_numbers(task, margins[:, i].astype(np.float32))
                for i, task in enumerate(tasks)
            ),
        )

    def count(
        self, encoded: NDArray[np.float32], margins: NDArray[np.float64]
    ) -> dict[str, dict[str, list[int]]]:
        """
        Count new rows by the same bins.

        Parameters
        ----------
        encoded : ndarray of shape (rows, columns)
        margins : ndarray of shape (rows, tasks)

        Returns
        -------
        dict
            ``columns`` and ``scores``: name to rows in each bin.
        """
        side_by_side = np.empty(encoded.shape[::-1], dtype=np.float32)
        for start in range(0, len(encoded), _BLOCK):
            side_by_side[:, start : start + _BLOCK] = encoded[start : start + _BLOCK].T
        return {
            "columns": {
                bins.name: bins.count(values).tolist()
                for bins, values in zip(self.columns, side_by_side, strict=True)
            },
            "scores": {
                bins.name: bins.count(margins[:, i].astype(np.float32)).tolist()
                for i, bins in enumerate(self.scores)
            },
        }

    def drift(self, counts: Mapping[str, Mapping[str, Sequence[int]]]) -> pl.DataFrame:
        """
        Compare counts of new rows with training.

        Parameters
        ----------
        counts : mapping
            As :meth:`count` gives them.

        Returns
        -------
        polars.DataFrame
            A line per column and score: ``kind`` (column or score), ``name``, ``psi``, ``p_value``,
            ``critical``, ``missing``, ``missing_reference``, ``unseen`` and ``unseen_reference``,
            shares of rows; the last two are null for numbers.
        """
        lines = []
        for kind, all_bins in (("column", self.columns), ("score", self.scores)):
            for bins in all_bins:
                before = np.array(bins.counts)
                now = np.array(counts[f"{kind}s"][bins.name])
                found = stability_of_counts(before, now)
                shares = [c / max(int(c.sum()), 1) for c in (now, before)]
                missing = [float(share[-1]) for share in shares]
                unseen = [None if bins.codes is None else float(share[-2]) for share in shares]
                index = (found.psi, found.p_value, found.critical)
                lines.append((kind, bins.name, *index, *missing, *unseen))
        figures = ("psi", "p_value", "critical", "missing", "missing_reference", "unseen",
                   "unseen_reference")  # fmt: skip
        shape = {"kind": pl.String, "name": pl.String, **dict.fromkeys(figures, pl.Float64)}
        return pl.DataFrame(lines, schema=shape, orient="row")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a reference from what :meth:`to_dict` gave."""
        return cls(*(tuple(_bins(item) for item in values[name]) for name in ("columns", "scores")))


def added(
    total: Mapping[str, Mapping[str, Sequence[int]]] | None,
    counts: Mapping[str, Mapping[str, Sequence[int]]],
) -> dict[str, dict[str, list[int]]]:
    """Counts of two runs of rows together, by the same bins."""
    return {
        kind: {
            name: (
                list(new)
                if total is None
                else [a + b for a, b in zip(total[kind][name], new, strict=True)]
            )
            for name, new in by_name.items()
        }
        for kind, by_name in counts.items()
    }


def _bins(values: Mapping[str, Any]) -> Bins:
    codes = values["codes"]
    return Bins(
        str(values["name"]),
        tuple(float(edge) for edge in values["edges"]),
        None if codes is None else tuple(int(code) for code in codes),
        tuple(int(count) for count in values["counts"]),
    )
