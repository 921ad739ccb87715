"""Whether probabilities are right: decompositions, curves, tests and rating grades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.grades import MASTER_SCALE, grades_of
from riskmtl.model import sigmoid
from riskmtl.validation.observed import Array, log_odds, seen_rows
from riskmtl.validation.ranges import require_count, require_level

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class BrierParts:
    """Brier score = miscalibration - discrimination + uncertainty."""

    score: float
    miscalibration: float
    discrimination: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class CalibrationLine:
    """Intercept at slope 1, slope, and observed over expected events, with 95 % intervals."""

    intercept: float
    intercept_low: float
    intercept_high: float
    slope: float
    slope_low: float
    slope_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class CalibrationIndex:
    """Mean, median, 90th percentile and maximum gap between probabilities and a smooth curve."""

    ici: float
    e50: float
    e90: float
    emax: float


@dataclass(frozen=True, slots=True)
class Statistic:
    """Statistic and p-value."""

    statistic: float
    p_value: float


def brier_parts(labels: NDArray[Any], probabilities: NDArray[Any]) -> BrierParts:
    """
    Split the Brier score by isotonic recalibration.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    probabilities : ndarray of shape (rows,)

    Returns
    -------
    BrierParts

    References
    ----------
    T. Dimitriadis, T. Gneiting and A. I. Jordan (2021), Stable reliability diagrams for
    probabilistic classifiers, Proceedings of the National Academy of Sciences 118.

    Examples
    --------
    >>> parts = brier_parts(np.array([0, 1, 1, 0]), np.array([0.2, 0.8, 0.6, 0.4]))
    >>> round(parts.miscalibration - parts.discrimination + parts.uncertainty, 3)
    0.1
    """
    from sklearn.isotonic import isotonic_regression

    y, p = _observed(labels, probabilities)
    place = np.unique(p, return_inverse=True)[1]
    rows = np.bincount(place).astype(np.float64)
    rates = np.bincount(place, y) / rows
    recalibrated = isotonic_regression(rates, sample_weight=rows, y_min=0, y_max=1)[place]
    score = float(((p - y) ** 2).mean())
    at_best = float(((recalibrated - y) ** 2).mean())
    uncertainty = float(y.mean() * (1 - y.mean()))
    return BrierParts(score, score - at_best, uncertainty - at_best, uncertainty)


def reliability_curve(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    *,
    bins: int = 20,
    draws: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> pl.DataFrame:
    """
    Observed rates by bins of the probabilities, with consistency bands.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.
    bins : int
        Of about equal numbers of rows; rows of one probability stay together.
    draws : int
    level : float
        Share of rates that lie within the band of their bin if the probabilities are right.
    seed : int

    Returns
    -------
    polars.DataFrame
        A line per bin: ``predicted``, ``observed``, ``rows``, ``events``, ``low``, ``high``.

    Raises
    ------
    ValueError
        If `bins` or `draws` is below 1, or `level` is not between 0 and 1.

    Notes
    -----
    A band holds the middle of the rates that come of drawing each bin's events under the
    hypothesis (Bröcker and Smith 2007): binomial in as many parts as a bin has hundredths of its
    rows, each with the mean probability of that part, so that the spread within a bin counts.
    """
    require_count("bins", bins)
    require_count("draws", draws)
    require_level(level)
    y, p = _observed(labels, probabilities)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, p, side="left")
    fine = np.unique(np.quantile(p, np.linspace(0, 1, 100 * bins + 1)[1:-1]))
    part = np.unique(place * (len(fine) + 1) + np.searchsorted(fine, p), return_inverse=True)[1]
    rows = np.bincount(part)
    means = np.clip(np.bincount(part, p) / rows, 0, 1)
    owner = (np.bincount(part, place) / rows).round().astype(np.int64)
    generator = np.random.default_rng(seed)
    size = int(place.max()) + 1
    whole = np.bincount(place, minlength=size)
    drawn = np.stack(
        [np.bincount(owner, generator.binomial(rows, means), minlength=size) for _ in range(draws)]
    )
    used = whole > 0
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = np.quantile(drawn[:, used] / whole[used], tails, axis=0)
    events = np.bincount(place, y, minlength=size)[used]
    return pl.DataFrame(
        {
            "predicted": np.bincount(place, p, minlength=size)[used] / whole[used],
            "observed": events / whole[used],
            "rows": whole[used],
            "events": events.astype(np.int64),
            "low": low,
            "high": high,
        }
    )


def observed_over_expected(events: int, expected: float) -> tuple[float, float, float]:
    """
    Ratio of events to expected ones with its exact 95 % Poisson interval (Garwood 1936).

    NaN where none are expected.

    Examples
    --------
    >>> tuple(round(end, 3) for end in observed_over_expected(10, 5.0))
    (2.0, 0.959, 3.678)
    """
    from scipy.stats import chi2

    if not expected > 0:
        return math.nan, math.nan, math.nan
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = chi2.ppf(0.975, 2 * events + 2) / 2
    return events / expected, float(low / expected), float(high / expected)


def calibration_line(labels: NDArray[Any], probabilities: NDArray[Any]) -> CalibrationLine:
    """
    Intercept and slope of a logistic recalibration, and observed over expected events.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.

    Returns
    -------
    CalibrationLine
        Normal (Wald) intervals of intercept and slope, exact Poisson ones (Garwood 1936) of the
        ratio. The slope is NaN where all probabilities are the same, intercept and slope where
        one class only is observed, the ratio where no events are expected.

    Examples
    --------
    >>> y = np.array([0, 0, 0, 1] * 50)
    >>> line = calibration_line(y, np.full(200, 0.25))
    >>> line.ratio, abs(round(line.intercept, 6))
    (1.0, 0.0)
    """
    y, p = _observed(labels, probabilities)
    margin = log_odds(p)
    intercept = intercept_error = slope = slope_error = np.array([np.nan])
    has_both = 0 < y.sum() < len(y)
    if has_both:
        intercept, intercept_error = _fit(np.ones((len(y), 1)), y, offset=margin)
    if has_both and np.ptp(margin) > 0:
        both, errors = _fit(np.column_stack([np.ones(len(y)), margin]), y)
        slope, slope_error = both[1:], errors[1:]
    return CalibrationLine(
        *_ends(intercept[0], intercept_error[0]),
        *_ends(slope[0], slope_error[0]),
        *observed_over_expected(int(y.sum()), float(p.sum())),
    )


def calibration_index(
    labels: NDArray[Any], probabilities: NDArray[Any], *, knots: int = 4
) -> CalibrationIndex:
    """
    Gaps between probabilities and a smooth calibration curve.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.
    knots : int
        Of the natural cubic spline of the log-odds that the curve's logistic regression has; at
        quantiles from 5 to 95 %.

    Returns
    -------
    CalibrationIndex

    Raises
    ------
    ValueError
        If `knots` is below 1.

    References
    ----------
    P. C. Austin and E. W. Steyerberg (2019), The integrated calibration index (ICI) and related
    metrics, Statistics in Medicine 38, 4051–4065.
    """
    require_count("knots", knots)
    y, p = _observed(labels, probabilities)
    margin = log_odds(p)
    places = np.unique(np.quantile(margin, np.linspace(0.05, 0.95, knots)))
    design = np.column_stack([np.ones(len(y)), natural_spline(margin, places)])
    kept = np.concatenate([[True], np.ptp(design[:, 1:], axis=0) > 0])
    beta, _ = _fit(design[:, kept], y)
    gaps = np.abs(sigmoid(design[:, kept] @ beta) - p)
    e50, e90 = np.quantile(gaps, [0.5, 0.9])
    return CalibrationIndex(float(gaps.mean()), float(e50), float(e90), float(gaps.max()))


def natural_spline(x: Array, knots: Array) -> Array:
    """
    Columns of a natural cubic spline (Hastie, Tibshirani and Friedman 2009, equation 5.4).

    Parameters
    ----------
    x : ndarray of shape (rows,)
    knots : ndarray of shape (knots,)
        Ascending. Fewer than three give the straight line.

    Returns
    -------
    ndarray of shape (rows, knots - 1) or (rows, 1)
    """
    if len(knots) < 3:
        return x[:, None]

    def cubes(k: float) -> Array:
        above = np.maximum(x - k, 0) ** 3 - np.maximum(x - knots[-1], 0) ** 3
        return np.asarray(above / (knots[-1] - k))

    last = cubes(knots[-2])
    return np.column_stack([x, *(cubes(k) - last for k in knots[:-2])])


def spiegelhalter(labels: NDArray[Any], probabilities: NDArray[Any]) -> Statistic:
    """
    Test whether the Brier score is what right probabilities would have.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.

    Returns
    -------
    Statistic
        z, and its two-sided normal p-value (Spiegelhalter 1986, Statistics in Medicine 5);
        infinite where all probabilities are certain and one is wrong.
    """
    from scipy.stats import norm

    y, p = _observed(labels, probabilities)
    variance = float(((1 - 2 * p) ** 2 * p * (1 - p)).sum())
    apart = float(((y - p) * (1 - 2 * p)).sum())
    if variance == 0:
        return Statistic(math.inf, 0.0) if apart else Statistic(0.0, 1.0)
    z = apart / math.sqrt(variance)
    return Statistic(z, float(2 * norm.sf(abs(z))))


def hosmer_lemeshow(
    labels: NDArray[Any], probabilities: NDArray[Any], *, groups: int = 10
) -> Statistic:
    """
    Compare observed and expected events in groups of equal size by probability.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.
    groups : int
        Fewer where many rows have the same probability.

    Returns
    -------
    Statistic
        Chi-squared with as many degrees of freedom as groups: the probabilities were not fitted
        on these rows (Hosmer and Lemeshow 2000, section 5.2.2). A group that is certain has no
        part if it is right, and makes the statistic infinite if it is not.

    Raises
    ------
    ValueError
        If `groups` is below 1.
    """
    from scipy.stats import chi2

    require_count("groups", groups)
    y, p = _observed(labels, probabilities)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, groups + 1)[1:-1]))
    place = np.unique(np.searchsorted(edges, p, side="left"), return_inverse=True)[1]
    rows, events, expected = (np.bincount(place, w) for w in (np.ones(len(y)), y, p))
    variance = expected * (1 - expected / rows)
    sure = variance <= 0
    if (events != expected)[sure].any():
        return Statistic(float("inf"), 0.0)
    statistic = float(((events - expected)[~sure] ** 2 / variance[~sure]).sum())
    free = int((~sure).sum())
    return Statistic(statistic, float(chi2.sf(statistic, free)) if free else 1.0)


def jeffreys(events: Any, rows: Any, probability: Any) -> Any:
    """
    p-value of the hypothesis that a rate is not above a probability.

    Parameters
    ----------
    events, rows : int or ndarray
    probability : float or ndarray

    Returns
    -------
    float or ndarray
        Of the beta distribution with parameters ``events + 1/2`` and ``rows - events + 1/2``,
        the share not above `probability`.

    References
    ----------
    European Central Bank (2019), Instructions for reporting the validation results of internal
    models, section 2.5.3.

    Examples
    --------
    >>> float(jeffreys(5, 100, 0.05).round(3))
    0.472
    """
    from scipy.stats import beta

    events = np.asarray(events)
    return beta.cdf(probability, events + 0.5, np.asarray(rows) - events + 0.5)


def grade_table(
    labels: NDArray[Any], probabilities: NDArray[Any], bounds: Sequence[float] = MASTER_SCALE
) -> pl.DataFrame:
    """
    Observed rows by rating grade.

    Parameters
    ----------
    labels, probabilities
        As in :func:`brier_parts`.
    bounds : sequence of float
        Ascending upper bounds of the grades' probabilities, the last one 1.

    Returns
    -------
    polars.DataFrame
        A line per grade: ``grade``, ``lower``, ``upper``, ``rows``, ``share``, ``mean_pd``,
        ``expected``, ``events``, ``rate`` with its 95 % Jeffreys interval ``rate_low`` and
        ``rate_high``, and ``p_value`` of :func:`jeffreys` at the mean probability. An empty grade
        has no figures.

    Raises
    ------
    ValueError
        If the bounds do not ascend to 1.
    """
    from scipy.stats import beta

    y, p = _observed(labels, probabilities)
    place = grades_of(p, bounds) - 1
    upper = np.asarray(bounds, dtype=np.float64)
    rows, events, expected = (
        np.bincount(place, w, minlength=len(upper)) for w in (np.ones(len(y)), y, p)
    )
    none = rows == 0
    some = np.where(none, np.nan, rows)
    mean = expected / some
    low, high = (beta.ppf(q, events + 0.5, rows - events + 0.5) + 0 * some for q in (0.025, 0.975))
    return pl.DataFrame(
        {
            "grade": np.arange(1, len(upper) + 1),
            "lower": np.concatenate([[0.0], upper[:-1]]),
            "upper": upper,
            "rows": rows.astype(np.int64),
            "share": rows / len(y),
            "mean_pd": mean,
            "expected": expected,
            "events": events.astype(np.int64),
            "rate": events / some,
            "rate_low": low,
            "rate_high": high,
            "p_value": jeffreys(events, rows, np.where(none, 0.5, mean)) + 0 * some,
        }
    ).with_columns(pl.selectors.float().fill_nan(None))


def herfindahl(shares: NDArray[Any]) -> float:
    """
    Concentration of shares that add up to 1: the sum of their squares.

    Examples
    --------
    >>> herfindahl(np.array([0.5, 0.5]))
    0.5
    """
    return float((np.asarray(shares, dtype=np.float64) ** 2).sum())


# --- Rows and fits --------------------------------------------------------------------------------


def _observed(labels: NDArray[Any], probabilities: NDArray[Any]) -> tuple[Array, Array]:
    y, p, _ = seen_rows(labels, probabilities, probabilities=True)
    if not len(y):
        raise ValueError("no label is observed")
    return y, p


def _fit(design: Array, y: Array, *, offset: Array | None = None) -> tuple[Array, Array]:
    """Logistic regression by Newton's steps: coefficients and their standard errors."""
    # Columns of a spline are large and nearly alike: steps are taken along orthonormal ones.
    basis, triangle = np.linalg.qr(design)
    moved = np.zeros(len(y)) if offset is None else offset
    place, loss = np.zeros(basis.shape[1]), _deviance(y, moved)
    information = np.eye(len(place))
    for _ in range(100):
        p = sigmoid(basis @ place + moved)
        information = (basis * (p * (1 - p))[:, None]).T @ basis
        step = np.linalg.lstsq(information, basis.T @ (y - p), rcond=None)[0]
        size = 1.0
        while size > 1e-6 and _deviance(y, basis @ (place + size * step) + moved) > loss:
            size /= 2
        place = place + size * step
        loss = _deviance(y, basis @ place + moved)
        if np.abs(step).max() < 1e-9 * max(1.0, float(np.abs(place).max())):
            break
    back = np.linalg.inv(triangle)
    covariance = back @ np.linalg.pinv(information) @ back.T
    return back @ place, np.sqrt(np.maximum(np.diag(covariance), 0))


def _deviance(y: Array, margin: Array) -> float:
    return float((np.logaddexp(0, margin) - y * margin).sum())


def _ends(estimate: float, error: float) -> tuple[float, float, float]:
    reach = _NORMAL_95 * error
    return float(estimate), float(estimate - reach), float(estimate + reach)
