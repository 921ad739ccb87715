"""What shakes it: noise, missing columns, unseen categories, an adversary, weak segments."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.encoding import MISSING, UNSEEN
from riskmtl.metrics import roc_auc
from riskmtl.validation.curves import auc_interval
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.reliability import calibration_line
from riskmtl.validation.result import Finding, Result, Table

_ROWS, _ATTACKED = 20_000, 500
_NOISE = (0.0, 0.05, 0.1, 0.2, 0.4)
_TRIED = 9
_Encoded = NDArray[np.float32]


@section("robustness", "Robustness", "What shakes it?")
def robustness(evidence: Evidence) -> Result:
    """Loss of AUC under disturbed inputs, scores that an adversary can lower, weak segments."""
    generator = np.random.default_rng(evidence.settings.seed)
    chosen = np.sort(generator.permutation(evidence.rows.frame.height)[:_ROWS])
    x, y = evidence.rows.encoded[chosen], evidence.rows.labels[chosen]
    tasks = [task for task in evidence.tasks if evidence.has_enough(task)]
    noise = _under_noise(evidence, x, y, generator)
    lost = _without_columns(evidence, x, y)
    segments = pl.concat([_segments(evidence, task) for task in tasks]) if tasks else pl.DataFrame()
    findings: list[Finding] = []
    for task in evidence.tasks:
        if task not in tasks:
            findings.append(evidence.too_few(task, "AUC lost without a column"))
            continue
        findings += _judged(evidence, task, lost, segments)
    tables = [
        Table("noise", "AUC under noise", noise, "Noise in standard deviations of each number."),
        Table("lost_columns", "AUC lost where a column is missing, or its categories new",
              lost.sort("loss", descending=True).group_by("head", maintain_order=True).head(8)),
        Table("segments", "Segments found by a tree on one half, measured on the other", segments,
              "Leaves of a tree on the loss beyond what the probabilities expect."),
    ]  # fmt: skip
    attacked = _attacks(evidence)
    if attacked is not None:
        tables.append(
            Table(
                "adversary",
                "Caught events that escape by changing what the schema marks as changeable",
                attacked,
                "Each step changes the column that lowers the score most, to a value of the "
                "background in the allowed direction.",
            )
        )
    return Result(findings, tables, [_picture(noise, evidence.tasks)])


def _judged(
    evidence: Evidence, task: str, lost: pl.DataFrame, segments: pl.DataFrame
) -> list[Finding]:
    worst = lost.filter(pl.col("head") == task).sort("loss").row(-1, named=True)
    findings = [
        evidence.criteria["column_missing"].judge(
            task, f"AUC lost with {worst['column']} {worst['how']}", worst["loss"]
        )
    ]
    of_head = segments.filter(pl.col("head") == task)
    if of_head.height:
        row = of_head.sort("low").row(-1, named=True)
        findings.append(
            evidence.criteria["weak_segment"].judge(
                task, f"events over expected where {row['segment']}", row["ratio"], row["low"],
                row["high"],
            )
        )  # fmt: skip
    return findings


def _aucs(evidence: Evidence, x: _Encoded, y: NDArray[np.float64]) -> list[float]:
    scores = evidence.model.probabilities(x)
    return [roc_auc(y[:, i], scores[:, i]) for i in range(len(evidence.tasks))]


def _under_noise(
    evidence: Evidence, x: _Encoded, y: NDArray[np.float64], generator: np.random.Generator
) -> pl.DataFrame:
    numbers = [i for i, c in enumerate(evidence.model.encoder.columns_) if not c.is_categorical]
    spread = np.nan_to_num(np.nanstd(x[:, numbers].astype(np.float64), axis=0))
    drawn = generator.standard_normal((len(x), len(numbers)))
    rows_found = []
    for size in _NOISE:
        disturbed = x.copy()
        disturbed[:, numbers] += (size * spread * drawn).astype(np.float32)
        found = _aucs(evidence, disturbed, y)
        rows_found += [(task, size, auc) for task, auc in zip(evidence.tasks, found, strict=True)]
    return pl.DataFrame(rows_found, schema=["head", "noise", "auc"], orient="row")


def _without_columns(evidence: Evidence, x: _Encoded, y: NDArray[np.float64]) -> pl.DataFrame:
    whole, rows_found = _aucs(evidence, x, y), []
    for position, column in enumerate(evidence.model.encoder.columns_):
        ways = {"missing": MISSING, "new": UNSEEN} if column.is_categorical else {"missing": np.nan}
        for how, value in ways.items():
            disturbed = x.copy()
            disturbed[:, position] = value
            for task, before, after in zip(
                evidence.tasks, whole, _aucs(evidence, disturbed, y), strict=True
            ):
                rows_found.append((task, column.name, how, before - after))
    return pl.DataFrame(rows_found, schema=["head", "column", "how", "loss"], orient="row")


def _attacks(evidence: Evidence) -> pl.DataFrame | None:
    """Share of caught events that escape the cut-off after so many changes."""
    background = evidence.model.background
    directions = {c.name: c.changeable for c in evidence.schema.input_columns if c.changeable}
    levers = [
        (i, directions[c.name])
        for i, c in enumerate(evidence.model.encoder.columns_)
        if c.name in directions
    ]
    if not levers or background is None:
        return None
    rows_found = []
    for position, task in enumerate(evidence.tasks):
        labels, scores = evidence.of(task)
        cutoff = evidence.cutoff(task)
        caught = np.flatnonzero((labels == 1) & (scores >= cutoff))[:_ATTACKED]
        if not len(caught):
            continue
        x = evidence.rows.encoded[caught].copy()
        for step in range(1, min(3, len(levers)) + 1):
            x = _lowered(evidence, x, position, levers, background)
            escaped = float((evidence.model.probabilities(x)[:, position] < cutoff).mean())
            rows_found.append((task, len(caught), step, escaped))
    shape = ["head", "caught events", "columns changed", "share that escapes"]
    return pl.DataFrame(rows_found, schema=shape, orient="row")


def _lowered(
    evidence: Evidence,
    x: _Encoded,
    head: int,
    levers: list[tuple[int, str]],
    background: _Encoded,
) -> _Encoded:
    """Rows after the one change of each that lowers its score most."""
    best, lowest = x.copy(), evidence.model.probabilities(x)[:, head]
    for column, direction in levers:
        known = background[:, column][~np.isnan(background[:, column])]
        if not len(known):
            continue
        for value in np.unique(np.quantile(known, np.linspace(0, 1, _TRIED), method="nearest")):
            changed = x.copy()
            changed[:, column] = value
            now = x[:, column]
            allowed = {"up": value >= now, "down": value <= now, "both": now == now}[direction]
            scores = np.where(allowed, evidence.model.probabilities(changed)[:, head], np.inf)
            better = scores < lowest
            best[better], lowest = changed[better], np.minimum(scores, lowest)
    return best


def _segments(evidence: Evidence, task: str) -> pl.DataFrame:
    """Leaves of a small tree on the excess loss of one half, measured on the other half."""
    from sklearn.tree import DecisionTreeRegressor

    labels, scores = evidence.of(task)
    seen = np.flatnonzero(~np.isnan(labels))
    half = np.random.default_rng(evidence.settings.seed).permutation(seen)
    fitted, measured = half[: len(half) // 2], half[len(half) // 2 :]
    x = np.nan_to_num(evidence.rows.encoded, nan=-1e6)
    excess = labels - scores
    smallest = max(200, len(fitted) // 50)
    tree = DecisionTreeRegressor(max_leaf_nodes=8, min_samples_leaf=smallest, random_state=0)
    tree.fit(x[fitted], excess[fitted])
    leaves, paths = tree.apply(x[measured]), _paths(evidence, tree)
    rows_found = []
    for leaf in np.unique(leaves):
        rows = measured[leaves == leaf]
        events = int(labels[rows].sum())
        if min(events, len(rows) - events) < evidence.settings.min_events:
            continue
        line = calibration_line(labels[rows], scores[rows])
        auc = auc_interval(labels[rows], scores[rows]).estimate
        rows_found.append((task, paths[leaf], len(rows), events, line.ratio, line.ratio_low,
                       line.ratio_high, auc))  # fmt: skip
    shape = {
        "head": pl.String, "segment": pl.String, "rows": pl.Int64, "events": pl.Int64,
        "ratio": pl.Float64, "low": pl.Float64, "high": pl.Float64, "auc": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows_found, schema=shape, orient="row")


def _paths(evidence: Evidence, tree: object) -> dict[int, str]:
    """The conditions that lead to each leaf."""
    nodes = tree.tree_  # type: ignore[attr-defined]
    names = [column.name for column in evidence.model.encoder.columns_]
    found, open_ = {}, [(0, "")]
    while open_:
        node, path = open_.pop()
        if nodes.children_left[node] < 0:
            found[node] = path or "all rows"
            continue
        name, bound = names[nodes.feature[node]], nodes.threshold[node]
        before = f"{path}, " if path else ""
        open_.append((nodes.children_left[node], f"{before}{name} ≤ {bound:.4g}"))
        open_.append((nodes.children_right[node], f"{before}{name} > {bound:.4g}"))
    return found


def _picture(noise: pl.DataFrame, tasks: list[str]) -> str:
    series = []
    for task in tasks:
        of_head = noise.filter(pl.col("head") == task)
        series.append(Line(task, of_head["noise"].to_numpy(), of_head["auc"].to_numpy(), dots=True))
    return lines(
        series,
        key="noise",
        title="AUC under noise in the numbers",
        alt="AUC of each head by size of the noise: "
        + ", ".join(f"{s.name} from {s.y[0]:.3f} to {s.y[-1]:.3f}" for s in series) + ".",
        x_label="noise, standard deviations",
        y_label="AUC",
    )  # fmt: skip
