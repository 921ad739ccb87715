"""Members: several networks in one, pooled as they should be, and no trace of them where one is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from reference import networks as loops
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from riskmtl import MultiTaskClassifier, RiskModel
from riskmtl.networks import NUMERIC_EMBEDDINGS, TRUNKS, IndependentNetworks, Network, NetworkConfig
from riskmtl.networks.embedding import FeatureEmbedding
from riskmtl.networks.layers import Towers
from riskmtl.networks.members import MemberScalings, pool_members
from riskmtl.scorers import CPU_ROWS, NetworkScorer
from riskmtl.training.config import TrainingConfig
from riskmtl.training.fit import train
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.rows import TaskPlan, TrainingRows

NAN = float("nan")
MIXED = [0, 4, 0]
REGRESSION = [False, True, False]
JOINT = sorted(set(TRUNKS) - {"single_task"})


def shape_of(network: str, members: int, **changes: Any) -> NetworkConfig:
    settings: dict[str, Any] = {
        "network": network,
        "members": members,
        "embedding_dim": 3,
        "bins": 4,
        "expert_units": (6, 5),
        "shared_units": (6, 5),
        "tower_units": (4,),
        "code_width": 5,
        "decoder_units": (4,),
        "levels": 2,
        "dropout": 0.0,
        **changes,
    }
    return NetworkConfig(**settings)


def encoded(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    x[rng.random(rows) < 0.2, 0] = NAN
    x[:, 1] = rng.integers(0, 4, rows)
    return x


def scatter(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter off its start, so that nothing is zero by luck."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return module


def network_of(shape: NetworkConfig, regression: Sequence[bool] = REGRESSION) -> Network:
    """A fitted network in evaluation mode."""
    network = Network(MIXED, len(regression), shape, regression=regression)
    network.embedding.fit(encoded(40))
    scatter(network)
    return network.eval()


def pooled(outputs: Tensor, regression: Sequence[bool] = REGRESSION) -> np.ndarray:
    """Members' outputs averaged in float64: mean probabilities as log-odds, mean predictions."""
    said = outputs.detach().double().numpy()
    event = (1 / (1 + np.exp(-said))).mean(0)
    other = (1 / (1 + np.exp(said))).mean(0)
    return np.where(regression, said.mean(0), np.log(event) - np.log(other))


# ---- equal to the loops --------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", sorted(TRUNKS))
@pytest.mark.parametrize("members", [1, 2, 3])
def test_members_equal_their_loop(trunk: str, members: int) -> None:
    shape = shape_of(trunk, members)
    network = network_of(shape).double()
    x = torch.from_numpy(encoded(5, seed=1)).double()
    parameters = list(network.parameters())
    unpooled = torch.stack([torch.stack(loops.members(network, MIXED, 3, shape, r)) for r in x], 1)
    whole = torch.stack([loops.network(network, MIXED, 3, shape, r, REGRESSION) for r in x])
    for batched, looped in ((network(x, pooled=False), unpooled), (network(x), whole)):
        torch.testing.assert_close(batched, looped, rtol=1e-10, atol=1e-10)
        factors = torch.arange(1.0, looped.numel() + 1).view_as(looped)
        actual, expected = (
            torch.autograd.grad((out * factors).sum(), parameters, materialize_grads=True)
            for out in (batched, looped)
        )
        for (name, _), a, b in zip(network.named_parameters(), actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=f"{name}: {a} {b}")
            assert a.any() or "missing" in name or "embedding" in name, name


def test_scalings_are_a_vector_per_member_in_the_order_of_members() -> None:
    scalings = MemberScalings(3, [1, 1])
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    with torch.no_grad():
        scalings.scale.copy_(torch.tensor([[[1.0, 0.0]], [[2.0, 3.0]], [[-1.0, 0.5]]]))
    assert scalings(x).tolist() == [[1, 0], [2, 0], [2, 30], [4, 60], [-1, 5], [-2, 10]]


# ---- pooling -------------------------------------------------------------------------------------


