"""Affinity of tasks, and the groups that it proposes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from riskmtl import MultiTaskClassifier, group_tasks, task_affinity
from riskmtl.affinity import Affinity
from riskmtl.networks import SHARED, Network, NetworkConfig
from riskmtl.schema import DataSchema
from riskmtl.training.affinity import LookaheadAffinity, lookahead
from riskmtl.training.config import TrainingConfig
from riskmtl.training.objective import Objective
from riskmtl.training.rows import TaskPlan

SMALL = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": [8],
    "tower_units": [4],
    "embedding_dim": 2,
    "bins": 4,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}


def labels_of(rows: int, tasks: int, rate: float = 0.3) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(0)
    X = pl.DataFrame(rng.normal(size=(rows, 3)), schema=["amount", "age", "limit"])
    risk = X.to_numpy() @ rng.normal(size=(3, tasks)) - 1
    y = (rng.random((rows, tasks)) < 1 / (1 + np.exp(-risk))).astype(float)
    y[rng.random((rows, tasks)) < rate] = np.nan
    return X, pl.DataFrame(y, schema=[f"task_{i}" for i in range(tasks)])


# ---- looking a step ahead ------------------------------------------------------------------------

SHAPE = NetworkConfig(
    embedding_dim=2, bins=4, steps=1, expert_units=(6, 4), shared_units=(6,), tower_units=(3,)
)
SHAPES = {
    "ple": SHAPE,
    "mmoe with members": NetworkConfig.from_dict(
        {"network": "mmoe", "members": 2, "experts": 3, "expert_units": [5], "bins": 4}
    ),
    "shared bottom": NetworkConfig(network="shared_bottom", shared_units=(5,), linear_path=True),
}


def made(shape: NetworkConfig) -> tuple[Network, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    network = Network([0, 0, 4], 3, shape, regression=[False, False, True])
    x = torch.cat([torch.randn(40, 2), torch.randint(0, 4, (40, 1)).float()], dim=1)
    network.embedding.fit(x.numpy())
    y = torch.cat([(torch.rand(40, 2) < 0.4).float(), torch.randn(40, 1)], dim=1)
    y[torch.rand(40, 3) < 0.3] = torch.nan
    return network.train(), x, y, torch.rand(40) + 0.5


def objective(factor: float = 1.0) -> Any:
    """Losses of three tasks, with a factor on the events of the first."""
    kinds = (False, False, True)
    plan = TaskPlan(("a", "b", "c"), kinds, (1.0, 1.0, 1.0), (factor, 1.0, 1.0))
    config = TrainingConfig(
        epochs=1, patience=1, batch_size=8, learning_rate=0.01, weight_decay=0.0
    )
    return Objective(plan, config)


def plain_losses(network: Network, x: Tensor, y: Tensor, weights: Tensor) -> list[Tensor]:
    """Mean over members and observed rows, one task at a time."""
    found = []
    for task in range(y.shape[1]):
        seen = ~torch.isnan(y[:, task])
        parts = []
        for outputs in network(x, pooled=False):
            said, label = outputs[seen, task], y[seen, task]
            loss = binary_cross_entropy_with_logits(said, label, reduction="none")
            loss = (said - label) ** 2 if network.regression[task] else loss
            parts.append((loss * weights[seen]).sum() / weights[seen].sum())
        found.append(torch.stack(parts).mean())
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_looked_ahead_is_a_step_taken_on_a_copy(name: str) -> None:
    network, x, y, weights = made(SHAPES[name])
    state = copy.deepcopy(network.state_dict())
    found = lookahead(network, x, y, weights, rate=0.5, objective=objective())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    before = plain_losses(copy.deepcopy(network).eval(), x, y, weights)
    for task in range(3):
        moved = copy.deepcopy(network).eval()
        owners = moved.owners()
        plain_losses(moved, x, y, weights)[task].backward()
        with torch.no_grad():
            for key, parameter in moved.named_parameters():
                if parameter.grad is None:
                    continue
                for i in range(len(parameter)):
                    if key not in owners or owners[key][i] == SHARED:
                        parameter[i] -= 0.5 * parameter.grad[i]
        after = plain_losses(moved, x, y, weights)
        expected = [1 - a.item() / b.item() for a, b in zip(after, before, strict=True)]
        np.testing.assert_allclose(found[task], expected, atol=1e-5)
    assert found.diagonal().min() > 5e-5


def test_dropout_does_not_blur_a_step() -> None:
    network, x, y, weights = made(replace(SHAPE, dropout=0.5, feature_dropout=0.3))
    found = lookahead(network, x, y, weights, rate=0.5, objective=objective())
    still = lookahead(network.eval(), x, y, weights, rate=0.5, objective=objective())
    assert torch.equal(found, still)


def test_what_a_batch_does_not_observe_is_not_known() -> None:
    network, x, y, _ = made(SHAPE)
    y[:, 1] = torch.nan
    found = lookahead(network, x, y, rate=0.1, objective=objective())
    unknown = torch.isnan(found)
    assert unknown[1].all()
    assert unknown[:, 1].all()
    assert not unknown[0, [0, 2]].any()
    assert not unknown[2, [0, 2]].any()


def test_a_step_counts_events_as_training_does() -> None:
    network, x, y, _ = made(SHAPE)
    plain = lookahead(network, x, y, rate=0.1, objective=objective())
    heavy = lookahead(network, x, y, rate=0.1, objective=objective(5.0))
    assert (plain - heavy)[0].abs().max() > 1e-5
    torch.testing.assert_close(plain[1:, 1:], heavy[1:, 1:])


@pytest.mark.parametrize("network", ["ple", "shared_bottom"])
def test_looking_ahead_leaves_the_training_as_it_is(network: str) -> None:
    X, y = labels_of(400, 3)
    options = {**SMALL, "network": network, "epochs": 2, "batch_size": 64, "expert_units": [6]}
    looking = LookaheadAffinity(every=2)
    watched = MultiTaskClassifier(**options, callbacks=[looking]).fit(X, y)
    plain = MultiTaskClassifier(**options).fit(X, y)
    assert watched.predict_frame(X).equals(plain.predict_frame(X))
    assert watched.history_.equals(plain.history_)
    assert looking.matrix().shape == (3, 3)
    assert np.isfinite(looking.matrix()).all()


def test_the_matrix_is_the_mean_over_the_batches_that_know(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [[[1.0, 2.0], [3.0, 4.0]], [[3.0, np.nan], [np.nan, np.nan]]]
    answers: Iterator[Tensor] = iter(torch.tensor(steps, dtype=torch.float64))
    rates = []

    def answer(*_: Any, rate: float, **__: Any) -> Tensor:
        rates.append(rate)
        return next(answers)

    monkeypatch.setattr("riskmtl.training.affinity.lookahead", answer)
    X, y = labels_of(400, 2)
    model = MultiTaskClassifier(**SMALL, epochs=1, batch_size=85)  # 340 rows: steps 0, 1, 2 and 3
    found = task_affinity(X, y, model=model, every=2)
    np.testing.assert_array_equal(found.matrix, [[2.0, 2.0], [3.0, 4.0]])
    assert len(rates) == len(set(rates)) == 2


def test_nothing_measured_is_said() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        LookaheadAffinity().matrix()


# ---- which groups are proposed -------------------------------------------------------------------


def partitions(tasks: list[int]) -> Iterator[list[list[int]]]:
    if not tasks:
        yield []
        return
    first, *rest = tasks
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for i in range(len(smaller)):
            yield [*smaller[:i], [first, *smaller[i]], *smaller[i + 1 :]]


def total(matrix: NDArray[np.float64], groups: list[list[int]]) -> float:
    return float(
        sum(np.mean([matrix[i, j] for i in g if i != j]) for g in groups if len(g) > 1 for j in g)
    )


def named(matrix: NDArray[np.float64]) -> Affinity:
    return Affinity(tuple("abcdefghijkl"[: len(matrix)]), matrix)


MATRICES = st.integers(1, 6).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.integers(-8, 8).map(lambda i: i / 8))
)


@settings(max_examples=80, deadline=None)
@given(matrix=MATRICES, networks=st.integers(1, 6))
def test_no_partition_is_better(matrix: NDArray[np.float64], networks: int) -> None:
    found = [["abcdef".index(t) for t in g] for g in group_tasks(named(matrix), networks=networks)]
    allowed = [p for p in partitions(list(range(len(matrix)))) if len(p) <= networks]
    best = max(total(matrix, p) for p in allowed)
    assert sorted(i for group in found for i in group) == list(range(len(matrix)))
    assert total(matrix, found) == pytest.approx(best, abs=1e-9)
    fewest = min(len(p) for p in allowed if total(matrix, p) >= best - 1e-9)
    assert len(found) == fewest


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(2, 7), networks=st.integers(1, 4))
def test_the_order_of_the_tasks_plays_no_part(seed: int, tasks: int, networks: int) -> None:
    rng = np.random.default_rng(seed)
    affinity = named(rng.normal(size=(tasks, tasks)))
    order = rng.permutation(tasks)
    shuffled = Affinity(
        tuple(affinity.tasks[i] for i in order), affinity.matrix[np.ix_(order, order)]
    )
    groups, others = (group_tasks(a, networks=networks) for a in (affinity, shuffled))
    assert {frozenset(g) for g in groups} == {frozenset(g) for g in others}


def test_ties_go_to_fewer_networks() -> None:
    assert group_tasks(named(np.zeros((5, 5))), networks=5) == [["a", "b", "c", "d", "e"]]
    # What a task does for itself is no reason to be with others, or alone.
    assert group_tasks(named(np.eye(3)), networks=3) == [["a", "b", "c"]]
    assert group_tasks(named(np.full((3, 3), np.nan)), networks=3) == [["a", "b", "c"]]


@pytest.mark.parametrize(("value", "tasks"), [(0.7, 4), (0.1, 6), (576000.3, 6)])
def test_rounding_breaks_no_tie(value: float, tasks: int) -> None:
    """Where all help each other alike, two groups gain as much as one, but for the last digit."""
    found = group_tasks(named(np.full((tasks, tasks), value)), networks=tasks)
    assert found == [list("abcdef"[:tasks])]


def test_a_group_helps_by_the_mean_of_its_tasks() -> None:
    """By hand: with all together a has (6 + 0) / 2, b and c nothing; with b alone, a has 6."""
    matrix = np.zeros((3, 3))
    matrix[1, 0] = 6
    assert group_tasks(named(matrix), networks=2) == [["a", "b"], ["c"]]
    assert group_tasks(named(matrix), networks=1) == [["a", "b", "c"]]


def test_twelve_tasks_are_the_most() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.uniform(-1, 0, (12, 12))
    for i in range(0, 12, 4):
        matrix[i : i + 4, i : i + 4] *= -1
    assert group_tasks(named(matrix), networks=3) == [list("abcd"), list("efgh"), list("ijkl")]
    many = Affinity(tuple(f"task_{i}" for i in range(13)), np.zeros((13, 13)))
    with pytest.raises(ValueError, match=r"partitions of 13 tasks are too many .* at most 12"):
        group_tasks(many)


def test_what_is_no_affinity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 2 tasks and a matrix of shape \(2, 3\)"):
        Affinity(("a", "b"), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="all named differently"):
        Affinity(("a", "a"), np.zeros((2, 2)))
    with pytest.raises(TypeError, match="affinity must be an Affinity, got list"):
        group_tasks([[0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="networks must be a whole number of at least 1, got 0"):
        group_tasks(named(np.zeros((2, 2))), networks=0)


# ---- measured on tables --------------------------------------------------------------------------


def pairs_of_heads(rows: int, *, observed: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two causes, of two heads each, that have no column in common."""
    rng = np.random.default_rng(7)
    signs = rng.choice([-1.0, 1.0], size=10)
    X = rng.normal(size=(rows, 10))
    parts = {"card": slice(5), "loan": slice(5, 10)}
    y = {}
    for i in (1, 2):
        for name, part in parts.items():
            risk = 3 * X[:, part] @ signs[part] / np.sqrt(5)
            label = (rng.random(rows) < 1 / (1 + np.exp(-risk))).astype(float)
            y[f"{name}_{i}"] = np.where(rng.random(rows) < observed, label, np.nan)
    return pl.DataFrame(X, schema=[f"x{i}" for i in range(10)]), pl.DataFrame(y)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("method", "observed"), [("gradient", 0.8), ("pairs", 0.2)])
