"""What lies between embedding and towers, and what a pass through it leaves behind."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

SHARED = -1  # owner of what no task has for itself


class Gated(NamedTuple):
    """
    What the gates and experts of one level say.

    Parameters
    ----------
    weights : Tensor of shape (gates, batch, experts)
        A gate per task, and one for the shared stream where a level follows.
    experts : Tensor of shape (experts, batch, width)
    stream : Tensor of int, shape (experts,)
        The task that owns each expert; the number of tasks: all share it.
    """

    weights: Tensor
    experts: Tensor
    stream: Tensor

    def only(self, tasks: Sequence[int]) -> Gated:
        """What gates of some tasks say at a last level, and the experts that they may select."""
        places = {task: position for position, task in enumerate([*tasks, len(self.weights)])}
        streams = self.stream.tolist()
        kept = [expert for expert, stream in enumerate(streams) if stream in places]
        stream = self.stream.new_tensor([places[streams[expert]] for expert in kept])
        return Gated(self.weights[list(tasks)][:, :, kept], self.experts[kept], stream)


@dataclass(slots=True)
class Trace:
    """
    What one pass leaves behind for whoever asks for it.

    Attributes
    ----------
    rows : Tensor of shape (members * batch, in), optional
        What came into the trunk.
    gated : list of Gated
        Each level of experts; none where there are no gates.
    shared : Tensor, optional
        The last representation through which every task's loss reaches the shared part, of any
        shape. Gradients of the losses at it stand for those of the shared parameters.
    penalties : dict of str to Tensor
        What the way of sharing wants to be small, each a number.
    """

    rows: Tensor | None = None
    gated: list[Gated] = field(default_factory=list)
    shared: Tensor | None = None
    penalties: dict[str, Tensor] = field(default_factory=dict)


class Trunk(nn.Module, ABC):
    """
    What lies between embedding and towers: one way of sharing.

    A subclass is made from ``(in_features, tasks, config)`` and says what comes first and what
    comes after. The first step must be affine: explanations mix rows behind it, where that is
    cheap.

    Attributes
    ----------
    out_features : int
    strengths : mapping of str to float
        Factors that its penalties have in training where nobody says otherwise; 0 if not named.
    """

    out_features: int
    strengths: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(batch, in)`` to tensors ``(…, batch, width)``, each affine in `x`."""

    @abstractmethod
    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """
        Map what :meth:`first` gives to a representation per task.

        Parameters
        ----------
        *parts : Tensor
        trace : Trace, optional
            Filled with what this pass leaves behind.

        Returns
        -------
        Tensor of shape (tasks, batch, out)
        """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` to ``(tasks, batch, out)``."""
        return self.rest(*self.first(x))

    def owners(self) -> dict[str, Tensor]:
        """
        Whose each parameter is.

        Returns
        -------
        dict of str to Tensor of int
            For each parameter of which a task owns a part: the task of each slice along its first
            axis, or :data:`SHARED`. A parameter that is not named is shared whole.
        """
        return {}

    def only(self, tasks: Sequence[int]) -> Trunk:
        """
        A trunk that answers for some of the tasks.

        Parameters
        ----------
        tasks : sequence of int

        Returns
        -------
        Trunk
            All of this one, with the other representations left out; a subclass that knows what
            only the other tasks use drops that.
        """
        return SomeTasks(self, tasks)


class SomeTasks(Trunk):
    """
    A whole trunk that answers for some of its tasks.

    Parameters
    ----------
    whole : Trunk
    tasks : sequence of int
    """

    def __init__(self, whole: Trunk, tasks: Sequence[int]) -> None:
        super().__init__()
        self.whole = copy.deepcopy(whole)
        self.tasks = list(tasks)
        self.out_features = whole.out_features
        self.strengths = dict(whole.strengths)

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the whole trunk does first."""
        return self.whole.first(x)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """What it does then, for some tasks."""
        found = self.whole.rest(*parts, trace=trace)[self.tasks]
        if trace is not None and trace.gated:
            # At the levels before, all experts still feed the shared stream.
            trace.gated[-1] = trace.gated[-1].only(self.tasks)
        return found

    def owners(self) -> dict[str, Tensor]:
        """Whose each parameter of the whole is; what a task owned that is left out is shared."""
        return {
            f"whole.{name}": torch.tensor(
                [self.tasks.index(o) if o in self.tasks else SHARED for o in owners.tolist()]
            )
            for name, owners in self.whole.owners().items()
        }

    def only(self, tasks: Sequence[int]) -> SomeTasks:
        """The same whole, for fewer of its tasks."""
        return SomeTasks(self.whole, [self.tasks[task] for task in tasks])


def owned(module: nn.Module, prefix: str, owners: Tensor) -> dict[str, Tensor]:
    """
    The same owners for every parameter of a module over groups.

    Parameters
    ----------
    module : Module
        Its parameters have the groups as their first axis.
    prefix : str
        Name of the module, before those of its parameters.
    owners : Tensor of int, shape (groups,)

    Returns
    -------
    dict of str to Tensor
    """
    return {f"{prefix}.{name}": owners for name, _ in module.named_parameters()}
