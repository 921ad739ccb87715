"""Soft parameter sharing: a body per task, held together by a penalty or by learned mixing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupMLP
from riskmtl.networks.trunk import Trace, Trunk, owned


def soft_sharing(in_features: int, tasks: int, config: NetworkConfig) -> Trunk:
    """
    A body per task, tied as ``config.tie`` says.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig

    Returns
    -------
    Trunk
        :class:`StitchedBodies` for ``"cross_stitch"``, else :class:`TiedBodies`.
    """
    kind = StitchedBodies if config.tie == "cross_stitch" else TiedBodies
    return kind(in_features, tasks, config)


class TiedBodies(Trunk):
    r"""
    A body per task over the shared embedding, and a penalty on how far they are from one another.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units``, ``tie`` and ``dropout``.

    Notes
    -----
    With the weights and biases of task :math:`t` in a layer of :math:`u` units as :math:`W_t`, the
    penalty ``trace.penalties["tie"]`` is, summed over the layers,

    - ``"l2"``: :math:`\sum_t \lVert W_t - \bar W \rVert_F^2 / (T u)` (Duong et al. 2015, for any
      number of tasks): the mean squared distance of a unit's weights from their mean over tasks;
    - ``"trace_norm"``: :math:`\lVert W \rVert_* / \sqrt{T u}`, the sum of the singular values of
      the matrix with a row :math:`W_t` per task (Yang and Hospedales 2017).

    The divisors make both independent of numbers of tasks and units: with units of length one, the
    trace norm of a layer is 1 where all bodies are equal, and :math:`\sqrt T` where they have
    nothing in common.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bodies = GroupMLP(tasks, in_features, config.shared_units, dropout=config.dropout)
        self.tie = _TIES[config.tie]
        # The trace norm also pulls at the length of the weights: more of it can empty a body.
        self.strengths = {"tie": 0.1 if config.tie == "l2" else 0.01}
        self.out_features = self.bodies.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the bodies."""
        return (self.bodies.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """Each task's own body."""
        if trace is not None:
            # Behind the embedded rows nothing is shared.
            trace.shared = trace.rows
            trace.penalties["tie"] = torch.stack([self.tie(w) for w in self._weights()]).sum()
        return self.bodies.rest(*parts)

    def owners(self) -> dict[str, Tensor]:
        """Each task has its body."""
        return owned(self.bodies, "bodies", torch.arange(len(self._weights()[0])))

    def only(self, tasks: Sequence[int]) -> TiedBodies:
        """A copy with the bodies of some of the tasks."""
        smaller = copy.deepcopy(self)
        smaller.bodies = self.bodies.only(tasks)
        return smaller

    def _weights(self) -> list[Tensor]:
        """Weights and biases of each layer, ``(tasks, in + 1, units)``."""
        return [torch.cat(tuple(layer.parameters()), dim=1) for layer in self.bodies.layers]


class CrossStitch(nn.Module):
    r"""
    Mix the activations of the tasks: :math:`\tilde x_t = \sum_s \alpha_{ts} x_s`.

    Parameters
    ----------
    tasks : int

    Notes
    -----
    Equation 1 of Misra et al. 2016. A task begins with 0.9 of its own and 0.1 of the others', in
    equal parts. The factors are no ``weight``: to decay would be to fade.

    Examples
    --------
    >>> CrossStitch(2)(torch.tensor([[[1.0]], [[0.0]]])).flatten().tolist()
    [0.8999999761581421, 0.10000000149011612]
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        others = 0.1 / max(1, tasks - 1)
        own = 0.9 if tasks > 1 else 1.0
        self.alpha = nn.Parameter(torch.full((tasks, tasks), others).fill_diagonal_(own))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(tasks, batch, width)`` to ``(tasks, batch, width)``."""
        return (self.alpha @ x.flatten(1)).view(len(self.alpha), *x.shape[1:])

    def only(self, tasks: Sequence[int]) -> CrossStitch:
        """A copy that gives the mixtures of some of the tasks."""
        smaller = copy.deepcopy(self)
        smaller.alpha.data = self.alpha.data[list(tasks)]
        return smaller


class StitchedBodies(Trunk):
    """
    A body per task, and learned mixing of all tasks' activations after each layer.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units`` and ``dropout``.
    """

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.bodies = GroupMLP(tasks, in_features, config.shared_units, dropout=config.dropout)
        self.stitches = nn.ModuleList(CrossStitch(tasks) for _ in config.shared_units)
        self.out_features = self.bodies.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the bodies."""
        return (self.bodies.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """Layer by layer, each task's and then the mixture."""
        *inner, last = self.stitches
        x = self.bodies.rest(*parts, between=inner)
        if trace is not None:
            trace.shared = x
        return last(x)

    def owners(self) -> dict[str, Tensor]:
        """Each task has its factors of the last mixture; all that lies before feeds every task."""
        last = len(self.stitches) - 1
        tasks = len(self._last.alpha)
        return owned(self._last, f"stitches.{last}", torch.arange(tasks))

    def only(self, tasks: Sequence[int]) -> StitchedBodies:
        """A copy that mixes for some of the tasks at last; it needs all bodies."""
        smaller = copy.deepcopy(self)
        smaller.stitches[-1] = self._last.only(tasks)
        return smaller

    @property
    def _last(self) -> CrossStitch:
        last = self.stitches[-1]
        assert isinstance(last, CrossStitch)
        return last


def squared_distance(weights: Tensor) -> Tensor:
    """
    Mean squared distance of a unit's weights from their mean over the tasks.

    Parameters
    ----------
    weights : Tensor of shape (tasks, in, units)

    Returns
    -------
    Tensor
        A number.

    Examples
    --------
    >>> squared_distance(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]))
    tensor(0.5000)
    """
    tasks, _, units = weights.shape
    return (weights - weights.mean(0)).square().sum() / (tasks * units)


def trace_norm(weights: Tensor) -> Tensor:
    """
    Sum of the singular values of the matrix with a row per task, for units of length one.

    Parameters
    ----------
    weights : Tensor of shape (tasks, in, units)

    Returns
    -------
    Tensor
        A number.

    Examples
    --------
    >>> trace_norm(torch.tensor([[[1.0], [0.0]], [[1.0], [0.0]]]))
    tensor(1.)
    """
    tasks, _, units = weights.shape
    return torch.linalg.matrix_norm(weights.flatten(1), ord="nuc") / (tasks * units) ** 0.5


_TIES = {"l2": squared_distance, "trace_norm": trace_norm}
