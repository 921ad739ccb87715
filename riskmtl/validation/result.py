"""What a section of a validation report finds: verdicts, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import polars as pl


class Verdict(StrEnum):
    """How a finding ends, in the order of its weight."""

    NOT_EXAMINED = "not examined"
    PASS = "pass"
    TOO_FEW = "not enough events"
    WATCH = "watch"
    FAIL = "fail"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """
    The weightiest of some verdicts.

    Examples
    --------
    >>> worst([Verdict.PASS, Verdict.WATCH]).value
    'watch'
    >>> worst([]).value
    'not examined'
    """
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.NOT_EXAMINED)


@dataclass(frozen=True)
class Question:
    """
    What a part of a report is about.

    Parameters
    ----------
    key : str
        Names its anchor.
    title, question : str
    """

    key: str
    title: str
    question: str


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One verdict, with what it rests on.

    Parameters
    ----------
    head : str
        Empty for the heads together.
    what : str
        Such as ``"AUC"``.
    verdict : Verdict
    value, low, high : float
        The figure and its interval; NaN where there is none.
    bound : str
        What it was held against, and where that comes from.
    """

    head: str
    what: str
    verdict: Verdict
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    bound: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a figure that is not finite is ``None``."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {
            "head": self.head,
            "what": self.what,
            "verdict": self.verdict.value,
            **{name: x if math.isfinite(x) else None for name, x in numbers.items()},
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report; ``key`` names its file, ``note`` says how to read it."""

    key: str
    title: str
    frame: pl.DataFrame
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """
    What a section found.

    Parameters
    ----------
    findings : sequence of Finding
    tables : sequence of Table
    figures : sequence of str
        Inline SVG.
    notes : sequence of str
        What this does not show, or why something was not examined.
    """

    findings: Sequence[Finding] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> Verdict:
        """The weightiest verdict of the findings."""
        return worst(finding.verdict for finding in self.findings)

    def table(self, key: str) -> pl.DataFrame:
        """Rows of the table of that key."""
        return next(table.frame for table in self.tables if table.key == key)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the figures."""
        return {
            "verdict": self.verdict.value,
            "findings": [finding.to_dict() for finding in self.findings],
            "tables": {
                table.key: table.frame.with_columns(
                    pl.selectors.float().replace([math.inf, -math.inf], None).fill_nan(None)
                ).to_dicts()
                for table in self.tables
            },
            "notes": list(self.notes),
        }
