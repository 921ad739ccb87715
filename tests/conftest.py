"""What many tests need: a simulated portfolio, a small table, a small trained model on disk."""

import datetime as dt
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from riskmtl import DataSchema, MultiTaskClassifier, load_schema, simulate_portfolio
from riskmtl.cli import main
from riskmtl.schema import Split
from riskmtl.schema_file import parse_schema
from riskmtl.simulate import Portfolio


@dataclass(frozen=True)
class Run:
    """What came of one call of the command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run one verb in this process."""

    def call(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Parameters of a network that trains in a moment, with a challenger."""
    return {
        "epochs": 2,
        "expert_units": [16, 8],
        "members": 2,
        "embedding_dim": 4,
        "bins": 8,
        "challenger": "lightgbm",
        "challenger_options": {"trials": 1, "n_estimators": 20, "n_jobs": 1},
        "device": "cpu",
        "random_state": 0,
    }


@pytest.fixture(scope="session")
def schema_file() -> Path:
    return Path(__file__).parents[1] / "data_schemas" / "risk_portfolio.yaml"


@pytest.fixture(scope="session")
def schema(schema_file: Path) -> DataSchema:
    return load_schema(schema_file)


@pytest.fixture(scope="session")
def portfolio() -> Portfolio:
    return simulate_portfolio(6_000, seed=1)


@pytest.fixture(scope="session")
def parts(portfolio: Portfolio, schema: DataSchema) -> Split:
    return schema.split(portfolio.frame)


@pytest.fixture(scope="session")
def portfolio_file(portfolio: Portfolio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portfolio") / "portfolio.parquet"
    portfolio.frame.write_parquet(path)
    return path


@pytest.fixture(scope="session")
def trained(parts: Split, schema: DataSchema, tiny: dict[str, Any]) -> MultiTaskClassifier:
    return MultiTaskClassifier(schema=schema, **tiny).fit(parts.train, X_val=parts.validation)


@pytest.fixture(scope="session")
def model_folder(trained: MultiTaskClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained model with a challenger; read only, by agreement."""
    folder = tmp_path_factory.mktemp("models") / "model"
    trained.save(folder)
    return folder


@pytest.fixture
def model_copy(model_folder: Path, tmp_path: Path) -> Path:
    """Folder of the same model, to be tampered with."""
    return Path(shutil.copytree(model_folder, tmp_path / "copied" / "model"))


@pytest.fixture(scope="session")
def cards_schema() -> DataSchema:
    """Schema of :func:`cards`."""
    return parse_schema(
        {
            "name": "cards",
            "fields": [
                {"name": "id", "type": "integer", "role": "key"},
                {"name": "day", "type": "date", "role": "time"},
                {
                    "name": "amount",
                    "type": "number",
                    "missingValues": -9,
                    "constraints": {"minimum": 0, "maximum": 100},
                },
                {"name": "age", "type": "integer"},
                {"name": "country", "type": "string", "missingValues": "?"},
                {"name": "online", "type": "boolean"},
                {"name": "weight", "type": "number", "role": "weight"},
            ],
            "tasks": [
                {"name": "default", "label": "bad", "positive": "late", "negative": "paid"},
                {
                    "name": "fraud",
                    "label": "is_fraud",
                    "positive": 1,
                    "negative": 0,
                    "observed": {"where": {"online": True}},
                },
            ],
        }
    )


@pytest.fixture(scope="session")
def cards() -> pl.DataFrame:
    """A small table with a missing code, nulls and two outcomes, one of them partly observed."""
    n, rng = 400, np.random.default_rng(3)
    amount = rng.uniform(0, 100, n).round(2)
    country = rng.choice(["FR", "DE", "NL", "?"], n)
    risk = amount / 50 + (country == "NL") - 2
    late = rng.random(n) < 1 / (1 + np.exp(-risk))
    fraud = rng.random(n) < 1 / (1 + np.exp(-2 * risk))
    return pl.DataFrame(
        {
            "id": np.arange(n) + 1000,
            "day": [dt.date(2024, 1, 1) + dt.timedelta(days=int(i) // 4) for i in range(n)],
            "amount": np.where(rng.random(n) < 0.1, -9.0, amount),
            "age": pl.Series(rng.integers(18, 90, n)).set(pl.Series(rng.random(n) < 0.1), None),
            "country": country,
            "online": rng.random(n) < 0.7,
            "weight": rng.uniform(0.5, 2.0, n),
            "bad": np.where(late, "late", "paid"),
            "is_fraud": fraud.astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, in which pages are looked at."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None and not os.environ.get("CI"):
        pytest.skip("no chromium: make browser")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
