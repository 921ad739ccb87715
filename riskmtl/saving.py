"""What a model of some heads saves against the whole one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from riskmtl.model import RiskModel
from riskmtl.scorers import NetworkScorer

_TIMED = 7


@dataclass(frozen=True, slots=True)
class Saving:
    """
    What a model of some heads saves against the whole one.

    Parameters
    ----------
    parameters : int
        Numbers of the smaller network.
    parameters_kept : float
        As a share of those of the whole.
    time_saved : float
        Share of the time that scoring takes, measured on the background rows; of a blend with its
        challenger. Below 0 where the smaller model happened to be slower.
    """

    parameters: int
    parameters_kept: float
    time_saved: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.parameters_kept:.0%} of all; "
            f"{self.time_saved:.0%} of the scoring time saved"
        )


def saving_of(whole: RiskModel, smaller: RiskModel) -> Saving:
    """
    Measure what a smaller model saves.

    Parameters
    ----------
    whole, smaller : RiskModel
        Models with a network.

    Returns
    -------
    Saving
    """
    counts = [_parameters(model) for model in (whole, smaller)]
    rows = whole.background
    if rows is None:
        rows = whole.encoder.transform(whole.encoder.simulate(256, seed=0))
    best = [math.inf, math.inf]
    # In turn, so that whatever else the machine does meets both.
    for _ in range(_TIMED):
        for position, model in enumerate((whole, smaller)):
            started = time.perf_counter()
            model.outputs(rows)
            best[position] = min(best[position], time.perf_counter() - started)
    return Saving(counts[1], counts[1] / counts[0], 1 - best[1] / best[0])


def _parameters(model: RiskModel) -> int:
    assert isinstance(model.scorer, NetworkScorer)
    return sum(parameter.numel() for parameter in model.scorer.network.parameters())
