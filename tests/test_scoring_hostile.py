"""A scoring job in a hostile world: killed, out of disk, disturbed, and given nonsense."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from riskmtl import DataSchema, LogisticBaseline
from riskmtl.scoring import sources
from tests.reference import malformed

MOMENT = "2026-01-02T03:04:05"
# The command line as it is, but with parts so small that there are many.
SCORE = (
    "import sys\n"
    "from riskmtl.scoring import local\n"
    "from riskmtl.cli import main\n"
    "rows = int(sys.argv.pop(1))\n"
    "local.score_files.__kwdefaults__['part_rows'] = rows\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


@pytest.fixture(scope="module")
def cards_model(
    cards: pl.DataFrame, cards_schema: DataSchema, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "model"
    LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards).save(folder)
    return folder


@pytest.fixture(scope="module")
def malformed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tables that come malformed."""
    rng = np.random.default_rng(0)
    frame = malformed.table(400, rng)
    labelled = frame.with_columns(is_fraud=pl.Series(rng.integers(0, 2, frame.height)))
    folder = tmp_path_factory.mktemp("malformed") / "model"
    model = LogisticBaseline(schema=malformed.schema(), strengths=(0.1,), random_state=0)
    model.fit(labelled).save(folder)
    return folder


def write_rows(cards: pl.DataFrame, rows: int, folder: Path) -> None:
    """Four Parquet files and one CSV file of so many rows with a key, one in 997 of them bad."""
    folder.mkdir()
    frame = cards.drop("weight", "bad", "is_fraud").sample(rows, with_replacement=True, seed=0)
    frame = frame.with_columns(id=pl.int_range(pl.len())).with_columns(
        amount=pl.when(pl.col("id") % 997 == 5).then(500.0).otherwise("amount")
    )
    fifth = rows // 5
    for i in range(4):
        frame.slice(i * fifth, fifth).write_parquet(folder / f"night_{i}.parquet")
    frame.slice(4 * fifth).write_csv(folder / "night_4.csv")


class Job:
    """A job of the command line in a process of its own."""

    def __init__(self, model: Path, data: Path, out: Path, part_rows: int) -> None:
        call = ["score", "--model", model, "--data", data, "--out", out, "--time", MOMENT]
        self.arguments = [*map(str, call), "--max-bad", "1%", "--threads", "2"]
        self.part_rows = part_rows

    def start(self, *more: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCORE, str(self.part_rows), *self.arguments, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *more: str, **options: Any) -> tuple[int, str]:
        """Exit code and standard error."""
        process = self.start(*more, **options)
        _, err = process.communicate(timeout=300)
        return process.returncode, err


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def assert_one_line(err: str) -> None:
    assert len(err.splitlines()) == 1, err[:2000]
    assert err.startswith("riskmtl score: ")
    for word in ("Traceback", "panicked"):
        assert word not in err


# ---- kills -------------------------------------------------------------------------------------


def assert_every_key_once(out: Path, rows: int) -> None:
    parts = [
        pl.read_parquet(path, columns=["id", "quarantined"]).cast({"id": pl.Int64})
        for path in sorted(out.glob("part-*.parquet"))
    ]
    scores = pl.concat(parts)
    assert scores.height == rows
    assert scores["id"].n_unique() == rows
    bad = scores.filter("quarantined")["id"]
    assert sorted(bad) == list(range(5, rows, 997))


def kill(job: Job, kills: int, longest: float, seed: int) -> None:
    """Kill a job so often at random moments; it goes on, or begins anew where it was done."""
    rng, more = random.Random(seed), "--resume"
    while kills:
        process = job.start(more)
        try:
            process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        kills -= process.returncode != 0
        more = "--resume" if process.returncode else "--restart"


def hold_against_kills(
    cards: pl.DataFrame, model: Path, folder: Path, *, rows: int, part_rows: int, kills: int
) -> None:
    data, undisturbed, out = folder / "in", folder / "undisturbed", folder / "out"
    write_rows(cards, rows, data)
    before = time.monotonic()
    assert Job(model, data, undisturbed, part_rows).run() == (0, "")
    longest = time.monotonic() - before
    job = Job(model, data, out, part_rows)
    kill(job, kills, longest, seed=0)
    assert job.run("--resume") == (0, "")
    assert files_of(out) == files_of(undisturbed)
    assert_every_key_once(out, rows)


