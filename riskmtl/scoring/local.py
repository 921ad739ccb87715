"""Scoring a Parquet file on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tqdm.auto import tqdm

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.files import count_rows, read_batches, replacing
from riskmtl.model import RiskModel
from riskmtl.schema import Checked
from riskmtl.scoring.batches import score_batches


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """
    What came of a scoring job.

    Parameters
    ----------
    rows, scored, quarantined : int
        ``rows == scored + quarantined``.
    out : Path
    quarantine : Path or None
        File of refused rows, if there are any.
    """

    rows: int
    scored: int
    quarantined: int
    out: Path
    quarantine: Path | None


def score_file(
    model: RiskModel,
    data: str | Path,
    out: str | Path,
    *,
    max_bad: float = 0.0,
    progress: bool = False,
) -> ScoreReport:
    """
    Score a Parquet file.

    Parameters
    ----------
    model : RiskModel
    data : str or Path
        The file to be scored.
    out : str or Path
        The file of scores; it appears whole or not at all. Refused rows go to
        ``<name>.quarantine.parquet`` beside it.
    max_bad : float
        Largest share of refused rows that is accepted.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ScoreReport

    Raises
    ------
    riskmtl.files.TableError
        If the file cannot be read.
    riskmtl.schema.DataError
        If its columns do not keep the schema, or too many rows are refused.
    """
    data, out = Path(data), Path(out)
    rows = count_rows(data)
    if rows == 0:
        raise DataError(f"{data}: the table has no rows")
    scores, refused = [], []
    for batch in score_batches(model, _read(data, rows, progress)):
        scores.append(batch.scores)
        refused.append(batch.quarantine)
    table = pl.concat(scores)
    quarantine = pl.concat(refused) if model.schema is not None else pl.DataFrame()
    Checked(table, quarantine).require_few_refused(max_bad, source=str(data))
    lineage = {"riskmtl": json.dumps({"version": __version__, **model.identity})}
    with replacing(out) as scratch:
        table.write_parquet(scratch, metadata=lineage)
    refused_at = out.with_name(f"{out.stem}.quarantine.parquet")
    if quarantine.height:
        with replacing(refused_at) as scratch:
            quarantine.write_parquet(scratch, metadata=lineage)
    else:
        refused_at.unlink(missing_ok=True)
    return ScoreReport(
        rows, table.height, quarantine.height, out, refused_at if quarantine.height else None
    )


def _read(data: Path, rows: int, progress: bool) -> Iterator[pl.DataFrame]:
    with tqdm(total=rows, desc="scoring", unit="row", unit_scale=True, disable=not progress) as bar:
        for batch in read_batches(data):
            yield batch
            bar.update(batch.height)
