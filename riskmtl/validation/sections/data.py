"""Is the data sound: rows refused, columns that know too much, labels that are not there yet."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import DATE_TYPES, moment
from riskmtl.validation.curves import auc_interval
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.figure import Line, lines
from riskmtl.validation.result import Finding, Result, Table

_AGE = "age in months"
_LEVEL = 0.95


@section("data", "Data", "Was it built on sound data?")
def data(evidence: Evidence) -> Result:
    """Schema check, leakage probes, and how much of each outcome is observed, by month and age."""
    refused = evidence.checked.quarantine.height
    share = refused / evidence.raw.height
    findings = [evidence.criteria["refused_rows"].judge("", "share of rows refused", share)]
    findings += _same_rows(evidence)
    findings += _dates_ahead(evidence)
    probes = pl.concat([_probed(evidence, task) for task in evidence.tasks])
    findings += [_strongest(evidence, task, probes) for task in evidence.tasks]
    tables = [
        Table("observed", "Rows and labels", _observed(evidence)),
        Table("refused", "Rows refused, by rule", _refusals(evidence)),
        Table(
            "probes",
            "Columns that rank best alone",
            probes.group_by("head", maintain_order=True).head(5),
            "AUC of a single column, or of its being missing; a category counts with its rate of "
            "events in the other half of the rows.",
        ),
    ]
    figures = []
    monthly = _by_month(evidence)
    if monthly is not None:
        tables.append(Table("maturity", "Share of rows with a known outcome, by month", monthly))
        figures.append(_maturity(evidence, monthly))
        tables += _lateness(evidence)
    notes = ["A probe finds a column that ranks too well alone, not a leak spread over several."]
    if evidence.trained is None:
        notes.append("No training rows were given: the same row in both was not looked for.")
    return Result(findings, tables, figures, notes)


def _observed(evidence: Evidence) -> pl.DataFrame:
    labels = evidence.rows.labels
    return pl.DataFrame(
        {
            "head": evidence.tasks,
            "rows": [len(labels)] * len(evidence.tasks),
            "observed": (~np.isnan(labels)).sum(0),
            "events": np.nansum(labels, axis=0).astype(np.int64),
            "rate": np.nansum(labels, axis=0) / np.maximum((~np.isnan(labels)).sum(0), 1),
        }
    )


def _refusals(evidence: Evidence) -> pl.DataFrame:
    refusals = evidence.checked.refusals()
    return pl.DataFrame(
        {"rule": list(refusals), "rows": list(refusals.values())},
        schema={"rule": pl.String, "rows": pl.Int64},
    )


def _same_rows(evidence: Evidence) -> list[Finding]:
    """Rows of the same keys and time among those it was trained on."""
    names = [column.name for column in evidence.schema.with_role("key", "time")]
    keys = [column.name for column in evidence.schema.with_role("key")]
    if evidence.trained is None or not keys:
        return []
    both = evidence.rows.frame.select(names).join(
        evidence.trained.frame.select(names).unique(), on=names, how="semi"
    )
    share = both.height / evidence.rows.frame.height
    return [evidence.criteria["rows_in_both"].judge("", "rows also in training", share)]


def _dates_ahead(evidence: Evidence) -> list[Finding]:
    """Date inputs later than the row's time."""
    time = evidence.schema.time
    dated = [c for c in evidence.schema.input_columns if c.type in DATE_TYPES]
    if time is None or not dated:
        return []
    late = evidence.rows.frame.select(
        (moment(column) > moment(time)).fill_null(False).mean().alias(column.name)
        for column in dated
    ).row(0, named=True)
    name, share = max(late.items(), key=lambda item: item[1])
    return [evidence.criteria["dates_ahead"].judge("", f"dates after the row: {name}", share)]


def _probed(evidence: Evidence, task: str) -> pl.DataFrame:
    """AUC of each column alone, the best first."""
    shape = {"head": pl.String, "column": pl.String, "by": pl.String, "auc": pl.Float64,
             "low": pl.Float64, "high": pl.Float64}  # fmt: skip
    if not evidence.has_enough(task):
        return pl.DataFrame(schema=shape)
    labels, _ = evidence.of(task)
    seen = ~np.isnan(labels)
    y, x = labels[seen], evidence.rows.encoded[seen]
    inputs = evidence.schema.inputs(evidence.rows.frame).filter(pl.Series(seen))
    rows_found: list[tuple[str, str, str, float, float, float]] = []
    for position, column in enumerate(evidence.model.encoder.columns_):
        values = x[:, position].astype(np.float64)
        if column.is_categorical:
            codes = _codes(inputs[column.name])
            missing, ranked = codes == 0, _rates(codes, y)
        else:
            missing = np.isnan(values)
            ranked = np.where(missing, np.nanmedian(values) if not missing.all() else 0, values)
        for by, score in (("value", ranked), ("missing", missing.astype(np.float64))):
            if np.ptp(score) > 0:
                found = auc_interval(y, score)
                if found.estimate < 0.5:
                    found = auc_interval(y, -score)
                row = (found.estimate, found.low, found.high)
                rows_found.append((task, column.name, by, *row))
    return pl.DataFrame(rows_found, schema=shape, orient="row").sort("auc", descending=True)


