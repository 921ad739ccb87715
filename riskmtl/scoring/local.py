"""Scoring files on this machine: part by part, so that a job that was killed goes on."""

from __future__ import annotations

import io
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from tqdm.auto import tqdm

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.model import RiskModel
from riskmtl.reference import added
from riskmtl.schema import DataSchema, RefusedRows
from riskmtl.scorers import TreeScorer
from riskmtl.scoring.batches import BatchScorer, ScoreSettings
from riskmtl.scoring.folder import QUARANTINE, JobFolder, open_folder
from riskmtl.scoring.sources import PART_ROWS, Part, Source, find_files, open_source
from riskmtl.threads import one_thread_each

FORMATS = ("parquet", "csv")


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """
    What came of a scoring job.

    Parameters
    ----------
    rows, scored, quarantined : int
        ``rows == scored + quarantined``.
    kept : int
        Rows of parts that an earlier run had finished.
    refusals : dict of str to int
        Rule to number of rows that it refused, most frequent first.
    out : Path
        Folder of the scores.
    """

    rows: int
    scored: int
    quarantined: int
    kept: int
    refusals: dict[str, int]
    out: Path


def score_files(
    model: RiskModel,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: ScoreSettings | None = None,
    *,
    max_bad: float = 0.0,
    resume: bool = False,
    restart: bool = False,
    format: str = "parquet",
    threads: int | None = None,
    part_rows: int = PART_ROWS,
    time: datetime | None = None,
    progress: bool = False,
) -> ScoreReport:
    """
    Score Parquet and CSV files into a folder.

    Parameters
    ----------
    model : RiskModel
    data : str, Path, or sequence of them
        Files, folders and patterns; see :func:`riskmtl.scoring.sources.find_files`.
    out : str or Path
        Folder of the scores. They count once it holds ``_MANIFEST.json``.
    settings : ScoreSettings, optional
    max_bad : float
        Largest share of refused rows that is accepted.
    resume : bool
        Go on with this job if it was begun in `out`; finished parts are kept.
    restart : bool
        Delete what a job has written in `out`, and begin anew.
    format : {"parquet", "csv"}
        Of the scores. Only Parquet says in each file where it comes from.
    threads : int, optional
        Parts scored side by side; default: as many as torch would use.
    part_rows : int
        Most rows of a part.
    time : datetime, optional
        What the files give as time of the job; default: now.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ScoreReport

    Raises
    ------
    riskmtl.files.TableError
        If a file cannot be read, or is changed while the job reads it.
    riskmtl.schema.DataError
        If the columns of a file do not keep the schema, or there are no rows.
    riskmtl.schema.RefusedRows
        As soon as more rows are refused than `max_bad` of all.
    riskmtl.scoring.folder.JobError
        If the folder cannot take this job.
    OSError
        If it cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be parquet or csv, got {format!r}")
    if resume and restart:
        raise ValueError("resume and restart exclude each other")
    if part_rows < 1 or (threads is not None and threads < 1):
        raise ValueError("part_rows and threads must be at least 1")
    settings = settings or ScoreSettings()
    given = [data] if isinstance(data, str | Path) else data
    sources = [open_source(path, part_rows=part_rows) for path in find_files(given)]
    _require_rows(model, sources)
    moment = (time or datetime.now(UTC)).isoformat(timespec="seconds")
    note = _note(model, sources, settings, format=format, part_rows=part_rows, time=moment)
    scorer = BatchScorer(model, settings)
    rows = sum(source.rows for source in sources)
    with open_folder(out, note, resume=resume, restart=restart) as folder:
        job = _Job(scorer, sources, folder, format)
        bar = tqdm(total=rows, desc="scoring", unit="row", unit_scale=True, disable=not progress)
        tally = _Tally(rows, max_bad)
        with bar, _one_thread_each(model) as most:
            for receipt, was_there in job.run(threads or most):
                tally.add(receipt, was_there)
                bar.update(receipt["rows"])
        folder.finish(_manifest(folder.note, tally, model))
    refusals = dict(tally.refusals.most_common())
    return ScoreReport(rows, tally.scored, tally.quarantined, tally.kept, refusals, Path(out))


def _require_rows(model: RiskModel, sources: Sequence[Source]) -> None:
    """Refuse files by their columns, before a row is scored."""
    for source in sources:
        if model.schema is None:
            continue
        try:
            known = dict.fromkeys(source.dtypes, pl.Null()) if source.is_text else source.dtypes
            model.schema.require_columns(known, labelled=False)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from error
    if not any(source.rows for source in sources):
        raise DataError(f"{sources[0].path}: the table has no rows")


def _note(
    model: RiskModel, sources: Sequence[Source], settings: ScoreSettings, **asked: Any
) -> dict[str, Any]:
    """What a job is asked to do; it goes on only if all of it but the time is the same."""
    challenger = model.challenger if settings.challenger else None
    return {
        "version": __version__,
        **model.identity,
        "challenger_id": None if challenger is None else challenger.lineage.get("model_id"),
        "settings": json.loads(json.dumps(settings.to_dict())),
        **asked,
        "inputs": [
            {
                "name": str(source.path),
                "bytes": source.size,
                "modified_ns": source.modified_ns,
                "fingerprint": source.fingerprint,
                "rows": source.rows,
            }
            for source in sources
        ],
    }


class _Tally:
    """What is counted as parts are finished, in their order."""

    def __init__(self, rows: int, max_bad: float) -> None:
        self.rows, self.max_bad = rows, max_bad
        self.seen = self.scored = self.quarantined = self.kept = 0
        self.refusals: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.parts: list[dict[str, Any]] = []
        self.counts: dict[str, dict[str, list[int]]] | None = None
        self.sums: Counter[str] = Counter()

    def add(self, receipt: dict[str, Any], was_there: bool) -> None:
        self.kept += receipt["rows"] if was_there else 0
        refused = sum(receipt["refused"].values())
        if receipt["scored"] + refused != receipt["rows"]:
            raise RuntimeError(f"rows were lost in {receipt['part']}: {receipt}")
        self.seen += receipt["rows"]
        self.scored += receipt["scored"]
        self.quarantined += refused
        self.refusals.update(receipt["refused"])
        for rule, row in receipt["first"].items():
            self.first.setdefault(rule, f"{receipt['input']['name']}, row {row}")
        if receipt["counts"] is not None:
            self.counts = added(self.counts, receipt["counts"])
        self.sums.update(receipt["sums"])
        self.parts.append({name: receipt[name] for name in ("part", "input", "scored", "files")})
        if self.quarantined > self.max_bad * self.rows:
            rule, count = self.refusals.most_common(1)[0]
            raise RefusedRows(
                f"{self.quarantined:,} of the first {self.seen:,} of {self.rows:,} rows break the "
                f"schema, most often by {rule!r} ({count:,} rows, first in {self.first[rule]}): "
                "correct them, or accept a share with --max-bad"
            )


def _manifest(note: dict[str, Any], tally: _Tally, model: RiskModel) -> dict[str, Any]:
    drift = None
    if model.reference is not None and tally.counts is not None:
        drift = model.reference.drift(tally.counts).to_dicts()
    return {
        **note,
        "rows": tally.rows,
        "scored": tally.scored,
        "quarantined": tally.quarantined,
        "refused": dict(tally.refusals.most_common()),
        "means": {task: total / max(tally.scored, 1) for task, total in tally.sums.items()},
        "drift": drift,
        "counts": tally.counts,
        "parts": tally.parts,
    }


class _Task(NamedTuple):
    """One part of one file, and its name in the folder."""

    name: str
    source: Source
    part: Part


class _Job:
    """The parts of a job, and what is done for each."""

    def __init__(
        self, scorer: BatchScorer, sources: Sequence[Source], folder: JobFolder, format: str
    ) -> None:
        self.scorer, self.folder, self.format = scorer, folder, format
        self.tasks = [
            _Task(f"part-{i:04d}-{j:05d}", source, part)
            for i, source in enumerate(sources)
            for j, part in enumerate(source.parts)
        ]

    def run(self, threads: int) -> Iterator[tuple[dict[str, Any], bool]]:
        """Receipts in order, and whether they were there before; few parts at a time are open."""
        open_: deque[Future[tuple[dict[str, Any], bool]]] = deque()
        # Torch keeps a number of threads for each thread that calls it.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for task in self.tasks:
                    open_.append(pool.submit(self._finished, task))
                    if len(open_) > threads:
                        yield open_.popleft().result()
                while open_:
                    yield open_.popleft().result()
            finally:
                for future in open_:
                    future.cancel()

    def _finished(self, task: _Task) -> tuple[dict[str, Any], bool]:
        found = self.folder.receipt(task.name)
        if found is not None:
            return found, True
        receipt = self._score(task)
        self.folder.write_receipt(task.name, receipt)
        return receipt, False

    def _score(self, task: _Task) -> dict[str, Any]:
        source, part, schema = task.source, task.part, self.scorer.model.schema
        columns = None if schema is None else _read_columns(schema, source)
        raw = source.read(part, columns)
        frame, broken = (
            schema.from_text(raw) if source.is_text and schema is not None else (raw, None)
        )
        scored = self.scorer.score(frame, part.start, broken)
        place = {"name": source.path.name, "fingerprint": source.fingerprint,
                 "start": part.start, "rows": part.rows}  # fmt: skip
        lineage = {name: self.folder.note[name] for name in self.folder.note if name != "inputs"}
        metadata = {"riskmtl": json.dumps({**lineage, "input": place})}
        name = f"{task.name}.{self.format}"
        files = {name: self.folder.write(name, _bytes(scored.scores, self.format, metadata))}
        refused = scored.quarantine
        if refused.height:
            # As they were read, whatever could be made of them.
            rows = (refused["_row"] - part.start).to_numpy()
            kept = refused.select("_row", "_rule").hstack(raw[rows].get_columns())
            name = f"{QUARANTINE}/{task.name}.parquet"
            files[name] = self.folder.write(name, _bytes(kept, "parquet", metadata))
        by_rule = refused.group_by("_rule", maintain_order=True).agg(pl.len(), pl.first("_row"))
        return {
            **lineage,
            "part": task.name,
            "input": place,
            "rows": part.rows,
            "scored": scored.scores.height - refused.height,
            "refused": dict(zip(by_rule["_rule"], by_rule["len"], strict=True)),
            "first": dict(zip(by_rule["_rule"], by_rule["_row"], strict=True)),
            "files": files,
            "counts": scored.counts,
            "sums": _sums(scored.scores, self.scorer.model.tasks),
        }


def _sums(scores: pl.DataFrame, tasks: Sequence[str]) -> dict[str, float]:
    """Sums of probabilities, of which the means of a night follow."""
    return {task: float(scores[f"p_{task}"].cast(pl.Float64).sum()) for task in tasks}


def _read_columns(schema: DataSchema, source: Source) -> list[str]:
    """Keys and inputs, and the row's time where there is one."""
    names = [*schema.needed(labelled=False), *(c.name for c in schema.with_role("time"))]
    return [name for name in dict.fromkeys(names) if name in source.dtypes]


def _bytes(frame: pl.DataFrame, format: str, metadata: dict[str, str]) -> bytes:
    data = io.BytesIO()
    if format == "csv":
        lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.String)]
        frame.with_columns(pl.col(lists).list.join(";")).write_csv(data)
    else:
        frame.write_parquet(data, metadata=metadata)
    return data.getvalue()


@contextmanager
def _one_thread_each(model: RiskModel) -> Iterator[int]:
    """Parts are scored side by side, so nothing within one is."""
    models = [model] if model.challenger is None else [model, model.challenger]
    trees = [one.scorer for one in models if isinstance(one.scorer, TreeScorer)]
    before = [scorer.threads for scorer in trees]
    for scorer in trees:
        scorer.threads = 1
    try:
        with one_thread_each() as threads:
            yield threads
    finally:
        for scorer, threads_before in zip(trees, before, strict=True):
            scorer.threads = threads_before
