"""A blend: the share that fits best, and a model that answers with both of its parts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone

from riskmtl import DataSchema, LightGBMBaseline, LogisticBaseline, MultiTaskClassifier, RiskModel
from riskmtl.artefact import ArtefactError, save_model
from riskmtl.blending import UNDECIDED, blend_weight
from riskmtl.metrics import log_loss
from riskmtl.model import sigmoid
from riskmtl.schema import Split
from riskmtl.validation.evaluation import evaluate_model

NAN = float("nan")
Floats = NDArray[np.float64]


# ---- the share -----------------------------------------------------------------------------------


class Case:
    """Labels, some not observed, and two models that know a little of them."""

    def __init__(self, rows: int, seed: int, scale: float, weighted: bool) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 2, rows).astype(float)
        self.labels[:2] = 0, 1
        signal = (2 * self.labels - 1) * rng.uniform(-0.5, 1, (2, 1))
        self.network, self.challenger = np.clip(
            scale * (signal + rng.normal(size=(2, rows))), -15, 15
        )
        self.labels[2:][rng.random(rows - 2) < 0.2] = NAN
        self.weights = rng.uniform(0.1, 3, rows) if weighted else None

    def weight(self) -> float:
        return blend_weight(self.labels, self.network, self.challenger, self.weights)

    def loss(self, share: float) -> float:
        """Cross-entropy from the log-odds, a way of its own to the figure."""
        seen = ~np.isnan(self.labels)
        z = (share * self.network + (1 - share) * self.challenger)[seen]
        each = np.logaddexp(0, z) - self.labels[seen] * z
        return float(np.average(each, weights=None if self.weights is None else self.weights[seen]))


cases = st.builds(
    Case, st.integers(2, 60), st.integers(0, 2**32 - 1), st.floats(0.1, 8), st.booleans()
)


@given(cases)
@settings(max_examples=60, deadline=None)
def test_no_share_on_a_fine_grid_fits_better(case: Case) -> None:
    share = case.weight()
    assert 0 <= share <= 1
    best = min(case.loss(step / 1000) for step in range(1001))
    assert case.loss(share) <= best + 1e-7


@given(cases)
@settings(max_examples=60, deadline=None)
def test_a_blend_is_never_worse_than_either_part_on_the_rows_it_is_fitted_on(case: Case) -> None:
    share = case.weight()
    of_blend, of_network, of_challenger = (
        log_loss(case.labels, sigmoid(margins), case.weights)
        for margins in (
            share * case.network + (1 - share) * case.challenger,
            case.network,
            case.challenger,
        )
    )
    assert of_blend <= min(of_network, of_challenger)


def test_a_useless_part_gets_nothing_and_a_perfect_one_all() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400).astype(float)
    perfect, useless = 8 * labels - 4, rng.normal(size=400) * 3
    assert blend_weight(labels, perfect, useless) == 1.0
    assert blend_weight(labels, useless, perfect) == 0.0
    assert blend_weight(labels, -perfect, useless) < 0.01


def test_two_parts_that_know_different_things_share() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 20_000))
    labels = (rng.random(20_000) < sigmoid(1.5 * one + 0.5 * other)).astype(float)
    # What is in the margins is 1.5 of one and 0.5 of the other, if the network's share is 3/4.
    assert blend_weight(labels, 2 * one, 2 * other) == pytest.approx(0.75, abs=0.03)
    assert blend_weight(labels, 2 * other, 2 * one) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [1, 1, 1, 1], [1, NAN, NAN, 1], [NAN] * 4, [0, NAN, NAN, NAN]]
)
def test_rows_of_one_class_cannot_tell(labels: list[float]) -> None:
    margins = np.array([-2.0, 3.0, 1.0, -1.0])
    assert blend_weight(np.array(labels, dtype=float), margins, 2 * margins) == UNDECIDED == 0.5


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.0] * 4])
def test_rows_without_weight_cannot_tell_either(weights: list[float]) -> None:
    """Whoever leaves rows out by weights of 0 leaves out their class."""
    labels, margins = np.array([0.0, 0.0, 1.0, 0.0]), np.array([-2.0, 3.0, 1.0, -1.0])
    assert blend_weight(labels, margins, 2 * margins, np.array(weights)) == UNDECIDED


@given(cases, st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_rows_that_are_not_observed_count_for_nothing(case: Case, more: int) -> None:
    margins = np.random.default_rng(more).normal(0, 10, (2, more))
    weights = None if case.weights is None else np.concatenate([case.weights, np.full(more, 9.0)])
    assert case.weight() == blend_weight(
        np.concatenate([case.labels, np.full(more, NAN)]),
        np.concatenate([case.network, margins[0]]),
        np.concatenate([case.challenger, margins[1]]),
        weights,
    )


def test_a_weight_of_two_counts_twice_and_one_of_zero_not_at_all() -> None:
    rng = np.random.default_rng(0)
    network, challenger = rng.normal(size=(2, 500))
    labels = (rng.random(500) < sigmoid(network + challenger)).astype(float)
    weights = rng.integers(0, 4, 500)
    found = blend_weight(labels, network, challenger, weights.astype(float))
    repeated = [np.repeat(values, weights) for values in (labels, network, challenger)]
    assert 0.2 < found < 0.8
    assert found == pytest.approx(blend_weight(*repeated), abs=1e-4)
    assert found != pytest.approx(blend_weight(labels, network, challenger), abs=1e-3)


@pytest.mark.parametrize("seed", [49, 112])
def test_the_share_is_the_best_for_very_sure_models_too(seed: int) -> None:
    """Trees on separable rows give log-odds whose probability is 0 or 1 in float64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 30).astype(float)
    labels[:2] = 0, 1
    network, challenger = 40 * rng.normal(size=(2, 30))

    def loss(share: float) -> float:
        z = share * network + (1 - share) * challenger
        return float(np.mean(np.logaddexp(0, z) - labels * z))

    share = blend_weight(labels, network, challenger)
    assert loss(share) <= min(loss(step / 1000) for step in range(1001)) + 1e-6


