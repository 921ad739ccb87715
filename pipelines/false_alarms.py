"""
How often a sound model raises an alarm on portfolios where nothing was broken, section by section.

Run with ``make benchmark-alarms``. The model of ``make report`` and its challengers are held
against portfolios that are drawn anew, seed after seed. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import polars as pl
from validation_report import PORTFOLIO, settings_of, trained_models

from riskmtl import RiskModel, load_schema, simulate_portfolio
from riskmtl.files import replacing
from riskmtl.schema import Split
from riskmtl.validation import Report, Verdict, validate
from riskmtl.validation.sections import SECTIONS

ROOT = Path(__file__).parents[1]
_ALARMS = (Verdict.WATCH, Verdict.FAIL)
_TRAINED_ON = 200_000
_NO_VERDICTS = ("explanations", "use")


def main() -> None:
    """Validate seed after seed, and write the page."""
    options = _options()
    record = options.out / "false_alarms.json"
    found = json.loads(record.read_text()) if record.exists() else []
    done = {line["seed"] for line in found}
    schema = load_schema(ROOT / "data_schemas" / f"{PORTFOLIO}.yaml")
    seen = schema.split(simulate_portfolio(_TRAINED_ON, seed=0).frame)
    models = trained_models(options.models / PORTFOLIO, schema, seen)
    for seed in range(options.seeds):
        if seed not in done:
            parts = schema.split(_portfolio(seed, options.rows))
            found += _alarms(seed, parts, dict(models))
            found += _without_drift(seed, parts.test, models["model"])
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
        f"One network, trained on a simulated portfolio of {_TRAINED_ON:,} rows, held against "
        f"{seeds} others of {rows:,}: how many raise a watch or a fail, by section. "
        "`make benchmark-alarms`.",
        "",
        "| section | alarms | by |",
        "|---|---|---|",
        *counted,
        "",
        "New merchants and device models turn up month by month in the portfolio, so that a column "
        "is no longer as in training is true: stability says so each time, of the column and not "
        "of the scores. Without drift are two random halves of the same later rows.",
        "",
    ]
    return "\n".join(lines)


def _portfolio(seed: int, rows: int) -> pl.DataFrame:
    # The seeds from 2000 on are those of no other job.
    return simulate_portfolio(rows, seed=2000 + seed).frame


def _without_drift(seed: int, rows: pl.DataFrame, model: RiskModel) -> list[dict[str, object]]:
    """Stability of one random half of the rows against the other, which cannot have drifted."""
    shuffled = rows.sample(fraction=1, shuffle=True, seed=seed)
    half = shuffled.height // 2
    report = validate(
        model,
        shuffled[:half],
        reference=shuffled[half:],
        settings=settings_of(PORTFOLIO),
        sections=[section for section in SECTIONS if section.key == "stability"],
    )
    (line,) = _lines(seed, report)
    return [{**line, "section": "stability, without drift"}]


def _alarms(seed: int, parts: Split, models: dict[str, RiskModel]) -> list[dict[str, object]]:
    report = validate(
        models.pop("model"),
        parts.test,
        reference=parts.train,
        challengers=models,
        settings=settings_of(PORTFOLIO),
        sections=[section for section in SECTIONS if section.key not in _NO_VERDICTS],
    )
    return _lines(seed, report)


def _lines(seed: int, report: Report) -> list[dict[str, object]]:
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
    parser.add_argument("--models", type=Path, default=Path("demo") / "validation")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
