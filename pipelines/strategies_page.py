"""The page of the strategies, from their results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

REFERENCE = "sum"
Record = Mapping[str, Any]


def as_page(results: Mapping[str, Any], groups: Mapping[str, str]) -> str:
    """
    Lay the results out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``strategies.json``: ``fits``, ``differences`` and ``cost``.
    groups : mapping of str to str
        Strategy to the part of the page that it belongs to, in order.

    Returns
    -------
    str
    """
    fits, differences = list(results["fits"].values()), results["differences"]
    return "\n".join(
        [
            "# Ways of sharing, ways of training",
            "",
            *_introduction(fits),
            "## In short",
            "",
            *_verdicts(differences, fits),
            "## Difference to plain sums",
            "",
            *_differences(differences, groups),
            "## Every figure",
            "",
            "AUC / average precision of each head, and epochs until the training stopped: means",
            "over the seeds (number in brackets). Networks that train one after another count by",
            "the longest.",
            "",
            *_figures(fits, groups),
            "## Cost of a step",
            "",
            *_cost(results["cost"], groups),
            "",
        ]
    )


def _introduction(fits: Sequence[Record]) -> list[str]:
    sizes = {fit["table"]: fit["train_rows"] for fit in fits}
    rows = "; ".join(f"{table}, {size:,}" for table, size in sizes.items())
    return [
        "One thing at a time is done otherwise than in the reference, **`sum`**: PLE, joint",
        "batches and the plain sum of the heads' losses, one member, and the package's defaults",
        "for all else. Nothing was tuned for any of them, so a difference says what changing that",
        "one argument does, not what a method can do at its best.",
        "",
        f"Training rows: {rows}. All test rows.",
        "",
    ]


# ---- in short ------------------------------------------------------------------------------------


def _verdicts(differences: Sequence[Record], fits: Sequence[Record]) -> list[str]:
    if not differences:
        return ["Nothing has been compared yet.", ""]
    names = list(dict.fromkeys(d["strategy"] for d in differences))
    lines = [_Verdict.of(name, differences, fits) for name in names]
    lines.sort(key=lambda line: -line.area)
    return [
        _conclusion(lines),
        "",
        "Means over all tables and heads. Significance is of the AUC, at 5 % after Holm over all",
        "strategies and heads of a table.",
        "",
        "| strategy | difference in AUC | in average precision | heads better | heads worse | of |",
        "|---|---|---|---|---|---|",
        *(
            f"| {line.name} | {line.area:+.4f} | {line.precision:+.4f} | {line.better} | "
            f"{line.worse} | {line.heads} |"
            for line in lines
        ),
        "",
    ]


def _conclusion(lines: Sequence[_Verdict]) -> str:
    better = [line for line in lines if line.better]
    never_worse = [line for line in better if not line.worse]
    if never_worse:
        named = (
            f"`{line.name}` (on {line.better} of {line.heads}, {line.area:+.4f} over all of them)"
            for line in never_worse
        )
        return (
            "Significantly better than plain sums on some head and worse on none: "
            + ", ".join(named)
            + ". The default stays: nothing is chosen on test rows."
        )
    if better:
        return (
            "No strategy is significantly better than plain sums on any head without being worse "
            "on another: the default stays."
        )
    return (
        "No strategy is significantly better than plain sums on any head, and "
        f"{sum(line.worse > 0 for line in lines)} of {len(lines)} are worse on some: the default "
        "stays."
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a strategy comes to over all tables and heads."""

    name: str
    area: float
    precision: float
    better: int
    worse: int
    heads: int

    @classmethod
    def of(cls, name: str, differences: Sequence[Record], fits: Sequence[Record]) -> _Verdict:
        own = [d for d in differences if d["strategy"] == name]
        sure = [d["estimate"] for d in own if d["p_holm"] < 0.05]
        return cls(
            name=name,
            area=float(np.mean([d["estimate"] for d in own])),
            precision=_precision(name, fits),
            better=sum(estimate > 0 for estimate in sure),
            worse=sum(estimate < 0 for estimate in sure),
            heads=len(own),
        )


