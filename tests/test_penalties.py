"""What may be small beside the losses: entropy and balance of gates, and what a network brings."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedule import SMALL, table
from test_training import SHAPE, fit, rows, weights
from torch import Tensor

from riskmtl import MultiTaskClassifier
from riskmtl.networks import Gated, Network, NetworkConfig, Trace
from riskmtl.networks.aitm import order_penalty
from riskmtl.training.penalties import (
    PENALTIES,
    Penalties,
    gate_entropy,
    load_balance,
    penalty_factors,
)

seeds = st.integers(0, 2**32 - 1)


def level(weights: Any, stream: list[int]) -> Gated:
    """A level of experts whose outputs do not matter."""
    found = torch.as_tensor(weights, dtype=torch.float64)
    return Gated(found, torch.zeros(len(stream), found.shape[1], 1), torch.tensor(stream))


def drawn(gates: int, batch: int, experts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(gates, batch, experts, generator=generator).double().softmax(-1)


# ---- entropy -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), seeds)
def test_entropy_equals_its_loop(gates: int, batch: int, experts: int, seed: int) -> None:
    weights = drawn(gates, batch, experts, seed)
    each = [
        sum(-w * math.log(w) for w in weights[gate, row].tolist())
        for gate in range(gates)
        for row in range(batch)
    ]
    found = gate_entropy([level(weights, [gates] * experts)])
    assert found.item() == pytest.approx(sum(each) / len(each), abs=1e-9)


def test_entropy_is_that_of_all_levels_rows_and_gates() -> None:
    # One gate decides between two, one halves, and a level of one row halves.
    first = level([[[1.0, 0.0]], [[0.5, 0.5]]], [2, 2])
    second = level([[[0.5, 0.5]]], [1, 1])
    assert gate_entropy([first, second]).item() == pytest.approx(2 / 3 * math.log(2))


def test_blocked_experts_have_a_finite_gradient() -> None:
    torch.manual_seed(0)
    network = Network([0, 0, 0, 4], 2, SHAPE)
    trace = Trace()
    network(torch.from_numpy(rows(20).x), trace=trace)
    assert (trace.gated[0].weights == 0).any()
    (gate_entropy(trace.gated) + load_balance(trace.gated)).backward()
    gradient = network.trunk.levels[0].gates.linear.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.any()


# ---- balance -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), seeds)
def test_balance_of_one_gate_is_that_of_the_paper(batch: int, experts: int, seed: int) -> None:
    weights = drawn(1, batch, experts, seed)
    importance = weights[0].sum(0).numpy()
    found = load_balance([level(weights, [1] * experts)])
    assert found.item() == pytest.approx(np.var(importance) / np.mean(importance) ** 2, abs=1e-9)


def test_balance_by_hand() -> None:
    # All on one of two: 2 and 0 of a fair share, variance 1 over a squared mean of 1.
    assert load_balance([level([[[1.0, 0.0]]], [1, 1])]).item() == pytest.approx(1)
    # Two gates that each have one: nobody is idle.
    assert load_balance([level([[[1.0, 0.0]], [[0.0, 1.0]]], [2, 2])]).item() == pytest.approx(0)
    # Two tasks with an expert each and a shared one that only the first uses at all:
    # own 0 and 2 * 1, shared (2 * 1 + 2 * 0) / 2, so 0, 2 and 1.
    weights = [[[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]
    assert load_balance([level(weights, [0, 1, 2])]).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("network", ["ple", "mmoe"])
def test_gates_that_prefer_nothing_are_balanced(network: str) -> None:
    config = NetworkConfig(
        network=network,
        levels=2,
        task_experts=2,
        shared_experts=3,
        expert_units=(4,),
        embedding_dim=2,
        bins=4,
    )
    torch.manual_seed(0)
    model = Network([0, 0, 0, 4], 3, config)
    for name, parameter in model.named_parameters():
        if "gates" in name:
            parameter.data.zero_()
    trace = Trace()
    model(torch.from_numpy(rows(10).x), trace=trace)
    assert len(trace.gated) == (2 if network == "ple" else 1)
    assert load_balance(trace.gated).item() == pytest.approx(0, abs=1e-10)
    gated = trace.gated[-1].weights
    fair = math.log(5) if network == "ple" else math.log(config.experts)
    assert gate_entropy([trace.gated[-1]]).item() == pytest.approx(fair, rel=1e-5), gated


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), seeds, st.data())
def test_order_of_rows_and_tasks_does_not_matter(batch: int, seed: int, data: Any) -> None:
    weights = drawn(3, batch, 4, seed)
    gates = list(data.draw(st.permutations(range(3))))
    order = list(data.draw(st.permutations(range(batch))))
    shuffled = level(weights[gates][:, order], [3] * 4)
    plain = level(weights, [3] * 4)
    for penalty in (gate_entropy, load_balance):
        assert penalty([shuffled]).item() == pytest.approx(penalty([plain]).item(), abs=1e-12)


def test_a_process_without_rows_has_no_penalty() -> None:
    empty = level(torch.zeros(2, 0, 3), [2, 2, 2])
    assert gate_entropy([empty]).item() == 0
    assert load_balance([empty]).item() == 0


# ---- what a network brings -----------------------------------------------------------------------


class Tied(torch.nn.Module):
    """A network that has a penalty of its own, and no gates."""

    trunk = SimpleNamespace(strengths={"tie": 0.5})

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        if trace is not None:
            trace.penalties["tie"] = torch.tensor(2.0)
        return x[:, :1]


def test_a_penalty_of_the_network_has_its_default() -> None:
    network: Any = Tied()
    x = torch.zeros(2, 3)
    assert penalty_factors(network, "tied", {}, x) == {"tie": 0.5}
    assert penalty_factors(network, "tied", {"tie": 3.0}, x) == {"tie": 3.0}
    assert penalty_factors(network, "tied", {"tie": 0.0}, x) == {}
    with pytest.raises(ValueError, match="'tied' has no 'load_balance'; it has tie"):
        penalty_factors(network, "tied", {"load_balance": 1.0}, x)


def test_penalties_add_up_by_their_factors() -> None:
    trace = Trace(penalties={"tie": torch.tensor(2.0), "reconstruction": torch.tensor(5.0)})
    outputs = torch.zeros(1, 2, 3)
    both = Penalties({"tie": 0.5, "reconstruction": 0.1})
    assert float(both(outputs, trace)) == pytest.approx(1.5)
    assert both.trace() is not None
    assert float(Penalties({})(outputs, None)) == 0


def test_no_penalty_leaves_no_trace() -> None:
    assert Penalties({}).trace() is None
    assert Penalties({"order": 1.0}).trace() is None


def test_the_order_of_tasks_is_judged_by_their_outputs() -> None:
    outputs = torch.tensor([[[0.0, 50.0], [0.0, -50.0]]])
    assert float(Penalties({"order": 2.0})(outputs, None)) == pytest.approx(0.5)
    # Events that count ten times raise the output and not the probability.
    alike = torch.full((1, 1, 2), 0.3)
    alike[..., 1] += math.log(10)
    assert float(Penalties({"order": 2.0}, [1.0, 10.0])(alike, None)) == pytest.approx(0, abs=1e-6)
    assert float(Penalties({"order": 2.0})(alike, None)) > 0.5


# ---- in training ---------------------------------------------------------------------------------


def traced(**options: Any) -> list[Gated]:
    trained = fit(network="mmoe", experts=4, epochs=3, learning_rate=0.02, **options)
    trace = Trace()
    with torch.no_grad():
        trained.network(torch.from_numpy(rows(200, seed=5).x), trace=trace)
    return trace.gated


def test_gates_decide_where_that_is_asked_for() -> None:
    plain, asked = traced(), traced(penalties={"gate_entropy": 3.0})
    assert gate_entropy(asked) < 0.7 * gate_entropy(plain)
    # One alone would be the cheapest; balanced, all stay in use.
    both = traced(penalties={"gate_entropy": 1.0, "load_balance": 3.0})
    assert load_balance(both) < 0.5 * load_balance(asked)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ({"network": "soft_sharing"}, "tie"),
        ({"network": "soft_sharing", "tie": "trace_norm"}, "tie"),
        ({"network": "encoder_decoder"}, "reconstruction"),
        ({"network": "mmoe", "gating": "dselect_k"}, "gates"),
    ],
    ids=str,
)
def test_what_a_network_wants_to_be_small_becomes_smaller(
    network: dict[str, Any], name: str
) -> None:
    found = []
    for factor in (0.0, 10.0):
        trained = fit(**network, epochs=2, learning_rate=0.02, penalties={name: factor})
        trace = Trace()
        with torch.no_grad():
            trained.network(torch.from_numpy(rows(200, seed=5).x), trace=trace)
        found.append(float(trace.penalties[name]))
    assert found[1] < 0.9 * found[0]


def test_a_later_task_is_seldom_likelier_where_that_is_asked_for() -> None:
    rises = []
    for factor in (0.0, 10.0):
        trained = fit(network="aitm", epochs=2, learning_rate=0.02, penalties={"order": factor})
        with torch.no_grad():
            answers = trained.network(torch.from_numpy(rows(200, seed=5).x))
        rises.append(float(order_penalty(answers[None])))
    assert rises[1] < 0.5 * rises[0]


def test_a_regression_has_no_place_in_an_order_of_probabilities() -> None:
    network = Network([0], 2, NetworkConfig(network="aitm"), regression=[False, True])
    with pytest.raises(ValueError, match="'order' compares probabilities"):
        penalty_factors(network, "aitm", {"order": 1.0}, torch.zeros(2, 1))


def test_a_factor_of_zero_is_no_penalty() -> None:
    plain = weights(fit(epochs=1))
    none = weights(fit(epochs=1, penalties={"gate_entropy": 0.0}))
    assert all(torch.equal(plain[name], value) for name, value in none.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"penalties": {"gate_entropie": 1}},
            "penalties: unknown penalty 'gate_entropie': did you mean 'gate_entropy'",
        ),
        (
            {"penalties": {"tie": -1}},
            "penalties: 'tie' must be a finite number of at least 0, got -1",
        ),
        ({"penalties": 0.1}, "penalties must be a mapping of names to values"),
        (
            {"penalties": {"gate_entropy": 1}},
            "network 'shared_bottom' has no 'gate_entropy'; it has none",
        ),
        (
            {"penalties": {"tie": 1}, "network": "ple"},
            "network 'ple' has no 'tie'; it has gate_entropy, load_balance",
        ),
    ],
)
def test_a_wrong_penalty_is_named_before_training(options: dict[str, Any], message: str) -> None:
    X, y, _ = table(300)
    with pytest.raises(ValueError, match=message):
        MultiTaskClassifier(**{**SMALL, **options}).fit(X, y)


def test_every_penalty_is_described() -> None:
    import riskmtl.training.penalties as module

    assert module.__doc__ is not None
    for name in PENALTIES:
        assert f"``{name}``" in module.__doc__
