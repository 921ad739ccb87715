"""What joint training did: gain per head, gates, and alerts that two heads share."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

from riskmtl.explain.experts import gate_use
from riskmtl.spread import spread
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import heatmap
from riskmtl.validation.result import Finding, Result, Table, Verdict
from riskmtl.validation.sections.challengers import gaps_picture

SINGLE = "single_task"
_GATED_ROWS = 20_000


@section("joint", "Joint training", "Did training the heads together help each?")
def joint(evidence: Evidence) -> Result:
    """Gain over a network per task, use of the gates, and how the heads go together."""
    findings: list[Finding] = []
    tables, figures, notes = [], [], []
    if SINGLE in evidence.contenders:
        gains = evidence.compared(SINGLE)
        findings += [_transfer(evidence, task, gains) for task in evidence.tasks]
        tables.append(Table("joint_gain", "The model less one network per task", gains))
        figures += [gaps_picture(gains, "joint-gain")] if gains.height else []
    else:
        findings.append(Finding("", "gain over single-task networks", Verdict.NOT_EXAMINED))
        notes.append(f"Give a network per task as challenger {SINGLE!r} to see what joint "
                     "training did.")  # fmt: skip
    try:
        shown = evidence.rows.encoded[spread(len(evidence.rows.encoded), _GATED_ROWS)]
        gates = gate_use(evidence.model, shown, ["all"] * len(shown)).drop("segment")
        tables.append(Table("gates", "Weight that each head's gate gives each expert", gates))
    except ValueError as error:
        notes.append(f"Gates: {error}.")
    if len(evidence.tasks) > 1:
        tables.append(Table("joint_alerts", "Customers that two heads flag together",
                            _alerts(evidence)))  # fmt: skip
        figures.append(_correlations(evidence))
    return Result(findings, tables, figures, notes)


def _transfer(evidence: Evidence, task: str, gains: pl.DataFrame) -> Finding:
    if not gains.height or task not in gains["head"]:
        return evidence.too_few(task, "AUC lost by joint training")
    row = gains.filter((pl.col("head") == task) & (pl.col("metric") == "roc_auc")).row(
        0, named=True
    )
    return evidence.criteria["negative_transfer"].judge(
        task, "AUC lost by joint training", -row["estimate"], -row["high"], -row["low"]
    )


def _correlations(evidence: Evidence) -> str:
    from scipy.stats import rankdata

    ranks = np.apply_along_axis(rankdata, 0, evidence.rows.scores)
    found = np.corrcoef(ranks.T)
    pairs = ", ".join(
        f"{evidence.tasks[i]} and {evidence.tasks[j]} {found[i, j]:.2f}"
        for i, j in combinations(range(len(found)), 2)
    )
    return heatmap(
        evidence.tasks,
        evidence.tasks,
        found,
        key="head-correlation",
        title="Rank correlation of the heads' scores",
        alt=f"Spearman correlations: {pairs}.",
        signed=True,
    )


def _alerts(evidence: Evidence) -> pl.DataFrame:
    """Customers, or rows where no key repeats, above the cut-offs of two heads."""
    customers = evidence.rows.customers
    flagged = [
        np.unique(np.flatnonzero(mask) if customers is None else customers[mask])
        for mask in (evidence.rows.scores >= [evidence.cutoff(task) for task in evidence.tasks]).T
    ]
    lines = []
    for i, j in combinations(range(len(flagged)), 2):
        both = len(np.intersect1d(flagged[i], flagged[j]))
        lines.append((evidence.tasks[i], evidence.tasks[j], len(flagged[i]), len(flagged[j]), both))
    shape = ["first", "second", "flagged by the first", "by the second", "by both"]
    return pl.DataFrame(lines, schema=shape, orient="row")
