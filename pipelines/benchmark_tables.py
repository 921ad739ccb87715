"""The tables that the benchmarks run on: public ones, and a simulated one with its truth."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl import DataSchema, load_schema, simulate_portfolio
from riskmtl.files import read_table

ROOT = Path(__file__).parents[1]
SIMULATED = "risk_portfolio"
SIMULATED_ROWS = 200_000
FILES: Mapping[str, tuple[str, ...]] = {
    "census_income": ("census_income_train", "census_income_test"),
    "card_transactions": ("card_transactions",),
    "taiwan_default": ("taiwan_default",),
    "give_me_some_credit": ("give_me_some_credit",),
    "heloc": ("heloc",),
    "kdd09_churn_appetency_upselling": ("kdd09_churn_appetency_upselling",),
    "vehicle_claims": ("vehicle_claims",),
    SIMULATED: (),
}
LARGE = ("census_income", "card_transactions")


@dataclass(frozen=True, slots=True)
class Parts:
    """
    A table in its parts.

    Parameters
    ----------
    schema : DataSchema
    train, validation, test : polars.DataFrame
    truth : polars.DataFrame, optional
        True probabilities of the test rows, known of a simulated table only.
    """

    schema: DataSchema
    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    truth: pl.DataFrame | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the binary tasks."""
        return [task.name for task in self.schema.tasks if task.kind == "binary"]

    def labels(self, part: pl.DataFrame) -> NDArray[np.float64]:
        """Labels of a part as 0, 1 and NaN, ``(rows, tasks)``."""
        labels = self.schema.labels(part).select(self.tasks).cast(pl.Float64)
        return labels.fill_null(float("nan")).to_numpy()


def read_parts(table: str, folder: Path, *, split: int = 0, relatedness: float = 0.7) -> Parts:
    """
    Read a table and split it.

    Parameters
    ----------
    table : str
        A name in :data:`FILES`.
    folder : Path
        Folder of the public tables.
    split : int
        Number of the random split, where the schema splits at random; 0 is the fixed one.
    relatedness : float
        Of the simulated portfolio's heads.

    Returns
    -------
    Parts
    """
    schema = schema_of(table)
    rule = schema.split_rule
    schema = replace(schema, split_rule=replace(rule, seed=rule.seed + split))
    truth = None
    if table == SIMULATED:
        portfolio = simulate_portfolio(SIMULATED_ROWS, seed=0, relatedness=relatedness)
        frame, truth = portfolio.frame, portfolio.truth
    else:
        files = [read_table(folder / f"{name}.parquet") for name in FILES[table]]
        frame = pl.concat(files, how="diagonal")
    train, validation, test = schema.split(schema.check(frame).good)
    if truth is not None:
        keys = ["account_id", "snapshot_date"]
        truth = test.select(keys).join(truth, on=keys, maintain_order="left")
    return Parts(schema, train, validation, test, truth)


def schema_of(table: str) -> DataSchema:
    """Schema of a table."""
    return load_schema(ROOT / "data_schemas" / f"{table}.yaml")


def splits_at_random(table: str) -> bool:
    """Whether other splits of a table would be as good as the fixed one."""
    test = schema_of(table).split_rule.test
    return table != SIMULATED and test is not None and test.share is not None


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Let a pipeline be told where the public tables are."""
    default = Path(os.environ.get("RISKMTL_DATA", "data"))
    parser.add_argument("--data", type=Path, default=default, help="folder of the public tables")
