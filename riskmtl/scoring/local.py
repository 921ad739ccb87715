"""Scoring files on this machine: part by part, so that a job that was killed goes on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from tqdm.auto import tqdm

from riskmtl.device import resolve_device
from riskmtl.model import RiskModel
from riskmtl.scorers import NetworkScorer
from riskmtl.scoring.batches import BatchScorer, ScoreSettings
from riskmtl.scoring.folder import QUARANTINE, JobFolder, open_folder
from riskmtl.scoring.job import ScoreReport, Tally, job_note, require_rows, sums_of, table_bytes
from riskmtl.scoring.sources import PART_ROWS, Part, Source, find_files, open_source

FORMATS = ("parquet", "csv")
# A table of the first layer takes about half a second to make.
_WORTH_FOLDING = 100_000


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
    device: str = "auto",
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
    device : {"auto", "cpu", "cuda"}
        Where the network computes, and stays; ``"auto"``: CUDA where there is one.
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
    if part_rows < 1 or (threads is not None and threads < 1):
        raise ValueError("part_rows and threads must be at least 1")
    settings = settings or ScoreSettings()
    sources = [open_source(path, part_rows=part_rows) for path in find_files(data)]
    rows = sum(source.rows for source in sources)
    place = resolve_device(device)
    if isinstance(model.scorer, NetworkScorer):
        model.scorer.on(place)
        if rows >= _WORTH_FOLDING:
            model = replace(model, scorer=model.scorer.fold())
    scorer = BatchScorer(model, settings)
    require_rows(scorer, sources)
    # Another device adds up in another order: its scores differ in their last digits.
    asked = {"engine": "local", "device": place.type, "format": format, "part_rows": part_rows}
    note = job_note(scorer, sources, time, **asked)
    with open_folder(out, note, resume=resume, restart=restart) as folder:
        job = _Job(scorer, sources, folder, format)
        bar = tqdm(total=rows, desc="scoring", unit="row", unit_scale=True, disable=not progress)
        tally = Tally(rows, max_bad)
        with bar, scorer.in_one_thread() as most:
            for receipt, was_there in job.run(threads or most):
                tally.add(receipt, was_there)
                bar.update(receipt["rows"])
        folder.finish(tally.manifest(folder.note, model.reference))
    return tally.report(Path(out))


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
        source, part = task.source, task.part
        raw = source.read(part, self.scorer.columns(source.dtypes))
        frame, broken = self.scorer.parsed(raw) if source.is_text else (raw, None)
        scored = self.scorer.score(frame, part.start, broken)
        place = {"name": source.path.name, "fingerprint": source.fingerprint,
                 "start": part.start, "rows": part.rows}  # fmt: skip
        lineage = self.folder.lineage
        metadata = {"riskmtl": json.dumps({**lineage, "input": place})}
        name = f"{task.name}.{self.format}"
        files = {name: self.folder.write(name, table_bytes(scored.scores, self.format, metadata))}
        refused = scored.quarantine
        if refused.height:
            # As they were read, whatever could be made of them.
            rows = (refused["_row"] - part.start).to_numpy()
            kept = refused.select("_row", "_rule").hstack(raw[rows].get_columns())
            name = f"{QUARANTINE}/{task.name}.parquet"
            files[name] = self.folder.write(name, table_bytes(kept, "parquet", metadata))
        by_rule = refused.group_by("_rule", maintain_order=True).agg(pl.len(), pl.first("_row"))
        return {
            **lineage,
            "part": task.name,
            "input": place,
            "rows": part.rows,
            "scored": scored.scores.height - refused.height,
            "refused": dict(zip(by_rule["_rule"], by_rule["len"], strict=True)),
            "first": {
                rule: f"{source.path.name}, row {row}"
                for rule, row in zip(by_rule["_rule"], by_rule["_row"], strict=True)
            },
            "files": files,
            "counts": scored.counts,
            "sums": sums_of(scored.scores, self.scorer.model.tasks),
        }
