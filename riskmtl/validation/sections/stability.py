"""Is it stable: scores and columns against training, figures by vintage, grades that migrate."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.grades import grades_of
from riskmtl.stability import CERTAIN
from riskmtl.validation.curves import auc_interval
from riskmtl.validation.drift import (
    drift_classifier,
    migration,
    migration_summary,
    stability_index,
    stability_of_columns,
)
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, heatmap, lines
from riskmtl.validation.result import Finding, Result, Table


@section("stability", "Stability", "Is it stable?")
def stability(evidence: Evidence) -> Result:
    """Drift of scores and columns, ranking and calibration by vintage, migration of grades."""
    encoded, scores, notes = _reference(evidence)
    findings, drifted = _scores(evidence, scores)
    columns = evidence.model.encoder.columns_
    table = stability_of_columns(
        encoded,
        evidence.rows.encoded,
        [column.name for column in columns],
        [column.is_categorical for column in columns],
    ).sort("psi", descending=True)
    certain = table.filter(pl.col("p_value") < CERTAIN)
    worst, index = certain.select("column", "psi").row(0) if certain.height else ("none", 0.0)
    findings.append(evidence.criteria["column_psi"].judge("", f"largest CSI: {worst}", index))
    tables = [
        Table("score_stability", "Scores against training", drifted),
        Table(
            "column_stability",
            "Columns against training",
            table,
            "critical: the index that chance alone passes once in twenty times.",
        ),
    ]
    figures = []
    if evidence.trained is not None:
        tables.append(_told_apart(evidence, encoded))
    name = evidence.settings.vintage or "month"
    by_vintage = _by_vintage(evidence)
    if by_vintage is not None and by_vintage.height:
        tables.append(Table("vintages", f"Figures by {name}", by_vintage))
        figures += [_picture(task, name, by_vintage) for task in evidence.tasks]
    for task in evidence.settings.graded:
        if task in evidence.tasks:
            found = _migration(evidence, task)
            figures += [found[1]] if found else []
            tables += [found[0]] if found else []
    return Result(findings, tables, figures, notes)


def _reference(
    evidence: Evidence,
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[str]]:
    """Encoded training rows and their scores; without them the rows that the model keeps."""
    if evidence.trained is not None:
        return evidence.trained.encoded, evidence.trained.scores, []
    kept = evidence.model.background
    assert kept is not None
    note = f"No training rows were given: compared with the {len(kept)} that the model keeps."
    return kept, evidence.model.probabilities(kept), [note]


def _scores(
    evidence: Evidence, reference: NDArray[np.float64]
) -> tuple[list[Finding], pl.DataFrame]:
    findings, rows_found = [], []
    for position, task in enumerate(evidence.tasks):
        found = stability_index(reference[:, position], evidence.rows.scores[:, position])
        shown = found.psi if found.p_value < CERTAIN else 0.0
        findings.append(evidence.criteria["score_psi"].judge(task, "PSI of the score", shown))
        rows_found.append((task, found.psi, found.p_value, found.critical))
    shape = ["head", "psi", "p_value", "critical"]
    return findings, pl.DataFrame(rows_found, schema=shape, orient="row")


def _told_apart(evidence: Evidence, encoded: NDArray[np.float32]) -> Table:
    columns = evidence.model.encoder.columns_
    found = drift_classifier(
        encoded,
        evidence.rows.encoded,
        [column.is_categorical for column in columns],
        seed=evidence.settings.seed,
    )
    names = pl.Series("name", [columns[i].name for i in found.columns["column"]])
    return Table(
        "drift_classifier",
        "Columns by which training and these rows can be told apart",
        found.columns.with_columns(names).select("name", "gain").head(10),
        f"A classifier tells them apart with AUC {found.auc:.3f} "
        f"({found.low:.3f} to {found.high:.3f}); 0.5 would be no drift.",
    )


def _by_vintage(evidence: Evidence) -> pl.DataFrame | None:
    """Ranking and calibration of each head in each vintage with events enough, in their order."""
    vintages = evidence.vintages
    if vintages is None:
        return None
    rows_found = []
    values = vintages.drop_nulls().unique().sort()
    for task in evidence.tasks:
        labels, scores = evidence.of(task)
        for value in values:
            chosen = (vintages == value).fill_null(False).to_numpy() & ~np.isnan(labels)
            events, rows = int(np.nansum(labels[chosen])), int(chosen.sum())
            if min(events, rows - events) < evidence.settings.min_events:
                continue
            auc = auc_interval(labels[chosen], scores[chosen])
            expected = float(scores[chosen].sum())
            rows_found.append(
                (task, str(value), rows, events, auc.estimate, auc.low, auc.high, events / expected)
            )
    shape = {
        "head": pl.String,
        "vintage": pl.String,
        "rows": pl.Int64,
        "events": pl.Int64,
        "auc": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "events over expected": pl.Float64,
    }
    return pl.DataFrame(rows_found, schema=shape, orient="row")


def _picture(task: str, name: str, by_vintage: pl.DataFrame) -> str:
    of_head = by_vintage.filter(pl.col("head") == task)
    if of_head.is_empty():
        return ""
    values = of_head["auc"].to_numpy()
    return lines(
        [
            Line(
                "AUC",
                np.arange(len(values)),
                values,
                low=of_head["low"].to_numpy(),
                high=of_head["high"].to_numpy(),
                dots=True,
            )
        ],
        key=f"vintages-{task}",
        title=f"{task}: AUC by {name}",
        alt=f"AUC of {task} by {name}, from {values.min():.3f} to {values.max():.3f}.",
        x_label=name,
        y_label="AUC",
        dates=of_head["vintage"].to_list(),
    )


def _migration(evidence: Evidence, task: str) -> tuple[Table, str] | None:
    """Grades of customers from one of their rows to the next."""
    customers, time = evidence.rows.customers, evidence.schema.time
    if customers is None or time is None:
        return None
    grades = len(evidence.settings.grades)
    grade = grades_of(evidence.of(task)[1], evidence.settings.grades) - 1
    order = np.lexsort((evidence.rows.frame[time.name].to_physical().to_numpy(), customers))
    same = customers[order][1:] == customers[order][:-1]
    matrix = migration(grade[order][:-1][same], grade[order][1:][same], grades)
    summary = migration_summary(matrix)
    names = [str(i + 1) for i in range(len(matrix))]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    text = ", ".join(f"{name} {share:.0%}" for name, share in summary.items())
    table = Table(
        f"migration_{task}",
        f"Migration between grades of {task}, customers by row and next row",
        pl.DataFrame(matrix, schema=names).insert_column(0, pl.Series("from", names)),
        text + ".",
    )
    picture = heatmap(
        names,
        names,
        shares,
        key=f"migration-{task}",
        title=f"{task}: from grade to grade",
        alt=f"Share of customers by grade of one row and of the next: {text}.",
        percent=True,
    )
    return table, picture
