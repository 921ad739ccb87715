"""What each epoch is seen to do: gradients as slow loops find them, gates, and no trace of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.loggers import CSVLogger
from reference import diagnosis as loops
from test_training import PLAN, SHAPE, assert_same_bits, fit, rows
from torch import Tensor, nn

from riskmtl.history import history_frame
from riskmtl.networks import Gated, Network, NetworkConfig, Trace
from riskmtl.training import module as training_module
from riskmtl.training.balancing import Balancing
from riskmtl.training.batches import Batch
from riskmtl.training.config import TrainingConfig
from riskmtl.training.diagnosis import draw_probe, look_at
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.rows import TaskPlan, TrainingRows

NAMES = ("default", "fraud", "amount")
POSITIVE, REGRESSION = (3.0, 1.0, 1.0), (False, False, True)


# ---- gradients -----------------------------------------------------------------------------------


def labelled(n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 3))
    x[:, 2] = rng.integers(0, 4, n)
    y = rng.integers(0, 2, (n, 3)).astype(float)
    y[:, 2] = rng.normal(size=n)
    y[rng.random((n, 3)) < 0.3] = np.nan
    weights = rng.uniform(0.1, 3, n)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weights)


def network_of(**changes: Any) -> Network:
    torch.manual_seed(1)
    shape = replace(SHAPE, **changes)
    network = Network([0, 0, 4], 3, shape, regression=REGRESSION)
    network.embedding.fit(labelled()[0].numpy().astype(np.float32))
    return network.double().eval()


def seen(network: Any, probe: Batch) -> list[dict[str, Any]]:
    """What is said of a network under the losses of a training."""
    plan = TaskPlan(NAMES, REGRESSION, (1.0, 0.5, 2.0), POSITIVE)
    config = TrainingConfig(
        epochs=1, patience=1, batch_size=8, learning_rate=1e-3, weight_decay=0.0
    )
    module = MultiTaskModule(network, plan, config).double().eval()
    return look_at(network, probe, module.objective, NAMES)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "ple"},
        {"network": "ple", "members": 3, "task_experts": 1},
        {"network": "mmoe", "experts": 3, "linear_path": True},
        {"network": "shared_bottom", "members": 2},
    ],
    ids=str,
)
def test_gradients_are_those_of_a_loop_over_tasks(changes: dict[str, Any]) -> None:
    network, (x, y, weights) = network_of(**changes), labelled()
    found = seen(network, (x, y, weights))
    expected = loops.shared_gradients(network, x, y, weights.tolist(), POSITIVE, REGRESSION)
    for i, row in enumerate(found):
        assert row["gradient_norm"] == pytest.approx(expected[i].norm().item(), rel=1e-9)
        for j, other in enumerate(NAMES):
            if j != i:
                cosine = torch.cosine_similarity(expected[i], expected[j], dim=0).item()
                assert row[f"gradient_cosine_{other}"] == pytest.approx(cosine, abs=1e-9)
        assert f"gradient_cosine_{NAMES[i]}" not in row


class Plane(nn.Module):
    """Two shared numbers, two of the tasks' own, and whatever gates a test asks for."""

    def __init__(self, directions: list[list[float]], gated: Gated | None = None) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(2))
        self.own = nn.Parameter(torch.ones(len(directions), 1))
        self.directions = torch.tensor(directions)
        self.gated = gated

    def forward(self, x: Tensor, *, pooled: bool, trace: Trace) -> Tensor:
        if self.gated is not None:
            trace.gated.append(self.gated)
        answers = self.directions @ self.shared + self.own[:, 0]
        members = 1 if self.gated is None else self.gated.weights.shape[1] // len(x)
        return answers.expand(members, len(x), -1)

    def owners(self) -> dict[str, Tensor]:
        return {"own": torch.arange(len(self.own))}


def seen_in_plane(plane: Plane, probe: Batch | None = None) -> list[dict[str, Any]]:
    tasks = len(plane.own)
    probe = (torch.zeros(4, 1), torch.zeros(4, tasks), None) if probe is None else probe
    names = "abcdefgh"[:tasks]
    return look_at(plane, probe, lambda outputs, y, weights: outputs.mean((0, 1)), names)  # type: ignore[arg-type]


