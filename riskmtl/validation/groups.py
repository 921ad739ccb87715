"""How a head treats groups of rows: rates, ratios and gaps, each with its interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.metrics import roc_auc
from riskmtl.validation.observed import Array, log_odds, seen_rows
from riskmtl.validation.reliability import observed_over_expected

_Z = 1.959963984540054


def group_rates(
    labels: NDArray[Any], probabilities: NDArray[Any], groups: pl.Series, *, cutoff: float
) -> pl.DataFrame:
    """
    Rates of each group at a cut-off; flagged is the unfavourable decision.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    probabilities : ndarray of shape (rows,)
    groups : polars.Series of str, of length rows
        Null is a group of its own.
    cutoff : float

    Returns
    -------
    polars.DataFrame
        A line per group, the largest first: ``group``, ``rows``, ``observed``, ``events``,
        ``flagged``, ``mean_probability``, ``events_over_expected``, ``auc``, ``recall`` (equal
        opportunity) and ``false_alarms`` (predictive equality), with 95 % intervals: Wilson for
        shares, exact Poisson for events over expected ones.

    Raises
    ------
    ValueError
        If the lengths differ, or a label or a probability is not one.

    Examples
    --------
    >>> groups = pl.Series(["a", "a", "b", "b"])
    >>> rates = group_rates(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.6, 0.7]), groups,
    ...                     cutoff=0.5)
    >>> rates["flagged"].to_list()
    [0.5, 1.0]
    """
    y, p, names = _read(labels, probabilities, groups)
    lines = []
    for name in _by_size(names):
        rows = (names == name).to_numpy()
        of_group, scores = y[rows], p[rows]
        seen = ~np.isnan(of_group)
        flagged = scores >= cutoff
        events, non_events = of_group == 1, of_group == 0
        lines.append(
            {
                "group": name,
                "rows": int(rows.sum()),
                "observed": int(seen.sum()),
                "events": int(events.sum()),
                **_named("flagged", wilson(int(flagged.sum()), len(flagged))),
                "mean_probability": float(scores.mean()),
                **_named(
                    "events_over_expected",
                    observed_over_expected(int(events.sum()), float(scores[seen].sum())),
                ),
                "auc": roc_auc(of_group, scores),
                **_named("recall", wilson(int((flagged & events).sum()), int(events.sum()))),
                **_named(
                    "false_alarms", wilson(int((flagged & non_events).sum()), int(non_events.sum()))
                ),
            }
        )
    return pl.DataFrame(lines)


def group_gaps(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    groups: pl.Series,
    *,
    cutoff: float,
    reference: str | None = None,
) -> pl.DataFrame:
    """
    Each group against a reference group.

    Parameters
    ----------
    labels, probabilities, groups, cutoff
        As in :func:`group_rates`.
    reference : str, optional
        Default: the largest group.

    Returns
    -------
    polars.DataFrame
        A line per other group, with 95 % intervals: ``impact_ratio``, the share not flagged over
        that of the reference, and ``false_alarm_ratio`` (predictive equality), by the delta method
        on the log scale (Katz et al. 1978, Biometrics 34); ``smd``, the standardised mean
        difference of the log-odds; ``recall_gap`` (equal opportunity), by Newcombe (1998, method
        10, Statistics in Medicine 17).

    Raises
    ------
    ValueError
        If the reference is unknown.
    """
    y, p, names = _read(labels, probabilities, groups)
    known = _by_size(names)
    base = known[0] if reference is None else reference
    if base not in known:
        raise ValueError(unknown_name("group", base, known))
    lines = []
    for name in known:
        if name == base:
            continue
        ours, theirs = (names == name).to_numpy(), (names == base).to_numpy()
        lines.append({"group": name, "reference": base, **_gaps(y, p, ours, theirs, cutoff)})
    numbers = ("impact_ratio", "smd", "recall_gap", "false_alarm_ratio")
    shape: dict[str, Any] = {"group": pl.String, "reference": pl.String}
    shape |= {f"{n}{end}": pl.Float64 for n in numbers for end in ("", "_low", "_high")}
    return pl.DataFrame(lines, schema=shape)


def wilson(successes: int, trials: int) -> tuple[float, float, float]:
    """
    Share with its 95 % interval (Wilson 1927); NaN without trials.

    Examples
    --------
    >>> tuple(round(x, 3) for x in wilson(5, 10))
    (0.5, 0.237, 0.763)
    """
    if not trials:
        return math.nan, math.nan, math.nan
    share, z2 = successes / trials, _Z**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    reach = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return share, max(0.0, middle - reach), min(1.0, middle + reach)


def ratio_of_shares(a: int, n: int, b: int, m: int) -> tuple[float, float, float]:
    """
    Ratio of ``a / n`` over ``b / m`` with its 95 % interval (Katz et al. 1978).

    Where one share has no successes the ratio is nought, or infinite, and its other end that of
    the share's Wilson interval. NaN where neither has any, or a share has no trials.
    """
    if not (n and m and (a or b)):
        return math.nan, math.nan, math.nan
    if not a:
        return 0.0, 0.0, wilson(a, n)[2] / (b / m)
    if not b:
        return math.inf, (a / n) / wilson(b, m)[2], math.inf
    ratio = (a / n) / (b / m)
    reach = _Z * math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)
    return ratio, ratio * math.exp(-reach), ratio * math.exp(reach)


def _gaps(
    y: Array, p: Array, ours: NDArray[np.bool_], theirs: NDArray[np.bool_], cutoff: float
) -> dict[str, float]:
    flagged, events, non_events = p >= cutoff, y == 1, y == 0
    passed = [int((~flagged & rows).sum()) for rows in (ours, theirs)]
    sizes = [int(rows.sum()) for rows in (ours, theirs)]
    alarms = [int((flagged & rows & non_events).sum()) for rows in (ours, theirs)]
    clear = [int((rows & non_events).sum()) for rows in (ours, theirs)]
    recalls = [
        wilson(int((flagged & rows & events).sum()), int((rows & events).sum()))
        for rows in (ours, theirs)
    ]
    return {
        **_named("impact_ratio", ratio_of_shares(passed[0], sizes[0], passed[1], sizes[1])),
        **_named("smd", _mean_gap(log_odds(p[ours]), log_odds(p[theirs]))),
        **_named("recall_gap", _newcombe(*recalls)),
        **_named("false_alarm_ratio", ratio_of_shares(alarms[0], clear[0], alarms[1], clear[1])),
    }


def _newcombe(
    ours: tuple[float, float, float], theirs: tuple[float, float, float]
) -> tuple[float, float, float]:
    gap = ours[0] - theirs[0]
    low = math.hypot(ours[0] - ours[1], theirs[2] - theirs[0])
    high = math.hypot(ours[2] - ours[0], theirs[0] - theirs[1])
    return gap, gap - low, gap + high


def _mean_gap(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """Standardised mean difference with the interval of Hedges and Olkin (1985)."""
    n, m = len(ours), len(theirs)
    if min(n, m) < 2:
        return math.nan, math.nan, math.nan
    pooled = math.sqrt(((n - 1) * ours.var(ddof=1) + (m - 1) * theirs.var(ddof=1)) / (n + m - 2))
    if pooled == 0:
        return math.nan, math.nan, math.nan
    gap = float(ours.mean() - theirs.mean()) / pooled
    reach = _Z * math.sqrt(1 / n + 1 / m + gap**2 / (2 * (n + m)))
    return gap, gap - reach, gap + reach


def _named(name: str, ends: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _read(
    labels: NDArray[Any], probabilities: NDArray[Any], groups: pl.Series
) -> tuple[Array, Array, pl.Series]:
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if not len(y) == len(p) == len(groups):
        raise ValueError(
            f"{len(y)} labels, {len(p)} probabilities and {len(groups)} groups: give one per row"
        )
    seen_rows(y, p)
    # Rows without an outcome are flagged or not like others.
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must be numbers from 0 to 1")
    # A column may be called "count", which the counting of values keeps for itself.
    return y, p, groups.cast(pl.String).fill_null("(missing)").alias("group")


def _by_size(names: pl.Series) -> list[str]:
    counts = names.value_counts().sort("count", names.name, descending=[True, False])
    return [str(name) for name in counts[names.name]]
