"""Scoring with Spark: the same scores as on this machine, whatever happens to its tasks."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from riskmtl import LightGBMBaseline, MultiTaskClassifier, RiskModel
from riskmtl.artefact import ArtefactError, load_model, save_model
from riskmtl.files import TableError
from riskmtl.schema import DataError, RefusedRows
from riskmtl.schema_file import parse_schema
from riskmtl.scoring import spark as engine
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.folder import JobError
from riskmtl.scoring.local import score_files
from riskmtl.scoring.spark import score_spark
from riskmtl.scoring.spark_job import score_files_spark
from riskmtl.scoring.spark_session import SparkError
from riskmtl.simulate import Portfolio

pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java: make java"),
    # Spark says so of releases that it has not been tried with; no frame of pandas is made here.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]

MASTER = "local[2,3]"
KEYS = ["account_id", "snapshot_date"]
BOTH = ScoreSettings(challenger=True, graded=("default", "fraud"))


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Two cores; a task may fail twice; batches are small, so that a partition has several."""
    from pyspark import cloudpickle
    from pyspark.sql import SparkSession

    # What a test does within a worker cannot be imported there.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = (
            SparkSession.builder.master(MASTER)
            .config("spark.ui.enabled", "false")
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "300")
            .config("spark.executorEnv.OMP_NUM_THREADS", "1")
            .config("spark.executorEnv.POLARS_MAX_THREADS", "1")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


@pytest.fixture(scope="module")
def frame(spark: Any, portfolio_file: Path) -> Any:
    return spark.read.parquet(str(portfolio_file))


@pytest.fixture(scope="module")
def expected(
    model_folder: Path, portfolio_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> pl.DataFrame:
    """What the local engine says."""
    out = tmp_path_factory.mktemp("local") / "out"
    model = load_model(model_folder, with_challenger=True)
    score_files(model, portfolio_file, out, BOTH, threads=1)
    return scores_in(out)


@pytest.fixture
def inside(portfolio: Portfolio, tmp_path: Path) -> Path:
    """A folder of three files, one of whose names is a pattern to Spark."""
    folder = tmp_path / "in {x}"
    folder.mkdir()
    for name, start, count in [("a[1]", 0, 4000), ("b 2%20", 4000, 100), ("c*", 4100, 1900)]:
        portfolio.frame.slice(start, count).write_parquet(folder / f"{name}.parquet")
    return folder


def collected(scores: Any) -> pl.DataFrame:
    return pl.DataFrame(scores.toArrow())


def scores_in(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path, glob=False) for path in sorted(folder.glob("part-*"))])


def assert_same(found: pl.DataFrame, expected: pl.DataFrame, keys: list[str] = KEYS) -> None:
    """The same rows, each once, and the same columns; numbers to 1e-6."""
    assert found.columns == [*(name for name in expected.columns if name != "_row"), "_rule"]
    assert found.select(keys).is_duplicated().sum() == 0
    found, expected = found.sort(keys).drop("_rule"), expected.sort(keys).drop("_row")
    assert_frame_equal(
        found, expected.cast({pl.UInt8: pl.Int16}), abs_tol=1e-6, rel_tol=0, check_dtypes=True
    )


# ---- a frame in, a frame out ---------------------------------------------------------------------


def test_a_frame_scores_as_on_this_machine(
    frame: Any, model_folder: Path, expected: pl.DataFrame
) -> None:
    """Network, challenger and grades."""
    scores = score_spark(frame.repartition(3), model_folder, BOTH)
    kinds = {field.name: field.dataType.simpleString() for field in scores.schema}
    assert kinds.items() >= {"account_id": "string", "snapshot_date": "date"}.items()
    assert (kinds["p_fraud"], kinds["grade_fraud"]) == ("float", "smallint")
    assert (kinds["quarantined"], kinds["_rule"]) == ("boolean", "string")
    found = collected(scores)
    assert found["_rule"].is_null().all()
    assert_same(found, expected)


def test_columns_of_answers_name_the_model(frame: Any, model_folder: Path) -> None:
    scores = score_spark(frame, model_folder)
    lineage = json.loads(scores.schema["p_fraud"].metadata["riskmtl"])
    assert lineage["model_id"] == RiskModel.load(model_folder).lineage["model_id"]
    assert scores.schema["account_id"].metadata == {}