def test_related_heads_are_found(method: str, observed: float, seed: int) -> None:
    """
    With two shared units, heads of different causes stand in one another's way.

    Pairs gain where labels are few; steps looked ahead are sure where batches hold many.
    """
    X, y = pairs_of_heads(1500, observed=observed)
    X_val, y_val = pairs_of_heads(3000, observed=1.0)
    narrow = {**SMALL, "shared_units": [2], "tower_units": [], "numeric_embedding": "standardize"}
    model = MultiTaskClassifier(
        **{**narrow, "embedding_dim": 1, "random_state": seed},
        dropout=0.0,
        batch_size=32,
        epochs=6,
        learning_rate=0.02,
    )
    rows = {"X_val": X_val[1500:], "y_val": y_val[1500:]}
    affinity = task_affinity(X, y, model=model, method=method, every=5, **rows)
    assert affinity.tasks == ("card_1", "loan_1", "card_2", "loan_2")
    related = affinity.matrix[[0, 1, 2, 3], [2, 3, 0, 1]]
    unrelated = affinity.matrix[[0, 1, 2, 3], [1, 2, 3, 0]]
    assert related.mean() > unrelated.mean()
    right = [["card_1", "card_2"], ["loan_1", "loan_2"]]
    assert group_tasks(affinity) == group_tasks(affinity, networks=4) == right


