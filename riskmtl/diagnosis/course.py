"""The course of a training: what it recorded, by head and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.model import RiskModel
from riskmtl.networks import groups_of
from riskmtl.scorers import NetworkScorer
from riskmtl.training.diagnosis import DEAD

SQUARED_ERROR = "val_squared_error"


@dataclass(frozen=True, slots=True)
class Course:
    """
    What a training recorded.

    Parameters
    ----------
    history : polars.DataFrame
        See :attr:`riskmtl.MultiTaskClassifier.history_`.
    tasks : sequence of str
        All heads.
    groups : sequence of sequence of str
        The heads of each network.
    monitor : str
        The metric that chose the epoch.
    untold : sequence of sequence of str
        Heads of each network of which nothing is recorded, as of those that stood still while
        another was added, and of those that only lend.
    elsewhere : sequence of str
        Heads of networks of which nothing is recorded at all.
    """

    history: pl.DataFrame
    tasks: Sequence[str]
    groups: Sequence[Sequence[str]]
    monitor: str
    untold: Sequence[Sequence[str]]
    elsewhere: Sequence[str]

    @classmethod
    def of(cls, model: RiskModel) -> Course:
        """
        The course of a model's training.

        Parameters
        ----------
        model : RiskModel

        Returns
        -------
        Course

        Raises
        ------
        ValueError
            If the model is no network, or does not keep what its training recorded.
        """
        if not isinstance(model.scorer, NetworkScorer):
            raise ValueError(
                f"a model of kind {model.kind!r} has no epochs: only a network can be diagnosed"
            )
        if model.history is None:
            raise ValueError(
                "the model does not keep what the training of its heads recorded, as older ones do "
                "not, nor those with heads that stood still while another was added: diagnose the "
                "one that it was made from, or train it again"
            )
        names = [head.task for head in model.scored]
        told = set(model.history["task"])
        networks = [
            [names[task] for task in group] for group in groups_of(model.scorer.shape, len(names))
        ]
        seen = [network for network in networks if told & set(network)]
        parameters = model.made_by.get("parameters", {})
        return cls(
            model.history,
            [name for name in names if name in told],
            [[name for name in network if name in told] for network in seen],
            str(parameters.get("monitor", "log_loss_skill")),
            untold=[[name for name in network if name not in told] for network in seen],
            elsewhere=[name for network in networks if network not in seen for name in network],
        )

    @property
    def epochs(self) -> list[int]:
        """All epochs, in order; networks that stopped early have none of the later ones."""
        found: list[int] = self.history["epoch"].unique().sort().to_list()
        return found

    def values(self, task: str, column: str) -> NDArray[np.float64]:
        """Numbers of one column for one head, ``(epochs,)``, NaN where there is none."""
        found = np.full(len(self.epochs), np.nan)
        if column in self.history.columns:
            own = self.history.filter(task=task)
            places = np.searchsorted(self.epochs, own["epoch"].to_numpy())
            found[places] = own[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return found

    def kept(self, task: str) -> int | None:
        """Place of the epoch whose weights the head's network has, among :attr:`epochs`."""
        own = self.history.filter(pl.col("kept"), task=task)
        return self.epochs.index(own["epoch"][-1]) if own.height else None

    def metric(self, task: str) -> str:
        """The validation metric that tells how good a head is."""
        monitored = f"val_{self.monitor}"
        for name in (monitored, "val_log_loss"):
            if np.isfinite(self.values(task, name)).any():
                return name
        return SQUARED_ERROR

    def behind(self, task: str) -> NDArray[np.float64]:
        """How far a head's metric is behind its best one in each epoch, ``(epochs,)``, or NaN."""
        metric = self.metric(task)
        values = self.values(task, metric)
        sign = -1 if metric in ("val_log_loss", SQUARED_ERROR) else 1
        return np.max(sign * values[np.isfinite(values)], initial=-np.inf) - sign * values

    def pull(self, task: str) -> NDArray[np.float64]:
        """Length of the gradient of the weighted loss, ``(epochs,)``."""
        return self.values(task, "gradient_norm") * self.values(task, "task_weight")

    def pairs(self) -> list[tuple[str, str, NDArray[np.float64]]]:
        """Heads of one network with the cosines of their gradients, ``(epochs,)``."""
        found = [
            (one, other, self.values(one, f"gradient_cosine_{other}"))
            for group in self.groups
            for one, other in combinations(group, 2)
        ]
        return [(one, other, line) for one, other, line in found if np.isfinite(line).any()]


@dataclass(frozen=True, slots=True)
class Gating:
    """
    How the gates of one network use its experts in the kept epoch.

    Parameters
    ----------
    tasks : sequence of str
    experts : sequence of str
        Such as "fraud 1" and "shared 2".
    weights : ndarray of shape (tasks, experts)
        Mean weights; NaN where a gate cannot select.
    is_whole : bool
        Whether these are all gates of the network.
    """

    tasks: Sequence[str]
    experts: Sequence[str]
    weights: NDArray[np.float64]
    is_whole: bool

    @property
    def most(self) -> NDArray[np.float64]:
        """The largest mean weight that any gate gives each expert."""
        return np.asarray(np.nanmax(self.weights, axis=0))

    @property
    def dead(self) -> list[str]:
        """Experts that no gate uses; none is said to be where there are gates not told of."""
        if not self.is_whole:
            return []
        return [name for name, most in zip(self.experts, self.most, strict=True) if most < DEAD]


def gatings(course: Course) -> list[Gating]:
    """
    How gates use experts, network by network; empty where there are no gates.

    Parameters
    ----------
    course : Course

    Returns
    -------
    list of Gating
    """
    found = []
    if "gate_weights" not in course.history.columns:
        return []
    for group, untold in zip(course.groups, course.untold, strict=True):
        lines = [
            course.history.filter(pl.col("kept"), pl.col("gate_weights").is_not_null(), task=task)
            for task in group
        ]
        told = [
            (task, line["gate_weights"][-1]) for task, line in zip(group, lines, strict=True)
            if line.height
        ]  # fmt: skip
        if told and len({len(weights) for _, weights in told}) == 1:
            tasks = [task for task, _ in told]
            weights = np.array(
                [line.cast(pl.Float64).fill_null(np.nan).to_numpy() for _, line in told]
            )
            # After only() there may be experts of heads that are gone.
            weights = weights[:, ~np.isnan(weights).all(axis=0)]
            names = _expert_names(tasks, ~np.isnan(weights))
            found.append(Gating(tasks, names, weights, is_whole=not untold))
    return found


def _expert_names(tasks: Sequence[str], selects: NDArray[np.bool_]) -> list[str]:
    """An expert that one gate of several can select is that head's own; the others are shared."""
    if len(tasks) == 1:
        owners = ["expert"] * selects.shape[1]
    else:
        owners = [tasks[int(line.argmax())] if line.sum() == 1 else "shared" for line in selects.T]
    return [f"{name} {1 + owners[:place].count(name)}" for place, name in enumerate(owners)]
