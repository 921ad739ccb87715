"""Whole trainings with the package's defaults, on a real table and on a full portfolio."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from riskmtl import LightGBMBaseline, MultiTaskClassifier, load_schema, simulate_portfolio
from riskmtl.files import read_table
from riskmtl.metrics import roc_auc

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RISKMTL_DATA") or ROOT.parent / "shared" / "data")


def test_heloc_reaches_its_known_figures() -> None:
    path = DATA / "heloc.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the folder of public tables (RISKMTL_DATA)")
    schema = load_schema(ROOT / "data_schemas" / "heloc.yaml")
    train, validation, test = schema.split(read_table(path))
    network = MultiTaskClassifier(schema=schema, random_state=0).fit(train, X_val=validation)
    trees = LightGBMBaseline(schema=schema, random_state=0).fit(train, X_val=validation)
    assert network.score(test) > 0.785
    assert trees.score(test) > 0.785


def test_every_head_of_the_portfolio_comes_near_the_best_attainable() -> None:
    schema = load_schema(ROOT / "data_schemas" / "risk_portfolio.yaml")
    portfolio = simulate_portfolio(200_000, seed=0)
    train, validation, test = schema.split(portfolio.frame)
    model = MultiTaskClassifier(schema=schema, random_state=0).fit(train, X_val=validation)
    keys = ["account_id", "snapshot_date"]
    truth = test.select(keys).join(portfolio.truth, on=keys, maintain_order="left")
    found, labels = model.predict_frame(test), schema.labels(test)
    for task in model.tasks_:
        observed = labels[task].fill_null(np.nan).to_numpy()
        reached = roc_auc(observed, found[task].to_numpy())
        best = roc_auc(observed, truth[f"p_{task}"].to_numpy())
        assert (reached - 0.5) / (best - 0.5) > 0.9, task


def test_a_million_rows_are_simulated_in_seconds() -> None:
    import time

    simulate_portfolio(1000)
    started = time.perf_counter()
    frame = simulate_portfolio(1_000_000, seed=1).frame
    assert time.perf_counter() - started < 10
    assert frame.select(pl.len()).item() == 1_000_000
