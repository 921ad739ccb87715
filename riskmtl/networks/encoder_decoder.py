"""A shared encoder to a compact code, and a decoder per task."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from riskmtl.networks.config import NetworkConfig
from riskmtl.networks.layers import GroupLinear, GroupMLP
from riskmtl.networks.trunk import Trace, Trunk, owned

_RIDGE = 1e-3


class EncoderDecoder(Trunk):
    """
    One shared encoder, linear at its end, whose code is all that the tasks' decoders see.

    Parameters
    ----------
    in_features, tasks : int
    config : NetworkConfig
        Uses ``shared_units``, ``code_width``, ``decoder_units`` and ``dropout``.

    Notes
    -----
    ``trace.penalties["reconstruction"]`` is what :func:`unexplained` says of the embedded rows and
    the code. It counts all rows, so that those without any label teach the encoder too.
    """

    strengths = MappingProxyType({"reconstruction": 0.1})

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.tasks = tasks
        self.encoder = GroupMLP(1, in_features, config.shared_units, dropout=config.dropout)
        self.code = GroupLinear(1, self.encoder.out_features, config.code_width)
        self.decoders = GroupMLP(
            tasks, config.code_width, config.decoder_units, dropout=config.dropout
        )
        self.out_features = self.decoders.out_features

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        """First linear layer of the encoder."""
        return (self.encoder.first(x),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        """The code, and what each task's decoder makes of it."""
        code = self.code(self.encoder.rest(*parts))  # (1, batch, code)
        if trace is not None:
            trace.shared = code
            if trace.rows is not None:
                trace.penalties["reconstruction"] = unexplained(trace.rows.detach(), code[0])
        return self.decoders(code[0])

    def owners(self) -> dict[str, Tensor]:
        """Each task has its decoder."""
        return owned(self.decoders, "decoders", torch.arange(self.tasks))

    def only(self, tasks: Sequence[int]) -> EncoderDecoder:
        """A copy with the decoders of some of the tasks."""
        smaller = copy.deepcopy(self)
        smaller.tasks = len(tasks)
        smaller.decoders = self.decoders.only(tasks)
        return smaller


def unexplained(rows: Tensor, code: Tensor) -> Tensor:
    r"""
    Share of the rows' variance that the best linear map of the code leaves unexplained.

    Parameters
    ----------
    rows : Tensor of shape (batch, in)
    code : Tensor of shape (batch, width)

    Returns
    -------
    Tensor
        A number: 0 where the code holds all that is in the rows, 1 where it holds nothing.

    Notes
    -----
    With rows :math:`X` and code :math:`C` standardised over the batch, :math:`n` rows and
    :math:`d` columns, :math:`\min_B \lVert X - C B \rVert^2 / (n d) + \lambda \lVert B \rVert^2 /
    d`. The minimum is known in closed form, so the reconstruction has no weights to learn, store or
    leave out of scoring; its map follows the code at once. By the envelope theorem the gradient at
    the minimum is that with :math:`B` held fast. In a batch with no more rows than the code has
    numbers, any code explains nearly everything, and little is learned.

    Examples
    --------
    >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]])
    >>> unexplained(rows, rows[:, :1]) < 0.002
    tensor(True)
    """
    with torch.autocast(rows.device.type, enabled=False):
        # Whatever training multiplies in, equations are solved in no less than float32.
        precise = torch.promote_types(rows.dtype, torch.float32)
        x, c = _standardised(rows.to(precise)), _standardised(code.to(precise))
        with torch.no_grad():
            ridge = _RIDGE * torch.eye(c.shape[1], dtype=precise, device=c.device)
            back = torch.linalg.solve(c.t() @ c / len(c) + ridge, c.t() @ x / len(c))
            shrunk = _RIDGE * back.square().sum() / x.shape[1]
        return (x - c @ back).square().mean() + shrunk


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 in each column; a constant one is 0."""
    centred = x - x.mean(0)
    return centred * (centred.square().mean(0) + 1e-6).rsqrt()
