"""Several nights of scores beside training, and beside their outcomes once these are known."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl import __version__
from riskmtl.columns import DataError
from riskmtl.frames import as_frame
from riskmtl.model import RiskModel
from riskmtl.reference import Reference
from riskmtl.schema import DataSchema
from riskmtl.scoring.folder import MANIFEST, JobError
from riskmtl.stability import CERTAIN
from riskmtl.validation.criteria import Criterion, criteria
from riskmtl.validation.curves import auc_interval
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.reliability import observed_over_expected
from riskmtl.validation.report import Report
from riskmtl.validation.result import Finding, Question, Result, Table, Verdict

_FEWEST_EVENTS = 30
_COLUMNS_SHOWN = 5


@dataclass(frozen=True)
class Nights:
    """
    Finished scoring jobs of one model, in the order of their times.

    Parameters
    ----------
    model : RiskModel
    folders : sequence of Path
    manifests : sequence of dict
    outcomes : polars.DataFrame, optional
        Keys and label columns.
    as_of : date
        The day from which the maturity of outcomes is counted back.
    criteria : mapping of str to Criterion
    """

    model: RiskModel
    folders: Sequence[Path]
    manifests: Sequence[dict[str, Any]]
    outcomes: pl.DataFrame | None
    as_of: date
    criteria: Mapping[str, Criterion]

    @cached_property
    def names(self) -> list[str]:
        """What the nights are called: by their days, or times where a day has several."""
        times = [manifest["time"] for manifest in self.manifests]
        days = [moment[:10] for moment in times]
        return days if len(set(days)) == len(days) else [moment[:19] for moment in times]

    @cached_property
    def drift(self) -> pl.DataFrame:
        """Drift of each night against training; ``night`` is its place, from nought."""
        reference: Reference | None = self.model.reference
        assert reference is not None
        return pl.concat(
            reference.drift(manifest["counts"]).insert_column(
                0, pl.Series("night", np.full(len(reference.columns) + len(reference.scores), i))
            )
            for i, manifest in enumerate(self.manifests)
        )

    @cached_property
    def known(self) -> pl.DataFrame:
        """Scores with outcomes: ``night``, ``p_<task>`` and a label per task, null if unknown."""
        schema, outcomes = self.model.schema, self.outcomes
        assert schema is not None
        assert outcomes is not None
        keys = _keys(schema, outcomes)
        labels = outcomes.select(keys).hstack(schema.labels(outcomes, as_of=self.as_of))
        if labels.select(keys).is_duplicated().any():
            raise DataError(f"outcomes: several rows have the same {' and '.join(keys)}")
        columns = [*keys, *(f"p_{task}" for task in self.model.tasks)]
        nights = []
        for i, folder in enumerate(self.folders):
            scores = pl.scan_parquet(folder / "part-*.parquet").filter(~pl.col("quarantined"))
            joined = scores.select(columns).collect().join(labels, on=keys, how="inner")
            nights.append(
                joined.insert_column(0, pl.repeat(i, joined.height, eager=True).alias("night"))
            )
        return pl.concat(nights)


def monitor(
    model: RiskModel,
    folders: Sequence[str | Path],
    *,
    outcomes: Any = None,
    as_of: date | None = None,
    bounds: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    """
    Look at several nights of scores.

    Parameters
    ----------
    model : RiskModel
        That scored them, with the reference that it keeps.
    folders : sequence of str or Path
        Of finished jobs, as :func:`riskmtl.scoring.local.score_files` writes them.
    outcomes : table, optional
        Keys, and time where rows of one key have several, with the columns that labels are made of.
    as_of : date, optional
        The day from which the maturity of outcomes is counted back; default: today.
    bounds : mapping, optional
        Other bounds of alerts; see :func:`riskmtl.validation.criteria.criteria`.

    Returns
    -------
    Report
        Its verdict is the weightiest alert of the latest night, and of the outcomes.

    Raises
    ------
    riskmtl.scoring.folder.JobError
        If a folder holds no finished job of this model.
    ValueError
        If the model keeps no reference, or outcomes cannot be joined.
    """
    started = time.perf_counter()
    if model.reference is None or model.schema is None:
        raise ValueError("the model keeps no schema or no reference: train it again, with a schema")
    if not folders:
        raise ValueError("give at least one folder of scores")
    found = sorted(((Path(f), _manifest(Path(f), model)) for f in folders), key=_moment)
    table = None if outcomes is None else as_frame(outcomes)
    for folder, manifest in found:
        if table is not None and manifest["format"] != "parquet":
            raise JobError(f"{folder}: outcomes are joined to Parquet, and these scores are CSV")
    nights = Nights(
        model,
        [folder for folder, _ in found],
        [manifest for _, manifest in found],
        table,
        as_of or date.today(),
        criteria(bounds),
    )
    sections = []
    for question, examine in _SECTIONS:
        if table is not None or question.key != "outcomes":
            begun = time.perf_counter()
            sections.append((question, examine(nights), time.perf_counter() - begun))
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        **model.identity,
        "rows": sum(manifest["rows"] for manifest in nights.manifests),
        "seconds": round(time.perf_counter() - started, 1),
    }
    title = model.schema.title or model.schema.name
    return Report(title, model.tasks, facts, sections, kind="monitoring")


def _manifest(folder: Path, model: RiskModel) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise JobError(f"{folder}: no finished scores (it has no {MANIFEST})")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model_id = found["model_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{path}: damaged ({error})") from error
    if model_id != model.identity["model_id"] or found["counts"] is None:
        raise JobError(f"{folder}: was scored by another model: give that one, or leave it out")
    return found


def _moment(item: tuple[Path, dict[str, Any]]) -> tuple[str, str]:
    return item[1]["time"], item[0].name


def _keys(schema: DataSchema, outcomes: pl.DataFrame) -> list[str]:
    names = [column.name for column in schema.with_role("key", "time")]
    keys = [name for name in names if name in outcomes.columns]
    if not any(column.name in keys for column in schema.with_role("key")):
        raise DataError(f"outcomes: have none of the keys of schema {schema.name!r}")
    return keys


# ---- the parts of the page -----------------------------------------------------------------------


def _runs(nights: Nights) -> Result:
    """Rows of each night, and those refused."""
    rows = np.array([manifest["rows"] for manifest in nights.manifests], dtype=np.float64)
    refused = np.array([manifest["quarantined"] for manifest in nights.manifests])
    rules = [next(iter(manifest["refused"]), "") for manifest in nights.manifests]
    table = pl.DataFrame(
        {
            "night": nights.names,
            "time": [manifest["time"] for manifest in nights.manifests],
            "rows": rows.astype(np.int64),
            "refused": refused,
            "most often by": rules,
            **{
                f"mean {task}": [manifest["means"][task] for manifest in nights.manifests]
                for task in nights.model.tasks
            },
        }
    )
    bounds = nights.criteria
    findings = [bounds["refused_rows"].judge("", "share of rows refused", refused[-1] / rows[-1])]
    if len(rows) > 1:
        usual = float(np.median(rows[:-1]))
        times = max(rows[-1] / usual, usual / rows[-1])
        what = "rows against the usual, times more or fewer"
        findings.append(bounds["rows_against_usual"].judge("", what, float(times)))
    figures = [
        _by_night(nights, {"rows": rows}, "rows", "Rows", label="rows"),
        _by_night(
            nights,
            {"refused": refused / rows},
            "refused",
            "Share refused",
            label="of rows",
            percent=True,
        ),
    ]
    return Result(findings, [Table("nights", "Nights", table)], figures)


def _scores(nights: Nights) -> Result:
    """Distribution of the scores beside training."""
    scores = nights.drift.filter(kind="score")
    last = scores.filter(night=len(nights.names) - 1)
    criterion = nights.criteria["score_psi"]
    findings = [
        criterion.judge(line["name"], "PSI of the score", _certain(line))
        for line in last.iter_rows(named=True)
    ]
    table = scores.with_columns(_named(nights)).select(
        "night", "name", "psi", "p_value", "critical"
    )
    series = {task: _series(scores, task, "psi") for task in nights.model.tasks}
    means = {
        task: np.array([manifest["means"][task] for manifest in nights.manifests])
        for task in nights.model.tasks
    }
    figures = [_by_night(nights, series, "psi", "PSI of the scores", label="PSI")]
    figures += [
        _by_night(
            nights,
            {task: values},
            f"mean-{task}",
            f"{task}: mean score",
            label="mean",
            percent=True,
        )
        for task, values in means.items()
    ]
    note = "critical: the index that chance alone passes once in twenty times."
    return Result(findings, [Table("scores", "Scores against training", table, note)], figures)


def _columns(nights: Nights) -> Result:
    """Distribution of the columns beside training, and what is missing or new."""
    columns = nights.drift.filter(kind="column")
    last = columns.filter(night=len(nights.names) - 1).with_columns(
        missing_rise=pl.col("missing") - pl.col("missing_reference"),
        unseen_rise=pl.col("unseen") - pl.col("unseen_reference"),
    )
    bounds = nights.criteria
    certain = last.with_columns(
        pl.when(pl.col("p_value") < CERTAIN).then(pl.col("psi")).otherwise(0.0)
    )
    findings = [
        _largest(bounds["column_psi"], certain, "psi", "largest CSI"),
        _largest(bounds["missing_rise"], last, "missing_rise", "largest rise of missing values"),
        _largest(bounds["unseen_rise"], last, "unseen_rise", "largest rise of new categories"),
    ]
    worst = last.sort("psi", descending=True)["name"].head(_COLUMNS_SHOWN).to_list()
    series = {name: _series(columns, name, "psi") for name in worst}
    picture = _by_night(
        nights, series, "csi", f"CSI of the {len(worst)} columns that moved most", label="CSI"
    )
    table = last.drop("night", "kind").sort("psi", descending=True)
    return Result(
        [finding for finding in findings if finding is not None],
        [Table("columns", f"Columns of {nights.names[-1]} against training", table)],
        [picture],
    )


def _outcomes(nights: Nights) -> Result:
    """Ranking and calibration where outcomes are known."""
    findings: list[Finding] = []
    tables, figures = [], []
    for task in nights.model.tasks:
        known = nights.known.filter(pl.col(task).is_not_null())
        events = int(known[task].sum())
        if min(events, known.height - events) < _FEWEST_EVENTS:
            bound = f"at least {_FEWEST_EVENTS} events and non-events"
            findings.append(Finding(task, "events", Verdict.TOO_FEW, float(events), bound=bound))
            continue
        findings += _judged(nights, task, known)
        table = _known_by_night(nights, task, known)
        tables.append(Table(f"outcomes_{task}", f"Outcomes of {task} by night", table))
        figures.append(_ranking_picture(nights, task, table))
    return Result(findings, tables, figures)


_SECTIONS = (
    (Question("nights", "Nights", "Did every night run, and whole?"), _runs),
    (Question("scores", "Scores", "Are the scores those of training?"), _scores),
    (Question("columns", "Columns", "Are the columns those of training?"), _columns),
    (Question("outcomes", "Outcomes", "Were the scores right?"), _outcomes),
)


def _judged(nights: Nights, task: str, known: pl.DataFrame) -> list[Finding]:
    labels, scores = known[task].to_numpy(), known[f"p_{task}"].to_numpy().astype(np.float64)
    auc = auc_interval(labels, scores)
    ratio, low, high = observed_over_expected(int(labels.sum()), float(scores.sum()))
    bounds = nights.criteria
    return [
        bounds["auc"].judge(task, "AUC", auc.estimate, auc.low, auc.high),
        bounds["events_over_expected"].judge(task, "events over expected", ratio, low, high),
        bounds["expected_over_events"].judge(
            task, "expected over events", 1 / ratio, 1 / high, 1 / low
        ),
    ]


def _known_by_night(nights: Nights, task: str, known: pl.DataFrame) -> pl.DataFrame:
    found = []
    for i, name in enumerate(nights.names):
        of_night = known.filter(night=i)
        labels, scores = of_night[task].to_numpy(), of_night[f"p_{task}"].to_numpy()
        events, rows = int(labels.sum()), len(labels)
        figures = (np.nan, np.nan, np.nan)
        if min(events, rows - events) >= _FEWEST_EVENTS:
            auc = auc_interval(labels, scores)
            figures = (auc.estimate, auc.low, auc.high)
        found.append((name, rows, events, float(scores.sum()), *figures))
    shape = ["night", "known", "events", "expected", "auc", "low", "high"]
    return pl.DataFrame(found, schema=shape, orient="row").fill_nan(None)


def _ranking_picture(nights: Nights, task: str, table: pl.DataFrame) -> str:
    if len(nights.names) < 2 or table["auc"].is_null().all():
        return ""
    values, low, high = (
        table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in ("auc", "low", "high")
    )
    return lines(
        [Line("AUC", np.arange(len(values)), values, low=low, high=high, dots=True)],
        key=f"auc-{task}",
        title=f"{task}: AUC by night",
        alt=f"AUC of {task} in the nights whose outcomes are known.",
        x_label="night",
        y_label="AUC",
        dates=nights.names,
    )


# ---- what they share -----------------------------------------------------------------------------


def _certain(line: Mapping[str, Any]) -> float:
    """An index, or nought if chance may have made it."""
    return float(line["psi"]) if line["p_value"] < CERTAIN else 0.0


def _largest(criterion: Criterion, table: pl.DataFrame, figure: str, what: str) -> Finding | None:
    known = table.drop_nulls(figure).sort(figure, descending=True)
    if known.is_empty():
        return None
    name, value = known.select("name", figure).row(0)
    return criterion.judge("", f"{what}: {name}", float(value))


def _series(table: pl.DataFrame, name: str, figure: str) -> NDArray[np.float64]:
    """A figure of one column or score, night after night."""
    return table.filter(name=name).sort("night")[figure].to_numpy()


def _named(nights: Nights) -> pl.Expr:
    return pl.col("night").replace_strict(dict(enumerate(nights.names)), return_dtype=pl.String)


def _by_night(
    nights: Nights,
    series: Mapping[str, NDArray[Any]],
    key: str,
    title: str,
    *,
    label: str,
    percent: bool = False,
) -> str:
    place = np.arange(len(nights.names))
    if len(place) < 2:
        return ""
    highest = max((float(values.max()) for values in series.values()), default=0.0)
    ends = "; ".join(f"{name} {values[-1]:.3g} in the last" for name, values in series.items())
    return lines(
        [Line(name, place, values, dots=True) for name, values in series.items()],
        key=key,
        title=title,
        alt=f"{title} by night: {ends}.",
        x_label="night",
        y_label=label,
        y_range=(0.0, 1.06 * highest or 1.0),
        percent_y=percent,
        dates=nights.names,
    )
