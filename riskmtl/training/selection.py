r"""
Tasks whose outcome is known only where another one's event happened: default, of the approved.

The mask leaves the unselected rows out of the loss. Where the selected differ from the others in
what the columns do not tell, or in columns that the network has seen too few of there, its answers
for the others are off. Two ways to do something about it:

- ``"entire_space"`` (Ma et al. 2018, ESMM): the loss of the selected task is that of
  :math:`P(a) P(d \mid a)`, "approved and default", which is known to be 0 where :math:`a` did not
  happen. All rows that observe :math:`a` teach, through both heads. The head's own output stays
  :math:`P(d \mid a)`. Where some of the selected are not known yet, see
  :func:`entire_space_weights`.
- ``"inverse_propensity"`` (Schnabel et al. 2016; for heads of one network Wang et al. 2022,
  ESCM²-IPS): each observed row counts :math:`1 / \max(P(a), \text{floor})`, as the selecting head
  says it, so that the selected stand for all.

Neither sees what an unselected row would have done: if selection used what the columns do not
tell, both are off too. Validation metrics, the best epoch and the calibration of a selected head
rest on its observed rows, that is on the selected; that a head is well calibrated there says
nothing of the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from riskmtl.errors import unknown_name
from riskmtl.training.config import TrainingConfig
from riskmtl.training.loss import per_task
from riskmtl.training.rows import TaskPlan, TrainingRows

Selectors = Sequence[int | None]


# ---- who selects whom ----------------------------------------------------------------------------


def selectors(
    selected_by: Mapping[str, str],
    names: Sequence[str],
    regression: Sequence[bool],
    selection: str,
) -> tuple[int | None, ...]:
    """
    Positions of the selecting tasks.

    Parameters
    ----------
    selected_by : mapping of str to str
        Task to the task that selects its rows.
    names : sequence of str
    regression : sequence of bool
    selection : {"entire_space", "inverse_propensity"}

    Returns
    -------
    tuple of (int or None)
        For each task; empty where nothing selects.

    Raises
    ------
    ValueError
        If a task is unknown, selects itself, even by way of others, or is a regression where a
        probability is needed.

    Examples
    --------
    >>> selectors({"default": "approved"}, ["default", "approved"], [False] * 2, "entire_space")
    (1, None)
    """
    for selected, by in selected_by.items():
        for name in (selected, by):
            if name not in names:
                raise ValueError(f"selected_by: {unknown_name('task', name, names)}")
        if regression[names.index(by)]:
            raise ValueError(f"selected_by: {by!r} is a regression, and so has no event to select")
        if selection == "entire_space" and regression[names.index(selected)]:
            raise ValueError(
                f"selected_by: {selected!r} is a regression, and no probability to be multiplied; "
                "use selection='inverse_propensity'"
            )
        seen = [selected]
        while (above := selected_by.get(seen[-1])) is not None:
            if above in seen:
                way = " by ".join(repr(name) for name in [*seen, above])
                raise ValueError(f"selected_by: a task cannot select itself: {way}")
            seen.append(above)
    if not selected_by:
        return ()
    return tuple(names.index(selected_by[name]) if name in selected_by else None for name in names)


def require_selection(y: NDArray[np.floating], by: Selectors, names: Sequence[str]) -> None:
    """
    Refuse outcomes that are known although what selects them did not happen.

    Parameters
    ----------
    y : ndarray of shape (rows, tasks)
    by : sequence of (int or None)
    names : sequence of str

    Raises
    ------
    ValueError
        If there are such rows.
    """
    for task, above in enumerate(by):
        if above is None:
            continue
        wrong = int((~np.isnan(y[:, task]) & (y[:, above] == 0)).sum())
        if wrong:
            raise ValueError(
                f"selected_by: {wrong} rows observe {names[task]!r} although {names[above]!r} did "
                "not happen: make these labels null, or leave the pair out"
            )


def require_together(plan: TaskPlan, groups: Sequence[Sequence[int]]) -> None:
    """
    Refuse networks that hold a task without the one that selects it.

    Parameters
    ----------
    plan : TaskPlan
    groups : sequence of sequence of int
        Positions of the tasks of each network.

    Raises
    ------
    ValueError
        If a pair is torn apart.
    """
    for task, above in enumerate(plan.selected_by):
        if above is not None and not any(task in group and above in group for group in groups):
            raise ValueError(
                f"selected_by: {plan.names[task]!r} and {plan.names[above]!r} are in networks of "
                "their own: put them in one group, or leave selected_by out"
            )


# ---- labels of the entire space ------------------------------------------------------------------


def entire_space_labels(y: NDArray[np.float32], by: Selectors) -> NDArray[np.float32]:
    """
    Labels of "selected, and the event happened".

    Parameters
    ----------
    y : ndarray of shape (rows, tasks)
    by : sequence of (int or None)

    Returns
    -------
    ndarray of shape (rows, tasks)
        Of a selected task: 0 where the selecting event did not happen, its own label where it did,
        NaN where either is not known. Of the others: as they were.

    Examples
    --------
    >>> y = np.array([[np.nan, 0], [1, 1], [np.nan, 1], [1, np.nan]], dtype=np.float32)
    >>> entire_space_labels(y, (1, None))[:, 0]
    array([ 0.,  1., nan, nan], dtype=float32)
    """
    found = y.copy()
    for task, above in _from_above(by):
        known = np.where(found[:, above] == 1, y[:, task], np.float32(np.nan))
        found[:, task] = np.where(found[:, above] == 0, np.float32(0), known)
    return found


def entire_space_weights(y: NDArray[np.float32], by: Selectors) -> NDArray[np.float64]:
    r"""
    Weights that keep known non-events from outnumbering outcomes that are not known yet.

    Parameters
    ----------
    y : ndarray of shape (rows, tasks)
    by : sequence of (int or None)

    Returns
    -------
    ndarray of shape (rows, tasks)
        For a selected task, the share of its selected rows whose outcome is known, in rows where
        the selecting event did not happen; 1 otherwise.

    Notes
    -----
    That nothing came of a declined application is known at once; what came of an approved one,
    when it is mature. If a share :math:`m` of the approved is known, plain counting would teach
    :math:`m P(a) P(d) / (1 - P(a) + m P(a))` instead of the product. The weights are right where
    what is known of the selected does not depend on the columns.

    Examples
    --------
    >>> y = np.array([[np.nan, 0], [1, 1], [np.nan, 1]], dtype=np.float32)
    >>> entire_space_weights(y, (1, None))[:, 0]
    array([0.5, 1. , 1. ])
    """
    labels = entire_space_labels(y, by)
    found = np.ones(y.shape)
    for task, above in _from_above(by):
        is_selected = labels[:, above] == 1
        known = float((~np.isnan(y[is_selected, task])).mean()) if is_selected.any() else 1.0
        found[:, task] = found[:, above] * np.where(labels[:, above] == 0, known, 1)
    return found


def as_learned(rows: TrainingRows, by: Selectors, selection: str) -> TrainingRows:
    """Training rows with the labels and weights that the loss is taken over; `by` may be empty."""
    if selection != "entire_space" or not by:
        return rows
    weights = entire_space_weights(rows.y, by)
    if rows.weights is not None:
        weights *= rows.weights[:, None]
    return TrainingRows(rows.x, entire_space_labels(rows.y, by), weights.astype(np.float32))


def _from_above(by: Selectors) -> list[tuple[int, int]]:
    """Pairs of selected and selecting task, those first that the others build on."""

    def depth(task: int) -> int:
        above = by[task]
        return 0 if above is None else 1 + depth(above)

    pairs = [(task, above) for task, above in enumerate(by) if above is not None]
    return sorted(pairs, key=lambda pair: depth(pair[0]))


# ---- in the loss ---------------------------------------------------------------------------------


def both(first: Tensor, second: Tensor) -> Tensor:
    r"""
    Log-odds of a product of two probabilities, from the log-odds of each.

    Parameters
    ----------
    first, second : Tensor of the same shape

    Returns
    -------
    Tensor
        Float32 at least; finite, with finite gradients, at any finite log-odds.

    Notes
    -----
    With :math:`p = \sigma(a)` and :math:`q = \sigma(b)`: :math:`\log pq - \log(1 - pq)`, where
    :math:`1 - pq = (1 - p) + p (1 - q)` is summed in logarithms, so that nothing cancels.

    Examples
    --------
    >>> both(torch.tensor(0.0), torch.tensor(0.0)).exp()  # 1/4 against 3/4
    tensor(0.3333)
    """
    if first.dtype in (torch.bfloat16, torch.float16):
        first, second = first.float(), second.float()
    happens = logsigmoid(first)
    yes = happens + logsigmoid(second)
    no = torch.logaddexp(logsigmoid(-first), happens + logsigmoid(-second))
    return yes - no


class Selection(nn.Module, ABC):
    """
    What is done about selected tasks in the loss.

    Parameters
    ----------
    plan : TaskPlan
        With selecting tasks.
    floor : float
        Least probability of selection that a row is weighted by.
    """

    shift: Tensor

    def __init__(self, plan: TaskPlan, floor: float) -> None:
        super().__init__()
        self.pairs = _from_above(plan.selected_by)
        self.floor = floor
        # What a factor on events adds to the log-odds of each head.
        self.register_buffer("shift", torch.tensor(plan.event_factors).log(), persistent=False)

    @abstractmethod
    def forward(self, outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """
        What the loss compares with the labels, and with which weights.

        Parameters
        ----------
        outputs : Tensor of shape (batch, tasks)
        weights : Tensor of shape (batch,) or (batch, tasks), optional

        Returns
        -------
        outputs : Tensor of shape (batch, tasks)
        weights : Tensor of shape (batch,) or (batch, tasks), optional
        """

    def chosen(self, outputs: Tensor) -> list[Tensor]:
        """Log-odds of each head's event and of all that selects it, ``(batch,)`` each."""
        found = list((outputs - self.shift).unbind(1))
        for task, above in self.pairs:
            found[task] = both(found[above], found[task])
        return found


