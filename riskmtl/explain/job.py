"""Explaining a Parquet file: part by part, so that a killed job goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm.auto import tqdm

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.explain.attribution import explain_rows, within
from riskmtl.explain.background import background_hash
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.game import chosen_heads
from riskmtl.explain.policy import RowPolicy
from riskmtl.explain.reasons import reasons_of, require_count
from riskmtl.explain.shapley import require_budget
from riskmtl.explain.wording import ReasonTable
from riskmtl.files import count_rows, read_batches, read_table, replacing
from riskmtl.model import RiskModel, sigmoid
from riskmtl.schema import Checked

TABLES = ("rows", "values", "reasons")
_NOTE = "job.json"
_ROWS_PER_PART = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    What is asked of an explanation job.

    Parameters
    ----------
    rows : str
        Which rows; see :meth:`riskmtl.explain.policy.RowPolicy.parse`.
    heads : sequence of str, optional
        Default: all binary tasks.
    words : ReasonTable, optional
        What customers read, for the heads that it names; its groups are explained as one.
    n : int
        Most reasons per row and head.
    budget, tolerance
        As in :meth:`riskmtl.MultiTaskClassifier.explain`.
    seed : int
    max_bad : float
        Largest share of refused rows that is accepted.
    """

    rows: str = "all"
    heads: Sequence[str] | None = None
    words: ReasonTable | None = None
    n: int = 4
    budget: int = 4
    tolerance: float = 0.0
    seed: int = 0
    max_bad: float = 0.0


@dataclass(frozen=True, slots=True)
class ExplainReport:
    """
    What came of an explanation job.

    Parameters
    ----------
    rows, explained : int
        Of the table, and chosen by the rule.
    out : Path
        Folder with ``rows.parquet``, ``values.parquet`` and ``reasons.parquet``.
    """

    rows: int
    explained: int
    out: Path


def explain_file(
    model: RiskModel,
    data: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    announce: Callable[[str], None] = print,
    progress: bool = False,
) -> ExplainReport:
    """
    Explain rows of a Parquet file.

    Parameters
    ----------
    model : RiskModel
        One that keeps a background.
    data : str or Path
    out : str or Path
        A new folder; it appears whole or not at all. Until then finished parts lie in
        ``<name>.unfinished`` beside it, from which the same job goes on.
    settings : Settings
    announce : callable
        Is told, before the work starts, how long it will take.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ExplainReport

    Raises
    ------
    riskmtl.files.TableError
        If the file cannot be read.
    ValueError
        If its rows break the schema, none is chosen, the settings do not go with the model, or
        another job was begun in the same place.
    """
    data, out = Path(data), Path(out)
    policy = RowPolicy.parse(settings.rows)
    require_budget(settings.budget)
    require_count(settings.n)
    within(settings.tolerance)
    heads = chosen_heads(model, settings.heads)
    if model.background is None:
        raise ValueError("the model keeps no background to compare with: train it again")
    for head in heads:
        if settings.words is not None and head in settings.words.heads:
            settings.words.require_fit(head, model.encoder.columns_, model.schema)
    rows = count_rows(data)
    if rows == 0:
        raise DataError(f"{data}: the table has no rows")
    lineage = _lineage(model, data, heads, settings)
    unfinished = out.with_name(f"{out.name}.unfinished")
    _require_place(out, unfinished, lineage)
    chosen = _chosen(model, data, heads, policy, settings)
    if not len(chosen):
        raise ValueError(f"{data}: no row fits {settings.rows!r}")
    _sign(unfinished, lineage)
    parts = [chosen[i : i + _ROWS_PER_PART] for i in range(0, len(chosen), _ROWS_PER_PART)]
    todo = [i for i in range(len(parts)) if not (unfinished / f"{i}.done").exists()]
    if todo:
        left = sum(len(parts[i]) for i in todo)
        seconds = left * _seconds_per_row(model, data, parts[todo[0]], heads, settings)
        announce(f"{left:,} of {rows:,} rows to explain, about {_in_words(seconds)}")
    with tqdm(total=len(chosen), desc="explaining", unit="row", disable=not progress) as bar:
        bar.update(len(chosen) - sum(len(parts[i]) for i in todo))
        for i in todo:
            _write_part(model, data, parts[i], heads, settings, unfinished / str(i))
            bar.update(len(parts[i]))
    _put_together(unfinished, len(parts), out, lineage)
    return ExplainReport(rows, len(chosen), out)


