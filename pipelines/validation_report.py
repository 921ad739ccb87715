"""
A validation report from nothing: train a model and challengers, hold it against later rows.

Run with ``make report`` for the simulated portfolio, or with ``--table card_transactions`` for the
public table of that name in the folder ``RISKMTL_DATA``. Models that are there are used again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import polars as pl

from riskmtl import (
    LogisticBaseline,
    MultiTaskClassifier,
    RiskModel,
    load_schema,
    simulate_portfolio,
)
from riskmtl.schema import DataSchema, Split
from riskmtl.validation import Settings, load_settings, validate

ROOT = Path(__file__).parents[1]
PORTFOLIO = "risk_portfolio"


def main() -> None:
    """Train what is missing, validate, and write the report."""
    options = _options()
    schema = load_schema(ROOT / "data_schemas" / f"{options.table}.yaml")
    parts = schema.split(_table(options.table, schema, options.rows))
    models = trained_models(options.models / options.table, schema, parts)
    started = time.perf_counter()
    report = validate(
        models.pop("model"),
        parts.test,
        reference=parts.train,
        challengers=models,
        settings=settings_of(options.table),
        progress=True,
    )
    page = report.write(options.out)
    for section, result, seconds in report.sections:
        verdict = result.verdict.value if result.findings else "–"
        print(f"{section.title:<20} {verdict:<18} {seconds:6.1f} s")
    size = page.stat().st_size / 1e6
    print(f"{page}: {size:.2f} MB in {time.perf_counter() - started:.0f} s")


def trained_models(folder: Path, schema: DataSchema, parts: Split) -> dict[str, RiskModel]:
    """
    A model with LightGBM beside it, a network per task and a logistic regression.

    Parameters
    ----------
    folder : Path
        Where they are kept; those that are there are not trained again.
    schema : DataSchema
    parts : Split
        To train on.

    Returns
    -------
    dict of str to RiskModel
        ``model``, ``single_task`` and ``logistic``.
    """
    return {name: _model(folder / name, make, schema, parts) for name, make in _makers().items()}


def _makers() -> dict[str, Any]:
    return {
        "model": lambda schema: MultiTaskClassifier(
            schema=schema,
            challenger="lightgbm",
            challenger_options={"trials": 3},
            random_state=0,
            verbose=True,
        ),
        "single_task": lambda schema: MultiTaskClassifier(
            network="single_task", schema=schema, random_state=0, verbose=True
        ),
        "logistic": lambda schema: LogisticBaseline(schema=schema, random_state=0),
    }


def settings_of(table: str) -> Settings:
    """What a report of a table is asked."""
    return load_settings(ROOT / "pipelines" / "validation" / f"{table}.yaml")


def _table(name: str, schema: DataSchema, rows: int) -> pl.DataFrame:
    if name == PORTFOLIO:
        return schema.check(simulate_portfolio(rows, seed=0).frame).good
    folder = os.environ.get("RISKMTL_DATA")
    if not folder:
        raise SystemExit("RISKMTL_DATA must name the folder of the public tables")
    return schema.check(pl.read_parquet(Path(folder) / f"{name}.parquet")).good


def _model(folder: Path, make: Any, schema: DataSchema, parts: Split) -> RiskModel:
    if not folder.exists():
        print(f"training {folder.name}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(schema).fit(parts.train, X_val=parts.validation).save(folder)
    return RiskModel.load(folder, with_challenger=folder.name == "model")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=(PORTFOLIO, "card_transactions"), default=PORTFOLIO)
    parser.add_argument("--rows", type=int, default=200_000, help="of the simulated portfolio")
    parser.add_argument("--models", type=Path, default=Path("demo") / "validation")
    parser.add_argument("--out", type=Path, default=Path("demo") / "report")
    return parser.parse_args()


if __name__ == "__main__":
    main()
