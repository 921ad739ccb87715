"""What is automatic follows from the number of training rows, and a given value wins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from riskmtl import MultiTaskClassifier
from riskmtl.sizing import Sizes
from riskmtl.training import fit as training


@pytest.mark.parametrize(
    ("rows", "members", "experts", "batch", "steps", "decay"),
    [
        (1, 8, 1, 128, 1, 0.01),
        (9_999, 8, 1, 128, 19, 0.01),
        (10_000, 8, 1, 256, 20, 0.01),
        (49_999, 8, 1, 256, 99, 0.01),
        (50_000, 1, 1, 512, 100, 2.0),
        (149_999, 1, 1, 512, 256, 2.0),
        (150_000, 2, 2, 1024, 256, 2.0),
        (10**9, 2, 2, 1024, 256, 2.0),
    ],
)
def test_sizes_follow_from_the_rows(
    rows: int, members: int, experts: int, batch: int, steps: int, decay: float
) -> None:
    found = Sizes.make(rows)
    assert (found.members, found.experts) == (members, experts)
    assert found.batch_size == batch
    model = MultiTaskClassifier()
    shape, config = model._shape(rows), model._training(rows, seed=0)
    assert shape.members == members
    assert (shape.task_experts, shape.shared_experts, shape.experts) == (
        experts,
        experts,
        4 * experts,
    )
    assert shape.steps == steps
    assert config.batch_size == batch
    assert config.embedding_decay == decay
    assert config.learning_rate == found.learning_rate(batch)


def test_what_is_given_wins() -> None:
    given = {"members": 3, "steps": 7, "experts": 5, "task_experts": 2, "shared_experts": 4}
    model = MultiTaskClassifier(**given, batch_size=64, learning_rate=0.1, embedding_decay=0)
    shape, config = model._shape(10), model._training(10, seed=0)
    assert {name: getattr(shape, name) for name in given} == given
    assert (config.batch_size, config.learning_rate) == (64, 0.1)
    assert config.embedding_decay == 0
    # The rate that nobody gave goes with the batch that somebody gave.
    rate = MultiTaskClassifier(batch_size=64)._training(10**6, seed=0).learning_rate
    assert rate == pytest.approx(0.004 * math.sqrt(64 / 1024))


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16-mixed"),
        ({"avx512_f": True, "avx512_bf16": False}, "32-true"),
        ({}, "32-true"),
        (None, "32-true"),
    ],
)
def test_automatic_precision_is_what_the_processor_multiplies(
    abilities: dict[str, Any] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if abilities is None:  # an older torch, which cannot say
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    cpu = torch.device("cpu")
    assert training.resolve_precision("auto", cpu) == expected
    assert training.resolve_precision("32", cpu) == "32-true"
    assert training.resolve_precision("bf16", cpu) == "bf16-mixed"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed")])
def test_automatic_precision_of_a_gpu_is_by_its_generation(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert training.resolve_precision("auto", torch.device("cuda")) == expected
