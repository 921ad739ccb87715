"""The wheel, installed somewhere else, does what the checkout does."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FIT = """
import numpy as np, polars as pl, riskmtl
assert {folder!r} in riskmtl.__file__, riskmtl.__file__
rng = np.random.default_rng(0)
X = pl.DataFrame({{"amount": rng.normal(size=400), "country": ["FR", "DE"] * 200}})
y = (X["amount"] > 0).cast(int).alias("fraud")
model = riskmtl.MultiTaskClassifier(network="shared_bottom", epochs=2, random_state=0).fit(X, y)
print(model.predict_proba(X).shape, model.score(X, y) > 0.9)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "riskmtl/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"riskmtl"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "riskmtl").rglob("*.py")}
    assert sources <= set(names)


def test_a_fit_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, wheel],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIT.format(folder=str(target))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(400, 2) True"
