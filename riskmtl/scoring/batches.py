"""Scoring batch by batch: rows that keep the schema get scores, the others a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import polars as pl

from riskmtl.frames import as_frame
from riskmtl.model import RiskModel


class Scored(NamedTuple):
    """
    One scored batch.

    Parameters
    ----------
    scores : polars.DataFrame
        Key and time columns, and ``p_<task>`` for each binary task (a regression: ``<task>``).
    quarantine : polars.DataFrame
        Refused rows with ``_row``, counted from the first batch's first row, and ``_rule``.
    """

    scores: pl.DataFrame
    quarantine: pl.DataFrame


def score_batches(model: RiskModel, batches: Iterable[Any]) -> Iterator[Scored]:
    """
    Score an iterable of tables.

    Parameters
    ----------
    model : RiskModel
    batches : iterable of tables
        See :func:`riskmtl.frames.as_frame`.

    Yields
    ------
    Scored
        One per batch, in order.

    Raises
    ------
    riskmtl.schema.DataError
        If a batch lacks a column, or has one too many or of a wrong type.
    """
    first_row = 0
    for batch in batches:
        frame = as_frame(batch)
        yield _score(model, frame, first_row)
        first_row += frame.height


def _score(model: RiskModel, frame: pl.DataFrame, first_row: int) -> Scored:
    if model.schema is None:
        return Scored(_named(model, model.predict_frame(frame)), pl.DataFrame())
    good, quarantine = model.schema.check(frame, labelled=False)
    keys = model.schema.keys(good)
    scores = _named(model, model.predict_frame(good))
    return Scored(
        pl.concat([keys, scores], how="horizontal") if keys.width else scores,
        quarantine.with_columns(pl.col("_row") + first_row),
    )


def _named(model: RiskModel, scores: pl.DataFrame) -> pl.DataFrame:
    return scores.rename({task: f"p_{task}" for task in model.tasks})
