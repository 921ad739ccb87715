"""Are the probabilities right: reliability, Brier parts, tests, and rating grades."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import polars as pl

from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.reliability import (
    brier_parts,
    calibration_index,
    calibration_line,
    grade_table,
    herfindahl,
    hosmer_lemeshow,
    jeffreys,
    reliability_curve,
    spiegelhalter,
)
from riskmtl.validation.result import Finding, Result, Table


@section("calibration", "Calibration", "Are its probabilities right?")
def calibration(evidence: Evidence) -> Result:
    """Calibration of each head, and rating grades of those that have them."""
    findings: list[Finding] = []
    figures, measured, curves, tables = [], [], [], []
    for task in evidence.tasks:
        if not evidence.has_enough(task):
            findings.append(evidence.too_few(task, "observed over expected events"))
            continue
        labels, scores = evidence.of(task)
        found, figures_ = _judged(evidence, task, labels, scores)
        findings += found
        measured.append({"head": task, **figures_})
        curve = reliability_curve(labels, scores, seed=evidence.settings.seed)
        curves.append(curve.insert_column(0, pl.Series("head", [task] * curve.height)))
        figures.append(_picture(task, curve, figures_["observed over expected"]))
        if task in evidence.settings.graded:
            tables.append(_graded(evidence, task, labels, scores))
    if measured:
        tables.insert(0, Table("calibration", "Calibration figures", pl.DataFrame(measured)))
        tables.append(
            Table(
                "reliability",
                "Reliability by bin",
                pl.concat(curves),
                "low and high: where nine in ten rates lie if the probabilities are right.",
            )
        )
    return Result(
        findings,
        tables,
        figures,
        [
            "With many rows a test rejects deviations that do not matter: verdicts rest on their "
            "size. A head is calibrated on observed outcomes only, not on those declined."
        ],
    )


def _judged(
    evidence: Evidence, task: str, labels: np.ndarray, scores: np.ndarray
) -> tuple[list[Finding], dict[str, float]]:
    line = calibration_line(labels, scores)
    index = calibration_index(labels, scores)
    parts = brier_parts(labels, scores)
    z, groups = spiegelhalter(labels, scores), hosmer_lemeshow(labels, scores)
    criteria = evidence.criteria
    inverse = (1 / line.ratio, 1 / line.ratio_high, 1 / line.ratio_low)
    apart = abs(line.slope - 1)
    reach = (line.slope_high - line.slope_low) / 2
    findings = [
        criteria["events_over_expected"].judge(
            task, "events over expected", line.ratio, line.ratio_low, line.ratio_high
        ),
        criteria["expected_over_events"].judge(task, "expected over events", *inverse),
        criteria["slope_distance"].judge(
            task, "distance of the slope from 1", apart, apart - reach, apart + reach
        ),
    ]
    return findings, {
        "observed over expected": line.ratio,
        "ratio low": line.ratio_low,
        "ratio high": line.ratio_high,
        "intercept": line.intercept,
        "slope": line.slope,
        "slope low": line.slope_low,
        "slope high": line.slope_high,
        **asdict(index),
        **{f"brier {name}": value for name, value in asdict(parts).items()},
        "spiegelhalter p": z.p_value,
        "hosmer-lemeshow p": groups.p_value,
    }


def _graded(evidence: Evidence, task: str, labels: np.ndarray, scores: np.ndarray) -> Table:
    grades = grade_table(labels, scores, evidence.settings.grades)
    seen = ~np.isnan(labels)
    events, rows = int(np.nansum(labels)), int(seen.sum())
    p = float(jeffreys(events, rows, float(scores[seen].mean())))
    hhi = herfindahl(grades["share"].fill_null(0).to_numpy())
    return Table(
        f"grades_{task}",
        f"Rating grades of {task}",
        grades,
        f"Portfolio: {events:,} events of {rows:,} rows, {scores[seen].sum():,.1f} expected; "
        f"Jeffreys p = {p:.3f} that the probabilities are not too low. Concentration "
        f"(Herfindahl) {hhi:.3f}. After the ECB's instructions of February 2019, section 2.5.",
    )


def _picture(task: str, curve: pl.DataFrame, ratio: float) -> str:
    x = curve["predicted"].to_numpy()
    top = float(max(curve["predicted"].max(), curve["observed"].max(), curve["high"].max()))  # type: ignore[type-var,arg-type]
    top = top if math.isfinite(top) and top > 0 else 1.0
    return lines(
        [
            Line(
                "observed",
                x,
                curve["observed"].to_numpy(),
                low=curve["low"].to_numpy(),
                high=curve["high"].to_numpy(),
                dots=True,
            )
        ],
        key=f"reliability-{task}",
        title=f"{task}: reliability",
        alt=f"Observed rate by predicted probability of {task}; {ratio:.2f} events per expected.",
        x_label="predicted probability",
        y_label="observed rate",
        x_range=(0, top),
        y_range=(0, top),
        diagonal=True,
        percent_x=True,
        percent_y=True,
    )
