"""Shapley values by their definition: every coalition, every background row."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def worth(
    function: Callable[[Rows], NDArray[np.float64]],
    row: Rows,
    background: Rows,
    columns: Sequence[int],
) -> NDArray[np.float64]:
    """Mean of the function over the background, with some columns taken from the row."""
    mixed = background.copy()
    mixed[:, list(columns)] = row[list(columns)]
    return function(mixed).mean(0)


def shapley_values(
    function: Callable[[Rows], NDArray[np.float64]],
    row: Rows,
    background: Rows,
    groups: Sequence[Sequence[int]],
) -> NDArray[np.float64]:
    """``(groups, outputs)``, by the weighted sum over all coalitions without the group."""
    n = len(groups)
    values = []
    for group in range(n):
        others = [other for other in range(n) if other != group]
        value = 0.0
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for coalition in combinations(others, size):
                without = [column for other in coalition for column in groups[other]]
                gain = worth(function, row, background, [*without, *groups[group]])
                value = value + weight * (gain - worth(function, row, background, without))
        values.append(value)
    return np.array(values)


def interaction_values(
    function: Callable[[Rows], NDArray[np.float64]],
    row: Rows,
    background: Rows,
    groups: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
) -> NDArray[np.float64]:
    """``(pairs, outputs)``, by the weighted sum over all coalitions without the two groups."""
    n = len(groups)
    values = []
    for first, second in pairs:
        others = [other for other in range(n) if other not in (first, second)]
        value = 0.0
        for size in range(n - 1):
            weight = factorial(size) * factorial(n - size - 2) / factorial(n - 1)
            for coalition in combinations(others, size):
                without = [column for other in coalition for column in groups[other]]
                both = worth(function, row, background, [*without, *groups[first], *groups[second]])
                one = worth(function, row, background, [*without, *groups[first]])
                two = worth(function, row, background, [*without, *groups[second]])
                neither = worth(function, row, background, without)
                value = value + weight * (both - one - two + neither)
        values.append(value)
    return np.array(values)
