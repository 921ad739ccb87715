"""Attributions along paths, one row, one background row and one point at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def path_values(
    network: Any, row: NDArray[np.float32], background: NDArray[np.float32], points: int
) -> NDArray[np.float64]:
    """Midpoint rule over the path from each background row, ``(columns, heads)``."""
    embedding = network.embedding
    order = [*embedding.numeric_columns.tolist(), *embedding.categorical_columns.tolist()]
    end = embedding(torch.from_numpy(row[None]))[0].detach()
    outputs = network(torch.from_numpy(row[None])).shape[1]
    found = np.zeros((len(order), outputs))
    for other in background:
        start = embedding(torch.from_numpy(other[None]))[0].detach()
        for point in range(points):
            place = start + (point + 0.5) / points * (end - start)
            slope = torch.autograd.functional.jacobian(
                lambda z: network.rest(network.first(z[None]))[0], place
            )
            moved = (slope * (end - start)).double()
            first = 0
            for column, width in zip(order, embedding.widths, strict=True):
                found[int(column)] += moved[:, first : first + width].sum(1).numpy()
                first += width
    return found / (points * len(background))
