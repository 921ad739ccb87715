"""What shakes it: noise, missing columns, unseen categories, an adversary, weak segments."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.encoding import FIRST_KNOWN, MISSING, UNSEEN, EncodedColumn
from riskmtl.metrics import roc_auc
from riskmtl.validation.comparison import auc_difference
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
    for position, task in enumerate(evidence.tasks):
        seen = np.nansum(y[:, position]), (y[:, position] == 0).sum()
        if task not in tasks or min(seen) < evidence.settings.min_events:
            findings.append(evidence.too_few(task, "AUC lost without a column"))
        else:
            findings.append(_largest_loss(evidence, task, lost, x, y[:, position]))
        findings += _weakest(evidence, task, segments)
    tables = [
        Table("noise", "AUC under noise", noise, "Noise in standard deviations of each number."),
        Table("lost_columns", "AUC lost where a column is missing, or its categories new",
              lost.sort("loss", descending=True).group_by("head", maintain_order=True).head(8)),
        Table("segments", "Segments found by a tree on one half, measured on the other", segments,
              "Leaves of a tree on outcomes less probabilities."),
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


def _largest_loss(
    evidence: Evidence, task: str, lost: pl.DataFrame, x: _Encoded, y: NDArray[np.float64]
) -> Finding:
    row = lost.filter(pl.col("head") == task).sort("loss").row(-1, named=True)
    position = [c.name for c in evidence.model.encoder.columns_].index(row["column"])
    disturbed = x.copy()
    disturbed[:, position] = _ways(evidence, position)[row["how"]]
    head = evidence.tasks.index(task)
    scores = [evidence.model.probabilities(rows)[:, head] for rows in (x, disturbed)]
    loss = auc_difference(y, scores[0], scores[1])
    return evidence.criteria["column_missing"].judge(
        task, f"AUC lost with {row['column']} {row['how']}", loss.estimate, loss.low, loss.high
    )


def _weakest(evidence: Evidence, task: str, segments: pl.DataFrame) -> list[Finding]:
    """The segment that has most surely more events than expected, if any has events enough."""
    if segments.is_empty() or task not in segments["head"]:
        return []
    row = segments.filter(pl.col("head") == task).sort("low").row(-1, named=True)
    what = f"events over expected where {row['segment']}"
    return [
        evidence.criteria["weak_segment"].judge(task, what, row["ratio"], row["low"], row["high"])
    ]


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
        for how, value in _ways(evidence, position).items():
            disturbed = x.copy()
            disturbed[:, position] = value
            for task, before, after in zip(
                evidence.tasks, whole, _aucs(evidence, disturbed, y), strict=True
            ):
                rows_found.append((task, column.name, how, before - after))
    return pl.DataFrame(rows_found, schema=["head", "column", "how", "loss"], orient="row")


def _ways(evidence: Evidence, position: int) -> dict[str, float]:
    """Codes of what can go wrong with a column."""
    if evidence.model.encoder.columns_[position].is_categorical:
        return {"missing": MISSING, "new": UNSEEN}
    return {"missing": np.nan}


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
    """Leaves of a small tree on what the scores of one half miss, measured on the other half."""
    from sklearn.tree import DecisionTreeRegressor

    labels, scores = evidence.of(task)
    seen = np.flatnonzero(~np.isnan(labels))
    half = np.random.default_rng(evidence.settings.seed).permutation(seen)
    fitted, measured = half[: len(half) // 2], half[len(half) // 2 :]
    x = evidence.rows.encoded
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


def _paths(evidence: Evidence, tree: Any) -> dict[int, str]:
    """The conditions that lead to each leaf."""
    nodes, found = tree.tree_, {}
    columns = evidence.model.encoder.columns_
    has_missing = [bool(gaps.any()) for gaps in np.isnan(evidence.rows.encoded).T]
    open_: list[tuple[int, dict[int, tuple[float, float, bool]]]] = [(0, {})]
    while open_:
        node, path = open_.pop()
        left, right = nodes.children_left[node], nodes.children_right[node]
        if left < 0:
            said = [_condition(columns[position], *ends) for position, ends in path.items()]
            found[node] = ", ".join(said) or "all rows"
            continue
        position, bound = int(nodes.feature[node]), float(nodes.threshold[node])
        missing_left = bool(nodes.missing_go_to_left[node])
        low, high, with_missing = path.get(position, (-np.inf, np.inf, has_missing[position]))
        below = (low, min(high, bound), with_missing and missing_left)
        above = (max(low, bound), high, with_missing and not missing_left)
        open_ += [(left, {**path, position: below}), (right, {**path, position: above})]
    return found


def _condition(column: EncodedColumn, low: float, high: float, with_missing: bool) -> str:
    """Words for a column's codes or numbers above `low`, up to `high`."""
    if column.vocabulary is not None:
        names = {UNSEEN: "(new)", MISSING: "(missing)"}
        names |= {FIRST_KNOWN + i: name for i, name in enumerate(column.vocabulary)}
        chosen = [name for code, name in names.items() if low < code <= high]
        more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
        return f"{column.name} in {' | '.join(chosen[:3])}{more}"
    if low == np.inf:
        return f"{column.name} missing"
    ends = [f"> {low:.4g}"] if np.isfinite(low) else []
    ends += [f"≤ {high:.4g}"] if np.isfinite(high) else []
    words = " and ".join(ends) or "known"
    return f"{column.name} {words}" + (" or missing" if with_missing and ends else "")


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
