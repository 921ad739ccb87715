"""How is it used: cut-offs and what they cost, alert budgets, and decisions against the score."""

from __future__ import annotations

import numpy as np
import polars as pl

from riskmtl.validation.curves import Ranking, gains
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.result import Result, Table
from riskmtl.validation.settings import Costs

_BUDGETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


@section("use", "Use", "How is it used, and what do decisions cost?")
def use(evidence: Evidence) -> Result:
    """Alert budgets, expected cost by cut-off where costs are known, and overrides."""
    budgets, costs, figures = [], [], []
    for task in evidence.tasks:
        if not evidence.has_enough(task):
            continue
        labels, scores = evidence.of(task)
        ranking = Ranking.of(labels, scores)
        budgets += [
            (task, budget, float(np.quantile(scores, 1 - budget)), ranking.capture(budget),
             ranking.precision(budget))
            for budget in _BUDGETS
        ]  # fmt: skip
        if task in evidence.settings.costs:
            curve = _cost_curve(ranking, evidence.settings.costs[task])
            costs.append(_cheapest(task, curve))
            figures.append(_picture(task, curve))
    shape = ["head", "budget", "cut-off", "capture", "precision"]
    tables = [
        Table(
            "budgets",
            "Alert budgets",
            pl.DataFrame(budgets, schema=shape, orient="row"),
            "Cut-offs are over all rows, capture and precision over those with a known outcome.",
        )
    ]
    notes = []
    if costs:
        tables.append(Table("costs", "Cheapest cut-offs", pl.DataFrame(costs)))
        notes.append("The cheapest cut-off was chosen on these rows and is a little flattering.")
    else:
        notes.append("No costs were given, so no cut-off is recommended.")
    if evidence.settings.decision:
        tables.append(Table("overrides", "Decisions against the score", _overrides(evidence)))
    return Result(tables=tables, figures=figures, notes=notes)


def _cost_curve(ranking: Ranking, costs: Costs) -> pl.DataFrame:
    """Cost per observed row by share of rows flagged, and what is saved over flagging none."""
    rows = ranking.events + ranking.non_events
    missed = (1 - pl.col("recall")) * ranking.events * costs.missed
    alarms = pl.col("fpr") * ranking.non_events * costs.false_alarm
    return gains(ranking).with_columns(
        ((missed + alarms) / rows).alias("cost"),
        ((pl.col("recall") * ranking.events * costs.missed - alarms) / rows).alias("profit"),
    )


def _cheapest(task: str, curve: pl.DataFrame) -> dict[str, object]:
    best = curve.sort("cost", maintain_order=True).row(0, named=True)
    return {
        "head": task,
        "cut-off": best["cutoff"],
        "share flagged": best["share"],
        "events caught": best["recall"],
        "cost per row": best["cost"],
        "flagging none": curve["cost"][0],
        "flagging all": curve["cost"][-1],
    }


def _overrides(evidence: Evidence) -> pl.DataFrame:
    """Rows accepted against the score, and refused against it, with what became of them."""
    name = evidence.settings.decision
    accepted = evidence.rows.frame[name].cast(pl.Boolean).fill_null(False).to_numpy()
    rows_found = []
    for task in evidence.tasks:
        labels, scores = evidence.of(task)
        flagged = scores >= evidence.cutoff(task)
        for what, rows in (
            ("flagged, yet accepted", flagged & accepted),
            ("flagged and refused", flagged & ~accepted),
            ("not flagged, yet refused", ~flagged & ~accepted),
            ("not flagged and accepted", ~flagged & accepted),
        ):
            seen = rows & ~np.isnan(labels)
            rate = float(labels[seen].mean()) if seen.any() else None
            rows_found.append((task, what, int(rows.sum()), int(seen.sum()), rate))
    shape = ["head", "decision", "rows", "observed", "rate of events"]
    return pl.DataFrame(rows_found, schema=shape, orient="row")


def _picture(task: str, curve: pl.DataFrame) -> str:
    best = curve.sort("cost", maintain_order=True).row(0, named=True)
    x = curve["share"].to_numpy()
    return lines(
        [
            Line("cost", x, curve["cost"].to_numpy()),
            Line("saved", x, curve["profit"].to_numpy(), dashed=True),
        ],
        key=f"cost-{task}",
        title=f"{task}: cost by share flagged",
        alt=f"Cost per row of {task} and what is saved over flagging none, by share flagged; least "
        f"cost at {best['share']:.1%}.",
        x_label="share of rows flagged",
        y_label="per row",
        marks=(best["share"],),
        percent_x=True,
    )
