"""Figures of one ranking: sorted once, with intervals that need no sorting again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.validation.observed import Array, seen_rows
from riskmtl.validation.ranges import require_count, require_level, require_share


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """
    Observed rows, sorted by their scores; make one with :meth:`of`.

    Parameters
    ----------
    cutoffs : ndarray of shape (distinct scores,)
        From high to low.
    caught, false_alarms : ndarray of shape (distinct scores + 1,)
        Events and non-events at or above each cut-off, nought in front.
    labels : ndarray of shape (rows,)
        0 or 1, of the observed rows as they were given.
    place : ndarray of shape (rows,)
        Position of each row's score among the cut-offs.
    clusters : ndarray of shape (rows,), optional
        A number per customer, from nought.

    Examples
    --------
    >>> ranking = Ranking.of(np.array([0, 1, 0, 1, np.nan]), np.array([0.1, 0.9, 0.5, 0.4, 0.3]))
    >>> ranking.auc, ranking.ks, ranking.capture(0.25)
    (0.75, 0.5, 0.5)
    """

    cutoffs: Array
    caught: Array
    false_alarms: Array
    labels: Array
    place: NDArray[np.int64]
    clusters: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        labels: NDArray[Any],
        scores: NDArray[Any],
        clusters: NDArray[np.int64] | None = None,
    ) -> Ranking:
        """
        Sort the observed rows.

        Parameters
        ----------
        labels : ndarray of shape (rows,)
            0, 1, or NaN for not observed.
        scores : ndarray of shape (rows,)
        clusters : ndarray of int, shape (rows,), optional

        Returns
        -------
        Ranking

        Raises
        ------
        ValueError
            If fewer than two events or two non-events are observed, or a score is NaN.
        """
        y, s, kept = _both_classes(labels, scores, clusters)
        order = np.argsort(-s, kind="stable")
        new = np.concatenate([[True], np.diff(s[order]) != 0])
        place = np.empty(len(s), dtype=np.int64)
        place[order] = np.cumsum(new) - 1
        size = int(place.max()) + 1
        caught = np.concatenate([[0.0], np.bincount(place, y, minlength=size).cumsum()])
        alarms = np.concatenate([[0.0], np.bincount(place, 1 - y, minlength=size).cumsum()])
        who = None if clusters is None else np.unique(clusters[kept], return_inverse=True)[1]
        return cls(s[order][new], caught, alarms, y, place, who)

    @property
    def events(self) -> int:
        """Observed events."""
        return int(self.caught[-1])

    @property
    def non_events(self) -> int:
        """Observed non-events."""
        return int(self.false_alarms[-1])

    @property
    def auc(self) -> float:
        """Area under the ROC curve."""
        pairs = self.caught[-1] * self.false_alarms[-1]
        return float(np.trapezoid(self.caught, self.false_alarms) / pairs)

    @property
    def gini(self) -> float:
        """Twice the area less one, also called the accuracy ratio."""
        return 2 * self.auc - 1

    @property
    def ks(self) -> float:
        """Largest gap between the shares of events and of non-events flagged."""
        return _ks(self.caught, self.false_alarms)

    @property
    def average_precision(self) -> float:
        """Precision where each event is caught, in the mean."""
        return _average_precision(self.caught, self.false_alarms)

    def recall_at_fpr(self, fpr: float) -> float:
        """
        Share of events caught at a share of non-events flagged.

        Raises
        ------
        ValueError
            If `fpr` is not from 0 to 1.
        """
        require_share("fpr", fpr)
        return _recall(self.caught, self.false_alarms, fpr)

    def capture(self, budget: float) -> float:
        """
        Share of events among a share of the rows with the highest scores.

        Raises
        ------
        ValueError
            If `budget` is not from 0 to 1.
        """
        require_share("budget", budget)
        return _capture(self.caught, self.false_alarms, budget)

    def precision(self, budget: float) -> float:
        """
        Share of events among a share of the rows with the highest scores, of these rows.

        Raises
        ------
        ValueError
            If `budget` is not above 0 and at most 1.
        """
        require_share("budget", budget, above_nought=True)
        rows = budget * (self.events + self.non_events)
        return self.capture(budget) * self.events / rows


def auc_interval(
    labels: NDArray[Any],
    scores: NDArray[Any],
    *,
    clusters: NDArray[np.int64] | None = None,
    level: float = 0.95,
) -> Interval:
    """
    Area under the ROC curve with its confidence interval.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    scores : ndarray of shape (rows,)
    clusters : ndarray of int, shape (rows,), optional
        A number per customer; rows of one customer may depend on each other.
    level : float
        Confidence, between 0 and 1.

    Returns
    -------
    Interval
        Normal on the logit scale, so that it stays between 0 and 1; from 0 to 1 where all rows of
        a class are one customer's. Where every event is ranked
        above every non-event the ends are those of the rule of three for the smaller class.

    Raises
    ------
    ValueError
        As :meth:`Ranking.of`, or if `level` is not between 0 and 1.

    References
    ----------
    E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (1988), Comparing the areas under two or
    more correlated receiver operating characteristic curves, Biometrics 44, 837–845.

    N. A. Obuchowski (1997), Nonparametric analysis of clustered ROC curve data, Biometrics 53,
    567–578.

    Examples
    --------
    >>> auc_interval(np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.9, 0.5, 0.4, 0.6])).estimate
    0.833...
    """
    from scipy.stats import rankdata

    require_level(level)
    y, s, kept = _both_classes(labels, scores, clusters)
    is_event = y == 1
    events, non_events = int(is_event.sum()), int((~is_event).sum())
    ranks = rankdata(s)
    placements = np.empty(len(y))  # of each row among the rows of the other class
    placements[is_event] = (ranks[is_event] - rankdata(s[is_event])) / non_events
    placements[~is_event] = 1 - (ranks[~is_event] - rankdata(s[~is_event])) / events
    area = float(placements[is_event].mean())
    if area in (0.0, 1.0):
        # None of so many went wrong: the rule of three.
        reach = min(1.0, -math.log((1 - level) / 2) / min(events, non_events))
        return Interval(area, max(0.0, area - reach), min(1.0, area + reach))
    apart = (placements - area) / np.where(is_event, events, non_events)
    variance = _variance(apart, is_event, None if clusters is None else clusters[kept])
    if math.isnan(variance):
        return Interval(area, 0.0, 1.0)
    error = math.sqrt(variance) / (area * (1 - area))
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    middle = math.log(area / (1 - area))
    return Interval(area, *(1 / (1 + math.exp(-end)) for end in (middle - reach, middle + reach)))


def bootstrap_intervals(
    ranking: Ranking,
    metrics: Sequence[str],
    *,
    draws: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """
    Intervals of figures whose variance has no simple formula.

    Events and non-events are drawn apart with replacement, or customers as a whole where the
    ranking knows them. What is drawn is how often each stretch of the sorted scores comes up, so
    nothing is sorted again: stretches end at the scores of events, where the curve bends.

    Parameters
    ----------
    ranking : Ranking
    metrics : sequence of str
        Of ``ks``, ``average_precision``, ``recall_at_1pct_fpr``, ``recall_at_5pct_fpr``,
        ``capture_at_1pct`` and ``capture_at_5pct``.
    draws : int
    level : float
    seed : int

    Returns
    -------
    dict of str to Interval
        Percentiles of the draws (Efron and Tibshirani 1993, chapter 13). A draw of customers among
        whom a class is missing says nothing: it counts as 0 for the low end, as 1 for the high.

    Raises
    ------
    ValueError
        If a metric is unknown, `draws` is below 1, or `level` is not between 0 and 1.

    Examples
    --------
    >>> y = np.arange(200) % 5 == 0
    >>> ranking = Ranking.of(y, y + np.arange(200) % 7)
    >>> found = bootstrap_intervals(ranking, ["ks"], draws=99)["ks"]
    >>> found.low < found.estimate < found.high
    True
    """
    require_count("draws", draws)
    require_level(level)
    for metric in metrics:
        if metric not in FIGURES:
            raise ValueError(unknown_name("metric", metric, FIGURES))
    stretch, count = _stretches(ranking)
    generator = np.random.default_rng(seed)
    found = np.empty((draws, len(metrics)))
    drawn = _rows_drawn if ranking.clusters is None else _customers_drawn
    for draw, (caught, alarms) in enumerate(drawn(ranking, stretch, count, draws, generator)):
        has_both = caught[-1] > 0 and alarms[-1] > 0
        found[draw] = [FIGURES[m](caught, alarms) if has_both else math.nan for m in metrics]
    low = np.quantile(np.nan_to_num(found, nan=0.0), (1 - level) / 2, axis=0)
    high = np.quantile(np.nan_to_num(found, nan=1.0), (1 + level) / 2, axis=0)
    figures = [FIGURES[metric](ranking.caught, ranking.false_alarms) for metric in metrics]
    return {
        metric: Interval(*(float(end) for end in ends))
        for metric, *ends in zip(metrics, figures, low, high, strict=True)
    }


def gains(ranking: Ranking, points: int = 100) -> pl.DataFrame:
    """
    Points of the curves of a ranking, at equal steps of the share of rows flagged.

    Parameters
    ----------
    ranking : Ranking
    points : int

    Returns
    -------
    polars.DataFrame
        At most ``points + 1`` lines: ``share`` of rows, ``recall``, ``fpr``, ``precision``,
        ``lift`` and ``cutoff``; null where nothing is flagged.

    Raises
    ------
    ValueError
        If `points` is below 1.
    """
    require_count("points", points)
    flagged = ranking.caught + ranking.false_alarms
    wanted = np.linspace(0, flagged[-1], points + 1)
    at = np.unique(np.searchsorted(flagged, wanted, side="left"))
    caught, alarms, rows = ranking.caught[at], ranking.false_alarms[at], flagged[at]
    precision = np.divide(caught, rows, out=np.full(len(at), np.nan), where=rows > 0)
    cutoff = np.concatenate([[np.nan], ranking.cutoffs])[at]
    return pl.DataFrame(
        {
            "share": rows / flagged[-1],
            "recall": caught / ranking.events,
            "fpr": alarms / ranking.non_events,
            "precision": precision,
            "lift": precision * flagged[-1] / ranking.events,
            "cutoff": cutoff,
        }
    ).with_columns(pl.col("precision", "lift", "cutoff").fill_nan(None))


def gains_by_decile(ranking: Ranking) -> pl.DataFrame:
    """
    Rows and events of each tenth of the rows, the highest scores first.

    Parameters
    ----------
    ranking : Ranking

    Returns
    -------
    polars.DataFrame
        Ten lines: ``tenth``, ``rows``, ``events``, ``rate``, ``captured`` (so far) and ``lift``.
        Rows of one score that fall into two tenths are shared out between them.
    """
    flagged = ranking.caught + ranking.false_alarms
    edges = np.linspace(0, flagged[-1], 11)
    events = np.diff(np.interp(edges, flagged, ranking.caught))
    rows = np.diff(edges)
    return pl.DataFrame(
        {
            "tenth": np.arange(1, 11),
            "rows": rows,
            "events": events,
            "rate": events / rows,
            "captured": events.cumsum() / ranking.events,
            "lift": events / rows * flagged[-1] / ranking.events,
        }
    )


# --- Rows and curves ------------------------------------------------------------------------------


def _both_classes(
    labels: NDArray[Any], scores: NDArray[Any], clusters: NDArray[np.int64] | None
) -> tuple[Array, Array, NDArray[np.bool_]]:
    y, s, kept = seen_rows(labels, scores)
    if clusters is not None and len(clusters) != len(kept):
        raise ValueError(f"{len(clusters)} clusters for {len(kept)} rows: give a customer per row")
    events, non_events = int((y == 1).sum()), int((y == 0).sum())
    if min(events, non_events) < 2:
        raise ValueError(
            f"labels show {events} events and {non_events} non-events: both classes must be "
            "observed, with at least two rows of each"
        )
    return y, s, kept


def _ks(caught: Array, alarms: Array) -> float:
    return float((caught / caught[-1] - alarms / alarms[-1]).max())


def _average_precision(caught: Array, alarms: Array) -> float:
    gained, flagged = np.diff(caught), (caught + alarms)[1:]
    up = gained > 0
    return float(gained[up] @ (caught[1:][up] / flagged[up]) / caught[-1])


def _recall(caught: Array, alarms: Array, fpr: float) -> float:
    return float(np.interp(fpr, alarms / alarms[-1], caught / caught[-1]))


def _capture(caught: Array, alarms: Array, budget: float) -> float:
    flagged = caught + alarms
    return float(np.interp(budget * flagged[-1], flagged, caught / caught[-1]))


# Of cumulative events and non-events, nought in front.
FIGURES: Mapping[str, Callable[[Array, Array], float]] = {
    "ks": _ks,
    "average_precision": _average_precision,
    "recall_at_1pct_fpr": lambda caught, alarms: _recall(caught, alarms, 0.01),
    "recall_at_5pct_fpr": lambda caught, alarms: _recall(caught, alarms, 0.05),
    "capture_at_1pct": lambda caught, alarms: _capture(caught, alarms, 0.01),
    "capture_at_5pct": lambda caught, alarms: _capture(caught, alarms, 0.05),
}


def _variance(
    apart: Array, is_event: NDArray[np.bool_], clusters: NDArray[np.int64] | None
) -> float:
    """
    Of the area: each class by itself, and what one customer has in both (Obuchowski 1997).

    NaN where all rows of a class are one customer's.
    """
    if clusters is None:
        parts = [apart[rows] for rows in (is_event, ~is_event)]
        return sum(float((x**2).sum()) * len(x) / (len(x) - 1) for x in parts)
    who = np.unique(clusters, return_inverse=True)[1]
    summed = [np.bincount(who, np.where(rows, apart, 0)) for rows in (is_event, ~is_event)]
    counts = [len(np.unique(who[rows])) for rows in (is_event, ~is_event)]
    if min(counts) < 2:
        return math.nan
    alone = sum(float(x @ x) * n / (n - 1) for x, n in zip(summed, counts, strict=True))
    everyone = len(summed[0])
    return alone + 2 * float(summed[0] @ summed[1]) * everyone / (everyone - 1)


# --- Bootstrap ------------------------------------------------------------------------------------


def _stretches(ranking: Ranking) -> tuple[NDArray[np.int64], int]:
    """Stretch of each cut-off, and their number: scores of events alone, and what lies between."""
    has_events = np.diff(ranking.caught) > 0
    begins = np.concatenate([[True], has_events[1:] | has_events[:-1]])
    return np.cumsum(begins) - 1, int(begins.sum())


def _rows_drawn(
    ranking: Ranking,
    stretch: NDArray[np.int64],
    count: int,
    draws: int,
    generator: np.random.Generator,
) -> Any:
    curves = ranking.caught, ranking.false_alarms
    sizes = [np.bincount(stretch, np.diff(curve), minlength=count) for curve in curves]
    for _ in range(draws):
        yield tuple(
            _summed(generator.multinomial(int(size.sum()), size / size.sum())) for size in sizes
        )


def _customers_drawn(
    ranking: Ranking,
    stretch: NDArray[np.int64],
    count: int,
    draws: int,
    generator: np.random.Generator,
) -> Any:
    assert ranking.clusters is not None
    of_row, customers = stretch[ranking.place], int(ranking.clusters.max()) + 1
    for _ in range(draws):
        times = np.bincount(generator.integers(customers, size=customers), minlength=customers)
        weights = times[ranking.clusters].astype(np.float64)
        events = np.bincount(of_row, weights * ranking.labels, minlength=count)
        yield _summed(events), _summed(np.bincount(of_row, weights, minlength=count) - events)


def _summed(size: NDArray[Any]) -> Array:
    return np.concatenate([[0.0], size.cumsum()])
