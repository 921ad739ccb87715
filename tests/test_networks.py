"""Networks: equal to their loops, blind to the order of rows, sound at missing and odd values."""

import copy
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import networks as loops
from torch import Tensor, nn

from riskmtl.encoding import MISSING, UNSEEN
from riskmtl.networks import (
    NUMERIC_EMBEDDINGS,
    SHARED,
    TRUNKS,
    IndependentNetworks,
    Network,
    NetworkConfig,
)
from riskmtl.networks.aitm import AITM
from riskmtl.networks.cross_attention import CrossAttention
from riskmtl.networks.embedding import (
    CategoricalEmbedding,
    FeatureEmbedding,
    NumericEmbedding,
    Periodic,
    PiecewiseLinear,
    Standardized,
    bin_edges,
)
from riskmtl.networks.encoder_decoder import EncoderDecoder
from riskmtl.networks.gating import GATINGS, Gates
from riskmtl.networks.layers import GroupLinear, GroupMLP, Towers
from riskmtl.networks.mmoe import MMoE
from riskmtl.networks.ple import PLE
from riskmtl.networks.shared_bottom import SharedBottom
from riskmtl.networks.soft_sharing import soft_sharing
from riskmtl.networks.trunk import Trace, Trunk

NAN = float("nan")
MIXED = [0, 4, 0, 3]  # columns: numeric, categorical, numeric, categorical

units = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
few = st.integers(1, 3)
configs = st.builds(
    NetworkConfig,
    network=st.sampled_from(sorted(TRUNKS)),
    members=few,
    numeric_embedding=st.sampled_from(NUMERIC_EMBEDDINGS),
    embedding_dim=few,
    bins=st.integers(1, 6),
    steps=st.integers(1, 9),
    experts=st.integers(1, 4),
    task_experts=few,
    shared_experts=few,
    levels=few,
    expert_units=units,
    shared_units=units,
    tower_units=st.just(()) | units,
    tie=st.sampled_from(["l2", "trace_norm", "cross_stitch"]),
    code_width=few,
    decoder_units=units,
    gating=st.sampled_from(sorted(GATINGS)),
    active_experts=few,
    linear_path=st.booleans(),
)
columns = st.lists(st.sampled_from([0, 0, 3, 5]), min_size=1, max_size=4)
kinds = st.lists(st.booleans(), min_size=1, max_size=4)  # whether each head predicts a number
seeds = st.integers(0, 2**32 - 1)


def rows_like(cardinalities: Sequence[int], rows: int, seed: int = 0) -> np.ndarray:
    """Encoded rows: values with some NaN, and every kind of code."""
    rng = np.random.default_rng(seed)
    x = np.empty((rows, len(cardinalities)), dtype=np.float32)
    for position, size in enumerate(cardinalities):
        if size:
            x[:, position] = rng.integers(0, size, rows)
        else:
            x[:, position] = rng.normal(position, 2, rows)
            x[rng.random(rows) < 0.2, position] = NAN
    return x


