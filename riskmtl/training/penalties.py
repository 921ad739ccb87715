"""
What training may want to be small beside the losses of the tasks.

======================  =========================================================================
``gate_entropy``        mean entropy of the gates' weights: gates that decide
``load_balance``        how unevenly experts are used: no expert that nobody uses
``gates``               what a sparse gate wants of itself, from the network
``tie``                 distance of the bodies of soft sharing, from the network
``reconstruction``      squared error of the inputs made again from the code, from the network
``order``               a later task likelier than the one before it, of ``aitm``
======================  =========================================================================

The last four come with a network, which says how strong they are where it is not what it is
without them (:attr:`riskmtl.networks.trunk.Trunk.strengths`). The others count only where asked
for. Of several processes each takes the penalties over its share of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from riskmtl.networks import Gated, Network, Trace
from riskmtl.networks.aitm import order_penalty

OF_GATES = ("gate_entropy", "load_balance")
PENALTIES = (*OF_GATES, "gates", "tie", "reconstruction", "order")


def gate_entropy(gated: list[Gated]) -> Tensor:
    r"""
    Mean entropy of the gates' weights, over rows, gates and levels.

    Parameters
    ----------
    gated : list of Gated

    Returns
    -------
    Tensor of shape ()
        :math:`-\sum_e w_e \log w_e`: 0 where every gate has chosen one expert.

    Examples
    --------
    >>> weights = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    >>> gate_entropy([Gated(weights, torch.zeros(2, 2, 1), torch.tensor([1, 1]))])
    tensor(0.3466)
    """
    weights = [level.weights.flatten(0, 1) for level in gated]  # (gates * batch, experts)
    # Never the logarithm of 0, whose slope would make NaN of the gradient of a blocked expert.
    entropies = [-(w * w.clamp(min=1e-12).log()).sum(-1) for w in weights]
    return _mean(torch.cat(entropies))


def load_balance(gated: list[Gated]) -> Tensor:
    r"""
    How unevenly the experts of a level are used: the squared coefficient of variation of their use.

    Parameters
    ----------
    gated : list of Gated

    Returns
    -------
    Tensor of shape ()
        Mean over the levels; 0 where all experts of each level are used alike.

    Notes
    -----
    Shazeer et al. 2017, equation 7, which knows one gate over all experts. With several, the use
    of an expert is the mean of :math:`n_g w_{ge}` over the rows and over the gates :math:`g` that
    may select it, of :math:`n_g` experts each: gates that weigh all of theirs alike give 1, however
    many experts each of them has. Gates of different tasks may still prefer different experts, so
    long as every expert is somebody's.

    Examples
    --------
    >>> weights = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # each of two gates has its own
    >>> load_balance([Gated(weights, torch.zeros(2, 1, 1), torch.tensor([2, 2]))])
    tensor(0.)
    """
    return torch.stack([_squared_variation(_use(level)) for level in gated]).mean()


def _use(level: Gated) -> Tensor:
    """How much each expert is used, ``(experts,)``; 1 is its fair share."""
    gates, rows, _ = level.weights.shape
    everybody = level.stream.max()
    gate = torch.arange(gates, device=level.stream.device).unsqueeze(1)
    # As in the gates of :class:`riskmtl.networks.ple.ExtractionLayer`: (gates, experts).
    selects = (gate == level.stream) | (level.stream == everybody) | (gate == everybody)
    mean = level.weights.sum(1) / max(rows, 1)
    return (mean * selects.sum(1, keepdim=True)).sum(0) / selects.sum(0)


def _squared_variation(use: Tensor) -> Tensor:
    mean = use.mean()
    return (use - mean).square().mean() / mean.square().clamp(min=1e-12)


def _mean(values: Tensor) -> Tensor:
    # A process may have no row in its share.
    return values.sum() / max(values.numel(), 1)


class Penalties:
    """
    The sum of the penalties that a training has, each by its factor.

    Parameters
    ----------
    factors : mapping of str to float
        Those above 0; see :func:`penalty_factors`.
    event_factors : sequence of float, optional
        Factor on the events of each task, which the outputs hold and probabilities do not.
    """

    def __init__(
        self, factors: Mapping[str, float], event_factors: Sequence[float] | None = None
    ) -> None:
        self.factors = dict(factors)
        self.shift = None if event_factors is None else torch.tensor(event_factors).log()

    def trace(self) -> Trace | None:
        """A trace for the next pass to fill; ``None`` where no penalty asks for one."""
        return Trace() if self.factors.keys() - {"order"} else None

    def __call__(self, outputs: Tensor, trace: Trace | None) -> Tensor | float:
        """
        Add up the penalties of one pass.

        Parameters
        ----------
        outputs : Tensor of shape (members, batch, tasks)
        trace : Trace, optional

        Returns
        -------
        Tensor of shape (), or 0.0 where there are none
        """
        total: Tensor | float = 0.0
        for name, factor in self.factors.items():
            if name == "order":
                shift = 0.0 if self.shift is None else self.shift.to(outputs)
                total = total + factor * order_penalty(outputs - shift)
            else:
                assert trace is not None
                total = total + factor * _penalty(name, trace)
        return total


def _penalty(name: str, trace: Trace) -> Tensor:
    if name == "gate_entropy":
        return gate_entropy(trace.gated)
    if name == "load_balance":
        return load_balance(trace.gated)
    return trace.penalties[name]


def penalty_factors(
    network: Network, name: str, asked: Mapping[str, float], rows: Tensor
) -> dict[str, float]:
    """
    Factors of the penalties that a network is trained with.

    Parameters
    ----------
    network : Network
    name : str
        Its name among the networks.
    asked : mapping of str to float
        Factors asked for; what is not named has its default.
    rows : Tensor of shape (rows, features)
        A few encoded rows, on which the network shows what it has.

    Returns
    -------
    dict of str to float
        Those above 0.

    Raises
    ------
    ValueError
        If a penalty is asked for that the network does not have, or that its heads do not allow.
    """
    trace = Trace()
    with torch.no_grad():
        network(rows, trace=trace)
    has = [*(OF_GATES if trace.gated else ()), *trace.penalties, *(["order"] * (name == "aitm"))]
    for penalty in asked:
        if penalty not in has:
            valid = f"it has {', '.join(has)}" if has else "it has none"
            raise ValueError(f"penalties: network {name!r} has no {penalty!r}; {valid}")
    if asked.get("order") and network.regression.any():
        raise ValueError("penalties: 'order' compares probabilities, and a regression has none")
    strengths = network.trunk.strengths
    factors = {penalty: asked.get(penalty, strengths.get(penalty, 0.0)) for penalty in has}
    return {penalty: factor for penalty, factor in factors.items() if factor > 0}
