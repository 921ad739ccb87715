"""Softened labels and mixed rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import networks as loops
from test_schedule import SMALL, table
from test_training import CONFIG, PLAN, SHAPE, fit, outputs, rows

from riskmtl import MultiTaskClassifier
from riskmtl.metrics import roc_auc
from riskmtl.networks import Network
from riskmtl.training.mixup import Mix, draw_mix
from riskmtl.training.module import MultiTaskModule
from riskmtl.training.objective import Objective
from riskmtl.training.rows import TrainingRows
from riskmtl.training.targets import base_rates, smoothed

NAN = float("nan")
seeds = st.integers(0, 2**32 - 1)


def labelled(y: Any, weights: Any = None) -> TrainingRows:
    found = np.asarray(y, dtype=np.float32)
    given = None if weights is None else np.asarray(weights, dtype=np.float32)
    return TrainingRows(np.zeros((len(found), 1), np.float32), found, given)


# ---- softened labels -----------------------------------------------------------------------------


def test_labels_move_towards_their_base_rate() -> None:
    data = labelled([[1, 3], [0, 5], [0, NAN], [0, 1], [NAN, 0]])
    found = smoothed(data, (False, True), 0.2)
    assert found.y[:, 0].tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05, NAN], nan_ok=True)
    # Numbers stay.
    np.testing.assert_array_equal(found.y[:, 1], data.y[:, 1])


def test_base_rates_by_hand() -> None:
    y = [[1, NAN], [0, NAN], [0, NAN]]
    assert base_rates(labelled(y)).tolist() == pytest.approx([1 / 3, 0])
    assert base_rates(labelled(y, [2, 1, 1])).tolist() == pytest.approx([1 / 2, 0])
    by_task = [[0, 9], [1, 9], [1, 9]]
    assert base_rates(labelled(y, by_task)).tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.floats(0, 0.99), st.booleans(), seeds)
def test_the_mean_label_stays(n: int, share: float, weighted: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, 2)).astype(float)
    y[rng.random((n, 2)) < 0.3] = NAN
    data = labelled(y, rng.uniform(0.1, 3, n) if weighted else None)
    found = smoothed(data, (False, False), share)
    np.testing.assert_array_equal(np.isnan(found.y), np.isnan(data.y))
    np.testing.assert_allclose(base_rates(found), base_rates(data), atol=1e-5)


def test_softened_labels_hold_the_answers_back() -> None:
    plain, soft = (
        outputs(fit(label_smoothing=e, learning_rate=0.02), rows(300).x) for e in (0.0, 0.5)
    )
    assert np.ptp(soft) < 0.8 * np.ptp(plain)


# ---- mixed rows ----------------------------------------------------------------------------------


def test_rows_are_mixed_by_their_share() -> None:
    mix = Mix(torch.tensor([2, 0, 1]), 0.25)
    found = mix.of(torch.tensor([[0.0], [4.0], [8.0]]))
    assert found.flatten().tolist() == [6, 1, 5]
    assert Mix(mix.partner, 1.0).of(found).tolist() == found.tolist()


def test_partners_are_a_permutation_and_shares_those_of_a_beta_distribution() -> None:
    torch.manual_seed(0)
    drawn = [draw_mix(7, 0.5, torch.device("cpu")) for _ in range(2000)]
    assert all(sorted(mix.partner.tolist()) == list(range(7)) for mix in drawn)
    shares = torch.tensor([mix.share for mix in drawn])
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / 8, abs=0.01)
    assert draw_mix(0, 0.5, torch.device("cpu")).partner.shape == (0,)


def test_hardly_any_mixing_is_hardly_any() -> None:
    torch.manual_seed(0)
    # The smaller the concentration, the nearer is every share to 0 or 1, down to the smallest.
    for concentration in (1e-3, 1e-8, 1e-300):
        shares = [draw_mix(2, concentration, torch.device("cpu")).share for _ in range(50)]
        assert all(min(share, 1 - share) < 0.3 for share in shares)
        assert 0.2 < np.mean(shares) < 0.8
    assert draw_mix(2, 1e300, torch.device("cpu")).share == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.floats(0, 1), seeds)
def test_the_loss_of_mixed_rows_is_that_of_both_labels(
    n: int, members: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    said = torch.from_numpy(rng.normal(0, 2, (members, n, 2)))
    y = rng.integers(0, 2, (n, 2)).astype(float)
    y[rng.random((n, 2)) < 0.4] = NAN
    labels, weights = torch.from_numpy(y), torch.from_numpy(rng.uniform(0.1, 2, n))
    partner = torch.from_numpy(rng.permutation(n))
    found = Objective(PLAN, CONFIG).double()(said, labels, weights, mix=Mix(partner, share))

    def looped(order: torch.Tensor) -> torch.Tensor:
        return loops.task_losses(
            said.flatten(0, 1),
            labels[order].repeat(members, 1),
            weights[order].repeat(members).tolist(),
            [1.0, 1.0],
            [False, False],
        )

    expected = share * looped(torch.arange(n)) + (1 - share) * looped(partner)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("members", [1, 2])
def test_a_step_mixes_behind_the_embedding(members: int) -> None:
    torch.manual_seed(0)
    network = Network([0, 0, 0, 4], 2, replace(SHAPE, members=members, dropout=0.0))
    data = rows(20)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    module = MultiTaskModule(network, PLAN, replace(CONFIG, mixup=0.5))
    torch.manual_seed(1)
    found = module.training_step((x, y, None), 0)
    torch.manual_seed(1)
    mix = draw_mix(20, 0.5, x.device)
    said = network.answer(mix.of(network.embedding(x)), pooled=False)
    torch.testing.assert_close(found, Objective(PLAN, CONFIG)(said, y, None, mix=mix).sum())


def test_mixed_rows_are_learned_from() -> None:
    test = rows(1000, seed=2, observed=1.0)
    for members in (1, 3):
        scores = outputs(fit(mixup=0.2, members=members, epochs=6), test.x)
        assert roc_auc(test.y[:, 0], scores[:, 0]) > 0.78


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"mixup": -0.1}, "mixup must be a finite number of at least 0, got -0.1"),
        ({"mixup": float("inf")}, "mixup must be a finite number"),
        ({"mixup": 0.2, "compile": True}, "mixup does not go with compile"),
    ],
)
def test_a_wrong_parameter_is_named(options: dict[str, Any], message: str) -> None:
    X, y, _ = table(300)
    with pytest.raises(ValueError, match=message):
        MultiTaskClassifier(**SMALL, **options).fit(X, y)
