"""Explanations: true to the definition, exact in the sum, honest about their error."""

from __future__ import annotations

import re
import warnings
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

from riskmtl import LightGBMBaseline, LogisticBaseline, MultiTaskClassifier
from riskmtl.artefact import ArtefactError, load_model
from riskmtl.calibration import Calibrator
from riskmtl.explain import shapley
from riskmtl.explain.attribution import explain_rows, within
from riskmtl.explain.background import background_hash, representative_rows
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.mixtures import MixedRows
from riskmtl.explain.shapley import Estimate, shapley_values
from riskmtl.model import RiskModel, sigmoid
from riskmtl.schema import Split
from tests.reference import shapley as definition

NAN = float("nan")


def numbers(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


class Curve:
    """A function of rows with interactions of every order, two outputs, in float64."""

    def __init__(self, columns: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(columns, 12)) / columns**0.5
        self.out = rng.normal(size=(12, 2))
        self.rows = 0

    def __call__(self, rows: torch.Tensor | NDArray[np.float32]) -> NDArray[np.float64]:
        self.rows += len(rows)
        return np.asarray(np.tanh(2 * np.asarray(rows, dtype=np.float64) @ self.weight) @ self.out)


def explained(
    function: Any, x: NDArray[np.float32], background: NDArray[np.float32], **options: Any
) -> Estimate:
    groups = options.pop("groups", [[i] for i in range(x.shape[1])])
    rows, compared = torch.from_numpy(x), torch.from_numpy(background)
    return shapley_values(MixedRows(function, rows, compared, groups), **options)


# ---- the truth -----------------------------------------------------------------------------------


def test_values_are_those_of_the_definition_within_their_errors() -> None:
    hits = []
    for seed in range(6):
        x, background, curve = numbers(2, 10, seed), numbers(16, 10, seed + 50), Curve(10, seed)
        found = explained(curve, x, background, budget=40, seed=seed)
        groups = [[i] for i in range(10)]
        true = [definition.shapley_values(curve, row, background, groups) for row in x]
        off = np.abs(found.values - true)
        assert off.max() < 0.1 * np.abs(found.values).max()
        hits.append(off <= 3 * found.errors + 1e-12)
    assert np.mean(hits) >= 0.99


def test_groups_are_those_of_the_definition() -> None:
    groups = [[3], [0, 2], [1, 4]]
    x, background, curve = numbers(2, 5, 0), numbers(16, 5, 1), Curve(5)
    found = explained(curve, x, background, groups=groups, budget=200)
    true = [definition.shapley_values(curve, row, background, groups) for row in x]
    np.testing.assert_allclose(found.values, true, atol=0.02)
    assert (np.abs(found.values - true) <= 4 * found.errors + 1e-12).all()


def test_an_additive_function_is_explained_in_closed_form_without_error() -> None:
    x, background = numbers(4, 5, 0), numbers(9, 5, 1)

    def terms(rows: Any) -> NDArray[np.float64]:
        z = np.asarray(rows, dtype=np.float64)
        return np.column_stack([z[:, 0], z[:, 1] ** 2, np.sin(z[:, 2]), 3 * z[:, 3], 0 * z[:, 4]])

    found = explained(lambda rows: terms(rows).sum(1, keepdims=True), x, background)
    np.testing.assert_allclose(found.values[:, :, 0], terms(x) - terms(background).mean(0))
    assert found.errors.max() < 1e-7
    assert not found.values[:, 4].any()


def test_two_columns_are_explained_exactly() -> None:
    x, background, curve = numbers(3, 2, 0), numbers(8, 2, 1), Curve(2)
    true = [definition.shapley_values(curve, row, background, [[0], [1]]) for row in x]
    found = explained(curve, x, background)
    np.testing.assert_allclose(found.values, true, atol=1e-12)
    assert found.errors.max() < 1e-7


def test_one_column_takes_it_all() -> None:
    x, background, curve = numbers(3, 1, 0), numbers(8, 1, 1), Curve(1)
    found = explained(curve, x, background)
    np.testing.assert_allclose(found.values[:, 0], curve(x) - curve(background).mean(0))


def test_what_is_alike_is_credited_alike() -> None:
    x, background = numbers(5, 6, 0), numbers(40, 6, 1)
    x[:, 1], background[:, 1] = x[:, 0], background[:, 0]
    curve = Curve(6)
    curve.weight[1] = curve.weight[0]
    found = explained(curve, x, background, budget=40)
    gap = np.abs(found.values[:, 0] - found.values[:, 1])
    spread = np.hypot(found.errors[:, 0], found.errors[:, 1])
    assert (gap <= 4 * spread).all()
    assert spread.max() < 0.1 * np.abs(found.values[:, 0]).max()


def test_the_standard_error_is_honest() -> None:
    x, background, curve = numbers(6, 8, 0), numbers(48, 8, 1), Curve(8)
    long = explained(curve, x, background, budget=300, seed=99)
    within = []
    for seed in range(12):
        short = explained(curve, x, background, seed=seed)
        within.append(np.abs(short.values - long.values) <= 2 * short.errors)
    assert 0.90 <= np.mean(within) <= 0.97


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    compared=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_values_always_add_up(rows: int, compared: int, columns: int, seed: int) -> None:
    x, background, curve = (
        numbers(rows, columns, seed),
        numbers(compared, columns, 1),
        Curve(columns),
    )
    found = explained(curve, x, background, seed=seed)
    np.testing.assert_allclose(found.base, curve(background).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.base + found.values.sum(1), curve(x), atol=1e-9)


# ---- how it is computed --------------------------------------------------------------------------


def test_neither_order_nor_number_of_rows_nor_chunks_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, background, curve = numbers(4, 6, 0), numbers(10, 6, 1), Curve(6)
    found = explained(curve, x, background)
    turned = explained(curve, x[::-1].copy(), background)
    np.testing.assert_allclose(turned.values[::-1], found.values, atol=1e-12)
    np.testing.assert_allclose(explained(curve, x[2:3], background).values[0], found.values[2])
    monkeypatch.setattr(shapley, "MOST_CELLS", 1)
    np.testing.assert_allclose(explained(curve, x, background).values, found.values, atol=1e-12)


def test_what_is_the_same_in_both_rows_costs_nothing() -> None:
    x, background, curve = numbers(1, 6, 0), numbers(10, 6, 1), Curve(6)
    explained(curve, x, background)
    whole = curve.rows
    background[:, 2:5] = x[0, 2:5]
    curve.rows = 0
    found = explained(curve, x, background)
    assert curve.rows < 0.6 * whole
    assert np.abs(found.values[:, 2:5]).max() < 1e-12
    x[0, 0] = background[:, 0] = NAN
    alike = explained(lambda rows: curve(torch.nan_to_num(rows)), x, background)
    assert np.abs(alike.values[:, 0]).max() < 1e-12


def test_it_goes_on_until_the_error_is_small_or_the_budget_is_used_up() -> None:
    x, background, curve = numbers(3, 6, 0), numbers(10, 6, 1), Curve(6)
    assert explained(curve, x, background, budget=8).permutations.tolist() == [8, 8, 8]
    assert not explained(curve, x, background, budget=8).met.any()
    loose = explained(curve, x, background, budget=400, is_enough=within(0.03))
    assert loose.errors.max() <= 0.03
    assert (loose.permutations < 400).all()
    assert loose.met.all()
    assert len(set(loose.permutations.tolist())) > 1
    same = explained(curve, x[:1], background, budget=int(loose.permutations[0]))
    np.testing.assert_allclose(same.values[0], loose.values[0])


@pytest.mark.parametrize("budget", [0, 2, 5])
def test_a_budget_that_gives_no_error_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"even number of at least 4, got {budget}"):
        explained(Curve(2), numbers(1, 2, 0), numbers(3, 2, 1), budget=budget)


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="tolerance must not be negative, got -1"):
        within(-1)


