"""Is it better than something simpler: paired comparisons and swap sets."""

from __future__ import annotations

import numpy as np
import polars as pl

from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Dots, dots
from riskmtl.validation.result import Finding, Result, Table, Verdict


@section("challengers", "Challengers", "Is it better than something simpler?")
def challengers(evidence: Evidence) -> Result:
    """The model beside each challenger on the same rows."""
    if not evidence.contenders:
        note = "No challenger: train with one, or give models of the same tasks."
        return Result([Finding("", "challengers", Verdict.NOT_EXAMINED)], notes=[note])
    compared = pl.concat(map(evidence.compared, evidence.contenders), how="diagonal")
    findings: list[Finding] = []
    for task in evidence.tasks:
        of_head = compared.filter((pl.col("head") == task) & (pl.col("metric") == "roc_auc"))
        if of_head.is_empty():
            findings.append(evidence.too_few(task, "lead of the best challenger"))
            continue
        best = of_head.sort("high").row(0, named=True)  # most surely ahead of the model
        findings.append(
            evidence.criteria["challenger_lead"].judge(
                task,
                f"AUC of {best['challenger']} less that of the model",
                -best["estimate"],
                -best["high"],
                -best["low"],
            )
        )
    swaps = [_swapped(evidence, t, name) for t in evidence.tasks for name in evidence.contenders]
    tables = [
        Table(
            "challengers",
            "The model less each challenger, on the same rows",
            compared,
            "AUC by paired DeLong, with intervals that hold for all heads at once; the others by "
            "paired bootstrap. p adjusted for the heads of one challenger by Holm. Of Brier and "
            "log-loss less is better.",
        ),
        Table(
            "swaps",
            "Swap sets at the alert budget",
            pl.DataFrame(swaps),
            "Rows that one flags and the other does not, and how many of those observed had the "
            "event.",
        ),
    ]
    figures = [gaps_picture(compared, "challengers")] if compared.height else []
    return Result(findings, tables, figures)


def gaps_picture(compared: pl.DataFrame, key: str) -> str:
    """Picture of AUC gaps with their intervals, a row per head and a mark per challenger."""
    auc = compared.filter(pl.col("metric") == "roc_auc")
    heads = auc["head"].unique(maintain_order=True).to_list()
    groups = [
        Dots(str(name[0]), *(part[c].to_numpy() for c in ("estimate", "low", "high")))
        for name, part in auc.group_by("challenger", maintain_order=True)
    ]
    numbers = "; ".join(
        f"{row['head']} against {row['challenger']} {row['estimate']:+.4f}"
        for row in auc.to_dicts()
    )
    return dots(
        heads,
        groups,
        reference=0.0,
        key=key,
        title="AUC of the model less that of others",
        alt=f"AUC gaps with 95 % intervals: {numbers}.",
        x_label="gap in AUC",
    )


def _swapped(evidence: Evidence, task: str, name: str) -> dict[str, object]:
    """Rows that move across the cut-off from one model to another, and how they behaved."""
    labels, ours = evidence.of(task)
    theirs = evidence.contenders[name][:, evidence.tasks.index(task)]
    budget = max(1, round(evidence.settings.budget(task) * len(ours)))
    flagged = [np.zeros(len(ours), dtype=bool) for _ in range(2)]
    for mask, scores in zip(flagged, (ours, theirs), strict=True):
        mask[np.argsort(-scores, kind="stable")[:budget]] = True
    only_ours, only_theirs = flagged[0] & ~flagged[1], flagged[1] & ~flagged[0]
    seen = ~np.isnan(labels)
    return {
        "head": task,
        "challenger": name,
        "flagged by both": int((flagged[0] & flagged[1]).sum()),
        "by the model alone": int(only_ours.sum()),
        "events among these": int(np.nansum(labels[only_ours])),
        "observed among these": int((only_ours & seen).sum()),
        "by the challenger alone": int(only_theirs.sum()),
        "events among those": int(np.nansum(labels[only_theirs])),
        "observed among those": int((only_theirs & seen).sum()),
    }
