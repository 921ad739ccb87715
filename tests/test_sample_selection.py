"""Tasks that another one selects: labels, losses and weights, and what comes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedule import SMALL

from riskmtl import MultiTaskClassifier
from riskmtl.training.config import TrainingConfig
from riskmtl.training.objective import Objective
from riskmtl.training.rows import TaskPlan, TrainingRows
from riskmtl.training.selection import (
    EntireSpace,
    InversePropensity,
    as_learned,
    both,
    entire_space_labels,
    entire_space_weights,
    make_selection,
    require_selection,
    require_together,
    selectors,
)

NAN = float("nan")
NAMES = ["default", "approved", "fraud"]
PLAN = TaskPlan(tuple(NAMES), (False,) * 3, (1.0,) * 3, (1.0,) * 3, selected_by=(1, None, None))
seeds = st.integers(0, 2**32 - 1)
log_odds = st.floats(-20, 20)


def config(**changes: Any) -> TrainingConfig:
    given = {"epochs": 1, "patience": 1, "batch_size": 8, "learning_rate": 0.1, "weight_decay": 0.0}
    return TrainingConfig(**{**given, **changes})


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# ---- who selects whom ----------------------------------------------------------------------------


def test_positions_of_selecting_tasks() -> None:
    chain = {"default": "approved", "approved": "fraud"}
    assert selectors(chain, NAMES, [False] * 3, "entire_space") == (1, 2, None)
    assert selectors({}, NAMES, [False] * 3, "entire_space") == ()
    # A number can be selected, though it has no probability to be multiplied.
    found = selectors({"default": "approved"}, NAMES, [True, False, False], "inverse_propensity")
    assert found == (1, None, None)


@pytest.mark.parametrize(
    ("selected_by", "regression", "message"),
    [
        ({"default": "aproved"}, [], "selected_by: unknown task 'aproved': did you mean 'approved"),
        ({"defult": "approved"}, [], "selected_by: unknown task 'defult': did you mean 'default'"),
        ({"default": "default"}, [], "cannot select itself: 'default' by 'default'"),
        (
            {"default": "approved", "approved": "fraud", "fraud": "default"},
            [],
            "cannot select itself: 'default' by 'approved' by 'fraud' by 'default'",
        ),
        ({"default": "approved"}, [1], "'approved' is a regression, and so has no event"),
        ({"default": "approved"}, [0], "'default' is a regression, .*'inverse_propensity'"),
    ],
)
def test_what_cannot_select_is_named(
    selected_by: dict[str, str], regression: list[int], message: str
) -> None:
    kinds = [task in regression for task in range(3)]
    with pytest.raises(ValueError, match=message):
        selectors(selected_by, NAMES, kinds, "entire_space")


def test_an_outcome_of_the_unselected_is_refused() -> None:
    y = np.array([[1, 1, 0], [NAN, 0, 0], [0, 0, 0], [1, NAN, 0]])
    with pytest.raises(ValueError, match="1 rows observe 'default' although 'approved' did not"):
        require_selection(y, (1, None, None), NAMES)
    require_selection(y[[0, 1, 3]], (1, None, None), NAMES)


def test_a_pair_is_not_torn_apart() -> None:
    require_together(PLAN, [(0, 1), (2,)])
    with pytest.raises(ValueError, match="'default' and 'approved' are in networks of their own"):
        require_together(PLAN, [(0, 2), (1,)])


def test_a_part_of_the_plan_keeps_the_pair() -> None:
    assert PLAN.only([1, 0]).selected_by == (None, 0)


# ---- labels of the entire space ------------------------------------------------------------------


def test_labels_by_hand() -> None:
    y = np.array(
        [[NAN, 0, 1], [1, 1, NAN], [0, 1, 0], [NAN, 1, 0], [1, NAN, 0], [NAN, NAN, 1]],
        dtype=np.float32,
    )
    found = entire_space_labels(y, (1, None, None))
    np.testing.assert_array_equal(found[:, 0], [0, 1, 0, NAN, NAN, NAN])
    np.testing.assert_array_equal(found[:, 1:], y[:, 1:])
    assert np.isnan(y[0, 0])  # the given labels are left alone


def test_labels_of_a_chain() -> None:
    # Default of the approved of those who applied.
    y = np.array(
        [[NAN, NAN, 0], [NAN, 0, 1], [1, 1, 1], [0, 1, 1], [NAN, NAN, 1]], dtype=np.float32
    )
    found = entire_space_labels(y, (1, 2, None))
    np.testing.assert_array_equal(found[:, 1], [0, 0, 1, 1, NAN])
    np.testing.assert_array_equal(found[:, 0], [0, 0, 1, 0, NAN])


def test_weights_of_a_chain() -> None:
    # Of four that the first selects, the next is known of three; of two that this one selects, the
    # last is known of one.
    first = [0, 1, 1, 1, 1]
    second, last = [NAN, 0, 1, 1, NAN], [NAN, NAN, 1, NAN, NAN]
    y = np.array([last, second, first], dtype=np.float32).T
    found = entire_space_weights(y, (1, 2, None)).T
    assert found.tolist() == [[0.75 * 0.5, 0.5, 1, 1, 1], [0.75, 1, 1, 1, 1], [1] * 5]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 20))
def test_outcomes_not_known_yet_do_not_lower_the_rate(
    events: int, others: int, unknown_per_known: int, declined: int
) -> None:
    known = [[1, 1]] * events + [[0, 1]] * others
    unknown = [[NAN, 1]] * (len(known) * unknown_per_known)
    y = np.array(known + unknown + [[NAN, 0]] * declined, dtype=np.float32)
    by = (1, None)
    labels, weights = entire_space_labels(y, by)[:, 0], entire_space_weights(y, by)[:, 0]
    seen = ~np.isnan(labels)
    rate = np.average(labels[seen], weights=weights[seen])
    approval = (y[:, 1] == 1).mean()
    assert rate == pytest.approx(approval * events / (events + others))


def test_learned_rows_have_labels_and_weights_or_are_left_alone() -> None:
    y = np.array([[NAN, 0], [1, 1], [NAN, 1]], dtype=np.float32)
    rows = TrainingRows(np.zeros((3, 1), np.float32), y, np.array([2, 1, 1], np.float32))
    assert as_learned(rows, (), "entire_space") is rows
    assert as_learned(rows, (1, None), "inverse_propensity") is rows
    found = as_learned(rows, (1, None), "entire_space").weights
    assert found is not None
    assert found.tolist() == [[1, 2], [1, 1], [1, 1]]


# ---- the product ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(log_odds, log_odds)
def test_the_product_equals_its_definition(a: float, b: float) -> None:
    p = sigmoid(a) * sigmoid(b)
    found = both(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    rest = sigmoid(-a) + sigmoid(a) * sigmoid(-b)  # 1 - p, without cancellation
    assert found.item() == pytest.approx(math.log(p) - math.log(rest), rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_the_product_and_its_gradient_are_finite(a: float, b: float) -> None:
    first, second = (torch.tensor(z, requires_grad=True) for z in (a, b))
    found = both(first, second)
    found.backward()
    assert found.dtype == torch.float32
    for value in (found, first.grad, second.grad):
        assert value is not None
        assert torch.isfinite(value)
    # Never likelier than either.
    assert found <= min(a, b) + 1e-3 * abs(min(a, b)) + 1e-5


def test_halves_are_computed_in_float32() -> None:
    half = torch.tensor([12.0], dtype=torch.bfloat16)
    assert both(half, half).dtype == torch.float32


# ---- in the loss ---------------------------------------------------------------------------------


def batch(seed: int, rows: int = 10, members: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of members, and labels of which default is known of the approved only."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (rows, 3)).astype(float)
    y[rng.random((rows, 3)) < 0.2] = NAN
    y[y[:, 1] != 1, 0] = NAN
    return torch.from_numpy(rng.normal(0, 2, (members, rows, 3))), torch.from_numpy(y)


def objective(plan: TaskPlan = PLAN, **changes: Any) -> Objective:
    return Objective(plan, config(**changes)).double()


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0.2, 8))
def test_entire_space_equals_its_loop(seed: int, factor: float) -> None:
    plan = replace(PLAN, positive_weights=(factor, 2.0, 1.0))
    outputs, y = batch(seed)
    learned = torch.from_numpy(entire_space_labels(y.numpy(), plan.selected_by))
    found = objective(plan)(outputs, learned, None)
    each = []
    for said in outputs:
        for row, labels in zip(said.tolist(), learned.tolist(), strict=True):
            if math.isnan(labels[0]):
                continue
            # What each head says without its factor, and the product with the factor again.
            p = sigmoid(row[1] - math.log(2)) * sigmoid(row[0] - math.log(factor))
            odds = factor * p / (1 - p)
            p = odds / (1 + odds)
            each.append(-math.log(1 - p) if labels[0] == 0 else -factor * math.log(p))
    expected = sum(each) / len(each) if each else 0.0
    assert found[0].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    # The other heads' losses are their own.
    plain = objective(replace(plan, selected_by=()))(outputs, learned, None)
    torch.testing.assert_close(found[1:], plain[1:])


@pytest.mark.parametrize("factors", [(1.0, 1.0), (5.0, 1.0), (3.0, 0.5)])
def test_entire_space_is_least_at_the_true_probabilities(factors: tuple[float, float]) -> None:
    # 60 % approved, 10 % of these default; what heads say is raised by their factors.
    y = torch.tensor([[NAN, 0.0]] * 40 + [[1.0, 1.0]] * 6 + [[0.0, 1.0]] * 54).double()
    plan = TaskPlan(("d", "a"), (False,) * 2, (1.0,) * 2, factors, selected_by=(1, None))
    learned = torch.from_numpy(entire_space_labels(y.numpy(), (1, None)))
    truth = [math.log(p / (1 - p) * c) for p, c in zip((0.1, 0.6), factors, strict=True)]
    said = torch.tensor(truth).double().requires_grad_()
    losses = objective(plan)(said.expand(1, 100, 2), learned, None)
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, said, retain_graph=True)
        assert gradient.abs().max() < 1e-7


def test_both_heads_learn_from_the_product() -> None:
    outputs, y = batch(0)
    outputs.requires_grad_()
    learned = torch.from_numpy(entire_space_labels(y.numpy(), PLAN.selected_by))
    (gradient,) = torch.autograd.grad(objective()(outputs, learned, None)[0], outputs)
    seen = ~torch.isnan(learned[:, 0])
    assert gradient[:, seen, :2].all()
    assert not gradient[:, ~seen].any()
    assert not gradient[:, :, 2].any()


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_inverse_propensity_equals_its_loop(seed: int, weighted: bool) -> None:
    outputs, y = batch(seed)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(1)).double() + 0.1
    losses = objective(selection="inverse_propensity", propensity_floor=0.2)(
        outputs, y, weights if weighted else None
    )
    total, count = 0.0, 0.0
    for said in outputs:
        for row, labels, weight in zip(said.tolist(), y.tolist(), weights.tolist(), strict=True):
            if math.isnan(labels[0]):
                continue
            w = (weight if weighted else 1.0) / max(sigmoid(row[1]), 0.2)
            p = sigmoid(row[0])
            total -= w * (math.log(p) if labels[0] else math.log(1 - p))
            count += w
    expected = total / count if count else 0.0
    assert losses[0].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_propensity_is_no_way_to_lower_the_loss() -> None:
    outputs, y = batch(0)
    outputs.requires_grad_()
    loss = objective(selection="inverse_propensity")(outputs, y, None)[0]
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient[..., 0].any()
    assert not gradient[..., 1:].any()


def test_a_certain_selection_changes_nothing() -> None:
    outputs, y = batch(0)
    outputs[..., 1] = 60.0
    for way in ("entire_space", "inverse_propensity"):
        found = objective(selection=way)(outputs, y, None)
        plain = Objective(TaskPlan(*_parts()), config()).double()(outputs, y, None)
        torch.testing.assert_close(found, plain)


def _parts() -> tuple[Any, ...]:
    return PLAN.names, PLAN.regression, PLAN.weights, PLAN.positive_weights


@pytest.mark.parametrize("way", ["entire_space", "inverse_propensity"])
def test_order_of_tasks_does_not_matter(way: str) -> None:
    outputs, y = batch(3)
    order = [2, 0, 1]
    plain = objective(selection=way)(outputs, y, None)
    found = objective(PLAN.only(order), selection=way)(outputs[..., order], y[:, order], None)
    torch.testing.assert_close(found, plain[order])


@pytest.mark.parametrize("way", ["entire_space", "inverse_propensity"])
def test_a_batch_that_does_not_observe_the_selected(way: str) -> None:
    outputs, y = batch(3)
    outputs.requires_grad_()
    y[:, 0] = NAN
    losses = objective(selection=way)(outputs, y, None)
    assert losses[0] == 0
    (gradient,) = torch.autograd.grad(losses[0], outputs)
    assert not gradient.any()


def test_a_chain_multiplies_all_the_way() -> None:
    plan = TaskPlan(*_parts(), selected_by=(1, 2, None))
    selection = make_selection(plan, config())
    assert isinstance(selection, EntireSpace)
    found, _ = selection(torch.zeros(1, 3), None)
    assert found.sigmoid().tolist() == [pytest.approx([1 / 8, 1 / 4, 1 / 2])]
    weigh = make_selection(plan, config(selection="inverse_propensity"))
    assert isinstance(weigh, InversePropensity)
    assert weigh(torch.zeros(1, 3), None)[1].tolist() == [pytest.approx([4, 2, 1])]
    assert make_selection(PLAN.only([0, 2]), config()) is None


# ---- whole trainings -----------------------------------------------------------------------------


def applicants(n: int = 2500, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame, Any]:
    """Applicants of whom the safe are approved; a share of their outcomes is not known yet."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    chance = 1 / (1 + np.exp(2 - 1.2 * risk))
    approved = rng.random(n) < 1 / (1 + np.exp(2 * risk - 0.5))
    default = np.where(approved, rng.random(n) < chance, NAN)
    default[rng.random(n) < 0.5] = NAN
    X = pl.DataFrame({"risk": risk, "noise": rng.normal(size=n)})
    y = pl.DataFrame({"default": default, "approved": approved.astype(float)}).fill_nan(None)
    return X, y, chance