def _lineage(
    model: RiskModel, data: Path, heads: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """What the explanations come from; a job goes on only if all of it is the same."""
    assert model.background is not None
    words = None if settings.words is None else settings.words.digest
    asked = {**asdict(settings), "heads": list(heads), "words": words}
    del asked["max_bad"]
    found = data.stat()
    return {
        "version": __version__,
        **model.identity,
        "background": background_hash(model.background),
        "scale": "log_odds",
        "calibrated": True,
        "data": {"name": data.name, "bytes": found.st_size, "modified_ns": found.st_mtime_ns},
        "settings": asked,
    }


def _require_place(out: Path, unfinished: Path, lineage: dict[str, Any]) -> None:
    """Refuse a place that holds something else, or parts of another job."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out}: is not empty, choose a new folder")
    note = unfinished / _NOTE
    if unfinished.exists() and not (note.exists() and json.loads(note.read_text()) == lineage):
        raise ValueError(
            f"{unfinished}: holds parts of another job (other data, model or settings): finish "
            "that one, or delete the folder"
        )


def _sign(unfinished: Path, lineage: dict[str, Any]) -> None:
    """Say whose parts are gathered here."""
    if not unfinished.exists():
        with replacing(unfinished / _NOTE) as scratch:
            scratch.write_text(json.dumps(lineage, indent=1), encoding="utf-8")


def _chosen(
    model: RiskModel,
    data: Path,
    heads: Sequence[str],
    policy: RowPolicy,
    settings: Settings,
) -> NDArray[np.int64]:
    """Positions of the rows to explain, among those that keep the schema."""
    places, scores, quarantine = [], [], []
    start = 0
    for frame in read_batches(data):
        good = frame
        is_good = np.ones(frame.height, dtype=bool)
        if model.schema is not None:
            good, refused = model.schema.check(frame, labelled=False)
            is_good[refused["_row"].to_numpy()] = False
            quarantine.append(refused.with_columns(pl.col("_row") + start))
        places.append(start + np.flatnonzero(is_good))
        scores.append(_scores(model, good, heads, policy))
        start += frame.height
    found = np.concatenate(places)
    if quarantine:
        kept = pl.DataFrame({"_row": found})
        Checked(kept, pl.concat(quarantine)).require_few_refused(settings.max_bad, source=str(data))
    return found[policy.choose(np.concatenate(scores), seed=settings.seed)]


def _scores(
    model: RiskModel, good: pl.DataFrame, heads: Sequence[str], policy: RowPolicy
) -> NDArray[np.float64]:
    if not policy.needs_scores or good.is_empty():
        return np.zeros((good.height, len(heads)))
    outputs = model.outputs(model.encode(good))
    return sigmoid(np.column_stack([outputs[head] for head in heads]))


def _seconds_per_row(
    model: RiskModel,
    data: Path,
    part: NDArray[np.int64],
    heads: Sequence[str],
    settings: Settings,
) -> float:
    """Measured on one row, after one that warms up."""
    for _ in range(2):
        started = time.perf_counter()
        _explained(model, _read(data, part[:1]), heads, settings)
    return time.perf_counter() - started


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _read(data: Path, places: NDArray[np.int64]) -> pl.DataFrame:
    first = int(places[0])
    frame = read_table(data, start=first, rows=int(places[-1]) - first + 1)
    return frame[places - first]


def _explained(
    model: RiskModel, frame: pl.DataFrame, heads: Sequence[str], settings: Settings
) -> Explanation:
    assert model.background is not None
    return explain_rows(
        model,
        model.schema.inputs(frame) if model.schema else frame,
        model.background,
        heads=heads,
        groups=settings.words.groups if settings.words else None,
        budget=settings.budget,
        is_enough=within(settings.tolerance),
        seed=settings.seed,
    )


def _write_part(
    model: RiskModel,
    data: Path,
    places: NDArray[np.int64],
    heads: Sequence[str],
    settings: Settings,
    stem: Path,
) -> None:
    frame = _read(data, places)
    found = _explained(model, frame, heads, settings)
    keys = model.schema.keys(frame) if model.schema else pl.DataFrame()
    keys = pl.DataFrame({"_row": places}).hstack(keys.get_columns())
    tables = {
        "rows": _answers(found, keys),
        "values": _placed(found.to_frame(), keys.select("_row")),
        "reasons": _placed(_reasons(model, found, settings), keys),
    }
    for name, table in tables.items():
        with replacing(stem.with_suffix(f".{name}.parquet")) as scratch:
            table.write_parquet(scratch)
    stem.with_suffix(".done").touch()


def _answers(found: Explanation, keys: pl.DataFrame) -> pl.DataFrame:
    """One line per row and head: what was explained, from where, and how well."""
    heads = len(found.heads)
    return (
        pl.concat([keys] * heads)
        .hstack(
            [
                pl.Series("head", np.repeat(found.heads, len(found))),
                pl.Series("base", np.repeat(found.base, len(found))),
                pl.Series("log_odds", found.outputs.T.ravel()),
                pl.Series("residual", found.residual.T.ravel()),
                pl.Series("permutations", np.tile(found.permutations, heads)),
                pl.Series("met", np.tile(found.met, heads)),
            ]
        )
        .sort("_row", maintain_order=True)
    )


def _reasons(model: RiskModel, found: Explanation, settings: Settings) -> pl.DataFrame:
    assert model.background is not None
    words = settings.words
    return pl.concat(
        reasons_of(
            found,
            model.background,
            model.encoder.columns_,
            head=head,
            n=settings.n,
            words=words if words is not None and head in words.heads else None,
        )
        for head in found.heads
    )


def _placed(table: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Put each row's keys in the place of its number within the part."""
    numbered = keys.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    joined = numbered.join(table.with_columns(pl.col("row").cast(pl.Int64)), on="row", how="inner")
    return joined.sort("row", maintain_order=True).drop("row")


def _put_together(unfinished: Path, parts: int, out: Path, lineage: dict[str, Any]) -> None:
    whole = unfinished / "whole"
    whole.mkdir(exist_ok=True)
    metadata = {"riskmtl": json.dumps(lineage)}
    for name in TABLES:
        files = [unfinished / f"{part}.{name}.parquet" for part in range(parts)]
        pl.scan_parquet(files, glob=False).sink_parquet(
            whole / f"{name}.parquet", metadata=metadata
        )
    if out.exists():
        out.rmdir()
    whole.rename(out)
    shutil.rmtree(unfinished)
