"""Mixing pairs of rows (Zhang et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    r"""
    Which rows of a batch are mixed, and how: :math:`\lambda x_i + (1 - \lambda) x_{j(i)}`.

    Encoded rows hold codes, of which there is no mean: they are mixed behind the embedding. The
    loss is :math:`\lambda L(y) + (1 - \lambda) L(y_j)`, each over the labels observed there, so
    that an unobserved label hides no other.

    Parameters
    ----------
    partner : Tensor of int, shape (batch,)
    share : float
        :math:`\lambda`.

    Examples
    --------
    >>> Mix(torch.tensor([1, 0]), 0.75).of(torch.tensor([[0.0], [4.0]]))
    tensor([[1.],
            [3.]])
    """

    partner: Tensor
    share: float

    def of(self, rows: Tensor) -> Tensor:
        """Mix ``(batch, width)``."""
        return torch.lerp(rows[self.partner], rows, self.share)


def draw_mix(rows: int, concentration: float, device: torch.device) -> Mix:
    r"""
    Draw partners and one share for a batch, from torch's own generator.

    Parameters
    ----------
    rows : int
    concentration : float
        :math:`\alpha` of the distribution :math:`\mathrm{Beta}(\alpha, \alpha)` of the share.
    device : torch.device

    Returns
    -------
    Mix
    """
    # Two gamma numbers in logarithms, from those of one concentration more (Marsaglia & Tsang
    # 2000, section 6): of a small one they are all but 0, and their share would be of two zeros.
    more = torch.tensor(concentration + 1.0, dtype=torch.float64)
    drawn = torch.distributions.Gamma(more, torch.ones_like(more)).sample((2,))
    first, second = drawn.log() + torch.rand_like(drawn).log() / concentration
    return Mix(torch.randperm(rows, device=device), float((first - second).sigmoid()))