def test_heads_made_by_hand_have_the_cosines_and_norms_they_were_made_with() -> None:
    a, b, c = seen_in_plane(Plane([[2.0, 0.0], [0.0, 1.0], [-0.5, 0.0]]))
    assert (a["gradient_norm"], b["gradient_norm"], c["gradient_norm"]) == (2, 1, 0.5)
    assert (a["gradient_cosine_b"], a["gradient_cosine_c"], b["gradient_cosine_c"]) == (0, -1, 0)
    assert (b["gradient_cosine_a"], c["gradient_cosine_a"], c["gradient_cosine_b"]) == (0, -1, 0)


def test_nothing_is_said_of_a_head_without_rows_nor_of_a_direction_that_is_none() -> None:
    y = torch.tensor([[1.0, np.nan, 0.0], [0.0, np.nan, 1.0], [np.nan, 1.0, np.nan]])
    probe = (torch.zeros(3, 1), y, torch.tensor([1.0, 1.0, 0.0]))
    a, b, c = seen_in_plane(Plane([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), probe)
    # The only row that observes b counts nothing; c is observed, but pulls nowhere.
    assert [b[k] for k in ("gradient_norm", "gradient_cosine_a", "gradient_cosine_c")] == [None] * 3
    assert (a["gradient_norm"], a["gradient_cosine_b"], a["gradient_cosine_c"]) == (2, None, None)
    assert (c["gradient_norm"], c["gradient_cosine_a"]) == (0, None)


def test_what_does_not_learn_does_not_pull() -> None:
    plane = Plane([[2.0, 0.0], [0.0, 1.0]])
    plane.shared.requires_grad_(False)
    assert [row["gradient_norm"] for row in seen_in_plane(plane)] == [None, None]


def test_it_can_look_where_gradients_are_switched_off() -> None:
    plane = Plane([[2.0, 0.0]])
    with torch.inference_mode():
        assert seen_in_plane(plane)[0]["gradient_norm"] == 2


# ---- gates ---------------------------------------------------------------------------------------


def test_gates_made_by_hand() -> None:
    # Experts: one of a, two of b, two shared. Two members see the two rows after one another.
    a = [[0.5, 0, 0, 0.5, 0.0], [1.0, 0, 0, 0.0, 0.0]]
    b = [[0, 0.25, 0.25, 0.5, 0.0], [0, 1.0, 0.0, 0.0, 0.0]]
    weights = torch.tensor([a + a, b + b])
    level = Gated(weights, torch.zeros(5, 4, 1), torch.tensor([0, 1, 1, 2, 2]))
    probe = (torch.zeros(2, 1), torch.zeros(2, 2), torch.tensor([1.0, 3.0]))
    first, second = seen_in_plane(Plane([[1.0, 0.0], [0.0, 1.0]], level), probe)
    assert first["gate_weights"] == pytest.approx([0.875, None, None, 0.125, 0])
    assert second["gate_weights"] == pytest.approx([None, 0.8125, 0.0625, 0.125, 0])
    # A quarter of the weight is on the row that mixes; of three experts, and of four.
    assert first["gate_entropy"] == pytest.approx(0.25 * np.log(2) / np.log(3))
    assert second["gate_entropy"] == pytest.approx(0.25 * 1.5 * np.log(2) / np.log(4))
    # The last shared one lives nowhere; b's second lives on b alone.
    assert (first["dead_experts"], second["dead_experts"]) == (1, 1)


def test_an_expert_lives_on_one_gate() -> None:
    weights = torch.tensor([[[0.995, 0.005]], [[0.98, 0.02]]])
    level = Gated(weights, torch.zeros(2, 1, 1), torch.tensor([2, 2]))
    probe = (torch.zeros(1, 1), torch.zeros(1, 2), None)
    plane = Plane([[1.0, 0.0], [0.0, 1.0]], level)
    assert [row["dead_experts"] for row in seen_in_plane(plane, probe)] == [0, 0]
    level.weights[1] = torch.tensor([[0.992, 0.008]])
    assert [row["dead_experts"] for row in seen_in_plane(plane, probe)] == [1, 1]


def test_a_gate_without_choice_has_no_entropy() -> None:
    level = Gated(torch.ones(1, 4, 1), torch.zeros(1, 4, 1), torch.tensor([0]))
    (row,) = seen_in_plane(Plane([[1.0, 0.0]], level))
    assert (row["gate_weights"], row["gate_entropy"], row["dead_experts"]) == ([1.0], None, 0)


def test_gates_of_a_network_are_those_that_it_tells() -> None:
    network, (x, y, weights) = network_of(network="ple", members=2), labelled()
    level = network.gated(x)[-1]
    share = (weights / weights.sum()).repeat(2) / 2
    for task, row in enumerate(seen(network, (x, y, weights))):
        for expert, owner in enumerate(level.stream.tolist()):
            expected = (level.weights[task, :, expert] * share).sum().item()
            told = row["gate_weights"][expert]
            assert told is None if owner not in (task, 3) else told == pytest.approx(expected)


# ---- the probe -----------------------------------------------------------------------------------


def test_a_small_table_is_taken_whole() -> None:
    y = np.array([[1, np.nan], [np.nan, np.nan], [0, 3.5]], dtype=np.float32)
    given_rows = TrainingRows(np.arange(3, dtype=np.float32)[:, None], y, np.float32([2, 3, 4]))
    probe = draw_probe(given_rows, (False, True), seed=0)
    assert probe.x[:, 0].tolist() == [0, 2]
    assert probe.weights is not None
    assert probe.weights.tolist() == [2, 4]
    nothing = draw_probe(given_rows.where(np.array([False, True, False])), (False, True), seed=0)
    assert len(nothing.x) == 0


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(200, 9_000),
    event_rate=st.sampled_from([0.0, 0.001, 0.02, 0.5]),
    observed=st.sampled_from([0.001, 0.05, 1.0]),
    seed=st.integers(0, 5),
)
def test_the_draw_stands_for_the_table(
    n: int, event_rate: float, observed: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 2)) < [event_rate, 0.3]).astype(np.float32)
    y[rng.random(n) >= observed, 0] = np.nan
    y[rng.random(n) >= 0.5, 1] = np.nan
    table = TrainingRows(np.arange(n, dtype=np.float32)[:, None], y)
    probe = draw_probe(table, (False, False), seed=seed)
    drawn = probe.x[:, 0].astype(int)
    assert probe.weights is not None
    assert len(set(drawn)) == len(drawn) <= max(128, n // 64)
    assert np.array_equal(probe.y, y[drawn], equal_nan=True)
    assert (probe.weights >= 1 - 1e-6).all()
    for task in range(2):
        for value in (0, 1):
            count, here = (y[:, task] == value).sum(), probe.y[:, task] == value
            # Each kind is there, few of it wholly, and weighed counts as the table's.
            assert here.sum() >= min(count, 128 // 4) - 2
            slack = 3 * float(probe.weights.max())
            assert probe.weights[here].sum() == pytest.approx(count, rel=0.1, abs=slack)
    again = draw_probe(table, (False, False), seed=seed)
    assert np.array_equal(again.x, probe.x)


# ---- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["ple", "single_task"])
def test_looking_changes_no_bit(monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    shape = {"network": network, "members": 2, "dropout": 0.3, "feature_dropout": 0.1}
    watched = fit(**shape, epochs=3)
    assert watched.history[0]["gradient_norm"] > 0
    monkeypatch.setattr(training_module, "look_at", lambda *args: [{}] * len(args[-1]))
    unwatched = fit(**shape, epochs=3)
    assert "gradient_norm" not in unwatched.history[0]
    assert_same_bits(watched, unwatched)
    keys = unwatched.history[0].keys()
    assert [{k: row[k] for k in keys} for row in watched.history] == unwatched.history


def test_looking_leaves_network_and_generator_alone() -> None:
    network = network_of(network="ple")
    before = torch.get_rng_state()
    seen(network, labelled())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_history_tells_of_every_head_and_epoch(precision: str) -> None:
    history = fit(epochs=2, patience=2, precision=precision, members=2).history
    assert json.loads(json.dumps(history, allow_nan=False)) == history
    for row in history:
        other = "fraud" if row["task"] == "default" else "default"
        assert row["gradient_norm"] > 0
        assert -1 <= row[f"gradient_cosine_{other}"] <= 1
        assert row["task_weight"] == 1
        known = [weight for weight in row["gate_weights"] if weight is not None]
        assert sum(known) == pytest.approx(1)
        assert len(known) == len(row["gate_weights"]) - 2
        assert 0 < row["gate_entropy"] <= 1
        assert row["dead_experts"] == 0
    kept = {row["epoch"] for row in history if row["kept"]}
    assert len(kept) == 1


def test_networks_by_themselves_have_no_cosines() -> None:
    trained = fit(network="single_task", epochs=3, patience=3)
    frame = history_frame(trained.history)
    assert not [name for name in frame.columns if "cosine" in name]
    assert frame["gradient_norm"].null_count() == 0
    assert frame["gate_weights"].null_count() == frame.height
    # Each has a best epoch of its own.
    assert frame.filter("kept").height == 2


def test_groups_have_cosines_within_themselves() -> None:
    seen_rows, held_out = rows(400), rows(200, seed=1)
    three = [TrainingRows(r.x, np.hstack([r.y, r.y[:, :1]])) for r in (seen_rows, held_out)]
    plan = TaskPlan(("a", "b", "c"), (False,) * 3, (1.0, 0.5, 1.0), (1.0,) * 3)
    trained = fit(
        rows=three[0], validation=three[1], plan=plan, groups=((0, 2), (1,)), epochs=1,
        network="mmoe", experts=3,
    )  # fmt: skip
    frame = history_frame(trained.history)
    assert {name for name in frame.columns if "cosine" in name} == {
        "gradient_cosine_a",
        "gradient_cosine_c",
    }
    assert frame.filter(task="b").select("gradient_cosine_a", "gradient_cosine_c").row(0) == (
        None,
        None,
    )
    # The same labels, but for the towers.
    assert frame.filter(task="a")["gradient_cosine_c"][0] == frame.filter(task="c")[
        "gradient_cosine_a"
    ][0]  # fmt: skip


def test_a_head_that_nobody_observes_has_nulls() -> None:
    blind = rows(300)
    blind.y[:, 1] = np.nan
    history = fit(rows=blind, epochs=1, network="shared_bottom").history
    fraud = next(row for row in history if row["task"] == "fraud")
    assert fraud["gradient_norm"] is None
    assert fraud["gradient_cosine_default"] is None
    default = next(row for row in history if row["task"] == "default")
    assert default["gradient_norm"] > 0
    assert default["gradient_cosine_fraud"] is None
    assert default["gate_weights"] is None
    assert default["dead_experts"] is None


def test_the_weight_told_is_the_mean_of_the_epoch_where_a_balancing_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(PLAN, weights=(1.0, 0.25))
    assert [row["task_weight"] for row in fit(plan=plan, epochs=1).history] == [1.0, 0.25]
    monkeypatch.setattr(
        Balancing, "mean_weights", lambda self: torch.tensor([0.5, torch.nan]), raising=False
    )
    assert [row["task_weight"] for row in fit(plan=plan, epochs=1).history] == [0.5, None]


def test_numbers_go_to_lightnings_loggers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    history = fit(epochs=1, logger=logger).history
    names, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    logged = dict(zip(names.split(","), lines[-1].split(","), strict=True))
    for row in history:
        for name in ("gradient_norm", "gate_entropy", "task_weight", "dead_experts"):
            assert float(logged[f"{row['task']}/{name}"]) == pytest.approx(row[name], rel=1e-5)
    cosine = float(logged["fraud/gradient_cosine_default"])
    assert cosine == pytest.approx(history[1]["gradient_cosine_default"], rel=1e-5)
    assert "gate_weights" not in names


def test_another_precision_of_the_weights() -> None:
    history = fit(epochs=1, trainer_options={"precision": "64-true"}).history
    assert history[0]["gradient_norm"] > 0


def test_a_config_without_gates_has_none() -> None:
    network = Network([0], 1, NetworkConfig(network="shared_bottom")).eval()
    x = torch.zeros(0, 1)
    (row,) = look_at(
        network, (x, torch.zeros(0, 1), None), lambda outputs, y, w: outputs.sum((0, 1)), ["a"]
    )
    assert set(row.values()) == {None}