def test_a_kill_leaves_no_trace(cards: pl.DataFrame, cards_model: Path, tmp_path: Path) -> None:
    hold_against_kills(cards, cards_model, tmp_path, rows=40_000, part_rows=4_000, kills=1)


@pytest.mark.slow
def test_thirty_kills_leave_no_trace(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path
) -> None:
    hold_against_kills(cards, cards_model, tmp_path, rows=1_000_000, part_rows=20_000, kills=30)


# ---- no room -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system to fill")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_finished_parts_are_whole(out: Path) -> None:
    receipts = sorted((out / "receipts").glob("*.json"))
    assert receipts
    for path in receipts:
        receipt = json.loads(path.read_text())
        assert pl.read_parquet(out / f"{receipt['part']}.parquet").height == receipt["rows"]
    assert not (out / "_MANIFEST.json").exists()
    assert not [name for name in files_of(out) if Path(name).name.startswith(".")]


@pytest.mark.slow
def test_a_full_disk(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, small_disk: Path
) -> None:
    data, undisturbed, out = tmp_path / "in", tmp_path / "undisturbed", small_disk / "out"
    write_rows(cards, 20_000, data)
    assert Job(cards_model, data, undisturbed, 1_000).run() == (0, "")
    (small_disk / "others").write_bytes(bytes(1_850_000))
    job = Job(cards_model, data, out, 1_000)
    for more in ([], ["--resume"]):
        code, err = job.run(*more)
        assert code == 6
        assert_one_line(err)
        assert "No space left on device" in err
        assert_finished_parts_are_whole(out)
    (small_disk / "others").unlink()
    assert job.run("--resume") == (0, "")
    assert files_of(out) == files_of(undisturbed)


def test_a_limit_to_the_size_of_a_file(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path
) -> None:
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    data, out = tmp_path / "in", tmp_path / "out"
    write_rows(cards, 20_000, data)
    job = Job(cards_model, data, out, 1_000)
    code, err = job.run(preexec_fn=limited)
    assert code == 6
    assert_one_line(err)
    assert "File too large" in err
    assert not list(out.rglob(".part-*"))
    assert job.run("--resume") == (0, "")
    assert_every_key_once(out, 20_000)


# ---- two at once -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_second_of_two_jobs_is_refused(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "in", tmp_path / "out"
    write_rows(cards, 60_000, data)
    job = Job(cards_model, data, out, 2_000)
    first = job.start()
    deadline = time.monotonic() + 60
    while not list(out.glob("receipts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # It holds its lock while it is stopped, however slow the second is to start.
    first.send_signal(signal.SIGSTOP)
    try:
        for more in ([], ["--resume"], ["--restart"]):
            code, err = job.run(*more)
            assert code == 6
            assert_one_line(err)
            assert "another job is writing here" in err
    finally:
        first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, "")
    assert_every_key_once(out, 60_000)
    assert Job(cards_model, data, tmp_path / "alone", 2_000).run() == (0, "")
    assert files_of(out) == files_of(tmp_path / "alone")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("receipts/part-0000-00000.json", ""),
        ("receipts/part-0000-00000.json", '{"part": "part-0000-00000", "files"'),
        ("receipts/part-0000-00000.json", "[]"),
        ("receipts/part-0000-00000.json", "{}"),
        ("receipts/part-0000-00000.json", "\x00" * 99),
        ("part-0000-00000.parquet", ""),
        ("_MANIFEST.json", "{"),
    ],
)
def test_a_damaged_file_of_the_job_is_written_again(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, run_all: Callable[..., Any],
    name: str, text: str,
) -> None:  # fmt: skip
    write_rows(cards, 500, tmp_path / "in")
    out = tmp_path / "out"
    call = ["score", "--model", cards_model, "--data", tmp_path / "in", "--out", out]
    call += ["--time", MOMENT, "--max-bad", "1%"]
    assert run_all(*call).code == 0
    before = files_of(out)
    (out / name).write_text(text)
    result = run_all(*call, "--resume")
    assert (result.code, result.err) == (0, "")
    assert files_of(out) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\x00", '{"time": 1}'])