# ---- behind the estimator ------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "network": "shared_bottom",
    "members": 1,
    "shared_units": (8,),
    "tower_units": (4,),
    "embedding_dim": 3,
    "bins": 4,
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.02,
    "device": "cpu",
    "precision": "32",
    "random_state": 0,
}
TREES: dict[str, Any] = {"trials": 1, "n_estimators": 20, "n_jobs": 1}
BLEND: dict[str, Any] = {**SMALL, "challenger": "blend", "challenger_options": TREES}


def portfolio(n: int = 800, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two partly observed tasks and a number; a step and a slope, one for each kind of model."""
    rng = np.random.default_rng(seed)
    amount, income = rng.normal(size=(2, n))
    chance = sigmoid(amount + 2 * (income > 0.5) - 1)
    X = pl.DataFrame(
        {"amount": amount, "income": income, "country": rng.choice(["FR", "DE", "IT"], n)}
    )
    y = pl.DataFrame({name: (rng.random(n) < chance).astype(int) for name in ("default", "fraud")})
    hidden = pl.Series(rng.random(n) < 0.3)
    return X, y.with_columns(
        fraud=pl.when(hidden).then(None).otherwise("fraud"), loss=pl.Series(100 * amount + 500)
    )


X, Y = portfolio()
NEW, NEW_Y = portfolio(seed=1)
NEW_WEIGHTS = np.random.default_rng(2).uniform(0.1, 4, NEW.height)


@pytest.fixture(scope="module")
def blended() -> MultiTaskClassifier:
    model = MultiTaskClassifier(**BLEND, regression_tasks=["loss"])
    return model.fit(X, Y, X_val=NEW, y_val=NEW_Y, sample_weight_val=NEW_WEIGHTS)


def with_shares(model: RiskModel, *shares: float) -> RiskModel:
    """The same parts in other shares, which do not depend on what training found."""
    heads = [replace(h, blend=share) for h, share in zip(model.heads, shares, strict=True)]
    return replace(model, heads=heads)


def test_the_shares_are_fitted_on_the_validation_rows(blended: MultiTaskClassifier) -> None:
    parts = blended.model_.parts()
    assert list(parts) == ["network", "lightgbm"]
    encoded = blended.model_.encode(NEW)
    own, other = (part.margins(encoded) for part in parts.values())
    labels = NEW_Y.select("default", "fraud").cast(pl.Float64).fill_null(NAN).to_numpy()
    expected = {
        task: blend_weight(labels[:, i], own[:, i], other[:, i], NEW_WEIGHTS)
        for i, task in enumerate(["default", "fraud"])
    }
    assert set(blended.blend_weights_) == {"default", "fraud"}
    assert blended.blend_weights_ == pytest.approx(expected, abs=1e-3)
    assert any(0 < share < 1 for share in expected.values())
    unweighted = [blend_weight(labels[:, i], own[:, i], other[:, i]) for i in range(2)]
    assert unweighted != pytest.approx(list(expected.values()), abs=5e-3)
    whole = blended.model_.margins(encoded)
    for i in range(2):
        of_blend, *of_parts = (
            log_loss(labels[:, i], sigmoid(margins[:, i]), NEW_WEIGHTS)
            for margins in (whole, own, other)
        )
        assert of_blend <= min(of_parts) + 1e-7


def test_the_answer_is_a_mixture_of_the_parts_log_odds(blended: MultiTaskClassifier) -> None:
    encoded = blended.model_.encode(X)
    network, trees = blended.model_.parts().values()
    shares = np.array([blended.blend_weights_[task] for task in ("default", "fraud")])
    mixed = shares * network.margins(encoded) + (1 - shares) * trees.margins(encoded)
    np.testing.assert_allclose(blended.decision_function(X), mixed, rtol=1e-12)
    np.testing.assert_allclose(blended.predict_proba(X), sigmoid(mixed), rtol=1e-12)
    np.testing.assert_array_equal(blended.predict(X), (mixed > 0).astype(int))
    np.testing.assert_array_equal(trees.margins(encoded), blended.challenger_.decision_function(X))
    assert np.abs(network.margins(encoded) - trees.margins(encoded)).max() > 0.1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_each_head_has_a_share_of_its_own(blended: MultiTaskClassifier, share: float) -> None:
    model = with_shares(blended.model_, share, 0.75, 0.5)
    encoded = model.encode(NEW)
    network, trees = (part.outputs(encoded) for part in model.parts().values())
    found = model.outputs(encoded)
    for task, of_network in (("default", share), ("fraud", 0.75), ("loss", 0.5)):
        expected = of_network * network[task] + (1 - of_network) * trees[task]
        np.testing.assert_allclose(found[task], expected, rtol=1e-12)
        assert not np.allclose(network[task], trees[task])


def test_a_regression_is_the_mean_of_both_predictions(blended: MultiTaskClassifier) -> None:
    network, trees = blended.model_.parts().values()
    expected = (network.predict_frame(NEW)["loss"] + trees.predict_frame(NEW)["loss"]) / 2
    np.testing.assert_allclose(blended.predict_frame(NEW)["loss"], expected, rtol=1e-12)
    assert 400 < expected.mean() < 600
    assert np.corrcoef(expected, NEW_Y["loss"])[0, 1] > 0.8


def test_the_parts_know_nothing_of_each_other(blended: MultiTaskClassifier) -> None:
    assert (blended.model_.is_blend, blended.model_.kind) == (True, "blend")
    for kind, part in blended.model_.parts().items():
        assert (part.is_blend, part.kind, part.challenger) == (False, kind, None)
        assert list(part.parts()) == [kind]
        assert {head.blend for head in part.heads} == {1.0}
    alone = with_shares(blended.model_, 1.0, 1.0, 1.0)
    assert (alone.is_blend, alone.kind, list(alone.parts())) == (False, "network", ["network"])
    assert alone.predict_frame(NEW).equals(blended.model_.parts()["network"].predict_frame(NEW))


def test_the_network_of_a_blend_is_the_one_alone() -> None:
    blend = MultiTaskClassifier(**BLEND).fit(X, Y.drop("loss"))
    beside = clone(blend).set_params(challenger="lightgbm").fit(X, Y.drop("loss"))
    alone = clone(blend).set_params(challenger=None).fit(X, Y.drop("loss"))
    assert beside.predict_frame(NEW).equals(alone.predict_frame(NEW))
    network = blend.model_.parts()["network"]
    assert network.predict_frame(NEW).equals(alone.predict_frame(NEW))
    assert not blend.predict_frame(NEW).equals(alone.predict_frame(NEW))
    assert beside.challenger_.predict_frame(NEW).equals(blend.challenger_.predict_frame(NEW))
    assert not hasattr(beside, "blend_weights_")
    assert not hasattr(alone, "challenger_")


@pytest.mark.parametrize("challenger", ["lightgbm", "blend"])
def test_the_challenger_learns_from_the_rows_of_the_network(challenger: str) -> None:
    """It is what LightGBMBaseline makes of the same call, held-out rows and weights included."""
    weights = np.random.default_rng(1).uniform(0.2, 3, X.height)
    model = MultiTaskClassifier(**{**BLEND, "challenger": challenger}, validation_share=0.3)
    model.fit(X, Y.drop("loss"), weights)
    alone = LightGBMBaseline(**TREES, validation_share=0.3, random_state=0)
    alone.fit(X, Y.drop("loss"), weights)
    assert model.challenger_.predict_frame(NEW).equals(alone.predict_frame(NEW))
    for key in ("data_sha256", "rows", "tasks", "seed"):
        assert model.model_.lineage[key] == model.challenger_.model_.lineage[key], key
    assert model.model_.lineage["rows"] == pytest.approx(0.7 * X.height, abs=3)
    assert model.challenger_.best_params_ == alone.best_params_


def test_without_a_seed_both_have_the_same_rows() -> None:
    model = MultiTaskClassifier(**{**BLEND, "random_state": None, "epochs": 1})
    model.fit(X, Y.drop("loss"))
    lineages = [part.lineage for part in model.model_.parts().values()]
    assert lineages[0]["data_sha256"] == lineages[1]["data_sha256"]
    assert lineages[0]["seed"] == lineages[1]["seed"]


def test_the_challenger_answers_for_itself(blended: MultiTaskClassifier) -> None:
    challenger = blended.challenger_
    assert challenger.predict_proba(NEW).shape == (NEW.height, 2)
    assert challenger.feature_names_in_.tolist() == X.columns
    assert (challenger.n_features_in_, challenger.tasks_) == (3, ["default", "fraud"])
    assert challenger.score(NEW, NEW_Y) > 0.7
    with pytest.raises(ValueError, match="column 'amount' is missing"):
        challenger.predict_proba(NEW.drop("amount"))


def test_arrays_and_one_column_of_labels_blend_too(tmp_path: Path) -> None:
    x, y = X.select("amount", "income").to_numpy(), Y["default"].to_numpy()
    model = MultiTaskClassifier(**BLEND).fit(x, y)
    assert list(model.blend_weights_) == model.tasks_
    assert model.predict_proba(x).shape == (X.height, 2)
    assert model.decision_function(x).shape == (X.height,)
    assert set(model.predict(x)) == {0, 1}
    network, trees = model.model_.parts().values()
    (share,) = model.blend_weights_.values()
    encoded = model.model_.encode(
        pl.DataFrame(x, schema=list(model.model_.encoder.feature_names_in_))
    )
    mixed = share * network.margins(encoded) + (1 - share) * trees.margins(encoded)
    np.testing.assert_allclose(model.decision_function(x), mixed[:, 0], rtol=1e-12)
    model.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))


def test_without_rows_held_out_both_have_half() -> None:
    y = Y.drop("fraud")[:40]
    model = MultiTaskClassifier(**BLEND, regression_tasks=["loss"]).fit(X[:40], y)
    assert model.model_.heads[0].calibrator.note == "not fitted: no rows were held out"
    assert [head.blend for head in model.model_.heads] == [0.5, 0.5]
    assert model.blend_weights_ == {"default": 0.5}


def test_a_task_that_no_validation_row_observes_has_half() -> None:
    blind = NEW_Y.drop("loss").with_columns(fraud=pl.lit(None, pl.Int64))
    model = MultiTaskClassifier(**BLEND).fit(X, Y.drop("loss"), X_val=NEW, y_val=blind)
    assert model.blend_weights_["fraud"] == 0.5
    assert np.isfinite(model.predict_proba(X)).all()


def test_events_reweighted_in_training_are_corrected_before_blending() -> None:
    model = MultiTaskClassifier(**BLEND, event_weight={"default": 30.0})
    model.fit(X, Y.drop("loss"), X_val=NEW, y_val=NEW_Y.drop("loss"))
    rates = [part.predict_frame(X)["default"].mean() for part in model.model_.parts().values()]
    assert rates[0] == pytest.approx(rates[1], abs=0.1)


def test_fitted_again_without_a_challenger_the_blend_is_forgotten() -> None:
    model = MultiTaskClassifier(**BLEND).fit(X, Y.drop("loss"))
    assert model.blend_weights_.keys() == {"default", "fraud"}
    first = model.challenger_
    model.fit(X, Y.drop("loss"))
    assert model.challenger_ is not first
    assert model.model_.challenger is model.challenger_.model_
    model.set_params(challenger="lightgbm").fit(X, Y.drop("loss"))
    assert not hasattr(model, "blend_weights_")
    assert model.model_.kind == "network"
    model.set_params(challenger=None).fit(X, Y.drop("loss"))
    assert not hasattr(model, "challenger_")
    assert model.model_.challenger is None


def test_a_blend_is_cloned_with_its_parameters(blended: MultiTaskClassifier) -> None:
    copy = clone(blended)
    assert copy.get_params() == blended.get_params()
    assert copy.get_params()["challenger"] == "blend"
    assert copy.get_params()["challenger_options"] == TREES
    assert not hasattr(copy, "blend_weights_")


def test_fewer_members_keep_their_share() -> None:
    model = MultiTaskClassifier(**{**BLEND, "members": 2}).fit(X, Y.drop("loss"))
    model._take_up(with_shares(model.model_, 0.4, 0.6))
    fewer = model.with_members(1)
    assert fewer.blend_weights_ == {"default": 0.4, "fraud": 0.6}
    assert fewer.challenger_.predict_frame(NEW).equals(model.challenger_.predict_frame(NEW))
    encoded = model.model_.encode(NEW)
    one, two = (m.model_.parts()["network"].margins(encoded) for m in (fewer, model))
    assert np.abs(one - two).max() > 1e-3
    difference = fewer.decision_function(NEW) - model.decision_function(NEW)
    np.testing.assert_allclose(difference, [0.4, 0.6] * (one - two), atol=1e-9)


HOW_ROWS_ARE_READ = [
    "schema",
    "categorical_features",
    "min_count",
    "regression_tasks",
    "validation_share",
    "random_state",
]


@pytest.mark.parametrize("challenger", ["lightgbm", "blend"])
@pytest.mark.parametrize("name", HOW_ROWS_ARE_READ)
def test_how_rows_are_read_is_said_once(challenger: str, name: str) -> None:
    options = {**BLEND, "challenger": challenger, "challenger_options": {name: None}}
    with pytest.raises(ValueError, match=f"challenger_options: unknown option '{name}'"):
        MultiTaskClassifier(**options).fit(X, Y.drop("loss"))


def test_what_concerns_the_challenger_alone_is_its_own() -> None:
    own = {**TREES, "calibrate": False, "verbose": False, "settings": {"fraud": {"num_leaves": 5}}}
    model = MultiTaskClassifier(**{**BLEND, "challenger_options": own}).fit(X, Y.drop("loss"))
    assert model.challenger_.best_params_["fraud"]["num_leaves"] == 5
    assert {head.calibrator.note for head in model.challenger_.model_.heads} == {"not fitted"}
    assert "not fitted" not in {head.calibrator.note for head in model.model_.heads}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be a whole number of at least 1"),
        ({"settings": {"fraud": {"leaves": 5}}}, "settings of 'fraud': unknown setting 'leaves'"),
        ({"settings": {"frod": {}}}, "settings: unknown task 'frod': did you mean 'fraud'"),
    ],
)
def test_a_wrong_option_of_the_challenger_is_named(options: dict[str, Any], message: str) -> None:
    model = MultiTaskClassifier(**{**BLEND, "challenger_options": {**TREES, **options}})
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y.drop("loss"))


# ---- on disk -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema_blend(trained: MultiTaskClassifier) -> RiskModel:
    """A blend of the portfolio, with shares given by hand."""
    return with_shares(trained.model_, 0.25, 1.0, 0.0)


@pytest.fixture(scope="module")
def blend_folder(schema_blend: RiskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blends") / "model"
    save_model(schema_blend, folder)
    return folder


@pytest.fixture
def blend_copy(blend_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blend_folder, tmp_path / "copied" / "model"))


def sealed(folder: Path) -> None:
    """List and seal all files anew, as somebody with bad intent would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file not in (path, folder / "manifest.sha256")
    }
    path.write_text(json.dumps(manifest))
    seal = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{seal}  manifest.json\n")


