"""Why does it say what it says: columns over many rows, and whether they stay the same."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.explanation import Explanation
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.explained import Explained, thinned
from riskmtl.validation.figure import bars
from riskmtl.validation.result import Result, Table

_TOP = 10


@section("explanations", "Explanations", "Why does it say what it says?")
def explanations(evidence: Evidence) -> Result:
    """Mean size of the columns' values per head, their stability, and the reasons given."""
    explained, other = evidence.explained, thinned(evidence.model, start=1)
    if explained is None or other is None:
        return Result(notes=["The model keeps no rows to compare with."])
    found = explained.explanation
    count = len(found.values)
    few = slice(0, max(2, count // 10))
    again = explain_rows(evidence.model, found.inputs[few], other, heads=evidence.tasks,
                         seed=evidence.settings.seed + 1)  # fmt: skip
    tables = [
        Table(
            "columns",
            "Mean size of what each column adds to the log-odds",
            _sizes(found),
            f"Over {count:,} rows and {len(explained.background)} background rows; error: standard "
            "error over rows and sampling.",
        ),
        Table("explanation_stability", "Do the columns stay the same", _stable(found, again, few)),
        Table("reasons", "How often a column is among the four reasons of a flagged row",
              _reasons(explained)),
    ]  # fmt: skip
    return Result(
        tables=tables,
        figures=[_picture(task, tables[0].frame) for task in evidence.tasks],
        notes=[
            "Values credit what the model uses, not what causes the outcome; their largest gap to "
            f"the answers is {float(found.residual.max()):.1e}."
        ],
    )


def _sizes(found: Explanation) -> pl.DataFrame:
    sizes = np.abs(found.values)  # (rows, features, heads)
    errors = np.sqrt(sizes.var(0, ddof=1) / len(sizes))
    return pl.DataFrame(
        {
            "head": np.repeat(found.heads, len(found.features)),
            "column": list(found.features) * len(found.heads),
            "mean size": sizes.mean(0).T.ravel(),
            "error": errors.T.ravel(),
            "mean error of a row": found.errors.mean(0).T.ravel(),
        }
    ).sort("head", "mean size", descending=[False, True])


def _stable(found: Explanation, again: Explanation, few: slice) -> pl.DataFrame:
    """Rank correlation and common top ten of the columns: other background, halves of the rows."""
    half = len(found.values) // 2
    pairs = {
        "other background and seed": (found.values[few], again.values),
        "first and second half of the rows": (found.values[:half], found.values[half:]),
    }
    return pl.DataFrame(
        [
            (head, name, *_agreement(first[:, :, i], second[:, :, i]))
            for name, (first, second) in pairs.items()
            for i, head in enumerate(found.heads)
        ],
        schema=["head", "between", "rank correlation", "top ten in common"],
        orient="row",
    )


def _agreement(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    from scipy.stats import spearmanr

    a, b = np.abs(first).mean(0), np.abs(second).mean(0)
    top = min(_TOP, len(a))
    common = np.intersect1d(np.argsort(-a)[:top], np.argsort(-b)[:top])
    return float(spearmanr(a, b).statistic), len(common) / top


def _reasons(explained: Explained) -> pl.DataFrame:
    """Reasons of the tenth of the explained rows with the highest scores of each head."""
    tables = []
    for position, given in enumerate(explained.reasons.values()):
        outputs = explained.explanation.outputs[:, position]
        top = np.flatnonzero(outputs >= np.quantile(outputs, 0.9)).tolist()
        tables.append(
            given.filter(pl.col("row").is_in(top))
            .group_by("head", "feature")
            .agg(
                (pl.len() / len(top)).alias("share of rows"),
                pl.col("separable").mean().alias("apart from the next"),
            )
            .sort("share of rows", "feature", descending=[True, False])
            .head(_TOP)
        )
    return pl.concat(tables)


def _picture(task: str, sizes: pl.DataFrame) -> str:
    of_head = sizes.filter(pl.col("head") == task).head(_TOP)
    values, reach = of_head["mean size"].to_numpy(), 1.96 * of_head["error"].to_numpy()
    return bars(
        of_head["column"].to_list(),
        values,
        low=np.maximum(values - reach, 0),
        high=values + reach,
        key=f"columns-{task}",
        title=f"{task}: columns that move it most",
        alt=f"Largest mean contributions to {task}: {', '.join(of_head['column'][:3])}.",
        x_label="mean size, log-odds",
    )
