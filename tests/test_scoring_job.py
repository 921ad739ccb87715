"""A scoring job: files in, a folder out, and what it does when it is disturbed."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from riskmtl import DataSchema, LogisticBaseline, MultiTaskClassifier, RiskModel
from riskmtl.files import TableError
from riskmtl.schema import DataError, RefusedRows
from riskmtl.scorers import NetworkScorer
from riskmtl.scoring import local
from riskmtl.scoring.batches import ScoreSettings
from riskmtl.scoring.folder import JobError, JobFolder, open_folder
from riskmtl.scoring.local import ScoreReport, score_files

MOMENT = datetime(2026, 1, 2)


@pytest.fixture(scope="module")
def logistic(cards: pl.DataFrame, cards_schema: DataSchema) -> RiskModel:
    fitted = LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards)
    return fitted.model_


@pytest.fixture
def rows(cards: pl.DataFrame) -> pl.DataFrame:
    """A thousand rows with a key of their own."""
    frame = pl.concat([cards] * 3).head(1000).drop("weight", "bad", "is_fraud")
    return frame.with_columns(id=pl.int_range(pl.len()))


@pytest.fixture
def inside(rows: pl.DataFrame, tmp_path: Path) -> Path:
    """A folder of three files."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, (start, count) in enumerate([(0, 450), (450, 50), (500, 500)]):
        rows.slice(start, count).write_parquet(folder / f"night_{i}.parquet")
    return folder


def spoiled(frame: pl.DataFrame, bad: list[int]) -> pl.DataFrame:
    return frame.with_columns(
        amount=pl.when(pl.int_range(pl.len()).is_in(bad)).then(500.0).otherwise("amount")
    )


def scores_in(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "part-*.parquet")


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def score(model: RiskModel, data: Any, out: Path, **options: Any) -> ScoreReport:
    return score_files(model, data, out, time=MOMENT, part_rows=100, **options)


# ---- what is written ---------------------------------------------------------------------------


