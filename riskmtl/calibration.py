"""
Calibration per head: an affine map of the log-odds, fitted on validation rows.

The map is increasing, so it changes no ranking. Two numbers per head need few events; a head with
fewer than :data:`FEWEST_EVENTS` events or non-events is left as it is, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_EVENTS = 50


@dataclass(frozen=True, slots=True)
class Calibrator:
    r"""
    The map :math:`z \mapsto a z + b` of a head's log-odds (Platt 1999).

    Parameters
    ----------
    slope, intercept : float
    events : int
        Events among the rows it was fitted on.
    note : str
        How it was fitted, or why it was not.

    Examples
    --------
    >>> Calibrator(slope=1.0, intercept=-0.5).apply(np.array([0.0]))
    array([-0.5])
    """

    slope: float = 1.0
    intercept: float = 0.0
    events: int = 0
    note: str = "not fitted"

    @property
    def is_fitted(self) -> bool:
        """Whether the map was learned."""
        return self.note.startswith("fitted")

    def apply(self, margins: NDArray[Any]) -> NDArray[Any]:
        """Calibrated log-odds of raw ones."""
        return self.slope * margins + self.intercept

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """Build a calibrator from what :meth:`to_dict` gave."""
        return cls(**values)


def fit_calibrator(
    labels: NDArray[Any], margins: NDArray[Any], weights: NDArray[Any] | None = None
) -> Calibrator:
    """
    Fit the map of one head by maximum likelihood.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0, 1, or NaN for not observed.
    margins : ndarray of shape (rows,)
        Raw log-odds.
    weights : ndarray of shape (rows,), optional

    Returns
    -------
    Calibrator
        The identity, with the reason in ``note``, where events are too few or the fitted map
        would turn the ranking round.
    """
    seen = ~np.isnan(labels)
    if weights is not None:
        seen &= weights > 0
    y = labels[seen]
    events = int(y.sum())
    fewest = min(events, len(y) - events)
    if fewest < FEWEST_EVENTS:
        return Calibrator(
            events=events, note=f"not fitted: {fewest} of at least {FEWEST_EVENTS} events"
        )
    chosen = np.ones(len(y)) if weights is None else weights[seen].astype(np.float64)
    z = margins[seen].astype(np.float64)
    slope, intercept = _likeliest(z, _smoothed(y, chosen), chosen)
    if slope <= 0:
        return Calibrator(events=events, note="not fitted: the head does not rank validation rows")
    return Calibrator(slope=slope, intercept=intercept, events=events, note="fitted")


def fit_calibrator_to(
    before: Calibrator, probabilities: NDArray[Any], margins: NDArray[Any]
) -> Calibrator:
    """
    Fit the map of a head whose network has changed to what it answered before.

    Parameters
    ----------
    before : Calibrator
    probabilities : ndarray of shape (rows,)
        What the head answered.
    margins : ndarray of shape (rows,)
        Its raw log-odds now.

    Returns
    -------
    Calibrator
        That from before, where the fitted map would turn the ranking round.

    Examples
    --------
    >>> z = np.array([-2.0, 0.0, 1.0])
    >>> found = fit_calibrator_to(Calibrator(), 1 / (1 + np.exp(-z)), 2 * z + 1)
    >>> round(found.slope, 3), round(found.intercept, 3)
    (0.5, -0.5)
    """
    slope, intercept = _likeliest(
        margins.astype(np.float64), probabilities.astype(np.float64), np.ones(len(margins))
    )
    if slope <= 0:
        return before
    return replace(
        before, slope=slope, intercept=intercept, note="fitted to the answers of the model before"
    )


def _likeliest(
    z: NDArray[np.float64], target: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept under which probabilities of events are likeliest."""
    from sklearn.linear_model import LogisticRegression

    # Unit variance keeps the solver from stopping early on very confident heads.
    centre, scale = z.mean(), max(float(z.std()), 1e-12)
    scaled = np.tile((z - centre) / scale, 2)[:, None]
    # Each row counts as an event by its target, and as a non-event by the rest.
    shares = np.concatenate([weights * target, weights * (1 - target)])
    fit = LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000).fit(
        scaled, np.repeat([1, 0], len(z)), sample_weight=shares
    )
    slope = float(fit.coef_[0, 0]) / scale
    return slope, float(fit.intercept_[0] - slope * centre)


def _smoothed(y: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Platt's targets, just within 0 and 1: a head without errors must not become certain."""
    events = weights[y == 1].sum() / weights.mean()
    others = weights[y == 0].sum() / weights.mean()
    return np.asarray(np.where(y == 1, (events + 1) / (events + 2), 1 / (others + 2)))
