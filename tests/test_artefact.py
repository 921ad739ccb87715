"""A model on disk: it comes back as it was, and nothing else is taken for one."""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from riskmtl import (
    DataSchema,
    LightGBMBaseline,
    LogisticBaseline,
    MultiTaskClassifier,
    RiskModel,
)
from riskmtl.artefact import ArtefactError, load_model, save_model
from riskmtl.networks import TRUNKS
from riskmtl.schema import Split

NETWORKS = sorted(TRUNKS)
ESTIMATORS = [*NETWORKS, "lightgbm", "logistic"]


def estimator(kind: str, tiny: dict[str, Any], **parameters: Any) -> Any:
    if kind == "lightgbm":
        return LightGBMBaseline(trials=1, n_estimators=10, n_jobs=1, random_state=0, **parameters)
    if kind == "logistic":
        return LogisticBaseline(strengths=(0.1,), random_state=0, **parameters)
    settings = {**tiny, "epochs": 1, "challenger": None, "shared_units": [8], **parameters}
    return MultiTaskClassifier(kind, **settings)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and seal it anew as somebody with bad intent would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    seal(folder)


def seal(folder: Path) -> None:
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_loaded_model_gives_the_same_probabilities(
    cards: pl.DataFrame,
    cards_schema: DataSchema,
    tiny: dict[str, Any],
    tmp_path: Path,
    kind: str,
) -> None:
    fitted = estimator(kind, tiny, schema=cards_schema).fit(cards)
    fitted.save(tmp_path / "model")
    loaded = type(fitted).load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(cards), fitted.predict_proba(cards))
    assert np.array_equal(loaded.decision_function(cards), fitted.decision_function(cards))
    assert loaded.predict(cards).tolist() == fitted.predict(cards).tolist()
    assert loaded.tasks_ == ["default", "fraud"]
    assert [classes.tolist() for classes in loaded.classes_] == [[0.0, 1.0], [0.0, 1.0]]
    assert loaded.schema == cards_schema
    assert loaded.feature_names_in_.tolist() == ["amount", "age", "country", "online"]
    model = RiskModel.load(tmp_path / "model")
    assert model.predict_frame(cards).equals(fitted.predict_frame(cards))


@pytest.mark.parametrize("kind", ["ple", "lightgbm", "logistic"])
def test_a_model_of_one_column_of_labels_stays_one(
    cards: pl.DataFrame, tiny: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    x, y = cards.select("amount", "country"), cards["bad"]
    fitted = estimator(kind, tiny).fit(x, y)
    fitted.save(tmp_path / "model")
    loaded = type(fitted).load(tmp_path / "model")
    assert loaded.predict_proba(x).shape == (400, 2)
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))
    assert loaded.classes_.tolist() == ["late", "paid"]
    assert loaded.predict(x).shape == (400,)
    assert set(loaded.predict(x)) <= {"late", "paid"}


@pytest.mark.parametrize("kind", ["ple", "lightgbm", "logistic"])
def test_a_model_of_an_array_takes_arrays_when_loaded(
    cards: pl.DataFrame, tiny: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    x, y = cards.select("amount", "weight").to_numpy(), cards["is_fraud"].to_numpy()
    fitted = estimator(kind, tiny).fit(x, y)
    fitted.save(tmp_path / "model")
    loaded = type(fitted).load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))


def test_a_regression_head_comes_back(
    cards: pl.DataFrame, tiny: dict[str, Any], tmp_path: Path
) -> None:
    x, y = cards.select("amount", "country"), cards.select("is_fraud", "age")
    fitted = estimator("ple", tiny, regression_tasks=["age"]).fit(x, y)
    fitted.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    assert loaded.predict_frame(x).equals(fitted.predict_frame(x))
    assert loaded.predict_frame(x)["age"].mean() == pytest.approx(cards["age"].mean(), abs=10)


def test_parameters_come_back(
    trained: MultiTaskClassifier, model_folder: Path, tiny: dict[str, Any], schema: DataSchema
) -> None:
    loaded = MultiTaskClassifier.load(model_folder)
    parameters = loaded.get_params(deep=False)
    assert parameters["schema"] == schema
    for name, value in tiny.items():
        assert parameters[name] == value, name
    for name, value in trained.get_params(deep=False).items():
        restored = parameters[name]
        assert (list(restored) if isinstance(value, tuple) else restored) == (
            list(value) if isinstance(value, tuple) else value
        ), name