def test_a_damaged_note_of_the_job_is_refused(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, run_all: Callable[..., Any], text: str
) -> None:
    write_rows(cards, 500, tmp_path / "in")
    out = tmp_path / "out"
    call = ["score", "--model", cards_model, "--data", tmp_path / "in", "--out", out]
    call += ["--time", MOMENT, "--max-bad", "1%"]
    assert run_all(*call).code == 0
    before = files_of(out)
    (out / "_JOB.json").write_text(text)
    result = run_all(*call, "--resume")
    assert result.code == 6
    assert_one_line(result.err)
    assert run_all(*call, "--restart").code == 0
    assert files_of(out) == before


def test_hidden_files_of_others_are_left_alone(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, run_all: Callable[..., Any]
) -> None:
    write_rows(cards, 500, tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".env").write_text("precious")
    call = ["score", "--model", cards_model, "--data", tmp_path / "in", "--out", out]
    result = run_all(*call)
    assert result.code == 6
    assert_one_line(result.err)
    assert files_of(out) == {".env": b"precious"}


# ---- malformed inputs --------------------------------------------------------------------------


class Trial:
    """Cases through the command line, in this process."""

    def __init__(self, model: Path, folder: Path, run: Callable[..., Any]) -> None:
        self.model, self.folder, self.run = model, folder, run
        self.numbers = count()

    def fault(self, case: malformed.Case) -> str:
        """What was not as it should be; empty if all was."""
        place = self.folder / str(next(self.numbers))
        place.mkdir()
        case.write(place / case.name)
        out = place / "out"
        call = ["score", "--model", self.model, "--data", place / case.name, "--out", out]
        try:
            result = self.run(*call, "--max-bad", case.max_bad, "--time", MOMENT)
        # A panic of polars is no Exception.
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        if result.code not in case.codes:
            return f"code {result.code}: {result.err}"
        if result.code:
            return self._fault_of_refusal(result.err, out)
        return result.err or self._fault_of_scores(case, out)

    def _fault_of_refusal(self, err: str, out: Path) -> str:
        is_clear = err.startswith("riskmtl score: ") and len(err.splitlines()) == 1
        if not is_clear or "Traceback" in err or "panicked" in err:
            return f"unclear: {err}"
        return "manifest of a refused job" if (out / "_MANIFEST.json").exists() else ""

    def _fault_of_scores(self, case: malformed.Case, out: Path) -> str:
        manifest = json.loads((out / "_MANIFEST.json").read_text())
        scores = pl.read_parquet(out / "part-*.parquet")
        counts = [manifest["scored"] + manifest["quarantined"], manifest["rows"], scores.height]
        if counts != [case.rows] * 3:
            return f"rows {counts} of {case.rows}"
        bad = set(scores["_row"].filter(scores["quarantined"]))
        if case.bad is not None and bad != case.bad:
            return f"quarantined {sorted(bad)} instead of {sorted(case.bad)}"
        answers = scores.filter(~pl.col("quarantined"))["p_fraud"]
        is_whole = answers.len() == 0 or answers.is_between(0, 1).all()
        return "" if is_whole and not answers.null_count() else "a row without score"