class EntireSpace(Selection):
    """The loss of a selected task is that of the product; parameters as for :class:`Selection`."""

    def forward(self, outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-odds of the products, with the factors on events put back; weights as they were."""
        found, products = list(outputs.unbind(1)), self.chosen(outputs)
        for task, _ in self.pairs:
            found[task] = products[task] + self.shift[task]
        return torch.stack([column.to(products[0].dtype) for column in found], 1), weights


class InversePropensity(Selection):
    """Rows of a selected task weigh more, the less likely; parameters as for :class:`Selection`."""

    def forward(self, outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Outputs as they were; a weight for each row and task, to which no gradient flows."""
        chosen = self.chosen(outputs.detach().to(self.shift.dtype))
        by_task = torch.ones_like(outputs, dtype=self.shift.dtype)
        for task, above in self.pairs:
            by_task[:, task] = 1 / chosen[above].sigmoid().clamp(min=self.floor)
        return outputs, by_task if weights is None else by_task * per_task(weights)


SELECTIONS: Mapping[str, Callable[[TaskPlan, float], Selection]] = {
    "entire_space": EntireSpace,
    "inverse_propensity": InversePropensity,
}


def make_selection(plan: TaskPlan, config: TrainingConfig) -> Selection | None:
    """What a training does about selected tasks; ``None`` where there are none."""
    if not any(above is not None for above in plan.selected_by):
        return None
    return SELECTIONS[config.selection](plan, config.propensity_floor)
