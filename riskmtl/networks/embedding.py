"""
What is learned about a single feature: its scale or bins, its embedding, its missing vector.

Input is the encoder's matrix, one column a feature: values with NaN for missing, or codes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riskmtl.spread import spread

# Enough rows to place 48 quantiles; more only cost time.
_MOST_ROWS_FOR_EDGES = 200_000


class NumericEmbedding(nn.Module, ABC):
    """
    Base of the numeric embeddings: ``(batch, features)`` to ``(batch, features, width)``.

    A missing value (NaN) is replaced by a vector learned for its feature, and a value outside the
    training range counts as the nearest one inside.

    Parameters
    ----------
    features : int
    width : int
        Numbers per feature in the output.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.width = width
        self.missing = nn.Parameter(torch.zeros(features, width))

    @abstractmethod
    def fit(self, values: NDArray[np.float32]) -> None:
        """
        Learn scale or bins of each feature.

        Parameters
        ----------
        values : ndarray of shape (rows, features)
            Training rows, NaN for missing.
        """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Embed values without regard to the missing ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``(batch, features)`` as ``(batch, features, width)``."""
        unknown = torch.isnan(x)
        embedded = self.embed(x.nan_to_num(0.0))
        return torch.where(unknown.unsqueeze(-1), self.missing, embedded)


class Standardized(NumericEmbedding):
    r"""
    One number per feature: :math:`(\min(\max(x, l), h) - \mu) / \sigma`.

    Parameters
    ----------
    features : int

    Examples
    --------
    >>> embedding = Standardized(1)
    >>> embedding.fit(np.array([[0.0], [2.0]], dtype=np.float32))
    >>> embedding(torch.tensor([[2.0], [9.0]])).flatten().tolist()
    [1.0, 1.0]
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)
        self.register_buffer("low", torch.zeros(features))
        self.register_buffer("high", torch.ones(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, values: NDArray[np.float32]) -> None:
        """Learn range, mean and standard deviation of each feature."""
        for position in range(self.features):
            seen = _seen(values[:, position])
            spread = seen.std()
            self.low[position] = float(seen.min())
            self.high[position] = float(seen.max())
            self.mean[position] = float(seen.mean())
            # A spread that float32 cannot divide by is none.
            self.scale[position] = float(spread) if spread > np.finfo(np.float32).tiny else 1.0

    def scaled(self, x: Tensor) -> Tensor:
        """Clamped and standardised values, ``(batch, features)``."""
        return (x.clamp(self.low, self.high) - self.mean) / self.scale

    def embed(self, x: Tensor) -> Tensor:
        """Embed values as themselves, standardised."""
        return self.scaled(x).unsqueeze(-1)


class Periodic(Standardized):
    r"""
    Sines and cosines at learned frequencies, then a linear layer per feature.

    With :math:`z` the standardised value,
    :math:`e = \mathrm{ReLU}(W [\cos 2\pi c z, \sin 2\pi c z] + b)`, and
    :math:`c \sim N(0, \sigma^2)` at the start (Gorishniy et al. 2022, section 3.3).

    Parameters
    ----------
    features : int
    width : int
    frequencies : int
        Frequencies per feature.
    sigma : float
        Standard deviation of the frequencies at the start.
    """

    def __init__(
        self, features: int, width: int, *, frequencies: int = 24, sigma: float = 0.1
    ) -> None:
        super().__init__(features)
        self.width = width
        self.missing = nn.Parameter(torch.zeros(features, width))
        self.frequency = nn.Parameter(torch.randn(features, frequencies) * sigma)
        bound = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(
            torch.empty(features, 2 * frequencies, width).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(features, width))

    def embed(self, x: Tensor) -> Tensor:
        """Embed values by sines and cosines."""
        phase = 2 * math.pi * self.frequency * self.scaled(x).unsqueeze(-1)
        waves = torch.cat([phase.cos(), phase.sin()], dim=-1)  # (batch, features, 2 frequencies)
        mixed = torch.bmm(waves.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return torch.relu(mixed)


class PiecewiseLinear(NumericEmbedding):
    r"""
    A piecewise-linear function of each value, with knots at training quantiles, and steps upon it.

    A value is encoded by how far it fills each bin,
    :math:`t_k = \min(1, \max(0, (x - b_{k-1}) / (b_k - b_{k-1})))`
    (Gorishniy et al. 2022, equation 1, with both ends clamped), and embedded as
    :math:`e = u v + b + \sum_k t_k W_k + S_{j(x)}`, where :math:`u` is the mean filling on a scale
    of unit variance and :math:`j` the step that the value stands on. :math:`W` and :math:`S` start
    at zero, so that the function starts linear in the value's rank.

    Parameters
    ----------
    features : int
    width : int
    bins : int
        Most bins per feature; a feature with fewer distinct values has fewer.
    steps : int
        Most steps per feature, each with a vector of its own; 1 leaves all functions continuous.

    Notes
    -----
    A feature with no more distinct values than steps has a step for each, as a category would; one
    with more has none. A single value that stands out is so learned at once, where a continuous
    function needs two steep and opposite slopes for it.

    Examples
    --------
    >>> embedding = PiecewiseLinear(1, 4, bins=8)
    >>> embedding.fit(np.linspace(0, 1, 100, dtype=np.float32)[:, None])
    >>> embedding(torch.rand(5, 1)).shape
    torch.Size([5, 1, 4])
    """

    left: Tensor
    bin_width: Tensor
    count: Tensor
    step: Tensor
    first_step: Tensor

    def __init__(self, features: int, width: int, *, bins: int, steps: int = 1) -> None:
        super().__init__(features, width)
        self.bins = bins
        self.steps = steps
        # A bin that a feature does not have begins at infinity: nothing ever fills it.
        self.register_buffer("left", torch.full((features, bins), math.inf))
        self.register_buffer("bin_width", torch.ones(features, bins))
        self.register_buffer("count", torch.ones(features))
        bound = 1 / math.sqrt(width)
        self.linear = nn.Parameter(torch.empty(features, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(features, width).uniform_(-bound, bound))
        self.weight = nn.Parameter(torch.zeros(features, bins, width))
        self.step_weight: nn.Parameter | None = None
        if steps > 1:
            # Where each step but the lowest begins, and a vector for each step.
            self.register_buffer("step", torch.full((features, steps - 1), math.inf))
            self.step_weight = nn.Parameter(torch.zeros(features * steps, width))
            first = torch.arange(features).unsqueeze(1) * steps
            self.register_buffer("first_step", first, persistent=False)

    def fit(self, values: NDArray[np.float32]) -> None:
        """Place the edges of each feature's bins, see :func:`bin_edges`, and its steps."""
        self.left.fill_(math.inf)
        self.bin_width.fill_(1)
        self.count.fill_(1)
        for position in range(self.features):
            seen = _seen(values[:, position])
            if self.step_weight is not None:
                self._place_steps(position, seen)
            edges = bin_edges(seen, self.bins)
            if len(edges) < 2:
                continue
            used = len(edges) - 1
            self.left[position, :used] = torch.from_numpy(edges[:-1])
            self.bin_width[position, :used] = torch.from_numpy(np.diff(edges))
            self.count[position] = used

    def _place_steps(self, position: int, seen: NDArray[np.float64]) -> None:
        self.step[position].fill_(math.inf)
        values = np.unique(seen.astype(np.float32))
        if len(values) <= self.steps:
            self.step[position, : len(values) - 1] = torch.from_numpy(values[1:])

    def knots(self) -> list[Tensor]:
        """Where each feature's function bends or jumps, ascending; it is constant outside."""
        ends = [self.left, self.left + self.bin_width]
        places = torch.cat(ends if self.step_weight is None else [*ends, self.step], dim=1)
        found = [own[own.isfinite()].unique() for own in places]
        # A function that is constant everywhere has one knot, wherever.
        return [own if len(own) else own.new_zeros(1) for own in found]

    def embed(self, x: Tensor) -> Tensor:
        """Embed values by how far they fill each bin, and by their step."""
        # (batch, features, bins)
        filling = ((x.unsqueeze(-1) - self.left) / self.bin_width).clamp(0, 1)
        rank = (2 * filling.sum(-1) / self.count - 1) * math.sqrt(3)
        curve = torch.bmm(filling.transpose(0, 1), self.weight).transpose(0, 1)
        curve = torch.addcmul(self.bias, rank.unsqueeze(-1), self.linear) + curve
        if self.step_weight is None:
            return curve
        # (features, batch)
        reached = torch.searchsorted(self.step, x.t().contiguous(), right=True)
        places = (reached + self.first_step).t()
        return curve + nn.functional.embedding(places, self.step_weight)


class CategoricalEmbedding(nn.Module):
    """
    A table of vectors per feature, all in one: ``(batch, features)`` to ``(…, width)``.

    Each vector is weighted by the :func:`credibility` of its code. Codes 0 (never seen) and 1
    (missing) have rows like any other; row 0 starts at zero, and a code that no training row has is
    zero always.

    Parameters
    ----------
    cardinalities : sequence of int
        Number of codes per feature.
    width : int
    credible_rows : float
        Rows at which a code's vector counts half.
    """

    offset: Tensor
    credibility: Tensor

    def __init__(
        self, cardinalities: Sequence[int], width: int, *, credible_rows: float = 0.0
    ) -> None:
        super().__init__()
        self.cardinalities = list(cardinalities)
        self.credible_rows = credible_rows
        offset = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("credibility", torch.ones(sum(cardinalities), 1))
        self.weight = nn.Parameter(torch.randn(sum(cardinalities), width) / math.sqrt(width))
        with torch.no_grad():
            self.weight[offset] = 0

    def fit(self, codes: NDArray[np.float32]) -> None:
        """
        Learn the credibility of each code.

        Parameters
        ----------
        codes : ndarray of shape (rows, features)
            Training rows.
        """
        rows = [
            np.bincount(codes[:, position].astype(np.int64), minlength=size)
            for position, size in enumerate(self.cardinalities)
        ]
        self.credibility[:, 0] = credibility(np.concatenate(rows), self.credible_rows)

    def forward(self, codes: Tensor) -> Tensor:
        """Look up ``(batch, features)`` codes as ``(batch, features, width)``."""
        vectors = self.weight * self.credibility
        return nn.functional.embedding(codes.long() + self.offset, vectors)


class FeatureEmbedding(nn.Module):
    """
    Embed every feature and lay the results side by side.

    Parameters
    ----------
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    numeric : {"piecewise_linear", "periodic", "standardize"}
    width : int
        Numbers per embedded feature.
    bins, steps : int
        Bins and steps of the piecewise-linear form.
    credible_rows : float
        Rows at which a category's vector counts half.
    dropout : float
        Share of the features dropped whole in training.

    Attributes
    ----------
    widths : list of int
        Numbers per feature in the output, numeric features first.
    out_features : int
        Width of the output.

    Examples
    --------
    >>> embedding = FeatureEmbedding([0, 5], numeric="piecewise_linear", width=4, bins=8)
    >>> embedding.fit(np.array([[0.5, 2.0], [1.5, 3.0]], dtype=np.float32))
    >>> embedding(torch.tensor([[1.0, 2.0]])).shape
    torch.Size([1, 8])
    """

    numeric_columns: Tensor
    categorical_columns: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        *,
        numeric: str,
        width: int,
        bins: int,
        steps: int = 1,
        credible_rows: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        numbers = [i for i, n in enumerate(cardinalities) if n == 0]
        categories = [i for i, n in enumerate(cardinalities) if n > 0]
        self.register_buffer(
            "numeric_columns", torch.tensor(numbers, dtype=torch.long), persistent=False
        )
        self.register_buffer(
            "categorical_columns", torch.tensor(categories, dtype=torch.long), persistent=False
        )
        self.numeric = (
            _numeric_embedding(numeric, len(numbers), width, bins=bins, steps=steps)
            if numbers
            else None
        )
        self.categorical = (
            CategoricalEmbedding(
                [cardinalities[i] for i in categories], width, credible_rows=credible_rows
            )
            if categories
            else None
        )
        self.dropout = nn.Dropout1d(dropout)
        own = width if self.numeric is None else self.numeric.width
        self.widths = [own] * len(numbers) + [width] * len(categories)
        self.out_features = sum(self.widths)

    def fit(self, encoded: NDArray[np.float32]) -> None:
        """
        Learn scale or bins of the numeric features, and how far to trust each category.

        Parameters
        ----------
        encoded : ndarray of shape (rows, features)
            Training rows as the encoder gives them.
        """
        if self.numeric is not None:
            some = spread(len(encoded), _MOST_ROWS_FOR_EDGES)
            self.numeric.fit(encoded[np.ix_(some, self.numeric_columns.cpu().numpy())])
        if self.categorical is not None:
            self.categorical.fit(encoded[:, self.categorical_columns.cpu().numpy()])
        self.learn_missing(encoded)

    def learn_missing(self, encoded: NDArray[np.float32]) -> None:
        """
        Let vectors of missing values learn where there are missing values to learn them from.

        Parameters
        ----------
        encoded : ndarray of shape (rows, features)
            Rows that the next training is on.
        """
        if self.numeric is not None:
            columns = self.numeric_columns.tolist()
            # Where nothing is missing the backward pass ends here.
            is_any = any(np.isnan(encoded[:, column]).any() for column in columns)
            self.numeric.missing.requires_grad_(is_any)

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``(batch, features)`` as ``(batch, out_features)``."""
        parts = []
        if self.numeric is not None:
            values = x if self.categorical is None else x.index_select(1, self.numeric_columns)
            parts.append(self.dropout(self.numeric(values)).flatten(1))
        if self.categorical is not None:
            codes = x if self.numeric is None else x.index_select(1, self.categorical_columns)
            parts.append(self.dropout(self.categorical(codes)).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


NUMERIC_EMBEDDINGS = ("piecewise_linear", "periodic", "standardize")


def _numeric_embedding(
    name: str, features: int, width: int, *, bins: int, steps: int
) -> NumericEmbedding:
    if name == "piecewise_linear":
        return PiecewiseLinear(features, width, bins=bins, steps=steps)
    if name == "periodic":
        return Periodic(features, width)
    return Standardized(features)


def credibility(rows: NDArray[Any], half: float) -> Tensor:
    r"""
    How far to trust what few rows say: :math:`n / (n + h)`.

    The weight that Bühlmann (1967) gives a group's own experience against that of all. An optimiser
    that scales each step by the size of past gradients, as Adam does, otherwise moves the vector of
    a rare category as fast as any other, and learns its few rows by heart.

    Parameters
    ----------
    rows : ndarray of shape (groups,)
        Training rows of each group.
    half : float
        Rows at which the trust is one half; 0 trusts every group that has a row wholly.

    Returns
    -------
    Tensor of float32, shape (groups,)

    Examples
    --------
    >>> credibility(np.array([0, 100, 2700]), half=300)
    tensor([0.0000, 0.2500, 0.9000])
    """
    counts = torch.from_numpy(rows.astype(np.float32))
    return counts / (counts + half) if half else (counts > 0).float()


def bin_edges(values: NDArray[Any], bins: int) -> NDArray[np.float32]:
    """
    Edges of at most so many bins, where the values are.

    Quantiles alone would waste themselves on a value that many rows share, such as an amount of 0,
    and leave the rest with a bin or two. So such a value has one edge, and the quantiles of the
    other values have all that remain.

    Parameters
    ----------
    values : ndarray of shape (rows,)
        Without NaN, at least one.
    bins : int

    Returns
    -------
    ndarray of float32
        Strictly increasing, from the least value to the greatest; at most ``bins + 1``.

    Examples
    --------
    >>> bin_edges(np.array([0.0] * 90 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), 4)
    array([ 0.,  1.,  4.,  7., 10.], dtype=float32)
    """
    distinct, counts = np.unique(values.astype(np.float32), return_counts=True)
    if len(distinct) <= bins + 1:
        return distinct
    shared = distinct[counts > len(values) / bins]
    others = values[~np.isin(values.astype(np.float32), shared)]
    free = bins + 1 - len(shared)
    edges = np.quantile(others, np.linspace(0, 1, free)).astype(np.float32)
    return np.unique(np.concatenate([shared, edges]))


def _seen(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Known values of a feature; a single zero if none is known."""
    seen = values[~np.isnan(values)].astype(np.float64)
    return seen if len(seen) else np.zeros(1)
