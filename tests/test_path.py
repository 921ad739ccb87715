"""Attributions along paths: what they say they are, and named as approximate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from riskmtl import MultiTaskClassifier
from riskmtl.calibration import Calibrator
from riskmtl.explain import path
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.path import path_values
from riskmtl.schema import Split
from tests.reference import path as definition


def inputs_of(model: MultiTaskClassifier, parts: Split, rows: int) -> pl.DataFrame:
    return model.model_.schema.inputs(parts.test.head(rows))


def test_values_are_those_of_the_integral(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, background = trained.model_.scorer, trained.model_.background[:4]
    rows = trained.model_.encode(parts.test.head(2))
    found = path_values(scorer, rows, background)
    expected = [definition.path_values(scorer.network, row, background, 60) for row in rows]
    size = np.abs(expected).max()
    assert size > 0.01
    np.testing.assert_allclose(found, expected, atol=0.1 * size)
    monkeypatch.setattr(path, "_NODES", 64)
    closer = path_values(scorer, rows, background)
    np.testing.assert_allclose(closer, expected, atol=0.01 * size)


def test_a_network_that_is_additive_is_explained_exactly(
    cards: pl.DataFrame, tiny: dict[str, Any]
) -> None:
    X = cards.select("amount", "country", "age")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    model = (
        MultiTaskClassifier(**{**tiny, "linear_path": True, "challenger": None}).fit(X, y).model_
    )
    network = model.scorer.network
    with torch.no_grad():
        network.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        network.towers.out.weight.zero_()
    found = explain_rows(model, X.head(5), model.background, method="path")
    sampled = explain_rows(model, X.head(5), model.background)
    assert found.features == ["amount", "country", "age"]
    np.testing.assert_allclose(found.values, sampled.values, atol=1e-4)
    assert np.abs(sampled.values).max() > 0.1
    assert found.residual.max() < 1e-4


@pytest.mark.parametrize("network", ["single_task", "mmoe"])
def test_every_kind_of_network_adds_up_with_nodes_enough(
    network: str, cards: pl.DataFrame, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    X = cards.select("amount", "country", "age")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    options = {**tiny, "network": network, "challenger": None}
    model = MultiTaskClassifier(**options).fit(X, y)
    monkeypatch.setattr(path, "_NODES", 64)
    found = model.explain(X.head(9), method="path")
    assert found.residual.max() < 0.02 * np.abs(found.values).max()
    np.testing.assert_allclose(found.outputs, model.decision_function(X.head(9)), atol=1e-5)


def test_chunks_change_nothing(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, rows = trained.model_.scorer, trained.model_.encode(parts.test.head(5))
    background = trained.model_.background[:4]
    found = path_values(scorer, rows, background)
    monkeypatch.setattr(type(scorer), "rows", property(lambda self: 2 * 3 * 4))
    np.testing.assert_allclose(path_values(scorer, rows, background), found, atol=1e-6)
    monkeypatch.setattr(path, "_NODES", 1)
    assert np.abs(path_values(scorer, rows, background) - found).max() > 1e-6


def test_heads_groups_and_calibration_are_those_asked_for(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    heads = [
        replace(h, calibrator=Calibrator(slope=0.5, intercept=0.3)) for h in trained.model_.heads
    ]
    model = replace(trained.model_, heads=heads)
    inputs, background = inputs_of(trained, parts, 3), trained.model_.background[:8]
    options: dict[str, Any] = {"method": "path", "heads": ["takeover", "fraud"]}
    before = explain_rows(model, inputs, background, calibrated=False, **options)
    device = {"device": [n for n in before.features if n.startswith("dev_")]}
    after = explain_rows(model, inputs, background, groups=device, **options)
    own = np.isin(before.features, device["device"])
    place = after.features.index("device")
    np.testing.assert_allclose(after.values[:, place], 0.5 * before.values[:, own].sum(1))
    np.testing.assert_allclose(after.base, 0.5 * before.base + 0.3)
    assert after.heads == ["takeover", "fraud"]


def test_it_says_what_it_is(trained: MultiTaskClassifier, parts: Split) -> None:
    found = trained.explain(parts.test.head(3), method="path")
    assert "path" in repr(found)
    assert "approximate, largest residual" in repr(found)
    assert np.isnan(found.errors).all()
    assert not found.met.any()
    assert found.to_frame()["method"].unique().to_list() == ["path"]
    assert found.to_frame()["error"].is_nan().all()
    assert found.to_shap("fraud").output_names == "fraud (path attributions, approximate)"


def test_only_a_network_alone_has_paths(trained: MultiTaskClassifier, parts: Split) -> None:
    with pytest.raises(ValueError, match="method='path' explains a network alone"):
        trained.challenger_.explain(parts.test.head(1), method="path")
    with pytest.raises(ValueError, match="method='path' explains log-odds alone"):
        trained.explain(parts.test.head(1), method="path", scale="probability")
