"""The command line: what each verb writes, and how it refuses what it cannot use."""

import hashlib
import html
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from riskmtl import MultiTaskClassifier, RiskModel, __version__, simulate_portfolio
from riskmtl.schema import Split
from riskmtl.simulate import Portfolio
from riskmtl.validation.evaluation import evaluate_model

Frame = pl.DataFrame
TASKS = ["default", "fraud", "takeover"]


@pytest.fixture
def tiny_file(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny, "epochs": 1, "verbose": False}))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A place for an output in a folder of its own, which shows whatever is left behind."""
    folder = tmp_path / "made"
    folder.mkdir()
    return folder / "output"


def written(frame: Frame, tmp_path: Path, name: str = "data.parquet") -> Path:
    frame.write_parquet(tmp_path / name)
    return tmp_path / name


def scores_in(folder: object) -> Frame:
    assert (Path(str(folder)) / "_MANIFEST.json").exists()
    return pl.read_parquet(f"{folder}/part-*.parquet")


def assert_refused(result: Any, verb: str, *words: str, code: int = 1) -> None:
    """`code` is that of `score`, which tells schedulers more than the other verbs."""
    assert result.code == (code if verb == "score" else 1)
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith(f"riskmtl {verb}: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert result.out == ""


def assert_nothing_written(target: Path) -> None:
    """Nothing but the note and lock of a job that was begun."""
    files = [path.name for path in target.parent.rglob("*") if path.is_file()]
    assert set(files) <= {"_JOB.json", ".lock"}


def arguments(verb: str, data: Path, target: Path, schema: Path, model: Path) -> list[object]:
    source = ["--schema", schema] if verb == "train" else ["--model", model]
    return [verb, "--data", data, "--out", target, *source]


# ---- the way through ---------------------------------------------------------------------------


def test_the_whole_way_from_simulation_to_scores(
    run: Callable[..., Any], tmp_path: Path, schema_file: Path, tiny_file: Path
) -> None:
    data, truth = tmp_path / "new" / "portfolio.parquet", tmp_path / "truth.parquet"
    simulated = run("simulate", "--rows", 3000, "--seed", 5, "--out", data, "--truth", truth)
    assert (simulated.code, simulated.err) == (0, "")
    assert f"3,000 rows: {data}" in simulated.out
    expected = simulate_portfolio(3000, seed=5)
    assert_frame_equal(pl.read_parquet(data), expected.frame)
    assert_frame_equal(pl.read_parquet(truth), expected.truth)

    model = tmp_path / "model"
    trained = run(
        *("train", "--data", data, "--schema", schema_file, "--out", model),
        *("--config", tiny_file, "--set", "verbose=true"),
    )
    assert trained.code == 0
    assert f"model: {model}" in trained.out
    assert "lightgbm" in trained.out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("new", "truth.parquet", "model", "tiny.yaml"),
    }

    record = tmp_path / "evaluation.json"
    evaluated = run("evaluate", "--model", model, "--data", data, "--out", record, "--part", "test")
    assert (evaluated.code, evaluated.err) == (0, "")
    figures = json.loads(record.read_text())["figures"]
    assert [(row["task"], row["model"]) for row in figures] == [
        (task, name) for task in TASKS for name in ("network", "lightgbm")
    ]

    scores = tmp_path / "scores"
    scored = run("score", "--model", model, "--data", data, "--out", scores)
    assert (scored.code, scored.err) == (0, "")
    assert "3,000 of 3,000 rows scored" in scored.out
    assert scores_in(scores).height == 3000


def test_the_console_script(
    model_folder: Path, portfolio: Portfolio, trained: MultiTaskClassifier, tmp_path: Path
) -> None:
    script = Path(sysconfig.get_path("scripts")) / "riskmtl"
    data = written(portfolio.frame.head(50), tmp_path)
    scores = tmp_path / "scores"
    done = subprocess.run(
        [script, "score", "--model", model_folder, "--data", data, "--out", scores],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert scores_in(scores)["p_fraud"].to_numpy() == pytest.approx(
        trained.predict_frame(portfolio.frame.head(50))["fraud"].to_numpy(), abs=1e-6
    )
    failed = subprocess.run(
        [script, "simulate", "--rows", "0", "--out", tmp_path / "no.parquet"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("riskmtl simulate: ")
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "no.parquet").exists()


def test_version(capsys: pytest.CaptureFixture[str], run: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"riskmtl {__version__}\n"


@pytest.mark.parametrize(
    ("extra", "epochs", "network"),
    [
        ([], 1, "mmoe"),
        (["--set", "epochs=2"], 2, "mmoe"),
        (["--set", "epochs=3", "--set", "epochs=2"], 2, "mmoe"),
        (["--set", "network=single_task"], 1, "single_task"),
        (["--set", "network=ple", "--network", "shared_bottom"], 1, "shared_bottom"),
    ],
)
def test_set_wins_over_config_and_network_over_both(
    run: Callable[..., Any],
    tmp_path: Path,
    cards_file: tuple[Path, Path],
    extra: list[str],
    epochs: int,
    network: str,
) -> None:
    data, schema = cards_file
    config = tmp_path / "config.yaml"
    config.write_text(
        "{network: mmoe, epochs: 1, expert_units: [8], shared_units: [8], embedding_dim: 2, "
        "bins: 4, challenger: null, verbose: false, device: cpu}"
    )
    out = tmp_path / "model"
    result = run(
        "train", "--data", data, "--schema", schema, "--out", out, "--config", config, *extra
    )
    assert result.code == 0, result.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["shape"]["network"] == network
    parameters = manifest["estimator"]["parameters"]
    assert (parameters["epochs"], parameters["network"]) == (epochs, network)
    assert parameters["expert_units"] == [8]
    assert not (out / "challenger").exists()


@pytest.fixture
def cards_file(cards: Frame, tmp_path: Path) -> tuple[Path, Path]:
    """Files of the small table and of its schema, with a random split."""
    schema = {
        "name": "cards",
        "fields": [
            {"name": "id", "type": "integer", "role": "key"},
            {"name": "amount", "type": "number", "missingValues": -9},
            {"name": "country", "type": "string"},
        ],
        "tasks": [
            {"name": "default", "label": "bad", "positive": "late", "negative": "paid"},
            {"name": "fraud", "label": "is_fraud", "positive": 1, "negative": 0},
        ],
        "split": {"validation": {"share": 0.3}},
    }
    path = tmp_path / "cards.yaml"
    path.write_text(yaml.safe_dump(schema))
    return written(
        cards.select("id", "amount", "country", "bad", "is_fraud"), tmp_path, "cards.parquet"
    ), path


def test_values_are_read_as_they_are_meant(
    run: Callable[..., Any],
    tmp_path: Path,
    cards_file: tuple[Path, Path],
) -> None:
    """YAML takes 1e-3 for a text and 32 for a number."""
    data, schema = cards_file
    out, config = tmp_path / "model", tmp_path / "config.yaml"
    config.write_text("{epochs: 1, challenger: null, verbose: false, weight_decay: 1e-3}")
    result = run(
        *("train", "--data", data, "--schema", schema, "--out", out, "--config", config),
        *("--set", "learning_rate=1e-3", "--set", "precision=32", "--set", "clip=2E0"),
    )
    assert result.code == 0, result.err
    parameters = RiskModel.load(out).made_by["parameters"]
    assert parameters["weight_decay"] == 0.001
    assert (parameters["learning_rate"], parameters["precision"]) == (0.001, "32")
    assert parameters["clip"] == 2


def test_training_replaces_an_older_model(
    run: Callable[..., Any], cards_file: tuple[Path, Path], tiny_file: Path, tmp_path: Path
) -> None:
    data, schema = cards_file
    out = tmp_path / "model"
    train = ("train", "--data", data, "--schema", schema, "--out", out, "--config", tiny_file)
    assert run(*train).code == 0
    assert run(*train, "--set", "challenger=null").code == 0
    assert not (out / "challenger").exists()
    assert RiskModel.load(out).tasks == ["default", "fraud"]


def test_a_schema_without_validation_part(
    run: Callable[..., Any], cards_file: tuple[Path, Path], tiny_file: Path, tmp_path: Path
) -> None:
    data, schema = cards_file
    values = yaml.safe_load(schema.read_text())
    del values["split"]
    schema.write_text(yaml.safe_dump(values))
    out = tmp_path / "model"
    result = run("train", "--data", data, "--schema", schema, "--out", out, "--config", tiny_file)
    assert result.code == 0, result.err
    assert RiskModel.load(out).lineage["rows"] == 340  # 15 % are held out


# ---- evaluation --------------------------------------------------------------------------------


def test_evaluation_file_says_what_was_measured_on_what(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    parts: Split,
    trained: MultiTaskClassifier,
    target: Path,
) -> None:
    result = run(
        *("evaluate", "--model", model_folder, "--data", portfolio_file),
        *("--out", target, "--part", "validation"),
    )
    assert result.code == 0, result.err
    record = json.loads(target.read_text())
    manifest = (model_folder / "manifest.json").read_bytes()
    assert record["model_id"] == hashlib.sha256(manifest).hexdigest()
    assert record["schema_sha256"] == trained.schema.hash
    assert record["version"] == __version__
    expected = evaluate_model(trained.model_, parts.validation)
    for row, wanted in zip(record["figures"], expected.to_dicts(), strict=True):
        assert list(row) == list(wanted)
        assert (row["task"], row["model"], row["events"]) == (
            *(wanted["task"], wanted["model"]),
            wanted["events"],
        )
        assert row["observed"] == wanted["observed"]
        for metric in ("rate", "roc_auc", "average_precision", "brier", "log_loss"):
            assert row[metric] == pytest.approx(wanted[metric], abs=1e-5)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("part", ["train", "validation", "test", "all"])
def test_part_selects_the_rows_of_the_split(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    portfolio: Portfolio,
    parts: Split,
    target: Path,
    part: str,
) -> None:
    result = run(
        *("evaluate", "--model", model_folder, "--data", portfolio_file),
        *("--out", target, "--part", part),
    )
    assert result.code == 0, result.err
    rows = portfolio.frame if part == "all" else getattr(parts, part)
    figures = json.loads(target.read_text())["figures"]
    observed = {row["task"]: row["observed"] for row in figures}
    # The table is null wherever an outcome is not observed, so its counts need no schema.
    assert observed == {task: rows[task].count() for task in TASKS}


def test_evaluation_of_one_row_has_empty_figures_not_invalid_json(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    data = written(portfolio.frame.tail(1), tmp_path)
    result = run("evaluate", "--model", model_folder, "--data", data, "--out", target)
    assert result.code == 0, result.err

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    figures = json.loads(target.read_text(), parse_constant=refuse)["figures"]
    assert all(row["roc_auc"] is None for row in figures)


def test_evaluation_needs_a_schema(
    run: Callable[..., Any], cards: Frame, tmp_path: Path, target: Path, tiny: dict[str, Any]
) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    folder = tmp_path / "model"
    MultiTaskClassifier(**{**tiny, "epochs": 1, "challenger": None}).fit(x, y).save(folder)
    data = written(x, tmp_path)
    result = run("evaluate", "--model", folder, "--data", data, "--out", target)
    assert_refused(result, "evaluate", str(folder), "schema")
    assert_nothing_written(target)


# ---- scoring -----------------------------------------------------------------------------------


def test_scores_have_keys_time_and_columns_per_task(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    portfolio: Portfolio,
    trained: MultiTaskClassifier,
    target: Path,
) -> None:
    moment = "2026-01-02T03:04:05"
    result = run(
        *("score", "--model", model_folder, "--data", portfolio_file, "--out", target),
        *("--time", moment),
    )
    assert result.code == 0, result.err
    scores = scores_in(target)
    keys = ["account_id", "snapshot_date"]
    assert scores.columns == [
        *("_row", *keys, "p_default", "margin_default", "grade_default", "p_fraud"),
        *("margin_fraud", "p_takeover", "margin_takeover", "quarantined"),
    ]
    assert_frame_equal(scores.select(keys), portfolio.frame.select(keys))
    for task in TASKS:
        expected = trained.predict_frame(portfolio.frame)[task].to_numpy()
        assert np.abs(scores[f"p_{task}"].to_numpy() - expected).max() <= 1e-6
    metadata = pl.read_parquet_metadata(target / "part-0000-00000.parquet")
    lineage = json.loads(metadata["riskmtl"])
    manifest = (model_folder / "manifest.json").read_bytes()
    rows = {"start": 0, "rows": portfolio.frame.height}
    assert (lineage["version"], lineage["time"]) == (__version__, moment)
    assert lineage["model_id"] == hashlib.sha256(manifest).hexdigest()
    assert lineage["schema_sha256"] == trained.schema.hash
    assert lineage["settings"]["graded"] == ["default"]
    assert lineage["input"].items() >= {"name": portfolio_file.name, **rows}.items()
    assert len(lineage["input"]["fingerprint"]) == 64
    assert list(target.parent.iterdir()) == [target]


def test_scoring_needs_no_labels(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    unlabelled = portfolio.frame.drop(*TASKS, "approved", "gender").head(100)
    shuffled = unlabelled.select(reversed(unlabelled.columns))
    data = written(shuffled, tmp_path)
    result = run("score", "--model", model_folder, "--data", data, "--out", target)
    assert result.code == 0, result.err
    whole = written(portfolio.frame.head(100), tmp_path, "whole.parquet")
    assert run("score", "--model", model_folder, "--data", whole, "--out", f"{target}2").code == 0
    tasks = [f"p_{task}" for task in TASKS]
    assert_frame_equal(scores_in(target).select(tasks), scores_in(f"{target}2").select(tasks))


def test_new_categories_and_missing_values_are_no_errors(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    new = portfolio.frame.head(40).with_columns(
        pl.lit("a merchant of next year").alias("txn_main_merchant"),
        pl.lit(None, pl.String).alias("dev_model"),
        pl.lit(None).alias("acc_region"),
        pl.lit(None, pl.Float64).alias("acc_income"),
        pl.lit(-99, pl.Int64).alias("acc_bureau_score"),
    )
    data = written(new, tmp_path)
    result = run("score", "--model", model_folder, "--data", data, "--out", target)
    assert (result.code, result.err) == (0, "")
    assert scores_in(target).select(pl.col("^p_.*$").is_between(0, 1).all()).row(0) == (
        *(True, True, True),
    )


def test_one_row_can_be_scored(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    data = written(portfolio.frame.head(1), tmp_path)
    result = run("score", "--model", model_folder, "--data", data, "--out", target)
    assert result.code == 0, result.err
    assert scores_in(target).height == 1


def broken(frame: Frame) -> Frame:
    """Three rows of a hundred that break the schema: rows 10 and 30 one rule, row 20 another."""
    row = pl.int_range(pl.len())
    return frame.head(100).with_columns(
        acc_age=pl.when(row.is_in([10, 30])).then(5).otherwise(pl.col("acc_age")),
        acc_income=pl.when(row == 20).then(float("inf")).otherwise(pl.col("acc_income")),
    )


def test_too_many_bad_rows_are_refused(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    data = written(broken(portfolio.frame), tmp_path)
    for share in ([], ["--max-bad", "2%"], ["--max-bad", "0.02"]):
        result = run("score", "--model", model_folder, "--data", data, "--out", target, *share)
        words = (
            data.name,
            "3 of",
            "100 rows",
            "acc_age: below 18",
            "2 rows",
            "row 10",
            "--max-bad",
        )
        assert_refused(result, "score", *words, code=3)
        assert not (target / "_MANIFEST.json").exists()
        shutil.rmtree(target)


@pytest.mark.parametrize("share", ["3%", "0.03", "1", "100%"])
def test_accepted_bad_rows_go_to_the_quarantine(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio: Portfolio,
    tmp_path: Path,
    target: Path,
    share: str,
) -> None:
    frame = broken(portfolio.frame)
    data = written(frame, tmp_path)
    score = ("score", "--model", model_folder, "--data", data, "--out", target)
    result = run(*score, "--max-bad", share)
    assert result.code == 0, result.err
    quarantine = pl.read_parquet(target / "quarantine" / "*.parquet")
    assert "97 of 100 rows scored" in result.out
    assert "refused 2 rows: acc_age: below 18" in result.out
    assert quarantine["_row"].to_list() == [10, 20, 30]
    assert quarantine["_rule"].to_list() == [
        "acc_age: below 18",
        "acc_income: infinite",
        "acc_age: below 18",
    ]
    read = quarantine.drop("_row", "_rule")
    assert_frame_equal(read, frame[[10, 20, 30]].select(read.columns))
    keys = ["account_id", "snapshot_date"]
    scores = scores_in(target)
    assert_frame_equal(scores.select(keys), frame.select(keys))
    assert scores["quarantined"].arg_true().to_list() == [10, 20, 30]
    assert scores["p_fraud"].is_null().arg_true().to_list() == [10, 20, 30]


def test_a_finished_job_is_kept_continued_or_replaced_as_asked(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    data = written(portfolio.frame.head(60), tmp_path)
    score = ("score", "--model", model_folder, "--data", data, "--out", target)
    assert run(*score).code == 0
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert_refused(run(*score), "score", str(target), "--resume", "--restart", code=6)
    again = run(*score, "--resume")
    assert (again.code, "60 of them were scored before" in again.out) == (0, True)
    assert {p: p.read_bytes() for p in target.rglob("*") if p.is_file()} == before
    # A later job without refused rows leaves nothing of an earlier one.
    written(broken(portfolio.frame), tmp_path)
    assert_refused(run(*score, "--resume"), "score", "another input", "data.parquet", code=6)
    assert run(*score, "--restart", "--max-bad", "5%").code == 0
    assert (target / "quarantine").exists()
    written(portfolio.frame.head(60), tmp_path)
    assert run(*score, "--restart").code == 0
    assert not (target / "quarantine").exists()
    assert scores_in(target).height == 60


def test_every_row_may_be_refused(
    run: Callable[..., Any], model_folder: Path, portfolio: Portfolio, target: Path, tmp_path: Path
) -> None:
    data = written(portfolio.frame.head(20).with_columns(acc_age=pl.lit(5)), tmp_path)
    result = run(
        "score", "--model", model_folder, "--data", data, "--out", target, "--max-bad", "100%"
    )
    assert result.code == 0, result.err
    assert scores_in(target)["quarantined"].all()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_max_bad_leaves_rows_out_and_says_so(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio: Portfolio,
    schema_file: Path,
    tiny_file: Path,
    target: Path,
    tmp_path: Path,
    verb: str,
) -> None:
    row = pl.int_range(pl.len())
    frame = portfolio.frame.with_columns(
        acc_age=pl.when(row < 3).then(5).otherwise(pl.col("acc_age"))
    )
    data = written(frame, tmp_path)
    call = arguments(verb, data, target, schema_file, model_folder)
    assert_refused(run(*call), verb, str(data), "acc_age: below 18", "3 of 6,000")
    assert_nothing_written(target)
    settings = ["--config", tiny_file, "--set", "challenger=null"] if verb == "train" else []
    result = run(*call, "--max-bad", "1%", *settings)
    assert result.code == 0, result.err
    assert "left out 3 rows: acc_age: below 18" in result.err


# ---- tables that cannot be used ----------------------------------------------------------------


def _value(name: str, value: Any, row: int = 7) -> Callable[[Frame], Frame]:
    """Put a value into one row of a column."""
    chosen = pl.int_range(pl.len()) == row
    return lambda f: f.with_columns(pl.when(chosen).then(value).otherwise(pl.col(name)).alias(name))


def _whole(name: str, value: Any, dtype: Any = None) -> Callable[[Frame], Frame]:
    """Put one value into every row of a column."""
    return lambda f: f.with_columns(pl.lit(value, dtype).alias(name))


BAD_COLUMNS = {
    "missing column": (lambda f: f.drop("acc_income"), "acc_income"),
    "missing key": (lambda f: f.drop("account_id"), "account_id"),
    "missing time": (lambda f: f.drop("snapshot_date"), "snapshot_date"),
    "extra column": (_whole("surplus", 1), "surplus"),
    "text for numbers": (lambda f: f.cast({"acc_income": pl.String}), "acc_income"),
    "numbers for text": (_whole("acc_region", 4), "acc_region"),
    "numbers for booleans": (lambda f: f.cast({"dev_vpn": pl.Int8}), "dev_vpn"),
    "text for dates": (lambda f: f.cast({"acc_opened_date": pl.String}), "acc_opened_date"),
    "lists": (lambda f: f.with_columns(pl.concat_list("acc_income")), "acc_income"),
    "infinite": (_value("acc_income", float("inf")), "acc_income"),
    "infinite, whole numbers": (_value("acc_tenure_months", float("inf")), "acc_tenure_months"),
    "too large for float32": (_value("acc_income", 1e300), "acc_income"),
    "below the minimum": (_value("acc_age", 3), "acc_age"),
    "key without value": (_value("account_id", None), "account_id"),
    "empty": (lambda f: f.head(0), "data.parquet"),
}
BAD_LABELS = {
    "missing label": (lambda f: f.drop("fraud"), "fraud"),
    "neither of two values": (_value("fraud", 2), "fraud"),
    "text labels": (lambda f: f.cast({"fraud": pl.String}), "fraud"),
    "missing filter": (lambda f: f.drop("approved"), "approved"),
}
BAD_TRAINING = {
    "no observed label": (_whole("takeover", None, pl.Int8), "takeover"),
    "no observed label, null": (_whole("takeover", None), "takeover"),
    "one class": (_whole("takeover", 0), "takeover"),
    "one row": (lambda f: f.head(1), "split"),
    "constant column": (_whole("acc_income", 5.0), "acc_income"),
    "constant category": (_whole("acc_region", "north"), "acc_region"),
    "missing everywhere": (_whole("acc_income", None, pl.Float64), "acc_income"),
    "missing everywhere, null": (_whole("acc_region", None), "acc_region"),
    "missing everywhere, NaN": (_whole("acc_income", float("nan")), "acc_income"),
    "missing everywhere, code": (_whole("acc_bureau_score", -9), "acc_bureau_score"),
}
CASES = [
    pytest.param(verb, *case, id=f"{verb}: {name}")
    for verb, cases in {
        "train": BAD_COLUMNS | BAD_LABELS | BAD_TRAINING,
        "evaluate": BAD_COLUMNS | BAD_LABELS,
        "score": BAD_COLUMNS,
    }.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize(("verb", "spoil", "word"), CASES)
def test_a_bad_table_is_refused_in_one_line(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio: Portfolio,
    schema_file: Path,
    target: Path,
    tmp_path: Path,
    verb: str,
    spoil: Callable[[Frame], Frame],
    word: str,
) -> None:
    data = written(spoil(portfolio.frame), tmp_path)
    result = run(*arguments(verb, data, target, schema_file, model_folder))
    assert_refused(result, verb, word, code=3 if "rows break" in result.err else 1)
    if verb != "score":
        assert_nothing_written(target)
    assert not (target / "_MANIFEST.json").exists()


@pytest.mark.parametrize("dtype", [pl.Boolean, pl.Float64, pl.Int64, pl.UInt8])
def test_labels_of_any_type_that_holds_zero_and_one(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio: Portfolio,
    target: Path,
    tmp_path: Path,
    dtype: Any,
) -> None:
    """A type that can hold a label is read or refused in one line."""
    data = written(portfolio.frame.cast({"fraud": dtype}), tmp_path)
    result = run("evaluate", "--model", model_folder, "--data", data, "--out", target)
    if result.code:
        assert_refused(result, "evaluate", "fraud")
    else:
        figures = json.loads(target.read_text())["figures"]
        events = {row["task"]: row["events"] for row in figures}
        assert events["fraud"] == portfolio.frame["fraud"].sum()


@pytest.mark.parametrize("tasks", [["default"], TASKS])
def test_validation_rows_without_events(
    run: Callable[..., Any],
    portfolio: Portfolio,
    parts: Split,
    schema_file: Path,
    tiny_file: Path,
    target: Path,
    tmp_path: Path,
    tasks: list[str],
) -> None:
    """A rare outcome may not occur among the validation rows: train, or say so in one line."""
    first = parts.validation["snapshot_date"].min()
    frame = portfolio.frame.with_columns(
        pl.when(pl.col("snapshot_date") >= first, pl.col(task).is_not_null())
        .then(0)
        .otherwise(pl.col(task))
        .alias(task)
        for task in tasks
    )
    data = written(frame, tmp_path)
    result = run(
        "train", "--data", data, "--schema", schema_file, "--out", target, "--config", tiny_file
    )
    if result.code:
        assert_refused(result, "train")
        assert_nothing_written(target)
    else:
        assert RiskModel.load(target).tasks == TASKS


# ---- files that cannot be read -----------------------------------------------------------------


def _truncated(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes()[:-100])


def _head_only(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes()[:5000])


def _zeros_inside(source: Path, path: Path) -> None:
    data = bytearray(source.read_bytes())
    data[4:60_000] = bytes(59_996)
    path.write_bytes(data)


def _footer(source: Path, path: Path) -> None:
    data = bytearray(source.read_bytes())
    data[-3000:-1000] = b"\xff" * 2000
    path.write_bytes(data)


def _csv(source: Path, path: Path) -> None:
    pl.read_parquet(source).head(5).write_csv(path)


BAD_FILES: dict[str, Callable[[Path, Path], object]] = {
    "truncated": _truncated,
    "head only": _head_only,
    "zeros inside": _zeros_inside,
    "damaged footer": _footer,
    "CSV": _csv,
    "empty file": lambda _, path: path.write_bytes(b""),
    "a folder": lambda _, path: path.mkdir(),
    "missing": lambda _, path: None,
}


@pytest.mark.parametrize("verb", ["train", "evaluate", "score"])
@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_in_one_line(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    schema_file: Path,
    target: Path,
    tmp_path: Path,
    verb: str,
    make: Callable[[Path, Path], object],
) -> None:
    data = tmp_path / "bad.parquet"
    make(portfolio_file, data)
    result = run(*arguments(verb, data, target, schema_file, model_folder))
    assert_refused(result, verb, str(data), code=4)
    assert_nothing_written(target)


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--network", "pel"], ["network", "'pel'", "'ple'"]),
        (["--network", "shared_botom"], ["'shared_bottom'"]),
        (["--set", "epoch=2"], ["'epoch'", "'epochs'"]),
        (["--set", "schema=other.yaml"], ["'schema'"]),
        (["--set", "epochs"], ["--set epochs", "KEY=VALUE"]),
        (["--set", "epochs=[1"], ["epochs"]),
        (["--set", "=3"], ["''"]),
        (["--set", "epochs=0"], ["epochs"]),
        (["--set", "epochs=many"], ["epochs", "many"]),
        (["--set", "epochs=2.5"], ["epochs", "2.5"]),
        (["--set", "learning_rate=fast"], ["learning_rate", "fast"]),
        (["--set", "dropout=high"], ["dropout", "high"]),
        (["--set", "dropout=1.5"], ["dropout", "1.5"]),
        (["--set", "weight_decay=much"], ["weight_decay", "much"]),
        (["--set", "validation_share=half"], ["validation_share", "half"]),
        (["--set", "task_weights=3"], ["task_weights"]),
        (["--set", "task_weights={frod: 2}"], ["task_weights", "'frod'", "'fraud'"]),
        (["--set", "event_weight=balance"], ["event_weight", "'balanced'"]),
        (["--set", "event_weight=5"], ["event_weight"]),
        (["--set", "min_count=few"], ["min_count", "few"]),
        (["--set", "categorical_features=5"], ["categorical_features"]),
        (["--set", "regression_tasks=[amount]"], ["regression_tasks", "amount"]),
        (["--set", "regression_tasks=amount"], ["regression_tasks must be a list", "'amount'"]),
        (["--set", "regression_tasks=5"], ["regression_tasks must be a list", "5"]),
        (["--set", "calibrate=maybe"], ["calibrate must be true or false", "'maybe'"]),
        (["--set", "compile=x"], ["compile must be true or false", "'x'"]),
        (["--set", "checkpoint_dir=5"], ["checkpoint_dir must be", "5"]),
        (["--set", "expert_units=16"], ["expert_units"]),
        (["--set", "expert_units=null"], ["expert_units"]),
        (["--set", "monitor=auc"], ["monitor", "'auc'"]),
        (["--set", "device=gpu"], ["device", "'gpu'"]),
        (["--set", "challenger=lightgbn"], ["challenger", "'lightgbm'"]),
        (["--set", "challenger_options={trial: 2}"], ["challenger_options", "'trials'"]),
        (["--set", "challenger_options={n_estimators: 0}"], ["n_estimators"]),
        (["--set", "challenger_options=3"], ["challenger_options"]),
        (["--set", "trainer_options={max_epoch: 1}"], ["max_epoch"]),
        (["--set", "trainer_options={val_check_interval: 0.5}"], ["val_check_interval"]),
        (["--set", "trainer_options={num_sanity_val_steps: 2}"], ["num_sanity_val_steps"]),
        (["--set", "trainer_options=3"], ["trainer_options"]),
        (["--set", "random_state=abc"], ["random_state", "abc"]),
        (["--set", "random_state=-1"], ["random_state"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_bad_option_is_refused_in_one_line(
    run: Callable[..., Any],
    portfolio_file: Path,
    schema_file: Path,
    tiny: dict[str, Any],
    target: Path,
    tmp_path: Path,
    extra: list[str],
    words: list[str],
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**tiny, "epochs": 1, "verbose": False}))
    result = run(
        *("train", "--data", portfolio_file, "--schema", schema_file, "--out", target),
        *("--config", config, *extra),
    )
    assert_refused(result, "train", *words)
    assert_nothing_written(target)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [1", []),
        (b"\xff\xfe\x00bad", []),
        (b"", ["mapping"]),
        (b"- epochs", ["mapping"]),
        (b"epoch: 2", ["'epoch'", "'epochs'"]),
        (b"1: 2", ["1"]),
        (b"epochs: 1\nepochs: 3", ["'epochs' is written twice"]),
        (None, []),
    ],
)
def test_a_bad_config_file_is_refused_in_one_line(
    run: Callable[..., Any],
    portfolio_file: Path,
    schema_file: Path,
    target: Path,
    tmp_path: Path,
    content: bytes | None,
    words: list[str],
) -> None:
    config = tmp_path / "config.yaml"
    if content is not None:
        config.write_bytes(content)
    result = run(
        *("train", "--data", portfolio_file, "--schema", schema_file, "--out", target),
        *("--config", config),
    )
    assert_refused(result, "train", *(words if b"2" in (content or b"") else [str(config), *words]))
    assert_nothing_written(target)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("role: numeric,     constraints: {minimum: 0}}", "role: numerics}", "'numeric'"),
        ("title:", "titel:", "'title'"),
        ("name: acc_income,", "name: acc_age,", "'acc_age'"),
        ("fields:", "fields: [", "YAML"),
    ],
)
def test_a_mistake_in_the_schema_is_refused_in_one_line(
    run: Callable[..., Any],
    portfolio_file: Path,
    schema_file: Path,
    target: Path,
    tmp_path: Path,
    old: str,
    new: str,
    word: str,
) -> None:
    spoilt = tmp_path / "schema.yaml"
    text = schema_file.read_text()
    assert old in text
    spoilt.write_text(text.replace(old, new, 1))
    result = run("train", "--data", portfolio_file, "--schema", spoilt, "--out", target)
    assert_refused(result, "train", str(spoilt), word)
    assert_nothing_written(target)


def test_a_missing_schema_is_refused_in_one_line(
    run: Callable[..., Any], portfolio_file: Path, target: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "no.yaml"
    result = run("train", "--data", portfolio_file, "--schema", schema, "--out", target)
    assert_refused(result, "train", str(schema))
    assert_nothing_written(target)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rows", 0], "row"),
        (["--rows", -5], "row"),
        (["--relatedness", 1.5], "relatedness"),
        (["--relatedness", "nan"], "relatedness"),
        (["--months", 0], "months"),
        (["--seed", -1], "seed"),
    ],
)
def test_a_portfolio_that_cannot_be_is_refused_in_one_line(
    run: Callable[..., Any], target: Path, options: list[object], word: str
) -> None:
    assert_refused(run("simulate", "--out", target, *options), "simulate", word)
    assert_nothing_written(target)


@pytest.mark.parametrize(
    ("call", "verb", "word"),
    [
        ([], "", "VERB"),
        (["trian"], "", "trian"),
        (["simulate"], "simulate", "--out"),
        (["simulate", "--rows", "many", "--out", "x"], "simulate", "--rows"),
        (["train", "--data", "x", "--schema", "y"], "train", "--out"),
        (["train", "--data", "x", "--schema", "y", "--out", "z", "--size", "3"], "", "--size"),
        (["score", "--model", "x", "--data", "y"], "score", "--out"),
        (["evaluate", "--model", "x", "--data", "y", "--out", "z", "--part", "tests"], "", "tests"),
        *(
            (["score", "--model", "x", "--data", "y", "--out", "z", "--max-bad", share], "", share)
            for share in ("101%", "-0.1", "2", "few", "nan", "%")
        ),
        *(
            (["tune", "--data", "x", "--schema", "y", "--out", "z", "--timeout", t], "tune", t)
            for t in ("0", "-3", "nan", "inf", "soon")
        ),
    ],
)
def test_a_wrong_call_exits_with_two(
    run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: list[str],
    verb: str,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*call)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"riskmtl {verb}".strip())
    assert "error: " in last
    assert word in last
    assert list(tmp_path.iterdir()) == []


# ---- diagnosis ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "page.html"])
def test_a_diagnosis_is_said_and_written(
    run: Callable[..., Any], model_folder: Path, target: Path, name: str
) -> None:
    result = run("diagnose", "--model", model_folder, "--out", target / name)
    page = target / name / "diagnosis.html" if name == "folder" else target / name
    assert (result.code, result.err) == (0, "")
    *sentences, last = result.out.splitlines()
    assert last == f"diagnosis: {page}"
    assert sentences
    assert all(sentence.endswith(".") for sentence in sentences)
    text = html.unescape(page.read_text())
    assert all(sentence in text for sentence in sentences)
    assert [path for path in target.rglob("*") if path.is_file()] == [page]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("no history", ["does not keep what the training of its heads", "train it again"]),
        ("trees", ["a model of kind 'lightgbm' has no epochs"]),
        ("no model", ["not a model"]),
        ("another file", ["is a file; choose a folder"]),
        ("in the model", ["is within the model"]),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(
    run: Callable[..., Any], model_copy: Path, target: Path, problem: str, words: list[str]
) -> None:
    model = model_copy
    if problem == "no history":
        loaded = MultiTaskClassifier.load(model_copy)
        loaded.model_.history = None
        loaded.save(model_copy)
    if problem == "trees":
        model = model_copy / "challenger"
    if problem == "no model":
        model = target.parent
    if problem == "another file":
        target.write_text("dear")
    if problem == "in the model":
        target = model_copy / "new"
    result = run("diagnose", "--model", model, "--out", target)
    assert_refused(result, "diagnose", *words)
    assert not target.exists() or target.read_text() == "dear"


# ---- places that cannot be written -------------------------------------------------------------


@pytest.mark.parametrize("verb", ["simulate", "train", "evaluate", "score"])
def test_a_folder_with_other_files_is_left_alone(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    schema_file: Path,
    tiny_file: Path,
    target: Path,
    verb: str,
) -> None:
    target.mkdir()
    (target / "letters.txt").write_text("dear")
    if verb == "simulate":
        result = run("simulate", "--rows", 50, "--out", target)
    else:
        result = run(*arguments(verb, portfolio_file, target, schema_file, model_folder))
    assert_refused(result, verb, str(target), code=6)
    assert [p for p in target.rglob("*") if p.name[0] != "."] == [target / "letters.txt"]
    assert (target / "letters.txt").read_text() == "dear"


def test_a_model_is_not_written_over_a_file(
    run: Callable[..., Any], portfolio_file: Path, schema_file: Path, target: Path
) -> None:
    target.write_text("dear")
    result = run("train", "--data", portfolio_file, "--schema", schema_file, "--out", target)
    assert_refused(result, "train", str(target), "is a file")
    assert target.read_text() == "dear"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("verb", ["evaluate", "score"])
def test_an_output_does_not_take_the_place_of_its_own_input(
    run: Callable[..., Any],
    model_folder: Path,
    portfolio: Portfolio,
    schema_file: Path,
    tmp_path: Path,
    verb: str,
) -> None:
    data = written(portfolio.frame.head(20), tmp_path)
    before = data.read_bytes()
    result = run(*arguments(verb, data, data, schema_file, model_folder))
    assert_refused(result, verb, str(data), code=6)
    assert data.read_bytes() == before


def test_table_and_truth_need_two_files(run: Callable[..., Any], target: Path) -> None:
    result = run("simulate", "--rows", 50, "--out", target, "--truth", target)
    assert_refused(result, "simulate", "--truth")
    assert_nothing_written(target)


# ---- models that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize("verb", ["evaluate", "score"])
@pytest.mark.parametrize("problem", ["changed weights", "no manifest", "no folder", "a file"])
def test_an_unsound_model_is_refused_in_one_line(
    run: Callable[..., Any],
    model_copy: Path,
    portfolio_file: Path,
    schema_file: Path,
    target: Path,
    tmp_path: Path,
    verb: str,
    problem: str,
) -> None:
    model = model_copy
    if problem == "changed weights":
        data = bytearray((model / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (model / "weights.safetensors").write_bytes(data)
    elif problem == "no manifest":
        (model / "manifest.json").unlink()
    elif problem == "no folder":
        model = tmp_path / "nothing"
    else:
        model = model / "manifest.json"
    result = run(*arguments(verb, portfolio_file, target, schema_file, model))
    assert_refused(result, verb, str(model), code=5)
    assert_nothing_written(target)


# ---- names -------------------------------------------------------------------------------------

ODD_NAMES = [
    'a "quoted" one',
    "l'âge",
    "{braces}",
    "json: [1, {2: 3}]",
    "a,b",
    "größe €",
    " spaces  around ",
    "new\nline",
    "_rows",
    "count",
    "literal",
]
# Names that the package may need for itself, or that polars reads as patterns.
AWKWARD_NAMES = ["_row", "_rule", "*", "^.*am.*$"]
KINDS = ["number", "string", "key"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in ODD_NAMES for k in KINDS],
)
def test_a_column_may_have_any_name(
    run: Callable[..., Any], cards: Frame, tmp_path: Path, tiny_file: Path, name: str, kind: str
) -> None:
    assert train_and_use(run, cards, tmp_path, tiny_file, name, kind).code == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "key") for name in ("p_fraud", "margin_fraud", "grade_fraud", "quarantined")),
        *((n, k) for n in AWKWARD_NAMES for k in KINDS),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_before_training(
    run: Callable[..., Any], cards: Frame, tmp_path: Path, tiny_file: Path, name: str, kind: str
) -> None:
    """Either all verbs work with it, or the first says that they do not."""
    train = train_and_use(run, cards, tmp_path, tiny_file, name, kind)
    if train.code:
        assert_refused(train, "train", name)


def train_and_use(
    run: Callable[..., Any], cards: Frame, tmp_path: Path, tiny_file: Path, name: str, kind: str
) -> Any:
    """Train network and challenger on a column of this name; score and evaluate if that worked."""
    source = {"number": "age", "string": "country", "key": "id"}[kind]
    role = {"role": "key", "type": "integer"} if kind == "key" else {"type": kind}
    schema = tmp_path / "schema.yaml"
    schema.write_text(
        yaml.safe_dump(
            {
                "name": "odd",
                "fields": [{"name": "amount", "type": "number"}, {"name": name, **role}],
                "tasks": [{"name": "fraud", "label": "is_fraud", "positive": 1, "negative": 0}],
            }
        )
    )
    frame = cards.select("amount", pl.col(source).alias(name), "is_fraud")
    data, model, out = written(frame, tmp_path), tmp_path / "model", tmp_path / "scores"
    train = run(
        *("train", "--data", data, "--schema", schema, "--out", model, "--config", tiny_file),
        *("--set", "expert_units=[4]", "--set", "batch_size=400"),
        *("--set", "challenger_options={trials: 1, n_estimators: 3, n_jobs: 1}"),
    )
    if train.code:
        return train
    score = run("score", "--model", model, "--data", data, "--out", out)
    assert score.code == 0, score.err
    keys = [name] if kind == "key" else []
    assert scores_in(out).columns == ["_row", *keys, "p_fraud", "margin_fraud", "quarantined"]
    record = tmp_path / "evaluation.json"
    evaluate = run("evaluate", "--model", model, "--data", data, "--out", record)
    assert evaluate.code == 0, evaluate.err
    assert len(json.loads(record.read_text())["figures"]) == 2
    return train
