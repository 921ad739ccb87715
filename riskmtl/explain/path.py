"""
Attributions along straight paths in the embedded space: quick, and of another game.

The numbers are those of Aumann and Shapley, averaged over the background ("expected gradients").
A point between two categories is no row that can occur, so they are for pictures of many rows and
not for the reasons of one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.networks import Network
from riskmtl.scorers import NetworkScorer

# More nodes do not bring them closer to Shapley values, only to their own sum.
_NODES = 3


def path_values(
    scorer: NetworkScorer, rows: NDArray[np.float32], background: NDArray[np.float32]
) -> NDArray[np.float64]:
    r"""
    Expected gradients of a network's raw outputs, folded to its columns.

    Parameters
    ----------
    scorer : NetworkScorer
    rows : ndarray of shape (rows, columns)
    background : ndarray of shape (background rows, columns)

    Returns
    -------
    ndarray of shape (rows, columns, heads)

    Notes
    -----
    With :math:`e` the embedding, :math:`z = e(x) - e(b)` and :math:`g` the rest of the network, a
    column has the part of :math:`\int_0^1 z \odot \nabla g(e(b) + t z)\,dt` that belongs to its
    numbers, averaged over the background rows :math:`b` (Sundararajan et al. 2017, Erion et al.
    2021). The integral is taken at Gauss-Legendre nodes.
    """
    x = torch.from_numpy(rows).to(scorer.device)
    compared = torch.from_numpy(background).to(scorer.device)
    parts = [_of_network(n, x, compared, scorer.rows) for n in scorer.networks]
    return np.concatenate(parts, axis=-1)[..., scorer.places]


def _of_network(
    network: Network, rows: Tensor, background: Tensor, most: int
) -> NDArray[np.float64]:
    """Attributions of one network, ``(rows, columns, heads)``."""
    embedding = network.embedding
    order = [*embedding.numeric_columns.tolist(), *embedding.categorical_columns.tolist()]
    with torch.no_grad():
        starts, ends = embedding(background), embedding(rows)
    size = max(1, most // (_NODES * len(background)))
    # (rows, in, heads)
    flat = torch.cat([_along(network, part, starts) for part in torch.split(ends, size)])
    parts = torch.split(flat, embedding.widths, dim=1)
    folded = torch.stack([part.sum(1) for part in parts], dim=1)
    values = np.empty(folded.shape)
    values[:, [int(column) for column in order]] = folded.cpu().numpy()
    return values


def _along(network: Network, ends: Tensor, starts: Tensor) -> Tensor:
    """Mean over the paths from every start, ``(ends, in, heads)``."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_NODES))
    z = ends.unsqueeze(1) - starts  # (ends, starts, in)
    places = ((nodes + 1) / 2).to(z).view(-1, 1, 1, 1)
    # (nodes, ends, starts, in)
    points = (starts + places * z).requires_grad_()
    outputs = network.rest(network.first(points.flatten(0, 2)))
    found = []
    for head in range(outputs.shape[1]):
        (slope,) = torch.autograd.grad(outputs[:, head].sum(), points, retain_graph=True)
        mean = torch.einsum("n,nesi->esi", (weights / 2).to(slope), slope)
        found.append((mean * z).mean(1, dtype=torch.float64))
    return torch.stack(found, dim=-1)
