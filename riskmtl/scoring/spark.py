"""
Scoring with Spark: a frame in, a frame out, through ``mapInArrow``.

The driver sends where the model lies and which one it is; each Python worker reads it once. Spark
does not know the number of a row, so rows are told apart by their keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from riskmtl import __version__
from riskmtl.artefact import ArtefactError, load_model
from riskmtl.columns import DataError
from riskmtl.model import RiskModel
from riskmtl.reference import added
from riskmtl.schema import DataSchema
from riskmtl.scoring.batches import BatchScorer, ScoreSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import Accumulator, SparkContext
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType, StructType

# Spark's names of the types that columns of a schema and scores can have.
_TYPES: dict[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "byte": pl.Int8(),
    "short": pl.Int16(),
    "integer": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "string": pl.String(),
    "char": pl.String(),
    "varchar": pl.String(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamp_ntz": pl.Datetime("us"),
    "void": pl.Null(),
}
_MODELS_KEPT = 4


class _Order(NamedTuple):
    """All that a worker is told; the names are those of the columns that it gets."""

    folder: str
    model_id: str
    settings: ScoreSettings
    names: list[str]
    is_text: bool
    counts: Accumulator[Any] | None


def score_spark(
    frame: DataFrame, model_folder: str | Path, settings: ScoreSettings | None = None
) -> DataFrame:
    """
    Score a Spark frame.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
        Raw rows, as the schema of the model describes them; labels may be absent. Only keys, the
        row's time and inputs go to the workers.
    model_folder : str or Path
        Folder of the model, under the same path on every machine. Its schema needs a column with
        role key, since rows have no numbers here.
    settings : ScoreSettings, optional

    Returns
    -------
    pyspark.sql.DataFrame
        The columns of :func:`riskmtl.scoring.batches.score_batches` but for ``_row``, and
        ``_rule``, null where a row has scores. Grades are ``smallint``, since Spark has no
        unsigned types. Columns of answers name the model in their metadata. Like every frame of
        Spark it is worked out anew by each action: write it once, or cache it.

    Raises
    ------
    riskmtl.schema.DataError
        If a column is missing, not declared, or of a wrong type.
    riskmtl.artefact.ArtefactError
        If the folder holds no sound model; in a worker, if it holds another one by then.
    ValueError
        If the settings do not go with the model, or its schema has no key.
    """
    settings = settings or ScoreSettings()
    model = load_model(model_folder, with_challenger=settings.challenger)
    return scored_frame(frame, BatchScorer(model, settings), model_folder)


def scored_frame(
    frame: DataFrame,
    scorer: BatchScorer,
    model_folder: str | Path,
    *,
    is_text: bool = False,
    counts: Accumulator[Any] | None = None,
) -> DataFrame:
    """
    Score a Spark frame with a model that the driver has read already; see :func:`score_spark`.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
    scorer : BatchScorer
    model_folder : str or Path
        Where its model was read from.
    is_text : bool
        Whether all values are written as text, as a CSV file gives them.
    counts : Accumulator, optional
        Takes the rows counted against the model's reference; see :func:`counted`.

    Returns
    -------
    pyspark.sql.DataFrame
    """
    require_keys(scorer.model)
    dtypes = _dtypes(frame.schema)
    scorer.require_columns(dtypes, is_text=is_text)
    names = scorer.columns(dtypes)
    folder, model_id = str(Path(model_folder).resolve()), scorer.model.lineage["model_id"]
    order = _Order(folder, model_id, scorer.settings, names, is_text, counts)
    # Nothing but their order is asked of names on the way: Spark would read a dot in one as a path.
    needed = frame.select([quoted(name) for name in names])
    numbered = needed.toDF(*(str(place) for place in range(len(names))))
    written = _schema_of_scores(frame, scorer, order)
    return numbered.mapInArrow(partial(_score_partition, order), written)


def counted(context: SparkContext) -> Accumulator[Any]:
    """
    Begin to add up what workers count against the model's reference.

    Spark takes it once for each task whose rows an action writes itself, from an attempt that came
    to its end. Where a shuffle follows the scores, a repeated task would count twice.

    Parameters
    ----------
    context : pyspark.SparkContext

    Returns
    -------
    pyspark.Accumulator
        ``None`` at first.
    """
    return context.accumulator(None, _Sum())  # type: ignore[arg-type]


class _Sum:
    """How counts are added; not derived from pyspark's class, which may not be installed."""

    def zero(self, value: Any) -> None:
        return None

    def addInPlace(self, total: Any, counts: Any) -> Any:
        return total if counts is None else added(total, counts)


