"""Mixtures behind the first layer are mixtures of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from riskmtl import LogisticBaseline, MultiTaskClassifier
from riskmtl.explain import game
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.game import answers_of, mixtures_of
from riskmtl.explain.mixtures import MixedLayers, MixedRows, MixedSum, Mixtures
from riskmtl.model import RiskModel
from riskmtl.schema import Split
from riskmtl.threads import one_thread_each

NETWORKS: dict[str, dict[str, Any]] = {
    "ple": {"members": 2},
    "ple of two levels": {"levels": 2, "linear_path": False},
    "mmoe": {"network": "mmoe", "members": 3},
    "shared_bottom": {"network": "shared_bottom"},
    "single_task": {"network": "single_task", "members": 2},
    "cross_stitch": {"network": "soft_sharing", "tie": "cross_stitch", "shared_units": [8]},
    "dselect_k": {"gating": "dselect_k", "members": 2},
    "standardized": {"numeric_embedding": "standardize"},
    "periodic": {"numeric_embedding": "periodic", "members": 2},
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def model(request: pytest.FixtureRequest, cards: pl.DataFrame, tiny: dict[str, Any]) -> RiskModel:
    options = {**tiny, "challenger": None, "members": 1, "epochs": 1, **request.param}
    X = cards.select("amount", "age", "country")
    labels = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    fitted = MultiTaskClassifier(**options).fit(X, labels).model_
    with torch.no_grad():
        # So that answers differ from row to row, as those of a network do that learned something.
        for parameter in fitted.scorer.network.parameters():
            parameter.mul_(3)
    return fitted


def some_rows(model: RiskModel, rows: int, seed: int) -> NDArray[np.float32]:
    return model.encoder.transform(model.encoder.simulate(rows, seed))


def both_ways(model: RiskModel, groups: list[list[int]]) -> tuple[Mixtures, Mixtures]:
    rows, background = some_rows(model, 3, 0), some_rows(model, 9, 1)
    chosen = {"heads": model.tasks[::-1], "scale": "log_odds", "calibrated": True}
    layers = mixtures_of(model, rows, background, groups, **chosen)
    answers = answers_of(model, *chosen.values())
    return layers, MixedRows(answers, torch.from_numpy(rows), torch.from_numpy(background), groups)


def test_layers_answer_as_mixed_rows_do(model: RiskModel) -> None:
    columns = list(range(len(model.encoder.columns_)))
    generator = torch.Generator().manual_seed(0)
    for groups in ([[c] for c in columns], [[columns[-1], columns[0]], columns[1:-1]]):
        layers, rows = both_ways(model, groups)
        assert isinstance(layers, MixedLayers)
        np.testing.assert_array_equal(layers.at_rows, rows.at_rows)
        np.testing.assert_array_equal(layers.at_background, rows.at_background)
        for part in (slice(0, 9), slice(4, 6)):
            size = (len(range(9)[part]), 11)
            taken = torch.rand(*size, len(groups), generator=generator) < 0.5
            wanted = torch.rand(size, generator=generator) < 0.7
            for row in (0, 2):
                found = layers.answers(row, part, taken, wanted)
                assert found.shape == (int(wanted.sum()), 2)
                expected = rows.answers(row, part, taken, wanted)
                np.testing.assert_allclose(found, expected, atol=2e-5)
                assert expected.std(0).min() > 1e-2


def test_nothing_wanted_is_nothing_answered(model: RiskModel) -> None:
    for mixtures in both_ways(model, [[c] for c in range(len(model.encoder.columns_))]):
        wanted = torch.zeros(9, 4, dtype=torch.bool)
        taken = torch.zeros(9, 4, len(mixtures.groups), dtype=torch.bool)
        assert mixtures.answers(0, slice(None), taken, wanted).shape == (0, 2)


def test_all_or_none_taken_are_the_rows_themselves(model: RiskModel) -> None:
    layers, _ = both_ways(model, [[c] for c in range(len(model.encoder.columns_))])
    taken = torch.tensor([False, True]).view(1, 2, 1).expand(9, 2, len(layers.groups))
    found = layers.answers(1, slice(None), taken, torch.ones(9, 2, dtype=torch.bool))
    neither, whole = found.reshape(9, 2, 2).swapaxes(0, 1)
    np.testing.assert_allclose(neither, layers.at_background, atol=2e-5)
    np.testing.assert_allclose(whole, np.tile(layers.at_rows[1], (9, 1)), atol=2e-5)


def test_a_wide_first_layer_is_not_kept(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained.model_
    inputs, compared = model.schema.inputs(parts.test.head(2)), model.background[:20]
    kept = explain_rows(model, inputs, compared)
    monkeypatch.setattr(game, "_MOST_NUMBERS", 1000)
    rows = model.encoder.transform(inputs)
    groups = [[i] for i in range(rows.shape[1])]
    options: dict[str, Any] = {"heads": ["fraud"], "scale": "log_odds", "calibrated": True}
    assert isinstance(mixtures_of(model, rows, compared, groups, **options), MixedRows)
    np.testing.assert_allclose(explain_rows(model, inputs, compared).values, kept.values, atol=1e-5)


@pytest.mark.parametrize("scale", ["log_odds", "probability"])
def test_a_blend_answers_with_both_of_its_parts(
    cards: pl.DataFrame, tiny: dict[str, Any], scale: str
) -> None:
    X = cards.select("amount", "age", "country")
    y = cards.select(fraud="is_fraud", other=1 - pl.col("is_fraud"))
    model = MultiTaskClassifier(**{**tiny, "challenger": "blend"}).fit(X, y).model_
    shares = (0.3, 0.8)
    heads = [replace(head, blend=share) for head, share in zip(model.heads, shares, strict=True)]
    blend = replace(model, heads=heads)
    rows, background = some_rows(blend, 2, 0), some_rows(blend, 7, 1)
    options: dict[str, Any] = {"heads": ["other", "fraud"], "scale": scale, "calibrated": True}
    mixtures = mixtures_of(blend, rows, background, [[0], [1, 2]], **options)
    assert isinstance(mixtures, MixedSum)
    whole = MixedRows(
        answers_of(blend, *options.values()), mixtures.rows, mixtures.background, mixtures.groups
    )
    taken = torch.rand(7, 5, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    wanted = torch.ones(7, 5, dtype=torch.bool)
    found, expected = (m.answers(1, slice(None), taken, wanted) for m in (mixtures, whole))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert expected.std(0).min() > 1e-4


def test_threads_share_the_work_and_change_nothing(model: RiskModel) -> None:
    rows, background = some_rows(model, 2, 0), some_rows(model, 40, 1)
    groups = [[column] for column in range(rows.shape[1])]
    options: dict[str, Any] = {"heads": model.tasks, "scale": "log_odds", "calibrated": True}
    taken = torch.rand(40, 9, len(groups), generator=torch.Generator().manual_seed(0)) < 0.5
    wanted = torch.ones(40, 9, dtype=torch.bool)
    found = []
    for threads in (1, 3):
        mixtures = mixtures_of(model, rows, background, groups, threads=threads, **options)
        assert isinstance(mixtures, MixedLayers)
        mixtures.most = 20
        found.append(mixtures.answers(1, slice(None), taken, wanted))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_threads_are_those_of_before(trained: MultiTaskClassifier, parts: Split) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trained.explain(parts.test.head(1), background=parts.train.head(4))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="budget"):
            trained.explain(parts.test.head(1), budget=3)
        assert torch.get_num_threads() == 2
        with one_thread_each() as threads:
            assert (threads, torch.get_num_threads()) == (2, 1)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_network_mixes_rows(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount", "age"), cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y).model_
    rows = model.encode(X.head(2))
    mixtures = mixtures_of(
        model, rows, rows, [[0], [1]], heads=["fraud"], scale="probability", calibrated=True
    )
    assert isinstance(mixtures, MixedRows)
    np.testing.assert_allclose(mixtures.at_rows, model.probabilities(rows))


def test_a_group_differs_where_one_of_its_columns_does() -> None:
    nan = float("nan")
    x = torch.tensor([[1.0, 2.0, nan]])
    background = torch.tensor([[1.0, 2.0, nan], [1.0, 3.0, nan], [0.0, 2.0, 5.0]])
    mixtures = MixedRows(lambda rows: rows.numpy().astype(float), x, background, [[0], [1, 2]])
    assert mixtures.differs(0).tolist() == [[False, False], [False, True], [True, True]]
