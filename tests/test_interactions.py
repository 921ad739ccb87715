"""Interactions: true to the definition, honest about their error, in the columns that matter."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from riskmtl import LogisticBaseline, MultiTaskClassifier
from riskmtl.explain import interactions
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.interactions import interaction_values, strongest_interactions
from riskmtl.explain.mixtures import MixedRows
from riskmtl.model import RiskModel
from riskmtl.schema import Split
from tests.reference import shapley as definition

NAN = float("nan")


def numbers(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def singles(columns: int) -> list[list[int]]:
    return [[column] for column in range(columns)]


def all_pairs(groups: int) -> list[tuple[int, int]]:
    return list(combinations(range(groups), 2))


class Curve:
    """A function of rows with interactions of every order, two outputs, in float64."""

    def __init__(self, columns: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(columns, 12)) / columns**0.5
        self.out = rng.normal(size=(12, 2))
        self.calls: list[int] = []

    def __call__(self, rows: torch.Tensor | NDArray[np.float32]) -> NDArray[np.float64]:
        self.calls.append(len(rows))
        return np.asarray(np.tanh(2 * np.asarray(rows, dtype=np.float64) @ self.weight) @ self.out)


Found = tuple[NDArray[np.float64], NDArray[np.float64]]


def interacting(
    function: Any, x: NDArray[np.float32], background: NDArray[np.float32], **options: Any
) -> Found:
    groups = options.pop("groups", singles(len(x)))
    pairs = options.pop("pairs", all_pairs(len(groups)))
    options.setdefault("budget", 4)
    rows, compared = torch.from_numpy(x[None]), torch.from_numpy(background)
    return interaction_values(MixedRows(function, rows, compared, groups), 0, pairs, **options)


# ---- the truth -----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [4, 5, 6, 7])
def test_values_are_those_of_the_definition_within_their_errors(columns: int) -> None:
    x, background = numbers(1, columns, columns)[0], numbers(16, columns, 1)
    curve, pairs = Curve(columns, columns), all_pairs(columns)
    values, errors = interacting(curve, x, background, budget=200)
    true = definition.interaction_values(curve, x, background, singles(columns), pairs)
    off = np.abs(values - true)
    assert off.max() < 0.05 * np.abs(true).max()
    assert (off <= 4 * errors + 1e-12).all()


def test_groups_are_those_of_the_definition() -> None:
    groups = [[3], [0, 2], [1, 4], [6], [5]]
    x, background, curve = numbers(1, 7, 0)[0], numbers(16, 7, 1), Curve(7)
    values, errors = interacting(curve, x, background, groups=groups, budget=200)
    true = definition.interaction_values(curve, x, background, groups, all_pairs(5))
    np.testing.assert_allclose(values, true, atol=0.05 * np.abs(true).max())
    assert (np.abs(values - true) <= 4 * errors + 1e-12).all()


@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 2], [1]], [[0], [1], [2]], [[2], [0, 3], [1]]])
def test_two_or_three_groups_are_explained_exactly(groups: list[list[int]]) -> None:
    columns = sum(map(len, groups))
    x, background, curve = numbers(1, columns, 0)[0], numbers(8, columns, 1), Curve(columns)
    values, errors = interacting(curve, x, background, groups=groups)
    true = definition.interaction_values(curve, x, background, groups, all_pairs(len(groups)))
    np.testing.assert_allclose(values, true, atol=1e-12)
    assert np.abs(true).min() > 1e-4
    assert errors.max() < 1e-7


@pytest.mark.parametrize("columns", [2, 3, 6])
def test_what_all_columns_do_together_is_shared_by_size_of_coalition(columns: int) -> None:
    x, background = np.ones(columns, np.float32), np.zeros((400, columns), np.float32)
    values, errors = interacting(
        lambda rows: rows.prod(1, keepdim=True).double().numpy(), x, background, budget=40
    )
    # Only the whole coalition is worth anything, and its size comes up once in n - 1.
    np.testing.assert_allclose(values, 1 / (columns - 1), atol=0.02)
    assert (np.abs(values - 1 / (columns - 1)) <= 4 * errors + 1e-12).all()


def test_columns_that_add_up_do_nothing_together() -> None:
    rng = np.random.default_rng(0)
    # Whole numbers, so that sums are exact in any order.
    x, background = (rng.integers(-9, 9, size).astype(np.float32) for size in (5, (9, 5)))

    def total(rows: torch.Tensor) -> NDArray[np.float64]:
        z = rows.double().numpy()
        return np.column_stack([z[:, 0] + z[:, 1] ** 2 - 3 * z[:, 2] + (z[:, 3] > 0), z.sum(1)])

    values, errors = interacting(total, x, background)
    assert values.shape == errors.shape == (10, 2)
    assert not values.any()
    assert not errors.any()


def test_a_product_is_explained_in_closed_form_without_error() -> None:
    x, background = numbers(1, 5, 0)[0], numbers(9, 5, 1)

    def product(rows: torch.Tensor) -> NDArray[np.float64]:
        z = rows.double().numpy()
        return (z[:, 1] * z[:, 3] + np.sin(z[:, 0]) - z[:, 4])[:, None]

    values, errors = interacting(product, x, background)
    moved = x.astype(np.float64) - background
    true = np.array(
        [(moved[:, 1] * moved[:, 3]).mean() if p == (1, 3) else 0.0 for p in all_pairs(5)]
    )
    np.testing.assert_allclose(values[:, 0], true, atol=1e-12)
    assert errors.max() < 1e-7


def test_the_standard_error_is_honest() -> None:
    columns, background, curve = 8, numbers(48, 8, 1), Curve(8)
    within = []
    for x in numbers(4, columns, 0):
        true, _ = interacting(curve, x, background, budget=300, seed=99)
        for seed in range(6):
            values, errors = interacting(curve, x, background, seed=seed)
            within.append(np.abs(values - true) <= 2 * errors)
    assert 0.90 <= np.mean(within) <= 0.98


def test_the_error_falls_with_the_budget_and_the_background_is_used_up() -> None:
    x, background, curve = numbers(1, 6, 0)[0], numbers(32, 6, 1), Curve(6)
    _, few = interacting(curve, x, background, budget=20)
    _, many = interacting(curve, x, background, budget=320)
    # Sixteen times the coalitions.
    assert many.mean() / few.mean() == pytest.approx(0.25, abs=0.05)
    # The difference varies from one background row to the next, and still there is no error.
    _, errors = interacting(curve, x, background, groups=[[0, 1, 2], [3, 4, 5]])
    assert errors.max() < 1e-7


@settings(max_examples=40, deadline=None)
@given(columns=st.integers(2, 6), compared=st.integers(1, 6), seed=st.integers(0, 999))
def test_a_pair_has_no_order_and_owes_nothing_to_other_pairs(
    columns: int, compared: int, seed: int
) -> None:
    x, background, curve = numbers(1, columns, seed)[0], numbers(compared, columns, 1), Curve(6)
    curve.weight = curve.weight[:columns]
    values, errors = interacting(curve, x, background, seed=seed)
    turned = [pair[::-1] for pair in all_pairs(columns)]
    same_values, same_errors = interacting(curve, x, background, pairs=turned, seed=seed)
    np.testing.assert_allclose(same_values, values, atol=1e-12)
    np.testing.assert_allclose(same_errors, errors, atol=1e-7)
    alone, _ = interacting(curve, x, background, pairs=turned[-1:], seed=seed)
    np.testing.assert_allclose(alone, values[-1:], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(columns=st.integers(2, 6), seed=st.integers(0, 999))
def test_interactions_of_a_sum_are_sums_and_an_idle_column_has_none(
    columns: int, seed: int
) -> None:
    x, background = numbers(1, columns, seed)[0], numbers(5, columns, 1)
    one, other = Curve(columns, seed), Curve(columns, seed + 1)
    other.weight[0] = 0
    parts = [interacting(curve, x, background, seed=seed)[0] for curve in (one, other)]
    whole, _ = interacting(lambda z: one(z) - 3 * other(z), x, background, seed=seed)
    np.testing.assert_allclose(whole, parts[0] - 3 * parts[1], atol=1e-11)
    idle = [0 in pair for pair in all_pairs(columns)]
    assert np.abs(parts[1][idle]).max() < 1e-12


# ---- how it is computed --------------------------------------------------------------------------


def test_neither_order_nor_number_of_rows_matters() -> None:
    x, background, curve = numbers(3, 6, 0), numbers(10, 6, 1), Curve(6)
    compared = torch.from_numpy(background)
    mixtures = MixedRows(curve, torch.from_numpy(x), compared, singles(6))
    for row in (2, 0, 1):
        values, errors = interaction_values(mixtures, row, all_pairs(6), budget=4)
        alone = interacting(curve, x[row], background)
        np.testing.assert_allclose(values, alone[0], atol=1e-12)
        np.testing.assert_allclose(errors, alone[1], atol=1e-7)


def test_a_seed_gives_the_same_again_and_another_seed_does_not() -> None:
    x, background, curve = numbers(1, 6, 0)[0], numbers(10, 6, 1), Curve(6)
    values, same, other = (interacting(curve, x, background, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(same, values)
    assert np.abs(other - values).min() > 1e-6


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, background, curve = numbers(1, 6, 0)[0], numbers(10, 6, 1), Curve(6)
    values, errors = interacting(curve, x, background)
    # The row and the background themselves come first.
    each = 4 * 15
    assert curve.calls == [1, 10] + [10 * each] * 4
    for cells, most in ((1, each), (7 * each * 6, 7 * each)):
        curve.calls.clear()
        monkeypatch.setattr(interactions, "MOST_CELLS", cells)
        again = interacting(curve, x, background)
        np.testing.assert_allclose(again[0], values, atol=1e-12)
        np.testing.assert_allclose(again[1], errors, atol=1e-7)
        assert max(curve.calls) == most


def test_what_is_the_same_in_both_rows_costs_nothing() -> None:
    x, background, curve = numbers(1, 6, 0)[0], numbers(10, 6, 1), Curve(6)
    x[0] = background[:, 0] = NAN
    background[:, 2:4] = x[2:4]
    background[:3, 5] = x[5]
    values, errors = interacting(lambda rows: curve(torch.nan_to_num(rows)), x, background)
    idle = np.array([bool({0, 2, 3} & set(pair)) for pair in all_pairs(6)])
    assert not values[idle].any()
    assert not errors[idle].any()
    assert np.abs(values[~idle]).min() > 1e-6
    # Left are columns 1 and 4 in ten rows, and either with 5 in seven; each has four corners.
    assert sum(curve.calls) == 1 + 10 + 4 * 4 * (10 + 7 + 7)


def test_a_row_like_the_whole_background_costs_nothing() -> None:
    x, curve = numbers(1, 6, 0)[0], Curve(6)
    assert not np.any(interacting(curve, x, np.tile(x, (4, 1))))
    assert curve.calls == [1, 4]


def test_a_group_moves_where_any_of_its_columns_does() -> None:
    x, background, curve = numbers(1, 4, 0)[0], numbers(6, 4, 1), Curve(4)
    background[:, 1] = x[1]
    groups = [[0, 1], [2], [3]]
    values, _ = interacting(curve, x, background, groups=groups)
    true = definition.interaction_values(curve, x, background, groups, all_pairs(3))
    np.testing.assert_allclose(values, true, atol=1e-12)


def test_without_pairs_there_is_nothing_to_say() -> None:
    values, errors = interacting(Curve(3), numbers(1, 3, 0)[0], numbers(4, 3, 1), pairs=[])
    assert values.shape == errors.shape == (0, 2)


@pytest.mark.parametrize("budget", [0, 2, 5])
def test_a_budget_that_gives_no_error_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"even number of at least 4, got {budget}"):
        interacting(Curve(2), numbers(1, 2, 0)[0], numbers(3, 2, 1), budget=budget)


@pytest.mark.parametrize("pair", [(1, 1), (0, 3), (-1, 0)])
def test_a_pair_that_is_none_is_refused(pair: tuple[int, int]) -> None:
    message = f"pairs must name two groups each, from 0 to 2, got {pair}"
    with pytest.raises(ValueError, match=re.escape(message)):
        interacting(Curve(3), numbers(1, 3, 0)[0], numbers(3, 3, 1), pairs=[(0, 1), pair])


# ---- models --------------------------------------------------------------------------------------


def half_and_half(trained: MultiTaskClassifier) -> RiskModel:
    """The network and its challenger as a blend."""
    heads = [replace(head, blend=0.5) for head in trained.model_.heads]
    return replace(trained.model_, heads=heads)


def thirds(model: RiskModel) -> dict[str, list[str]]:
    """All columns, by what they tell of."""
    names = [column.name for column in model.encoder.columns_]
    kinds = {"account": "acc_", "device": "dev_"}
    found = {kind: [n for n in names if n.startswith(start)] for kind, start in kinds.items()}
    return {**found, "rest": [n for n in names if not n.startswith(tuple(kinds.values()))]}


def some(model: RiskModel, parts: Split, rows: int = 3) -> pl.DataFrame:
    assert model.schema is not None
    return model.schema.inputs(parts.test.head(rows))


def test_three_groups_of_a_model_are_those_of_the_definition(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    models = [trained.model_, trained.challenger_.model_, half_and_half(trained)]
    for model, scale in zip(models, ("log_odds", "log_odds", "probability"), strict=True):
        inputs, compared = some(model, parts), model.background[:12]
        groups = thirds(model)
        found = strongest_interactions(
            model, inputs, compared, head="fraud", groups=groups, scale=scale
        )
        names = [column.name for column in model.encoder.columns_]
        columns = [[names.index(name) for name in group] for group in groups.values()]

        def answers(
            rows: NDArray[np.float32], model: RiskModel = model, scale: str = scale
        ) -> NDArray[np.float64]:
            given = model.margins if scale == "log_odds" else model.probabilities
            return given(rows)[:, [model.tasks.index("fraud")]]

        pairs = all_pairs(3)
        for number, row in enumerate(model.encoder.transform(inputs)):
            true = definition.interaction_values(answers, row, compared, columns, pairs)
            for (first, second), value in zip(pairs, true[:, 0], strict=True):
                pair = {list(groups)[first], list(groups)[second]}
                line = found.filter(
                    pl.col("row") == number,
                    pl.col("first").is_in(pair),
                    pl.col("second").is_in(pair),
                )
                assert line["value"].item() == pytest.approx(value, abs=1e-5)
        assert found["value"].abs().max() > 1e-4
        assert found["error"].max() < 1e-4


def test_the_columns_are_those_that_move_the_head_most(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    model = trained.model_
    inputs, compared = some(model, parts, 4), model.background[:16]
    for head in ("fraud", "takeover"):
        found = strongest_interactions(model, inputs, compared, head=head, strongest=4)
        explained = explain_rows(model, inputs, compared, heads=[head])
        size = np.abs(explained.values[:, :, 0]).mean(0)
        best = {explained.features[i] for i in np.argsort(size)[-4:]}
        assert set(found["first"]) | set(found["second"]) == best
        assert set(found["head"]) == {head}
        assert found.height == found.n_unique(["row", "first", "second"]) == 4 * comb(4, 2)
        position = {name: i for i, name in enumerate(explained.features)}
        assert all(position[a] < position[b] for a, b in found.select("first", "second").rows())


def test_lines_are_in_the_order_of_rows_and_then_of_size(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    model = trained.model_
    found = strongest_interactions(model, some(model, parts), model.background[:12], head="fraud")
    assert found.columns == ["row", "head", "first", "second", "value", "error"]
    assert found["row"].to_list() == [0] * 10 + [1] * 10 + [2] * 10
    values = found["value"].to_numpy().reshape(3, 10)
    assert values.min() < 0 < values.max()
    assert (np.diff(np.abs(values), axis=1) <= 0).all()
    assert (found["error"] > 0).all()


def test_budget_and_seed_are_those_asked_for(trained: MultiTaskClassifier, parts: Split) -> None:
    model = trained.challenger_.model_
    inputs, compared = some(model, parts, 2), model.background[:12]
    options: dict[str, Any] = {"budget": 8, "seed": 3}
    found = strongest_interactions(model, inputs, compared, head="fraud", strongest=2, **options)
    names = [column.name for column in model.encoder.columns_]
    pair = [(names.index(found["first"][0]), names.index(found["second"][0]))]

    def answers(rows: torch.Tensor) -> NDArray[np.float64]:
        return model.margins(rows.numpy())

    fraud = model.tasks.index("fraud")
    for number, row in enumerate(model.encoder.transform(inputs)):
        values, errors = interacting(answers, row, compared, pairs=pair, **options)
        np.testing.assert_allclose(found["value"][number], values[0, fraud], atol=1e-12)
        np.testing.assert_allclose(found["error"][number], errors[0, fraud], atol=1e-9)


def test_the_order_of_rows_does_not_matter(trained: MultiTaskClassifier, parts: Split) -> None:
    model = trained.model_
    inputs, compared = some(model, parts), model.background[:12]
    options: dict[str, Any] = {"head": "fraud", "strongest": 3, "seed": 4}
    found = strongest_interactions(model, inputs, compared, **options)
    turned = strongest_interactions(model, inputs.reverse(), compared, **options)
    back = turned.with_columns(row=2 - pl.col("row")).sort("row", maintain_order=True)
    assert back.select("row", "first", "second").equals(found.select("row", "first", "second"))
    np.testing.assert_allclose(back["value"], found["value"], atol=1e-6)


def test_the_slope_of_a_calibrator_is_that_of_the_interactions(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    model = trained.challenger_.model_
    steep = [replace(head, calibrator=replace(head.calibrator, slope=2.0)) for head in model.heads]
    model = replace(model, heads=steep)
    inputs, compared = some(model, parts), model.background[:8]
    before = strongest_interactions(model, inputs, compared, head="fraud", calibrated=False)
    after = strongest_interactions(model, inputs, compared, head="fraud")
    np.testing.assert_allclose(after["value"], 2 * before["value"], atol=1e-9)


def test_a_logistic_regression_has_interactions_in_probability_alone(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount", "age", "country"), cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y).model_
    compared = model.encode(X[-20:])
    # There are but three columns, so five are cut to three.
    found = strongest_interactions(model, X[:4], compared, head="fraud", strongest=5)
    assert found.height == 4 * 3
    assert found["value"].abs().max() < 1e-12
    likely = strongest_interactions(model, X[:4], compared, head="fraud", scale="probability")
    assert likely["value"].abs().max() > 1e-3


def test_equal_values_stay_in_the_order_of_the_columns(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount", "age", "country"), cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y).model_
    # A row compared with itself: no column moves, and no pair does anything.
    found = strongest_interactions(model, X[:1], model.encode(X[:1]), head="fraud", strongest=2)
    assert found.rows() == [(0, "fraud", "amount", "age", 0.0, 0.0)]
    alike = pl.concat([X[:1]] * 50)
    whole = strongest_interactions(model, alike, model.encode(X[:1]), head="fraud")
    pairs = [("amount", "age"), ("amount", "country"), ("age", "country")]
    assert whole.select("first", "second").rows() == pairs * 50


def test_a_row_compared_with_itself_has_no_interactions(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    for model in (trained.model_, trained.challenger_.model_):
        inputs = some(model, parts, 1)
        compared = model.encoder.transform(inputs)
        found = strongest_interactions(model, inputs, compared, head="default", strongest=3)
        assert found["value"].to_list() == found["error"].to_list() == [0.0] * 3


def test_one_column_has_no_pair(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount"), cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y).model_
    found = strongest_interactions(model, X[:2], model.encode(X[:5]), head="fraud")
    assert found.is_empty()
    assert found.schema["first"] == pl.String
    assert found.schema["value"] == pl.Float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "frod"}, "unknown head 'frod': did you mean 'fraud'"),
        ({"strongest": 1}, "strongest must be at least 2, got 1"),
        ({"groups": {"g": ["acc_incme"]}}, "groups: unknown column 'acc_incme'"),
        ({"scale": "odds"}, "unknown scale 'odds'"),
        ({"budget": 3}, "budget must be an even number of at least 4, got 3"),
    ],
)
def test_mistakes_are_named(
    trained: MultiTaskClassifier, parts: Split, options: dict[str, Any], message: str
) -> None:
    model = trained.model_
    given_options = {"head": "fraud", **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        strongest_interactions(model, some(model, parts, 1), model.background[:4], **given_options)


def test_a_blend_before_calibration_is_refused(trained: MultiTaskClassifier, parts: Split) -> None:
    model = half_and_half(trained)
    with pytest.raises(ValueError, match="explain its parts one by one"):
        strongest_interactions(
            model, some(model, parts), model.background[:4], head="fraud", calibrated=False
        )