def test_a_blend_comes_back_with_both_parts_whoever_loads_it(
    schema_blend: RiskModel, blend_folder: Path, parts: Split
) -> None:
    expected = schema_blend.predict_frame(parts.test)
    for model in (RiskModel.load(blend_folder), RiskModel.load(blend_folder, with_challenger=True)):
        assert model.kind == "blend"
        assert list(model.parts()) == ["network", "lightgbm"]
        assert [head.blend for head in model.heads] == [0.25, 1.0, 0.0]
        assert model.predict_frame(parts.test).equals(expected)


def test_a_fitted_blend_comes_back_to_the_bit(blended: MultiTaskClassifier, tmp_path: Path) -> None:
    blended.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    assert loaded.predict_frame(NEW).equals(blended.predict_frame(NEW))
    assert loaded.blend_weights_ == blended.blend_weights_
    assert loaded.challenger_.predict_frame(NEW).equals(blended.challenger_.predict_frame(NEW))
    assert (loaded.challenger, loaded.challenger_options) == ("blend", TREES)
    model = RiskModel.load(tmp_path / "model")
    assert model.predict_frame(NEW).equals(blended.predict_frame(NEW))
    again = loaded.set_params(epochs=1, regression_tasks=()).fit(X, Y.drop("loss"))
    assert again.model_.challenger is again.challenger_.model_


