"""Explanations of some rows, worked out once for all sections that speak of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.reasons import reasons_of
from riskmtl.model import RiskModel

# Of the rows that the model keeps: over many rows the error of each matters little.
_BACKGROUND = 32


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """
    Rows with their explanations.

    Parameters
    ----------
    explanation : Explanation
        Of the binary heads.
    background : ndarray of shape (background rows, columns)
        Encoded rows compared with.
    reasons : mapping of str to polars.DataFrame
        By head, at most four a row; see :func:`riskmtl.explain.reasons.reasons_of`.
    """

    explanation: Explanation
    background: NDArray[np.float32]
    reasons: Mapping[str, pl.DataFrame]


def explained(
    model: RiskModel, inputs: pl.DataFrame, heads: Sequence[str], *, rows: int, seed: int
) -> Explained | None:
    """
    Explain rows drawn by chance.

    Parameters
    ----------
    model : RiskModel
    inputs : polars.DataFrame
        Input columns.
    heads : sequence of str
    rows : int
        Most rows.
    seed : int

    Returns
    -------
    Explained or None
        ``None`` if the model keeps no rows to compare with.
    """
    background = thinned(model, start=0)
    if background is None:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(inputs.height)[:rows])
    found = explain_rows(model, inputs[chosen], background, heads=heads, seed=seed)
    columns = model.encoder.columns_
    reasons = {head: reasons_of(found, background, columns, head=head) for head in heads}
    return Explained(found, background, reasons)


def thinned(model: RiskModel, *, start: int) -> NDArray[np.float32] | None:
    """Some of the rows that a model keeps, from the first or another on; ``None`` without any."""
    kept = model.background
    if kept is None:
        return None
    return np.ascontiguousarray(kept[start :: max(1, len(kept) // _BACKGROUND)])