def test_a_loaded_model_can_be_trained_again(
    cards: pl.DataFrame, cards_schema: DataSchema, tiny: dict[str, Any], tmp_path: Path
) -> None:
    fitted = estimator("mmoe", tiny, schema=cards_schema).fit(cards)
    fitted.save(tmp_path / "model")
    again = MultiTaskClassifier.load(tmp_path / "model").fit(cards)
    assert np.abs(again.predict_proba(cards) - fitted.predict_proba(cards)).max() < 1e-6


def test_the_challenger_comes_back_when_asked_for(
    trained: MultiTaskClassifier, model_folder: Path, parts: Split
) -> None:
    assert RiskModel.load(model_folder).challenger is None
    challenger = RiskModel.load(model_folder, with_challenger=True).challenger
    assert challenger is not None
    assert challenger.scorer.name == "lightgbm"
    expected = trained.challenger_.predict_frame(parts.test)
    assert challenger.predict_frame(parts.test).equals(expected)


def test_an_estimator_comes_back_with_its_challenger(
    trained: MultiTaskClassifier, model_folder: Path, parts: Split
) -> None:
    """``challenger_`` is documented as there wherever ``challenger`` was set."""
    loaded = MultiTaskClassifier.load(model_folder)
    expected = trained.challenger_.predict_proba(parts.test)
    assert np.array_equal(loaded.challenger_.predict_proba(parts.test), expected)


def test_what_training_recorded_comes_back(
    trained: MultiTaskClassifier, model_folder: Path, tmp_path: Path
) -> None:
    loaded = MultiTaskClassifier.load(model_folder)
    assert loaded.history_.equals(trained.history_)
    assert loaded.history_.schema == trained.history_.schema
    assert loaded.best_epoch_ == trained.best_epoch_
    loaded.with_members(1).save(tmp_path / "fewer")
    assert RiskModel.load(tmp_path / "fewer").history.equals(trained.history_)


def test_a_model_from_before_training_was_recorded_loads(
    trained: MultiTaskClassifier, model_copy: Path, parts: Split
) -> None:
    (model_copy / "history.json").unlink()
    edit(model_copy, lambda manifest: manifest["files"].pop("history.json"))
    loaded = MultiTaskClassifier.load(model_copy)
    assert loaded.model_.history is None
    assert not hasattr(loaded, "history_")
    assert np.array_equal(loaded.predict_proba(parts.test), trained.predict_proba(parts.test))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '[{"epoch": 0, "task": "fraud"}]',
        '[{"epoch": 0, "task": "another", "kept": true}]',
        '[{"epoch": 0, "task": "fraud", "kept": true, "train_loss": "low"}]',
        f'[{{"epoch": 1{"0" * 400}, "task": "fraud", "kept": true}}]',
        "[" * 100_000,
    ],
    ids=lambda text: text[:70],
)
def test_a_history_that_is_none_is_refused(model_copy: Path, text: str) -> None:
    path = model_copy / "history.json"
    path.write_text(text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(model_copy, lambda manifest: manifest["files"].update({"history.json": digest}))
    with pytest.raises(ArtefactError, match=str(model_copy)):
        RiskModel.load(model_copy)


def test_arrays_as_parameters_can_be_saved(
    cards: pl.DataFrame, tiny: dict[str, Any], tmp_path: Path
) -> None:
    x, y = cards.select("amount", "age"), cards.select("is_fraud")
    fitted = estimator("ple", tiny, categorical_features=np.array([False, True])).fit(x, y)
    fitted.save(tmp_path / "model")
    loaded = MultiTaskClassifier.load(tmp_path / "model")
    assert list(loaded.categorical_features) == [False, True]
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))


# ---- what the folder holds ---------------------------------------------------------------------


