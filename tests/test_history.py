"""What training recorded: typed, and as it was after a way to disk."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from riskmtl.history import history_frame, read_history, write_history

ROWS: list[dict[str, Any]] = [
    {"epoch": 0, "task": "a", "kept": False, "train_loss": 1, "gradient_cosine_b": -0.1,
     "gate_weights": [0.25, None, 0.75], "dead_experts": 0},
    {"epoch": 1, "task": "b", "kept": True, "train_loss": float("inf"),
     "val_roc_auc": float("nan"), "gate_weights": None},
]  # fmt: skip


def test_columns_have_their_types_and_nulls_where_there_is_nothing() -> None:
    frame = history_frame(ROWS)
    assert dict(frame.schema) == {
        "epoch": pl.Int64,
        "task": pl.String,
        "kept": pl.Boolean,
        "train_loss": pl.Float64,
        "gradient_cosine_b": pl.Float64,
        "gate_weights": pl.List(pl.Float64),
        "dead_experts": pl.Int64,
        "val_roc_auc": pl.Float64,
    }
    assert frame["train_loss"].to_list() == [1, None]
    assert frame["val_roc_auc"].to_list() == [None, None]
    assert frame["gate_weights"].to_list() == [[0.25, None, 0.75], None]


def test_it_comes_back_as_it_was() -> None:
    frame = history_frame(ROWS)
    again = read_history(write_history(frame), ["a", "b"])
    assert again.equals(frame)
    assert again.schema == frame.schema


GOOD = {"epoch": 0, "task": "a", "kept": True}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, "a list of rows"),
        ([], "a list of rows"),
        ([1], "a list of rows"),
        ([{"task": "a", "kept": True}], "'epoch'"),
        ([{"epoch": 0, "kept": True}], "'task'"),
        ([{"epoch": 0, "task": "a"}], "'kept'"),
        ([GOOD, {"epoch": 1, "task": None, "kept": True}], "'task'"),
        ([GOOD | {"epoch": 0.5}], "'epoch' has a value of another type"),
        ([GOOD | {"epoch": True}], "'epoch'"),
        ([GOOD | {"kept": 1}], "'kept'"),
        ([GOOD | {"train_loss": "low"}], "'train_loss'"),
        ([GOOD | {"train_loss": [0.5]}], "'train_loss'"),
        ([GOOD | {"dead_experts": 0.5}], "'dead_experts'"),
        ([GOOD | {"gate_weights": 0.5}], "'gate_weights'"),
        ([GOOD | {"gate_weights": ["a"]}], "'gate_weights'"),
        ([GOOD | {"task": "c"}], "'c' is none of the model's"),
    ],
)
def test_what_is_no_history_is_refused(rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_history(json.dumps(rows), ["a", "b"])
