"""Does it rank: AUC, KS, average precision, recalls and gains, each with its interval."""

from __future__ import annotations

import polars as pl

from riskmtl.validation.curves import (
    Interval,
    Ranking,
    auc_interval,
    bootstrap_intervals,
    gains,
    gains_by_decile,
)
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.result import Finding, Result, Table

_DRAWN = (
    "ks",
    "average_precision",
    "recall_at_1pct_fpr",
    "recall_at_5pct_fpr",
    "capture_at_1pct",
    "capture_at_5pct",
)


@section("discrimination", "Discrimination", "Does it rank?")
def discrimination(evidence: Evidence) -> Result:
    """Ranking figures of each head with intervals, by customer where a key repeats."""
    findings: list[Finding] = []
    figures, measured, deciles = [], [], []
    for task in evidence.tasks:
        if not evidence.has_enough(task):
            findings.append(evidence.too_few(task, "AUC"))
            continue
        labels, scores = evidence.of(task)
        clusters = evidence.rows.customers
        ranking = Ranking.of(labels, scores, clusters)
        auc = auc_interval(labels, scores, clusters=clusters)
        findings.append(evidence.criteria["auc"].judge(task, "AUC", *_ends(auc)))
        findings += _against_training(evidence, task)
        drawn = bootstrap_intervals(ranking, _DRAWN, seed=evidence.settings.seed)
        for name, found in {"auc": auc, **drawn}.items():
            measured.append((task, name, *_ends(found), ranking.events))
        gini = [2 * end - 1 for end in _ends(auc)]
        measured.append((task, "gini", gini[0], gini[1], gini[2], ranking.events))
        deciles.append(gains_by_decile(ranking).insert_column(0, _named(task, 10)))
        figures += _curves(task, ranking)
    tables = [
        Table(
            "ranking",
            "Ranking figures",
            pl.DataFrame(
                measured,
                schema=["head", "metric", "estimate", "low", "high", "events"],
                orient="row",
            ),
            "95 % intervals: AUC by DeLong, the others by stratified bootstrap"
            + (", customers drawn as a whole." if evidence.rows.customers is not None else "."),
        )
    ]
    if deciles:
        tables.append(Table("deciles", "Gains by tenth of the rows", pl.concat(deciles)))
    notes = ["AUC and Gini do not depend on how rare events are; precision and AP do."]
    return Result(findings, tables, figures, notes)


def _ends(found: Interval) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high


def _named(task: str, rows: int) -> pl.Series:
    return pl.Series("head", [task] * rows)


def _against_training(evidence: Evidence, task: str) -> list[Finding]:
    """How much less it ranks here than on the rows it was trained on."""
    if evidence.trained is None:
        return []
    position = evidence.tasks.index(task)
    then_labels = evidence.trained.labels[:, position]
    events = (then_labels == 1).sum(), (then_labels == 0).sum()
    if min(events) < evidence.settings.min_events:
        return []
    then = auc_interval(then_labels, evidence.trained.scores[:, position])
    now = auc_interval(*evidence.of(task), clusters=evidence.rows.customers)
    drop = then.estimate - now.estimate
    reach = ((then.high - then.low) ** 2 + (now.high - now.low) ** 2) ** 0.5 / 2
    return [
        evidence.criteria["auc_drop"].judge(
            task, "AUC in training less AUC here", drop, drop - reach, drop + reach
        )
    ]


def _curves(task: str, ranking: Ranking) -> list[str]:
    numbers = f"AUC {ranking.auc:.3f}, KS {ranking.ks:.3f}, AP {ranking.average_precision:.3f}"
    early = f"{ranking.capture(0.05):.0%} in the first 5 %"
    curve = gains(ranking)
    pictures = (
        ("roc", "fpr", "ROC", "share of non-events flagged", numbers),
        ("cap", "share", "gains", "share of rows flagged", early),
    )
    return [
        lines(
            [Line("model", curve[column].to_numpy(), curve["recall"].to_numpy())],
            key=f"{key}-{task}",
            title=f"{task}: {title}",
            alt=f"Share of events of {task} caught, by {x_label}: {words}.",
            x_label=x_label,
            y_label="share of events caught",
            x_range=(0, 1),
            y_range=(0, 1),
            diagonal=True,
            percent_x=True,
            percent_y=True,
        )
        for key, column, title, x_label, words in pictures
    ]