@pytest.fixture
def run_all(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run one verb, and catch what libraries print past Python too."""
    from riskmtl.cli import main
    from tests.conftest import Run

    def call(*arguments: object) -> Run:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capfd.readouterr())

    return call


def faults(trial: Trial, cases: Iterator[malformed.Case]) -> dict[str, str]:
    found = ((case.kind, trial.fault(case)) for case in cases)
    return {kind: fault[:500] for kind, fault in found if fault}


def test_two_hundred_malformed_inputs(
    malformed_model: Path, tmp_path: Path, run_all: Callable[..., Any]
) -> None:
    trial = Trial(malformed_model, tmp_path, run_all)
    assert faults(trial, malformed.cases(200, seed=0)) == {}


@pytest.mark.slow
def test_two_thousand_malformed_inputs(
    malformed_model: Path, tmp_path: Path, run_all: Callable[..., Any]
) -> None:
    trial = Trial(malformed_model, tmp_path, run_all)
    assert faults(trial, malformed.cases(2_000, seed=1)) == {}


def test_a_trial_notices_faults(
    malformed_model: Path, tmp_path: Path, run_all: Callable[..., Any]
) -> None:
    """The trial itself can fail."""
    trial = Trial(malformed_model, tmp_path, run_all)
    rng = np.random.default_rng(0)
    case = malformed.good_types(rng)
    wrong: list[dict[str, Any]] = [{"codes": frozenset([4])}, {"rows": 23}, {"bad": {7}}]
    for change in wrong:
        assert trial.fault(malformed.Case(**{**vars_of(case), **change}))


def vars_of(case: malformed.Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in case.__dataclass_fields__}


def test_an_unreadable_file_among_many(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, run_all: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whoever runs the tests may read everything, so the refusal is played."""
    write_rows(cards, 500, tmp_path / "in")
    real = Path.open

    def refusing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "night_2.parquet":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    call = ["score", "--model", cards_model, "--data", tmp_path / "in", "--out", tmp_path / "out"]
    result = run_all(*call)
    assert result.code == 4
    assert_one_line(result.err)
    assert "night_2.parquet: cannot be read (Permission denied)" in result.err


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    cards: pl.DataFrame, cards_model: Path, tmp_path: Path, run_all: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_rows(cards, 500, tmp_path / "in")
    (tmp_path / "in" / "closed").mkdir()
    real = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    call = ["score", "--model", cards_model, "--data", tmp_path / "in", "--out", tmp_path / "out"]
    result = run_all(*call)
    assert (result.code, result.out) == (4, "")
    assert_one_line(result.err)


def test_far_dates_as_time_of_a_row(
    malformed_model: Path, tmp_path: Path, run_all: Callable[..., Any]
) -> None:
    """Scores as text cannot hold them, and the row is refused anyway."""
    frame = malformed.table(5, np.random.default_rng(0)).with_columns(
        seen=pl.Series([0, 1 << 30, 5, -(1 << 30), 7], dtype=pl.Int32).cast(pl.Date)
    )
    frame.write_parquet(tmp_path / "data.parquet")
    for form in ("csv", "parquet"):
        call = ["score", "--model", malformed_model, "--data", tmp_path / "data.parquet"]
        result = run_all(*call, "--out", tmp_path / form, "--format", form, "--max-bad", "1")
        assert (result.code, result.err) == (0, "")
        assert "refused 2 rows: seen: beyond the years ±9999" in result.out


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 24])
def test_lines_of_a_csv_file_whatever_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(sources, "_SCANNED_BYTES", size)
    lines = ["a,b,c", '1,"x,\ny",3', '"say ""hi""",,', '"",",,,",5']
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    source = sources.open_source(path, part_rows=1)
    assert [part.end - part.begin for part in source.parts] == [11, 15, 10]
    read = [source.read(part).row(0) for part in source.parts]
    assert read == [("1", "x,\ny", "3"), ('say "hi"', None, None), ("", ",,,", "5")]
    path.write_text("\n".join([*lines, '"a,b,c",2']))
    with pytest.raises(sources.TableError, match="row 3 has 2 of 3 fields"):
        sources.open_source(path)


# ---- tampered models ---------------------------------------------------------------------------

# What somebody who seals the manifest anew can change unnoticed: it says which rows to refuse, and
# what answers are called. The golden rows are encoded already, and do not pass through the schema.
UNNOTICED = ("schema", "heads task")
STRANGE = [None, True, -1, 0, 3, 10**30, 1e308, float("nan"), "", "os.system", [], {}, [[None]]]
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
    "pickle.find_class",
    "marshal.loads",
)


class Watch:
    """Notes whatever Python runs, imports or starts while it is on."""

    def __init__(self) -> None:
        self.is_on, self.seen = False, list[str]()
        sys.addaudithook(self.note)  # cannot be taken away again

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def judged(
    model_folder: Path, portfolio: Any, tmp_path: Path, run_all: Callable[..., Any], watch: Watch
) -> Callable[[Path], tuple[int, str, pl.DataFrame | None]]:
    """Score some rows with a model and its challenger: exit code, standard error, scores."""
    data, out = tmp_path / "data.parquet", tmp_path / "out"
    portfolio.frame.head(20).write_parquet(data)

    def call(model: Path) -> tuple[int, str, pl.DataFrame | None]:
        shutil.rmtree(out, ignore_errors=True)
        watch.is_on = True
        try:
            result = run_all(
                *("score", "--model", model, "--data", data, "--out", out, "--time", MOMENT),
                *("--challenger", "--max-bad", "100%"),
            )
        finally:
            watch.is_on = False
        scores = pl.read_parquet(out / "part-*.parquet") if result.code == 0 else None
        return result.code, result.err, scores

    call(model_folder)  # whatever is imported at first is imported now
    watch.seen.clear()
    return call


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything within plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places_in(item, (*at, key))