def test_a_network_with_a_challenger_beside_it_is_no_blend(
    model_folder: Path, parts: Split, trained: MultiTaskClassifier
) -> None:
    model = RiskModel.load(model_folder)
    assert (model.kind, model.challenger) == ("network", None)
    assert not hasattr(MultiTaskClassifier.load(model_folder), "blend_weights_")
    assert model.predict_frame(parts.test).equals(trained.predict_frame(parts.test))


def test_a_blend_is_scored_from_the_command_line(
    run: Callable[..., Any],
    schema_blend: RiskModel,
    blend_folder: Path,
    portfolio_file: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "scores"
    done = run("score", "--model", blend_folder, "--data", portfolio_file, "--out", out)
    assert (done.code, done.err) == (0, "")
    scores = pl.read_parquet(out / "part-*.parquet")
    expected = schema_blend.predict_frame(pl.read_parquet(portfolio_file))
    for task in schema_blend.tasks:
        np.testing.assert_allclose(scores[f"p_{task}"], expected[task], atol=1e-6)


def test_a_blend_is_trained_and_evaluated_from_the_command_line(
    run: Callable[..., Any],
    portfolio_file: Path,
    schema_file: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**tiny, "epochs": 1, "challenger": "blend", "verbose": False}))
    model, record = tmp_path / "model", tmp_path / "evaluation.json"
    done = run(
        *("train", "--data", portfolio_file, "--schema", schema_file, "--out", model),
        *("--config", config),
    )
    assert done.code == 0, done.err
    assert "blend" in done.out
    done = run("evaluate", "--model", model, "--data", portfolio_file, "--out", record)
    assert done.code == 0, done.err
    figures = json.loads(record.read_text())["figures"]
    tasks = RiskModel.load(model).tasks
    assert [(row["task"], row["model"]) for row in figures] == [
        (task, kind) for task in tasks for kind in ("blend", "network", "lightgbm")
    ]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "head_1.lgb.txt"])
