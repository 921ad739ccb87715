"""The parts of a diagnosis: pictures and tables of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.diagnosis.course import SQUARED_ERROR, Course, gatings
from riskmtl.diagnosis.findings import CONFLICT
from riskmtl.training.diagnosis import DEAD
from riskmtl.validation.figure import Line, bars, heatmap, lines, parting, shortened
from riskmtl.validation.result import Question, Result, Table

_MOST_LINES = 6
# Letters of a head's name in a title, and in that of a pair.
_TITLE, _OF_PAIR = 38, 7


def sections(course: Course) -> list[tuple[Question, Result]]:
    """
    All parts that there is something to be shown in.

    Parameters
    ----------
    course : Course

    Returns
    -------
    list of (Question, Result)
    """
    found = [
        (
            Question("seesaw", "See-saw", "Does what serves one head cost another?"),
            _seesaw(course),
        ),
        (Question("losses", "Losses", "Does each head still learn, and what holds?"),
         _losses(course)),
        (
            Question("conflict", "Conflict", "Do the heads pull the shared part the same way?"),
            _conflict(course),
        ),
        (Question("pull", "Pull", "How hard does each head pull?"), _pull(course)),
        (Question("gates", "Gates", "Which experts does each head use?"), _gates(course)),
        (Question("numbers", "All numbers", "What was recorded?"), _numbers(course)),
    ]  # fmt: skip
    return [(question, result) for question, result in found if result.figures or result.tables]


def _seesaw(course: Course) -> Result:
    told = [
        task
        for task in course.tasks
        if course.kept(task) is not None and np.isfinite(course.behind(task)).any()
    ]
    figures = []
    for metric in dict.fromkeys(course.metric(task) for task in told):
        heads = [task for task in told if course.metric(task) == metric]
        key, what = f"seesaw-{metric}", _words(metric)
        figures += _over_epochs(
            course,
            {task: -course.behind(task) for task in heads},
            key=key,
            title=f"Validation: {what}",
            y_label="behind the head's best epoch",
            kept=[course.kept(task) for task in heads],
        )
        lost = np.array([course.behind(task)[course.kept(task) or 0] for task in heads])
        if len(heads) > 1:
            figures.append(
                bars(
                    heads,
                    lost,
                    key=f"{key}-lost",
                    title="What each head lost by the kept epoch",
                    alt=", ".join(f"{t}: {v:.4f}" for t, v in zip(heads, lost, strict=True)),
                    x_label=what,
                )
            )
    if not told:
        return Result()
    return Result(
        tables=[
            Table(
                "seesaw",
                "Best and kept epoch of each head",
                pl.DataFrame([_standing(course, task) for task in told]),
                "Lost: how far the head is behind its own best in the kept epoch.",
            )
        ],
        figures=figures,
        notes=[
            "The kept epoch is the broken vertical line. Figures of few events jump from epoch to "
            "epoch by chance: a small loss is no see-saw."
        ],
    )


def _standing(course: Course, task: str) -> dict[str, Any]:
    metric, behind, kept = course.metric(task), course.behind(task), course.kept(task)
    assert kept is not None
    values = course.values(task, metric)
    best, last = int(np.nanargmin(behind)), int(np.flatnonzero(np.isfinite(values))[-1])
    return {
        "head": task,
        "metric": _words(metric),
        "best_epoch": course.epochs[best],
        "best": float(values[best]),
        "kept_epoch": course.epochs[kept],
        "kept": float(values[kept]),
        "lost": float(behind[kept]),
        "last_epoch": course.epochs[last],
        "last": float(values[last]),
    }


def _words(metric: str) -> str:
    return metric.removeprefix("val_").replace("_", " ")


def _losses(course: Course) -> Result:
    figures, starts = [], parting(course.tasks, _TITLE)
    for place, (task, start) in enumerate(zip(course.tasks, starts, strict=True)):
        name = SQUARED_ERROR if course.metric(task) == SQUARED_ERROR else "val_log_loss"
        curves = {
            "training": course.values(task, "train_loss"),
            "validation": course.values(task, name),
        }
        figures += _over_epochs(
            course,
            curves,
            key=f"loss-{place}",
            title=f"{shortened(task, _TITLE, start)}: loss",
            y_label="squared error" if name == SQUARED_ERROR else "log-loss",
            kept=[course.kept(task)],
        )
    return Result(
        figures=figures,
        notes=[
            "Training loss is the mean over the steps of an epoch, with dropout and with events "
            "weighted as asked; validation loss is at its end, without either."
        ],
    )


def _conflict(course: Course) -> Result:
    pairs = course.pairs()
    if not pairs:
        return Result()
    figures = []
    for place, group in enumerate(course.groups):
        own = {(one, other): line for one, other, line in pairs if one in group}
        if not own:
            continue
        matrix = np.full((len(group), len(group)), np.nan)
        for (one, other), line in own.items():
            i, j = group.index(one), group.index(other)
            matrix[i, j] = matrix[j, i] = np.nanmean(line)
        figures.append(
            heatmap(
                group,
                group,
                matrix,
                key=f"conflict-{place}",
                title="Mean cosine of the heads' gradients",
                alt="; ".join(f"{one} and {other}: {np.nanmean(line):.2f}"
                              for (one, other), line in own.items()),
                signed=True,
            )
        )  # fmt: skip
    worst = sorted(pairs, key=lambda pair: float(np.nanmean(pair[2])))[:_MOST_LINES]
    figures += _over_epochs(
        course,
        dict(zip(_pair_names(worst, course.tasks), (line for *_, line in worst), strict=True)),
        key="cosines",
        title="Cosine over the epochs"
        + (f": the {len(worst)} lowest pairs" if len(worst) < len(pairs) else ""),
        y_label="cosine",
        level=0.0,
    )
    frame = pl.DataFrame(
        [
            (
                one,
                other,
                float(np.nanmean(line)),
                float(np.nanmin(line)),
                int((line < 0).sum()),
                int(np.isfinite(line).sum()),
            )
            for one, other, line in pairs
        ],
        schema=["head", "other", "mean_cosine", "lowest", "epochs_below_0", "epochs"],
        orient="row",
    )
    return Result(
        tables=[Table("conflict", "Pairs of heads", frame)],
        figures=figures,
        notes=[
            "1: a step for one head is a step for the other; 0: they do not meddle; below 0: what "
            "lowers one loss raises the other. Over the parameters that all heads share, at the "
            "end of each epoch, on a fixed draw of training rows without dropout. Two heads are "
            f"said to pull against each other where the mean is below {CONFLICT}; of heads with "
            "few events a cosine is uncertain by 0.1 and more.".replace("-0", "−0")
        ],
    )


def _pair_names(pairs: Sequence[tuple[str, str, Any]], tasks: Sequence[str]) -> list[str]:
    """Such as "fraud/takeover"; of long names a part, as long as that tells the pairs apart."""
    whole = [f"{one}/{other}" for one, other, _ in pairs]
    if max(map(len, whole)) <= 2 * _OF_PAIR:
        return whole
    starts = dict(zip(tasks, parting(tasks, _OF_PAIR), strict=True))
    short = [
        "/".join(shortened(task, _OF_PAIR, starts[task]) for task in pair) for *pair, _ in pairs
    ]
    return short if len(set(short)) == len(pairs) else whole


def _pull(course: Course) -> Result:
    figures = []
    for key, title, label, of in (
        ("norms", "Length of each head's gradient", "norm", "gradient_norm"),
        ("pulls", "The same times the task's weight", "norm × weight", ""),
        ("weights", "Weight of each task's loss", "mean weight of the epoch", "task_weight"),
    ):
        curves = {
            task: course.values(task, of) if of else course.pull(task) for task in course.tasks
        }
        figures += _over_epochs(course, curves, key=key, title=title, y_label=label)
    return Result(
        figures=figures,
        notes=[
            "A head whose gradient is much longer than another's decides where the shared part "
            "goes, whatever the angle between them."
        ],
    )


def _gates(course: Course) -> Result:
    found = gatings(course)
    if not found:
        return Result()
    figures, rows = [], []
    for place, gating in enumerate(found):
        name = f": {', '.join(gating.tasks)}" if len(found) > 1 else ""
        figures.append(
            heatmap(
                gating.experts,
                gating.tasks,
                gating.weights.T,
                key=f"gates-{place}",
                title=f"Mean weight of each expert{name}",
                alt="; ".join(
                    f"{task}: " + ", ".join(
                        f"{expert} {weight:.2f}"
                        for expert, weight in zip(gating.experts, line, strict=True)
                        if np.isfinite(weight)
                    )
                    for task, line in zip(gating.tasks, gating.weights, strict=True)
                ),
                percent=True,
            )
        )  # fmt: skip
        for expert, line in zip(gating.experts, gating.weights.T, strict=True):
            known = line[np.isfinite(line)]
            rows.append(
                (
                    ", ".join(gating.tasks),
                    expert,
                    len(known),
                    float(known.mean()),
                    float(known.max()),
                    "dead" if expert in gating.dead else "",
                )
            )
    figures += _over_epochs(
        course,
        {task: course.values(task, "gate_entropy") for task in course.tasks},
        key="entropy",
        title="Entropy of each head's gate",
        y_label="of an even gate's",
    )
    frame = pl.DataFrame(
        rows, schema=["network", "expert", "gates", "mean_weight", "most", "state"], orient="row"
    )
    if len(found) == 1:
        frame = frame.drop("network")
    return Result(
        tables=[
            Table(
                "experts",
                "Use of each expert",
                frame,
                "Gates: how many may select it. Mean weight and most: over those gates.",
            )
        ],
        figures=figures,
        notes=[
            "Weights of the last level of experts in the kept epoch, over a draw of training rows. "
            "Entropy 1: a gate mixes all that it may select alike; 0: it follows one expert in "
            f"each row. Dead: no gate gives it a mean weight of {DEAD} or more."
        ],
    )


def _numbers(course: Course) -> Result:
    frame = course.history
    if "gate_weights" in frame.columns:
        weights = pl.Series(
            "gate_weights",
            [
                None if line is None else " ".join("·" if w is None else f"{w:.2f}" for w in line)
                for line in frame["gate_weights"].to_list()
            ],
            dtype=pl.String,
        )
        frame = frame.with_columns(weights)
    empty = [name for name in frame.columns if frame[name].null_count() == frame.height]
    frame = frame.drop(empty).with_columns(
        kept=pl.when("kept").then(pl.lit("kept")).otherwise(pl.lit(""))
    )
    return Result(tables=[Table("history", "A line per epoch and head", frame)])


def _over_epochs(
    course: Course,
    curves: dict[str, NDArray[np.float64]],
    *,
    key: str,
    title: str,
    y_label: str,
    kept: list[int | None] | None = None,
    level: float | None = None,
) -> list[str]:
    """A chart of curves over the epochs, or none where no curve has a value."""
    known = {name: line for name, line in curves.items() if np.isfinite(line).any()}
    if not known:
        return []
    places = np.arange(len(course.epochs))
    marked = [course.kept(task) for task in course.tasks] if kept is None else kept
    series = [Line(name, places, line, dots=len(places) <= 15) for name, line in known.items()]
    if level is not None and len(places) > 1:
        values = np.concatenate(list(known.values()))
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if low < level < high:
            series.append(Line("0", places, np.full(len(places), level), dashed=True))
    said = "; ".join(
        f"{name}: {_first(line):.3g} at first, {_last(line):.3g} at last"
        for name, line in known.items()
    )
    svg = lines(
        series,
        key=key,
        title=title,
        alt=f"over {len(places)} epochs: {said}",
        x_label="epoch",
        y_label=y_label,
        marks=sorted({float(place) for place in marked if place is not None}),
        dates=[str(epoch) for epoch in course.epochs],
    )
    return [svg]


def _first(line: NDArray[np.float64]) -> float:
    return float(line[np.isfinite(line)][0])


def _last(line: NDArray[np.float64]) -> float:
    return float(line[np.isfinite(line)][-1])
