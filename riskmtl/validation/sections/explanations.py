"""Why does it say what it says: columns over many rows, and whether they stay the same."""

from __future__ import annotations

from collections.abc import Sequence

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
# Of the explained rows, for each other network.
_COMPARED = 100
_NETWORKS = {"network", "blend"}


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
        *_other_networks(evidence, found),
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
            (head, name, rank, common / top)
            for name, (first, second) in pairs.items()
            for head, rank, common, top in _agreement(found.heads, first, second)
        ],
        schema=["head", "between", "rank correlation", "top ten in common"],
        orient="row",
    )


def _other_networks(evidence: Evidence, found: Explanation) -> list[Table]:
    """The columns of the model beside those of challengers given that are networks too."""
    columns = [column.name for column in evidence.model.encoder.columns_]
    some = slice(None, None, -(-len(found.values) // _COMPARED))
    lines = []
    for name, other in evidence.given.items():
        background = thinned(other, start=0)
        same_columns = [column.name for column in other.encoder.columns_] == columns
        if (
            {evidence.model.kind, other.kind} <= _NETWORKS
            and same_columns
            and background is not None
        ):
            theirs = explain_rows(other, found.inputs[some], background, heads=evidence.tasks,
                                  seed=evidence.settings.seed)  # fmt: skip
            agreement = _agreement(found.heads, found.values[some], theirs.values)
            lines += [(head, name, *figures) for head, *figures in agreement]
    if not lines:
        return []
    shape = ["head", "network", "rank correlation", "top columns in common", "of"]
    return [
        Table(
            "other_networks",
            "Do other networks have the same columns",
            pl.DataFrame(lines, schema=shape, orient="row"),
            f"Over {len(theirs.values)} of the rows. The same network trained with another seed "
            "shows how far chance in training decides which columns come first.",
        )
    ]


def _agreement(
    heads: Sequence[str], first: NDArray[np.float64], second: NDArray[np.float64]
) -> list[tuple[str, float, int, int]]:
    """Of each head: rank correlation of the columns' sizes, and how many of the first both have."""
    from scipy.stats import spearmanr

    lines = []
    for position, head in enumerate(heads):
        a, b = (np.abs(values[:, :, position]).mean(0) for values in (first, second))
        top = min(_TOP, len(a))
        common = np.intersect1d(np.argsort(-a)[:top], np.argsort(-b)[:top])
        lines.append((head, float(spearmanr(a, b).statistic), len(common), top))
    return lines


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