def test_a_changed_challenger_of_a_blend_is_noticed(blend_copy: Path, name: str) -> None:
    path = blend_copy / "challenger" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{name}: changed"):
        RiskModel.load(blend_copy)
    sealed(blend_copy)  # the challenger's own seal still tells
    with pytest.raises(ArtefactError, match="challenger"):
        RiskModel.load(blend_copy)


def test_a_blend_without_its_challenger_is_refused(blend_copy: Path) -> None:
    shutil.rmtree(blend_copy / "challenger")
    with pytest.raises(ArtefactError, match="listed in the manifest, but missing"):
        RiskModel.load(blend_copy)
    sealed(blend_copy)
    with pytest.raises(ArtefactError, match="is a blend, but its challenger is missing"):
        RiskModel.load(blend_copy)


def replace_challenger(folder: Path, challenger: RiskModel) -> None:
    shutil.rmtree(folder / "challenger")
    save_model(challenger, folder / "challenger")
    sealed(folder)


def test_a_challenger_of_other_tasks_is_refused(
    blend_copy: Path, cards: pl.DataFrame, cards_schema: DataSchema
) -> None:
    other = LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards)
    replace_challenger(blend_copy, other.model_)
    with pytest.raises(ArtefactError, match="challenger: encodes rows otherwise"):
        RiskModel.load(blend_copy)


