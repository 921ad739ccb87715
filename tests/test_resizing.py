"""Networks with one task more or with fewer answer for the others as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from riskmtl.networks import SHARED, TRUNKS, IndependentNetworks, Network, NetworkConfig, Trace
from riskmtl.networks.resizing import grown, shrunk
from riskmtl.networks.trunk import SomeTasks, Trunk

CARDINALITIES = [0, 5, 0]
SMALL: dict[str, Any] = {
    "embedding_dim": 3,
    "bins": 4,
    "steps": 1,
    "expert_units": (6, 4),
    "shared_units": (6,),
    "tower_units": (5,),
}


def rows(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=generator)
    x[:, 1] = torch.randint(5, (40,), generator=generator)
    return x


shapes = st.builds(
    lambda **options: NetworkConfig(**SMALL, **options),
    network=st.sampled_from(["ple", "mmoe", "shared_bottom"]),
    members=st.integers(1, 3),
    task_experts=st.integers(1, 3),
    shared_experts=st.integers(1, 3),
    experts=st.integers(1, 4),
    linear_path=st.booleans(),
)


def made(shape: NetworkConfig, tasks: int) -> Network:
    torch.manual_seed(tasks)
    network = Network(CARDINALITIES, tasks, shape, regression=[i == 1 for i in range(tasks)])
    if network.linear is not None:
        nn.init.normal_(network.linear.weight)
    return network.eval()


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(1, 4))
def test_one_task_more_changes_no_other(shape: NetworkConfig, tasks: int) -> None:
    network = made(shape, tasks)
    larger, there = grown(network, shape, CARDINALITIES, regression=True)
    assert larger.regression.tolist() == [*network.regression.tolist(), True]
    x = rows()
    torch.testing.assert_close(larger(x)[:, :tasks], network(x), rtol=1e-5, atol=1e-5)
    # Every old slice is found under its owner, and nothing of the newcomer's was there before.
    old, new = network.owners(), larger.owners()
    for name, value in network.state_dict().items():
        if name not in old:
            assert torch.equal(larger.state_dict()[name], value)
            assert name not in there or there[name].all()
            continue
        for owner in range(SHARED, tasks):
            mine, theirs = value[old[name] == owner], larger.state_dict()[name][new[name] == owner]
            assert float(mine.sum()) == pytest.approx(float(theirs.sum()), abs=1e-4)
        assert torch.equal(there[name], new[name] != tasks)


@settings(max_examples=20, deadline=None)
@given(shapes, st.permutations(range(4)), st.integers(1, 4))
def test_fewer_tasks_are_described_by_a_shape(
    shape: NetworkConfig, order: list[int], count: int
) -> None:
    network, tasks = made(shape, 4), order[:count]
    smaller, its_shape = shrunk(network, shape, CARDINALITIES, tasks)
    x = rows()
    torch.testing.assert_close(smaller(x), network(x)[:, tasks], rtol=1e-5, atol=1e-5)
    kinds = smaller.regression.tolist()
    again = Network(CARDINALITIES, count, its_shape, regression=kinds)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(x), smaller(x))
    assert not its_shape.cut_trunks


def test_a_new_expert_says_nothing_to_old_gates() -> None:
    shape = NetworkConfig(network="ple", task_experts=2, **SMALL)
    larger, _ = grown(made(shape, 2), shape, CARDINALITIES, regression=False)
    (level,) = larger.gated(rows())
    assert not level.weights[:2, :, level.stream == 2].any()
    assert level.weights[2, :, level.stream == 2].min() > 0


@pytest.mark.parametrize("gating", ["softmax", "top_k", "dselect_k"])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_a_new_expert_that_old_heads_hear_of_is_refused_however_little(
    gating: str, tasks: int
) -> None:
    """The experts of a first level feed the shared stream, which all heads of the next one read."""
    shape = NetworkConfig(network="ple", levels=2, gating=gating, task_experts=2, **SMALL)
    for scale in (1.0, 1e-2):
        network = made(shape, tasks)
        with torch.no_grad():
            # The less is learned, the less is changed.
            network.towers.out.weight.mul_(scale)
        with pytest.raises(ValueError, match="network='ple' with this shape lets the heads there"):
            grown(network, shape, CARDINALITIES, regression=False)


class Mixing(Trunk):
    """Representations that are weighted sums of all tasks', with a weight for each pair."""

    def __init__(self, in_features: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.randn(tasks, in_features, 4))
        self.pairs = nn.Parameter(torch.rand(tasks, tasks))
        self.out_features = 4
        self.is_soft = config.gating == "top_k"

    def first(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x @ self.body,)

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        pairs = self.pairs.softmax(1) if self.is_soft else self.pairs
        return torch.einsum("st,tbw->sbw", pairs, parts[0].relu())

    def owners(self) -> dict[str, Tensor]:
        tasks = torch.arange(len(self.body))
        return {"body": tasks, "pairs": tasks}


