"""Comparisons of models once more: one pair of rows, one draw, one hypothesis at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

Array = NDArray[np.float64]


def won(event: float, non_event: float) -> float:
    """DeLong's kernel: one if the event scores higher, half if they tie."""
    return 1.0 if event > non_event else 0.5 if event == non_event else 0.0


def placements(labels: Array, scores: Array) -> tuple[list[float], list[float]]:
    """Share of non-events below each event, and of events above each non-event."""
    events = [s for y, s in zip(labels, scores, strict=True) if y == 1]
    non_events = [s for y, s in zip(labels, scores, strict=True) if y == 0]
    return (
        [sum(won(e, n) for n in non_events) / len(non_events) for e in events],
        [sum(won(e, n) for e in events) / len(events) for n in non_events],
    )


def auc_difference(
    labels: Array, first: Array, second: Array, level: float
) -> tuple[float, float, float, float]:
    """Estimate, low, high and p-value: DeLong's covariance matrices and the contrast (1, -1)."""
    of_events, of_non_events, areas, of_seeds = [], [], [], 0.0
    for fits in (first, second):
        components = [placements(labels, scores) for scores in fits]
        of_events.append(np.mean([above for above, _ in components], axis=0))
        of_non_events.append(np.mean([below for _, below in components], axis=0))
        area_of_fit = [float(np.mean(above)) for above, _ in components]
        areas.append(float(np.mean(area_of_fit)))
        if len(fits) > 1:
            of_seeds += float(np.var(area_of_fit, ddof=1)) / len(fits)
    contrast = np.array([1.0, -1.0])
    covariance = np.cov(of_events) / len(of_events[0])
    covariance = covariance + np.cov(of_non_events) / len(of_non_events[0])
    estimate = areas[0] - areas[1]
    error = math.sqrt(max(contrast @ covariance @ contrast, 0.0) + of_seeds)
    reach = NormalDist(0, 1).inv_cdf(0.5 + level / 2) * error
    tail = 1 - NormalDist(0, 1).cdf(abs(estimate) / error) if error > 1e-9 else 0.5
    return estimate, estimate - reach, estimate + reach, 2 * tail


def _recall_at(fpr: float) -> Callable[..., float]:
    def recall(labels: Array, scores: Array, sample_weight: Array) -> float:
        curve = sk.roc_curve(labels, scores, sample_weight=sample_weight, drop_intermediate=False)
        return float(np.interp(fpr, curve[0], curve[1]))

    return recall


WEIGHTED: dict[str, Callable[..., float]] = {
    "average_precision": sk.average_precision_score,
    "brier": sk.brier_score_loss,
    "log_loss": sk.log_loss,
    "recall_at_1pct_fpr": _recall_at(0.01),
    "recall_at_5pct_fpr": _recall_at(0.05),
}


def bootstrap_gaps(
    metric: str, labels: Array, first: Array, second: Array, draws: int, seed: int
) -> list[float]:
    """Difference of the mean metric in each draw, from the same random numbers."""
    rows, fits = np.random.default_rng(seed).spawn(2)
    fits_drawn = [
        fits.multinomial(len(model), [1 / len(model)] * len(model), size=draws)
        for model in (first, second)
    ]
    gaps = []
    for draw in range(draws):
        weights = np.zeros(len(labels))
        for outcome in (1, 0):
            stratum = np.flatnonzero(labels == outcome)
            for position in rows.integers(len(stratum), size=len(stratum)):
                weights[stratum[position]] += 1
        kept = weights > 0
        means = []
        for model, times in zip((first, second), fits_drawn, strict=True):
            chosen = np.repeat(np.arange(len(model)), times[draw])
            means.append(
                np.mean(
                    [
                        WEIGHTED[metric](
                            labels[kept], model[fit][kept], sample_weight=weights[kept]
                        )
                        for fit in chosen
                    ]
                )
            )
        gaps.append(float(means[0] - means[1]))
    return gaps


def holm(p_values: Sequence[float]) -> list[float]:
    """The i-th smallest of m is the largest of (m - j + 1) p_j over j up to i."""
    tested = sorted(p for p in p_values if not math.isnan(p))
    m = len(tested)
    adjusted = []
    for p in p_values:
        if math.isnan(p):
            adjusted.append(p)
            continue
        rank = tested.index(p) + 1
        steps = [(m - j + 1) * tested[j - 1] for j in range(1, rank + 1)]
        adjusted.append(min(1.0, max(steps)))
    return adjusted