def test_a_challenger_that_lacks_a_regression_is_refused(
    blended: MultiTaskClassifier, tmp_path: Path
) -> None:
    blended.save(tmp_path / "model")
    trees = LightGBMBaseline(**TREES, random_state=0)
    replace_challenger(tmp_path / "model", trees.fit(X, Y.drop("loss")).model_)
    with pytest.raises(ArtefactError, match="challenger"):
        RiskModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    "table",
    [
        X.drop("country"),
        X.select("income", "amount", "country"),
        X.with_columns(country=pl.lit("FR")),
    ],
    ids=["fewer columns", "other order", "other codes"],
)
@pytest.mark.filterwarnings("ignore:column 'country'")
def test_a_challenger_that_encodes_rows_otherwise_is_refused(
    tmp_path: Path, table: pl.DataFrame
) -> None:
    """A blend gives both the rows as one of them encodes them."""
    model = MultiTaskClassifier(**{**BLEND, "epochs": 1}).fit(X, Y.drop("loss"))
    save_model(with_shares(model.model_, 0.5, 0.5), tmp_path / "model")
    trees = LightGBMBaseline(**TREES, random_state=0).fit(table, Y.drop("loss"))
    replace_challenger(tmp_path / "model", trees.model_)
    with pytest.raises(ArtefactError, match="challenger"):
        RiskModel.load(tmp_path / "model")


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN, float("inf"), None, "half", [0.5]])
def test_a_share_that_is_none_is_refused(blend_copy: Path, share: Any) -> None:
    path = blend_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["heads"][1]["blend"] = share
    path.write_text(json.dumps(manifest))
    sealed(blend_copy)
    with pytest.raises(ArtefactError, match=str(blend_copy)):
        RiskModel.load(blend_copy)


