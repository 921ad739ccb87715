"""What jobs of every engine share: what they are asked, what they count, what they report."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.reference import Reference, added
from riskmtl.schema import RefusedRows
from riskmtl.scoring.batches import BatchScorer
from riskmtl.scoring.sources import Source


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


def require_rows(scorer: BatchScorer, sources: Sequence[Source]) -> None:
    """Refuse files by their columns, before a row is scored, and a job without any rows."""
    for source in sources:
        try:
            scorer.require_columns(source.dtypes, is_text=source.is_text)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from error
    if not any(source.rows for source in sources):
        raise DataError(f"{sources[0].path}: the table has no rows")


def job_note(
    scorer: BatchScorer, sources: Sequence[Source], time: datetime | None, **asked: Any
) -> dict[str, Any]:
    """
    What a job is asked to do; it goes on only if all of it but the time is the same.

    Parameters
    ----------
    scorer : BatchScorer
    sources : sequence of Source
    time : datetime, optional
        Default: now.
    **asked : plain values
        What else the engine is asked.

    Returns
    -------
    dict of str to plain values
    """
    return {
        "version": __version__,
        **scorer.identity,
        "settings": json.loads(json.dumps(scorer.settings.to_dict())),
        **asked,
        "time": (time or datetime.now(UTC)).isoformat(timespec="seconds"),
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


class Tally:
    """
    What is counted as parts are finished, in their order.

    Parameters
    ----------
    rows : int
        Of all parts.
    max_bad : float
        Largest share of refused rows that is accepted.
    """

    def __init__(self, rows: int, max_bad: float) -> None:
        self.rows, self.max_bad = rows, max_bad
        self.seen = self.scored = self.quarantined = self.kept = 0
        self.refusals: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.parts: list[dict[str, Any]] = []
        self.counts: dict[str, dict[str, list[int]]] | None = None
        self.sums: Counter[str] = Counter()

    def add(self, receipt: Mapping[str, Any], was_there: bool = False) -> None:
        """
        Count a finished part.

        Parameters
        ----------
        receipt : mapping
            Its ``part``, ``input``, ``rows``, ``scored``, ``refused`` (rule to number of rows),
            ``first`` (rule to the place of its first row), ``files``, ``counts`` (against the
            model's reference, or ``None``) and ``sums`` (task to sum of probabilities).
        was_there : bool
            Whether an earlier run had finished it.

        Raises
        ------
        RefusedRows
            If more rows are refused by now than is accepted of all.
        """
        self.kept += receipt["rows"] if was_there else 0
        refused = sum(receipt["refused"].values())
        if receipt["scored"] + refused != receipt["rows"]:
            raise RuntimeError(f"rows were lost in {receipt['part']}: {receipt}")
        self.seen += receipt["rows"]
        self.scored += receipt["scored"]
        self.quarantined += refused
        self.refusals.update(receipt["refused"])
        self.first = {**receipt["first"], **self.first}
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

    def manifest(self, note: Mapping[str, Any], reference: Reference | None) -> dict[str, Any]:
        """
        What ends a job; no row may be missing.

        Parameters
        ----------
        note : mapping
            Of the job.
        reference : Reference, optional
            Of the model.

        Returns
        -------
        dict of str to plain values
        """
        if self.seen != self.rows:
            raise RuntimeError(f"{self.rows:,} rows were read, {self.seen:,} were written")
        counts = {} if self.counts is None else self.counts
        if any(sum(bins) != self.scored for kind in counts.values() for bins in kind.values()):
            raise RuntimeError(f"{self.scored:,} rows have scores, but others were counted")
        drift = None
        if reference is not None and self.counts is not None:
            drift = reference.drift(self.counts).to_dicts()
        return {
            **note,
            "rows": self.rows,
            "scored": self.scored,
            "quarantined": self.quarantined,
            "refused": dict(self.refusals.most_common()),
            "means": {task: total / max(self.scored, 1) for task, total in self.sums.items()},
            "drift": drift,
            "counts": self.counts,
            "parts": self.parts,
        }

    def report(self, out: Path) -> ScoreReport:
        """What is said to whoever asked for the job."""
        refusals = dict(self.refusals.most_common())
        return ScoreReport(self.rows, self.scored, self.quarantined, self.kept, refusals, out)


def table_bytes(frame: pl.DataFrame, format: str, metadata: dict[str, str]) -> bytes:
    """A table as the bytes of a file; in CSV, lists are joined and nothing says whence it came."""
    data = io.BytesIO()
    if format == "csv":
        lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.String)]
        frame.with_columns(pl.col(lists).list.join(";")).write_csv(data)
    else:
        frame.write_parquet(data, metadata=metadata)
    return data.getvalue()


def sums_of(scores: pl.DataFrame, tasks: Sequence[str]) -> dict[str, float]:
    """Sums of probabilities, of which the means of a night follow."""
    return {task: float(scores[f"p_{task}"].cast(pl.Float64).sum()) for task in tasks}
