"""Counterfactuals by trying everything: every set of columns, every combination of values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray


def share_between(background: Sequence[float], one: float, other: float) -> float:
    """Share of values between two, where a value at either of them counts half."""
    low, high = min(one, other), max(one, other)
    if low == high:
        return 0.0
    counts = [1.0 if low < v < high else 0.5 if v in (low, high) else 0.0 for v in background]
    return sum(counts) / len(counts)


def ways(
    row: Sequence[float], choices: Mapping[int, Sequence[float]], changes: int
) -> Iterator[tuple[float, ...]]:
    """Every row with so many changes."""
    for columns in combinations(choices, changes):
        others = [[v for v in choices[c] if v != row[c]] for c in columns]
        for values in product(*others):
            changed = list(row)
            for column, value in zip(columns, values, strict=True):
                changed[column] = value
            yield tuple(changed)


def reaching(
    function: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    row: Sequence[float],
    choices: Mapping[int, Sequence[float]],
    goal: float,
    most: int,
) -> list[tuple[float, ...]]:
    """All rows that reach a goal with the fewest changes; none if no row does."""
    for changes in range(1, most + 1):
        tried = list(ways(row, choices, changes))
        values = function(np.array(tried, dtype=np.float32))
        found = [way for way, value in zip(tried, values, strict=True) if value <= goal]
        if found:
            return found
    return []
