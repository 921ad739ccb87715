"""Which rows to label next, and which labels to doubt."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from riskmtl import MultiTaskClassifier
from riskmtl.labelling import (
    apart,
    doubts,
    entropy,
    evidence_of_others,
    information,
    representation,
)
from riskmtl.metrics import roc_auc
from riskmtl.model import sigmoid
from riskmtl.selection import out_of_fold

SMALL: dict[str, Any] = {
    "members": 3,
    "expert_units": (16, 8),
    "shared_units": (16,),
    "tower_units": (8,),
    "embedding_dim": 4,
    "bins": 8,
    "steps": 1,
    "epochs": 4,
    "batch_size": 64,
    "learning_rate": 0.02,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}


def table(rows: int, seed: int, *, rate: float = 0.0) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """Two related outcomes with a strong signal; `rate` is the level of their log-odds."""
    rng = np.random.default_rng(seed)
    X = pl.DataFrame({name: rng.normal(size=rows) for name in "abc"})
    risk = (X["a"] + X["b"]).to_numpy()
    own = [risk + 0.7 * X["c"].to_numpy(), risk - 0.7 * X["c"].to_numpy()]
    y = np.column_stack([rng.random(rows) < sigmoid(rate + 6 * z) for z in own]).astype(float)
    return X, y


def frame_of(y: NDArray[np.float64]) -> pl.DataFrame:
    return pl.DataFrame(y, schema=["default", "fraud"]).fill_nan(None)


X, Y = table(800, 0)


@pytest.fixture(scope="module")
def model() -> MultiTaskClassifier:
    return MultiTaskClassifier("mmoe", **SMALL).fit(X, frame_of(Y))


# ---- which rows to label next --------------------------------------------------------------------


def test_suggestions_are_rows_in_order(model: MultiTaskClassifier) -> None:
    new, _ = table(500, 1)
    for head in (None, "fraud"):
        found = model.suggest_labels(new, 20, head=head)
        assert found["rank"].to_list() == list(range(1, 21))
        assert found["row"].n_unique() == 20
        assert found["score"].is_between(0, 1).all()
        assert found["distance"].null_count() == 1
        assert found["disagreement"].min() >= 0
        # They are among the most uncertain, and not only in name.
        p = model.predict_proba(new)[:, 1]
        picked = entropy(p[found["row"].to_numpy()]).mean()
        assert picked > np.quantile(entropy(p), 0.6)
    best = model.suggest_labels(new, 20, diversity=False)
    assert best["score"].is_sorted(descending=True)
    assert best["distance"].null_count() == 20
    assert best["score"].min() >= model.suggest_labels(new, 20)["score"].min()


def test_members_are_asked_one_by_one(model: MultiTaskClassifier) -> None:
    encoded = model.model_.encode(X)
    network = model.model_.scorer.network
    expected, heads = np.zeros(len(X)), model.model_.heads
    with torch.no_grad():
        raw = network(torch.from_numpy(encoded), pooled=False).double().numpy()
    pooled = model.predict_proba(X)
    for i, head in enumerate(heads):
        each = [sigmoid(head.calibrator.apply(member[:, i])) for member in raw]
        apart_by = entropy(np.mean(each, axis=0)) - np.mean([entropy(p) for p in each], axis=0)
        expected += apart_by / entropy(pooled[:, i].mean()) / 2
    uncertainty, disagreement = information(model.model_, encoded, model.tasks_)
    assert disagreement == pytest.approx(expected, abs=1e-6)
    relative = [entropy(pooled[:, i]) / entropy(pooled[:, i].mean()) for i in (0, 1)]
    assert uncertainty == pytest.approx(np.mean(relative, axis=0))


def test_the_score_is_the_mean_of_both_ranks(model: MultiTaskClassifier) -> None:
    found = model.suggest_labels(X, 800, diversity=False).sort("row")
    ranks = [found[name].rank() / 800 for name in ("uncertainty", "disagreement")]
    np.testing.assert_allclose(found["score"], (ranks[0] + ranks[1]) / 2)


def test_no_number_of_the_representation_outweighs_another(model: MultiTaskClassifier) -> None:
    points = representation(model.model_, model.model_.encode(X), ["default", "fraud"])
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(points.std(axis=0), 1)


def test_one_member_cannot_disagree_and_networks_need_not_be_one() -> None:
    options = {**SMALL, "members": 1, "epochs": 1}
    model = MultiTaskClassifier("single_task", **options).fit(X, frame_of(Y))
    found = model.suggest_labels(X, 10)
    assert found["disagreement"].null_count() == 10
    assert found["distance"].drop_nulls().min() > 0
    blend = MultiTaskClassifier(
        "ple", challenger="blend", challenger_options={"trials": 1, "n_jobs": 1}, **SMALL
    ).fit(X, frame_of(Y))
    assert blend.suggest_labels(X, 5)["disagreement"].null_count() == 0
    part = blend.only("fraud", report=False)
    assert part.suggest_labels(X, 5, head="fraud").height == 5


def test_rows_that_are_alike_are_not_all_picked(model: MultiTaskClassifier) -> None:
    new, _ = table(200, 2)
    top = model.suggest_labels(new, 1)["row"][0]
    many = pl.concat([new, *[new[top]] * 15])
    alike = [top, *range(200, 215)]
    assert model.suggest_labels(many, 5)["row"].is_in(alike).sum() == 1
    assert model.suggest_labels(many, 5, diversity=False)["row"].is_in(alike).sum() == 5
    # Where nothing else is left, they are.
    assert model.suggest_labels(many, many.height)["row"].n_unique() == many.height


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_points_are_picked_by_score_times_distance(rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, score = rng.normal(size=(rows, width)), rng.random(rows)
    picked, distance = apart(points, score, rows)
    assert sorted(picked.tolist()) == list(range(rows))
    for step in range(1, rows):
        gaps = np.linalg.norm(points[:, None] - points[picked[:step]], axis=-1).min(axis=1)
        left = [row for row in range(rows) if row not in picked[:step]]
        assert distance[step] == pytest.approx(gaps[picked[step]], abs=1e-6)
        best = max(score[row] * gaps[row] for row in left)
        assert score[picked[step]] * gaps[picked[step]] == pytest.approx(best, abs=1e-6)


def test_what_suggest_labels_cannot_do(model: MultiTaskClassifier) -> None:
    for n in (0, 801, 2.0, True):
        with pytest.raises(ValueError, match="n must be a whole number from 1 to 800"):
            model.suggest_labels(X, n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown head 'frauds': did you mean 'fraud'"):
        model.suggest_labels(X, 3, head="frauds")
    with pytest.raises(ValueError, match="column 'b' is missing"):
        model.suggest_labels(X.drop("b"), 3)


@pytest.mark.slow
def test_suggested_labels_teach_at_least_what_random_ones_do() -> None:
    # One event in nine rows. Where events are as frequent as not, choosing gains nothing here.
    gains = []
    for seed in range(5):
        pool, labels = table(4000, 10 + seed, rate=-12)
        test, truth = table(6000, 100 + seed, rate=-12)
        rng = np.random.default_rng(seed)
        first = rng.permutation(4000)[:200]
        rest = np.setdiff1d(np.arange(4000), first)
        options = {**SMALL, "epochs": 15, "patience": 15, "random_state": seed}

        def area(rows: NDArray[np.int64], options: dict[str, Any] = options,
                 pool: pl.DataFrame = pool, labels: NDArray[np.float64] = labels,
                 test: pl.DataFrame = test, truth: NDArray[np.float64] = truth) -> Any:  # fmt: skip
            fitted = MultiTaskClassifier("mmoe", **options).fit(pool[rows], labels[rows])
            p = fitted.predict_proba(test)
            return fitted, np.mean([roc_auc(truth[:, i], p[:, i]) for i in (0, 1)])

        begun, _ = area(first)
        suggested = rest[begun.suggest_labels(pool[rest], 200)["row"].to_numpy()]
        drawn = rng.permutation(rest)[:200]
        areas = [area(np.concatenate([first, more]))[1] for more in (suggested, drawn)]
        print(f"seed {seed}: suggested {areas[0]:.4f}, at random {areas[1]:.4f}")
        gains.append(areas[0] - areas[1])
    print(f"mean gain {np.mean(gains):+.4f}")
    assert np.mean(gains) >= 0


# ---- which labels to doubt -----------------------------------------------------------------------


def planted(
    rows: int, share: float, seed: int, rate: float = 0.0
) -> tuple[pl.DataFrame, NDArray[np.float64], NDArray[np.bool_]]:
    """A table some of whose labels are turned round, and which."""
    X, y = table(rows, seed, rate=rate)
    wrong = np.random.default_rng(seed).random(y.shape) < share
    return X, np.where(wrong, 1 - y, y), wrong


def precision(found: pl.DataFrame, wrong: NDArray[np.bool_]) -> float:
    """Share of the planted among as many of the most doubtful."""
    heads = {"default": 0, "fraud": 1}
    top = found.head(int(wrong.sum()))
    return float(np.mean([wrong[row, heads[head]] for row, head in top["row", "head"].iter_rows()]))


def test_planted_wrong_labels_are_found() -> None:
    new, y, wrong = planted(1500, 0.03, 3)
    model = MultiTaskClassifier("mmoe", **SMALL).fit(new, frame_of(y))
    found = model.check_labels(new, frame_of(y))
    assert found.height == 3000
    assert found["rank"].to_list() == list(range(1, 3001))
    assert found["contradiction"].is_sorted(descending=True)
    assert precision(found, wrong) >= 0.6
    assert precision(found.filter(head="fraud"), wrong & [False, True]) >= 0.6
    # Most of those planted are suspicious, and few others.
    suspicious = found.filter("suspicious")
    assert precision(suspicious, wrong) >= 0.6
    assert 0.5 * wrong.sum() < suspicious.height < 2 * wrong.sum()


def test_folds_judge_labels_that_they_have_not_seen(model: MultiTaskClassifier) -> None:
    new, y, _ = planted(300, 0.03, 4)
    quick = copy.copy(model)
    quick.epochs = 1
    found = quick.check_labels(new, frame_of(y), cv=KFold(2), head="fraud").sort("row")
    expected = out_of_fold(quick, new, frame_of(y), cv=KFold(2))[:, 1]
    np.testing.assert_allclose(found["probability"], expected)
    assert quick.check_labels(new, frame_of(y), cv=2).height == 600


def test_a_rare_event_is_not_doubted_for_being_rare() -> None:
    labels = np.array([0.0] * 98 + [1.0] * 2)
    p = np.array([0.01] * 96 + [0.02, 0.9] + [0.05, 0.03])
    contradiction, suspicious = doubts(labels, p)
    assert int(np.argmax(contradiction)) == 97
    assert np.flatnonzero(suspicious).tolist() == [97]
    one_kind = doubts(np.zeros(3), np.array([0.1, 0.2, 0.9]))
    assert not one_kind[1].any()
    assert one_kind[0].round(2).tolist() == [-0.3, -0.2, 0.5]


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_a_model_that_tells_no_row_from_another_doubts_none(p: float) -> None:
    contradiction, suspicious = doubts(np.array([0.0] * 9 + [1.0]), np.full(10, p))
    assert contradiction == pytest.approx(np.zeros(10), abs=1e-12)
    assert not suspicious.any()


def test_folds_leave_the_checkpoint_of_the_fit_alone(tmp_path: Path) -> None:
    options = {**SMALL, "epochs": 1, "checkpoint_dir": str(tmp_path)}
    model = MultiTaskClassifier("mmoe", **options).fit(X, frame_of(Y))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert model.check_labels(X, frame_of(Y), cv=2).height == 1600
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert model.checkpoint_dir == str(tmp_path)


def test_the_other_heads_bear_witness() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=4000)
    p = np.full((4000, 2), 0.5)
    # What drives both labels is in no column.
    y = (rng.random((4000, 2)) < sigmoid(3 * hidden)[:, None]).astype(float)
    y[:1000, 1] = np.nan
    evidence = evidence_of_others(y, p, 0)
    assert not evidence[:1000].any()
    assert (evidence[1000:] > 0).tolist() == (y[1000:, 1] == 1).tolist()
    agree = (y[1000:, 0] == y[1000:, 1]).mean()
    # Odds of agreeing, which is all that there is to know here.
    assert evidence[1000:].max() == pytest.approx(np.log(agree / (1 - agree)), abs=0.1)
    unrelated = evidence_of_others(rng.integers(0, 2, (4000, 2)).astype(float), p, 0)
    assert abs(unrelated).max() < 0.2
    few = np.full((4000, 2), np.nan)
    few[:30] = y[1000:1030]
    assert not evidence_of_others(few, p, 0)[30:].any()


def test_witness_raises_the_doubt(model: MultiTaskClassifier) -> None:
    rng = np.random.default_rng(5)
    new, y = table(3000, 6)
    # Both outcomes also follow something that the model does not see.
    both = rng.random(3000) < 0.2
    y[both] = rng.integers(0, 2, 3000)[both, None]
    alone, told = (model.check_labels(new, frame_of(y), others=o) for o in (False, True))
    assert not (alone["evidence"] != 0).any()
    here = told.filter(head="fraud").sort("row")
    z = np.log(here["probability"] / (1 - here["probability"])) + here["evidence"]
    expected = doubts(here["label"].to_numpy(), sigmoid(z.to_numpy()))
    assert here["contradiction"].to_numpy() == pytest.approx(expected[0])
    assert here["suspicious"].to_list() == expected[1].tolist()
    pairs = here["evidence"].to_numpy()
    surprise = y[:, 0] - model.predict_proba(new)[:, 0]
    assert np.corrcoef(pairs, surprise)[0, 1] == pytest.approx(1)


def test_labels_that_are_not_observed_are_not_listed(model: MultiTaskClassifier) -> None:
    y = Y.copy()
    y[:700, 0] = np.nan
    found = model.check_labels(X, frame_of(y))
    counts = dict(found["head"].value_counts().iter_rows())
    assert counts == {"default": 100, "fraud": 800}
    assert found.filter(head="default")["row"].min() == 700
    assert model.check_labels(X, frame_of(y), head="default").height == 100
    with pytest.raises(ValueError, match="unknown head 'loss'"):
        model.check_labels(X, frame_of(y), head="loss")
    with pytest.raises(ValueError, match="y has no observed label"):
        model.check_labels(X, np.full((800, 2), np.nan))
    with pytest.raises(ValueError, match="X has 9 rows, y has 800"):
        model.check_labels(X[:9], frame_of(y))
    with pytest.raises(ValueError, match="cv must be at least 2 folds, got 1"):
        model.check_labels(X, frame_of(y), cv=1)


def test_with_a_schema_labels_come_from_the_table(cards: pl.DataFrame, cards_schema: Any) -> None:
    options = {**SMALL, "epochs": 1, "members": 1}
    model = MultiTaskClassifier(schema=cards_schema, **options).fit(cards)
    found = model.check_labels(cards)
    assert found.height == 400 + cards["online"].sum()
    assert model.check_labels(cards, cv=2).height == found.height
    assert model.suggest_labels(cards, 4).height == 4
    single = MultiTaskClassifier(**options).fit(X, pl.Series("fraud", Y[:, 0]))
    assert single.check_labels(X, pl.Series("fraud", Y[:, 0]))["head"].unique().to_list() == [
        "fraud"
    ]
    alone = replace(single.model_, background=None)
    assert information(alone, alone.encode(X), ["fraud"])[1] is None
