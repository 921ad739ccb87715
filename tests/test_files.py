"""Files: a table is read or refused in one sentence, and what is written appears whole."""

import os
import stat
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from riskmtl.files import TableError, count_rows, open_table, read_table, replacing

TABLE = pl.DataFrame({"a": range(1000), "b": [f"row {i}" for i in range(1000)]})


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "table.parquet"
    TABLE.write_parquet(path, row_group_size=128)
    return path


def test_a_table_is_read_whole(table_file: Path) -> None:
    assert_frame_equal(read_table(table_file), TABLE)
    assert_frame_equal(read_table(str(table_file)), TABLE)
    assert count_rows(table_file) == 1000
    assert open_table(table_file).collect_schema() == TABLE.schema


@settings(deadline=None, max_examples=25)
@given(start=st.integers(0, 1100), rows=st.none() | st.integers(0, 1100))
def test_a_run_of_rows_is_read(table_file: Path, start: int, rows: int | None) -> None:
    stop = 1000 if rows is None else start + rows
    assert read_table(table_file, start=start, rows=rows)["a"].to_list() == list(
        range(start, min(1000, stop))
    )


@pytest.mark.parametrize("name", ["a [1] *.parquet", "größe?.parquet", "no suffix", "{x}.parquet"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as scratch:
        TABLE.write_parquet(scratch)
    assert_frame_equal(read_table(tmp_path / name), TABLE)
    assert count_rows(tmp_path / name) == 1000


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    TABLE.clear().write_parquet(tmp_path / "empty.parquet")
    assert count_rows(tmp_path / "empty.parquet") == 0
    assert read_table(tmp_path / "empty.parquet").columns == ["a", "b"]


@pytest.mark.parametrize("reader", [open_table, read_table, count_rows])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"a,b\n1,2\n", "not a Parquet file"),
        (b"PAR", "not a Parquet file"),
        (b"PAR1", "damaged or truncated"),
        (b"PAR1" + bytes(500), "damaged or truncated"),
        (b"PAR1" + bytes(500) + b"PAR1", "damaged or truncated"),
    ],
    ids=["missing", "empty", "CSV", "short", "magic only", "no end", "no footer"],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, reader: object, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "table.parquet"
    if content is not None:
        path.write_bytes(content)
    assert callable(reader)
    with pytest.raises(TableError, match=rf"table\.parquet: .*{reason}") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is a folder"):
        open_table(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(table_file: Path, tmp_path: Path, keep: float) -> None:
    data = table_file.read_bytes()
    path = tmp_path / "table.parquet"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(TableError, match="damaged or truncated"):
        read_table(path)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (4, 400), (-9, 8), (-4, 4), (-900, 400)])
def test_a_damaged_file_is_refused(
    table_file: Path, tmp_path: Path, start: int, length: int
) -> None:
    """Only places whose damage a reader can notice: Parquet keeps no sums of its pages."""
    data = bytearray(table_file.read_bytes())
    place = start % len(data)
    data[place : place + length] = bytes(length)
    path = tmp_path / "damaged.parquet"
    path.write_bytes(data)
    with pytest.raises(TableError, match=r"damaged\.parquet: ") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


# ---- writing -----------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "notes.txt"
    with replacing(target) as scratch:
        scratch.write_text("half")
        assert not target.exists()
        # Renaming is atomic only within a file system.
        assert scratch.parent == target.parent
    assert target.read_text() == "half"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_older_file_is_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as scratch:
            scratch.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_after_an_error_there_is_no_new_file(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "notes.txt") as scratch:
            scratch.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    def write() -> None:
        with replacing(tmp_path / "folder") as scratch:
            scratch.write_text("text")

    with pytest.raises(OSError, match="folder"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_other_users_can_read_what_was_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "notes.txt") as scratch:
        scratch.write_text("text")
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o644