@pytest.mark.parametrize(
    "options",
    [
        {"members": 2, "mixup": 0.2},
        {"selection": "inverse_propensity", "members": 2},
        {"event_weight": {"default": 4.0, "approved": 2.0}},
        {"balanced_events": {"default": 4.0}},
        {"schedule": "round_robin", "selection": "inverse_propensity"},
    ],
    ids=str,
)
def test_the_selected_head_answers_for_all(options: dict[str, Any]) -> None:
    X, y, chance = applicants()
    model = MultiTaskClassifier(**{**SMALL, "selected_by": {"default": "approved"}, **options})
    found = model.fit(X, y).predict_proba(X)
    assert found[:, 0].mean() == pytest.approx(chance.mean(), rel=0.35)
    assert found[:, 1].mean() == pytest.approx(y["approved"].mean(), rel=0.1)
    assert np.corrcoef(found[:, 0], chance)[0, 1] > 0.8


@pytest.mark.parametrize("way", ["entire_space", "inverse_propensity"])
def test_a_task_weighs_as_much_as_the_loss_observes_it(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    plans: list[TaskPlan] = []

    def keep(shape: Any, cardinalities: Any, plan: TaskPlan, *args: Any) -> Any:
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("riskmtl.training.fit.train", keep)
    X, y, _ = applicants(600)
    model = MultiTaskClassifier(
        **SMALL, selected_by={"default": "approved"}, selection=way, event_weight="balanced"
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, X_val=X, y_val=y)
    observed = y["default"].is_not_null().sum()
    events = y["default"].sum()
    if way == "entire_space":
        # The declined are known not to default.
        observed += (y["approved"] == 0).sum()
    assert plans[0].weights == pytest.approx((observed / 600, 1.0))
    assert plans[0].positive_weights[0] == pytest.approx((observed - events) / events)
    assert plans[0].selected_by == (1, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selected_by": {"default": "aproved"}}, "selected_by: unknown task 'aproved'"),
        ({"selected_by": "approved"}, "selected_by must be a mapping"),
        ({"selection": "entire"}, "unknown selection 'entire': did you mean 'entire_space'"),
        ({"propensity_floor": 0}, r"propensity_floor must lie in \(0, 1\], got 0"),
        (
            {"selected_by": {"default": "approved"}, "network": "single_task"},
            "'default' and 'approved' are in networks of their own: put them in one group",
        ),
        ({"selected_by": {"approved": "default"}}, "rows observe 'approved' although 'default'"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    X, y, _ = applicants(300)
    with pytest.raises(ValueError, match=message):
        MultiTaskClassifier(**{**SMALL, **options}).fit(X, y)
