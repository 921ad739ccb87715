"""A head with very few events leans on the others, as far as validation rows bear it out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from riskmtl import MultiTaskClassifier
from riskmtl.borrowing import borrowing
from riskmtl.explain.attribution import explain_rows
from riskmtl.metrics import roc_auc
from riskmtl.model import Head, linear_form, sigmoid, uncalibrated
from riskmtl.training.rows import TrainingRows

HEADS = [Head("a"), Head("b", shift=0.5), Head("size", "regression", (), mean=3.0, scale=2.0),
         Head("c")]  # fmt: skip


def rows(labels: NDArray[Any]) -> TrainingRows:
    y = np.asarray(labels, dtype=np.float32)
    return TrainingRows(np.zeros((len(y), 1), dtype=np.float32), y)


def outputs(size: int, noise: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Raw outputs, and labels that all follow the mean of a and b; c sees it through noise."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(-2, 1.5, size)
    raw = np.column_stack([risk, risk + 0.5, rng.normal(size=size), -2 + rng.normal(size=size)])
    raw[:, 3] += (risk + 2) / (1 + noise)
    labels = (rng.random((size, 4)) < sigmoid(risk)[:, None]).astype(np.float32)
    return raw, labels


def few_events(labels: NDArray[Any], head: int, events: int) -> NDArray[Any]:
    kept = labels.copy()
    kept[np.flatnonzero(kept[:, head] == 1)[events:], head] = np.nan
    return kept


def test_a_head_with_few_events_takes_what_ranks_better() -> None:
    raw, labels = outputs(4000, noise=9.0)
    training = rows(few_events(labels, 3, 5))
    found = borrowing(HEADS, raw, training, rows(labels), few=100)
    assert found[:3] == HEADS[:3]
    leaning = found[3]
    assert leaning.lent > 5 * leaning.own
    before, after = (uncalibrated(heads, raw)[:, 3] for heads in (HEADS, found))
    assert roc_auc(labels[:, 3], after) > roc_auc(labels[:, 3], before) + 0.1
    assert sigmoid(after).mean() == pytest.approx(labels[:, 3].mean(), abs=0.01)


def test_a_head_that_nothing_else_knows_stays_itself() -> None:
    raw, labels = outputs(4000, noise=0.0)
    rng = np.random.default_rng(1)
    labels[:, 3] = rng.random(4000) < sigmoid(raw[:, 3] - (raw[:, 0] + 2))
    raw[:, 3] -= raw[:, 0] + 2
    found = borrowing(HEADS, raw, rows(few_events(labels, 3, 5)), rows(labels), few=100)[3]
    assert abs(found.lent) < 0.1 * found.own
    assert found.own == pytest.approx(1, abs=0.15)
    labels[:, 3] = rng.random(4000) < sigmoid(raw[:, 3] - 0.5 * raw[:, 0] - 1)
    assert borrowing(HEADS, raw, rows(few_events(labels, 3, 5)), rows(labels), few=100) == HEADS


def test_a_few_validation_events_move_the_level_alone() -> None:
    raw, labels = outputs(400, noise=9.0)
    validation = few_events(labels, 3, 6)
    found = borrowing(HEADS, raw, rows(few_events(labels, 3, 5)), rows(validation), few=100)[3]
    assert found.own + found.lent == pytest.approx(1)
    seen = ~np.isnan(validation[:, 3])
    after = sigmoid(uncalibrated([*HEADS[:3], found], raw)[seen, 3])
    assert after.mean() == pytest.approx(validation[seen, 3].mean(), abs=0.02)


def test_it_is_for_few_events_only_and_never_without_evidence() -> None:
    raw, labels = outputs(2000, noise=9.0)
    assert borrowing(HEADS, raw, rows(labels), rows(labels), few=100) == HEADS
    scarce = rows(few_events(labels, 3, 5))
    assert borrowing(HEADS, raw, scarce, rows(labels), few=0) == HEADS
    assert borrowing(HEADS, raw, scarce, rows(labels), few=5) == HEADS
    assert borrowing(HEADS, raw, scarce, rows(labels), few=6) != HEADS
    unseen = labels.copy()
    unseen[:, 3] = np.nan
    assert borrowing(HEADS, raw, scarce, rows(unseen), few=100) == HEADS
    alone, its = [HEADS[3]], rows(few_events(labels, 3, 5)[:, 3:])
    assert borrowing(alone, raw[:, 3:], its, rows(labels[:, 3:]), few=100) == alone


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_validation_rows_of_one_class_are_no_evidence(label: float) -> None:
    raw, labels = outputs(2000, noise=9.0)
    training = rows(few_events(labels, 3, 5))
    alike = labels.copy()
    alike[alike[:, 3] != label, 3] = np.nan
    assert borrowing(HEADS, raw, training, rows(alike), few=100) == HEADS
    # The other class is there, but does not count.
    weights = (labels[:, 3] == label).astype(np.float32)
    validation = TrainingRows(np.zeros((2000, 1), np.float32), labels, weights)
    assert borrowing(HEADS, raw, training, validation, few=100) == HEADS


def test_events_without_weight_are_not_learned_from() -> None:
    raw, labels = outputs(2000, noise=9.0)
    weights = np.ones(2000, np.float32)
    weights[np.flatnonzero(labels[:, 3] == 1)[5:]] = 0
    training = TrainingRows(np.zeros((2000, 1), np.float32), labels, weights)
    assert borrowing(HEADS, raw, training, rows(labels), few=5) == HEADS
    assert borrowing(HEADS, raw, training, rows(labels), few=6) != HEADS


def test_however_far_out_the_others_are_their_level_is_found() -> None:
    raw, labels = outputs(400, noise=9.0)
    validation = few_events(labels, 3, 6)
    training = rows(few_events(labels, 3, 5))
    near = borrowing(HEADS, raw, training, rows(validation), few=100)
    moved = raw - np.array([300.0, 300.0, 0.0, 0.0])
    far = borrowing(HEADS, moved, training, rows(validation), few=100)
    expected = uncalibrated(near, raw)[:, 3]
    np.testing.assert_allclose(uncalibrated(far, moved)[:, 3], expected, atol=1e-3)


def test_weights_count() -> None:
    raw, labels = outputs(2000, noise=9.0)
    weights = np.where(np.arange(2000) < 1000, 1.0, 0.0).astype(np.float32)
    half = TrainingRows(np.zeros((1000, 1), np.float32), labels[:1000])
    whole = TrainingRows(np.zeros((2000, 1), np.float32), labels, weights)
    scarce = rows(few_events(labels, 3, 5))
    by_weight = borrowing(HEADS, raw, scarce, whole, few=100)[3]
    by_rows = borrowing(HEADS, raw[:1000], scarce, half, few=100)[3]
    got = [by_weight.own, by_weight.lent, by_weight.lift]
    np.testing.assert_allclose(got, [by_rows.own, by_rows.lent, by_rows.lift], atol=1e-3)


def test_the_linear_form_is_what_it_says() -> None:
    heads = [*HEADS[:3], replace(HEADS[3], own=0.25, lent=0.6, lift=-1.0)]
    raw = np.random.default_rng(0).normal(size=(5, 4))
    a, b, c = raw[:, 0], raw[:, 1] - 0.5, raw[:, 3]
    expected = [a, b, 3 + 2 * raw[:, 2], 0.25 * c + 0.6 * (a + b) / 2 - 1.0]
    np.testing.assert_allclose(uncalibrated(heads, raw), np.column_stack(expected))
    factors, offsets = linear_form(HEADS)
    assert np.array_equal(factors, np.diag([1, 1, 2, 1]))
    assert offsets.tolist() == [0, -0.5, 3, 0]
    assert Head.from_dict(heads[3].to_dict()) == heads[3]


@pytest.fixture(scope="module")
def table() -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(0)
    X = pl.DataFrame({name: rng.normal(size=3000) for name in "abc"})
    risk = X["a"] + X["b"] - 1
    draws = {name: (rng.normal(size=3000) < risk.to_numpy()).astype(float) for name in "xyz"}
    y = pl.DataFrame(draws)
    scarce = pl.int_range(3000) % 25 == 0
    return X, y.with_columns(pl.when(scarce).then("z").alias("z"))


@pytest.mark.parametrize("network", ["ple", "shared_bottom"])
def test_a_leaning_head_is_explained_like_any_other(
    table: tuple[pl.DataFrame, pl.DataFrame], tiny: dict[str, Any], network: str, tmp_path: Any
) -> None:
    X, y = table
    options = {**tiny, "network": network, "challenger": None}
    model = MultiTaskClassifier(**options).fit(X, y, X_val=X, y_val=y)
    leaning = model.model_.heads[2]
    assert leaning.lent > 0
    inputs, compared = X.head(4), model.model_.background[:10]
    for calibrated in (True, False):
        sampled = explain_rows(model.model_, inputs, compared, calibrated=calibrated)
        assert sampled.residual.max() < 1e-9
        path = explain_rows(model.model_, inputs, compared, method="path", calibrated=calibrated)
        np.testing.assert_allclose(path.outputs, sampled.outputs, atol=1e-6)
        close = 0.2 * np.abs(sampled.values).max() + 0.01
        np.testing.assert_allclose(path.values, sampled.values, atol=close)
    model.save(tmp_path / "model")
    again = MultiTaskClassifier.load(tmp_path / "model")
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=1e-6)


def test_who_shares_nothing_borrows_nothing(
    table: tuple[pl.DataFrame, pl.DataFrame], tiny: dict[str, Any]
) -> None:
    X, y = table
    options = {**tiny, "challenger": None}
    for change in ({"network": "single_task"}, {"few_events": 0}):
        model = MultiTaskClassifier(**{**options, **change}).fit(X, y, X_val=X, y_val=y)
        assert [head.lent for head in model.model_.heads] == [0, 0, 0]
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"few_events must be a number from 0 up, got {bad}"):
            MultiTaskClassifier(**{**options, "few_events": bad}).fit(X, y)
