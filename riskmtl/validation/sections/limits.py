"""What are its limits, and where does it come from: written from the run."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import numpy as np
import polars as pl

from riskmtl.encoding import UNSEEN
from riskmtl.validation.criteria import rules
from riskmtl.validation.evidence import Evidence, section
from riskmtl.validation.result import Finding, Result, Table


@section("limits", "Limits and lineage", "What are its limits, and where does it come from?")
def limits(evidence: Evidence) -> Result:
    """Too few events, immature months, values out of range, reasons that tie; lineage, rules."""
    findings: list[Finding] = []
    notes = []
    for task in evidence.tasks:
        if not evidence.has_enough(task):
            findings.append(evidence.too_few(task, "events"))
            events, _ = evidence.events(task)
            notes.append(
                f"{task}: {events} events, or their customers, are too few for any verdict."
            )
    notes += _immature(evidence)
    if evidence.schema.with_role("weight"):
        notes.append("Rows count alike here: the weights of the schema are not used.")
    outside = _outside(evidence)
    if outside.height:
        notes.append(
            f"{outside.height} columns hold numbers beyond those of training, or new categories."
        )
    tables = [
        Table(
            "outside",
            "Values that training never saw",
            outside,
            "Share of rows below or above all training rows, or of a category not among them.",
        ),
        *_ties(evidence),
        Table("lineage", "Lineage", _lineage(evidence)),
        Table("rules", "Rules and guides, with their dates", pl.DataFrame(rules())),
    ]  # fmt: skip
    return Result(findings, tables, (), notes)


def _immature(evidence: Evidence) -> list[str]:
    months = evidence.rows.months
    if months is None:
        return []
    notes = []
    names = months.to_numpy()
    for position, task in enumerate(evidence.tasks):
        seen = ~np.isnan(evidence.rows.labels[:, position])
        empty = [m for m in months.unique().sort() if not seen[names == m].any()]
        if empty:
            notes.append(f"{task}: no outcome is known yet for {', '.join(empty)}.")
    return notes


def _outside(evidence: Evidence) -> pl.DataFrame:
    lines = []
    for position, column in enumerate(evidence.model.encoder.columns_):
        now = evidence.rows.encoded[:, position]
        outside = (
            now == UNSEEN if column.is_categorical else (now < column.low) | (now > column.high)
        )
        share = float(outside.mean())
        if share > 0:
            lines.append(
                (column.name, "new category" if column.is_categorical else "number", share)
            )
    shape = {"column": pl.String, "kind": pl.String, "share of rows": pl.Float64}
    return pl.DataFrame(lines, schema=shape, orient="row").sort("share of rows", descending=True)


def _ties(evidence: Evidence) -> list[Table]:
    """How often chance decided which reason of a row is the last to be given."""
    if evidence.explained is None:
        return []
    rows = len(evidence.explained.explanation.values)
    lines = []
    for head, reasons in evidence.explained.reasons.items():
        last = reasons.filter(pl.col("rank") == pl.col("rank").max().over("row"))
        lines.append((head, rows, int((~last["separable"]).sum()) / rows))
    shape = ["head", "explained rows", "share whose last reason ties"]
    return [
        Table(
            "ties",
            "Reasons that are not apart",
            pl.DataFrame(lines, schema=shape, orient="row"),
            "A last reason ties if it is less than two standard errors apart from the next column, "
            "which might as well have been given. Reasons for customers are sampled further.",
        )
    ]


def _lineage(evidence: Evidence) -> pl.DataFrame:
    lineage = evidence.model.lineage
    digest = hashlib.sha256(np.ascontiguousarray(evidence.rows.encoded).data)
    digest.update(np.ascontiguousarray(evidence.rows.labels).data)
    facts = {
        "model": lineage.get("model_id"),
        "kind": evidence.model.kind,
        "trained": lineage.get("created"),
        "training rows": lineage.get("rows"),
        "training data, SHA-256": lineage.get("data_sha256"),
        "schema, SHA-256": evidence.schema.hash,
        "validated rows, SHA-256": digest.hexdigest(),
        "seed of the model": lineage.get("seed"),
        "seed of the validation": evidence.settings.seed,
        "commit": lineage.get("git_commit"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("riskmtl", "torch", "lightgbm", "polars", "numpy")},
    }
    return pl.DataFrame(
        {"what": list(facts), "value": ["–" if v is None else str(v) for v in facts.values()]}
    )