def scatter(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter off its start, in float64, so that nothing is zero by luck."""
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.mul_(0.7)
    return module


def network_of(
    config: NetworkConfig,
    tasks: int = 3,
    cardinalities: Sequence[int] = MIXED,
    seed: int = 0,
    regression: Sequence[bool] | None = None,
) -> Network:
    """A fitted network in float64, in evaluation mode."""
    network = Network(cardinalities, tasks, config, regression=regression)
    network.embedding.fit(rows_like(cardinalities, 40, seed))
    return scatter(network, seed).eval()


def gradients(outputs: Tensor, module: nn.Module, *, unused: bool = False) -> list[Tensor]:
    """Gradients of a fixed random sum of the outputs; a parameter not used is an error, or zero."""
    generator = torch.Generator().manual_seed(7)
    factors = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    total, parameters = (outputs * factors).sum(), list(module.parameters())
    return list(torch.autograd.grad(total, parameters, retain_graph=True, materialize_grads=unused))


def assert_equal_to_loop(module: nn.Module, batched: Tensor, looped: Tensor) -> None:
    torch.testing.assert_close(batched, looped, rtol=1e-10, atol=1e-10)
    # The loop need not touch every parameter: a batch may have no missing value, say.
    actual, expected = gradients(batched, module), gradients(looped, module, unused=True)
    for (name, _), a, b in zip(module.named_parameters(), actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- Equal to the loops ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(configs, kinds, columns, st.integers(1, 4), seeds)
def test_network_equals_its_loop(
    config: NetworkConfig, regression: list[bool], cardinalities: list[int], batch: int, seed: int
) -> None:
    tasks = len(regression)
    network = network_of(config, tasks, cardinalities, seed, regression)
    x = torch.from_numpy(rows_like(cardinalities, batch, seed + 1)).double()
    looped = loops.for_each_row(
        lambda row: loops.network(network, cardinalities, tasks, config, row, regression), x
    )
    assert looped.shape == (batch, tasks)
    assert_equal_to_loop(network, network(x), looped)


def trunk_of(config: NetworkConfig, tasks: int) -> nn.Module:
    return scatter(TRUNKS[config.network](4, tasks, config)).eval()


def assert_trunk_equals_loop(config: NetworkConfig, tasks: int, batch: int = 2) -> None:
    trunk = trunk_of(config, tasks)
    x = torch.randn(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loop = loops.TRUNKS[config.network]
    x.requires_grad_()
    batched = trunk(x)
    looped = loops.for_each_row(lambda row: loop(trunk, tasks, config, row), x).transpose(0, 1)
    assert_equal_to_loop(trunk, batched, looped)
    # What the embedding below is told to change.
    for_input = [torch.autograd.grad((y * y).sum(), x)[0] for y in (batched, looped)]
    torch.testing.assert_close(*for_input, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ple_equals_its_loop(tasks: int, levels: int) -> None:
    for own, shared in product([1, 2, 3], [1, 2, 3]):
        config = NetworkConfig(
            network="ple",
            levels=levels,
            task_experts=own,
            shared_experts=shared,
            expert_units=(3,),
            dropout=0.0,
        )
        assert_trunk_equals_loop(config, tasks)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("layers", [(3,), (3, 2), (2, 3, 2)])
def test_mmoe_equals_its_loop(tasks: int, experts: int, layers: tuple[int, ...]) -> None:
    config = NetworkConfig(network="mmoe", experts=experts, expert_units=layers)
    assert_trunk_equals_loop(config, tasks, batch=3)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [(3,), (3, 2), (2, 3, 2)])
def test_shared_bottom_equals_its_loop(tasks: int, layers: tuple[int, ...]) -> None:
    config = NetworkConfig(network="shared_bottom", shared_units=layers)
    assert_trunk_equals_loop(config, tasks, batch=3)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [(3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize(
    "network", ["soft_sharing", "cross_stitch", "encoder_decoder", "cross_attention", "aitm"]
)
def test_other_trunks_equal_their_loops(network: str, tasks: int, layers: tuple[int, ...]) -> None:
    is_stitched = network == "cross_stitch"
    config = NetworkConfig(
        network="soft_sharing" if is_stitched else network,
        tie="cross_stitch" if is_stitched else "l2",
        shared_units=layers,
        code_width=2,
        decoder_units=layers,
    )
    assert_trunk_equals_loop(config, tasks, batch=3)


@pytest.mark.parametrize("network", ["mmoe", "ple"])
@pytest.mark.parametrize("gating", ["top_k", "dselect_k"])
@pytest.mark.parametrize("active", [1, 2, 3])
def test_sparse_gates_equal_their_loops(network: str, gating: str, active: int) -> None:
    for tasks, experts in product([1, 3], [1, 2, 5]):
        config = NetworkConfig(
            network=network,
            gating=gating,
            active_experts=active,
            levels=2,
            experts=experts,
            task_experts=2,
            shared_experts=experts,
            expert_units=(3,),
        )
        assert_trunk_equals_loop(config, tasks, batch=3)


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("layers", [(), (3,), (2, 3, 2)])
def test_towers_equal_their_loop(members: int, tasks: int, layers: tuple[int, ...]) -> None:
    towers = scatter(Towers(tasks, 5, layers, members=members)).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tasks, members, 3, 5, dtype=torch.float64, generator=generator)
    looped = torch.stack(
        [
            loops.for_each_row(
                lambda row, member=member: loops.towers(towers, row, member),
                x[:, member].transpose(0, 1),
            )
            for member in range(members)
        ]
    )
    assert looped.shape == (members, 3, tasks)
    assert_equal_to_loop(towers, towers(x.flatten(1, 2)), looped)


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
@pytest.mark.parametrize("cardinalities", [[0], [0, 0, 0], [4], [3, 5], [3, 0, 5, 0], MIXED])
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_embedding_equals_its_loop(numeric: str, cardinalities: list[int], steps: int) -> None:
    embedding = FeatureEmbedding(
        cardinalities, numeric=numeric, width=3, bins=5, steps=steps, credible_rows=10
    )
    embedding.fit(rows_like(cardinalities, 60))
    scatter(embedding)
    x = torch.from_numpy(rows_like(cardinalities, 12, seed=1)).double()
    looped = loops.for_each_row(lambda row: loops.features(embedding, cardinalities, row), x)
    assert looped.shape == (12, embedding.out_features)
    assert_equal_to_loop(embedding, embedding(x), looped)


# --- What shares with what ------------------------------------------------------------------------


def reaches(trunk: PLE, level: int, task: int, x: Tensor) -> list[bool]:
    """Whether a task's representation depends on each expert of a level."""
    weight = trunk.levels[level].experts.layers[0].weight
    (gradient,) = torch.autograd.grad(trunk(x)[task].sum(), weight)
    return [bool(slice_.any()) for slice_ in gradient]


def test_one_level_of_ple_keeps_the_experts_of_other_tasks_out() -> None:
    config = NetworkConfig(levels=1, task_experts=2, shared_experts=1, expert_units=(8,))
    trunk, x = trunk_of(config, 2), torch.randn(16, 4, dtype=torch.float64)
    assert reaches(trunk, 0, 0, x) == [True, True, False, False, True]
    assert reaches(trunk, 0, 1, x) == [False, False, True, True, True]


def test_deeper_ple_learns_from_other_tasks_through_the_shared_gate_only() -> None:
    config = NetworkConfig(levels=2, task_experts=1, shared_experts=1, expert_units=(8,))
    trunk, x = trunk_of(config, 2), torch.randn(16, 4, dtype=torch.float64)
    assert reaches(trunk, 0, 0, x) == [True, True, True]
    assert reaches(trunk, 1, 0, x) == [True, False, True]
    assert trunk.levels[0].gates.linear.weight.shape[0] == 3
    assert trunk.levels[1].gates.linear.weight.shape[0] == 2


def test_gate_weights_are_a_distribution_over_what_it_may_select() -> None:
    selects = torch.tensor([[True, True, False], [False, True, True]])
    weights = scatter(Gates(4, selects))(torch.randn(9, 4, dtype=torch.float64))
    assert_close(weights.sum(-1), torch.ones(2, 9, dtype=torch.float64))
    assert torch.equal(weights > 0, selects.unsqueeze(1).expand_as(weights))


def test_independent_networks_are_their_networks_side_by_side_and_share_nothing() -> None:
    config = NetworkConfig(network="single_task", shared_units=(5,), tower_units=())
    networks = [network_of(config, 1, seed=seed) for seed in range(3)]
    x = torch.from_numpy(rows_like(MIXED, 6)).double()
    outputs = IndependentNetworks(networks)(x)
    for task, network in enumerate(networks):
        assert torch.equal(outputs[:, [task]], network(x))
    outputs[:, 1].sum().backward()
    moves = [any(p.grad.any() for p in network.parameters()) for network in networks]
    assert moves == [False, True, False]


def moves(network: Network, x: Tensor) -> dict[str, Tensor]:
    """Whether each task's output moves each slice of each parameter, ``(tasks, slices)``."""
    outputs, named = network(x), dict(network.named_parameters())
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for output in outputs.unbind(1):
        each = torch.autograd.grad(
            output.sum(), list(named.values()), retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(named, each, strict=True):
            found[name].append(gradient.flatten(1).any(1) if gradient.dim() > 1 else gradient != 0)
    return {name: torch.stack(lines) for name, lines in found.items()}


@settings(max_examples=40, deadline=None)
@given(configs, kinds, seeds, st.data())
def test_no_task_moves_what_another_owns(
    config: NetworkConfig, regression: list[bool], seed: int, data: st.DataObject
) -> None:
    network = network_of(config, len(regression), MIXED, seed, regression)
    kept = data.draw(st.lists(st.sampled_from(range(len(regression))), min_size=1, unique=True))
    x = torch.from_numpy(rows_like(MIXED, 6, seed + 1)).double()
    for some in (network, network.only(kept)):
        moved = moves(some, x)
        for name, owner in some.owners().items():
            assert len(owner) == moved[name].shape[1], name
            tasks = torch.arange(len(moved[name])).unsqueeze(1)
            belongs_to_another = (owner != SHARED) & (owner != tasks)
            assert not moved[name][belongs_to_another].any(), name


@pytest.mark.parametrize("tie", ["l2", "cross_stitch"])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_what_a_single_task_moves_is_owned_by_it(trunk: str, levels: int, tie: str) -> None:
    config = NetworkConfig(
        network=trunk,
        tie=tie,
        levels=levels,
        experts=4,
        expert_units=(16, 16),
        shared_units=(16, 16),
        decoder_units=(16,),
        members=2,
        linear_path=True,
    )
    network = network_of(config, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.3)
    owners = network.owners()
    for name, moved in moves(network, torch.from_numpy(rows_like(MIXED, 40)).double()).items():
        for position, by in enumerate(moved.t()):
            movers = by.nonzero().flatten().tolist()
            owner = int(owners[name][position]) if name in owners else SHARED
            assert owner == (movers[0] if len(movers) == 1 else SHARED), (name, position)


# --- Each row by itself ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(configs, st.integers(1, 4), st.integers(2, 12), st.data())
def test_rows_do_not_see_each_other(
    config: NetworkConfig, tasks: int, batch: int, data: st.DataObject
) -> None:
    network = network_of(config, tasks)
    x = torch.from_numpy(rows_like(MIXED, batch)).double()
    order = torch.tensor(data.draw(st.permutations(range(batch))))
    cut = data.draw(st.integers(1, batch - 1))
    with torch.no_grad():
        whole = network(x)
        assert_close(network(x[order]), whole[order])
        assert_close(torch.cat([network(x[:cut]), network(x[cut:])]), whole)


# --- Starting values ------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_each_group_starts_differently_and_as_a_linear_layer_does(trunk: str) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(network=trunk, levels=2, expert_units=(48, 24), shared_units=(48, 24))
    network = Network([0] * 8, 3, config)
    layers = [module for module in network.modules() if isinstance(module, GroupLinear)]
    assert len(layers) >= 4
    for layer in layers:
        groups, fan_in, fan_out = layer.weight.shape
        many = nn.Linear(fan_in, 20_000 // fan_in)
        for parameter, plain in ((layer.weight, many.weight), (layer.bias, many.bias)):
            if parameter is None:
                continue
            largest = plain.abs().max().item()
            assert parameter.abs().max().item() <= largest * 1.05
            if parameter[0].numel() >= 500:
                assert parameter.flatten(1).abs().amax(1).min().item() >= largest * 0.95
                assert parameter.flatten(1).std(1).tolist() == pytest.approx(
                    [plain.std().item()] * groups, rel=0.1
                )
            for one, other in combinations(parameter, 2):
                assert not torch.isclose(one, other, rtol=1e-4).all()
        assert fan_out == layer.weight.shape[-1]


@pytest.mark.parametrize("members", [1, 2])
def test_heads_start_at_the_numbers_given(members: int) -> None:
    towers = Towers(3, 4, (5,), members=members).double()
    x = torch.randn(3, members * 6, 4, dtype=torch.float64)
    start = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    towers.start_at(torch.zeros(3))
    at_zero = towers(x)
    towers.start_at(start)
    assert_close(towers(x) - at_zero, start.expand(members, 6, 3))


def test_unseen_codes_start_at_zero_and_all_other_codes_do_not() -> None:
    embedding = CategoricalEmbedding([3, 5, 2], 4)
    for feature, size in enumerate([3, 5, 2]):
        for code in range(size):
            vector = embedding(
                torch.full((1, 3), UNSEEN).index_fill(1, torch.tensor(feature), code)
            )
            assert vector[0, feature].any() == (code != UNSEEN)


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_missing_vectors_start_at_zero(numeric: str) -> None:
    embedding = FeatureEmbedding([0, 0], numeric=numeric, width=3, bins=4)
    embedding.fit(rows_like([0, 0], 30))
    assert not embedding(torch.full((2, 2), NAN)).any()


def test_piecewise_linear_starts_linear_in_rank_with_unit_variance() -> None:
    values = np.random.default_rng(0).lognormal(0, 2, (4000, 1)).astype(np.float32)
    embedding = PiecewiseLinear(1, 1, bins=32)
    embedding.fit(values)
    with torch.no_grad():
        embedding.linear.fill_(1)
        embedding.bias.zero_()
        start = embedding(torch.from_numpy(values)).flatten().numpy()
    assert start.mean() == pytest.approx(0, abs=0.02)
    assert start.std() == pytest.approx(1, abs=0.02)
    rank = values[:, 0].argsort().argsort()
    assert np.corrcoef(rank, start)[0, 1] > 0.999


def test_a_single_value_that_stands_out_has_a_vector_of_its_own() -> None:
    values = np.arange(20, dtype=np.float32)[:, None]
    embedding = PiecewiseLinear(1, 2, bins=4, steps=32)
    embedding.fit(values)
    before = embedding(torch.from_numpy(values))
    with torch.no_grad():
        embedding.step_weight[7] = 5
    change = (embedding(torch.from_numpy(values)) - before).abs().sum(-1).flatten()
    assert change.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(("value", "nearest"), [(-3.0, 0.0), (99.0, 19.0), (7.5, 7.0)])
def test_a_value_between_or_beyond_the_steps_stands_on_the_one_below_or_nearest(
    value: float, nearest: float
) -> None:
    embedding = PiecewiseLinear(1, 2, bins=4, steps=32)
    embedding.fit(np.arange(20, dtype=np.float32)[:, None])
    nn.init.normal_(embedding.step_weight)
    nn.init.zeros_(embedding.linear)
    assert torch.equal(embed(embedding, value), embed(embedding, nearest))


def test_without_steps_there_is_no_table_for_them() -> None:
    names = {name for name, _ in PiecewiseLinear(2, 3, bins=4, steps=1).named_parameters()}
    assert names == {"missing", "linear", "bias", "weight"}


# --- Missing and odd values -----------------------------------------------------------------------


def fitted(numeric: str, values: Sequence[float] | np.ndarray, bins: int = 4) -> NumericEmbedding:
    """A numeric embedding of one column, with no parameter at its start."""
    embedding = FeatureEmbedding([0], numeric=numeric, width=3, bins=bins)
    embedding.fit(np.asarray(values, dtype=np.float32).reshape(-1, 1))
    return scatter(embedding).float().numeric


def embed(embedding: NumericEmbedding, *values: float) -> Tensor:
    return embedding(torch.tensor(values, dtype=torch.float32).unsqueeze(1))


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_missing_values_use_the_missing_vector_and_nothing_else(numeric: str) -> None:
    embedding = fitted(numeric, [0.0, 1.0, 2.0, NAN])
    outputs = embed(embedding, NAN, 0.5, NAN)
    assert torch.equal(outputs[[0, 2], 0], embedding.missing.expand(2, -1))
    assert not torch.isclose(outputs[1, 0], embedding.missing).any()
    names = [name for name, _ in embedding.named_parameters()]
    of_missing = dict(zip(names, gradients(outputs[[0]], embedding, unused=True), strict=True))
    of_known = dict(zip(names, gradients(outputs[[1]], embedding, unused=True), strict=True))
    assert [name for name in names if of_missing[name].any()] == ["missing"]
    assert [name for name in names if of_known[name].any()] == names[1:]
    assert names[0] == "missing"


def test_a_value_missing_in_a_few_of_many_rows_has_a_vector_that_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("riskmtl.networks.embedding._MOST_ROWS_FOR_EDGES", 10)
    x = rows_like([3, 0], 40)
    x[:, 1] = np.arange(40)
    embedding = FeatureEmbedding([3, 0], numeric="piecewise_linear", width=2, bins=4)
    for row in (None, 5, 39):
        # Bins are placed by one row in four.
        if row is not None:
            x[row, 1] = NAN
        embedding.fit(x)
        assert embedding.numeric.missing.requires_grad == (row is not None)
        assert len(set(embedding.numeric.knots()[0].tolist())) == 5


def test_bins_of_many_rows_see_both_of_rows_that_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("riskmtl.networks.embedding._MOST_ROWS_FOR_EDGES", 20)
    x = np.arange(40, dtype=np.float32).reshape(-1, 1)
    x[1::2] += 1000
    embedding = FeatureEmbedding([0], numeric="piecewise_linear", width=2, bins=4)
    embedding.fit(x)
    knots = embedding.numeric.knots()[0]
    assert knots.min() < 40
    assert knots.max() > 1000


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30, unique=True))
@settings(max_examples=30, deadline=None)
def test_values_outside_the_training_range_equal_the_nearest_end(
    numeric: str, values: list[float]
) -> None:
    embedding = fitted(numeric, values)
    low, high = min(values), max(values)
    for end, beyond in ((low, low - 1), (low, -1e30), (high, high + 1), (high, 1e30)):
        at_end, outside = embed(embedding, end, beyond)
        assert torch.equal(at_end, outside)
    # A spread that float32 cannot divide by is none.
    if np.std(values) > 1e-30:
        assert not torch.equal(embed(embedding, low), embed(embedding, high))


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
@given(constant=st.floats(-(2.0**100), 2.0**100, width=32), rows=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_constant_columns_have_one_finite_embedding(
    numeric: str, constant: float, rows: int
) -> None:
    outputs = embed(
        fitted(numeric, [constant] * rows), constant, 0, 1, -1e6, 1e6, constant + 1, constant / 2
    )
    assert torch.isfinite(outputs).all()
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_columns_missing_in_all_training_rows_are_finite_for_any_value(numeric: str) -> None:
    embedding = fitted(numeric, [NAN] * 5)
    outputs = embed(embedding, 0, 1, -1e6, 1e6, NAN)
    assert torch.isfinite(outputs).all()
    assert torch.equal(outputs[:4], outputs[:1].expand(4, -1, -1))
    assert torch.equal(outputs[4, 0], embedding.missing[0])


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_constant_and_empty_columns_beside_others_give_finite_outputs_and_gradients(
    trunk: str, numeric: str
) -> None:
    x = rows_like([0, 0, 0, 3], 20)
    x[:, 1], x[:, 2] = 5.0, NAN
    network = Network([0, 0, 0, 3], 2, NetworkConfig(network=trunk, numeric_embedding=numeric))
    network.embedding.fit(x)
    outputs = network(torch.from_numpy(x))
    assert torch.isfinite(outputs).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(outputs, network))


@given(st.integers(1, 12), st.integers(1, 8), seeds)
@settings(max_examples=40, deadline=None)
def test_few_distinct_values_have_few_bins(distinct: int, bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.choice(100, distinct, replace=False) / 4
    values = np.concatenate([levels, rng.choice(levels, 30)])
    embedding = fitted("piecewise_linear", values, bins=bins)
    bins_found = loops.bins_of(embedding, 0)
    assert embedding.count.item() == max(1, len(bins_found))
    if distinct == 1:
        assert bins_found == []
    elif distinct <= bins + 1:
        assert bins_found == list(pairwise(sorted(levels)))
    else:
        assert 1 <= len(bins_found) <= bins
        assert (bins_found[0][0], bins_found[-1][1]) == pytest.approx((min(levels), max(levels)))
        for (_, right), (left, _) in pairwise(bins_found):
            assert right == pytest.approx(left, rel=1e-6)


@given(
    st.lists(st.integers(-50, 50) | st.just(0), min_size=1, max_size=200),
    st.integers(1, 10),
)
@settings(max_examples=100, deadline=None)
def test_bin_edges_rise_from_the_least_value_to_the_greatest(values: list[int], bins: int) -> None:
    edges = bin_edges(np.array(values, dtype=np.float64), bins)
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (min(values), max(values))
    assert len(edges) <= bins + 1
    assert len(edges) == min(len(set(values)), bins + 1) or len(set(values)) > bins + 1


def test_as_many_values_as_edges_are_the_edges() -> None:
    edges = bin_edges(np.array([0.0, 0, 1, 1, 2, 2, 3, 4]), 4)
    assert edges.tolist() == [0, 1, 2, 3, 4]


def test_a_value_that_many_rows_share_does_not_use_up_the_bins() -> None:
    values = np.concatenate([np.zeros(9_000), np.random.default_rng(0).uniform(1, 2, 1_000)])
    edges = bin_edges(values, 16)
    assert len(edges) == 17
    assert np.diff(edges[1:]).max() < 0.1


def test_a_value_halfway_through_a_bin_fills_half_of_it() -> None:
    embedding = PiecewiseLinear(1, 1, bins=3)
    embedding.fit(np.array([[0.0], [1.0], [2.0], [6.0]], dtype=np.float32))
    with torch.no_grad():
        embedding.linear.zero_()
        embedding.bias.zero_()
        embedding.weight.copy_(torch.tensor([[[1.0], [10.0], [100.0]]]))
    filled = embed(embedding, -1, 0.5, 1, 1.5, 2, 4, 9).flatten()
    assert filled.tolist() == [0, 0.5, 1, 6, 11, 61, 111]


def test_a_category_counts_as_far_as_its_rows_are_credible() -> None:
    embedding = FeatureEmbedding([4], numeric="standardize", width=2, bins=1, credible_rows=30)
    codes = np.repeat([1, 2, 3], [0, 10, 270]).astype(np.float32)[:, None]
    embedding.fit(codes)
    scatter(embedding)
    found = embedding(torch.tensor([[0.0], [1.0], [2.0], [3.0]])).detach()
    shares = torch.tensor([[0.0], [0.0], [0.25], [0.9]], dtype=torch.float64)
    torch.testing.assert_close(found, shares * embedding.categorical.weight)


@pytest.mark.parametrize("credible_rows", [0, 30])
def test_a_code_without_rows_says_nothing(credible_rows: float) -> None:
    embedding = FeatureEmbedding(
        [4], numeric="standardize", width=2, bins=1, credible_rows=credible_rows
    )
    embedding.fit(np.array([[2.0], [3.0], [3.0]], dtype=np.float32))
    found = embedding(torch.tensor([[UNSEEN], [MISSING], [2], [3]], dtype=torch.float32))
    assert found.any(1).tolist() == [False, False, True, True]
    if not credible_rows:
        assert torch.equal(found[2:], embedding.categorical.weight[2:])


def test_unseen_and_missing_codes_have_vectors_of_their_own() -> None:
    embedding = FeatureEmbedding([4, 3], numeric="periodic", width=2, bins=1)
    scatter(embedding)
    table = embedding.categorical.weight
    x = torch.tensor([[UNSEEN, MISSING], [MISSING, UNSEEN], [3, 2]], dtype=torch.float32)
    expected = torch.stack([table[[0, 5]], table[[1, 4]], table[[3, 6]]]).flatten(1)
    assert torch.equal(embedding(x), expected)


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_gradients_reach_every_parameter_of_the_embedding(numeric: str) -> None:
    embedding = FeatureEmbedding(MIXED, numeric=numeric, width=3, bins=4)
    x = rows_like(MIXED, 400)
    embedding.fit(x)
    if numeric == "periodic":
        # Off the flat side of the ReLU, which is where a unit may rightly have no gradient.
        nn.init.constant_(embedding.numeric.bias, 2)
    for parameter, gradient in zip(
        embedding.parameters(), gradients(embedding(torch.from_numpy(x)), embedding), strict=True
    ):
        assert gradient.shape == parameter.shape
        assert (gradient != 0).all()


# --- Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
@pytest.mark.parametrize("where", ["dropout", "feature_dropout"])
def test_dropout_acts_in_training_only(trunk: str, where: str) -> None:
    config = NetworkConfig(network=trunk, **{"dropout": 0.0, where: 0.5})
    network = network_of(config)
    x = torch.from_numpy(rows_like(MIXED, 8)).double()
    at_rest = network(x)
    assert torch.equal(network(x), at_rest)
    network.train()
    assert not torch.isclose(network(x), network(x)).all()
    assert torch.equal(network.eval()(x), at_rest)


def test_feature_dropout_drops_a_feature_whole_or_keeps_it() -> None:
    embedding = FeatureEmbedding(MIXED, numeric="piecewise_linear", width=3, bins=4, dropout=0.25)
    x = torch.from_numpy(rows_like(MIXED, 200))
    embedding.fit(x.numpy())
    scatter(embedding).float().eval()
    at_rest = embedding(x).view(200, 4, 3)
    dropped = embedding.train()(x).view(200, 4, 3)
    gone = (dropped == 0).all(-1)
    assert torch.equal(gone, (dropped == 0).any(-1))
    torch.testing.assert_close(dropped[~gone], at_rest[~gone] / 0.75)
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_without_dropout_training_changes_nothing(trunk: str) -> None:
    network = network_of(NetworkConfig(network=trunk, dropout=0.0))
    x = torch.from_numpy(rows_like(MIXED, 8)).double()
    assert torch.equal(network.train()(x), network.eval()(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda rate: GroupMLP(2, 4, (6, 5), dropout=rate),
        lambda rate: MMoE(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: PLE(4, 2, NetworkConfig(dropout=rate, levels=2)),
        lambda rate: SharedBottom(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: soft_sharing(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: soft_sharing(4, 2, NetworkConfig(dropout=rate, tie="cross_stitch")),
        lambda rate: EncoderDecoder(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: CrossAttention(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: AITM(4, 2, NetworkConfig(dropout=rate)),
        lambda rate: Towers(2, 4, (6,), dropout=rate),
    ],
    ids=[
        "mlp",
        *("mmoe", "ple", "shared_bottom", "tied", "stitched", "decoders"),
        *("attention", "aitm"),
        "towers",
    ],
)
def test_every_part_drops(build: Callable[[float], nn.Module]) -> None:
    part = build(0.5)
    x = torch.rand(2, 30, 4) if isinstance(part, Towers) else torch.rand(30, 4)
    assert not torch.equal(part(x), part(x))
    part.eval()
    assert torch.equal(part(x), part(x))


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_each_part_of_a_network_drops_at_its_rate(trunk: str) -> None:
    config = NetworkConfig(network=trunk, levels=2, dropout=0.3, feature_dropout=0.1)
    network = Network(MIXED, 2, config)
    for part, rate in ((network.embedding, 0.1), (network.trunk, 0.3), (network.towers, 0.3)):
        dropouts = (nn.Dropout, nn.Dropout1d)
        assert {m.p for m in part.modules() if isinstance(m, dropouts)} == {rate}


# --- The whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_state_dict_holds_all_that_was_learned(trunk: str, numeric: str) -> None:
    config = NetworkConfig(network=trunk, numeric_embedding=numeric, levels=2)
    network = network_of(config).float()
    x = torch.from_numpy(rows_like(MIXED, 10, seed=3))
    fresh = Network(MIXED, 3, config).eval()
    assert not torch.isclose(fresh(x), network(x)).any()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(x), network(x))


def test_config_survives_lists_for_tuples() -> None:
    values = {"network": "mmoe", "expert_units": [8, 4], "tower_units": [], "dropout": 0.1}
    config = NetworkConfig.from_dict(values)
    assert config == NetworkConfig(network="mmoe", expert_units=(8, 4), tower_units=(), dropout=0.1)
    hash(config)


class OwnBottoms(Trunk):
    """A trunk of someone else: a linear layer for each task."""

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.out_features = config.shared_units[-1]
        self.bottoms = nn.ModuleList(
            nn.Linear(in_features, self.out_features) for _ in range(tasks)
        )

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack([bottom(x) for bottom in self.bottoms]),)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        return parts[0]


def test_a_new_trunk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUNKS, "own_bottoms", OwnBottoms)
    network = network_of(
        NetworkConfig(network="own_bottoms", shared_units=(7,), linear_path=False), tasks=2
    )
    x = torch.from_numpy(rows_like(MIXED, 5)).double()
    outputs = network(x)
    expected = loops.for_each_row(
        lambda row: loops.towers(
            network.towers,
            [
                bottom(loops.features(network.embedding, MIXED, row))
                for bottom in network.trunk.bottoms
            ],
        ),
        x,
    )
    assert_equal_to_loop(network, outputs, expected)


def test_numeric_embeddings_have_the_width_they_say() -> None:
    for embedding, width in ((Standardized(2), 1), (Periodic(2, 5), 5)):
        assert embedding(torch.zeros(3, 2)).shape == (3, 2, width)
        assert embedding.width == width


# --- Some of the heads ----------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", sorted([*TRUNKS, "own_bottoms"]))
@pytest.mark.parametrize("levels", [1, 2])
def test_some_heads_answer_as_in_the_whole_network(
    trunk: str, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRUNKS, "own_bottoms", OwnBottoms)
    config = NetworkConfig(
        network=trunk,
        levels=levels,
        members=2,
        expert_units=(6, 4),
        shared_units=(5,),
        tie="l2" if levels == 1 else "cross_stitch",
        gating="softmax" if levels == 1 else "dselect_k",
        linear_path=levels == 1,
    )
    network = network_of(config, tasks=3, regression=[True, False, False])
    x = torch.from_numpy(rows_like(MIXED, 5)).double()
    before, whole = network(x), copy.deepcopy(network.state_dict())
    for tasks in ([0], [1], [2, 0], [0, 1, 2], [2, 0, 1]):
        some = network.only(tasks)
        torch.testing.assert_close(some(x), before[:, tasks], rtol=1e-12, atol=1e-12)
        last = some.only([len(tasks) - 1])
        torch.testing.assert_close(last(x), before[:, tasks[-1:]], rtol=1e-12, atol=1e-12)
        sizes = [sum(p.numel() for p in part.parameters()) for part in (some, network)]
        assert sizes[0] < sizes[1] or len(tasks) == 3
    assert all(torch.equal(whole[name], tensor) for name, tensor in network.state_dict().items())


def test_a_head_of_ple_keeps_its_experts_and_the_shared() -> None:
    config = NetworkConfig(network="ple", levels=1, task_experts=2, shared_experts=3)
    (level,) = network_of(config, tasks=3).only([1]).trunk.levels
    assert level.stream.tolist() == [0, 0, 1, 1, 1]
    assert level.gates.blocked.shape == (1, 1, 5)
    assert not level.gates.blocked.any()


def test_heads_of_independent_networks_are_networks() -> None:
    parts = [network_of(NetworkConfig(network="single_task"), 1, seed=seed) for seed in range(3)]
    x = torch.from_numpy(rows_like(MIXED, 5)).double()
    network = IndependentNetworks(parts)
    assert torch.equal(network.only([2, 0])(x), network(x)[:, [2, 0]])
