"""MLflow: its frames score as ours do, its copy of the folder is checked, nothing is pickled."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from riskmtl import DataSchema, LogisticBaseline, RiskModel
from riskmtl.columns import DataError
from riskmtl.scoring.batches import BatchScorer, ScoreSettings, score_batches
from riskmtl.scoring.mlflow_flavour import save_mlflow
from riskmtl.scoring.mlflow_rows import FrameScorer
from riskmtl.simulate import Portfolio

ROOT = Path(__file__).parents[1]
MLFLOW = ROOT / ".venv-mlflow" / "bin"
HEADS = ("default", "fraud", "takeover")


def as_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """A frame as people hold it: whole numbers with a gap are floats, dates are objects."""
    return pd.DataFrame({column.name: column.to_list() for column in frame})


@pytest.fixture(scope="module")
def model(model_folder: Path) -> RiskModel:
    return RiskModel.load(model_folder)


@pytest.fixture(scope="module")
def frames(model: RiskModel) -> FrameScorer:
    return FrameScorer(BatchScorer(model, ScoreSettings()))


@pytest.fixture(scope="module")
def rows(portfolio: Portfolio) -> pl.DataFrame:
    """Rows one of which has an amount below zero, and one no key."""
    rows = portfolio.frame.sample(200, seed=0)
    place = pl.int_range(rows.height)
    return rows.with_columns(
        acc_income=pl.when(place == 3).then(-1.0).otherwise("acc_income"),
        account_id=pl.when(place == 5).then(None).otherwise("account_id"),
    )


@pytest.fixture(scope="module")
def expected(model: RiskModel, rows: pl.DataFrame) -> pl.DataFrame:
    return next(score_batches(model, [rows])).scores


@pytest.fixture(scope="module")
def card_frames(cards: pl.DataFrame, cards_schema: DataSchema) -> FrameScorer:
    logistic = LogisticBaseline(strengths=(0.1,), random_state=0, schema=cards_schema)
    return FrameScorer(BatchScorer(logistic.fit(cards).model_, ScoreSettings(graded=())))


def assert_scores(found: pd.DataFrame, expected: pl.DataFrame) -> None:
    assert len(found) == expected.height
    for name in (f"{kind}_{head}" for head in HEADS for kind in ("p", "margin")):
        np.testing.assert_allclose(
            found[name].to_numpy(dtype=float), expected[name].to_numpy(), rtol=1e-6, atol=1e-6
        )
    assert found["quarantined"].tolist() == expected["quarantined"].to_list()


# ---- frames --------------------------------------------------------------------------------------


def test_a_pandas_frame_scores_as_any_table(
    frames: FrameScorer, rows: pl.DataFrame, expected: pl.DataFrame
) -> None:
    given = as_pandas(rows).set_index(pd.Index([7, 7, *range(198)], name="place"))
    found = frames.predict(given)
    assert_scores(found, expected)
    pd.testing.assert_frame_equal(
        found[["account_id", "snapshot_date"]], given[["account_id", "snapshot_date"]]
    )
    assert [*found.columns] == [*expected.drop("_row").columns, "_rule"]
    refused = found[found["quarantined"]]
    assert refused["_rule"].tolist() == ["acc_income: below 0", "account_id: missing"]
    assert refused.filter(regex="p_|margin_|grade_").isna().all(axis=None)
    assert set(found["_rule"][~found["quarantined"]]) == {None}


def test_types_do_not_hang_on_refused_rows(frames: FrameScorer, rows: pl.DataFrame) -> None:
    given = as_pandas(rows)
    for some in (given[:3], given[3:4], given):
        found = frames.predict(some).dtypes
        assert found.filter(regex="p_|margin_|grade_").unique().tolist() == [np.float64]
        assert found[["quarantined", "_rule"]].tolist() == [np.bool_, np.object_]


def test_a_csv_file_scores_the_same_as_pandas_guesses_it(
    frames: FrameScorer, rows: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path
) -> None:
    # What is written here is not read as missing: pandas has a list of words that are.
    rows.write_csv(tmp_path / "rows.csv")
    for some, scores in ((rows, expected), (rows[:1], expected[:1])):
        some.write_csv(tmp_path / "rows.csv")
        assert_scores(frames.predict(pd.read_csv(tmp_path / "rows.csv")), scores)


def test_an_empty_frame(frames: FrameScorer, rows: pl.DataFrame) -> None:
    found = frames.predict(as_pandas(rows)[:0])
    assert found.empty
    assert "p_default" in found


CARDS = {
    "id": [1, 2],
    "day": ["2024-01-01", "2024-01-02"],
    "amount": [5, 90],
    "age": [30, 40],
    "country": ["FR", "NL"],
    "online": [True, False],
}


def test_forms_in_which_a_value_may_come(card_frames: FrameScorer) -> None:
    expected = card_frames.predict(pd.DataFrame(CARDS))
    assert not expected["quarantined"].any()
    for other in (
        {"online": [1, 0]},
        {"online": [1.0, 0.0]},
        {"online": ["true", "False"]},
        {"age": ["30", "40"]},
        {"amount": [5.0, "90"]},
        {"day": pd.to_datetime(CARDS["day"])},
        {"day": ["2024-01-01T00:00:00", "2024-01-02T00:00:00"]},
        {"age": pd.array([30, 40], dtype="Int64"), "country": pd.Categorical(["FR", "NL"])},
    ):
        found = card_frames.predict(pd.DataFrame(CARDS | other))
        pd.testing.assert_frame_equal(found.drop(columns="day"), expected.drop(columns="day"))


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
def test_gaps_are_missing_values(card_frames: FrameScorer, cards: pl.DataFrame, gap: Any) -> None:
    given = pd.DataFrame({**CARDS, "age": [30, gap], "country": [gap, gap], "online": [gap, True]})
    exact = pl.DataFrame(
        {
            "id": [1, 2],
            "day": [None, None],
            "amount": [5.0, 90.0],
            "age": [30, None],
            "country": [None, None],
            "online": [None, True],
        },
        schema_overrides={"day": pl.Date, "country": pl.String},
    ).with_columns(day=pl.date(2024, 1, 1))
    (scored,) = score_batches(card_frames.scorer.model, [exact])
    found = card_frames.predict(given)
    np.testing.assert_allclose(found["p_fraud"], scored.scores["p_fraud"].to_numpy(), atol=1e-6)


def test_what_cannot_be_read_is_refused(card_frames: FrameScorer) -> None:
    given = CARDS | {"amount": ["a lot", "90"], "day": ["2024-01-01", "yesterday"]}
    found = card_frames.predict(pd.DataFrame(given))
    assert found["_rule"].tolist() == ["amount: no number", "day: no date"]
    assert found["p_default"].isna().all()
    with pytest.raises(DataError, match="column 'country' is Int64 in the table"):
        card_frames.predict(pd.DataFrame(CARDS | {"country": [1, 2]}))
    with pytest.raises(DataError, match="column 'day' is Int64 in the table"):
        card_frames.predict(pd.DataFrame(CARDS | {"day": [19723, 19724]}))
    with pytest.raises(DataError, match="column 'age' is missing"):
        card_frames.predict(pd.DataFrame(CARDS).drop(columns="age"))


def test_settings_add_columns(
    model_folder: Path, rows: pl.DataFrame, expected: pl.DataFrame
) -> None:
    model = RiskModel.load(model_folder, with_challenger=True)
    highest = expected.select(pl.max_horizontal(pl.col("^p_.*$"))).to_series().sort()
    settings = ScoreSettings(graded=(), challenger=True, reasons=f"score>={highest[-3]:.6f}")
    frames = FrameScorer(BatchScorer(model, settings))
    (scored,) = score_batches(model, [rows], settings)
    found = frames.predict(as_pandas(rows))
    assert found.columns.tolist() == [column.name for column in frames.outputs()]
    reasons = [None if r is None else r.to_list() for r in scored.scores["reasons_fraud"]]
    assert found["reasons_fraud"].tolist() == reasons
    assert any(reasons)
    kinds = {column.name: column.type for column in frames.outputs()}
    assert kinds["reasons_fraud"] == "strings"
    assert kinds["p_fraud_challenger"] == "double"


# ---- signature -----------------------------------------------------------------------------------


def test_the_signature_names_what_scoring_needs(
    frames: FrameScorer, card_frames: FrameScorer, schema: DataSchema
) -> None:
    names = [column.name for column in frames.inputs()]
    assert names == [
        column.name
        for column in schema.columns
        if column.is_input or column.role in ("key", "time")
    ]
    assert {c.name for c in frames.inputs() if c.type == "string"} == {"account_id"}
    assert all(column.is_required for column in frames.inputs())  # a date input needs the time
    assert [tuple(column) for column in card_frames.inputs()] == [
        ("id", "any", True),
        ("amount", "any", True),
        ("age", "any", True),
        ("country", "any", True),
        ("online", "any", True),
        ("day", "any", False),
    ]
    assert frames.types()["acc_opened_date"] == "date"


def test_the_signature_names_what_comes_out(frames: FrameScorer, rows: pl.DataFrame) -> None:
    outputs = frames.outputs()
    assert frames.predict(as_pandas(rows)).columns.tolist() == [c.name for c in outputs]
    assert [tuple(column) for column in outputs if "takeover" in column.name] == [
        ("p_takeover", "double", False),
        ("margin_takeover", "double", False),
    ]
    assert [tuple(column) for column in outputs[-2:]] == [
        ("quarantined", "boolean", True),
        ("_rule", "string", False),
    ]


def test_a_model_without_a_schema() -> None:
    X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", None] * 100})
    y = pl.DataFrame({"fraud": [0, 1] * 100})
    model = LogisticBaseline(strengths=(0.1,), random_state=0).fit(X, y).model_
    frames = FrameScorer(BatchScorer(model, ScoreSettings()))
    assert frames.types() == {"amount": "number", "country": "category"}
    assert [column.type for column in frames.inputs()] == ["any", "any"]
    found = frames.predict(pd.DataFrame({"amount": [1, 9], "country": [np.nan, np.nan]}))
    exact = pl.DataFrame(
        {"amount": [1.0, 9.0], "country": pl.Series([None, None], dtype=pl.String)}
    )
    np.testing.assert_allclose(found["p_fraud"], model.predict_frame(exact)["fraud"], atol=1e-6)
    assert found.columns.tolist() == ["p_fraud", "margin_fraud", "quarantined", "_rule"]


# ---- what cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize("package", ["mlflow", "pandas"])
def test_a_missing_package_is_named(
    package: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, package, None)
    message = f"an MLflow model needs {package}: pip install 'riskmtl[mlflow]'"
    with pytest.raises(ImportError, match=message.replace("[", r"\[")):
        save_mlflow(model_folder, tmp_path / "out")
    options = ["--model", model_folder, "--out", tmp_path / "out", "--format", "mlflow"]
    done = run("export", *options)
    assert (done.code, done.err) == (1, f"riskmtl export: {message}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [("--head", "fraud"), ("--int8",), ("--data", "x.parquet")])
def test_the_command_line_refuses(
    options: tuple[str, ...], model_folder: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    where = ["--model", model_folder, "--out", tmp_path / "out", "--format", "mlflow"]
    done = run("export", *where, *options)
    assert done.code == 1
    assert f"{options[0]} is of onnx and pt2" in done.err


# ---- with MLflow itself --------------------------------------------------------------------------


def run_there(program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of MLflow's environment, where nothing is reported to anybody."""
    return subprocess.run(
        [MLFLOW / program, *map(str, arguments)],
        cwd=cwd,
        env={
            "PATH": f"{MLFLOW}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Else it wants a database, which the small package of MLflow lacks.
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "MLFLOW_TRACKING_URI": (cwd / "runs").as_uri(),
        },
        capture_output=True,
        text=True,
        check=False,
    )