def tamper_with_field(manifest: dict[str, Any], rng: random.Random) -> str:
    """Change, remove or add something, and say where: keys without positions."""
    by_key: dict[str, list[tuple[Any, ...]]] = {}
    for place in places_in(manifest):
        by_key.setdefault(place[0], []).append(place)
    *way, key = rng.choice(by_key[rng.choice(sorted(by_key))])
    parent: Any = manifest
    for step in way:
        parent = parent[step]
    old, how = parent[key], rng.choice(["set", "remove", "add", "nudge"])
    if how == "remove":
        del parent[key]
    elif how == "add" and isinstance(old, dict):
        old["extra"] = rng.choice(STRANGE)
    elif how == "add" and isinstance(old, list):
        old.append(rng.choice(STRANGE))
    elif how == "nudge" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = old + 1 + abs(old) / 2
    elif how == "nudge" and isinstance(old, str):
        parent[key] = f"{old}x"
    else:
        parent[key] = rng.choice(STRANGE)
    return " ".join(str(step) for step in (*way, key) if not isinstance(step, int))


def tamper_with_byte(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path.name


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    """As somebody would who knows how."""
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def faults_of_models(model: Path, copy: Path, judged: Callable[..., Any], trials: int) -> list[str]:
    """One line for every tampered model that was taken though it should not be, or unclearly."""
    rng, found = random.Random(0), []
    _, _, expected = judged(model)
    for i in range(trials):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(model, copy)
        is_byte = i % 2 == 0
        if is_byte:
            where = tamper_with_byte(copy, rng)
        else:
            folder = copy / rng.choice([".", "challenger"])
            manifest = json.loads((folder / "manifest.json").read_text())
            before = json.dumps(manifest)
            where = tamper_with_field(manifest, rng)
            if json.dumps(manifest) == before:
                continue
            reseal(folder, manifest)
            if folder != copy:
                outer = json.loads((copy / "manifest.json").read_text())
                for name in ("manifest.json", "manifest.sha256"):
                    data = (folder / name).read_bytes()
                    outer["files"][f"challenger/{name}"] = hashlib.sha256(data).hexdigest()
                reseal(copy, outer)
        code, err, scores = judged(copy)
        is_clear = code == 0 or (len(err.splitlines()) == 1 and "Traceback" not in err)
        is_same = scores is not None and scores.equals(expected)
        may_pass = not is_byte and (is_same or where.startswith(UNNOTICED))
        if not is_clear or not (code == 5 or may_pass):
            found.append(f"{i}, {where}: {code} {err[:300]}")
    return found


def test_a_hundred_tampered_models(
    model_folder: Path, tmp_path: Path, judged: Callable[..., Any], watch: Watch
) -> None:
    """Refused, or harmless, or known to go unnoticed; and nothing in them is run."""
    assert faults_of_models(model_folder, tmp_path / "copy", judged, 100) == []
    assert watch.seen == []


@pytest.mark.slow
def test_five_hundred_tampered_models(
    model_folder: Path, tmp_path: Path, judged: Callable[..., Any], watch: Watch
) -> None:
    assert faults_of_models(model_folder, tmp_path / "copy", judged, 500) == []
    assert watch.seen == []


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": ' + "9" * 5_000 + "}", "\ud800"])
def test_a_manifest_that_breaks_its_reader(
    model_folder: Path, tmp_path: Path, judged: Callable[..., Any], text: str
) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    data = text.encode("utf-8", "surrogatepass")
    (copy / "manifest.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (copy / "manifest.sha256").write_text(f"{digest}  manifest.json\n")
    code, err, _ = judged(copy)
    assert code == 5
    assert_one_line(err)


def test_the_watch_sees_what_is_run(watch: Watch) -> None:
    watch.is_on = True
    exec(compile("1", "nothing", "exec"))
    watch.is_on = False
    assert [line.split()[0] for line in watch.seen[-2:]] == ["compile", "exec"]
    watch.seen.clear()
