"""The figures of a model, and of its challenger, on labelled rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.frames import as_frame
from riskmtl.metrics import evaluate
from riskmtl.model import RiskModel
from riskmtl.validation.evidence import Rows, beside


def evaluate_model(model: RiskModel, table: Any) -> pl.DataFrame:
    """
    Evaluate a model, its parts if it is a blend, and its challenger on the same labelled rows.

    Parameters
    ----------
    model : RiskModel
        With a schema, which says where the labels are.
    table : table
        Rows that keep the schema.

    Returns
    -------
    polars.DataFrame
        One row per task and model: ``task``, ``model`` (``blend``, ``network``, ``lightgbm`` or
        ``logistic``), and the columns of :func:`riskmtl.metrics.evaluate`.

    Raises
    ------
    riskmtl.schema.DataError
        If the model has no schema.
    """
    if model.schema is None:
        raise DataError("the model has no schema, so its labels cannot be found in a table")
    frame = as_frame(table)
    observed, weights = Rows(model, frame).labels, model.schema.weights(frame)
    contenders = {model.kind: model, **beside(model)}
    tables = []
    for kind, contender in contenders.items():
        scores = contender.probabilities(contender.encode(frame))
        figures = evaluate(observed, scores, model.tasks, weights)
        tables.append(figures.insert_column(1, pl.lit(kind).alias("model")))
    order = pl.Enum(model.tasks)
    return pl.concat(tables).sort(pl.col("task").cast(order), maintain_order=True)


def evaluation_record(model: RiskModel, figures: pl.DataFrame) -> dict[str, Any]:
    """
    Figures as plain values for a JSON file, with what they were measured on.

    Parameters
    ----------
    model : RiskModel
    figures : polars.DataFrame
        From :func:`evaluate_model`.

    Returns
    -------
    dict
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "model_id": model.lineage.get("model_id"),
        "schema_sha256": model.lineage.get("schema_sha256"),
        "figures": figures.with_columns(pl.selectors.float().fill_nan(None)).to_dicts(),
    }
