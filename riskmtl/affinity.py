"""
Which tasks help one another, and which should have a network together.

:func:`task_affinity` measures, :func:`group_tasks` decides; what it proposes is what
``MultiTaskClassifier(groups=…)`` takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import clone

from riskmtl.errors import unknown_name
from riskmtl.estimator import MultiTaskClassifier
from riskmtl.given import require_count

METHODS = ("gradient", "pairs")

# Every step trains all tasks, and nothing is left behind.
_OF_ALL_TOGETHER: dict[str, Any] = {
    "groups": None,
    "schedule": "joint",
    "freeze_shared_after": None,
    "compile": False,
    "checkpoint_dir": None,
}

# All partitions are compared, in time that triples with every task.
_MOST_TASKS = 12
# Sums of the same numbers in another order differ by less.
_TIE = 1e-12

# A value, and groups as numbers whose bits are their tasks.
_Partition = tuple[float, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Affinity:
    """
    How much each task helps each other one.

    Parameters
    ----------
    tasks : tuple of str
    matrix : ndarray of shape (tasks, tasks)
        From the task of the line to that of the column: by what share its loss falls; below 0 it
        rises. NaN: not known.
    method : str
        How it was measured.
    """

    tasks: tuple[str, ...]
    matrix: NDArray[np.float64]
    method: str = "given"

    def __post_init__(self) -> None:
        size = len(self.tasks)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "matrix", np.array(self.matrix, dtype=np.float64))
        if not size or len(set(self.tasks)) < size or self.matrix.shape != (size, size):
            raise ValueError(
                f"an affinity needs a line and a column for each of its tasks, all named "
                f"differently; got {size} tasks and a matrix of shape {self.matrix.shape}"
            )

    def to_frame(self) -> pl.DataFrame:
        """A line per task that a step or a training is on, and a column per task it helps."""
        return pl.DataFrame(
            {"trained on": list(self.tasks)}
            | {task: self.matrix[:, i] for i, task in enumerate(self.tasks)}
        )

    def __str__(self) -> str:
        return f"affinity of tasks ({self.method})\n{self.to_frame()}"

    def _repr_html_(self) -> str:
        return self.to_frame()._repr_html_()


def task_affinity(
    X: Any,
    y: Any = None,
    *,
    model: MultiTaskClassifier | None = None,
    method: str = "gradient",
    every: int = 10,
    X_val: Any = None,
    y_val: Any = None,
) -> Affinity:
    """
    Measure how much training on each task helps each other one.

    Parameters
    ----------
    X : table of shape (rows, columns)
    y : labels of shape (rows, tasks), optional with a schema
        NaN or null where an outcome is not observed.
    model : MultiTaskClassifier, optional
        Settings of the training; a fitted one is not changed. Its groups, schedule, calibration
        and challenger play no part.
    method : {"gradient", "pairs"}
        ``"gradient"``: one training of all tasks together, in which a step on one task alone is
        looked ahead and forgotten (Fifty et al. 2021); see
        :class:`riskmtl.training.affinity.LookaheadAffinity`. ``"pairs"``: each task is trained
        alone and with each other one, and validation losses are compared: for ``n`` tasks
        ``n (n + 1) / 2`` trainings, each with the chance of its seed.
    every : int
        Steps from one look ahead to the next.
    X_val, y_val : optional
        Validation rows, as for :meth:`MultiTaskClassifier.fit`.

    Returns
    -------
    Affinity

    Raises
    ------
    ValueError
        If there are fewer than two tasks, or a parameter cannot be.

    References
    ----------
    C. Fifty, E. Amid, Z. Zhao, T. Yu, R. Anil and C. Finn (2021), Efficiently identifying task
    groupings for multi-task learning, NeurIPS.

    Examples
    --------
    >>> X = pl.DataFrame({"amount": [1.0, 9.0, 2.0, 8.0] * 50})
    >>> y = pl.DataFrame({"fraud": [0, 1, 0, 1] * 50, "takeover": [0, 1, 0, 0] * 50})
    >>> model = MultiTaskClassifier("shared_bottom", epochs=1, members=1, random_state=0)
    >>> affinity = task_affinity(X, y, model=model, every=1)
    >>> affinity.tasks, affinity.matrix.shape
    (('fraud', 'takeover'), (2, 2))
    >>> group_tasks(affinity)
    [['fraud', 'takeover']]
    """
    from riskmtl.training.affinity import LookaheadAffinity, pair_gains
    from riskmtl.training.fit import train

    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    require_count("every", every)
    training = joint_template(model).set_params(**_OF_ALL_TOGETHER)
    training._check_shared_parameters()
    training._check_parameters()
    data = training._prepare(X, y, None, X_val, y_val, None)
    names = [task.name for task in data.tasks]
    if len(names) < 2:
        raise ValueError("affinity is between tasks: give labels of at least two")
    rows = len(data.rows.x)
    parts = training._shape(rows), data.encoder.cardinalities_, training._plan(data, names)
    config = training._training(rows, data.seed)
    if method == "pairs":
        return Affinity(
            tuple(names), pair_gains(*parts, config, data.rows, data.validation), method
        )
    looking = LookaheadAffinity(every)
    watched = replace(config, callbacks=(*config.callbacks, looking))
    train(*parts, watched, data.rows, data.validation)
    return Affinity(tuple(names), looking.matrix(), method)


def joint_template(model: Any) -> MultiTaskClassifier:
    """An unfitted copy of an estimator that trains tasks together; the defaults for none."""
    if model is None:
        return MultiTaskClassifier()
    if not isinstance(model, MultiTaskClassifier):
        raise TypeError(f"model must be a MultiTaskClassifier, got {type(model).__name__}")
    if model.network == "single_task":
        raise ValueError("model trains no tasks together: choose another network")
    copied: MultiTaskClassifier = clone(model)
    return copied


def group_tasks(affinity: Affinity, *, networks: int = 2) -> list[list[str]]:
    r"""
    Propose which tasks should have a network together.

    Parameters
    ----------
    affinity : Affinity
        As :func:`task_affinity` gives it; what is not known counts 0.
    networks : int
        Most networks.

    Returns
    -------
    list of list of str
        For ``MultiTaskClassifier(groups=…)``: the partition of the tasks with the largest total
        affinity; of several, one with the fewest networks.

    Raises
    ------
    ValueError
        If there are more than 12 tasks, or fewer than one network.

    Notes
    -----
    A task's affinity in a group is the mean of what the others there do for it, and 0 if it is
    alone; the total is the sum over the tasks (Fifty et al. 2021, but each task is in one group).
    All partitions are compared: with :math:`v(S)` the value of a group and :math:`b_k(S)` that of
    the best :math:`k` groups of the tasks :math:`S`,
    :math:`b_k(S) = \max_{T \ni \min S} v(T) + b_{k-1}(S \setminus T)`.

    Examples
    --------
    >>> matrix = [[0.0, 0.2, -0.1], [0.1, 0.0, -0.1], [-0.2, -0.1, 0.0]]
    >>> group_tasks(Affinity(("fraud", "takeover", "default"), matrix))
    [['fraud', 'takeover'], ['default']]
    """
    if not isinstance(affinity, Affinity):
        raise TypeError(f"affinity must be an Affinity, got {type(affinity).__name__}")
    require_count("networks", networks)
    count = len(affinity.tasks)
    if count > _MOST_TASKS:
        raise ValueError(
            f"all partitions of {count} tasks are too many to compare: give at most {_MOST_TASKS}, "
            "or group by hand"
        )
    values = _group_values(np.nan_to_num(affinity.matrix))
    best = _best_partitions(values, min(networks, count))
    most = max(value for value, _ in best)
    groups = next(groups for value, groups in best if value >= most - _TIE * (1 + abs(most)))
    return [[t for i, t in enumerate(affinity.tasks) if group >> i & 1] for group in groups]


def _group_values(matrix: NDArray[np.float64]) -> list[float]:
    """Total affinity within each set of tasks, by the number whose bits are its tasks."""
    count = len(matrix)
    others = matrix * (1 - np.eye(count))
    # (sets, tasks)
    member = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    total = np.einsum("si,ij,sj->s", member, others, member, optimize=True)
    found: list[float] = (total / np.maximum(member.sum(1) - 1, 1)).tolist()
    return found


def _best_partitions(values: list[float], most: int) -> list[_Partition]:
    """The best partition into exactly one group, two, and so on, with its value."""
    whole = len(values) - 1
    # By the set that is left to divide; the empty set is divided into no groups.
    best: dict[int, _Partition] = {some: (values[some], (some,)) for some in range(1, whole + 1)}
    found = [best[whole]]
    for groups in range(2, most + 1):
        further: dict[int, _Partition] = {}
        # Of the last round only the whole is asked for.
        for some in range(1, whole + 1) if groups < most else (whole,):
            rest = some & (some - 1)  # all but the first task
            chosen: _Partition | None = None
            part = rest
            while part:  # what the group of the first task leaves
                if part in best:
                    value = values[some ^ part] + best[part][0]
                    if chosen is None or value > chosen[0]:
                        chosen = value, (some ^ part, *best[part][1])
                part = (part - 1) & rest
            if chosen is not None:
                further[some] = chosen
        best = further
        found.append(best[whole])
    return found