def test_pooling_averages_probabilities_and_predictions() -> None:
    outputs = torch.tensor([[[0.0, 5.0], [1.0, 0.0]], [[4.0, 1.0], [-1.0, -8.0]]])
    found = pool_members(outputs, torch.tensor([False, True]))
    mean = (0.5 + 1 / (1 + math.exp(-4))) / 2
    expected = [[math.log(mean / (1 - mean)), 3.0], [0.0, -4.0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "said",
    [
        [-40.0, -40.0, -40.0],
        [-40.0, -41.0, -43.5],
        [60.0, 60.0, 60.0],
        [60.0, 58.0, 63.5],
        [-40.0, 60.0],
        [-40.0, 60.0, 60.0, 1.5],
        [0.001, -0.001, 0.002],
    ],
    ids=str,
)
def test_pooling_is_precise_in_float32_however_sure_the_members_are(said: list[float]) -> None:
    outputs = torch.tensor(said).view(-1, 1, 1).requires_grad_()
    found = pool_members(outputs, torch.tensor([False]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(pooled(outputs, [False]).item(), rel=1e-6, abs=2e-7)
    found.sum().backward()
    gradient = outputs.grad.flatten()
    assert torch.isfinite(gradient).all()
    if len(set(said)) == 1:
        assert gradient.tolist() == pytest.approx([1 / 3] * 3, rel=1e-5)


def test_pooling_outputs_beyond_all_bounds_stays_finite() -> None:
    outputs = torch.tensor([[[1e4, -1e4]], [[1e4, 1e4]]])
    found = pool_members(outputs, torch.tensor([False, False]))
    assert found.tolist() == [[pytest.approx(1e4), pytest.approx(0, abs=1e-3)]]


def test_a_regression_too_large_for_a_logit_is_averaged() -> None:
    outputs = torch.tensor([[[3e8]], [[1e8]]], requires_grad=True)
    found = pool_members(outputs, torch.tensor([True]))
    assert found.item() == pytest.approx(2e8)
    found.sum().backward()
    assert outputs.grad.flatten().tolist() == [0.5, 0.5]


# ---- one member ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", JOINT)
def test_one_member_is_a_network_without_members(trunk: str) -> None:
    shape = replace(shape_of(trunk, 1, dropout=0.2), linear_path=False)
    torch.manual_seed(3)
    embedding = FeatureEmbedding(
        MIXED, numeric="piecewise_linear", width=3, bins=4, steps=shape.steps
    )
    body = TRUNKS[trunk](embedding.out_features, 3, shape)
    towers = Towers(3, body.out_features, (4,), dropout=0.2)
    torch.manual_seed(3)
    network = Network(MIXED, 3, shape, regression=REGRESSION)
    assert network.members is None
    parts = {"embedding": embedding, "trunk": body, "towers": towers}
    expected = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    state = network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    x = torch.from_numpy(encoded(9))
    network.eval()
    plain = network.towers(network.trunk(network.embedding(x)))
    assert plain.shape == (1, 9, 3)
    assert torch.equal(network(x), plain[0])
    assert torch.equal(network(x, pooled=False), plain)


def test_members_add_scalings_and_towers_only() -> None:
    one = {k: v.shape for k, v in network_of(shape_of("ple", 1)).state_dict().items()}
    three = {k: v.shape for k, v in network_of(shape_of("ple", 3)).state_dict().items()}
    assert set(three) - set(one) == {"members.scale"}
    width = network_of(shape_of("ple", 1)).embedding.out_features
    assert three["members.scale"] == (3, 1, width)
    for name in one:
        first, *rest = one[name]
        factor = 3 if name.startswith("towers.") else 1
        assert three[name] == (factor * first, *rest), name


# ---- members differ ------------------------------------------------------------------------------


def spread(outputs: Tensor) -> float:
    """Least distance, over pairs of members, of what they say about all rows."""
    members = len(outputs)
    return min(
        (outputs[i] - outputs[j]).abs().max().item() for i in range(members) for j in range(i)
    )


@pytest.mark.parametrize("trunk", JOINT)
def test_members_differ_at_the_start_by_more_than_their_towers(trunk: str) -> None:
    torch.manual_seed(0)
    # So many features that no two members have the same signs.
    x = np.random.default_rng(0).normal(size=(60, 24)).astype(np.float32)
    network = Network([0] * 24, 3, shape_of(trunk, 4, expert_units=(16, 8))).eval()
    network.embedding.fit(x)
    rows = torch.from_numpy(x[:30])
    assert spread(network(rows, pooled=False)) > 1e-2
    with torch.no_grad():
        for parameter in network.towers.parameters():
            by_task = parameter.view(3, 4, -1)
            by_task.copy_(by_task[:, :1].expand_as(by_task).clone())
        by_scalings = spread(network(rows, pooled=False))
        network.members.scale.fill_(1)
        assert spread(network(rows, pooled=False)) < 0.01 * by_scalings


def test_scalings_start_as_a_random_sign_for_each_feature() -> None:
    torch.manual_seed(0)
    scale = MemberScalings(50, [3, 1, 4] * 40).scale.detach()
    assert scale.shape == (50, 1, 320)
    by_feature = torch.stack([part[..., 0] for part in scale.split([3, 1, 4] * 40, dim=-1)], -1)
    widths = torch.tensor([3, 1, 4] * 40)
    assert torch.equal(by_feature.repeat_interleave(widths, dim=-1), scale)
    assert set(by_feature.unique().tolist()) == {-1, 1}
    assert by_feature.mean().item() == pytest.approx(0, abs=0.05)
    agreement = (by_feature[:, 0] @ by_feature[:, 0].T / 120).fill_diagonal_(0)
    assert agreement.abs().max() < 0.5


@pytest.mark.parametrize("numeric", NUMERIC_EMBEDDINGS)
def test_a_sign_turns_the_whole_embedding_of_a_feature(numeric: str) -> None:
    shape = shape_of("shared_bottom", 6, numeric_embedding=numeric, embedding_dim=5)
    network = Network([0, 4, 0, 3], 1, shape)
    scatter(network.embedding)
    rows = torch.tensor([[1.0, 1.0, 2.0, 1.0], [1.0, 3.0, 2.0, 1.0]])
    with torch.no_grad():
        embedded = network.embedding(rows)
    # Where a categorical feature lies is where its code makes a difference.
    is_second = embedded[0] != embedded[1]
    assert is_second.sum() == 5
    signs = network.members.scale[:, 0, is_second]
    assert (signs == signs[:, :1]).all()
    assert sum(network.embedding.widths) == network.embedding.out_features
    assert len(network.embedding.widths) == 4


PLAN = TaskPlan(("default", "amount", "fraud"), (False, True, False), (1.0,) * 3, (1.0,) * 3)


def training_rows(n: int, seed: int) -> TrainingRows:
    rng = np.random.default_rng(seed)
    x = encoded(n, seed)
    chance = 1 / (1 + np.exp(-2 * x[:, 2]))
    y = np.column_stack([rng.random(n) < chance, x[:, 2], rng.random(n) < chance])
    y = y.astype(np.float32)
    y[rng.random((n, 3)) < 0.2] = NAN
    return TrainingRows(x, y)


def trained(shape: NetworkConfig, **changes: Any) -> Network:
    settings = {"epochs": 3, "patience": 3, "batch_size": 64, "learning_rate": 5e-3}
    config = TrainingConfig(
        **{**settings, "weight_decay": 1e-2, "device": "cpu", "precision": "32", **changes}
    )
    seen, held_out = training_rows(500, 0), training_rows(200, 1)
    network = train(shape, MIXED, PLAN, config, seen, held_out).network
    assert isinstance(network, Network)
    return network


def test_members_still_differ_after_training_and_each_has_learned() -> None:
    shape = shape_of("shared_bottom", 3, shared_units=(32, 16), tower_units=(8,))
    network = trained(shape, epochs=8, patience=8)
    test = training_rows(400, 2)
    with torch.inference_mode():
        outputs = network(torch.from_numpy(test.x), pooled=False)
    assert spread(outputs) > 0.05
    for member in outputs.numpy():
        seen = ~np.isnan(test.y[:, 0])
        assert np.corrcoef(member[seen, 0], test.y[seen, 0])[0, 1] > 0.4


def test_scalings_do_not_decay() -> None:
    # At this decay nearly all that decays is gone after the first epoch.
    options = {"learning_rate": 1e-3, "epochs": 1}
    free = trained(shape_of("shared_bottom", 3), weight_decay=0.0, **options)
    decayed = trained(shape_of("shared_bottom", 3), weight_decay=300.0, **options)
    for of, least, most in (
        (lambda network: network.trunk.body.layers[0].weight, 0.0, 0.5),
        (lambda network: network.members.scale, 0.95, 1.05),
    ):
        assert least < (of(decayed).abs().mean() / of(free).abs().mean()).item() < most


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", JOINT)
@pytest.mark.parametrize("weighted", [True, False])
def test_the_training_loss_is_the_mean_of_the_members_losses(trunk: str, weighted: bool) -> None:
    rng = np.random.default_rng(4)
    positive, factors = (3.0, 1.0, 0.5), (1.0, 0.25, 2.0)
    plan = replace(PLAN, weights=factors, positive_weights=positive)
    config = TrainingConfig(
        epochs=1, patience=1, batch_size=14, learning_rate=1e-3, weight_decay=0.0
    )
    network = network_of(shape_of(trunk, 3)).double()
    module = MultiTaskModule(network, plan, config).double()
    x = torch.from_numpy(encoded(14)).double()
    labels = rng.integers(0, 2, (14, 3)).astype(float)
    labels[:, 1] = rng.normal(size=14)
    labels[rng.random((14, 3)) < 0.4] = NAN
    y = torch.from_numpy(labels)
    weights = torch.from_numpy(rng.uniform(0.1, 3, 14)) if weighted else None
    total = module.training_step((x, y, weights), 0)
    each = [
        loops.task_losses(
            said, y, [1.0] * 14 if weights is None else weights.tolist(), positive, REGRESSION
        )
        for said in network(x, pooled=False)
    ]
    expected = sum((losses * torch.tensor(factors)).sum() for losses in each) / 3
    assert total.item() == pytest.approx(expected.item(), rel=1e-10)
    parameters = list(network.parameters())
    for a, b in zip(
        *(torch.autograd.grad(loss, parameters, materialize_grads=True)
          for loss in (total, expected)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- cutting a network ---------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", JOINT)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_cut_network_is_the_mean_of_its_first_members(trunk: str, kept: int) -> None:
    network = network_of(shape_of(trunk, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.from_numpy(encoded(20))
    whole = network(x)
    first = network(x, pooled=False)[:kept]
    smaller = network.cut(kept)
    torch.testing.assert_close(smaller(x, pooled=False), first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(smaller(x).detach(), pooled(first), rtol=1e-4, atol=1e-5)
    again = network.cut(3).cut(kept)
    assert torch.equal(again(x), smaller(x))
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.fill_(9)
    assert torch.equal(network(x), whole)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_cutting_draws_no_random_numbers() -> None:
    network = network_of(shape_of("ple", 3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network.cut(2)
    assert torch.equal(torch.rand(3), expected)


def test_cutting_keeps_the_precision() -> None:
    network = network_of(shape_of("ple", 3)).double()
    with torch.no_grad():
        network.members.scale += 1 / 3
    smaller = network.cut(2)
    assert torch.equal(smaller.members.scale, network.members.scale[:2])
    assert {parameter.dtype for parameter in smaller.parameters()} == {torch.float64}


# ---- behind the estimator ------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "network": "shared_bottom",
    "members": 3,
    "shared_units": (8,),
    "expert_units": (8,),
    "tower_units": (4,),
    "embedding_dim": 3,
    "bins": 4,
    "epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.01,
    "regression_tasks": ["loss"],
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}


def portfolio(n: int = 400, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two partly observed tasks and a number, driven by the same amount."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    chance = 1 / (1 + np.exp(1 - 2 * amount))
    X = pl.DataFrame({"amount": amount, "country": rng.choice(["FR", "DE", "IT"], n)})
    y = pl.DataFrame({name: (rng.random(n) < chance).astype(int) for name in ("default", "fraud")})
    hidden = pl.Series(rng.random(n) < 0.3)
    return X, y.with_columns(
        fraud=pl.when(hidden).then(None).otherwise("fraud"), loss=pl.Series(100 * amount + 500)
    )


X, Y = portfolio()


@pytest.fixture(scope="module", params=["shared_bottom", "ple", "single_task"])
def model(request: pytest.FixtureRequest) -> MultiTaskClassifier:
    return MultiTaskClassifier(**{**SMALL, "network": request.param}).fit(X, Y)


def unpooled(model: MultiTaskClassifier) -> Tensor:
    """What each member says raw, (members, rows, heads)."""
    scorer = model.model_.scorer
    assert isinstance(scorer, NetworkScorer)
    rows = torch.from_numpy(model.model_.encode(X))
    with torch.inference_mode():
        if isinstance(scorer.network, IndependentNetworks):
            return torch.cat([part(rows, pooled=False) for part in scorer.network.networks], dim=2)
        return scorer.network(rows, pooled=False)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_fewer_members_answer_as_the_mean_of_the_first(
    model: MultiTaskClassifier, kept: int, tmp_path: Path
) -> None:
    said, before = unpooled(model), model.predict_frame(X)
    assert said.shape == (3, X.height, 3)
    fewer = model.with_members(kept)
    raw = pooled(said[:kept], [False, False, True])
    finished = fewer.model_.finished(raw)
    for i, head in enumerate(fewer.model_.heads):
        expected = finished[:, i]
        if head.kind == "binary":
            expected = 1 / (1 + np.exp(-expected))
        np.testing.assert_allclose(fewer.predict_frame(X)[head.task], expected, rtol=1e-4)
    assert (fewer.members, model.members) == (kept, 3)
    assert fewer.predict_frame(X).equals(before) == (kept == 3)
    assert model.predict_frame(X).equals(before)
    fewer.save(tmp_path / "fewer")
    loaded = MultiTaskClassifier.load(tmp_path / "fewer")
    assert loaded.members == kept
    assert loaded.predict_frame(X).equals(fewer.predict_frame(X))
    assert RiskModel.load(tmp_path / "fewer").predict_frame(X).equals(fewer.predict_frame(X))
    if kept > 1:
        again = loaded.with_members(1).predict_frame(X)
        assert again.equals(model.with_members(1).predict_frame(X))


def test_a_model_with_members_comes_back_to_the_bit(
    model: MultiTaskClassifier, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    assert loaded.members == 3
    assert loaded.predict_frame(X).equals(model.predict_frame(X))
    assert torch.equal(unpooled(loaded), unpooled(model))


def test_the_original_keeps_its_members_and_its_file(
    model: MultiTaskClassifier, tmp_path: Path
) -> None:
    model.save(tmp_path / "before")
    model.with_members(1)
    model.save(tmp_path / "after")
    for name in ("manifest.json", "weights.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert model.get_params()["members"] == 3
    assert model.model_.made_by["parameters"]["members"] == 3


def test_a_row_does_not_see_the_others(model: MultiTaskClassifier) -> None:
    # More rows than go through the network at once, whatever the number of members.
    many = pl.concat([X] * 4)
    assert many.height > CPU_ROWS
    whole = model.decision_function(many)
    np.testing.assert_allclose(whole, np.tile(model.decision_function(X), (4, 1)), atol=1e-5)
    order = np.random.default_rng(0).permutation(X.height)
    np.testing.assert_allclose(model.decision_function(X[order]), whole[order], atol=1e-5)
    alone = np.vstack([model.decision_function(X[i]) for i in range(5)])
    np.testing.assert_allclose(alone, whole[:5], atol=1e-5)


def test_members_are_worth_their_time() -> None:
    """The mean of the members is nearer to the truth than they are on average (Jensen)."""
    fitted = MultiTaskClassifier(**SMALL, calibrate=False).fit(X, Y)
    labels = Y["default"].to_numpy()
    losses = [np.logaddexp(0, -(2 * labels - 1) * z[:, 0]).mean() for z in unpooled(fitted).numpy()]
    whole = np.logaddexp(0, -(2 * labels - 1) * fitted.decision_function(X)[:, 0]).mean()
    assert whole < np.mean(losses)


def test_a_single_task_network_with_members_is_the_one_of_that_task_alone() -> None:
    both = MultiTaskClassifier(
        **{**SMALL, "network": "single_task", "regression_tasks": ()}, validation_share=0.2
    )
    both.fit(X, Y.select("default", "fraud"), X_val=X, y_val=Y.select("default", "fraud"))
    alone = clone(both).fit(X, Y.select("default"), X_val=X, y_val=Y.select("default"))
    assert torch.equal(unpooled(both)[:, :, :1], unpooled(alone))


@pytest.mark.parametrize("members", [0, -1, True, 1.0, "2", None])
def test_what_is_no_number_of_members_is_refused(
    model: MultiTaskClassifier, members: object
) -> None:
    with pytest.raises(ValueError, match="members must be a whole number of at least 1, got "):
        model.with_members(members)


def test_more_members_than_trained_are_refused(model: MultiTaskClassifier) -> None:
    with pytest.raises(ValueError, match="members must be at most 3, got 4"):
        model.with_members(4)
    with pytest.raises(ValueError, match="members must be at most 2, got 3"):
        model.with_members(2).with_members(3)
    with pytest.raises(NotFittedError):
        MultiTaskClassifier(members=3).with_members(2)


def test_a_network_of_one_member_may_be_cut_to_one(tmp_path: Path) -> None:
    fitted = MultiTaskClassifier(**{**SMALL, "members": 1}).fit(X, Y)
    same = fitted.with_members(1)
    assert same.predict_frame(X).equals(fitted.predict_frame(X))
    with pytest.raises(ValueError, match="members must be at most 1, got 2"):
        fitted.with_members(2)
    same.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    assert loaded.predict_frame(X).equals(fitted.predict_frame(X))


def test_a_copy_with_fewer_members_is_not_called_by_the_name_of_the_whole(
    model: MultiTaskClassifier, tmp_path: Path
) -> None:
    """Scores are marked with the SHA-256 of the manifest that gave them."""
    model.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    whole = loaded.model_.lineage["model_id"]
    assert loaded.with_members(1).model_.lineage.get("model_id") != whole
    assert loaded.model_.lineage["model_id"] == whole


def test_a_copy_with_fewer_members_can_be_cloned_and_trained_again(
    model: MultiTaskClassifier,
) -> None:
    fewer = model.with_members(2)
    assert clone(fewer).members == 2
    again = clone(fewer).set_params(members=3).fit(X, Y)
    assert again.predict_frame(X).equals(model.predict_frame(X))
