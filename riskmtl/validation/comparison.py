"""
Whether one model is better than another on the same rows.

A model may have been fitted several times, each time with another seed. What is compared is then
its mean metric over the fits, and the interval holds the chance of the rows and that of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.validation.curves import FIGURES
from riskmtl.validation.ranges import require_count, require_level

Array = NDArray[np.float64]

# Metrics whose intervals are drawn.
DRAWN = (
    "average_precision",
    "brier",
    "log_loss",
    "recall_at_1pct_fpr",
    "recall_at_5pct_fpr",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """
    A metric of two models, and how sure the difference between them is.

    Parameters
    ----------
    metric : str
    first, second : float
        Mean metric of each model over its fits.
    estimate : float
        ``first - second``; below nought is better for a metric of which less is better.
    low, high : float
        Ends of the confidence interval of the difference.
    p_value : float
        Two-sided, of the hypothesis that the models do not differ.
    """

    metric: str
    first: float
    second: float
    estimate: float
    low: float
    high: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, as for a JSON file or a row of a table."""
        return asdict(self)


_COLUMNS = {
    field.name: pl.String if field.name == "metric" else pl.Float64 for field in fields(Difference)
}


def auc_difference(
    labels: NDArray[Any], first: NDArray[Any], second: NDArray[Any], *, level: float = 0.95
) -> Difference:
    """
    Compare the areas under the ROC curves of two models on the same rows.

    The variance is that of DeLong et al. (1988) for the mean placements over a model's fits, by
    midranks as in Sun and Xu (2014). A model with several fits adds the variance of their areas
    over the number of fits. The interval and the p-value are normal. What chance does to a single
    fit on these rows alone is in both parts, so with several fits the interval errs on the wide
    side.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    first, second : ndarray of shape (rows,) or (fits, rows)
        Scores that rank, of one fit or of several of the same model. The models may have
        different numbers of fits.
    level : float
        Confidence of the interval, between 0 and 1.

    Returns
    -------
    Difference
        Of the metric ``roc_auc``.

    Raises
    ------
    ValueError
        If fewer than two events or two non-events are observed, or if an argument is amiss.

    References
    ----------
    E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (1988), Comparing the areas under two or
    more correlated receiver operating characteristic curves, Biometrics 44, 837–845.

    X. Sun and W. Xu (2014), Fast implementation of DeLong's algorithm for comparing the areas
    under correlated receiver operating characteristic curves, IEEE Signal Processing Letters 21,
    1389–1393.

    Examples
    --------
    >>> labels = np.array([1.0, 1.0, 0.0, 0.0, np.nan])
    >>> first = np.array([0.9, 0.4, 0.5, 0.1, 0.3])
    >>> second = np.array([0.6, 0.7, 0.1, 0.2, 0.8])
    >>> difference = auc_difference(labels, first, second)
    >>> difference.estimate, round(difference.low, 2), round(difference.high, 2)
    (-0.25, -0.94, 0.44)
    """
    require_level(level)
    ours, theirs = _by_class(labels, first, "first"), _by_class(labels, second, "second")
    (events, non_events), (other_events, other_non_events) = _wins(*ours), _wins(*theirs)
    pairs = events.shape[1] * non_events.shape[1]
    areas, other_areas = events.sum(axis=1) / pairs, other_events.sum(axis=1) / pairs

    # Half-integers are added up before anything is divided, so that equal models differ by 0.
    event_gap = (events.mean(axis=0) - other_events.mean(axis=0)) / non_events.shape[1]
    non_event_gap = (non_events.mean(axis=0) - other_non_events.mean(axis=0)) / events.shape[1]
    variance = event_gap.var(ddof=1) / len(event_gap)
    variance += non_event_gap.var(ddof=1) / len(non_event_gap)
    variance += (_variance_of_fits(events) + _variance_of_fits(other_events)) / pairs**2

    estimate, error = float(event_gap.mean()), math.sqrt(variance)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Difference(
        metric="roc_auc",
        first=float(areas.mean()),
        second=float(other_areas.mean()),
        estimate=estimate,
        low=estimate - reach,
        high=estimate + reach,
        p_value=_normal_p_value(estimate, error),
    )


