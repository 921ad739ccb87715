"""How far an explanation depends on the rows that it compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.explain.explanation import Explanation

_TOP = 4


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """
    How far explanations move from one background to another.

    Parameters
    ----------
    heads : polars.DataFrame
        A line per head: ``moved``, the root mean square of the differences between two backgrounds
        over that of the values; ``error``, what the standard errors alone would give there;
        ``top``, the share of each row's four largest adverse features that two backgrounds have in
        common; ``base_range``, the range of the base.
    features : polars.DataFrame
        A line per head and feature: ``value``, the mean size of the values; ``moved`` and
        ``error``, the root mean square of the differences, and what the errors alone would give.
    backgrounds : list of str
        Hashes of the backgrounds.
    """

    heads: pl.DataFrame
    features: pl.DataFrame
    backgrounds: list[str]


def compare_backgrounds(explanations: Sequence[Explanation]) -> Sensitivity:
    """
    Compare explanations of the same rows with different backgrounds.

    Parameters
    ----------
    explanations : sequence of Explanation
        At least two, with standard errors.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    if len(explanations) < 2:
        raise ValueError("give at least two backgrounds to compare")
    values = np.stack([e.values for e in explanations])  # (backgrounds, rows, features, heads)
    pairs = list(combinations(range(len(values)), 2))
    squares = np.mean([(values[a] - values[b]) ** 2 for a, b in pairs], axis=(0, 1))
    variance = 2 * np.mean([e.errors**2 for e in explanations], axis=(0, 1))
    first = explanations[0]
    size = np.sqrt((values**2).mean((0, 1)).sum(0))  # (heads,)
    base = np.stack([e.base for e in explanations])
    heads = pl.DataFrame(
        {
            "head": first.heads,
            "moved": np.sqrt(squares.sum(0)) / size,
            "error": np.sqrt(variance.sum(0)) / size,
            "top": np.mean([_in_common(values[a], values[b]) for a, b in pairs], axis=0),
            "base_range": np.ptp(base, axis=0),
        }
    )
    features = pl.DataFrame(
        {
            "head": np.repeat(first.heads, len(first.features)),
            "feature": first.features * len(first.heads),
            "value": np.abs(values).mean((0, 1)).T.ravel(),
            "moved": np.sqrt(squares).T.ravel(),
            "error": np.sqrt(variance).T.ravel(),
        }
    )
    return Sensitivity(heads, features, [e.background for e in explanations])


def _in_common(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean share of the largest adverse features that two have in common, ``(heads,)``."""
    chosen = [_largest(values) for values in (first, second)]
    both, either = (chosen[0] & chosen[1]).sum(1), np.maximum(*(c.sum(1) for c in chosen))
    return np.asarray(np.where(either, both / np.maximum(either, 1), 1.0).mean(0))


def _largest(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which features are among the largest adverse ones of a row, ``(rows, features, heads)``."""
    rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray((rank < _TOP) & (values > 0))
