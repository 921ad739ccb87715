"""The sections of a validation report, in their order."""

from __future__ import annotations

from riskmtl.validation.evidence import Section
from riskmtl.validation.sections.calibration import calibration
from riskmtl.validation.sections.challengers import challengers
from riskmtl.validation.sections.data import data
from riskmtl.validation.sections.discrimination import discrimination
from riskmtl.validation.sections.explanations import explanations
from riskmtl.validation.sections.fairness import fairness
from riskmtl.validation.sections.joint import joint
from riskmtl.validation.sections.limits import limits
from riskmtl.validation.sections.robustness import robustness
from riskmtl.validation.sections.stability import stability
from riskmtl.validation.sections.use import use

SECTIONS: tuple[Section, ...] = (
    data,
    discrimination,
    calibration,
    stability,
    challengers,
    joint,
    explanations,
    robustness,
    fairness,
    use,
    limits,
)

__all__ = [
    "SECTIONS",
    "calibration",
    "challengers",
    "data",
    "discrimination",
    "explanations",
    "fairness",
    "joint",
    "limits",
    "robustness",
    "stability",
    "use",
]
