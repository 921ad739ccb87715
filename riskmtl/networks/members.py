"""
Weight-sharing members: several networks in one, told apart by how they scale their input.

Each member multiplies the embedded input by a vector of its own before the first shared layer, and
has towers of its own after the last; all that lies between is shared. Their answers are averaged.
Gorishniy et al. 2025 (TabM) call this form "mini".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class MemberScalings(nn.Module):
    r"""
    Scale the embedded input by a vector per member: :math:`x_k = r_k \odot x`.

    Parameters
    ----------
    members : int
    widths : sequence of int
        Numbers per embedded feature.

    Notes
    -----
    Each member begins with a random sign for each whole feature: the embedding keeps its length,
    and members see it from different sides. The vectors are no ``weight``, and so do not decay
    towards a member that sees nothing.

    Examples
    --------
    >>> MemberScalings(4, [3, 3])(torch.rand(10, 6)).shape
    torch.Size([40, 6])
    """

    def __init__(self, members: int, widths: Sequence[int]) -> None:
        super().__init__()
        signs = torch.randint(2, (members, 1, len(widths))) * 2.0 - 1.0
        self.scale = nn.Parameter(signs.repeat_interleave(torch.tensor(widths), dim=-1))

    def cut(self, members: int) -> MemberScalings:
        """The first of the members only."""
        smaller = copy.deepcopy(self)
        smaller.scale.data = smaller.scale.data[:members].clone()
        return smaller

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in)`` to ``(members * batch, in)``, member by member."""
        return (x * self.scale).flatten(0, 1)


def pool_members(outputs: Tensor, regression: Tensor) -> Tensor:
    r"""
    Average what the members say: probabilities of binary tasks, predictions of regressions.

    Parameters
    ----------
    outputs : Tensor of shape (members, batch, tasks)
        Log-odds, or predictions.
    regression : Tensor of bool, shape (tasks,)

    Returns
    -------
    Tensor of shape (batch, tasks)
        The log-odds of the mean probability, or the mean prediction.

    Examples
    --------
    >>> outputs = torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]]])
    >>> pool_members(outputs, torch.tensor([False, True]))
    tensor([[0., 2.]])
    """
    if len(outputs) == 1:
        return outputs[0]
    # Through logarithms, so that very small probabilities keep their digits.
    log_odds = functional.logsigmoid(outputs).logsumexp(0)
    log_odds = log_odds - functional.logsigmoid(-outputs).logsumexp(0)
    return torch.where(regression, outputs.mean(0), log_odds)