def test_golden_rows_are_simulated(model_folder: Path, parts: Split, schema: DataSchema) -> None:
    manifest = json.loads((model_folder / "manifest.json").read_text())
    golden = pl.DataFrame(manifest["golden"]["rows"], infer_schema_length=None)
    inputs = schema.inputs(parts.train)
    assert golden.columns == inputs.columns
    assert golden.height > 0
    assert np.shape(manifest["golden"]["outputs"]) == (golden.height, 3)
    model = RiskModel.load(model_folder)
    drawn = model.encoder.simulate(golden.height, seed=0)
    users = np.nan_to_num(model.encoder.transform(inputs), nan=-1)
    simulated = np.nan_to_num(model.encoder.transform(golden), nan=-1)
    assert np.array_equal(simulated, np.nan_to_num(model.encoder.transform(drawn), nan=-1))
    # Columns are drawn apart from each other, so no golden row resembles a user's.
    agreement = (simulated[:, None, :] == users[None, :, :]).mean(axis=2)
    assert agreement.max() < 0.7


def test_the_folder_holds_no_keys_and_no_training_rows(
    model_folder: Path, portfolio_file: Path
) -> None:
    accounts = pl.read_parquet(portfolio_file)["account_id"].unique().to_list()
    text = b"".join(content(model_folder).values())
    assert not [account for account in accounts[:500] if str(account).encode() in text]


def test_the_folder_holds_no_pickle(model_folder: Path) -> None:
    files = content(model_folder)
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".sha256", ".txt"}
    for name, data in files.items():
        # A pickle begins with its protocol, a torch archive as a zip file.
        assert not data.startswith((b"\x80", b"PK")), name
        if not name.endswith(".safetensors"):
            data.decode("utf-8")


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_other_users_can_read_the_folder(model_folder: Path) -> None:
    """Whoever trained it, a scoring job under another account reads it."""
    assert stat.S_IMODE(model_folder.stat().st_mode) & 0o055 == 0o055
    hidden = [
        path.name
        for path in model_folder.rglob("*")
        if path.is_file() and not path.stat().st_mode & stat.S_IROTH
    ]
    assert hidden == []


def test_lineage_says_where_the_model_comes_from(
    model_folder: Path, parts: Split, schema: DataSchema
) -> None:
    lineage = RiskModel.load(model_folder).lineage
    assert lineage["rows"] == parts.train.height
    assert lineage["schema_sha256"] == schema.hash
    assert lineage["seed"] == 0
    assert lineage["tasks"]["fraud"] == {
        "observed": parts.train["fraud"].count(),
        "events": parts.train["fraud"].sum(),
    }
    assert len(lineage["model_id"]) == 64


# ---- writing -----------------------------------------------------------------------------------


@pytest.fixture
def small(cards: pl.DataFrame, cards_schema: DataSchema) -> LogisticBaseline:
    return LogisticBaseline(schema=cards_schema, strengths=(0.1,), random_state=0).fit(cards)


def test_a_model_replaces_an_older_one(
    small: LogisticBaseline, cards: pl.DataFrame, model_copy: Path
) -> None:
    small.save(model_copy)
    files = {"manifest.json", "manifest.sha256", "coefficients.safetensors"}
    files |= {"background.safetensors", "reference.json"}
    assert set(content(model_copy)) == files
    assert [path.name for path in model_copy.parent.iterdir()] == ["model"]
    loaded = LogisticBaseline.load(model_copy)
    assert np.array_equal(loaded.predict_proba(cards), small.predict_proba(cards))