def test_only_what_is_needed_goes_to_the_workers(
    frame: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = type(frame).mapInArrow
    monkeypatch.setattr(
        type(frame),
        "mapInArrow",
        lambda self, function, schema: (
            seen.append(function.args[0].names) or real(self, function, schema)
        ),
    )
    score_spark(frame, model_folder)
    schema = RiskModel.load(model_folder).schema
    assert schema is not None
    assert set(seen[0]) == {*KEYS, *(column.name for column in schema.input_columns)}
    assert set(frame.columns) > set(seen[0])


def test_skewed_and_empty_partitions(
    frame: Any, model_folder: Path, expected: pl.DataFrame
) -> None:
    from pyspark.sql import functions

    number = functions.abs(functions.hash("account_id"))
    most = functions.when(number % 20 > 0, 0).otherwise(number % 2 + 1)
    skewed = frame.repartition(8, most)
    place = functions.spark_partition_id()
    sizes = sorted(row["count"] for row in skewed.groupBy(place).count().collect())
    assert len(sizes) <= 3
    assert sizes[-1] > 0.9 * sum(sizes)
    assert skewed.rdd.getNumPartitions() == 8
    assert_same(collected(score_spark(skewed, model_folder, BOTH)), expected)


def test_a_frame_without_rows(frame: Any, model_folder: Path, expected: pl.DataFrame) -> None:
    scores = collected(score_spark(frame.limit(0), model_folder, BOTH))
    assert scores.height == 0
    assert_same(scores, expected.clear())


def test_refused_rows_have_their_rule(
    frame: Any, model_folder: Path, expected: pl.DataFrame
) -> None:
    from pyspark.sql import functions

    bad = expected["account_id"].unique().sort()[:3].to_list()
    is_bad = functions.col("account_id").isin(bad)
    spoiled = frame.withColumn("acc_age", functions.when(is_bad, 5).otherwise(frame["acc_age"]))
    scores = collected(score_spark(spoiled, model_folder, BOTH))
    refused = scores.filter("quarantined")
    assert sorted(refused["account_id"].unique()) == bad
    assert set(refused["_rule"]) == {"acc_age: below 18"}
    assert refused.select(pl.col("^(p|margin|grade)_.*$").is_null().all()).row(0) == (True,) * 11
    good = ~pl.col("account_id").is_in(bad)
    assert_same(scores.filter(good), expected.filter(good))


def test_reasons_are_those_of_the_local_engine(
    spark: Any, model_folder: Path, portfolio: Portfolio, tmp_path: Path
) -> None:
    asked = ScoreSettings(reasons="all")
    portfolio.frame.head(4).write_parquet(tmp_path / "few.parquet")
    score_files(load_model(model_folder), tmp_path / "few.parquet", tmp_path / "out", asked)
    scores = score_spark(spark.read.parquet(str(tmp_path / "few.parquet")), model_folder, asked)
    assert scores.schema["reasons_fraud"].dataType.simpleString() == "array<string>"
    assert_same(collected(scores), scores_in(tmp_path / "out"))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda f: f.drop("acc_income"), "'acc_income' is missing"),
        (lambda f: f.selectExpr("*", "1 AS surplus"), "'surplus' is not in schema"),
        (lambda f: f.selectExpr("* EXCEPT (acc_age)", "'x' AS acc_age"), "'acc_age' is String"),
        (lambda f: f.selectExpr("* EXCEPT (acc_age)", "array(1) AS acc_age"), "'acc_age' is"),
        (lambda f: f.selectExpr("*", "acc_age"), "'acc_age' appears more than once"),
    ],
    ids=["missing", "extra", "type", "nested", "twice"],
)
def test_columns_are_refused_before_the_job(
    frame: Any, model_folder: Path, spoil: Callable[[Any], Any], word: str
) -> None:
    with pytest.raises(DataError, match=word):
        score_spark(spoil(frame), model_folder)


def test_rows_without_keys_could_not_be_told_apart(
    spark: Any, cards: pl.DataFrame, tmp_path: Path
) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    LightGBMBaseline(trials=1, n_estimators=2, n_jobs=1).fit(x, y).save(tmp_path / "model")
    with pytest.raises(ValueError, match="no column with role key"):
        score_spark(spark.createDataFrame(x.to_arrow()), tmp_path / "model")