def test_what_is_proposed_can_be_trained() -> None:
    X, y = labels_of(300, 3)
    proposed = group_tasks(named(np.array([[0, -1, 1], [-1, 0, -1], [1, -1, 0.0]])))
    groups = [[f"task_{'abc'.index(task)}" for task in group] for group in proposed]
    fitted = MultiTaskClassifier(**SMALL, epochs=1, groups=groups).fit(X, y)
    assert fitted.model_.scorer.network.groups == [[0, 2], [1]]


def test_pairs_are_compared_with_each_task_alone() -> None:
    X, y = labels_of(400, 2)
    y = y.with_columns(task_1=pl.col("task_1").fill_nan(0.0))  # so that no row is left out
    model = MultiTaskClassifier(**SMALL, epochs=2)
    rows = {"X_val": X[300:], "y_val": y[300:]}
    found = task_affinity(X[:300], y[:300], model=model, method="pairs", **rows).matrix

    def losses(fitted: MultiTaskClassifier) -> list[float]:
        kept = fitted.history_.filter(
            pl.col("epoch") == pl.col("task").replace_strict(fitted.best_epochs_)
        )
        return kept["val_log_loss"].to_list()

    together = losses(model.fit(X[:300], y[:300], **rows))
    apart = losses(
        MultiTaskClassifier(**SMALL, epochs=2, groups=[["task_0"], ["task_1"]]).fit(
            X[:300], y[:300], **rows
        )
    )
    assert found[1, 0] == pytest.approx(1 - together[0] / apart[0], rel=1e-6)
    assert found[0, 1] == pytest.approx(1 - together[1] / apart[1], rel=1e-6)
    assert found.diagonal().tolist() == [0, 0]