def _codes(values: pl.Series) -> NDArray[np.int64]:
    """A number per category, those that training never saw among them; 0 is missing."""
    ranks = values.cast(pl.String).rank("dense").cast(pl.Int64).fill_null(0)
    return np.asarray(ranks.to_numpy())


def _rates(codes: NDArray[np.int64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rate of events of each row's category in the other half of the rows."""
    halves, found = np.arange(len(y)) % 2, np.empty(len(y))
    size, mean = int(codes.max()) + 1, y.mean()
    for half in (0, 1):
        other = halves != half
        events = np.bincount(codes[other], y[other], minlength=size)
        rows = np.bincount(codes[other], minlength=size)
        found[halves == half] = ((events + 10 * mean) / (rows + 10))[codes[halves == half]]
    return found


def _strongest(evidence: Evidence, task: str, probes: pl.DataFrame) -> Finding:
    of_head = probes.filter(pl.col("head") == task)
    if of_head.is_empty():
        return evidence.too_few(task, "AUC of a single column")
    best = of_head.row(0, named=True)
    return evidence.criteria["column_auc"].judge(
        task, f"AUC of {best['column']} alone", best["auc"], best["low"], best["high"]
    )


def _by_month(evidence: Evidence) -> pl.DataFrame | None:
    months = evidence.rows.months
    return None if months is None else _known(evidence, months)


def _known(evidence: Evidence, groups: pl.Series) -> pl.DataFrame:
    """Rows, shares of known outcomes and rates of events by group, in the order of the groups."""
    labels = pl.DataFrame(evidence.rows.labels, schema=evidence.tasks).fill_nan(None)
    return (
        labels.with_columns(groups)
        .group_by(groups.name)
        .agg(
            pl.len().alias("rows"),
            *(pl.col(t).is_not_null().mean().alias(f"{t} observed") for t in evidence.tasks),
            *(pl.col(t).mean().alias(f"{t} rate") for t in evidence.tasks),
        )
        .sort(groups.name)
    )


def _maturity(evidence: Evidence, monthly: pl.DataFrame) -> str:
    months = monthly["month"].to_list()
    series = [
        Line(task, np.arange(len(months)), monthly[f"{task} observed"].to_numpy(), dots=True)
        for task in evidence.tasks
    ]
    last = ", ".join(f"{s.name} {s.y[-1]:.0%}" for s in series)
    return lines(
        series,
        key="maturity",
        title="Outcomes known, by month",
        alt=f"Share of rows with a known outcome by month; in the last month: {last}.",
        x_label="month",
        y_label="share observed",
        y_range=(0, 1),
        percent_y=True,
        dates=months,
    )


def _lateness(evidence: Evidence) -> list[Table]:
    """How late outcomes arrive, of the heads whose share of known ones depends on the age."""
    assert evidence.schema.time is not None
    row = moment(evidence.schema.time)
    frame, end = evidence.rows.frame, evidence.schema.as_of
    last = pl.lit(end) if end is not None else row.max()
    months = 12 * (last.dt.year() - row.dt.year()) + last.dt.month() - row.dt.month()
    age = months - (row.dt.day() > last.dt.day()).cast(pl.Int32)
    by_age = _known(evidence, frame.select(age.alias(_AGE)).to_series()).filter(pl.col(_AGE) >= 0)
    late = [task for task in evidence.tasks if by_age[f"{task} observed"].n_unique() > 1]
    if not late:
        return []
    note = (
        f"Age: whole months from the row to {'the last row' if end is None else end.date()}. "
        f"{100 * _LEVEL:.0f} % of the mean share over the oldest third of ages is reached "
        f"{'; '.join(f'{_level(by_age, task)} for {task}' for task in late)}."
    )
    shown = by_age.select(_AGE, "rows", *(f"{task} observed" for task in late))
    title = "Share of rows with a known outcome, by age of the row"
    return [Table("lateness", title, shown, note)]


def _level(by_age: pl.DataFrame, task: str) -> str:
    """From which age on the share of known outcomes is level."""
    ages, share = by_age[_AGE].to_list(), by_age[f"{task} observed"].to_numpy()
    oldest = slice(-max(1, len(ages) // 3), None)
    usual = np.average(share[oldest], weights=by_age["rows"].to_numpy()[oldest])
    first = int(np.argmax(share >= _LEVEL * usual))
    if first == 0:
        return "at every age"
    # Where it is still rising among the oldest, how far it will rise is not known.
    risen = ages[first] <= ages[oldest][0]
    return f"from age {ages[first]} on" if risen else "among the oldest rows only"
