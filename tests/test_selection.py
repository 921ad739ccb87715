"""Scorers and out-of-fold predictions with labels that are not always observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, KFold, TimeSeriesSplit, cross_validate

from riskmtl import LogisticBaseline, MultiTaskClassifier
from riskmtl.metrics import average_precision, brier, recall_at_fpr, roc_auc
from riskmtl.selection import make_scorer, out_of_fold


def portfolio(n: int = 900, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    chance = 1 / (1 + np.exp(1 - 2 * amount))
    X = pl.DataFrame({"amount": amount, "noise": rng.normal(size=n)})
    y = pl.DataFrame(
        {task: (rng.random(n) < chance).astype(float) for task in ("default", "fraud")}
    )
    hidden = pl.Series(rng.random(n) < 0.4)
    return X, y.with_columns(fraud=pl.when(hidden).then(None).otherwise("fraud"))


X, Y = portfolio()
MODEL = LogisticBaseline(strengths=[0.1], random_state=0)


@pytest.mark.parametrize(
    ("metric", "options", "function", "sign"),
    [
        ("roc_auc", {}, roc_auc, 1),
        ("average_precision", {}, average_precision, 1),
        ("brier", {}, brier, -1),
        ("recall_at_fpr", {"fpr": 0.05}, recall_at_fpr, 1),
    ],
)
def test_a_scorer_is_the_metric_over_observed_rows(
    metric: str, options: dict[str, Any], function: Any, sign: int
) -> None:
    new, labels = portfolio(seed=1)
    fitted = MODEL.fit(X, Y)
    found = fitted.predict_proba(new)
    each = [
        sign * function(labels[task].fill_null(np.nan).to_numpy(), found[:, i], **options)
        for i, task in enumerate(fitted.tasks_)
    ]
    for i, task in enumerate(fitted.tasks_):
        score = make_scorer(metric, task=task, **options)(fitted, new, labels)
        assert score == pytest.approx(each[i])
    assert make_scorer(metric, **options)(fitted, new, labels) == pytest.approx(np.mean(each))


def test_scikit_learns_tools_take_the_scorers() -> None:
    scoring = {name: make_scorer(name) for name in ("roc_auc", "average_precision", "brier")}
    done = cross_validate(MODEL, X, Y, cv=KFold(3), scoring=scoring, error_score="raise")
    assert (done["test_roc_auc"] > 0.75).all()
    assert (done["test_brier"] < 0).all()
    search = GridSearchCV(
        MODEL, {"strengths": [[1e-6], [1.0]]}, cv=KFold(2), scoring=make_scorer("brier")
    ).fit(X, Y)
    assert search.best_params_ == {"strengths": [1.0]}
    importance = permutation_importance(
        MODEL.fit(X, Y), X.to_pandas(), Y.to_pandas(), scoring=make_scorer("roc_auc"), n_repeats=2
    )
    assert importance.importances_mean[0] > 0.1 > importance.importances_mean[1]


def test_out_of_fold_scores_come_from_models_that_did_not_see_the_row() -> None:
    found = out_of_fold(MODEL, X, Y, cv=KFold(3))
    assert found.shape == (900, 2)
    for seen, held_out in KFold(3).split(X):
        alone = LogisticBaseline(strengths=[0.1], random_state=0).fit(X[seen], Y[seen])
        np.testing.assert_array_equal(found[held_out], alone.predict_proba(X[held_out]))


@pytest.mark.parametrize("form", ["series", "list", "array"])
def test_out_of_fold_takes_one_column_of_labels(form: str) -> None:
    labels = Y["default"]
    given = {"series": labels, "list": labels.to_list(), "array": labels.to_numpy()}[form]
    found = out_of_fold(MODEL, X, given, cv=KFold(3))
    assert found.shape == (900, 1)
    assert roc_auc(labels.to_numpy(), found[:, 0]) > 0.75


def test_folds_are_trained_beside_a_kept_checkpoint(tmp_path: Path) -> None:
    small = {"network": "shared_bottom", "members": 1, "shared_units": [4], "epochs": 1}
    model = MultiTaskClassifier(**small, checkpoint_dir=tmp_path, random_state=0)
    model.fit(X, Y)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = out_of_fold(model, X, Y, cv=KFold(2))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == kept
    model.set_params(checkpoint_dir=None)
    np.testing.assert_array_equal(found, out_of_fold(model, X, Y, cv=KFold(2)))


def test_rows_that_no_fold_tests_are_nan() -> None:
    found = out_of_fold(MODEL, X, Y, cv=TimeSeriesSplit(3))
    assert np.isnan(found[:225]).all()
    assert np.isfinite(found[225:]).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown metric 'auc'"):
        make_scorer("auc")
    with pytest.raises(ValueError, match="unknown task 'frod': did you mean 'fraud'"):
        make_scorer("roc_auc", task="frod")(MODEL.fit(X, Y), X, Y)
    with pytest.raises(TypeError, match=r"cv must be a splitter such as KFold\(5\)"):
        out_of_fold(MODEL, X, Y, cv=5)
