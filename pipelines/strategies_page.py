"""The page of the strategies, from their results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            *_verdicts(differences),
            "## Difference to plain sums",
            "",
            *_differences(differences, groups),
            "## Every figure",
            "",
            "Mean over the seeds (number in brackets). Seconds are of a fit, on a machine that",
            "other jobs used too.",
            "",
            *_figures(fits, groups),
            "",
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


def _verdicts(differences: Sequence[Record]) -> list[str]:
    if not differences:
        return ["Nothing has been compared yet.", ""]
    names = list(dict.fromkeys(d["strategy"] for d in differences))
    lines = [_verdict(name, [d for d in differences if d["strategy"] == name]) for name in names]
    lines.sort(key=lambda line: -line[1])
    never_worse = [name for name, _, better, worse, _ in lines if better and not worse]
    conclusion = (
        "No strategy is significantly better than plain sums on any head without being worse on "
        "another: the default stays."
        if not never_worse
        else "Significantly better than plain sums on some head and worse on none: "
        + ", ".join(f"`{name}`" for name in never_worse)
        + ". No default was changed on these test rows."
    )
    return [
        conclusion,
        "",
        "Significance is at 5 % after Holm over all strategies and heads of a table.",
        "",
        "| strategy | mean difference in AUC | heads better | heads worse | of |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {mean:+.4f} | {better} | {worse} | {count} |"
            for name, mean, better, worse, count in lines
        ),
        "",
    ]


def _verdict(name: str, own: Sequence[Record]) -> tuple[str, float, int, int, int]:
    sure = [d["estimate"] for d in own if d["p_holm"] < 0.05]
    better, worse = sum(e > 0 for e in sure), sum(e < 0 for e in sure)
    return name, float(np.mean([d["estimate"] for d in own])), better, worse, len(own)


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
        lines += [
            f"### {table[0].upper()}{table[1:]}",
            "",
            "| | strategy | " + " | ".join(heads) + " |",
            "|---|---|" + "---|" * len(heads),
        ]
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
    lines = ["| table | strategy | head | AUC | AP | seconds |", "|---|---|---|---|---|---|"]
    for table in dict.fromkeys(fit["table"] for fit in fits):
        for name in groups:
            runs = [fit for fit in fits if (fit["table"], fit["strategy"]) == (table, name)]
            for position, task in enumerate(runs[0]["tasks"] if runs else []):
                area, precision = (
                    np.mean([run["tasks"][position][metric] for run in runs])
                    for metric in ("roc_auc", "average_precision")
                )
                seconds = np.mean([run["seconds"] for run in runs])
                lines.append(
                    f"| {table} | {name} ({len(runs)}) | {task['task']} | {area:.4f} | "
                    f"{precision:.4f} | {seconds:.0f} |"
                )
    return lines


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