# ---- evaluation ----------------------------------------------------------------------------------


def test_a_blend_is_evaluated_beside_its_parts(schema_blend: RiskModel, parts: Split) -> None:
    table = evaluate_model(schema_blend, parts.test)
    kinds = ["blend", "network", "lightgbm"]
    assert table.select("task", "model").rows() == [
        (task, kind) for task in schema_blend.tasks for kind in kinds
    ]
    models = {"blend": schema_blend, **schema_blend.parts()}
    for kind in kinds:
        scores = models[kind].predict_frame(parts.test)
        for task in schema_blend.tasks:
            labels = parts.test[task].cast(pl.Float64).fill_null(NAN).to_numpy()
            expected = log_loss(labels, scores[task].to_numpy())
            found = table.filter(task=task, model=kind)["log_loss"].item()
            assert found == pytest.approx(expected, rel=1e-9), (kind, task)
    # The second head is all the network's, and the third all the challenger's.
    second, third = (
        {row["model"]: row["roc_auc"] for row in table.filter(task=task).to_dicts()}
        for task in schema_blend.tasks[1:]
    )
    assert second["blend"] == second["network"] != second["lightgbm"]
    assert third["blend"] == third["lightgbm"] != third["network"]


def test_a_blend_that_is_all_network_is_called_a_network(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    alone = with_shares(trained.model_, 1.0, 1.0, 1.0)
    table = evaluate_model(alone, parts.test)
    assert table["model"].unique(maintain_order=True).to_list() == ["network", "lightgbm"]
