"""How training looked, in counts: bins, drift, and their way to the disk."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from riskmtl import MultiTaskClassifier, RiskModel
from riskmtl.artefact import ArtefactError, load_model, save_model
from riskmtl.encoding import FIRST_KNOWN, MISSING, UNSEEN
from riskmtl.reference import Bins, Reference, added
from riskmtl.simulate import Portfolio
from riskmtl.stability import stability_of_counts
from riskmtl.validation.drift import stability_index

NUMBERS = st.floats(-100, 100, width=32) | st.just(float("nan")) | st.sampled_from([0.0, 1.0])


@given(
    arrays(np.float32, st.integers(1, 60), elements=NUMBERS),
    arrays(np.float32, st.integers(0, 60), elements=NUMBERS),
)
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_a_search(training: np.ndarray, new: np.ndarray) -> None:
    bins = Bins.of_numbers("x", training)
    known = new[~np.isnan(new)]
    place = np.searchsorted(np.array(bins.edges, dtype=np.float32), known, side="left")
    expected = [*np.bincount(place, minlength=len(bins.edges) + 1), np.isnan(new).sum()]
    assert bins.count(new).tolist() == expected
    assert sum(bins.counts) == len(training)


def test_a_number_with_few_values_has_a_bin_for_each() -> None:
    values = np.repeat([0.0, 1.0, 5.0], [700, 200, 100]).astype(np.float32)
    assert Bins.of_numbers("x", values).counts == (700, 200, 100, 0)


def test_rare_categories_share_a_bin_beside_unseen_and_missing() -> None:
    codes = np.repeat([UNSEEN, MISSING, FIRST_KNOWN, FIRST_KNOWN + 1, FIRST_KNOWN + 2],
                      [5, 10, 900, 80, 5]).astype(np.float32)  # fmt: skip
    bins = Bins.of_codes("c", codes)
    assert bins.codes == (FIRST_KNOWN, FIRST_KNOWN + 1)
    assert bins.counts == (900, 80, 5, 5, 10)
    new = np.array([FIRST_KNOWN + 1, FIRST_KNOWN + 7, MISSING], dtype=np.float32)
    assert bins.count(new).tolist() == [0, 1, 1, 0, 1]
    assert Bins.of_codes("c", codes[:0]).count(new).tolist() == [2, 0, 1]


def test_drift_is_the_index_of_the_rows_themselves() -> None:
    rng = np.random.default_rng(0)
    training, new = (
        np.stack([rng.normal(m, 1, 5000), rng.choice([2, 3], 5000, p=[q, 1 - q])], 1).astype("f4")
        for m, q in ((0, 0.5), (0.3, 0.4))
    )
    training[:50, 0], new[:500, 0] = np.nan, np.nan
    new[:100, 1] = UNSEEN
    reference = Reference(
        (Bins.of_numbers("x", training[:, 0]), Bins.of_codes("c", training[:, 1])),
        (Bins.of_numbers("fraud", training[:, 0]),),
    )
    found = reference.drift(reference.count(new, new[:, :1].astype(np.float64)))
    assert found["name"].to_list() == ["x", "c", "fraud"]
    x, c, _ = found.to_dicts()
    expected = stability_index(training[:, 0], new[:, 0])
    assert x["psi"] == pytest.approx(expected.psi, rel=0.02)
    assert x["p_value"] < 1e-6
    assert (x["missing"], x["missing_reference"], x["unseen"]) == (0.1, 0.01, None)
    assert (c["unseen"], c["unseen_reference"]) == (0.02, 0.0)
    same = reference.drift(reference.count(training, training[:, :1].astype(np.float64)))
    assert same["psi"].to_list() == [0.0, 0.0, 0.0]


def test_counts_add_up_over_batches() -> None:
    rng = np.random.default_rng(1)
    rows, margins = rng.normal(size=(300, 2)).astype(np.float32), rng.normal(size=(300, 1))
    reference = Reference(
        tuple(Bins.of_numbers(name, rows[:, i]) for i, name in enumerate("ab")),
        (Bins.of_numbers("fraud", margins[:, 0].astype(np.float32)),),
    )
    total = None
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        total = added(total, reference.count(rows[part], margins[part]))
    assert total == reference.count(rows, margins)


def test_index_of_counts_by_hand() -> None:
    found = stability_of_counts(np.array([60, 40, 0]), np.array([40, 60, 0]))
    assert found.psi == pytest.approx(2 * 0.2 * np.log(1.5))
    assert found.bins == 2
    half = stability_of_counts(np.array([10, 0]), np.array([5, 5]))
    p, q = np.array([10.5, 0.5]) / 11, np.array([5.5, 5.5]) / 11
    assert half.psi == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert stability_of_counts(np.array([0, 0]), np.array([3, 4])).psi == 0


def test_a_model_keeps_how_its_training_looked(
    trained: MultiTaskClassifier, portfolio: Portfolio, model_folder: Path
) -> None:
    reference = trained.model_.reference
    columns = [column.name for column in trained.model_.encoder.columns_]
    assert [bins.name for bins in reference.columns] == columns
    assert [bins.name for bins in reference.scores] == trained.tasks_
    totals = {sum(bins.counts) for bins in reference.columns}
    assert totals == {trained.model_.lineage["rows"]}
    assert load_model(model_folder).reference == reference
    encoded = trained.model_.encode(portfolio.frame)
    counts = reference.count(encoded, trained.model_.margins(encoded))
    drift = reference.drift(json.loads(json.dumps(counts)))
    # The portfolio is what it was trained on, and its last months.
    assert drift.filter(kind="score")["psi"].max() < 0.05


def test_a_reference_of_other_columns_is_refused(
    trained: MultiTaskClassifier, tmp_path: Path
) -> None:
    model = trained.model_
    other = RiskModel(model.encoder, model.scorer, model.heads, model.schema, dict(model.lineage),
                      model.made_by, background=model.background)  # fmt: skip
    other.reference = Reference(model.reference.columns[1:], model.reference.scores)
    save_model(other, tmp_path / "model")
    with pytest.raises(ArtefactError, match="reference and encoder"):
        load_model(tmp_path / "model")


def test_scoring_writes_drift_and_counts(
    model_folder: Path, portfolio: Portfolio, tmp_path: Path
) -> None:
    from riskmtl.scoring.local import score_files

    model = RiskModel.load(model_folder)
    frame = portfolio.frame.with_columns(dev_model=pl.lit("never seen"))
    frame.write_parquet(tmp_path / "night.parquet")
    score_files(model, tmp_path / "night.parquet", tmp_path / "out", part_rows=1000)
    manifest = json.loads((tmp_path / "out" / "_MANIFEST.json").read_text())
    drift = {line["name"]: line for line in manifest["drift"]}
    assert drift["dev_model"]["unseen"] == 1.0
    assert drift["dev_model"]["psi"] > 1
    assert drift["acc_income"]["psi"] < 0.05
    encoded = model.encode(frame)
    assert manifest["counts"] == model.reference.count(encoded, model.margins(encoded))
    for i, task in enumerate(model.tasks):
        assert manifest["means"][task] == pytest.approx(model.probabilities(encoded)[:, i].mean())
