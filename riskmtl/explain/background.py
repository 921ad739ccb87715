"""The rows that explanations compare with."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from riskmtl.model import RiskModel

BACKGROUND_ROWS = 256
_CANDIDATES = 20_000


def representative_rows(
    model: RiskModel, encoded: NDArray[np.float32], *, rows: int = BACKGROUND_ROWS, seed: int = 0
) -> NDArray[np.float32]:
    """
    Draw rows that are spread over a model's scores as all rows are.

    Parameters
    ----------
    model : RiskModel
    encoded : ndarray of shape (rows, features)
        Training rows.
    rows : int
        Most rows to draw.
    seed : int

    Returns
    -------
    ndarray of shape (rows, features)

    Notes
    -----
    Up to 20,000 rows drawn at random are ordered by the mean log-odds of their heads and cut into
    strata of equal size, of which each gives its middle row. So the mean score of the drawn rows,
    from which every explanation starts, is close to that of all.
    """
    if len(encoded) <= rows:
        return encoded.copy()
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(encoded))[:_CANDIDATES]
    order = np.argsort(model.margins(encoded[drawn]).mean(1), kind="stable")
    middles = (np.arange(rows) + 0.5) * len(drawn) / rows
    return np.ascontiguousarray(encoded[drawn[order[middles.astype(np.int64)]]])


def background_hash(encoded: NDArray[np.float32]) -> str:
    """Sixteen digits that tell one background from another."""
    return hashlib.sha256(np.ascontiguousarray(encoded).tobytes()).hexdigest()[:16]