# ---- types ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def typed() -> pl.DataFrame:
    """Keys of many types, moments in nanoseconds, a name with a dot, an input named as a task."""
    n, rng = 300, np.random.default_rng(0)
    start = dt.datetime(2024, 3, 30)
    moments = pl.Series([start + dt.timedelta(hours=i) for i in range(n)])
    amount = rng.normal(size=n)
    return pl.DataFrame(
        {
            "id": pl.Series(range(n), dtype=pl.UInt32),
            "large": pl.Series(range(n), dtype=pl.UInt64) + 2**63,
            "code": [f"k{i}" for i in range(n)],
            "kind": pl.Series(["x", "y", "z"] * (n // 3), dtype=pl.Categorical),
            "flag": [True, False] * (n // 2),
            "number": rng.normal(size=n),
            "year": pl.Series([2024] * n, dtype=pl.Int16),
            "at": moments,
            "zoned": moments.dt.replace_time_zone("UTC"),
            "exact": moments.cast(pl.Datetime("ns")),
            "day": moments.dt.date(),
            "amount.eur": amount,
            "opened": (moments - dt.timedelta(days=7)).cast(pl.Datetime("ns")),
            "group": rng.integers(0, 5, n).astype(np.uint8),
            "empty": pl.Series([None] * n, dtype=pl.String),
            "bad": (amount + rng.normal(size=n) > 0).astype(np.int8),
            "loss": np.abs(amount) * 10,
        }
    )


@pytest.fixture(scope="module")
def typed_folder(typed: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = {
        "id": "integer", "large": "integer", "code": "string", "kind": "string",
        "flag": "boolean", "number": "number", "year": "year", "at": "datetime",
        "zoned": "datetime", "exact": "datetime",
    }  # fmt: skip
    schema = parse_schema(
        {
            "name": "typed",
            "fields": [
                *({"name": name, "type": kind, "role": "key"} for name, kind in kinds.items()),
                {"name": "day", "type": "date", "role": "time"},
                {"name": "amount.eur", "type": "number"},
                {"name": "opened", "type": "datetime", "role": "numeric"},
                {"name": "group", "type": "integer", "role": "categorical"},
                {"name": "empty", "type": "string"},
            ],
            "tasks": [
                {"name": "default", "label": "bad", "positive": 1, "negative": 0},
                {"name": "group", "label": "loss", "kind": "regression"},
            ],
        }
    )
    rows = typed.with_columns(empty=pl.Series(["a", "b", None] * (typed.height // 3)))
    folder = tmp_path_factory.mktemp("typed") / "model"
    model = LightGBMBaseline(schema=schema, trials=1, n_estimators=5, n_jobs=1, random_state=0)
    model.fit(rows).save(folder)
    return folder


@pytest.mark.parametrize("nothing", [pl.String(), pl.Null()], ids=str)
def test_keys_keep_their_types(
    spark: Any, typed: pl.DataFrame, typed_folder: Path, tmp_path: Path, nothing: pl.DataType
) -> None:
    typed.cast({"empty": nothing}).write_parquet(tmp_path / "typed.parquet")
    score_files(load_model(typed_folder), tmp_path / "typed.parquet", tmp_path / "local")
    score_files_spark(typed_folder, tmp_path / "typed.parquet", tmp_path / "spark")
    found, expected = scores_in(tmp_path / "spark"), scores_in(tmp_path / "local")
    assert found.schema["at"] == found.schema["exact"] == pl.Datetime("us")
    assert found.schema["zoned"] == pl.Datetime("us", "UTC")
    assert (found.schema["id"], found.schema["year"]) == (pl.Int64, pl.Int16)
    assert found.schema["large"] == pl.Decimal(20, 0)
    # Spark knows no unsigned numbers, no categories and no nanoseconds.
    known = {name: found.schema[name] for name in ("id", "large", "kind", "exact")}
    assert_same(found, expected.cast(known), ["id"])


def test_the_time_zone_of_the_session_moves_nothing(
    spark: Any, typed: pl.DataFrame, typed_folder: Path, tmp_path: Path
) -> None:
    rows = typed.cast({"exact": pl.Datetime("us"), "opened": pl.Datetime("us")})
    rows.write_parquet(tmp_path / "typed.parquet")
    elsewhere = spark.newSession()
    elsewhere.conf.set("spark.sql.session.timeZone", "+05:30")
    frame = elsewhere.read.parquet(str(tmp_path / "typed.parquet"))
    found = collected(score_spark(frame, typed_folder)).sort("id")
    assert found["zoned"].dt.epoch("us").to_list() == rows["zoned"].dt.epoch("us").to_list()
    assert found["at"].to_list() == rows["at"].to_list()
    expected = load_model(typed_folder).predict_frame(rows)
    np.testing.assert_allclose(found["p_default"], expected["default"], atol=1e-6)
    np.testing.assert_allclose(found["group"], expected["group"], atol=1e-5)


# ---- files in, a folder out ----------------------------------------------------------------------


def test_files_score_as_on_this_machine(
    spark: Any, model_folder: Path, inside: Path, tmp_path: Path, expected: pl.DataFrame
) -> None:
    out = tmp_path / "out"
    moment = dt.datetime(2026, 1, 2)
    report = score_files_spark(model_folder, inside, out, BOTH, master=MASTER, time=moment)
    assert (report.rows, report.scored, report.quarantined) == (6000, 6000, 0)
    assert_same(scores_in(out), expected)
    names = {path.name for path in out.iterdir()}
    parts = {name for name in names if name.startswith("part-")}
    assert len(parts) > 1
    assert names == parts | {"_JOB.json", "_MANIFEST.json", ".lock"}
    manifest = json.loads((out / "_MANIFEST.json").read_text())
    score_files(load_model(model_folder), inside, tmp_path / "local")
    local = json.loads((tmp_path / "local" / "_MANIFEST.json").read_text())
    assert list(manifest) == list(local)
    assert (manifest["engine"], local["engine"]) == ("spark", "local")
    assert manifest["time"] == "2026-01-02T00:00:00"
    assert {name for part in manifest["parts"] for name in part["files"]} == parts
    assert sum(part["scored"] for part in manifest["parts"]) == 6000
    # So that riskmtl monitor takes nights of either engine.
    assert manifest["counts"] is not None
    assert manifest["counts"] == local["counts"]
    assert manifest["drift"] == local["drift"]
    assert manifest["means"] == pytest.approx(local["means"], abs=1e-6)
    written = pl.read_parquet_metadata(out / "part-00000.parquet")
    assert manifest["model_id"] in written["org.apache.spark.sql.parquet.row.metadata"]


@pytest.mark.slow
def test_again_is_the_same(
    spark: Any, model_folder: Path, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    score_files_spark(model_folder, inside, out)
    before = scores_in(out).sort(KEYS)
    with pytest.raises(JobError, match=r"--resume.*--restart"):
        score_files_spark(model_folder, inside, out)
    assert score_files_spark(model_folder, inside, out, restart=True).kept == 0
    assert_frame_equal(scores_in(out).sort(KEYS), before)
    with monkeypatch.context() as patch:
        patch.setattr("riskmtl.scoring.spark_job.spark_session", lambda *_: pytest.fail("again"))
        assert score_files_spark(model_folder, inside, out, resume=True).kept == 6000
    # A part was damaged, and another is left of nobody knows what.
    (out / "part-00000.parquet").write_bytes(b"PAR1")
    shutil.copy(out / "part-00001.parquet", out / "part-00009.parquet")
    (out / ".part-scratch").mkdir()
    shutil.copy(out / "part-00001.parquet", out / ".part-scratch")
    assert score_files_spark(model_folder, inside, out, resume=True).kept == 0
    assert_frame_equal(scores_in(out).sort(KEYS), before)
    assert not (out / ".part-scratch").exists()
    with pytest.raises(JobError, match="another"):
        score_files(load_model(model_folder), inside, out, resume=True)


@pytest.mark.slow
def test_text_and_several_shapes_of_files(
    spark: Any, model_folder: Path, portfolio: Portfolio, tmp_path: Path, expected: pl.DataFrame
) -> None:
    folder, rows = tmp_path / "in", portfolio.frame
    folder.mkdir()
    quoted = rows.slice(0, 500).with_columns(dev_model=pl.lit('say "hi",\nthen \\go'))
    quoted.write_csv(folder / "a.csv")
    rows.slice(500, 500).select(reversed(rows.columns)).write_csv(folder / "b.csv")
    rows.clear().write_csv(folder / "none.csv")
    rows.slice(1000, 500).drop("approved", "gender").write_parquet(folder / "c.parquet")
    narrow = rows.slice(1500, 500).cast({pl.Int64: pl.Int32, pl.Float64: pl.Float32})
    narrow.select(reversed(rows.columns)).write_parquet(folder / "d.parquet")
    rows.clear().write_parquet(folder / "e.parquet")
    report = score_files_spark(model_folder, folder, tmp_path / "spark")
    score_files(load_model(model_folder), folder, tmp_path / "local")
    assert (report.rows, report.scored) == (2000, 2000)
    assert_same(scores_in(tmp_path / "spark"), scores_in(tmp_path / "local"))


def spoiled(frame: pl.DataFrame, bad: int) -> pl.DataFrame:
    first = pl.int_range(pl.len()) < bad
    return frame.with_columns(acc_age=pl.when(first).then(5).otherwise("acc_age"))


def test_refused_rows_go_to_quarantine(
    spark: Any, model_folder: Path, portfolio: Portfolio, tmp_path: Path
) -> None:
    rows, out = spoiled(portfolio.frame, 60), tmp_path / "out"
    rows.write_parquet(tmp_path / "data.parquet")
    with pytest.raises(RefusedRows, match=r"60 of .*6,000 rows.*'acc_age: below 18'.*quarantine/"):
        score_files_spark(model_folder, tmp_path / "data.parquet", out, max_bad=0.0099)
    assert not list(out.glob("part-*"))
    assert not (out / "_MANIFEST.json").exists()
    report = score_files_spark(
        model_folder, tmp_path / "data.parquet", out, max_bad=0.01, resume=True
    )
    assert (report.scored, report.quarantined) == (5940, 60)
    assert report.refusals == {"acc_age: below 18": 60}
    kept = pl.concat([pl.read_parquet(path) for path in (out / "quarantine").iterdir()])
    assert kept.columns == ["_rule", *KEYS]
    assert_frame_equal(kept.select(KEYS).sort(KEYS), rows.head(60).select(KEYS).sort(KEYS))
    assert scores_in(out)["quarantined"].sum() == 60


def test_a_file_that_changes_while_it_is_read(
    spark: Any, model_folder: Path, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(*arguments: Any, **options: Any) -> Any:
        os.utime(inside / "c*.parquet", ns=(0, 0))
        return engine.scored_frame(*arguments, **options)

    monkeypatch.setattr("riskmtl.scoring.spark_job.scored_frame", disturbed)
    with pytest.raises(TableError, match="was changed while the job read it"):
        score_files_spark(model_folder, inside, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["_JOB.json"]


def test_the_command_line(
    spark: Any,
    run: Callable[..., Any],
    model_folder: Path,
    portfolio_file: Path,
    tmp_path: Path,
    expected: pl.DataFrame,
) -> None:
    out = tmp_path / "out"
    score = ("score", "--model", model_folder, "--data", portfolio_file, "--out", out)
    result = run(
        *(*score, "--engine", "spark", "--master", MASTER, "--challenger"),
        *("--graded", "default", "fraud"),
    )
    assert result.code == 0, result.err
    assert "6,000 of 6,000 rows scored" in result.out
    assert_same(scores_in(out), expected)
    for wrong, word in [
        (("--engine", "spark", "--threads", "2"), "--master"),
        (("--engine", "spark", "--format", "csv"), "Parquet only"),
        (("--engine", "spark", "--master", "local[7]", "--restart"), "local[7]"),
        (("--master", "local[2]"), "--engine spark"),
    ]:
        result = run(*score, *wrong)
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert word in result.err


@pytest.mark.slow
def test_a_session_of_its_own(model_folder: Path, portfolio_file: Path, tmp_path: Path) -> None:
    """Workers are those of this Python, whatever is first on the PATH."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "riskmtl", "score", "--model", model_folder, "--data",
         portfolio_file, "--out", out, "--engine", "spark", "--master", "local[2]"],
        capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYSPARK_PYTHON"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6,000 of 6,000 rows scored" in done.stdout
    assert scores_in(out).height == 6000


# ---- workers -------------------------------------------------------------------------------------


def killed_once(marker: Path) -> Callable[..., Iterator[Any]]:
    """A worker that dies in its third batch, the first time."""

    def score(order: Any, batches: Iterator[Any]) -> Iterator[Any]:
        from riskmtl.scoring import spark as real

        def disturbed() -> Iterator[Any]:
            for number, batch in enumerate(batches):
                if number == 2 and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        return real._score_partition(order, disturbed())

    return score


def test_a_killed_task_neither_loses_nor_doubles_rows(
    spark: Any,
    model_folder: Path,
    portfolio_file: Path,
    tmp_path: Path,
    expected: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_score_partition", killed_once(tmp_path / "killed"))
    report = score_files_spark(model_folder, portfolio_file, tmp_path / "out", BOTH)
    assert (tmp_path / "killed").exists()
    assert (report.rows, report.scored) == (6000, 6000)
    assert_same(scores_in(tmp_path / "out"), expected)
    manifest = json.loads((tmp_path / "out" / "_MANIFEST.json").read_text())
    assert len(list((tmp_path / "out").glob("*.parquet"))) == len(manifest["parts"])
    # What the killed attempt had counted is not in it.
    score_files(load_model(model_folder), portfolio_file, tmp_path / "local")
    local = json.loads((tmp_path / "local" / "_MANIFEST.json").read_text())
    assert manifest["counts"] == local["counts"]


def always_killed(order: Any, batches: Iterator[Any]) -> Iterator[Any]:
    from riskmtl.scoring import spark as real

    scored = real._score_partition(order, batches)
    yield next(scored)
    os._exit(1)


@pytest.mark.slow
def test_a_task_that_is_always_killed_ends_the_job_in_a_sentence(
    spark: Any,
    model_folder: Path,
    portfolio_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_score_partition", always_killed)
        with pytest.raises(SparkError, match=r"^Spark gave up: .*Python worker exited.*$"):
            score_files_spark(model_folder, portfolio_file, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "_JOB.json"]
    assert score_files_spark(model_folder, portfolio_file, out, resume=True).scored == 6000


def counting(log: Path) -> Callable[..., Iterator[Any]]:
    """Note each partition, and each time that a model is read."""

    def score(order: Any, batches: Iterator[Any]) -> Iterator[Any]:
        from riskmtl.scoring import spark as real

        def noted(*arguments: Any, **options: Any) -> Any:
            with log.open("a") as file:
                file.write(f"loaded {os.getpid()}\n")
            return load(*arguments, **options)

        load = real.load_model
        real.load_model = noted
        try:
            with log.open("a") as file:
                file.write(f"partition {os.getpid()}\n")
            yield from real._score_partition(order, batches)
        finally:
            real.load_model = load

    return score


@pytest.mark.slow
def test_a_model_is_read_once_in_a_worker(
    frame: Any, model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(engine, "_score_partition", counting(log))
    assert score_spark(frame.repartition(12), model_copy).count() == 6000
    lines = log.read_text().splitlines()
    workers = {line.split()[1] for line in lines if line.startswith("partition")}
    loads = [line.split()[1] for line in lines if line.startswith("loaded")]
    assert sum(line.startswith("partition") for line in lines) == 12
    assert sorted(loads) == sorted(workers)
    assert len(workers) < 12


@pytest.mark.slow
def test_a_worker_refuses_another_model(
    frame: Any, model_copy: Path, trained: MultiTaskClassifier
) -> None:
    scores = score_spark(frame, model_copy)
    other = RiskModel.load(model_copy)
    other.lineage = {**other.lineage, "model_id": None, "note": "another"}
    save_model(other, model_copy)
    with pytest.raises(Exception, match=r"holds model .*the job began with"):
        scores.count()


def test_a_folder_without_a_model(frame: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not a model"):
        score_spark(frame, tmp_path)


# ---- what is not there ---------------------------------------------------------------------------


def test_without_pyspark(
    run: Callable[..., Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    score = ("score", "--model", model_folder, "--data", "x.parquet", "--out", tmp_path / "out")
    result = run(*score, "--engine", "spark")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "pip install 'riskmtl[spark]'" in result.err


@pytest.mark.parametrize("variable", ["PATH", "JAVA_HOME"])
def test_without_java(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(SparkError, match=f"needs Java 17 or later, which is not .*{variable}"):
        score_files_spark(model_folder, "x.parquet", tmp_path / "out")