def test_an_empty_folder_and_missing_parents_will_do(
    small: LogisticBaseline, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    small.save(tmp_path / "empty")
    small.save(str(tmp_path / "a" / "b" / "model"))
    assert RiskModel.load(tmp_path / "empty").tasks == ["default", "fraud"]
    assert RiskModel.load(tmp_path / "a" / "b" / "model").tasks == ["default", "fraud"]


def test_a_folder_with_other_files_is_refused(small: LogisticBaseline, tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(ArtefactError, match="letters: holds other files"):
        small.save(folder)
    with pytest.raises(ArtefactError, match=r"letter\.txt: is a file"):
        small.save(folder / "letter.txt")
    assert content(tmp_path) == {"letters/letter.txt": b"dear"}


def test_a_folder_with_a_manifest_of_something_else_is_refused(
    small: LogisticBaseline, tmp_path: Path
) -> None:
    """Other programs write a manifest.json too; their files must survive."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "an extension", "version": 3}')
    (folder / "icon.svg").write_text("<svg/>")
    before = content(folder)
    with pytest.raises(ArtefactError, match="extension"):
        small.save(folder)
    assert content(folder) == before


def test_nothing_is_left_of_a_model_that_cannot_be_written(
    small: LogisticBaseline, model_copy: Path
) -> None:
    before = content(model_copy.parent)
    with pytest.raises((TypeError, ValueError)):
        save_model(small.model_, model_copy, estimator={"class": object()})
    assert content(model_copy.parent) == before
    assert [path.name for path in model_copy.parent.iterdir()] == ["model"]
    with pytest.raises((TypeError, ValueError)):
        save_model(small.model_, model_copy.with_name("new"), estimator={"class": object()})
    assert [path.name for path in model_copy.parent.iterdir()] == ["model"]


def test_the_older_model_survives_if_the_new_one_cannot_take_its_place(
    small: LogisticBaseline, model_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(model_copy)
    rename, failures = os.rename, []

    def fail_once(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == model_copy and not failures:
            failures.append(target)
            raise OSError("the disk is gone")
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", fail_once)
    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="the disk is gone"):
        small.save(model_copy)
    assert content(model_copy) == before
    assert [path.name for path in model_copy.parent.iterdir()] == ["model"]


# ---- what is no sound model --------------------------------------------------------------------

FILES = [
    "weights.safetensors",
    "background.safetensors",
    "reference.json",
    "history.json",
    "challenger/background.safetensors",
    "challenger/manifest.json",
    "challenger/manifest.sha256",
    "challenger/head_0.lgb.txt",
    "challenger/head_1.lgb.txt",
    "challenger/head_2.lgb.txt",
]


def test_the_listed_files_are_those_that_are_tampered_with(model_folder: Path) -> None:
    assert set(content(model_folder)) == {*FILES, "manifest.json", "manifest.sha256"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_changed_byte_is_noticed(model_copy: Path, name: str, place: float) -> None:
    path = model_copy / name
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if place >= 0 else -1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{path.name}: changed"):
        RiskModel.load(model_copy)


@pytest.mark.parametrize(
    "place",
    [
        r'"format": \d',
        r'"scorer": "\w',
        r'"embedding_dim": \d',
        r'"vocabulary": \[\s*"\w',
        r'"low": -?\d',
        r'"task": "\w',
        r'"classes": \[\s*\d',
        r'"shift": -?\d',
        r'"slope": -?\d',
        r'"intercept": -?\d',
        r'"missing_values": \[\s*-?\d',
        r'"minimum": -?\d',
        r'"positive": \[\s*\d',
        r'"created": "\d',
        r'"data_sha256": "\w',
        r'"class": "\w',
        r'"outputs": \[\s*\[\s*-?\d',
        r'"weights.safetensors": "\w',
    ],
)
def test_a_changed_byte_of_the_manifest_is_noticed(model_copy: Path, place: str) -> None:
    path = model_copy / "manifest.json"
    data = bytearray(path.read_bytes())
    found = re.search(place.encode(), data)
    assert found is not None
    # A digit stays a digit and a letter mostly a letter, so the manifest can still be read.
    data[found.end() - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=str(model_copy)):
        RiskModel.load(model_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    with pytest.raises(ArtefactError, match=f"{Path(name).name}: listed in the manifest, but"):
        RiskModel.load(model_copy)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "challenger/more.txt", "new/weights.pt"])
def test_an_additional_file_is_noticed(model_copy: Path, name: str) -> None:
    (model_copy / name).parent.mkdir(exist_ok=True)
    (model_copy / name).write_text("")
    with pytest.raises(ArtefactError, match=f"{Path(name).name}: not listed"):
        RiskModel.load(model_copy)


def test_a_folder_linked_into_the_model_is_noticed(
    small: LogisticBaseline, cards: pl.DataFrame, tmp_path: Path
) -> None:
    small.save(tmp_path / "model")
    small.save(tmp_path / "other")
    (tmp_path / "model" / "challenger").symlink_to(tmp_path / "other", target_is_directory=True)
    with pytest.raises(ArtefactError, match="challenger"):
        RiskModel.load(tmp_path / "model", with_challenger=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "damaged"),
        ("not JSON", "damaged"),
        ("\x00", "damaged"),
        ("[1, 2]", "format"),
        ("null", "format"),
        ("{}", "format"),
        ('{"format": 1}', "format"),
    ],
)
def test_a_manifest_that_is_none(model_copy: Path, text: str, reason: str) -> None:
    (model_copy / "manifest.json").write_text(text)
    seal(model_copy)
    with pytest.raises(ArtefactError, match=rf"manifest\.json: .*{reason}"):
        RiskModel.load(model_copy)


def test_a_changed_seal_is_noticed(model_copy: Path) -> None:
    path = model_copy / "manifest.sha256"
    path.write_text(path.read_text().replace("manifest", "Manifest"))
    with pytest.raises(ArtefactError, match=r"manifest\.json: changed"):
        RiskModel.load(model_copy)


def test_a_manifest_that_is_not_text(model_copy: Path) -> None:
    (model_copy / "manifest.json").write_bytes(b"\xff\xfe\x00\x01")
    seal(model_copy)
    with pytest.raises(ArtefactError, match=r"manifest\.json: damaged"):
        RiskModel.load(model_copy)


@pytest.mark.parametrize("place", ["missing", ""])
def test_a_folder_that_is_no_model(tmp_path: Path, place: str) -> None:
    with pytest.raises(ArtefactError, match="not a model"):
        RiskModel.load(tmp_path / place)


def test_an_unknown_scorer_is_refused_with_the_nearest_name(model_copy: Path) -> None:
    edit(model_copy, lambda manifest: manifest.update(scorer="netwrok"))
    with pytest.raises(ArtefactError, match="unknown scorer 'netwrok': did you mean 'network'"):
        RiskModel.load(model_copy)


@pytest.mark.parametrize("scorer", ["os.system", "riskmtl.scorers.NetworkScorer", "", None, [], {}])
def test_no_name_leads_to_code_outside_the_registry(model_copy: Path, scorer: Any) -> None:
    edit(model_copy, lambda manifest: manifest.update(scorer=scorer))
    with pytest.raises(ArtefactError, match="scorer"):
        RiskModel.load(model_copy)


@pytest.mark.parametrize("scorer", ["lightgbm", "logistic"])
def test_the_wrong_scorer_is_refused(model_copy: Path, scorer: str) -> None:
    edit(model_copy, lambda manifest: manifest.update(scorer=scorer))
    with pytest.raises(ArtefactError, match=str(model_copy)):
        RiskModel.load(model_copy)


def test_an_unknown_key_is_refused_with_the_nearest_name(model_copy: Path) -> None:
    edit(model_copy, lambda manifest: manifest.update(setings={}))
    with pytest.raises(ArtefactError, match="unknown key 'setings': did you mean 'settings'"):
        RiskModel.load(model_copy)


KEYS = [
    "format",
    "scorer",
    "settings",
    "encoder",
    "heads",
    "schema",
    "lineage",
    "estimator",
    "golden",
    "files",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused(model_copy: Path, key: str) -> None:
    edit(model_copy, lambda manifest: manifest.pop(key))
    with pytest.raises(ArtefactError, match=key):
        RiskModel.load(model_copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}: {value}")
        for key in KEYS
        for value in (None, [], {}, 7, "text", [{}], {"a": 1})
        if (key, value) != ("schema", None)  # a model may have none
    ],
)
def test_a_key_with_a_strange_value_is_refused(model_copy: Path, key: str, value: Any) -> None:
    edit(model_copy, lambda manifest: manifest.update({key: value}))
    with pytest.raises(ArtefactError, match=str(model_copy)):
        MultiTaskClassifier.load(model_copy)


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "network": lambda m: m["settings"]["shape"].update(network="transformer"),
    "unknown shape": lambda m: m["settings"]["shape"].update(secret=1),
    "embedding_dim": lambda m: m["settings"]["shape"].update(embedding_dim=5),
    "more members": lambda m: m["settings"]["shape"].update(
        members=m["settings"]["shape"]["members"] + 1
    ),
    "fewer heads in settings": lambda m: m["settings"]["regression"].pop(),
    "more heads in settings": lambda m: m["settings"]["regression"].append(False),
    "no kinds of heads in settings": lambda m: m["settings"].pop("regression"),
    "no cardinalities": lambda m: m["settings"].update(cardinalities=[]),
    "text as cardinalities": lambda m: m["settings"].update(cardinalities="abc"),
    "fewer heads": lambda m: m["heads"].pop(),
    "more heads": lambda m: m["heads"].append(dict(m["heads"][0], task="more")),
    "kind of head": lambda m: m["heads"][0].update(kind="ternary"),
    "unknown in head": lambda m: m["heads"][0].update(secret=1),
    "shift": lambda m: m["heads"][0].update(shift="none"),
    "no blend": lambda m: m["heads"][0].pop("blend"),
    "blend below 0": lambda m: m["heads"][0].update(blend=-0.01),
    "blend above 1": lambda m: m["heads"][0].update(blend=1.01),
    "blend not a number": lambda m: m["heads"][0].update(blend=float("nan")),
    "text as blend": lambda m: m["heads"][0].update(blend="half"),
    "slope": lambda m: m["heads"][0]["calibrator"].update(slope=None),
    "fewer columns": lambda m: m["encoder"]["columns"].pop(),
    "columns in another order": lambda m: m["encoder"]["columns"].reverse(),
    "longer vocabulary": lambda m: next(
        c["vocabulary"].extend(map(str, range(90)))
        for c in m["encoder"]["columns"]
        if c["vocabulary"]
    ),
    "fewer schema inputs": lambda m: m["schema"]["columns"].pop(5),
    "type in schema": lambda m: m["schema"]["columns"][4].update(type="text"),
    "unknown in schema": lambda m: m["schema"].update(secret=1),
    "fewer golden scores": lambda m: m["golden"]["outputs"].pop(),
    "no golden scores": lambda m: m["golden"].update(outputs=[]),
    "no golden rows": lambda m: m["golden"]["rows"].clear(),
    "file outside": lambda m: m["files"].update({"../model/manifest.json": "0" * 64}),
    "no hash": lambda m: m["files"].update({"weights.safetensors": None}),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_manifest_that_contradicts_itself_is_refused(
    model_copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(model_copy, change)
    with pytest.raises(ArtefactError, match=str(model_copy)):
        RiskModel.load(model_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda made_by: made_by.update(parameters={"epoch": 3}),
        lambda made_by: made_by.pop("parameters"),
        lambda made_by: made_by.pop("is_single"),
        lambda made_by: made_by.pop("class"),
        lambda made_by: made_by.clear(),
    ],
    ids=["unknown parameter", "no parameters", "no is_single", "no class", "nothing"],
)
def test_a_strange_estimator_is_refused(
    model_copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(model_copy, lambda manifest: change(manifest["estimator"]))
    with pytest.raises(ArtefactError, match=str(model_copy)):
        MultiTaskClassifier.load(model_copy)


def test_a_model_of_another_class_is_refused(
    model_folder: Path, small: LogisticBaseline, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="a MultiTaskClassifier, not a LightGBMBaseline"):
        LightGBMBaseline.load(model_folder)
    small.save(tmp_path / "model")
    with pytest.raises(ArtefactError, match="a LogisticBaseline, not a MultiTaskClassifier"):
        MultiTaskClassifier.load(tmp_path / "model")


def test_both_ways_to_load_check_the_same(model_copy: Path) -> None:
    (model_copy / "weights.safetensors").write_bytes(b"")
    for load in (load_model, RiskModel.load, MultiTaskClassifier.load):
        with pytest.raises(ArtefactError, match="changed"):
            load(model_copy)


# ---- imports -----------------------------------------------------------------------------------


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_scoring_imports_nothing_that_a_network_does_not_need(
    model_folder: Path, portfolio_file: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from riskmtl import RiskModel\n"
        "from riskmtl.scoring.local import score_files\n"
        "report = score_files(RiskModel.load(sys.argv[1]), *sys.argv[2:])\n"
        "print(report.scored)\n"
        "heavy = ('pytorch_lightning', 'lightning', 'lightgbm', 'shap', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    out = python(code, model_folder, portfolio_file, tmp_path / "scores")
    assert out.splitlines() == ["6000", "[]"]


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import riskmtl\n"
        "print(time.perf_counter() - start)\n"
        "print([name for name in ('torch', 'polars', 'sklearn', 'numpy') if name in sys.modules])\n"
    )
    runs = [python(code).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert runs[0][1] == "[]"
