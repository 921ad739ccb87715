"""Experts: who listens to each, and which columns move it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from riskmtl import MultiTaskClassifier
from riskmtl.explain.experts import expert_columns, gate_use
from riskmtl.model import RiskModel
from riskmtl.schema import Split


@pytest.fixture(scope="module")
def deep(cards: pl.DataFrame, tiny: dict[str, Any]) -> MultiTaskClassifier:
    """Two levels, two experts each, two members."""
    options = {
        **tiny,
        "levels": 2,
        "task_experts": 2,
        "shared_experts": 2,
        "challenger": None,
        "epochs": 1,
    }
    X = cards.select("amount", "country", "age")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    return MultiTaskClassifier(**{**options, "challenger": None}).fit(X, y)


def level_by_hand(model: RiskModel, row: NDArray[np.float32], level: int) -> NDArray[np.float64]:
    """Gate weights of one row, ``(gates, experts)``: the mean over members, one at a time."""
    network = model.scorer.network
    embedded = network.embedding(torch.from_numpy(row[None]))
    found = []
    for scale in network.members.scale:
        x = embedded * scale
        for position, layer in enumerate(network.trunk.levels):
            gates = layer.gates(x if position == 0 else x[: layer.gated_streams])
            if position == level:
                found.append(gates[:, 0].detach().double().numpy())
            x = layer(x)
    return np.mean(found, axis=0)


def test_weights_are_those_of_the_gates(deep: MultiTaskClassifier, cards: pl.DataFrame) -> None:
    model, X = deep.model_, cards.select("amount", "country", "age").head(7)
    found = deep.gates(X)
    for level, gates in ((1, ["fraud", "other", "shared"]), (2, ["fraud", "other"])):
        rows = np.array([level_by_hand(model, row, level - 1) for row in model.encode(X)])
        here = found.filter(level=level)
        assert here["head"].unique(maintain_order=True).to_list() == gates
        names = [f"{owner} {i}" for owner in ("fraud", "other", "shared") for i in (1, 2)]
        for line in here.iter_rows(named=True):
            weights = rows[:, gates.index(line["head"]), names.index(line["expert"])]
            assert line["weight"] == pytest.approx(weights.mean(), abs=1e-6)
            assert line["spread"] == pytest.approx(weights.std(), abs=1e-6)
        sums = here.group_by("head").agg(pl.col("weight").sum())["weight"]
        np.testing.assert_allclose(sums, 1, atol=1e-6)
        own = here.filter(pl.col("head") == "fraud")["expert"].to_list()
        assert own == ["fraud 1", "fraud 2", "shared 1", "shared 2"]


def test_segments_are_those_of_a_column_or_given(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    rows = parts.test.head(60)
    by_name = trained.gates(rows, by="gender")
    assert by_name["segment"].n_unique() == rows["gender"].n_unique() > 1
    assert_frame_equal(by_name, trained.gates(rows, by=rows["gender"].to_list()))
    one = trained.gates(rows.filter(gender="f") if "f" in rows["gender"] else rows.head(3))
    assert set(one["segment"]) == {"all"}
    whole = trained.gates(rows)
    mean = by_name.group_by("head", "expert", maintain_order=True).agg(
        (pl.col("weight") * pl.col("rows")).sum() / pl.col("rows").sum()
    )
    np.testing.assert_allclose(mean["weight"], whole["weight"], atol=1e-9)
    assert by_name.filter(head="fraud", expert="fraud 1")["rows"].sum() == 60


def test_moves_are_those_of_replacing_one_column(
    deep: MultiTaskClassifier, cards: pl.DataFrame
) -> None:
    model, X = deep.model_, cards.select("amount", "country", "age").head(6)
    rows, background = model.encode(X), model.background[:1]
    found = expert_columns(model, rows, background)
    network = model.scorer.network
    for level in (1, 2):

        def experts(row: NDArray[np.float32], at: int = level - 1) -> NDArray[np.float32]:
            with torch.no_grad():
                return network.gated(torch.from_numpy(row[None]))[at].experts.numpy()

        moves = np.zeros((3, 6))  # (columns, experts)
        for row in rows:
            for column in range(3):
                changed = row.copy()
                changed[column] = background[0, column]
                difference = experts(row) - experts(changed)  # (experts, members, width)
                moves[column] += np.sqrt((difference**2).sum((1, 2)))
        shares = moves / moves.sum(0)
        here = found.filter(level=level)
        assert here["feature"].to_list() == ["amount", "country", "age"] * 6
        np.testing.assert_allclose(here["share"].to_numpy().reshape(6, 3), shares.T, atol=1e-4)


def test_a_column_that_no_expert_sees_has_no_share(
    deep: MultiTaskClassifier, cards: pl.DataFrame
) -> None:
    X = cards.select("amount", "country", "age").head(8)
    network = deep.model_.scorer.network
    order = network.embedding.numeric_columns.tolist()
    width = network.embedding.widths[0]
    place = order.index(2)
    kept = network.members.scale.data.clone()
    network.members.scale.data[..., place * width : (place + 1) * width] = 0
    found = deep.expert_columns(X)
    network.members.scale.data = kept
    seen = found.group_by("feature").agg(pl.col("share").max())
    shares = dict(seen.iter_rows())
    assert shares["age"] == 0
    assert shares["amount"] > 0.05
    assert found["error"].min() >= 0
    totals = found.group_by("level", "expert").agg(pl.col("share").sum())["share"]
    np.testing.assert_allclose(totals, 1, atol=1e-9)


def test_mmoe_shares_all_its_experts(cards: pl.DataFrame, tiny: dict[str, Any]) -> None:
    X = cards.select("amount", "country", "age")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    model = MultiTaskClassifier(**{**tiny, "network": "mmoe", "challenger": None}).fit(X, y)
    found = model.gates(X)
    experts = model.model_.scorer.shape.experts
    assert found["expert"].unique(maintain_order=True).to_list() == [
        f"shared {i + 1}" for i in range(experts)
    ]
    assert found.height == 2 * experts
    assert model.expert_columns(X.head(1))["error"].is_nan().all()


def test_sparse_gates_leave_experts_out(cards: pl.DataFrame, tiny: dict[str, Any]) -> None:
    X = cards.select("amount", "country", "age")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    settings = {"gating": "top_k", "active_experts": 1, "members": 1, "expert_dropout": 0.3}
    model = MultiTaskClassifier(**{**tiny, "challenger": None, **settings}).fit(X, y)
    by_row = model.gates(X.head(20), by=[str(row) for row in range(20)])
    # One expert has it all, in every row and at every gate.
    assert set(by_row["weight"]) == {0.0, 1.0}
    assert by_row.group_by("segment", "head").agg(pl.col("weight").sum())[
        "weight"
    ].unique().to_list() == [1.0]


def test_what_has_no_gates_says_so(
    trained: MultiTaskClassifier, parts: Split, cards: pl.DataFrame, tiny: dict[str, Any]
) -> None:
    X, y = cards.select("amount", "age"), cards.select(fraud="is_fraud")
    plain = MultiTaskClassifier(**{**tiny, "network": "shared_bottom", "challenger": None})
    with pytest.raises(ValueError, match="kind 'shared_bottom' has no gates"):
        plain.fit(X, y).gates(X)
    control = MultiTaskClassifier(**{**tiny, "network": "single_task", "challenger": None})
    with pytest.raises(ValueError, match="kind 'single_task' has no gates"):
        control.fit(X, y).gates(X)
    with pytest.raises(ValueError, match="kind 'lightgbm' has no gates"):
        trained.challenger_.expert_columns(parts.test.head(2))
    with pytest.raises(ValueError, match="by: unknown column 'gendr'"):
        trained.gates(parts.test.head(2), by="gendr")
    with pytest.raises(ValueError, match="by has 1 segments for 2 rows"):
        trained.gates(parts.test.head(2), by=["a"])
    with pytest.raises(ValueError, match="there are no rows"):
        gate_use(trained.model_, trained.model_.background[:0], [])
