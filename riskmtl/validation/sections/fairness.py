"""Is it fair: rates, ratios and calibration by group of the protected columns that were asked."""

from __future__ import annotations

import math

import polars as pl

from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Dots, dots
from riskmtl.validation.groups import group_gaps, group_rates
from riskmtl.validation.result import Finding, Result, Table, Verdict


@section("fairness", "Fairness", "Is it fair to the groups that were asked for?")
def fairness(evidence: Evidence) -> Result:
    """Groups of each protected column at each head's cut-off, with intervals."""
    asked = evidence.settings.protected
    if not asked:
        note = "Opt-in: name columns in `protected` of the settings."
        return Result([Finding("", "groups", Verdict.NOT_EXAMINED)], notes=[note])
    findings, rates, gaps = [], [], []
    for column in asked:
        groups = evidence.rows.frame[column].cast(pl.String)
        for task in evidence.tasks:
            labels, scores = evidence.of(task)
            cutoff = evidence.cutoff(task)
            place = [pl.lit(task).alias("head"), pl.lit(column).alias("column")]
            of_groups = group_rates(labels, scores, groups, cutoff=cutoff)
            rates.append(of_groups.select(*place, pl.all()))
            against = group_gaps(labels, scores, groups, cutoff=cutoff)
            gaps.append(against.select(*place, pl.all()))
            findings.append(_judged(evidence, task, column, against))
    table = pl.concat(gaps)
    return Result(
        findings,
        [
            Table("groups", "Rates by group", pl.concat(rates)),
            Table(
                "group_gaps",
                "Groups against the largest",
                table,
                "Flagged is the unfavourable decision, at the alert budget's cut-off.",
            ),
        ],
        [_picture(column, table) for column in asked],
        ["Ratios depend on the cut-off. Which of them must hold is for law and policy to say."],
    )


def _judged(evidence: Evidence, task: str, column: str, gaps: pl.DataFrame) -> Finding:
    """The ratio that is most surely low; where a group passes more often, the reference's."""
    names = ("impact_ratio", "impact_ratio_low", "impact_ratio_high")
    known = gaps.filter(pl.col("impact_ratio").is_not_nan())
    found = []
    for row in known.iter_rows(named=True):
        ratio, low, high = (row[name] for name in names)
        found.append((high, ratio, low, row["group"]))
        found.append((_inverse(low), _inverse(ratio), _inverse(high), row["reference"]))
    if not found:
        return Finding(task, f"impact ratio by {column}", Verdict.TOO_FEW)
    high, ratio, low, group = min(found)
    return evidence.criteria["impact_ratio"].judge(
        task, f"impact ratio of {column} {group}", ratio, low, high
    )


def _inverse(ratio: float) -> float:
    return 1 / ratio if ratio else math.inf


def _picture(column: str, gaps: pl.DataFrame) -> str:
    of_column = gaps.filter(pl.col("column") == column)
    names = of_column["group"].unique(maintain_order=True).to_list()
    series = [
        Dots(
            str(head[0]),
            *(part[name].to_numpy() for name in ("smd", "smd_low", "smd_high")),
        )
        for head, part in of_column.group_by("head", maintain_order=True)
    ]
    return dots(
        names,
        series,
        reference=0.0,
        key=f"fair-{column}",
        title=f"{column}: score against the largest group",
        alt=f"Standardised mean difference of the scores of groups of {column}.",
        x_label="standardised mean difference",
    )
