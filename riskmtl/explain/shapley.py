"""
Shapley values of any function of rows, for all of its outputs at once.

The game is the interventional one: a coalition's worth is the mean of the function over the
background rows, with the coalition's columns taken from the explained row. Values are estimated
along permutations of the columns (Castro et al. 2009), in pairs of one and its reverse (Mitchell et
al. 2022). Every background row is used equally often, so that the sum is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Function = Callable[[Tensor], NDArray[np.float64]]

# Numbers in one call of the function: 64 MB of float32.
_MOST_CELLS = 2**24


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
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    base: NDArray[np.float64]
    outputs: NDArray[np.float64]
    permutations: NDArray[np.int64]


def shapley_values(
    function: Function,
    rows: Tensor,
    background: Tensor,
    groups: Sequence[Sequence[int]],
    *,
    budget: int = 4,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Estimate:
    r"""
    Estimate Shapley values.

    Parameters
    ----------
    function : callable
        Maps ``(rows, columns)`` to ``(rows, outputs)``.
    rows : Tensor of shape (rows, columns)
    background : Tensor of shape (background rows, columns)
        On the same device.
    groups : sequence of sequence of int
        Columns that change together; each column is in one group.
    budget : int
        Most permutations per background row: a multiple of 2, at least 4.
    tolerance : float
        A row is done when no standard error is above this; with 0, when the budget is used up.
    seed : int
        All rows are explained along the same permutations, so neither their order nor their number
        matters.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If the budget is no even number of at least 4, or the tolerance is negative.

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
    >>> x, background = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    >>> product = lambda z: z.prod(1, keepdim=True).double().numpy()
    >>> shapley_values(product, x, background, [[0], [1]]).values[0, :, 0].tolist()
    [1.0, 1.0]
    """
    if budget < 4 or budget % 2:
        raise ValueError(f"budget must be an even number of at least 4, got {budget}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    at_background, outputs = function(background), function(rows)
    shape = (len(rows), len(groups), outputs.shape[1])
    values, errors = np.empty(shape), np.empty(shape)
    permutations = np.empty(len(rows), dtype=np.int64)
    member = _membership(groups).to(rows.device)
    for row in range(len(rows)):
        ends = (at_background, outputs[row])
        total = squares = np.zeros((len(background), *shape[1:]))
        for pair in range(1, budget // 2 + 1):
            ranks = _ranks(len(background), len(groups), seed, pair).to(rows.device)
            credited = _credited(function, rows[row], background, ranks, member, ends)
            total, squares = total + credited, squares + credited**2
            error = _error(total, squares, pair)
            if pair > 1 and error.max() <= tolerance:
                break
        values[row], errors[row] = (total / pair).mean(0), error
        permutations[row] = 2 * pair
    return Estimate(values, errors, at_background.mean(0), outputs, permutations)


def _membership(groups: Sequence[Sequence[int]]) -> Tensor:
    """Whether each column is in each group, ``(columns, groups)``."""
    found = torch.zeros(sum(len(group) for group in groups), len(groups), dtype=torch.bool)
    for number, columns in enumerate(groups):
        found[list(columns), number] = True
    return found


def _ranks(background: int, groups: int, seed: int, pair: int) -> Tensor:
    """When each group's turn comes, along a random order per background row."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + pair)
    order = torch.rand(background, groups, generator=generator).argsort(1)
    return order.argsort(1)


def _credited(
    function: Function,
    row: Tensor,
    background: Tensor,
    ranks: Tensor,
    member: Tensor,
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """What each group is credited with, the mean of an order and its reverse."""
    groups = ranks.shape[1]
    credited = np.zeros((len(background), groups, len(ends[1])))
    size = max(1, _MOST_CELLS // (groups * len(row)))
    for turn in (ranks, groups - 1 - ranks):
        for start in range(0, len(background), size):
            part = slice(start, start + size)
            path = _path(function, row, background[part], turn[part], member, ends[0][part])
            last = np.tile(ends[1], (len(path), 1, 1))
            # (paths, groups, outputs), in the order of the path
            changes = np.diff(np.concatenate([path, last], axis=1), axis=1)
            places = turn[part].cpu().numpy()[:, :, None]
            credited[part] += np.take_along_axis(changes, places, axis=1) / 2
    return credited


def _path(
    function: Function,
    row: Tensor,
    background: Tensor,
    turn: Tensor,
    member: Tensor,
    first: NDArray[np.float64],
) -> NDArray[np.float64]:
    """
    The function along each path but at its end, ``(paths, groups, outputs)``.

    Where a group's columns are the same in both rows nothing changes, and nothing is evaluated.
    """
    paths, groups = turn.shape
    differs = (row != background) & ~(row.isnan() & background.isnan())
    # (paths, groups): whether anything changes as each group's turn comes
    moves = (differs.float() @ member.float() > 0).gather(1, turn.argsort(1))
    step = torch.arange(groups, device=row.device)
    changed = torch.nn.functional.pad(moves[:, :-1], (1, 0))
    path, place = changed.nonzero(as_tuple=True)
    replaced = turn[path] < place.unsqueeze(1)  # (evaluations, groups)
    taken = replaced.float() @ member.float().t() > 0  # (evaluations, columns)
    found = np.empty((paths, groups, first.shape[1]))
    found[:, 0] = first
    if len(path):
        mixed = torch.where(taken, row, background[path])
        found[path.cpu().numpy(), place.cpu().numpy()] = function(mixed)
    known = torch.where(changed, step, 0).cummax(1).values.cpu().numpy()
    return np.take_along_axis(found, known[:, :, None], axis=1)


def _error(
    total: NDArray[np.float64], squares: NDArray[np.float64], pairs: int
) -> NDArray[np.float64]:
    if pairs == 1:
        return np.full(total.shape[1:], np.inf)
    # Rounding may leave less than nothing where all pairs agree.
    variance = np.maximum(squares - total**2 / pairs, 0) / (pairs - 1)
    return np.asarray(np.sqrt(variance.sum(0) / pairs) / len(total))
