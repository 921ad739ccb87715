"""
How often a model raises an alarm on portfolios where nothing was broken, section by section.

Run with ``make benchmark-alarms``. Each seed draws a portfolio, trains a small network and a
logistic regression, and validates the network. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl

from riskmtl import LogisticBaseline, MultiTaskClassifier, load_schema, simulate_portfolio
from riskmtl.files import replacing
from riskmtl.validation import Settings, Verdict, validate
from riskmtl.validation.sections import SECTIONS

ROOT = Path(__file__).parents[1]
_ALARMS = (Verdict.WATCH, Verdict.FAIL)
_LEFT_OUT = ("joint", "explanations", "use", "limits")  # without verdicts here


def main() -> None:
    """Validate seed after seed, and write the page."""
    options = _options()
    record = options.out / "false_alarms.json"
    found = json.loads(record.read_text()) if record.exists() else []
    done = {line["seed"] for line in found}
    for seed in range(options.seeds):
        if seed not in done:
            found += _alarms(seed, options.rows)
            with replacing(record) as scratch:
                scratch.write_text(json.dumps(found, indent=1))
            print(f"seed {seed}", flush=True)
    with replacing(options.out / "false_alarms.md") as scratch:
        scratch.write_text(page(pl.DataFrame(found), options.rows))


def page(found: pl.DataFrame, rows: int) -> str:
    """
    Lay the alarms out by section.

    Parameters
    ----------
    found : polars.DataFrame
        Columns ``seed``, ``section``, ``alarm`` (what raised it, empty if nothing did).
    rows : int

    Returns
    -------
    str
        Markdown.
    """
    table = found.group_by("section", maintain_order=True).agg(
        (pl.col("alarm") != "").sum().alias("alarms"),
        pl.len().alias("seeds"),
        pl.col("alarm")
        .filter(pl.col("alarm") != "")
        .str.split("; ")
        .explode()
        .unique()
        .sort()
        .alias("by"),
    )
    counted = [
        f"| {row['section']} | {row['alarms']} of {row['seeds']} | {'; '.join(row['by'])} |"
        for row in table.iter_rows(named=True)
    ]
    seeds = found["seed"].n_unique()
    lines = [
        "# Alarms of the validation report where nothing was broken",
        "",
        f"A network on {seeds} simulated portfolios of {rows:,} rows, each "
        "trained anew: how many raise a watch or a fail, by section. `make benchmark-alarms`.",
        "",
        "| section | alarms | by |",
        "|---|---|---|",
        *counted,
        "",
        "Not each of these alarms is false. New merchants and device models do turn up month by "
        "month, and a small network on so few rows does rank better in training than later, and "
        "may truly be behind the logistic regression. How many are false is not known from this.",
        "",
    ]
    return "\n".join(lines)


def _alarms(seed: int, rows: int) -> list[dict[str, object]]:
    schema = load_schema(ROOT / "data_schemas" / "risk_portfolio.yaml")
    parts = schema.split(simulate_portfolio(rows, seed=1000 + seed).frame)
    model = MultiTaskClassifier(schema=schema, members=1, random_state=seed)
    model.fit(parts.train, X_val=parts.validation)
    simple = LogisticBaseline(schema=schema, random_state=seed)
    simple.fit(parts.train, X_val=parts.validation)
    report = validate(
        model,
        parts.test,
        reference=parts.train,
        challengers={"logistic": simple},
        settings=Settings(protected=("gender", "age_band"), alert_budget={"default": 0.15}),
        sections=[section for section in SECTIONS if section.key not in _LEFT_OUT],
    )
    return [
        {
            "seed": seed,
            "section": section.key,
            "alarm": "; ".join(
                f"{f.head} {f.what}".strip() for f in result.findings if f.verdict in _ALARMS
            ),
        }
        for section, result, _ in report.sections
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
