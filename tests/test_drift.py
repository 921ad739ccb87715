"""Stability indices with the right size, a classifier that finds what drifted, migrations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from riskmtl.validation import drift
from riskmtl.validation.curves import Interval, auc_interval
from riskmtl.validation.drift import (
    drift_classifier,
    migration,
    migration_summary,
    stability_index,
    stability_of_columns,
)


def test_a_worked_value() -> None:
    reference = np.repeat([1.0, 2.0], [50, 50])
    current = np.repeat([1.0, 2.0], [80, 20])
    expected = (0.8 - 0.5) * np.log(0.8 / 0.5) + (0.2 - 0.5) * np.log(0.2 / 0.5)
    for categorical in (True, False):
        found = stability_index(reference, current, categorical=categorical)
        assert found.psi == pytest.approx(expected)
        assert found.bins == 2


@pytest.mark.parametrize("categorical", [False, True])
def test_alike_samples_are_rejected_as_seldom_as_promised(categorical: bool) -> None:
    generator = np.random.default_rng(0)
    p_values, passed = [], []
    for _ in range(1000):
        a, b = generator.normal(size=3000), generator.normal(size=2000)
        if categorical:
            a, b = (np.floor(x).clip(-2, 1) for x in (a, b))
        found = stability_index(a, b, categorical=categorical)
        p_values.append(found.p_value)
        passed.append(found.psi > found.critical)
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07
    assert np.mean(passed) == np.mean(np.array(p_values) < 0.05)


def test_missing_is_a_bin_and_empty_bins_are_survived() -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=1000)
    gone = np.where(generator.random(1000) < 0.3, np.nan, a)
    assert stability_index(a, gone).psi > 0.25
    assert np.isfinite(stability_index(a, a + 100).psi)
    assert stability_index(np.zeros(10), np.zeros(10)).p_value == 1
    with pytest.raises(ValueError, match="no rows"):
        stability_index(a, a[:0])


def test_the_drifted_column_is_found() -> None:
    generator = np.random.default_rng(2)
    found_none = 0
    for seed in range(12):
        a, b = (generator.normal(size=(1500, 5)).astype(np.float32) for _ in range(2))
        found_none += drift_classifier(a, b, [False] * 5, seed=seed).low < 0.5
    assert found_none >= 11
    b[:, 3] += 1
    found = drift_classifier(a, b, [False] * 5)
    assert found.low > 0.7
    assert found.columns["column"][0] == 3
    assert found.columns["gain"].sum() == pytest.approx(1)
    table = stability_of_columns(a, b, list("vwxyz"), [False] * 5)
    assert table.sort("psi")["column"][-1] == "y"
    assert (table.filter(table["column"] != "y")["psi"] < 0.05).all()


def test_migrations_are_counted() -> None:
    generator = np.random.default_rng(3)
    before, after = generator.integers(0, 4, (2, 500))
    matrix = migration(before, after, 4)
    for i in range(4):
        for j in range(4):
            assert matrix[i, j] == ((before == i) & (after == j)).sum()
    summary = migration_summary(matrix)
    assert summary["worse"] == pytest.approx((after > before).mean())
    assert sum(summary.values()) == pytest.approx(1)


def test_the_area_of_the_classifier_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(4)
    a = generator.normal(size=(300, 1)).astype(np.float32)
    b = (generator.normal(size=(200, 1)) + 1).astype(np.float32)
    seen = []

    def spied(labels: np.ndarray, scores: np.ndarray) -> Interval:
        seen.append((labels, scores))
        return auc_interval(labels, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "auc_interval", spied)
        found = drift_classifier(a, b, [False])
    [(labels, scores)] = seen
    assert (labels == 0).sum() == 300
    assert (labels == 1).sum() == 200
    assert found.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def test_shares_of_missing_and_unseen_codes() -> None:
    a = np.array([[2, 1.0], [2, np.nan], [1, 2.0], [3, 3.0]], dtype=np.float32)
    b = np.array([[0, 1.0], [0, np.nan], [1, np.nan], [0, 3.0]], dtype=np.float32)
    code, number = stability_of_columns(a, b, ["c", "n"], [True, False]).rows(named=True)
    assert (code["missing_reference"], code["missing_current"]) == (0.25, 0.25)
    assert code["unseen_current"] == 0.75
    assert (number["missing_reference"], number["missing_current"]) == (0.25, 0.5)
    assert number["unseen_current"] is None


def test_mistakes_are_named() -> None:
    rows = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="name each"):
        stability_of_columns(rows, rows, ["only"], [False])
    with pytest.raises(ValueError, match="give both"):
        migration(np.array([0, 1]), np.array([1]), 2)
    for grade in (-1, 2):
        with pytest.raises(ValueError, match="not one of 0 to 1"):
            migration(np.array([0]), np.array([grade]), 2)


def test_arguments_out_of_range_are_named() -> None:
    rows = np.arange(20.0, dtype=np.float32)
    with pytest.raises(ValueError, match="bins is 0: ask for at least 1"):
        stability_index(rows, rows, bins=0)
    with pytest.raises(ValueError, match="rows is 1: ask for at least 2"):
        drift_classifier(rows[:, None], rows[:, None], [False], rows=1)
    with pytest.raises(ValueError, match="grades is 0: ask for at least 1"):
        migration(np.array([], dtype=int), np.array([], dtype=int), 0)