def require_keys(model: RiskModel) -> DataSchema:
    """Give a model's schema, or refuse the model: rows without keys could not be told apart."""
    if model.schema is None or not model.schema.with_role("key"):
        raise ValueError(
            "the model's schema has no column with role key, by which scores from Spark could be "
            "joined back to their rows: declare one, or score without Spark, which counts the rows"
        )
    return model.schema


def _dtypes(schema: StructType) -> dict[str, pl.DataType]:
    """What polars will make of the columns; of types that no schema knows, no more than a name."""
    found: dict[str, pl.DataType] = {}
    for field in schema:
        if field.name in found:
            raise DataError(f"column {field.name!r} appears more than once: rename one")
        found[field.name] = _dtype(field.dataType)
    return found


def _dtype(kind: DataType) -> pl.DataType:
    if kind.typeName() == "decimal":
        return pl.Decimal(kind.precision, kind.scale)  # type: ignore[attr-defined]
    return _TYPES.get(kind.typeName(), pl.Object())


def _kind(dtype: pl.DataType) -> DataType | str:
    from pyspark.sql.types import ArrayType, StringType

    if isinstance(dtype, pl.List):
        return ArrayType(StringType())
    return next(name for name, known in _TYPES.items() if known == dtype)


def quoted(name: str) -> str:
    """Spell a name so that Spark reads it as one."""
    return f"`{name.replace('`', '``')}`"


def _schema_of_scores(frame: DataFrame, scorer: BatchScorer, order: _Order) -> StructType:
    """Ask a table without rows what columns come of it; keys keep the type that they have."""
    from pyspark.sql.types import StructType

    dtypes = _dtypes(frame.schema)
    scores, _ = _scores(scorer, pl.DataFrame(schema={n: dtypes[n] for n in order.names}), order)
    given = {} if order.is_text else {field.name: field.dataType for field in frame.schema}
    keys = {column.name for column in require_keys(scorer.model).with_role("key", "time")}
    lineage = {"riskmtl": json.dumps({"version": __version__, **scorer.identity})}
    found = StructType()
    for name, dtype in scores.schema.items():
        is_key = name in keys
        kind = given[name] if is_key and name in given else _kind(dtype)
        found.add(name, kind, nullable=True, metadata={} if is_key else lineage)
    return found


# ---- in a worker ---------------------------------------------------------------------------------


def _score_partition(order: _Order, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    model = _model(order.folder, order.model_id, order.settings.challenger)
    scorer = BatchScorer(model, order.settings)
    with scorer.in_one_thread():
        for batch in batches:
            scores, counts = _scores(scorer, _from_arrow(batch, order.names), order)
            if order.counts is not None:
                order.counts.add(counts)
            yield from _to_arrow(scores)


@lru_cache(_MODELS_KEPT)
def _model(folder: str, model_id: str, with_challenger: bool) -> RiskModel:
    """Read a model, once in the life of a worker."""
    model = load_model(folder, with_challenger=with_challenger)
    found = model.lineage["model_id"]
    if found != model_id:
        raise ArtefactError(
            f"{folder}: holds model {found[:12]}, the job began with {model_id[:12]}: begin it anew"
        )
    return model


def _scores(
    scorer: BatchScorer, raw: pl.DataFrame, order: _Order
) -> tuple[pl.DataFrame, dict[str, dict[str, list[int]]] | None]:
    """Score a table, set the rule beside each row that was refused, and count the others."""
    frame, broken = scorer.parsed(raw) if order.is_text else (raw, None)
    scored = scorer.score(frame, broken=broken)
    return scored.ruled().drop("_row").cast({pl.UInt8: pl.Int16}), scored.counts


def _from_arrow(batch: pa.RecordBatch, names: list[str]) -> pl.DataFrame:
    import pyarrow as pa

    # The session's time zone may be one that only Java knows.
    utc = pa.timestamp("us", tz="UTC")
    columns = [column.cast(utc) if _has_zone(column.type) else column for column in batch.columns]
    return pl.DataFrame(pa.RecordBatch.from_arrays(columns, names=names))


def _has_zone(kind: Any) -> bool:
    return getattr(kind, "tz", None) is not None


def _to_arrow(scores: pl.DataFrame) -> list[pa.RecordBatch]:
    import pyarrow as pa

    table = scores.to_arrow(compat_level=pl.CompatLevel.oldest())
    # Offsets of 64 bits are more than Spark reads.
    small = {
        pa.large_string(): pa.string(),
        pa.large_list(pa.large_string()): pa.list_(pa.string()),
    }
    kinds = [(field.name, small.get(field.type, field.type)) for field in table.schema]
    batches: list[pa.RecordBatch] = table.cast(pa.schema(kinds)).to_batches()
    return batches
