"""A validation: all sections in turn, and the files that lay them out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riskmtl import __version__
from riskmtl.files import replacing
from riskmtl.validation.evidence import Evidence, Section
from riskmtl.validation.layout import cell, render
from riskmtl.validation.result import Finding, Question, Result, Verdict, worst
from riskmtl.validation.sections import SECTIONS
from riskmtl.validation.settings import Settings

# Longer tables go to their CSV file whole and into the page up to here.
_LINES_SHOWN = 60


@dataclass(frozen=True)
class Report:
    """
    What a validation found, or a monitoring.

    Parameters
    ----------
    title : str
    tasks : sequence of str
    facts : dict
        Of the run: model, rows, time.
    sections : sequence of (Question, Result, seconds)
    kind : {"validation", "monitoring"}
        Names its files.
    """

    title: str
    tasks: Sequence[str]
    facts: dict[str, Any]
    sections: Sequence[tuple[Question, Result, float]]
    kind: str = "validation"

    def __getitem__(self, key: str) -> Result:
        """Result of the section of that key."""
        for section, result, _ in self.sections:
            if section.key == key:
                return result
        raise KeyError(key)

    @property
    def verdict(self) -> Verdict:
        """The weightiest verdict of all sections."""
        return worst(result.verdict for _, result, _ in self.sections)

    def verdict_of(self, key: str, task: str) -> Verdict:
        """The weightiest verdict of a section on a head; an empty `task`: on all together."""
        return worst(f.verdict for f in self[key].findings if f.head == task)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            **self.facts,
            "verdict": self.verdict.value,
            "sections": {
                section.key: {"seconds": round(seconds, 2), **result.to_dict()}
                for section, result, seconds in self.sections
            },
        }

    def to_html(self) -> str:
        """One page that needs neither script nor network."""
        return render("report.html", report=self, lines_shown=_LINES_SHOWN, interval=_interval)

    def write(self, folder: str | Path) -> Path:
        """
        Write ``<kind>.html``, ``<kind>.json`` and ``tables/*.csv``.

        Parameters
        ----------
        folder : str or Path
            Made if need be. Files of an earlier report take the new content.

        Returns
        -------
        Path
            The page.
        """
        folder = Path(folder)
        for _, result, _ in self.sections:
            for table in result.tables:
                with replacing(folder / "tables" / f"{table.key}.csv") as scratch:
                    table.frame.write_csv(scratch)
        with replacing(folder / f"{self.kind}.json") as scratch:
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            scratch.write_text(text, encoding="utf-8")
        page = folder / f"{self.kind}.html"
        with replacing(page) as scratch:
            scratch.write_text(self.to_html(), encoding="utf-8")
        return page


def validate(
    model: Any,
    table: Any,
    *,
    reference: Any = None,
    challengers: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    sections: Sequence[Section] = SECTIONS,
    title: str = "",
    progress: bool = False,
) -> Report:
    """
    Hold a model against labelled rows that it has not seen.

    Parameters
    ----------
    model : RiskModel or estimator
        With a schema.
    table : table
        Labelled rows.
    reference : table, optional
        Rows it was trained on, for drift and for rows that are in both.
    challengers : mapping of str to RiskModel or estimator, optional
        Other models of the same tasks; one called ``single_task`` shows what joint training did.
    settings : Settings, optional
    sections : sequence of Section
        Default: all. Add those made with :func:`riskmtl.validation.section`.
    title : str
        Of the page; default: the schema's.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the table does not go with the model, or a column that the settings name is unknown.

    Examples
    --------
    >>> import polars as pl
    >>> from riskmtl import LightGBMBaseline
    >>> from riskmtl.schema_file import parse_schema
    >>> from riskmtl.validation import validate
    >>> from riskmtl.validation.sections import discrimination
    >>> schema = parse_schema({
    ...     "name": "cards",
    ...     "fields": [{"name": "amount", "type": "number"}],
    ...     "tasks": [{"name": "fraud", "label": "is_fraud", "positive": 1}],
    ... })
    >>> rows = pl.DataFrame({"amount": [1.0, 9.0, 2.0, 8.0] * 100, "is_fraud": [0, 1, 0, 1] * 100})
    >>> model = LightGBMBaseline(schema=schema, trials=1, random_state=0).fit(rows)
    >>> validate(model, rows, sections=[discrimination]).verdict.value
    'pass'
    """
    from tqdm import tqdm

    started = time.perf_counter()
    evidence = Evidence(model, table, reference, challengers or {}, settings or Settings())
    done = []
    bar = tqdm(sections, disable=not progress, unit="section", leave=False)
    for section in bar:
        bar.set_description(section.title)
        begun = time.perf_counter()
        done.append((section, section.examine(evidence), time.perf_counter() - begun))
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        **evidence.model.identity,
        "rows": evidence.rows.frame.height,
        "seconds": round(time.perf_counter() - started, 1),
    }
    name = title or evidence.schema.title or evidence.schema.name
    return Report(name, evidence.tasks, facts, done)


def _interval(finding: Finding) -> str:
    if not math.isfinite(finding.value):
        return "–"
    text = cell(finding.value)
    if math.isfinite(finding.low) and finding.low != finding.high:
        text += f" ({cell(finding.low)} to {cell(finding.high)})"
    return text
