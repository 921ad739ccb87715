"""Ways of sharing beyond experts: values by hand, penalties, and what the order of tasks means."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riskmtl.networks import TRUNKS, Network, NetworkConfig, Trace
from riskmtl.networks.aitm import AITM, order_penalty
from riskmtl.networks.cross_attention import CrossAttention
from riskmtl.networks.encoder_decoder import EncoderDecoder, unexplained
from riskmtl.networks.soft_sharing import StitchedBodies, TiedBodies, squared_distance, trace_norm
from riskmtl.networks.trunk import Trunk
from riskmtl.training.penalties import penalty_factors

seeds = st.integers(0, 2**32 - 1)


def trunk_of(network: str, tasks: int = 3, **changes: Any) -> Trunk:
    settings: dict[str, Any] = {"shared_units": (6, 5), "expert_units": (6, 5), "dropout": 0.0}
    torch.manual_seed(0)
    config = NetworkConfig(network=network, **{**settings, **changes})
    return TRUNKS[network](4, tasks, config).double()


def rows(count: int, width: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def passed(trunk: Trunk, x: Tensor) -> tuple[Tensor, Trace]:
    trace = Trace(rows=x)
    return trunk.rest(*trunk.first(x), trace=trace), trace


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# ---- the order of tasks --------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["l2", "trace_norm", "cross_stitch"])
@pytest.mark.parametrize(
    "network", ["shared_bottom", "soft_sharing", "encoder_decoder", "cross_attention", "mmoe"]
)
def test_permuting_the_tasks_permutes_what_they_get(network: str, tie: str) -> None:
    trunk, other = (trunk_of(network, tie=tie, experts=5) for _ in range(2))
    order = [2, 0, 1]
    for parameter in other.parameters():
        if parameter.shape == (3, 3):  # of every pair of tasks
            parameter.data = parameter.data[order][:, order]
        elif len(parameter) == 3:
            parameter.data = parameter.data[order]
    x = rows(7)
    (before, traced), (after, again) = passed(trunk, x), passed(other, x)
    assert_close(after, before[order])
    assert traced.penalties.keys() == again.penalties.keys()
    for name, penalty in traced.penalties.items():
        assert_close(again.penalties[name], penalty)


def test_a_task_of_aitm_depends_on_those_before_it_only() -> None:
    trunk, x = trunk_of("aitm", tasks=4), rows(7)
    for task in range(4):
        weight = trunk.bodies.layers[0].weight
        (gradient,) = torch.autograd.grad(trunk(x)[task].sum(), weight)
        assert [bool(slice_.any()) for slice_ in gradient] == [t <= task for t in range(4)]


@pytest.mark.parametrize(
    ("network", "changes", "expected"),
    [
        ("soft_sharing", {"tie": "l2"}, {"tie": 0.1}),
        ("soft_sharing", {"tie": "trace_norm"}, {"tie": 0.01}),
        ("encoder_decoder", {}, {"reconstruction": 0.1}),
        ("mmoe", {"gating": "dselect_k"}, {"gates": 1e-3}),
        ("ple", {"gating": "dselect_k"}, {"gates": 1e-3}),
    ],
)
def test_what_makes_a_way_of_sharing_is_there_unasked(
    network: str, changes: dict[str, Any], expected: dict[str, float]
) -> None:
    torch.manual_seed(0)
    whole = Network([0, 0], 3, NetworkConfig(network=network, **changes))
    assert penalty_factors(whole, network, {}, torch.zeros(2, 2)) == expected
    off = dict.fromkeys(expected, 0.0)
    assert penalty_factors(whole, network, off, torch.zeros(2, 2)) == {}


# ---- soft sharing --------------------------------------------------------------------------------


def bodies(tasks: int, seed: int = 0) -> list[np.ndarray]:
    """The matrices of a layer of two units, (tasks, in + 1, units) once put together."""
    return [rows(4, 2, seed + task).numpy() for task in range(tasks)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), seeds)
def test_penalties_of_a_layer_equal_numpys(tasks: int, seed: int) -> None:
    weights = bodies(tasks, seed % 1000)
    mean = sum(weights) / tasks
    distance = sum(np.linalg.norm(w - mean) ** 2 for w in weights) / (tasks * 2)
    singular = np.linalg.svd(np.stack([w.ravel() for w in weights]), compute_uv=False)
    together = torch.from_numpy(np.stack(weights))
    assert squared_distance(together).item() == pytest.approx(distance)
    assert trace_norm(together).item() == pytest.approx(singular.sum() / math.sqrt(tasks * 2))


def test_the_tie_adds_up_layers_with_their_biases() -> None:
    trunk = trunk_of("soft_sharing", tie="l2")
    _, trace = passed(trunk, rows(2))
    expected = 0.0
    for layer in trunk.bodies.layers:
        units = layer.weight.shape[-1]
        for parameter in (layer.weight, layer.bias):
            values = parameter.detach().numpy()
            expected += ((values - values.mean(0)) ** 2).sum() / (3 * units)
    assert trace.penalties["tie"].item() == pytest.approx(expected)


@pytest.mark.parametrize(("tie", "equal"), [("l2", 0.0), ("trace_norm", 2.0)])
def test_equal_bodies_of_unit_length_have_the_least_penalty(tie: str, equal: float) -> None:
    trunk = trunk_of("soft_sharing", tie=tie)
    _, trace = passed(trunk, rows(2))
    with torch.no_grad():
        for layer in trunk.bodies.layers:
            length = (layer.weight.square().sum(1) + layer.bias.square().sum(1)).sqrt()[:, None]
            for parameter in (layer.weight, layer.bias):
                parameter.copy_((parameter / length)[:1].expand_as(parameter))
    outputs, tied = passed(trunk, rows(2))
    # Two layers, each 0 or 1.
    assert tied.penalties["tie"].item() == pytest.approx(equal, abs=1e-12)
    assert_close(outputs, outputs[:1].expand_as(outputs))
    gradients = torch.autograd.grad(tied.penalties["tie"], list(trunk.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert trace.penalties["tie"] > 0.1


def test_bodies_with_nothing_in_common_have_the_trace_norm_of_as_many_tasks() -> None:
    weights = torch.eye(3).view(3, 3, 1)
    assert trace_norm(weights).item() == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("penalty", [squared_distance, trace_norm])
def test_penalties_do_not_depend_on_the_numbers_of_units_and_tasks(penalty: Any) -> None:
    weights = torch.from_numpy(np.stack(bodies(3)))
    assert_close(penalty(weights.repeat(1, 1, 4)), penalty(weights))
    assert_close(penalty(weights.repeat(5, 1, 1)), penalty(weights))
    assert not torch.isclose(penalty(2 * weights), penalty(weights))


@pytest.mark.parametrize("tie", ["l2", "trace_norm"])
def test_a_step_down_the_penalty_brings_bodies_together(tie: str) -> None:
    trunk = trunk_of("soft_sharing", tie=tie)
    spreads = []
    for _ in range(2):
        _, trace = passed(trunk, rows(2))
        weights = [layer.weight for layer in trunk.bodies.layers]
        spreads.append(sum(w.std(0).sum().item() for w in weights))
        for parameter, gradient in zip(
            trunk.parameters(),
            torch.autograd.grad(trace.penalties["tie"], list(trunk.parameters())),
            strict=True,
        ):
            parameter.data -= 0.1 * gradient
    assert spreads[1] < spreads[0]


def test_only_the_embedded_rows_are_shared_by_tied_bodies() -> None:
    trunk, x = trunk_of("soft_sharing"), rows(3)
    assert isinstance(trunk, TiedBodies)
    assert passed(trunk, x)[1].shared is x


def test_stitches_begin_near_the_task_itself() -> None:
    trunk = trunk_of("soft_sharing", tie="cross_stitch")
    assert isinstance(trunk, StitchedBodies)
    assert len(trunk.stitches) == 2
    for stitch in trunk.stitches:
        expected = torch.full((3, 3), 0.05, dtype=torch.float64).fill_diagonal_(0.9)
        torch.testing.assert_close(stitch.alpha.data, expected)
    assert trunk_of("soft_sharing", tasks=1, tie="cross_stitch").stitches[0].alpha.item() == 1
    # No matrix of a layer: it must not decay.
    assert not [
        name for name, _ in trunk.named_parameters() if "stitch" in name and "weight" in name
    ]
    assert passed(trunk, rows(2))[1].penalties == {}


# ---- encoder and decoders ------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 6])
def test_what_is_unexplained_equals_numpys(width: int) -> None:
    x, code = rows(40, 6), rows(40, width, seed=1)
    a, c = ((v - v.mean(0)) / v.std(0) for v in (x.numpy(), code.numpy()))
    # Ridge regression as least squares with further rows.
    root = math.sqrt(40 * 1e-3)
    padded = np.vstack([c, root * np.eye(width)]), np.vstack([a, np.zeros((width, 6))])
    best, *_ = np.linalg.lstsq(*padded, rcond=None)
    expected = ((a - c @ best) ** 2).mean() + 1e-3 * (best**2).sum() / 6
    assert unexplained(x, code).item() == pytest.approx(expected, rel=1e-4)


def test_a_code_that_holds_the_rows_leaves_nothing_and_a_constant_one_leaves_all() -> None:
    x = rows(50, 3)
    mixed = x @ rows(3, 3, seed=2)
    assert unexplained(x, mixed) < 0.05
    assert unexplained(x, x) < 2e-3
    assert unexplained(x, torch.ones_like(x)).item() == pytest.approx(1, abs=1e-4)
    half = unexplained(x, x[:, :1])
    assert 0.4 < half < 0.7


def test_units_of_rows_and_code_do_not_matter() -> None:
    x, code = rows(30, 4), rows(30, 2, seed=1)
    scale = torch.tensor([1e2, 3.0, 40.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        unexplained(x * scale + 5, code * 60 - 3), unexplained(x, code), rtol=1e-4, atol=0
    )


def test_its_gradient_is_that_of_the_minimum() -> None:
    x, code = rows(12, 4), rows(12, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: unexplained(x, c), code)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_batches_give_finite_numbers(dtype: torch.dtype) -> None:
    for count in (1, 2, 5):
        code = rows(count, 8).to(dtype).requires_grad_()
        with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
            found = unexplained(rows(count, 3).float(), code)
        (gradient,) = torch.autograd.grad(found, code)
        assert found.dtype == torch.float32
        assert 0 <= found.item() <= 1
        assert torch.isfinite(gradient).all()


def test_every_row_teaches_the_encoder_and_no_decoder() -> None:
    trunk, x = trunk_of("encoder_decoder", code_width=2), rows(9).requires_grad_()
    assert isinstance(trunk, EncoderDecoder)
    _, trace = passed(trunk, x)
    assert trace.shared.shape == (1, 9, 2)
    trace.penalties["reconstruction"].backward()
    assert trunk.encoder.layers[0].weight.grad.any()
    assert trunk.code.weight.grad.any()
    assert not [p for p in trunk.decoders.parameters() if p.grad is not None]
    assert x.grad.any(1).all()


def test_what_is_to_be_made_again_does_not_move_towards_the_code() -> None:
    trunk, wanted = trunk_of("encoder_decoder", code_width=2), rows(9).requires_grad_()
    trace = Trace(rows=wanted)
    trunk.rest(*trunk.first(rows(9, seed=1)), trace=trace)
    penalty = trace.penalties["reconstruction"]
    assert torch.autograd.grad(penalty, wanted, allow_unused=True) == (None,)


def test_reconstruction_teaches_a_code_what_is_in_the_rows() -> None:
    trunk = trunk_of("encoder_decoder", shared_units=(16,), code_width=2)
    # Four columns of which two say all.
    x = rows(200, 2) @ rows(2, 4, seed=3)
    optimizer = torch.optim.Adam(trunk.parameters(), lr=0.02)
    found = []
    for _ in range(60):
        _, trace = passed(trunk, x)
        optimizer.zero_grad()
        trace.penalties["reconstruction"].backward()
        optimizer.step()
        found.append(trace.penalties["reconstruction"].item())
    assert found[-1] < 0.1 < 0.2 < found[0]


def test_the_code_is_as_wide_as_asked_and_not_cut_at_zero() -> None:
    trunk = trunk_of("encoder_decoder", code_width=7, decoder_units=(3, 2))
    outputs, trace = passed(trunk, rows(50))
    assert trace.shared.shape == (1, 50, 7)
    assert (trace.shared < 0).any()
    assert outputs.shape == (3, 50, 2)


# ---- attention -----------------------------------------------------------------------------------


def test_without_a_question_a_task_takes_the_mean_of_what_the_others_say() -> None:
    trunk, x = trunk_of("cross_attention"), rows(6)
    assert isinstance(trunk, CrossAttention)
    torch.nn.init.zeros_(trunk.query.weight)
    features = trunk.bodies(x)
    assert_close(trunk(x), features + trunk.value(features).mean(0))


def test_attention_by_hand() -> None:
    trunk = trunk_of("cross_attention", tasks=2, shared_units=(1,))
    for layer, numbers in (
        (trunk.query, [1.0, 0.0]),
        (trunk.key, [math.log(3.0), 0.0]),
        (trunk.value, [10.0, 100.0]),
    ):
        layer.weight.data = torch.tensor(numbers, dtype=torch.float64).view(2, 1, 1)
    # Features 1 and 2. The first task asks with 1: log 3 for itself, 0 for the other.
    (found,) = trunk.rest(torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64)).unbind(1)
    expected = [1 + 0.75 * 10 + 0.25 * 200, 2 + 0.5 * 10 + 0.5 * 200]
    assert found.flatten().tolist() == pytest.approx(expected)


# ---- transfer ------------------------------------------------------------------------------------


def test_transfer_by_hand() -> None:
    trunk = trunk_of("aitm", tasks=3, shared_units=(1,))
    assert isinstance(trunk, AITM)
    for transfer in trunk.transfers:
        (layer,) = transfer.hand_on.layers
        layer.weight.data.fill_(2.0)
        layer.bias.data.fill_(-1.0)
        numbers = torch.tensor([10.0, 1.0, math.log(3.0)], dtype=torch.float64)
        transfer.project.weight.data = numbers.view(3, 1, 1)
    (found,) = trunk.rest(torch.tensor([[[1.0]], [[0.0]], [[0.0]]], dtype=torch.float64)).unbind(1)
    # g(1) = 1: its match is log 3, that of the task's own 0 is 0; h1(1) = 10 has weight 3/4.
    second = 0.75 * 10
    handed_on = 2 * second - 1
    weight = 3**196 / (3**196 + 1)  # the match of 14 is 14 * 14 log 3
    assert found.flatten().tolist() == pytest.approx([1, second, weight * 10 * handed_on])


def test_the_order_penalty_counts_rises_of_probability() -> None:
    p = torch.tensor([[[0.2, 0.5, 0.4], [0.9, 0.5, 0.1]], [[0.1, 0.2, 0.4], [0.3, 0.3, 0.3]]])
    found = order_penalty(p.logit().requires_grad_())
    assert found.item() == pytest.approx((0.3 + 0 + 0.1 + 0.2 + 0) / 4, abs=1e-6)
    assert order_penalty(p[..., :1]).item() == 0


def test_the_order_penalty_pushes_the_later_down_and_the_earlier_up() -> None:
    outputs = torch.tensor([[[0.0, 1.0, 0.5]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(order_penalty(outputs), outputs)
    assert gradient[0, 0, 0] < 0 < gradient[0, 0, 1]
    assert gradient[0, 0, 2] == 0