def done_there(program: str, *arguments: object, cwd: Path) -> str:
    done = run_there(program, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command line wrote for MLflow; read only, by agreement."""
    if not (MLFLOW / "mlflow").exists():
        pytest.skip("needs MLflow in an environment of its own: make mlflow")
    folder = tmp_path_factory.mktemp("mlflow") / "saved"
    options = ["--model", model_folder, "--format", "mlflow", "--out", folder]
    out = done_there("riskmtl", "export", *options, cwd=folder.parent)
    assert out.startswith(f"MLflow model: {folder}\nscore with it: mlflow models predict -m ")
    return folder


PREDICT = """
import sys, mlflow, pandas as pd
given = pd.read_json(sys.argv[2], orient="split", dtype=False, convert_dates=False)
{change}
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(given).to_json(orient="records"))
"""


@pytest.fixture(scope="module")
def table(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as JSON of pandas."""
    path = tmp_path_factory.mktemp("tables") / "rows.json"
    dated = rows.with_columns(pl.col(pl.Date).cast(pl.String))
    as_pandas(dated).to_json(path, orient="split")
    return path


@pytest.mark.slow
def test_the_folder_holds_the_model_as_it_is(
    saved: Path, model_folder: Path, frames: FrameScorer, model: RiskModel
) -> None:
    copy = saved / "data" / model_folder.name
    names = [p.relative_to(model_folder) for p in model_folder.rglob("*") if p.is_file()]
    assert [p.relative_to(copy) for p in copy.rglob("*") if p.is_file()] == names
    _, changed, unread = filecmp.cmpfiles(model_folder, copy, names, shallow=False)
    assert (changed, unread) == ([], [])
    others = {path.name for path in saved.iterdir()} - {"data"}
    assert others == {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
    said = yaml.safe_load((saved / "MLmodel").read_text())
    inputs = json.loads(said["signature"]["inputs"])
    assert [(c["name"], c["type"], c["required"]) for c in inputs] == frames.inputs()
    outputs = json.loads(said["signature"]["outputs"])
    assert [(c["name"], c["type"], c["required"]) for c in outputs] == frames.outputs()
    assert said["metadata"]["riskmtl"]["model_id"] == model.lineage["model_id"]
    assert "riskmtl[mlflow]==" in (saved / "requirements.txt").read_text()


@pytest.mark.slow
def test_mlflow_loads_and_scores_it(
    saved: Path, table: Path, expected: pl.DataFrame, tmp_path: Path
) -> None:
    code = PREDICT.format(change="")
    found = json.loads(done_there("python", "-c", code, saved, table, cwd=tmp_path))
    assert_scores(pd.DataFrame(found), expected)
    assert found[3]["_rule"] == "acc_income: below 0"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_command_of_mlflow_scores_a_file(
    kind: str, saved: Path, rows: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path
) -> None:
    given = tmp_path / f"given.{kind}"
    if kind == "csv":
        rows.write_csv(given)
    else:
        dated = rows.with_columns(pl.col(pl.Date).cast(pl.String))
        given.write_text(json.dumps({"dataframe_records": dated.to_dicts()}))
    files = ["-m", saved, "-i", given, "-t", kind, "-o", tmp_path / "out.json"]
    done_there("mlflow", "models", "predict", *files, "--env-manager", "local", cwd=tmp_path)
    found = pd.DataFrame(json.loads((tmp_path / "out.json").read_text())["predictions"])
    assert_scores(found, expected)
    assert found["_rule"][3] == "acc_income: below 0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("given['account_id'] = range(len(given))", "Incompatible input types for column account_"),
        ("given = given.drop(columns='acc_income')", "missing inputs ['acc_income']"),
        ("given['acc_region'] = 75", "column 'acc_region' is Int64 in the table"),
    ],
)
def test_a_wrong_table_is_refused(
    change: str, message: str, saved: Path, table: Path, tmp_path: Path
) -> None:
    code = PREDICT.format(change=change)
    done = run_there("python", "-c", code, saved, table, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr


def flipped(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def added(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (flipped, "weights.safetensors: changed since the model was written"),
        (added, "model.pkl: not listed in the manifest"),
    ],
)
def test_a_changed_folder_is_refused(
    tamper: Callable[[Path], None], message: str, saved: Path, table: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    tamper(copy / "data" / "model")
    done = run_there("python", "-c", PREDICT.format(change=""), copy, table, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr


LOG = """
import sys, mlflow, pandas as pd
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.mlflow_flavour import mlflow_arguments
given = pd.read_json(sys.argv[2], orient="split", dtype=False, convert_dates=False)
with mlflow.start_run():
    settings = ScoreSettings(graded=("fraud",))
    arguments = mlflow_arguments(sys.argv[1], settings=settings)
    logged = mlflow.pyfunc.log_model(name="risk", **arguments)
for config in (None, {"challenger": True}):
    print(*mlflow.pyfunc.load_model(logged.model_uri, model_config=config).predict(given))
"""


@pytest.mark.slow
def test_it_is_logged_in_a_run(
    saved: Path, model_folder: Path, table: Path, tmp_path: Path
) -> None:
    out = done_there("python", "-c", LOG, model_folder, table, cwd=tmp_path)
    own, changed = (line.split() for line in out.splitlines() if line.startswith("account_id"))
    assert [name for name in own if name.startswith("grade_")] == ["grade_fraud"]
    assert set(changed) - set(own) == {f"p_{head}_challenger" for head in HEADS}


TYPED = """
import sys, mlflow, pandas as pd
from mlflow.models import ModelSignature, set_signature
from mlflow.types import ColSpec, Schema
given = pd.read_json(sys.argv[2], orient="split", dtype=False, convert_dates=False)
declared = {"acc_income": "double", "acc_tenure_months": "long", "dev_os": "string"}
refused = []
for name, values in {"acc_income": 30000, "acc_tenure_months": None, "dev_os": None}.items():
    loaded = mlflow.pyfunc.load_model(sys.argv[1])
    typed = ColSpec(declared[name], name)
    columns = [typed if c.name == name else c for c in loaded.metadata.get_input_schema()]
    set_signature(sys.argv[1], ModelSignature(Schema(columns)))
    kind = float if values is None else int
    changed = given.assign(**{name: pd.Series(values, given.index, kind)})
    try:
        mlflow.pyfunc.load_model(sys.argv[1]).predict(changed)
    except mlflow.MlflowException as error:
        refused.append(name)
    set_signature(sys.argv[1], loaded.metadata.signature)
    assert not mlflow.pyfunc.load_model(sys.argv[1]).predict(changed)["p_default"].isna().all()
print(*refused)
"""


@pytest.mark.slow
def test_types_of_mlflow_would_refuse_good_tables(saved: Path, table: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    out = done_there("python", "-c", TYPED, copy, table, cwd=tmp_path)
    assert out.split() == ["acc_income", "acc_tenure_months", "dev_os"]


SAVE = """
import sys
from pathlib import Path
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.mlflow_flavour import save_mlflow
Path("full").mkdir()
Path("full/other").touch()
for out in ("full", "full/other"):
    try:
        save_mlflow(sys.argv[1], out)
    except ValueError as error:
        print(error)
print(*sorted(Path().iterdir()))
"""


@pytest.mark.slow
def test_nothing_is_written_over(saved: Path, model_folder: Path, tmp_path: Path) -> None:
    out = done_there("python", "-c", SAVE, model_folder, cwd=tmp_path)
    assert out.splitlines() == [
        "full: holds something already; choose a new folder",
        "full/other: holds something already; choose a new folder",
        "full",
    ]