def test_a_schema_says_what_the_labels_are(cards: pl.DataFrame, cards_schema: DataSchema) -> None:
    options = {**SMALL, "epochs": 1, "schema": cards_schema, "batch_size": 64}
    model = MultiTaskClassifier(**options, groups=[["default"], ["fraud"]], challenger="blend")
    found = task_affinity(cards, model=model, every=2)
    assert found.tasks == ("default", "fraud")
    assert np.isfinite(found.matrix).all()
    assert found.to_frame().columns == ["trained on", "default", "fraud"]
    assert "affinity of tasks (gradient)" in str(found)
    assert "<table" in found._repr_html_()
    assert not hasattr(model, "model_")


def test_what_would_leave_tasks_out_of_a_step_plays_no_part(tmp_path: Path) -> None:
    X, y = labels_of(300, 2)
    options = {**SMALL, "epochs": 2, "batch_size": 64}
    plain = task_affinity(X, y, model=MultiTaskClassifier(**options), every=2)
    model = MultiTaskClassifier(
        **options, schedule="round_robin", freeze_shared_after=1, checkpoint_dir=str(tmp_path)
    )
    np.testing.assert_array_equal(task_affinity(X, y, model=model, every=2).matrix, plain.matrix)
    assert not list(tmp_path.iterdir())


def test_affinity_needs_tasks_together() -> None:
    X, y = labels_of(200, 2)
    with pytest.raises(ValueError, match="affinity is between tasks: give labels of at least two"):
        task_affinity(X, y.select("task_0"), model=MultiTaskClassifier(**SMALL))
    with pytest.raises(ValueError, match="unknown method 'gradients': did you mean 'gradient'"):
        task_affinity(X, y, method="gradients")
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        task_affinity(X, y, every=0)
    with pytest.raises(ValueError, match="model trains no tasks together"):
        task_affinity(X, y, model=MultiTaskClassifier("single_task"))
    with pytest.raises(TypeError, match="must be a MultiTaskClassifier, got str"):
        task_affinity(X, y, model="ple")  # type: ignore[arg-type]
