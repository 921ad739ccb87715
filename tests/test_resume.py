"""A training that was really killed goes on from its checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_killed_train_goes_on_to_the_same_weights(
    run: Callable[..., Any], portfolio_file: Path, schema_file: Path, tmp_path: Path
) -> None:
    settings = ["network=shared_bottom", "epochs=12", "patience=12", "challenger=null", "bins=8"]
    common = ["train", "--data", str(portfolio_file), "--schema", str(schema_file)]
    common += [part for setting in settings for part in ("--set", setting)]
    assert run(*common, "--out", tmp_path / "whole").code == 0

    cut = tmp_path / "cut"
    checkpoint = tmp_path / "cut.unfinished" / "last.ckpt"
    process = subprocess.Popen([sys.executable, "-m", "riskmtl", *common, "--out", str(cut)])
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not cut.exists()

    assert run(*common, "--out", cut).code == 0
    assert not checkpoint.parent.exists()
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_another_setting_cannot_go_on(
    run: Callable[..., Any], portfolio_file: Path, schema_file: Path, tmp_path: Path
) -> None:
    unfinished = tmp_path / "model.unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    (unfinished / "last.ckpt").write_bytes(b"")
    done = run(
        "train", "--data", portfolio_file, "--schema", schema_file, "--out", tmp_path / "model"
    )
    assert done.code == 1
    assert "model.unfinished: holds the checkpoint of a run with other settings" in done.err


@pytest.mark.parametrize("option", ["callbacks=[1]", "logger=3"])
def test_objects_of_a_program_cannot_come_from_the_command_line(
    run: Callable[..., Any], portfolio_file: Path, schema_file: Path, tmp_path: Path, option: str
) -> None:
    out = tmp_path / "model"
    done = run(
        "train", "--data", portfolio_file, "--schema", schema_file, "--out", out, "--set", option
    )
    assert done.code == 1
    assert f"unknown option '{option.split('=')[0]}'" in done.err
