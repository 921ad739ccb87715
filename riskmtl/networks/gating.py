"""
Gates: how much a task listens to each expert, row by row.

What a gate makes of a row in the first place is linear; what follows, here, turns it to weights
that add up to one over the experts that the gate may select. A gate that leaves experts out still
computes them: few weights make a mixture easier to read and to keep apart, not quicker.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupLinear
from riskmtl.networks.trunk import Trace

_TINY = 1e-6  # keeps a logarithm from zero


class Gates(nn.Module):
    r"""
    One softmax over experts per gate: :math:`w_g(x) = \mathrm{softmax}(W_g x)`.

    Parameters
    ----------
    in_features : int
    selects : Tensor of bool, shape (gates, experts)
        Which experts each gate may select; at least one.
    numbers : int, optional
        Numbers that the linear form gives each gate; default: one per expert.
    dropout : float
        Share of its experts that a gate does without in a training step; one always stays.

    Notes
    -----
    Equation 6 of Ma et al. 2018 (MMoE) and equation 3 of Tang et al. 2020 (PLE); no bias there.

    Examples
    --------
    >>> Gates(4, torch.ones(2, 3, dtype=torch.bool))(torch.zeros(1, 4))[0]
    tensor([[0.3333, 0.3333, 0.3333]], grad_fn=<SelectBackward0>)
    """

    blocked: Tensor

    def __init__(
        self,
        in_features: int,
        selects: Tensor,
        *,
        numbers: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        gates, experts = selects.shape
        self.linear = GroupLinear(gates, in_features, numbers or experts, bias=False)
        self.register_buffer("blocked", ~selects.unsqueeze(1), persistent=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` or ``(gates, batch, in)`` to weights ``(gates, batch, experts)``."""
        return self.weights(self.linear(x))

    def weights(self, logits: Tensor, *, trace: Trace | None = None) -> Tensor:
        """
        Map what the linear form gives to weights.

        Parameters
        ----------
        logits : Tensor of shape (gates, batch, numbers)
        trace : Trace, optional
            Gets the penalty of gates that have one.

        Returns
        -------
        Tensor of shape (gates, batch, experts)
        """
        return _softmax(logits.masked_fill(self.left_out(), -math.inf))

    def left_out(self) -> Tensor:
        """Which experts each gate does without in this pass, ``(gates, 1, experts)``."""
        if not (self.training and self.dropout):
            return self.blocked
        luck = torch.rand(self.blocked.shape, device=self.blocked.device)
        luck = luck.masked_fill(self.blocked, -1.0)
        # The luckiest stays, however many are dropped.
        return (luck < self.dropout) & (luck < luck.amax(-1, keepdim=True))

    def only(self, gates: Sequence[int], experts: Sequence[int]) -> Gates:
        """A copy with some of the gates, over some of the experts, all that these may select."""
        smaller = copy.deepcopy(self)
        weight = smaller.linear.weight
        weight.data = weight.data[list(gates)][:, :, list(experts)].contiguous()
        smaller.blocked = self.blocked[list(gates)][:, :, list(experts)].contiguous()
        return smaller


class TopKGates(Gates):
    r"""
    A softmax over the :math:`k` experts with the largest logits, row by row.

    Parameters
    ----------
    in_features, selects, dropout
        As for :class:`Gates`.
    active : int
        Experts that each gate lets through: all that it may select, where these are fewer, and
        all that are level with the last of them, as where a row is zero.

    Notes
    -----
    Equations 3 and 5 of Shazeer et al. 2017, without the noise: an expert that no row selects is
    brought back by the penalty ``load_balance``, see :mod:`riskmtl.training.penalties`.
    """

    def __init__(
        self, in_features: int, selects: Tensor, *, active: int, dropout: float = 0.0
    ) -> None:
        super().__init__(in_features, selects, dropout=dropout)
        self.active = active

    def weights(self, logits: Tensor, *, trace: Trace | None = None) -> Tensor:
        """Map what the linear form gives to weights, of which few are above zero."""
        logits = logits.masked_fill(self.left_out(), -math.inf)
        best = logits.topk(min(self.active, logits.shape[-1]), dim=-1).values
        return _softmax(logits.masked_fill(logits < best[..., -1:], -math.inf))


