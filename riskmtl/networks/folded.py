"""
A network as many rows are scored with it: embedding and first layer are one table.

Each feature is embedded on its own, and what a trunk does first is affine in the embedded row. So
what it gives is a sum of functions of one feature each: a line of the table per code of a category,
and a straight line between two knots of a number. To add up two lines a feature takes far less time
than to embed the feature and multiply all that it was embedded as.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from riskmtl.networks import Network
from riskmtl.networks.embedding import PiecewiseLinear

# A larger table takes memory, and leaves the cache.
MOST_NUMBERS = 16 * 2**20


def fold(network: Network, cardinalities: Sequence[int]) -> FoldedNetwork | None:
    """
    Make a network's table.

    Parameters
    ----------
    network : Network
        On a CPU, in evaluation mode. The table keeps its weights as they are now.
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.

    Returns
    -------
    FoldedNetwork or None
        None where the network has members, or no piecewise-linear features, or where the table
        would be too large.
    """
    numeric = network.embedding.numeric
    if network.members is not None or not isinstance(numeric, PiecewiseLinear):
        return None
    knots = numeric.knots()
    lines = sum(2 * (len(own) + 1) for own in knots) + sum(cardinalities)
    with torch.inference_mode():
        origin = network.embedding(torch.zeros(1, len(cardinalities)))
        width = sum(part.numel() for part in network.first(origin))
    if lines * width > MOST_NUMBERS:
        return None
    return FoldedNetwork(network, cardinalities, knots)


class FoldedNetwork:
    """
    A network with its table; it scores as the network does, but for the last digits of float32.

    Parameters
    ----------
    network : Network
    cardinalities : sequence of int
    knots : sequence of Tensor
        Of each numeric feature; see :meth:`riskmtl.networks.embedding.PiecewiseLinear.knots`.

    See Also
    --------
    fold : Says which networks can be folded, and folds them.
    """

    def __init__(
        self, network: Network, cardinalities: Sequence[int], knots: Sequence[Tensor]
    ) -> None:
        self.network = network
        self.numbers = network.embedding.numeric_columns
        self.categories = network.embedding.categorical_columns
        first_layer = _FirstLayer(network, len(cardinalities))
        self.shapes, self.origin = first_layer.shapes, first_layer.origin.float()
        tables = [
            first_layer.of_number(column, own)
            for column, own in zip(self.numbers.tolist(), knots, strict=True)
        ]
        tables += [
            first_layer.moved(column, torch.arange(cardinalities[column]))
            for column in self.categories.tolist()
        ]
        self.table = torch.cat(tables).float()
        first_lines = _starts(tables)
        self.first_line, self.first_code = first_lines[: len(knots)], first_lines[len(knots) :]
        # Knots that a feature does not have lie at infinity: no value reaches them.
        self.knots = nn.utils.rnn.pad_sequence(
            list(knots), batch_first=True, padding_value=torch.inf
        )
        # Per feature as many places as knots, and one for a missing value.
        self.missing = torch.tensor([len(own) for own in knots])
        places = [functional.pad(own, (0, 1)) for own in knots]
        self.first_place = _starts(places)
        self.place = torch.cat(places)
        self.slope = torch.cat([functional.pad(1 / own.diff(), (0, 2)) for own in knots])

    def __call__(self, x: Tensor) -> Tensor:
        """Map encoded rows ``(batch, features)`` to one number per head, ``(batch, tasks)``."""
        values = x.index_select(1, self.numbers)
        reached = torch.searchsorted(self.knots, values.t().contiguous(), right=True).t()
        # What lies below the lowest knot counts as that.
        at = torch.where(values.isnan(), self.missing, (reached - 1).clamp_(min=0))
        place = at + self.first_place
        # How far a value has come to the next knot, (batch, numeric features).
        share = ((values.nan_to_num(0.0) - self.place[place]) * self.slope[place]).clamp_(0, 1)
        line = 2 * at + self.first_line
        code = x.index_select(1, self.categories).long() + self.first_code
        weight = [torch.ones_like(share), share, torch.ones_like(code, dtype=share.dtype)]
        total = functional.embedding_bag(
            torch.cat([line, line + 1, code], dim=1),
            self.table,
            mode="sum",
            per_sample_weights=torch.cat(weight, dim=1),
        )
        return self.network.rest(self._parts(total.add_(self.origin)))

    def _parts(self, total: Tensor) -> list[Tensor]:
        """Tell apart what lies side by side: ``(batch, all)`` to parts ``(…, batch, width)``."""
        sizes = [shape.numel() for shape in self.shapes]
        return [
            part.view(len(part), *shape).movedim(0, -2)
            for part, shape in zip(torch.split(total, sizes, dim=1), self.shapes, strict=True)
        ]


class _FirstLayer:
    """What embedding and first layer give, side by side and exactly, as one feature changes."""

    def __init__(self, network: Network, features: int) -> None:
        self.network = copy.deepcopy(network).double()
        self.features = features
        with torch.inference_mode():
            parts = self._parts(torch.zeros(1, features))
        self.shapes = [torch.Size([*part.shape[:-2], part.shape[-1]]) for part in parts]
        self.origin = _side_by_side(parts)

    def moved(self, column: int, values: Tensor) -> Tensor:
        """How far it moves from where all features are 0 if one takes these values."""
        rows = torch.zeros(len(values), self.features, dtype=torch.float64)
        rows[:, column] = values
        with torch.inference_mode():
            return _side_by_side(self._parts(rows)) - self.origin

    def of_number(self, column: int, knots: Tensor) -> Tensor:
        """Two lines per knot, and per missing value: what is there, and what the next adds."""
        exact = knots.double()
        there = self.moved(column, functional.pad(exact, (0, 1), value=torch.nan))
        # Half-way, since the next knot may be a step.
        half = self.moved(column, (exact[:-1] + exact[1:]) / 2) - there[:-2]
        added = functional.pad(2 * half, (0, 0, 0, 2))
        return torch.stack([there, added], dim=1).flatten(0, 1)

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.network.first(self.network.embedding(rows.double()))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Lay parts ``(…, batch, width)`` side by side: ``(batch, all)``."""
    return torch.cat([part.movedim(-2, 0).flatten(1) for part in parts], dim=1)


def _starts(tables: Sequence[Tensor]) -> Tensor:
    """Where each of some tables begins if they lie one after the other."""
    return torch.tensor([0, *accumulate(len(table) for table in tables)][:-1], dtype=torch.long)