def bootstrap_differences(
    labels: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    metrics: Sequence[str] = DRAWN,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """
    Compare two models on the same rows by metrics whose variance has no simple formula.

    Each draw takes as many events and as many non-events as there are, with replacement and the
    same for both models, and for each model as many of its fits as there are, with replacement.
    Intervals are percentiles of the draws (Efron and Tibshirani 1993, chapter 13). With several
    fits they hold (fits - 1) / fits of the variance of the seeds, and more than once what chance
    does to a single fit on these rows alone.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    first, second : ndarray of shape (rows,) or (fits, rows)
        Probabilities of an event, of one fit or of several of the same model. The models may have
        different numbers of fits.
    metrics : sequence of str
        Some of :data:`DRAWN`; each is that of :mod:`riskmtl.metrics`.
    draws : int
        Number of draws, at least one.
    level : float
        Confidence of the intervals, between 0 and 1.
    seed : int
        Seed of the draws.

    Returns
    -------
    list of Difference
        One for each metric, in their order. A p-value is twice the smaller share of draws on
        either side of nought, one more draw being counted on that side, so that it is never
        below ``2 / (draws + 1)``.

    Raises
    ------
    ValueError
        If a metric is unknown, if fewer than two events or two non-events are observed, or if an
        argument is amiss.

    References
    ----------
    B. Efron and R. J. Tibshirani (1993), An introduction to the bootstrap, Chapman and Hall.

    Examples
    --------
    >>> labels = np.array([1.0, 1.0, 0.0, 0.0, np.nan])
    >>> first = np.array([0.9, 0.4, 0.5, 0.1, 0.3])
    >>> second = np.array([0.6, 0.7, 0.1, 0.2, 0.8])
    >>> [brier] = bootstrap_differences(labels, first, second, metrics=["brier"], draws=99)
    >>> round(brier.estimate, 4), brier.low <= brier.estimate <= brier.high
    (0.0825, True)
    """
    require_level(level)
    require_count("draws", draws)
    for metric in metrics:
        if metric not in (*_CURVE_METRICS, *_ROW_LOSSES):
            valid = sorted((*_CURVE_METRICS, *_ROW_LOSSES))
            raise ValueError(unknown_name("metric", metric, valid))
    ours = _Fits(*_by_class(labels, first, "first", probabilities=True), metrics)
    theirs = _Fits(*_by_class(labels, second, "second", probabilities=True), metrics)
    events, non_events = ours.events.shape[1], ours.non_events.shape[1]

    # The rows have a stream of their own: which ones are drawn is the same however many the fits.
    rows, fits = np.random.default_rng(seed).spawn(2)
    our_shares, their_shares = ours.drawn_shares(draws, fits), theirs.drawn_shares(draws, fits)
    gaps = np.empty((draws, len(metrics)))
    for draw in range(draws):
        weights = _times_drawn(events, rows), _times_drawn(non_events, rows)
        gaps[draw] = ours.values(*weights) @ our_shares[draw]
        gaps[draw] -= theirs.values(*weights) @ their_shares[draw]

    once = np.ones(events), np.ones(non_events)
    means = ours.values(*once).mean(axis=1), theirs.values(*once).mean(axis=1)
    tails = (1 - level) / 2, (1 + level) / 2
    return [
        Difference(
            metric=metric,
            first=float(our_mean),
            second=float(their_mean),
            estimate=float(our_mean - their_mean),
            low=float(np.quantile(gap, tails[0])),
            high=float(np.quantile(gap, tails[1])),
            p_value=_drawn_p_value(gap),
        )
        for metric, our_mean, their_mean, gap in zip(metrics, *means, gaps.T, strict=True)
    ]


def compare_heads(
    heads: Sequence[str],
    labels: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    metrics: Sequence[str],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """
    Compare two models head by head on the same rows.

    Parameters
    ----------
    heads : sequence of str
        Names of the heads.
    labels : ndarray of shape (rows, heads)
        0, 1, or NaN for not observed.
    first, second : ndarray of shape (rows, heads) or (fits, rows, heads)
        Probabilities of an event, of one fit or of several of the same model.
    metrics : sequence of str
        ``roc_auc``, compared by :func:`auc_difference`, or one of :func:`bootstrap_differences`.
    draws, seed : int
        Of the bootstrap.
    level : float
        Confidence of each interval.

    Returns
    -------
    polars.DataFrame
        A line per metric and head: ``head``, the fields of :class:`Difference`, and ``adjusted
        p``, the p-value adjusted for the heads (:func:`holm`).

    Examples
    --------
    >>> labels = np.array([[1.0], [1.0], [0.0], [0.0]])
    >>> first, second = labels * 0.5 + 0.25, np.full((4, 1), 0.5)
    >>> compare_heads(["fraud"], labels, first, second, metrics=["roc_auc"])["estimate"].item()
    0.5
    """
    drawn = [metric for metric in metrics if metric != "roc_auc"]
    found: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    for position, head in enumerate(heads):
        pair = labels[:, position], first[..., position], second[..., position]
        differences = []
        if "roc_auc" in found:
            differences.append(auc_difference(*pair, level=level))
        if drawn:
            differences += bootstrap_differences(
                *pair, metrics=drawn, draws=draws, level=level, seed=seed
            )
        for difference in differences:
            found[difference.metric].append({"head": head, **difference.to_dict()})
    shape = {"head": pl.String, **_COLUMNS}
    tables = [pl.DataFrame(lines, schema=shape) for lines in found.values()]
    return pl.concat(
        table.with_columns(pl.Series("adjusted p", holm(table["p_value"].to_list()), pl.Float64))
        for table in tables
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Adjust p-values for their number by the step-down method of Holm (1979).

    Parameters
    ----------
    p_values : sequence of float
        Of shape (hypotheses,); NaN where there was no test.

    Returns
    -------
    list of float
        In the same order, each at least what it was and at most 1. NaN stays NaN and does not
        count as a hypothesis.

    Raises
    ------
    ValueError
        If a p-value is not between 0 and 1.

    References
    ----------
    S. Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6, 65–70.

    Examples
    --------
    >>> holm([0.25, 0.0625, float("nan"), 0.75])
    [0.5, 0.1875, nan, 0.75]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p_values must lie between 0 and 1: give NaN where there was no test")
    tested = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    steps = p[tested] * np.arange(len(tested), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[tested] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


# --- Rows and scores ------------------------------------------------------------------------------


def _by_class(
    labels: NDArray[Any], scores: NDArray[Any], name: str, *, probabilities: bool = False
) -> tuple[Array, Array]:
    """Scores of the observed events (fits, events) and non-events (fits, non-events)."""
    y = np.asarray(labels, dtype=np.float64)
    s = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if y.ndim != 1 or s.ndim != 2 or s.shape[1] != len(y) or not len(s):
        raise ValueError(
            f"{name} has shape {np.shape(scores)} and labels {y.shape}: "
            "give (rows,) or (fits, rows) for labels of shape (rows,)"
        )
    if not (np.isnan(y) | (y == 0) | (y == 1)).all():
        raise ValueError("labels must be 0, 1, or NaN for not observed")
    events, non_events = s[:, y == 1], s[:, y == 0]
    if min(events.shape[1], non_events.shape[1]) < 2:
        raise ValueError(
            f"labels show {events.shape[1]} events and {non_events.shape[1]} non-events: "
            "both classes must be observed, with at least two rows of each"
        )
    if np.isnan(events).any() or np.isnan(non_events).any():
        raise ValueError(f"{name} is NaN on a row whose label is observed: score every such row")
    if probabilities and (
        min(events.min(), non_events.min()) < 0 or max(events.max(), non_events.max()) > 1
    ):
        raise ValueError(f"{name} must hold probabilities: a score is not between 0 and 1")
    return events, non_events


# --- Areas under the curve ------------------------------------------------------------------------


def _wins(events: Array, non_events: Array) -> tuple[Array, Array]:
    """For each fit, pairs in the right order that each event, and each non-event, has a part in."""
    from scipy.stats import rankdata

    count = events.shape[1]
    ranks = rankdata(np.concatenate([events, non_events], axis=1), axis=1)
    lower = ranks[:, :count] - rankdata(events, axis=1)
    higher = count - (ranks[:, count:] - rankdata(non_events, axis=1))
    return lower, higher


def _variance_of_fits(wins: Array) -> float:
    """Variance of the mean over the fits of the number of pairs in the right order."""
    fits = len(wins)
    return float(wins.sum(axis=1).var(ddof=1)) / fits if fits > 1 else 0.0


def _normal_p_value(estimate: float, error: float) -> float:
    if error == 0:
        return 1.0 if estimate == 0 else 0.0
    return math.erfc(abs(estimate) / error / math.sqrt(2))


# --- Bootstrap ------------------------------------------------------------------------------------


def _times_drawn(count: int, rng: np.random.Generator) -> Array:
    """How often each of ``count`` rows comes up in as many draws."""
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)


def _drawn_p_value(gaps: Array) -> float:
    side = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(gaps) + 1))


class _Fits:
    """
    The fits of one model, prepared so that metrics of weighted rows need no sorting.

    The points of a curve that matter lie at the scores of events: non-events between two of them
    move it sideways only, wherever they are. So each row gets a bin, counted from the highest
    score: the odd gaps between neighbouring scores of events, and the even scores themselves. Bin
    0 is empty: the curve's origin.
    """

    def __init__(self, events: Array, non_events: Array, metrics: Sequence[str]) -> None:
        self.events, self.non_events, self.metrics = events, non_events, metrics
        pairs = zip(events, non_events, strict=True)
        curved = any(metric in _CURVE_METRICS for metric in metrics)
        self.bins = [_binned(*pair) for pair in pairs] if curved else []
        self.losses = {
            metric: (_ROW_LOSSES[metric](1, events), _ROW_LOSSES[metric](0, non_events))
            for metric in metrics
            if metric in _ROW_LOSSES
        }

    def drawn_shares(self, draws: int, rng: np.random.Generator) -> Array:
        """Share of each fit in each draw, of shape (draws, fits)."""
        fits = len(self.events)
        return rng.multinomial(fits, np.full(fits, 1 / fits), size=draws) / fits

    def values(self, event_weights: Array, non_event_weights: Array) -> Array:
        """Each metric of each fit, of shape (metrics, fits)."""
        curves = [
            (
                np.bincount(event_bins, event_weights, minlength=size).cumsum(),
                np.bincount(non_event_bins, non_event_weights, minlength=size).cumsum(),
            )
            for event_bins, non_event_bins, size in self.bins
        ]
        total = event_weights.sum() + non_event_weights.sum()
        values = np.empty((len(self.metrics), len(self.events)))
        for position, metric in enumerate(self.metrics):
            if metric in _CURVE_METRICS:
                values[position] = [_CURVE_METRICS[metric](*curve) for curve in curves]
            else:
                of_events, of_non_events = self.losses[metric]
                loss = of_events @ event_weights + of_non_events @ non_event_weights
                values[position] = loss / total
        return values


def _binned(events: Array, non_events: Array) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Bin of each event, bin of each non-event, and number of bins of one fit."""
    steps = np.unique(events)
    last = 2 * len(steps) + 1
    event_bins, non_event_bins = (
        last - np.searchsorted(steps, scores, "left") - np.searchsorted(steps, scores, "right")
        for scores in (events, non_events)
    )
    return event_bins, non_event_bins, last + 1


def _squared_error(outcome: int, probabilities: Array) -> Array:
    return (probabilities - outcome) ** 2


def _negative_log_likelihood(outcome: int, probabilities: Array) -> Array:
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(probabilities, tiny, 1 - tiny)
    return -np.log(clipped) if outcome else -np.log1p(-clipped)


_CURVE_METRICS = {
    name: FIGURES[name]
    for name in ("average_precision", "recall_at_1pct_fpr", "recall_at_5pct_fpr")
}
_ROW_LOSSES: Mapping[str, Callable[[int, Array], Array]] = {
    "brier": _squared_error,
    "log_loss": _negative_log_likelihood,
}