def test_a_folder_of_files(
    logistic: RiskModel, rows: pl.DataFrame, inside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = score(logistic, inside, out)
    assert report == ScoreReport(1000, 1000, 0, 0, {}, out)
    scores = scores_in(out)
    assert_frame_equal(scores.select("id", "day"), rows.select("id", "day"))
    for task, values in logistic.predict_frame(rows).to_dict().items():
        np.testing.assert_allclose(scores[f"p_{task}"], values, atol=1e-6)
    # Rows are counted within their file.
    assert scores["_row"].to_list() == [*range(450), *range(50), *range(500)]
    manifest = json.loads((out / "_MANIFEST.json").read_text())
    assert (manifest["rows"], manifest["scored"], manifest["quarantined"]) == (1000, 1000, 0)
    assert [item["rows"] for item in manifest["inputs"]] == [450, 50, 500]
    assert sum(len(part["files"]) for part in manifest["parts"]) == 11


def test_threads_and_parts_do_not_change_the_scores(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    score(logistic, inside, one, threads=1)
    score(logistic, inside, two, threads=4)
    assert files_of(one) == files_of(two)
    whole = tmp_path / "whole"
    score_files(logistic, inside, whole, time=MOMENT, part_rows=333)
    difference = scores_in(whole).select(pl.col("^p_.*$")) - scores_in(one).select(pl.col("^p_.*$"))
    assert np.abs(difference.to_numpy()).max() <= 1e-6


def test_many_rows_are_looked_up_in_a_table(
    cards: pl.DataFrame,
    cards_schema: DataSchema,
    inside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MultiTaskClassifier(
        schema=cards_schema, members=1, expert_units=(8,), epochs=1, random_state=0
    ).fit(cards)
    score(model.model_, inside, tmp_path / "few")
    looked_up = []
    fold = NetworkScorer.fold
    monkeypatch.setattr(
        NetworkScorer, "fold", lambda self: looked_up.append(fold(self)) or looked_up[-1]
    )
    monkeypatch.setattr(local, "_WORTH_FOLDING", 1001)
    score(model.model_, inside, tmp_path / "few again")
    assert not looked_up
    monkeypatch.setattr(local, "_WORTH_FOLDING", 1000)
    score(model.model_, inside, tmp_path / "many")
    (scorer,) = looked_up
    assert scorer.folded is not None
    # The model that was asked stays as it is.
    assert model.model_.scorer.folded is None
    few, many = scores_in(tmp_path / "few"), scores_in(tmp_path / "many")
    for name in ("p_default", "p_fraud"):
        assert few[name].std() > 1e-3
        np.testing.assert_allclose(many[name], few[name], rtol=0, atol=1e-6)


def test_patterns_files_and_csv_come_in(
    logistic: RiskModel, rows: pl.DataFrame, inside: Path, tmp_path: Path
) -> None:
    rows.tail(30).write_csv(inside / "late.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    given = [str(inside / "night_?.parquet"), inside / "late.csv", inside / "late.csv"]
    report = score(logistic, given, tmp_path / "out")
    assert report.rows == 1030
    scores = scores_in(tmp_path / "out").with_columns(pl.col("id").cast(pl.Int64))
    late, same = scores.tail(30), scores.slice(970, 30)
    columns = ["id", "p_default", "p_fraud"]
    assert_frame_equal(late.select(columns), same.select(columns))


def test_scores_as_csv(logistic: RiskModel, inside: Path, tmp_path: Path) -> None:
    score(logistic, inside / "night_1.parquet", tmp_path / "csv", format="csv")
    score(logistic, inside / "night_1.parquet", tmp_path / "parquet")
    read = pl.read_csv(tmp_path / "csv" / "part-0000-00000.csv", try_parse_dates=True)
    expected = scores_in(tmp_path / "parquet")
    assert read.columns == expected.columns
    np.testing.assert_allclose(read["p_fraud"], expected["p_fraud"], rtol=1e-6)


def test_a_model_without_schema(cards: pl.DataFrame, tmp_path: Path) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud")
    model = LogisticBaseline(strengths=(0.1,), random_state=0).fit(x, y).model_
    x.write_parquet(tmp_path / "x.parquet")
    report = score(model, tmp_path / "x.parquet", tmp_path / "out")
    assert (report.rows, report.scored) == (400, 400)
    expected = model.predict_frame(x)["is_fraud"]
    np.testing.assert_allclose(scores_in(tmp_path / "out")["p_is_fraud"], expected, atol=1e-6)
    x.write_csv(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"x\.csv: the model was trained without a schema"):
        score(model, tmp_path / "x.csv", tmp_path / "text")


def test_refused_rows_are_kept_as_they_were_read(
    logistic: RiskModel, rows: pl.DataFrame, inside: Path, tmp_path: Path
) -> None:
    frame = spoiled(rows.slice(500, 500), [3, 101, 499])
    frame.write_parquet(inside / "night_2.parquet")
    text = rows.head(4).cast(pl.String).with_columns(amount=pl.Series(["7", "seven", None, "500"]))
    text.write_csv(inside / "text.csv")
    out = tmp_path / "out"
    report = score(logistic, inside, out, max_bad=0.01)
    assert (report.rows, report.scored, report.quarantined) == (1004, 999, 5)
    assert report.refusals == {"amount: above 100": 4, "amount: no number": 1}
    kept = [pl.read_parquet(path) for path in sorted((out / "quarantine").iterdir())]
    assert [table["_row"].to_list() for table in kept] == [[3], [101], [499], [1, 3]]
    assert kept[-1]["_rule"].to_list() == ["amount: no number", "amount: above 100"]
    assert kept[-1]["amount"].to_list() == ["seven", "500"]
    columns = [name for name in kept[0].columns if not name.startswith("_")]
    assert_frame_equal(kept[1].select(columns), frame[[101]].select(columns))
    manifest = json.loads((out / "_MANIFEST.json").read_text())
    assert manifest["refused"] == report.refusals


def test_exactly_the_share_of_refused_rows_is_accepted(
    logistic: RiskModel, rows: pl.DataFrame, tmp_path: Path
) -> None:
    for bad, accepted in ((10, True), (11, False)):
        data, out = tmp_path / "data.parquet", tmp_path / str(bad)
        spoiled(rows, list(range(300, 300 + bad))).write_parquet(data)
        if accepted:
            assert score(logistic, data, out, max_bad=0.01).quarantined == bad
            continue
        expected = r"11 of the first 400 of 1,000 rows.*amount: above 100.*row 300"
        with pytest.raises(RefusedRows, match=expected):
            score(logistic, data, out, max_bad=0.01)
        assert not (out / "_MANIFEST.json").exists()
        # What was finished is kept for a run that accepts more.
        report = score(logistic, data, out, max_bad=0.02, resume=True)
        assert (report.scored, report.kept >= 400) == (989, True)


# ---- going on ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a job as abruptly as a test can within its own process."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a job die in the middle of writing its file number `count`."""
    written = iter(range(count))
    real = JobFolder.write

    def write(self: JobFolder, name: str, data: bytes) -> str:
        if next(written, None) is None:
            half = (self.path / name).with_name(f".{Path(name).name}.half")
            half.parent.mkdir(exist_ok=True)
            half.write_bytes(data[: len(data) // 2])
            raise Killed
        return real(self, name, data)

    monkeypatch.setattr(JobFolder, "write", write)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12, 24, 25])
def test_a_killed_job_ends_with_the_bytes_of_an_undisturbed_one(
    logistic: RiskModel,
    rows: pl.DataFrame,
    inside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    spoiled(rows.slice(500, 500), [3, 101]).write_parquet(inside / "night_2.parquet")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    score(logistic, inside, undisturbed, max_bad=0.1)
    with monkeypatch.context() as patch:
        killed_after(count, patch)
        with pytest.raises(Killed):
            score(logistic, inside, out, max_bad=0.1, threads=1)
    assert not (out / "_MANIFEST.json").exists()
    report = score(logistic, inside, out, max_bad=0.1, resume=True)
    assert (report.rows, report.scored) == (1000, 998)
    assert files_of(out) == files_of(undisturbed)


def test_a_finished_part_is_not_scored_again(
    logistic: RiskModel, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    score(logistic, inside, out)
    monkeypatch.setattr(local.BatchScorer, "score", lambda *_: pytest.fail("scored again"))
    assert score(logistic, inside, out, resume=True).kept == 1000


def test_a_part_that_was_changed_or_lost_is_scored_again(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score(logistic, inside, out)
    before = files_of(out)
    (out / "part-0000-00001.parquet").write_bytes(b"PAR1")
    (out / "part-0002-00000.parquet").unlink()
    assert score(logistic, inside, out, resume=True).kept == 800
    assert files_of(out) == before


def test_the_time_is_that_of_the_beginning(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score(logistic, inside, out)
    (out / "part-0000-00000.parquet").unlink()
    score_files(logistic, inside, out, part_rows=100, resume=True)
    times = {
        json.loads(pl.read_parquet_metadata(path)["riskmtl"])["time"]
        for path in out.glob("part-*.parquet")
    }
    assert times == {"2026-01-02T00:00:00"}


def other_settings(job: dict[str, Any]) -> None:
    job["settings"] = ScoreSettings(graded=("default", "fraud"))


def other_format(job: dict[str, Any]) -> None:
    job["format"] = "csv"


def another_input(job: dict[str, Any]) -> None:
    path = job["data"] / "night_1.parquet"
    pl.read_parquet(path).head(49).write_parquet(path)


def touched_input(job: dict[str, Any]) -> None:
    path = job["data"] / "night_1.parquet"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def one_more_input(job: dict[str, Any]) -> None:
    shutil.copy(job["data"] / "night_1.parquet", job["data"] / "night_9.parquet")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "settings": (other_settings, "settings"),
    "format": (other_format, "format"),
    "input": (another_input, "night_1"),
    "touched": (touched_input, "night_1"),
    "more": (one_more_input, "night_9"),
}


@pytest.mark.parametrize(("change", "word"), CHANGES.values(), ids=CHANGES.keys())
def test_another_job_does_not_mix_with_the_first(
    logistic: RiskModel,
    inside: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    word: str,
) -> None:
    out = tmp_path / "out"
    score(logistic, inside, out)
    before = files_of(out)
    job: dict[str, Any] = {"model": logistic, "data": inside, "out": out}
    change(job)
    with pytest.raises(JobError, match=rf"another .*{word}.*--restart"):
        score(**job, resume=True)
    assert files_of(out) == before
    fresh = score(**{**job, "out": tmp_path / "fresh"})
    assert score(**job, restart=True).rows == fresh.rows
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_another_model_is_another_job(
    network_folders: tuple[Path, Path], portfolio_file: Path, tmp_path: Path
) -> None:
    first, second = (RiskModel.load(folder) for folder in network_folders)
    score_files(first, portfolio_file, tmp_path / "out")
    with pytest.raises(JobError, match="another model_id"):
        score_files(second, portfolio_file, tmp_path / "out", resume=True)


@pytest.fixture
def network_folders(model_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    model = RiskModel.load(model_folder)
    model.heads[0] = type(model.heads[0])(**{**vars_of(model.heads[0]), "shift": 0.5})
    model.lineage.pop("model_id")
    from riskmtl.artefact import save_model

    save_model(model, tmp_path / "second")
    return model_folder, tmp_path / "second"


def vars_of(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def test_two_jobs_cannot_write_into_one_folder(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    with (
        open_folder(tmp_path / "out", {"time": "now"}),
        pytest.raises(JobError, match="another job is writing here"),
    ):
        score(logistic, inside, tmp_path / "out", restart=True)


# ---- what goes wrong ---------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_read(
    logistic: RiskModel, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", local.BatchScorer.score
    path = inside / "night_2.parquet"

    def disturbed(self: Any, frame: pl.DataFrame, first: int, broken: Any = None) -> Any:
        if frame.height == 50:
            pl.read_parquet(path).head(499).write_parquet(path)
        return real(self, frame, first, broken)

    monkeypatch.setattr(local.BatchScorer, "score", disturbed)
    with pytest.raises(TableError, match=r"night_2\.parquet: was changed while the job read it"):
        score(logistic, inside, out, threads=1)
    assert len(list(out.glob("part-000[01]-*.parquet"))) == 6
    assert not (out / "_MANIFEST.json").exists()


def test_an_unreadable_file_among_many_is_named_before_anything_is_scored(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    path = inside / "night_1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match=r"night_1\.parquet: damaged"):
        score(logistic, inside, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_in_the_middle_of_a_file_leaves_finished_parts(
    logistic: RiskModel, inside: Path, tmp_path: Path
) -> None:
    path = inside / "night_2.parquet"
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(bytes(data))
    with pytest.raises(TableError, match=r"night_2\.parquet: damaged"):
        score(logistic, inside, tmp_path / "out", threads=1)
    assert len(list((tmp_path / "out" / "receipts").iterdir())) >= 6


def test_a_full_disk_leaves_finished_parts(
    logistic: RiskModel, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, files = tmp_path / "out", JobFolder.write, iter(range(6))

    def write(self: JobFolder, name: str, data: bytes) -> str:
        if next(files, None) is None:
            raise OSError(28, "No space left on device")
        return real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "write", write)
        with pytest.raises(OSError, match="No space left"):
            score(logistic, inside, out, threads=1)
    assert score(logistic, inside, out, resume=True).kept == 200


@pytest.mark.parametrize(
    ("make", "kind", "word"),
    [
        (lambda folder: folder / "none.parquet", TableError, "no such file"),
        (lambda folder: str(folder / "z*.parquet"), TableError, "no file fits this pattern"),
        (lambda folder: folder / "empty", TableError, "holds no Parquet or CSV file"),
        (lambda folder: folder / "letter.txt", TableError, "neither Parquet nor CSV"),
        (lambda folder: folder / "none.csv", TableError, "no such file"),
        (lambda folder: folder / "no_rows.parquet", DataError, "the table has no rows"),
        (lambda folder: folder / "names.csv", DataError, "the table has no rows"),
        (lambda folder: folder / "quote.csv", TableError, "quote is never closed"),
        (lambda folder: folder / "latin.csv", TableError, "utf-8"),
        (lambda folder: folder / "wide.csv", TableError, "more fields"),
    ],
)
def test_files_that_cannot_be_scored(
    logistic: RiskModel,
    rows: pl.DataFrame,
    tmp_path: Path,
    make: Callable[[Path], object],
    kind: type[Exception],
    word: str,
) -> None:
    folder = tmp_path / "in"
    (folder / "empty").mkdir(parents=True)
    (folder / "letter.txt").write_text("dear")
    rows.clear().write_parquet(folder / "no_rows.parquet")
    names = ",".join(rows.columns)
    line = rows.head(1).write_csv(include_header=False)
    for name, text in {"names": "", "quote": '"' + line, "wide": "1," + line}.items():
        (folder / f"{name}.csv").write_text(f"{names}\n{text}")
    (folder / "latin.csv").write_bytes(f"{names}\n{line}".encode().replace(b"NL", b"\xc4"))
    with pytest.raises(kind, match=word):
        score(logistic, make(folder), tmp_path / "out")
    assert not (tmp_path / "out" / "_MANIFEST.json").exists()


def test_an_empty_file_among_others_is_no_error(
    logistic: RiskModel, rows: pl.DataFrame, inside: Path, tmp_path: Path
) -> None:
    rows.clear().write_parquet(inside / "night_1.parquet")
    assert score(logistic, inside, tmp_path / "out").rows == 950


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"format": "json"}, "parquet or csv"),
        ({"resume": True, "restart": True}, "exclude"),
        ({"threads": 0}, "threads"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_options_that_cannot_be(
    logistic: RiskModel, inside: Path, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        score(logistic, inside, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_float32_are_bad_rows(
    logistic: RiskModel, rows: pl.DataFrame, tmp_path: Path
) -> None:
    """With a share of bad rows accepted, one absurd value must not stop the whole file."""
    row = pl.int_range(pl.len())
    frame = rows.with_columns(age=pl.when(row == 60).then(1e300).otherwise("age"))
    frame.write_parquet(tmp_path / "data.parquet")
    report = score(logistic, tmp_path / "data.parquet", tmp_path / "out", max_bad=0.01)
    assert (report.scored, report.quarantined) == (999, 1)
