"""Evidence about a fitted model: sections, the report that lays them out, paired comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riskmtl.validation.evidence import Evidence, Section, section
    from riskmtl.validation.report import Report, validate
    from riskmtl.validation.result import Finding, Result, Table, Verdict
    from riskmtl.validation.settings import Settings, load_settings

# Loaded when first used, as in the package itself.
_HOME = {
    "Evidence": "evidence",
    "Finding": "result",
    "Report": "report",
    "Result": "result",
    "Section": "evidence",
    "Settings": "settings",
    "Table": "result",
    "Verdict": "result",
    "load_settings": "settings",
    "section": "evidence",
    "validate": "report",
}

__all__ = [
    "Evidence",
    "Finding",
    "Report",
    "Result",
    "Section",
    "Settings",
    "Table",
    "Verdict",
    "load_settings",
    "section",
    "validate",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'riskmtl.validation' has no attribute {name!r}")
    return getattr(import_module(f"riskmtl.validation.{_HOME[name]}"), name)
