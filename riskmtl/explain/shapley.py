"""
Shapley values of any function of rows, for all of its outputs at once.

The game is the interventional one: a coalition's worth is the mean of the function over the
background rows, with the coalition's columns taken from the explained row. Values are estimated
along permutations of the columns (Castro et al. 2009), in pairs of one and its reverse (Mitchell et
al. 2022). Every background row is used equally often, so that the sum is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.explain.mixtures import Mixtures

# Of the values and errors of one row, ``(groups, outputs)`` each: whether they will do.
Enough = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]

# Numbers in one call of the function: 64 MB of float32.
MOST_CELLS = 2**24


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    Shapley values with their errors.

    Parameters
    ----------
    values : ndarray of shape (rows, groups, outputs)
    errors : ndarray of shape (rows, groups, outputs)
        Standard error of each value.
    base : ndarray of shape (outputs,)
        Mean of the function over the background.
    outputs : ndarray of shape (rows, outputs)
        The function at the explained rows.
    permutations : ndarray of int, shape (rows,)
        Permutations per background row.
    met : ndarray of bool, shape (rows,)
        Whether it was enough, and not the budget used up.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    base: NDArray[np.float64]
    outputs: NDArray[np.float64]
    permutations: NDArray[np.int64]
    met: NDArray[np.bool_]


def shapley_values(
    mixtures: Mixtures,
    *,
    budget: int = 4,
    is_enough: Enough = lambda values, errors: False,
    seed: int = 0,
) -> Estimate:
    r"""
    Estimate Shapley values.

    Parameters
    ----------
    mixtures : Mixtures
        The rows to explain, those compared with, and what answers.
    budget : int
        Most permutations per background row: a multiple of 2, at least 4.
    is_enough : callable
        Maps values and errors of a row, ``(groups, outputs)``, to whether the row is done; asked
        from the fourth permutation on. Default: when the budget is used up.
    seed : int
        All rows are explained along the same permutations, so neither their order nor their number
        matters.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If the budget is no even number of at least 4.

    Notes
    -----
    Along one permutation the columns of the background row are replaced by those of the explained
    row, one group after another; what each replacement changes is credited to its group. The
    changes add up to :math:`f(x) - f(b)`, and so the values to :math:`f(x) - \mathrm{mean}_b f(b)`.

    The background is used up and not sampled, so the error comes from the permutations alone. With
    :math:`s_b^2` the variance of the :math:`R` pairs of background row :math:`b`, the standard
    error is :math:`\sqrt{\sum_b s_b^2 / R} / B`.

    Examples
    --------
    >>> from riskmtl.explain.mixtures import MixedRows
    >>> x, background = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    >>> product = lambda z: z.prod(1, keepdim=True).double().numpy()
    >>> mixtures = MixedRows(product, x, background, [[0], [1]])
    >>> shapley_values(mixtures).values[0, :, 0].tolist()
    [1.0, 1.0]
    """
    require_budget(budget)
    background, groups, width = mixtures.shape
    shape = (len(mixtures.rows), groups, width)
    values, errors = np.empty(shape), np.empty(shape)
    permutations, met = np.empty(shape[0], dtype=np.int64), np.zeros(shape[0], dtype=bool)
    for row in range(shape[0]):
        total = squares = np.zeros((background, groups, width))
        for pair in range(1, budget // 2 + 1):
            ranks = _ranks(background, groups, seed, pair).to(mixtures.rows.device)
            credited = _credited(mixtures, row, ranks)
            total, squares = total + credited, squares + credited**2
            values[row] = (total / pair).mean(0)
            errors[row] = standard_error(total, squares, pair)
            met[row] = pair > 1 and is_enough(values[row], errors[row])
            if met[row]:
                break
        permutations[row] = 2 * pair
    base = mixtures.at_background.mean(0)
    return Estimate(values, errors, base, mixtures.at_rows, permutations, met)


def require_budget(budget: int) -> None:
    """
    Refuse a budget that gives no standard error.

    Parameters
    ----------
    budget : int

    Raises
    ------
    ValueError
        If it is no even number of at least 4.
    """
    if budget < 4 or budget % 2:
        raise ValueError(f"budget must be an even number of at least 4, got {budget}")


def _ranks(background: int, groups: int, seed: int, pair: int) -> Tensor:
    """When each group's turn comes, along a random order per background row."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + pair)
    order = torch.rand(background, groups, generator=generator).argsort(1)
    return order.argsort(1)


def _credited(mixtures: Mixtures, row: int, ranks: Tensor) -> NDArray[np.float64]:
    """What each group is credited with, the mean of an order and its reverse."""
    background, groups, width = mixtures.shape
    credited = np.zeros((background, groups, width))
    differs = mixtures.differs(row)
    size = max(1, MOST_CELLS // (groups * max(groups, mixtures.rows.shape[1])))
    for turn in (ranks, groups - 1 - ranks):
        for start in range(0, background, size):
            part = slice(start, start + size)
            path = _path(mixtures, row, part, turn[part], differs[part])
            last = np.tile(mixtures.at_rows[row], (len(path), 1, 1))
            # (paths, groups, outputs), in the order of the path
            changes = np.diff(np.concatenate([path, last], axis=1), axis=1)
            places = turn[part].cpu().numpy()[:, :, None]
            credited[part] += np.take_along_axis(changes, places, axis=1) / 2
    return credited


def _path(
    mixtures: Mixtures, row: int, part: slice, turn: Tensor, differs: Tensor
) -> NDArray[np.float64]:
    """
    The answers along each path but at its end, ``(paths, groups, outputs)``.

    Where a group's columns are the same in both rows nothing changes, and nothing is evaluated.
    """
    paths, groups = turn.shape
    step = torch.arange(groups, device=turn.device)
    # (paths, groups): whether anything changes as each group's turn comes
    moves = differs.gather(1, turn.argsort(1))
    changed = torch.nn.functional.pad(moves[:, :-1], (1, 0))
    replaced = turn.unsqueeze(1) < step.view(1, -1, 1)  # (paths, steps, groups)
    found = np.empty((paths, groups, mixtures.shape[2]))
    found[:, 0] = mixtures.at_background[part]
    found[changed.cpu().numpy()] = mixtures.answers(row, part, replaced, changed)
    known = torch.where(changed, step, 0).cummax(1).values.cpu().numpy()
    return np.take_along_axis(found, known[:, :, None], axis=1)


def standard_error(
    total: NDArray[np.float64], squares: NDArray[np.float64], pairs: int
) -> NDArray[np.float64]:
    """
    Standard error of a mean over background rows that are all used, from pairs of draws for each.

    Parameters
    ----------
    total, squares : ndarray of shape (background rows, …)
        Sums over the pairs, and of their squares.
    pairs : int

    Returns
    -------
    ndarray of shape (…)
        Infinite with one pair.
    """
    if pairs == 1:
        return np.full(total.shape[1:], np.inf)
    # Rounding may leave less than nothing where all pairs agree.
    variance = np.maximum(squares - total**2 / pairs, 0) / (pairs - 1)
    return np.asarray(np.sqrt(variance.sum(0) / pairs) / len(total))
