"""
Shapley interactions: what two groups of columns do together beyond what each does alone.

The game is that of :mod:`riskmtl.explain.shapley`, and the value of a pair is the index of Grabisch
and Roubens (1999). Coalitions are drawn in pairs of one and its complement, equally often for every
background row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.game import grouped, mixtures_of
from riskmtl.explain.mixtures import Mixtures
from riskmtl.explain.shapley import MOST_CELLS, require_budget, standard_error
from riskmtl.model import RiskModel
from riskmtl.threads import one_thread_each

# Both groups of a pair are taken from the explained row, the first, the second, neither.
_CORNERS = torch.tensor([[True, True], [True, False], [False, True], [False, False]])


def interaction_values(
    mixtures: Mixtures,
    row: int,
    pairs: Sequence[tuple[int, int]],
    *,
    budget: int = 16,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""
    Estimate Shapley interactions of pairs of groups, for one explained row.

    Parameters
    ----------
    mixtures : Mixtures
        The rows to explain, those compared with, and what answers.
    row : int
        Which of the rows to explain.
    pairs : sequence of (int, int)
        Positions of groups.
    budget : int
        Coalitions per background row: a multiple of 2, at least 4.
    seed : int
        All rows are explained with the same coalitions.

    Returns
    -------
    values, errors : ndarray of shape (pairs, outputs)
        The interactions and their standard errors.

    Raises
    ------
    ValueError
        If the budget is no even number of at least 4, or a pair is not one of two groups.

    Notes
    -----
    With :math:`v(S)` the worth of a coalition of the :math:`n` groups :math:`N`, the interaction of
    :math:`i` and :math:`j` is

    .. math::

        \sum_{S \subseteq N \setminus ij} \frac{|S|! \, (n - |S| - 2)!}{(n - 1)!}
        \left[v(S + ij) - v(S + i) - v(S + j) + v(S)\right].

    So the size of :math:`S` is uniform, and :math:`S` is uniform among those of its size. It is
    drawn so where each other group joins with a chance that is uniform itself (Owen 1972). The
    estimate is the mean over such draws and their complements in :math:`N \setminus ij`. It is
    exact with two or three groups. The standard error is that of
    :func:`riskmtl.explain.shapley.shapley_values`. With few coalitions it is right on average only:
    where a step of a tree decides, all draws may fall on one side of it, and the error is too
    small. Sixteen are enough to rely on it.

    The matrices of shap split an interaction evenly over their two cells.

    Examples
    --------
    >>> from riskmtl.explain.mixtures import MixedRows
    >>> x, background = torch.tensor([[3.0, 2.0]]), torch.zeros(1, 2)
    >>> product = lambda z: z.prod(1, keepdim=True).double().numpy()
    >>> mixtures = MixedRows(product, x, background, [[0], [1]])
    >>> values, errors = interaction_values(mixtures, 0, [(0, 1)])
    >>> values.tolist(), errors.tolist()
    ([[6.0]], [[0.0]])
    """
    require_budget(budget)
    background, groups, width = mixtures.shape
    for pair in pairs:
        if len(set(pair)) != 2 or not set(pair) <= set(range(groups)):
            raise ValueError(f"pairs must name two groups each, from 0 to {groups - 1}, got {pair}")
    chosen = torch.tensor(pairs, dtype=torch.int64, device=mixtures.rows.device).reshape(-1, 2)
    total = squares = np.zeros((background, len(chosen), width))
    for draw in range(1, budget // 2 + 1):
        joins = _joins(background, groups, seed, draw).to(chosen.device)
        found = (
            _differences(mixtures, row, joins, chosen) + _differences(mixtures, row, ~joins, chosen)
        ) / 2
        total, squares = total + found, squares + found**2
    return (total / draw).mean(0), standard_error(total, squares, draw)


def _joins(background: int, groups: int, seed: int, draw: int) -> Tensor:
    """Whether each group joins the coalition of each background row."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    threshold = torch.rand(background, groups, generator=generator)
    return threshold < torch.rand(background, 1, generator=generator)


def _differences(mixtures: Mixtures, row: int, joins: Tensor, pairs: Tensor) -> NDArray[np.float64]:
    """
    What each pair does together beside a coalition, ``(background rows, pairs, outputs)``.

    Where a group's columns are the same in both rows that is nothing, and nothing is evaluated.
    """
    background, groups, width = mixtures.shape
    found = np.zeros((background, len(pairs), width))
    if not len(pairs):
        return found
    moves = mixtures.differs(row)[:, pairs].all(2)  # (background rows, pairs)
    # (background rows, pairs, corners, groups)
    shape = (-1, len(pairs), len(_CORNERS), groups)
    corners = _CORNERS.to(joins.device).expand(background, len(pairs), -1, -1)
    places = pairs.view(1, -1, 1, 2).expand_as(corners)
    size = max(1, MOST_CELLS // (len(pairs) * len(_CORNERS) * mixtures.rows.shape[1]))
    for start in range(0, background, size):
        part = slice(start, start + size)
        coalitions = joins[part].view(-1, 1, 1, groups).expand(shape)
        taken = coalitions.scatter(3, places[part], corners[part])
        wanted = moves[part].unsqueeze(2).expand(-1, -1, len(_CORNERS))
        answers = mixtures.answers(row, part, taken.flatten(1, 2), wanted.flatten(1, 2))
        both, first, second, neither = answers.reshape(-1, len(_CORNERS), width).swapaxes(0, 1)
        found[part][moves[part].cpu().numpy()] = (both + neither) - (first + second)
    return found


def strongest_interactions(
    model: RiskModel,
    inputs: pl.DataFrame,
    background: NDArray[np.float32],
    *,
    head: str,
    strongest: int = 5,
    groups: Mapping[str, Sequence[str]] | None = None,
    scale: str = "log_odds",
    calibrated: bool = True,
    budget: int = 16,
    seed: int = 0,
) -> pl.DataFrame:
    """
    Interactions among the columns that move one head's answers most.

    Parameters
    ----------
    model : RiskModel
    inputs : polars.DataFrame
        Input columns of the rows to explain.
    background : ndarray of shape (background rows, features)
        Encoded rows to compare with.
    head : str
    strongest : int
        Columns, or groups, of largest mean absolute Shapley value over the rows; at least 2.
    groups, scale, calibrated, budget, seed
        See :meth:`riskmtl.MultiTaskClassifier.interactions`.

    Returns
    -------
    polars.DataFrame
        ``row``, ``head``, ``first``, ``second``, ``value``, ``error``; a line per row and pair, the
        largest absolute value of a row first.

    Raises
    ------
    ValueError
        If a head, column or scale is unknown, or `strongest` is below 2.
    """
    if strongest < 2:
        raise ValueError(f"strongest must be at least 2, got {strongest}")
    explanation = explain_rows(
        model,
        inputs,
        background,
        heads=[head],
        groups=groups,
        scale=scale,
        calibrated=calibrated,
        seed=seed,
    )
    pairs = _pairs_of_strongest(explanation.values[:, :, 0], strongest)
    columns = grouped(model, groups)
    values, errors = np.empty((2, inputs.height, len(pairs)))
    with one_thread_each() as threads:
        mixtures = mixtures_of(
            model,
            model.encoder.transform(inputs),
            background,
            list(columns.values()),
            heads=[head],
            scale=scale,
            calibrated=calibrated,
            threads=threads,
        )
        for row in range(inputs.height):
            value, error = interaction_values(mixtures, row, pairs, budget=budget, seed=seed)
            values[row], errors[row] = value[:, 0], error[:, 0]
    names = [(explanation.features[first], explanation.features[second]) for first, second in pairs]
    return _frame(values, errors, head, names)


def _pairs_of_strongest(values: NDArray[np.float64], strongest: int) -> list[tuple[int, int]]:
    """Pairs of the features of largest absolute value, in the order of the columns."""
    order = np.argsort(-np.abs(values).sum(0), kind="stable")
    return list(combinations(sorted(order[:strongest].tolist()), 2))


def _frame(
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    head: str,
    names: Sequence[tuple[str, str]],
) -> pl.DataFrame:
    """One line per row and pair, the strongest pair of each row first."""
    rows, pairs = values.shape
    frame = pl.DataFrame(
        {
            "row": np.repeat(np.arange(rows), pairs),
            "head": pl.Series([head] * (rows * pairs), dtype=pl.String),
            "first": pl.Series([first for first, _ in names] * rows, dtype=pl.String),
            "second": pl.Series([second for _, second in names] * rows, dtype=pl.String),
            "value": values.ravel(),
            "error": errors.ravel(),
        }
    )
    strength = pl.col("value").abs()
    return frame.sort("row", strength, descending=[False, True], maintain_order=True)