# ---- models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blend(parts: Split, tiny: dict[str, Any], schema: Any) -> MultiTaskClassifier:
    model = MultiTaskClassifier(schema=schema, **{**tiny, "challenger": "blend"})
    return model.fit(parts.train, X_val=parts.validation)


def some(parts: Split, rows: int = 3) -> pl.DataFrame:
    return parts.test.head(rows)


def test_values_add_up_to_the_decision_function(
    trained: MultiTaskClassifier, blend: MultiTaskClassifier, parts: Split
) -> None:
    rows, compared = some(parts), parts.train.head(12)
    for model in (trained, trained.challenger_, blend):
        found = model.explain(rows, background=compared)
        assert found.heads == model.tasks_
        assert found.features == [c.name for c in model.model_.encoder.columns_]
        np.testing.assert_allclose(
            found.base + found.values.sum(1), model.decision_function(rows), atol=1e-4
        )
        assert found.residual.max() <= 1e-9
        base = model.decision_function(compared).mean(0)
        np.testing.assert_allclose(found.base, base, atol=1e-4)
        assert (found.scale, found.calibrated, found.method) == ("log_odds", True, "sampled")


def test_the_answer_explained_is_the_one_asked_for(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    rows, compared = some(parts), parts.train.head(12)
    likely = trained.explain(rows, background=compared, scale="probability")
    np.testing.assert_allclose(likely.outputs, trained.predict_proba(rows), atol=1e-6)
    assert likely.residual.max() <= 1e-9
    slopes = np.array([0.5, 1.0, 2.0])
    heads = [
        replace(head, calibrator=Calibrator(slope=slope, intercept=0.3))
        for head, slope in zip(trained.model_.heads, slopes, strict=True)
    ]
    model = replace(trained.model_, heads=heads)
    inputs, encoded = model.schema.inputs(rows), model.encode(compared)
    before = explain_rows(model, inputs, encoded, calibrated=False)
    after = explain_rows(model, inputs, encoded)
    np.testing.assert_allclose(before.values * slopes, after.values, atol=1e-6)
    np.testing.assert_allclose(before.base * slopes + 0.3, after.base, atol=1e-6)
    assert "uncalibrated" in repr(before)
    assert "calibrated log_odds" in repr(after)


def test_heads_are_explained_in_the_order_asked_for(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    rows, compared = some(parts), parts.train.head(8)
    sampled, own = {"background": compared}, {"method": "tree"}
    for model, options in ((trained, sampled), (trained.challenger_, own)):
        whole = model.explain(rows, **options)
        few = model.explain(rows, heads=["takeover", "default"], **options)
        assert few.heads == ["takeover", "default"]
        np.testing.assert_allclose(few.values, whole.values[:, :, [2, 0]], atol=1e-6)
        np.testing.assert_allclose(few.base, whole.base[[2, 0]], atol=1e-6)
        np.testing.assert_allclose(few.outputs, whole.outputs[:, [2, 0]], atol=1e-6)


def test_a_blend_is_explained_by_the_mixture_of_its_parts(
    blend: MultiTaskClassifier, parts: Split
) -> None:
    inputs = blend.model_.schema.inputs(some(parts))
    compared = blend.model_.background[:16]
    network, trees = (
        explain_rows(part, inputs, compared).values for part in blend.model_.parts().values()
    )
    shares = np.array([blend.blend_weights_[task] for task in blend.tasks_])
    whole = explain_rows(blend.model_, inputs, compared).values
    np.testing.assert_allclose(whole, shares * network + (1 - shares) * trees, atol=1e-6)


def test_trees_own_attributions_add_up_and_name_another_background(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    rows, trees = some(parts), trained.challenger_
    found = trees.explain(rows, method="tree")
    np.testing.assert_allclose(
        found.base + found.values.sum(1), trees.decision_function(rows), atol=1e-9
    )
    assert (found.method, found.background) == ("tree", "training rows")
    assert not found.errors.any()
    assert found.met.all()
    model = trees.model_
    heads = [replace(h, calibrator=Calibrator(slope=0.5, intercept=0.3)) for h in model.heads]
    scaled = explain_rows(
        replace(model, heads=heads), model.schema.inputs(rows), model.background, method="tree"
    )
    np.testing.assert_allclose(scaled.values, 0.5 * found.values)
    np.testing.assert_allclose(scaled.base, 0.5 * found.base + 0.3)


def test_a_column_that_the_model_ignores_gets_nothing(cards: pl.DataFrame) -> None:
    X = cards.select("amount", noise=pl.Series(np.random.default_rng(0).normal(size=cards.height)))
    y = cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y)
    for name in ("slope", "missing"):
        model.model_.scorer.arrays[name][1] = 0
    found = model.explain(X[:4])
    assert np.abs(found.values[:, 1]).max() < 1e-12
    assert np.abs(found.values[:, 0]).min() > 1e-3


def test_a_logistic_regression_is_explained_in_closed_form(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount", "age"), cards.select(fraud="is_fraud")
    model = LogisticBaseline(random_state=0).fit(X, y)
    found = model.explain(X[:5], background=X)
    arrays, rows = model.model_.scorer.arrays, model.model_.encode(X).astype(np.float64)
    scaled = (np.clip(rows, arrays["low"], arrays["high"]) - arrays["mean"]) / arrays["scale"]
    terms = np.where(np.isnan(rows), arrays["missing"][:, 0], scaled * arrays["slope"][:, 0])
    slope = model.model_.heads[0].calibrator.slope
    np.testing.assert_allclose(
        found.values[:, :, 0], slope * (terms[:5] - terms.mean(0)), atol=1e-6
    )


def test_missing_and_unseen_values_are_explained(cards: pl.DataFrame, tiny: dict[str, Any]) -> None:
    X, y = cards.select("amount", "age", "country"), cards.select(fraud="is_fraud")
    model = MultiTaskClassifier(**tiny).fit(X, y)
    odd = pl.DataFrame({"amount": [None, 5.0], "age": [30, None], "country": ["XX", None]})
    found = model.explain(odd.cast(X.schema))
    assert np.isfinite(found.values).all()
    assert found.residual.max() <= 1e-9


def test_columns_of_a_group_are_explained_as_one(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    columns = trained.model_.encoder.columns_
    device = [c.name for c in columns if c.name.startswith("dev_")]
    found = trained.explain(some(parts), groups={"device": device}, background=parts.train.head(9))
    names = [c.name for c in columns]
    first = names.index(device[0])
    assert found.features == [*names[:first], "device"] + [
        name for name in names[first:] if name not in device
    ]
    assert np.isnan(found.encoded[:, first]).all()
    assert found.residual.max() <= 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["frod"]}, "heads: unknown head 'frod': did you mean 'fraud'"),
        ({"heads": []}, "heads must name at least one head"),
        ({"heads": ["fraud", "fraud"]}, "each once"),
        ({"groups": {"g": ["acc_incme"]}}, "groups: unknown column 'acc_incme'"),
        ({"groups": {"g": "acc_income"}}, "'g' must be a list of columns"),
        ({"groups": {"g": ["acc_income"], "h": ["acc_income"]}}, "'acc_income' is in two groups"),
        (
            {"groups": {"acc_age": ["acc_income"]}},
            "'acc_age' is the name of a column: give",
        ),
        ({"scale": "odds"}, "unknown scale 'odds'"),
        ({"method": "deep"}, "unknown method 'deep'"),
        ({"method": "tree"}, "method='tree' explains LightGBM alone"),
        ({"budget": 3}, "budget must be an even number"),
    ],
)
def test_mistakes_are_named(
    trained: MultiTaskClassifier, parts: Split, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        trained.explain(some(parts, 1), **options)


def test_a_head_that_predicts_a_number_is_not_explained() -> None:
    X = pl.DataFrame({"amount": [1.0, 9.0, 2.0, 8.0] * 30})
    y = pl.DataFrame({"fraud": [0, 1, 0, 1] * 30, "loss": [0.5, 2.0, 0.0, 1.0] * 30})
    model = MultiTaskClassifier("shared_bottom", epochs=1, members=1, regression_tasks=["loss"])
    model.fit(X, y)
    with pytest.raises(ValueError, match=r"'loss' predicts a number; explained are \['fraud'\]"):
        model.explain(X[:1], heads=["loss"])


def test_what_does_not_go_together_is_refused(
    trained: MultiTaskClassifier, blend: MultiTaskClassifier, parts: Split
) -> None:
    with pytest.raises(ValueError, match="explain its parts one by one"):
        blend.explain(some(parts), calibrated=False)
    trees = trained.challenger_
    with pytest.raises(ValueError, match="explains log-odds alone"):
        trees.explain(some(parts), method="tree", scale="probability")
    with pytest.raises(ValueError, match="leave background out"):
        trees.explain(some(parts), method="tree", background=parts.train)


def test_a_model_that_answers_the_same_row_in_two_ways_is_an_error(
    trained: MultiTaskClassifier, parts: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = shapley.shapley_values

    def careless(*arguments: Any, **options: Any) -> Estimate:
        found = original(*arguments, **options)
        return replace(found, outputs=found.outputs + 1e-3)

    monkeypatch.setattr("riskmtl.explain.attribution.shapley_values", careless)
    with pytest.raises(ArithmeticError, match=r"miss the answer by up to 0\.001"):
        trained.explain(some(parts, 1), background=parts.train.head(3))


# ---- the background ------------------------------------------------------------------------------


def test_the_model_keeps_a_background_that_scores_as_its_rows_do(
    trained: MultiTaskClassifier, parts: Split
) -> None:
    model = trained.model_
    rows = model.encode(parts.train)
    assert model.background.shape == (256, rows.shape[1])
    assert trained.challenger_.model_.background is model.background
    kept, whole = model.margins(model.background), model.margins(rows)
    np.testing.assert_allclose(kept.mean(), whole.mean(), atol=0.02 * whole.std())
    seen = {row.tobytes() for row in rows}
    assert all(row.tobytes() in seen for row in model.background)


def test_few_rows_are_kept_whole(trained: MultiTaskClassifier) -> None:
    few = trained.model_.background[:7]
    assert np.array_equal(representative_rows(trained.model_, few), few, equal_nan=True)


def test_the_background_and_its_hash_survive_the_disk(
    trained: MultiTaskClassifier, model_folder: Path, parts: Split
) -> None:
    loaded = MultiTaskClassifier.load(model_folder)
    own, other = (model.explain(some(parts, 1)) for model in (trained, loaded))
    np.testing.assert_array_equal(own.values, other.values)
    assert own.background == other.background == background_hash(trained.model_.background)
    assert re.fullmatch("[0-9a-f]{16}", own.background)
    given_rows = trained.explain(some(parts, 1), background=parts.train.head(5))
    assert given_rows.background != own.background


def test_a_background_of_other_columns_is_refused(
    trained: MultiTaskClassifier, tmp_path: Path
) -> None:
    narrow = replace(trained.model_, background=trained.model_.background[:, :5])
    MultiTaskClassifier._of(narrow).save(tmp_path / "narrow")
    with pytest.raises(ArtefactError, match="background and encoder have other columns"):
        load_model(tmp_path / "narrow")


def test_without_a_background_one_must_be_given(
    trained: MultiTaskClassifier, parts: Split, tmp_path: Path
) -> None:
    bare: RiskModel = replace(trained.model_, background=None)
    model = MultiTaskClassifier._of(bare)
    model.save(tmp_path / "bare")
    with pytest.raises(ValueError, match="keeps no background"):
        MultiTaskClassifier.load(tmp_path / "bare").explain(some(parts, 1))


# ---- the forms it takes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explanation(trained: MultiTaskClassifier, parts: Split) -> Explanation:
    return trained.explain(some(parts, 6), background=parts.train.head(16))


def test_a_frame_has_a_line_per_row_head_and_feature(explanation: Explanation) -> None:
    frame = explanation.to_frame()
    rows, features, heads = explanation.values.shape
    assert frame.height == rows * features * heads == frame.n_unique(["row", "head", "feature"])
    line = frame.filter(row=2, head="fraud", feature="txn_night_share").row(0, named=True)
    place = (2, explanation.features.index("txn_night_share"), explanation.heads.index("fraud"))
    assert (line["value"], line["error"]) == (explanation.values[place], explanation.errors[place])


def test_shap_draws_it(explanation: Explanation) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        # shap 0.51 and matplotlib 3.11 warn of each other.
        warnings.simplefilter("ignore")
        import shap

        for head in explanation.heads:
            drawn = explanation.to_shap(head)
            position = explanation.heads.index(head)
            np.testing.assert_array_equal(drawn.values, explanation.values[:, :, position])
            shap.plots.bar(drawn, show=False)
            shap.plots.beeswarm(drawn, show=False)
            shap.plots.waterfall(drawn[0], show=False)
            shap.plots.scatter(drawn[:, "txn_night_share"], color=drawn, show=False)
            matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="unknown head 'frod'"):
        explanation.to_shap("frod")


def test_it_agrees_with_shap_in_the_same_game(cards: pl.DataFrame) -> None:
    X, y = cards.select("amount", "age", "country"), cards.select(fraud="is_fraud")
    model = LightGBMBaseline(trials=1, n_estimators=30, random_state=0).fit(X, y).model_
    encoded = model.encode(X)
    found = explain_rows(model, X[:4], encoded[:40], budget=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap

        explainer = shap.ExactExplainer(lambda rows: model.margins(rows)[:, 0], encoded[:40])
        exact = explainer(encoded[:4]).values
    np.testing.assert_allclose(found.values[:, :, 0], exact, atol=1e-2)
    assert (np.abs(found.values[:, :, 0] - exact) <= 4 * found.errors[:, :, 0] + 1e-9).all()


def test_probability_and_log_odds_belong_together(explanation: Explanation) -> None:
    total = explanation.base + explanation.values.sum(1)
    np.testing.assert_allclose(sigmoid(total), sigmoid(explanation.outputs), atol=1e-9)
    assert len(explanation) == 6
