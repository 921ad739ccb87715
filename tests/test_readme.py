"""What the README shows runs, on fewer rows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from riskmtl.schema_file import load_schema
from riskmtl.validation import load_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = ["--set", "epochs=1", "--set", "challenger_options={trials: 1, n_estimators: 10}"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout to whoever stands in it."""
    (tmp_path / "data_schemas").symlink_to(ROOT / "data_schemas")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, folder: Path) -> None:
    small = code.replace("200_000", "8_000").replace("schema=schema, ", "schema=schema, epochs=1, ")
    assert small != code or "200_000" not in code
    exec(compile(small, "README.md", "exec"), {})
    if "model.save" in code:
        assert (folder / "model" / "manifest.json").exists()


def test_commands_run(folder: Path, run: Callable[..., Any]) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) == 5
    (folder / "few.yaml").write_text("explained_rows: 20")
    more = {"train": TINY, "validate": ["--config", "few.yaml"]}
    for command in commands:
        program, *arguments = shlex.split(command.replace("200000", "8000"))
        assert program == "riskmtl"
        done = run(*arguments, *more.get(arguments[0], []))
        assert done.code == 0, done.err
    assert (folder / "evaluation.json").exists()
    assert (folder / "scores" / "_MANIFEST.json").exists()
    assert (folder / "report" / "validation.html").exists()


def test_the_example_schema_can_be_read(tmp_path: Path) -> None:
    _, text = blocks("yaml")
    (tmp_path / "cards.yaml").write_text(text)
    schema = load_schema(tmp_path / "cards.yaml")
    assert [column.name for column in schema.input_columns] == ["income", "opened_on", "country"]
    assert [task.name for task in schema.tasks] == ["default", "fraud"]


def test_the_example_settings_can_be_read(tmp_path: Path) -> None:
    text, _ = blocks("yaml")
    (tmp_path / "settings.yaml").write_text(text)
    settings = load_settings(tmp_path / "settings.yaml")
    assert settings.budget("default") == 0.15
    assert settings.vintage == "acc_product"
    assert settings.criteria["auc"].watch == 0.7


def test_every_file_that_it_links_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_map_names_every_module() -> None:
    rooms = README[README.index("riskmtl/\n  estimator.py") :]
    for path in (ROOT / "riskmtl").iterdir():
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed"):
            assert re.search(rf"^  {re.escape(path.name)}", rooms, flags=re.M), path.name


@pytest.mark.parametrize(
    "target",
    ["demo", "report", "browser", "java", "test", "lint", "benchmark", "peers", "benchmark-alarms"],
)
def test_make_targets_exist(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, flags=re.M)