class DSelectKGates(Gates):
    r"""
    A weighted sum of :math:`k` selectors, each of which comes to choose a single expert.

    A selector has :math:`m` numbers, whose smooth steps :math:`s_b` are the bits of a code, and
    :math:`r_c = \prod_b s_b^{c_b} (1 - s_b)^{1 - c_b}` is the share of code :math:`c`. Every code
    stands for an expert that the gate may select. The weights are
    :math:`\sum_i \mathrm{softmax}(\alpha)_i r^{(i)}`, with :math:`\alpha` and the bits' numbers
    linear in the row.

    Parameters
    ----------
    in_features, selects, dropout
        As for :class:`Gates`.
    active : int
        Selectors of each gate; at most as many as the most experts that one may select.

    Notes
    -----
    Hazimeh et al. 2021, in the form with a choice for each example. Where experts are no power of
    two, the paper leaves some codes without an expert and penalises what falls there, so that
    weights add up to less than one. Here these codes go to the experts too, in turn: weights add
    up to one whatever the number of experts, and nothing needs a penalty but the entropy of the
    selectors, which makes them choose: ``trace.penalties["gates"]``, summed over levels.
    """

    expert_of: Tensor

    def __init__(
        self, in_features: int, selects: Tensor, *, active: int, dropout: float = 0.0
    ) -> None:
        most = int(selects.sum(1).max())
        selectors, bits = min(active, most), (most - 1).bit_length()
        numbers = selectors * (1 + bits)
        super().__init__(in_features, selects, numbers=numbers, dropout=dropout)
        self.selectors = selectors
        self.register_buffer("expert_of", _expert_of(selects, bits), persistent=False)
        with torch.no_grad():
            # Where a step is flat nothing is learned: all bits begin near its middle.
            self.linear.weight[..., self.selectors :] *= 0.1

    def weights(self, logits: Tensor, *, trace: Trace | None = None) -> Tensor:
        """Map what the linear form gives to weights, of which few are above zero in the end."""
        scores, bits = logits[..., : self.selectors], logits[..., self.selectors :]
        # (gates, batch, selectors, bits) to (gates, batch, selectors, codes)
        shape = *bits.shape[:2], self.selectors, bits.shape[-1] // self.selectors
        codes = _codes(smooth_step(bits.reshape(shape)))
        # (gates, batch, selectors, experts)
        selected = torch.matmul(codes, self.expert_of.unsqueeze(1))
        if trace is not None:
            shares = selected.to(torch.promote_types(selected.dtype, torch.float32))
            entropy = -(shares * (shares + _TINY).log()).sum(-1).mean()
            trace.penalties["gates"] = trace.penalties.get("gates", 0.0) + entropy
        weights = (scores.softmax(-1).unsqueeze(-1) * selected).sum(2)
        return self._handed_on(weights) if self.training and self.dropout else weights

    def only(self, gates: Sequence[int], experts: Sequence[int]) -> Gates:
        """A copy with some of the gates, over some of the experts, all that these may select."""
        smaller = copy.deepcopy(self)
        smaller.linear.weight.data = self.linear.weight.data[list(gates)]
        smaller.blocked = self.blocked[list(gates)][:, :, list(experts)].contiguous()
        smaller.expert_of = self.expert_of[list(gates)][:, :, list(experts)].contiguous()
        return smaller

    def _handed_on(self, weights: Tensor) -> Tensor:
        """Hand the weight of dropped experts to the others, in equal parts."""
        kept = (~self.left_out()).to(weights.dtype)
        # What is dropped is summed: taken from 1, rounding could leave less than nothing.
        dropped = (weights * (1 - kept)).sum(-1, keepdim=True)
        return (weights + dropped / kept.sum(-1, keepdim=True)) * kept


GATINGS: dict[str, Callable[[int, Tensor, NetworkConfig], Gates]] = {
    "softmax": lambda width, selects, config: Gates(width, selects, dropout=config.expert_dropout),
    "top_k": lambda width, selects, config: TopKGates(
        width, selects, active=config.active_experts, dropout=config.expert_dropout
    ),
    "dselect_k": lambda width, selects, config: DSelectKGates(
        width, selects, active=config.active_experts, dropout=config.expert_dropout
    ),
}


def make_gates(in_features: int, selects: Tensor, config: NetworkConfig) -> Gates:
    """
    Make the gates that a network asks for.

    Parameters
    ----------
    in_features : int
    selects : Tensor of bool, shape (gates, experts)
        Which experts each gate may select.
    config : NetworkConfig
        Uses ``gating``, ``active_experts`` and ``expert_dropout``.

    Returns
    -------
    Gates
    """
    return GATINGS[config.gating](in_features, selects, config)


def smooth_step(x: Tensor) -> Tensor:
    r"""
    A step from 0 to 1 that is exact outside of :math:`[-1/2, 1/2]`.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    Tensor
        :math:`-2x^3 + 3x/2 + 1/2` in between (Hazimeh et al. 2021, with gamma = 1).

    Examples
    --------
    >>> smooth_step(torch.tensor([-2.0, -0.5, 0.0, 0.25, 0.5])).tolist()
    [0.0, 0.0, 0.5, 0.84375, 1.0]
    """
    x = x.clamp(-0.5, 0.5)
    return (1.5 - 2 * x * x) * x + 0.5


def _softmax(logits: Tensor) -> Tensor:
    # Along a short last axis a softmax goes number by number, along the rows by vectors.
    by_row = logits.transpose(1, 2).contiguous()
    return by_row.softmax(1).transpose(1, 2).contiguous()


def _expert_of(selects: Tensor, bits: int) -> Tensor:
    """Which expert each code stands for, ones and zeros of shape (gates, codes, experts)."""
    gates, experts = selects.shape
    found = torch.zeros(gates, 2**bits, experts)
    for gate, line in enumerate(selects):
        own = line.nonzero().flatten()
        codes = torch.arange(2**bits)
        found[gate, codes, own[codes % len(own)]] = 1.0
    return found


def _codes(bits: Tensor) -> Tensor:
    """Map bits ``(…, bits)`` to the shares of all codes, ``(…, codes)``; the first bit is low."""
    shares = bits.new_ones(*bits.shape[:-1], 1)
    for bit in bits.unbind(-1):
        shares = torch.cat([shares * (1 - bit[..., None]), shares * bit[..., None]], dim=-1)
    return shares
