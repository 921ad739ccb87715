"""
Answers for rows that are mixed from an explained row and rows of the background.

What is mixed is either the rows themselves, for any function, or what a network makes of them in
its first layer. That layer is affine and the embedding treats each column by itself, so a mixture
behind it is a sum of what each column adds: the widest layer and the embedding are computed once
per row, not once per mixture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.networks import Network

Function = Callable[[Tensor], NDArray[np.float64]]


class Mixtures(ABC):
    """
    The rows of a game, and its answers.

    Parameters
    ----------
    function : callable
        Maps ``(rows, columns)`` to ``(rows, outputs)``.
    rows : Tensor of shape (rows, columns)
        The rows to explain.
    background : Tensor of shape (background rows, columns)
        On the same device.
    groups : sequence of sequence of int
        Columns that change together; each column is in one group.

    Attributes
    ----------
    at_rows : ndarray of shape (rows, outputs)
    at_background : ndarray of shape (background rows, outputs)
    """

    def __init__(
        self,
        function: Function,
        rows: Tensor,
        background: Tensor,
        groups: Sequence[Sequence[int]],
    ) -> None:
        self.function = function
        self.rows = rows
        self.background = background
        self.groups = [list(group) for group in groups]
        member = torch.zeros(rows.shape[1], len(groups), dtype=torch.bool)
        for number, columns in enumerate(self.groups):
            member[columns, number] = True
        # (columns, groups)
        self.member = member.to(rows.device)
        self.at_rows, self.at_background = function(rows), function(background)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of background rows, groups and outputs."""
        return len(self.background), len(self.groups), self.at_rows.shape[1]

    def differs(self, row: int) -> Tensor:
        """Whether a group differs between a row and each background row, ``(b, groups)``."""
        x = self.rows[row]
        differs = (x != self.background) & ~(x.isnan() & self.background.isnan())
        return differs.float() @ self.member.float() > 0

    @abstractmethod
    def answers(self, row: int, part: slice, taken: Tensor, wanted: Tensor) -> NDArray[np.float64]:
        """
        Answers for mixtures of one row with some background rows.

        Parameters
        ----------
        row : int
        part : slice
            Of the background.
        taken : Tensor of bool, shape (background rows of the part, mixtures, groups)
            Which groups come from the row.
        wanted : Tensor of bool, shape (background rows of the part, mixtures)
            Which mixtures are asked for.

        Returns
        -------
        ndarray of shape (wanted mixtures, outputs)
        """


class MixedRows(Mixtures):
    """Mixtures of rows, for any function."""

    def answers(self, row: int, part: slice, taken: Tensor, wanted: Tensor) -> NDArray[np.float64]:
        """Mix rows, and ask for all at once."""
        line, _ = wanted.nonzero(as_tuple=True)
        if not len(line):
            return np.empty((0, self.shape[2]))
        columns = taken[wanted].float() @ self.member.float().t() > 0
        return self.function(torch.where(columns, self.rows[row], self.background[part][line]))


