"""One network with a head each for credit default, fraud and account takeover."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riskmtl.affinity import group_tasks, task_affinity
    from riskmtl.baseline import LightGBMBaseline, LogisticBaseline
    from riskmtl.diagnosis.report import diagnose
    from riskmtl.encoding import FeatureEncoder
    from riskmtl.estimator import MultiTaskClassifier
    from riskmtl.explain.wording import load_reasons
    from riskmtl.model import RiskModel
    from riskmtl.schema import DataSchema
    from riskmtl.schema_file import load_schema
    from riskmtl.simulate import simulate_portfolio
    from riskmtl.transfer import transfer_report

__version__ = "0.1.0"

# Loaded when first used: importing the package costs nothing that is not needed.
_HOME = {
    "DataSchema": "riskmtl.schema",
    "FeatureEncoder": "riskmtl.encoding",
    "LightGBMBaseline": "riskmtl.baseline",
    "LogisticBaseline": "riskmtl.baseline",
    "MultiTaskClassifier": "riskmtl.estimator",
    "RiskModel": "riskmtl.model",
    "diagnose": "riskmtl.diagnosis.report",
    "group_tasks": "riskmtl.affinity",
    "load_reasons": "riskmtl.explain.wording",
    "load_schema": "riskmtl.schema_file",
    "simulate_portfolio": "riskmtl.simulate",
    "task_affinity": "riskmtl.affinity",
    "transfer_report": "riskmtl.transfer",
}

__all__ = [
    "DataSchema",
    "FeatureEncoder",
    "LightGBMBaseline",
    "LogisticBaseline",
    "MultiTaskClassifier",
    "RiskModel",
    "diagnose",
    "group_tasks",
    "load_reasons",
    "load_schema",
    "simulate_portfolio",
    "task_affinity",
    "transfer_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'riskmtl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