def test_a_trunk_needs_no_code_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUNKS, "mixing", Mixing)
    shape = NetworkConfig(network="mixing", **SMALL)
    network, x = made(shape, 3), rows()
    larger, there = grown(network, shape, CARDINALITIES, regression=False)
    torch.testing.assert_close(larger(x)[:, :3], network(x))
    # An old head takes nothing of the new; the new one may of all.
    assert not larger.trunk.pairs[:3, 3].any()
    assert larger.trunk.pairs[3].all()
    assert there["trunk.pairs"].tolist() == [True, True, True, False]
    smaller, its_shape = shrunk(network, shape, CARDINALITIES, [2, 0])
    torch.testing.assert_close(smaller(x), network(x)[:, [2, 0]])
    assert its_shape.cut_trunks == ((3, (2, 0)),)
    last, its_shape = shrunk(smaller, its_shape, CARDINALITIES, [1])
    torch.testing.assert_close(last(x), network(x)[:, [0]])
    assert its_shape.cut_trunks == ((3, (0,)),)
    # Where weights of all tasks add up to one, a newcomer takes from the old.
    soft = NetworkConfig(network="mixing", gating="top_k", **SMALL)
    with pytest.raises(ValueError, match="network='mixing' with this shape lets the heads there"):
        grown(made(soft, 3), soft, CARDINALITIES, regression=False)
    with pytest.raises(ValueError, match="keeps the trunk of a larger model: add the task to tha"):
        grown(last, its_shape, CARDINALITIES, regression=False)


class Chain(Mixing):
    """Each task adds to what the one before has; only the last one's body is its own."""

    def rest(self, *parts: Tensor, trace: Trace | None = None) -> Tensor:
        return parts[0].relu().cumsum(0)

    def owners(self) -> dict[str, Tensor]:
        tasks = len(self.body)
        own = torch.full((tasks,), SHARED)
        own[-1] = tasks - 1
        return {"body": own}


def test_a_whole_trunk_of_some_tasks_shows_their_gates_and_what_they_own() -> None:
    shape = NetworkConfig(network="ple", levels=2, task_experts=2, shared_experts=1, **SMALL)
    network, x = made(shape, 3), rows()
    smaller, _ = shrunk(network, shape, CARDINALITIES, [2, 0])
    assert isinstance(smaller.trunk, SomeTasks)
    experts = [0, 1, 4, 5, 6]
    last, whole = smaller.gated(x)[-1], network.gated(x)[-1]
    torch.testing.assert_close(last.weights, whole.weights[[2, 0]][:, :, experts])
    torch.testing.assert_close(last.experts, whole.experts[experts])
    assert last.stream.tolist() == [1, 1, 0, 0, 2]
    owners = smaller.owners()
    assert owners["trunk.whole.levels.1.gates.linear.weight"].tolist() == [1, SHARED, 0]
    assert owners["trunk.whole.levels.1.experts.layers.0.bias"].tolist() == [
        *(1, 1, SHARED, SHARED, 0, 0, SHARED)
    ]


def test_a_task_that_comes_last_in_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUNKS, "chain", Chain)
    shape = NetworkConfig(network="chain", **SMALL)
    network, x = made(shape, 3), rows()
    larger, there = grown(network, shape, CARDINALITIES, regression=False)
    torch.testing.assert_close(larger(x)[:, :3], network(x))
    assert there["trunk.body"].tolist() == [True, True, True, False]


def test_networks_that_share_nothing_keep_their_groups() -> None:
    shape = NetworkConfig(network="ple", levels=2, groups=((0, 3), (2, 1)), **SMALL)
    whole = IndependentNetworks([made(shape.part(i), 2) for i in (0, 1)], shape.groups)
    x = rows()
    for tasks, groups in [([3, 1], ((0,), (1,))), ([1, 0, 2], ((0, 2), (1,))), ([0, 3], ())]:
        smaller, its_shape = shrunk(whole, shape, CARDINALITIES, tasks)
        torch.testing.assert_close(smaller(x), whole(x)[:, tasks])
        assert its_shape.groups == groups
    smaller, its_shape = shrunk(whole, shape, CARDINALITIES, [2, 0, 3])
    assert its_shape.cut_trunks == ((2, (0,)), (0, ()))
    for position, network in enumerate(smaller.networks):
        kinds = network.regression.tolist()
        alone = Network(CARDINALITIES, len(kinds), its_shape.part(position), regression=kinds)
        alone.load_state_dict(network.state_dict())
    both, both_shape = shrunk(smaller, its_shape, CARDINALITIES, [0, 2])
    torch.testing.assert_close(both(x), whole(x)[:, [2, 3]])
    assert both_shape.cut_trunks == ((2, (0,)), (2, (1,)))
    again, back = shrunk(smaller, its_shape, CARDINALITIES, [0])
    assert isinstance(again, Network)
    assert isinstance(again.trunk, SomeTasks)
    torch.testing.assert_close(again(x), whole(x)[:, [2]])
    assert back.cut_trunks == ((2, (0,)),)