class MixedLayers(Mixtures):
    """
    Mixtures behind the first layer of networks that share nothing, or of one.

    Parameters
    ----------
    function, rows, background, groups
        As for :class:`Mixtures`.
    networks : sequence of Network
        In evaluation mode.
    finish : callable
        Maps the networks' outputs side by side to those of the function.
    most : int
        Mixtures to be computed at once.
    threads : int
        Threads that share the mixtures on a CPU.
    """

    def __init__(
        self,
        function: Function,
        rows: Tensor,
        background: Tensor,
        groups: Sequence[Sequence[int]],
        *,
        networks: Sequence[Network],
        finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        most: int,
        threads: int = 1,
    ) -> None:
        super().__init__(function, rows, background, groups)
        self.finish = finish
        self.most = most
        self.layers = [_FirstLayer(network, self.groups) for network in networks]
        with torch.inference_mode():
            self.added = [layer.added(background) for layer in self.layers]
            # (b, 1, width)
            self.begins = [added.sum(1, keepdim=True) for added in self.added]
        self._moves: tuple[int, list[Tensor]] | None = None
        self._threads = ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    def answers(self, row: int, part: slice, taken: Tensor, wanted: Tensor) -> NDArray[np.float64]:
        """Add up what each group adds in the first layer, and go on from there."""
        size = max(1, self.most // taken.shape[1])
        moves = self._moves_to(row)

        def some(start: int) -> Tensor:
            here = slice(start, start + size)
            joins, asked = taken[here].to(torch.float32), wanted[here]
            with torch.inference_mode():
                outputs = [
                    layer.answers(torch.baddbmm(begin[part][here], joins, move[part][here])[asked])
                    for layer, begin, move in zip(self.layers, self.begins, moves, strict=True)
                ]
                return torch.cat(outputs, dim=1)

        starts = range(0, len(taken), size)
        raw = list(map(some, starts) if taken.is_cuda else self._threads.map(some, starts))
        return self.finish(torch.cat(raw).double().cpu().numpy())

    def _moves_to(self, row: int) -> list[Tensor]:
        """How far each group moves each background row's first layer, ``(b, groups, width)``."""
        if self._moves is None or self._moves[0] != row:
            with torch.inference_mode():
                own = [layer.added(self.rows[row : row + 1]) for layer in self.layers]
                self._moves = row, [x - b for x, b in zip(own, self.added, strict=True)]
        return self._moves[1]


class MixedSum(Mixtures):
    """
    Weighted sums of what several answer for the same mixtures.

    Parameters
    ----------
    function, rows, background, groups
        As for :class:`Mixtures`.
    parts : sequence of Mixtures
        Of the same rows, background and groups.
    weights : ndarray of shape (parts, outputs)
    finish : callable
        Maps the sums to the outputs of the function.
    """

    def __init__(
        self,
        function: Function,
        rows: Tensor,
        background: Tensor,
        groups: Sequence[Sequence[int]],
        *,
        parts: Sequence[Mixtures],
        weights: NDArray[np.float64],
        finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> None:
        super().__init__(function, rows, background, groups)
        self.parts, self.weights, self.finish = parts, weights, finish

    def answers(self, row: int, part: slice, taken: Tensor, wanted: Tensor) -> NDArray[np.float64]:
        """Ask each, where its rows are."""
        total = 0.0
        for mixtures, weight in zip(self.parts, self.weights, strict=True):
            device = mixtures.rows.device
            total = total + weight * mixtures.answers(
                row, part, taken.to(device), wanted.to(device)
            )
        return self.finish(np.asarray(total))


def first_width(network: Network) -> int:
    """Numbers that a network's first layer gives for one row, over all members."""
    with torch.inference_mode():
        zero = torch.zeros(1, network.embedding.out_features)
        return sum(part.numel() for part in network.first(zero.to(network.towers.out.weight)))


class _FirstLayer:
    """
    What each group of columns adds to a network's first layer, flattened to one width.

    Parameters
    ----------
    network : Network
    groups : sequence of sequence of int
    """

    def __init__(self, network: Network, groups: Sequence[Sequence[int]]) -> None:
        self.network = network
        embedding = network.embedding
        device = network.towers.out.weight.device
        with torch.inference_mode():
            zero = torch.zeros(1, embedding.out_features, device=device)
            eye = torch.eye(embedding.out_features, device=device)
            parts = network.first(zero)
            # What is left of a part's shape if the rows are taken out of it.
            self.shapes = [_by_row(part, 1).shape[1:] for part in parts]
            self.offset = self._flat(parts, 1)
            # (in, width)
            self.weight = self._flat(network.first(eye), len(eye)) - self.offset
        self.places = _places(network, groups)

    def added(self, rows: Tensor) -> Tensor:
        """What each group adds, ``(rows, groups, width)``; the first has the offset too."""
        embedded = self.network.embedding(rows)
        sums = [embedded[:, place] @ self.weight[place] for place in self.places]
        found = torch.stack(sums, dim=1)
        found[:, 0] += self.offset
        return found

    def answers(self, flat: Tensor) -> Tensor:
        """Go on from sums of what the groups add, ``(rows, width)``."""
        widths = [shape.numel() for shape in self.shapes]
        parts = torch.split(flat, widths, dim=1)
        shaped = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return self.network.rest([_by_group(part) for part in shaped])

    def _flat(self, parts: Sequence[Tensor], rows: int) -> Tensor:
        return torch.cat([_by_row(part, rows).flatten(1) for part in parts], dim=1)


def _by_row(part: Tensor, rows: int) -> Tensor:
    """Map ``(…, members * rows, width)`` to ``(rows, …, members, width)``."""
    return part.view(*part.shape[:-2], -1, rows, part.shape[-1]).movedim(-2, 0)


def _by_group(part: Tensor) -> Tensor:
    """Map ``(rows, …, members, width)`` to ``(…, members * rows, width)``."""
    return part.movedim(0, -2).flatten(-3, -2)


def _places(network: Network, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Where the numbers of each group's columns are in the embedded row."""
    embedding = network.embedding
    columns = [*embedding.numeric_columns.tolist(), *embedding.categorical_columns.tolist()]
    ends = np.cumsum(embedding.widths).tolist()
    place_of = {
        int(column): list(range(end - width, end))
        for column, end, width in zip(columns, ends, embedding.widths, strict=True)
    }
    return [[place for column in group for place in place_of[column]] for group in groups]
