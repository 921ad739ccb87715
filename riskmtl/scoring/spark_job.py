"""
Scoring files with Spark into the same kind of folder that a job on this machine makes.

Spark writes into a scratch folder, whose commit leaves out what lost or repeated tasks wrote. Its
files are counted, the refused rows are copied out, and only then do they become parts of the job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from riskmtl.artefact import load_model
from riskmtl.columns import Column
from riskmtl.files import count_rows
from riskmtl.model import RiskModel
from riskmtl.schema import DataSchema
from riskmtl.scoring.batches import BatchScorer, ScoreSettings
from riskmtl.scoring.folder import QUARANTINE, JobFolder, digest_of, open_folder
from riskmtl.scoring.job import ScoreReport, Tally, job_note, require_rows, sums_of, table_bytes
from riskmtl.scoring.sources import Source, find_files, open_source
from riskmtl.scoring.spark import counted, quoted, require_keys, scored_frame
from riskmtl.scoring.spark_session import in_a_sentence, require_spark, spark_session

if TYPE_CHECKING:
    from pyspark import Accumulator
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

# The second version of the protocol lets a task that fails later leave its rows behind.
_COMMIT = {"mapreduce.fileoutputcommitter.algorithm.version": "1"}
_TEXT: dict[str, bool | str] = {
    "header": True,
    "enforceSchema": False,
    "escape": '"',
    "mode": "FAILFAST",
    "multiLine": True,
}
# For a column that holds nothing, whose type a file does not tell.
_EMPTY = {
    "number": "double",
    "integer": "bigint",
    "string": "string",
    "boolean": "boolean",
    "date": "date",
    "datetime": "timestamp_ntz",
    "year": "int",
}


def score_files_spark(
    model_folder: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: ScoreSettings | None = None,
    *,
    master: str | None = None,
    max_bad: float = 0.0,
    resume: bool = False,
    restart: bool = False,
    time: datetime | None = None,
) -> ScoreReport:
    """
    Score Parquet and CSV files with Spark into a folder.

    Scores are those of :func:`riskmtl.scoring.local.score_files` to 1e-6, as Parquet files whose
    columns are those of :func:`riskmtl.scoring.spark.score_spark`, in no order. ``quarantine/``
    holds keys and rule of the refused rows. Model, data and `out` must lie under the same paths on
    every machine.

    Parameters
    ----------
    model_folder : str or Path
    data : str, Path, or sequence of them
        Files, folders and patterns; see :func:`riskmtl.scoring.sources.find_files`.
    out : str or Path
        Folder of the scores. They count once it holds ``_MANIFEST.json``.
    settings : ScoreSettings, optional
    master : str, optional
        Of Spark; default: as it is configured. ``local[2,4]`` is two cores of this machine, and a
        task may fail three times.
    max_bad : float
        Largest share of refused rows that is accepted.
    resume : bool
        Leave a finished job in `out` as it is, and do one that was begun anew.
    restart : bool
        Delete what a job has written in `out`, and begin anew.
    time : datetime, optional
        What the manifest gives as time of the job; default: now.

    Returns
    -------
    ScoreReport

    Raises
    ------
    riskmtl.scoring.spark_session.SparkError
        If Spark does not start, or gives up.
    riskmtl.files.TableError
        If a file cannot be read, or is changed while the job reads it.
    riskmtl.schema.DataError
        If the columns of a file do not keep the schema, or there are no rows.
    riskmtl.schema.RefusedRows
        If more rows are refused than `max_bad`; those that were found are in ``quarantine/``.
    riskmtl.scoring.folder.JobError
        If the folder cannot take this job.
    OSError
        If it cannot be written.
    """
    require_spark()
    settings = settings or ScoreSettings()
    scorer = BatchScorer(load_model(model_folder, with_challenger=settings.challenger), settings)
    require_keys(scorer.model)
    sources = [open_source(path) for path in find_files(data)]
    require_rows(scorer, sources)
    # How rows fall into parts is Spark's affair.
    asked = {"engine": "spark", "device": "cpu", "format": "parquet", "part_rows": None}
    note = job_note(scorer, sources, time, **asked)
    tally = Tally(sum(source.rows for source in sources), max_bad)
    with open_folder(out, note, resume=resume, restart=restart) as folder:
        finished = folder.manifest()
        if finished is not None:
            return _report(finished, Path(out))
        folder.discard()
        with folder.scratch() as scratch:
            with spark_session(master) as spark, in_a_sentence():
                counts = counted(spark.sparkContext)
                scores = _scored_files(spark, sources, scorer, model_folder, counts)
                scores.write.options(**_COMMIT).parquet(f"file:{scratch.resolve()}")
            for source in sources:
                source.require_unchanged()
            tally.counts = counts.value
            _settle(folder, scorer.model, scratch, tally)
        folder.finish(tally.manifest(folder.note, scorer.model.reference))
    return tally.report(Path(out))


def _report(manifest: Mapping[str, Any], out: Path) -> ScoreReport:
    """Say of a job that was finished before what was said then."""
    counts = {name: manifest[name] for name in ("rows", "scored", "quarantined")}
    return ScoreReport(**counts, kept=manifest["rows"], refusals=manifest["refused"], out=out)


# ---- reading -------------------------------------------------------------------------------------


def _scored_files(
    spark: SparkSession,
    sources: Sequence[Source],
    scorer: BatchScorer,
    model_folder: str | Path,
    counts: Accumulator[Any],
) -> DataFrame:
    """Score files of the same columns and types together, and put all of them into one frame."""
    alike: dict[tuple[Any, ...], list[Source]] = {}
    for source in sources:
        if source.rows:
            alike.setdefault((source.is_text, *source.dtypes.items()), []).append(source)
    schema = require_keys(scorer.model)
    found = [
        scored_frame(
            _read(spark, group, schema),
            scorer,
            model_folder,
            is_text=group[0].is_text,
            counts=counts,
        )
        for group in alike.values()
    ]
    whole = found[0]
    for other in found[1:]:
        # A table may lack the row's time, where no input counts from it.
        whole = whole.unionByName(other, allowMissingColumns=True)
    return whole


def _read(spark: SparkSession, sources: Sequence[Source], schema: DataSchema) -> DataFrame:
    """Read files that have the same columns and types."""
    dtypes, paths = sources[0].dtypes, [_literal(source.path) for source in sources]
    if sources[0].is_text:
        names = ", ".join(f"{quoted(name)} string" for name in dtypes)
        return spark.read.options(**_TEXT).schema(names).csv(paths)
    frame = spark.read.parquet(*paths)
    mended = {}
    for column in schema.columns:
        dtype = dtypes.get(column.name)
        if dtype == pl.Null:
            mended[column.name] = _nothing(column)
        elif isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns":
            mended[column.name] = _microseconds(column, dtype)
    return frame.withColumns(mended) if mended else frame


def _literal(path: Path) -> str:
    """Spell a path so that Spark finds no pattern in it."""
    return "file:" + re.sub(r"([\\{}\[\]*?])", r"\\\1", str(path.resolve()))


def _nothing(column: Column) -> SparkColumn:
    """A column of nulls in the type that the schema gives; a file without values tells none."""
    from pyspark.sql import functions

    return functions.lit(None).cast(_EMPTY[column.type])


def _microseconds(column: Column, dtype: pl.Datetime) -> SparkColumn:
    """A moment from the nanoseconds that Spark was told to read as integers."""
    from pyspark.sql import functions

    found = functions.expr(f"timestamp_micros({quoted(column.name)} div 1000)")
    return found if dtype.time_zone else found.cast("timestamp_ntz")


# ---- what Spark wrote ----------------------------------------------------------------------------


def _settle(folder: JobFolder, model: RiskModel, scratch: Path, tally: Tally) -> None:
    """Count what Spark wrote and copy refused rows out; if all is well, it becomes the job's."""
    files = {f"part-{i:05d}": file for i, file in enumerate(sorted(scratch.glob("part-*.parquet")))}
    receipts = [_receipt(folder, model, part, file) for part, file in files.items()]
    for receipt in receipts:
        tally.add(receipt)
    for part, file in files.items():
        folder.adopt(file, f"{part}.parquet")


def _receipt(folder: JobFolder, model: RiskModel, part: str, file: Path) -> dict[str, Any]:
    table = pl.scan_parquet(file, glob=False)
    scored = table.filter(~pl.col("quarantined")).select(pl.col("^p_.*$")).collect()
    refused = table.filter("quarantined").collect()
    by_rule = refused.with_row_index().group_by("_rule", maintain_order=True)
    rules = by_rule.agg(pl.len(), pl.first("index"))
    files, place = {f"{part}.parquet": digest_of(file)}, f"{QUARANTINE}/{part}.parquet"
    if refused.height:
        kept = pl.concat(
            [refused.select("_rule"), require_keys(model).keys(refused)], how="horizontal"
        )
        metadata = {"riskmtl": json.dumps(folder.lineage)}
        files[place] = folder.write(place, table_bytes(kept, "parquet", metadata))
    return {
        "part": part,
        "input": None,
        "rows": count_rows(file),
        "scored": scored.height,
        "refused": dict(zip(rules["_rule"], rules["len"], strict=True)),
        "first": {
            rule: f"{place}, row {row}"
            for rule, row in zip(rules["_rule"], rules["index"], strict=True)
        },
        "files": files,
        "counts": None,
        "sums": sums_of(scored, model.tasks),
    }
