"""Gates: distributions over what each may select, sparse where asked, one expert always left."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riskmtl.networks import TRUNKS, Network, NetworkConfig, Trace
from riskmtl.networks.gating import (
    GATINGS,
    DSelectKGates,
    Gates,
    TopKGates,
    make_gates,
    smooth_step,
)
from riskmtl.networks.layers import mix

seeds = st.integers(0, 2**32 - 1)
masks = st.integers(1, 9).flatmap(
    lambda experts: st.lists(
        st.lists(st.booleans(), min_size=experts, max_size=experts).filter(any),
        min_size=1,
        max_size=4,
    )
)


def gates_of(gating: str, selects: Tensor, *, active: int = 2, dropout: float = 0.0) -> Gates:
    config = NetworkConfig(gating=gating, active_experts=active, expert_dropout=dropout)
    return make_gates(4, selects, config).double()


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_of(gates: int, experts: int) -> Tensor:
    return torch.ones(gates, experts, dtype=torch.bool)


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# ---- what all gates have in common ---------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GATINGS)), masks, st.integers(1, 12), st.floats(0, 0.95), seeds)
def test_weights_add_up_to_one_over_what_a_gate_may_select(
    gating: str, mask: list[list[bool]], active: int, dropout: float, seed: int
) -> None:
    selects = torch.tensor(mask)
    torch.manual_seed(seed)
    gates = gates_of(gating, selects, active=active, dropout=dropout)
    for is_training in (True, False):
        weights = gates.train(is_training)(3 * rows(6, seed))
        assert weights.shape == (len(selects), 6, selects.shape[1])
        assert_close(weights.sum(-1), torch.ones(len(selects), 6, dtype=torch.float64))
        assert (weights >= 0).all()
        assert not weights.masked_select(~selects.unsqueeze(1)).any()


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_expert_dropout_leaves_out_a_share_of_the_experts_in_training(
    gating: str, rate: float
) -> None:
    torch.manual_seed(0)
    # Two gates of eight experts each: of so many, nearly all have weight unless dropped.
    selects = torch.tensor([[True] * 8 + [False] * 8, [False] * 8 + [True] * 8])
    gates = gates_of(gating, selects, active=8, dropout=rate)
    x = rows(5)
    at_rest = gates.eval()(x)
    assert (at_rest.masked_select(selects.unsqueeze(1)) > 0).all()
    gates.train()
    left = []
    for _ in range(200):
        has_weight = gates(x) > 0
        # All rows of a step do without the same experts.
        assert torch.equal(has_weight, has_weight[:, :1].expand_as(has_weight))
        left.append(has_weight[:, 0].sum(-1))
    counts = torch.stack(left)
    assert counts.min() >= 1
    # Where all would be dropped, one stays.
    expected = 8 * (1 - rate) + rate**8
    assert counts.double().mean().item() == pytest.approx(expected, rel=0.1)
    assert not torch.equal(counts[:, 0], counts[:, 1])
    assert torch.equal(gates.eval()(x), at_rest)


@pytest.mark.parametrize("gating", GATINGS)
def test_a_gate_with_a_single_expert_gives_it_all(gating: str) -> None:
    selects = torch.tensor([[False, True, False], [True, False, False]])
    for gates in (gates_of(gating, selects), gates_of(gating, selects, dropout=0.9)):
        weights = gates(rows(3))
        assert torch.equal(weights, selects.unsqueeze(1).expand(-1, 3, -1).double())


@pytest.mark.parametrize("gating", GATINGS)
def test_some_of_the_gates_weigh_as_they_did(gating: str) -> None:
    selects = torch.tensor(
        [
            [True, True, False, False, True, True],
            [False, False, True, True, True, True],
            [True, True, True, True, True, True],
        ]
    )
    gates = gates_of(gating, selects, active=3)
    x = 2 * rows(9)
    experts = [2, 3, 4, 5]
    some = gates.only([1], experts)
    assert_close(some(x), gates(x)[[1]][:, :, experts])
    assert sum(p.numel() for p in some.parameters()) < sum(p.numel() for p in gates.parameters())


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize(("network", "levels"), [("mmoe", 1), ("ple", 1), ("ple", 3)])
def test_a_trace_has_the_gates_of_every_level(gating: str, network: str, levels: int) -> None:
    config = NetworkConfig(
        network=network, levels=levels, gating=gating, experts=5, expert_units=(4,), members=2
    )
    whole, x = Network([0, 0], 3, config).eval(), rows(7)[:, :2].float()
    trace = Trace()
    whole(x, trace=trace)
    assert len(trace.gated) == levels
    for number, level in enumerate(trace.gated, start=1):
        assert len(level.weights) == (3 if number == levels else 4)
        assert len(level.stream) == len(level.experts) == level.weights.shape[-1]
    last = trace.gated[-1]
    representations = whole.trunk(whole.members(whole.embedding(x)))
    assert torch.equal(mix(last.weights, last.experts), representations)
    assert trace.shared is last.experts


def test_no_other_network_says_that_it_has_gates() -> None:
    for name in sorted(set(TRUNKS) - {"mmoe", "ple"}):
        network = Network([0, 0], 3, NetworkConfig(network=name, shared_units=(4,)))
        assert network.gated(torch.zeros(1, 2)) == []


# ---- softmax -------------------------------------------------------------------------------------


def test_softmax_is_a_softmax_to_the_bit() -> None:
    gates = Gates(4, torch.tensor([[True, True, False], [True, True, True]]))
    logits = gates.linear(rows(50).float())
    logits_of_first = logits[0, :, :2]
    expected = logits_of_first.t().contiguous().softmax(0).t()
    assert torch.equal(gates.weights(logits)[0, :, :2], expected)


# ---- top k ---------------------------------------------------------------------------------------


def test_top_k_is_a_softmax_over_the_largest() -> None:
    gates = TopKGates(4, torch.tensor([[True, True, True, False]]), active=2)
    logits = torch.tensor([[[0.0, math.log(3.0), -1.0, 9.0], [5.0, 1.0, 5.0, 0.0]]])
    expected = [[0.25, 0.75, 0, 0], [0.5, 0, 0.5, 0]]
    torch.testing.assert_close(gates.weights(logits)[0], torch.tensor(expected))


@pytest.mark.parametrize("active", range(1, 7))
def test_top_k_lets_so_many_through(active: int) -> None:
    selects = torch.tensor([[True] * 5, [True, False, True, True, False]])
    weights = gates_of("top_k", selects, active=active)(rows(30))
    assert ((weights > 0).sum(-1) == torch.tensor([[min(active, 5)], [min(active, 3)]])).all()


def test_more_than_there_are_is_the_softmax() -> None:
    selects = torch.tensor([[True, True, False], [True, True, True]])
    torch.manual_seed(0)
    sparse = gates_of("top_k", selects, active=7)
    torch.manual_seed(0)
    assert torch.equal(sparse(rows(9)), gates_of("softmax", selects)(rows(9)))


def test_experts_that_are_level_count_alike() -> None:
    weights = gates_of("top_k", all_of(1, 4))(torch.zeros(1, 4, dtype=torch.float64))
    assert weights.flatten().tolist() == [0.25] * 4


# ---- DSelect-k -----------------------------------------------------------------------------------


def test_dselect_k_by_hand() -> None:
    gates = DSelectKGates(4, all_of(1, 4), active=2)
    # Weights of the selectors 1 : 3; bits of the first, then of the second.
    logits = torch.tensor([[[0.0, math.log(3.0), 0.25, -0.9, 0.0, 0.7]]])
    # A step at 0.25 is -2/64 + 3/8 + 1/2 = 27/32. The first: codes 0 and 1; the second: 2 and 3.
    expected = [5 / 32 / 4, 27 / 32 / 4, 3 / 8, 3 / 8]
    torch.testing.assert_close(gates.weights(logits).flatten(), torch.tensor(expected))


def test_codes_without_an_expert_of_their_own_go_round() -> None:
    selects = torch.tensor([[False, True, True, False, True]])
    gates = DSelectKGates(4, selects, active=1)
    assert gates.expert_of[0].nonzero()[:, 1].tolist() == [1, 2, 4, 1]
    found = [
        gates.weights(torch.tensor([[[0.0, low, high]]])).argmax().item()
        for high, low in product([-1.0, 1.0], repeat=2)
    ]
    assert found == [1, 2, 4, 1]


@pytest.mark.parametrize("active", [1, 2, 3, 9])
def test_decided_selectors_choose_no_more_experts_than_there_are_selectors(active: int) -> None:
    gates = gates_of("dselect_k", all_of(2, 6), active=active)
    with torch.no_grad():
        gates.linear.weight[..., gates.selectors :] *= 1e6
    weights = gates(rows(40))
    assert gates.selectors == min(active, 6)
    assert ((weights > 0).sum(-1) <= gates.selectors).all()
    # Which ones differs from row to row.
    assert (weights[0] > 0).any(0).sum() > min(active, 5)


@pytest.mark.parametrize("factor", [10.0, 1e6])
def test_what_dropped_experts_had_goes_to_the_others(factor: float) -> None:
    """Also where the others had nothing; and no rounding leaves less than nothing."""
    torch.manual_seed(0)
    gates = gates_of("dselect_k", all_of(2, 3), dropout=0.5)
    with torch.no_grad():
        gates.linear.weight[..., gates.selectors :] *= factor
    for seed in range(20):
        weights = gates(rows(40, seed))
        assert_close(weights.sum(-1), torch.ones(2, 40, dtype=torch.float64))
        assert (weights >= 0).all()


def test_undecided_and_decided_selectors_have_finite_gradients() -> None:
    for factor in (0.0, 1.0, 1e6):
        gates = gates_of("dselect_k", all_of(2, 5))
        x, trace = (factor * rows(8)).requires_grad_(), Trace()
        weights = gates.weights(gates.linear(x), trace=trace)
        loss = (weights * torch.arange(5)).sum() + trace.penalties["gates"]
        for gradient in torch.autograd.grad(loss, [x, *gates.parameters()]):
            assert torch.isfinite(gradient).all()


def test_the_penalty_is_the_entropy_of_the_selectors() -> None:
    gates = gates_of("dselect_k", all_of(3, 8))
    undecided, decided = Trace(), Trace()
    gates.weights(gates.linear(0 * rows(5)), trace=undecided)
    gates.weights(1e9 * gates.linear(rows(5)), trace=decided)
    assert undecided.penalties["gates"].item() == pytest.approx(math.log(8), abs=1e-4)
    assert decided.penalties["gates"].item() == pytest.approx(0, abs=1e-5)


def test_penalties_of_levels_add_up() -> None:
    config = NetworkConfig(gating="dselect_k", levels=1, expert_units=(4,))
    found = []
    for levels in (1, 2):
        torch.manual_seed(0)
        network = Network([0, 0], 2, replace(config, levels=levels))
        trace = Trace()
        network(torch.zeros(3, 2), trace=trace)
        found.append(trace.penalties["gates"].item())
    assert found[1] > 1.5 * found[0]
    for gating in ("softmax", "top_k"):
        trace = Trace()
        Network([0, 0], 2, replace(config, gating=gating))(torch.zeros(3, 2), trace=trace)
        assert trace.penalties == {}


def test_bits_begin_near_the_middle_of_their_steps() -> None:
    """A tenth of what scores begin at: where a step is flat, nothing would be learned."""
    torch.manual_seed(0)
    gates = DSelectKGates(64, all_of(4, 8), active=4)
    begins = gates.linear.weight.abs()
    scores, bits = begins[..., : gates.selectors].mean(), begins[..., gates.selectors :].mean()
    assert bits.item() == pytest.approx(0.1 * scores.item(), rel=0.2)


@given(st.floats(-2, 2))
def test_a_smooth_step_rises_from_nought_to_one(x: float) -> None:
    below, above = smooth_step(torch.tensor([x, x + 1e-3], dtype=torch.float64)).tolist()
    assert 0 <= below <= above <= 1
    other = smooth_step(torch.tensor(-x, dtype=torch.float64)).item()
    assert below + other == pytest.approx(1)