def _precision(name: str, fits: Sequence[Record]) -> float:
    """Average precision less the reference's on the same seed, each head counting alike."""
    found: dict[tuple[str, str], list[float]] = {}
    reference = {(fit["table"], fit["seed"]): fit for fit in fits if fit["strategy"] == REFERENCE}
    for fit in fits:
        if fit["strategy"] == name:
            same = reference[fit["table"], fit["seed"]]["tasks"]
            for own, theirs in zip(fit["tasks"], same, strict=True):
                found.setdefault((fit["table"], own["task"]), []).append(
                    own["average_precision"] - theirs["average_precision"]
                )
    return float(np.mean([np.mean(each) for each in found.values()]))


# ---- tables --------------------------------------------------------------------------------------


def _differences(differences: Sequence[Record], groups: Mapping[str, str]) -> list[str]:
    lines = [
        "AUC on the test rows less that of `sum` on the same seeds (number in brackets), with a",
        "95 % interval by DeLong with the variance between seeds added, which errs on the wide",
        "side. **Bold**: significant.",
        "",
    ]
    for table in dict.fromkeys(d["table"] for d in differences):
        of_table = [d for d in differences if d["table"] == table]
        heads = list(dict.fromkeys(d["task"] for d in of_table))
        lines += _heading(table, heads)
        for name in groups:
            own = {d["task"]: d for d in of_table if d["strategy"] == name}
            if own:
                seeds = next(iter(own.values()))["seeds"]
                cells = [_difference(own[head]) for head in heads]
                lines.append(f"| {groups[name]} | {name} ({seeds}) | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _difference(difference: Record) -> str:
    text = f"{difference['estimate']:+.4f}"
    text = f"**{text}**" if difference["p_holm"] < 0.05 else text
    return f"{text} [{difference['low']:+.4f}, {difference['high']:+.4f}]"


def _figures(fits: Sequence[Record], groups: Mapping[str, str]) -> list[str]:
    lines = []
    for table in dict.fromkeys(fit["table"] for fit in fits):
        of_table = [fit for fit in fits if fit["table"] == table]
        heads = [task["task"] for task in of_table[0]["tasks"]]
        lines += _heading(table, ["epochs", *heads])
        for name in groups:
            runs = [fit for fit in of_table if fit["strategy"] == name]
            if runs:
                cells = [f"{np.mean([run['epochs'] for run in runs]):.0f}"]
                cells += [_ranking([run["tasks"][i] for run in runs]) for i in range(len(heads))]
                lines.append(f"| {groups[name]} | {name} ({len(runs)}) | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _heading(table: str, columns: Sequence[str]) -> list[str]:
    return [
        f"### {table[0].upper()}{table[1:]}",
        "",
        f"| | strategy | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]


def _ranking(runs: Sequence[Record]) -> str:
    area, precision = (
        np.mean([run[metric] for run in runs]) for metric in ("roc_auc", "average_precision")
    )
    return f"{area:.4f} / {precision:.4f}"


def _cost(cost: Mapping[str, Record], groups: Mapping[str, str]) -> list[str]:
    if not cost:
        return ["Not measured yet."]
    counts = sorted({record["tasks"] for record in cost.values()})
    found = {(record["strategy"], record["tasks"]): record["multiple"] for record in cost.values()}
    lines = [
        "Median time of a step as a multiple of that of `sum`, timed before and after it in one",
        "process, and once more where these two were far apart: 512 rows, 30 numeric columns, one",
        "member, one core.",
        "",
        "| | strategy | " + " | ".join(f"{count} tasks" for count in counts) + " |",
        "|---|---|" + "---|" * len(counts),
    ]
    for name in groups:
        cells = [found.get((name, count)) for count in counts]
        if any(cell is not None for cell in cells):
            texts = ["–" if cell is None else f"{cell:.2f}" for cell in cells]
            lines.append(f"| {groups[name]} | {name} | {' | '.join(texts)} |")
    return lines
