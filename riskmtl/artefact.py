"""
A model on disk: a folder with ``manifest.json``, its seal, and the scorer's files.

The manifest lists every file with its SHA-256, and the seal holds its own. It names classes from
a closed registry, and holds golden rows: simulated inputs with the scores they had when the model
was written. Loading checks all of it before anything is used, and there is no second, looser way
to load.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from riskmtl.encoding import FeatureEncoder
from riskmtl.errors import unknown_name
from riskmtl.history import read_history, write_history
from riskmtl.model import Head, RiskModel
from riskmtl.reference import Reference
from riskmtl.schema import DataSchema
from riskmtl.scorers import SCORERS

FORMAT = 3
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
CHALLENGER = "challenger"
BACKGROUND = "background.safetensors"
REFERENCE = "reference.json"
HISTORY = "history.json"

_KEYS = (
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
)
_KINDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "number": pl.Float64,
    "integer": pl.Int64,
    "year": pl.Int64,
    "string": pl.String,
    "boolean": pl.Boolean,
    "date": pl.Date,
    "datetime": pl.Datetime("us"),
}
_GOLDEN_ROWS = 16
# Other machines add up in another order; a wrong weight moves far more than this.
_GOLDEN_TOLERANCE = 1e-4


class ArtefactError(ValueError):
    """A folder that is not a sound model; the message names the folder or file."""


def save_model(model: RiskModel, folder: str | Path) -> None:
    """
    Write a model to a folder, whole or not at all.

    Parameters
    ----------
    model : RiskModel
    folder : str or Path
        Created; a model that it holds is replaced, any other folder with files is refused.

    Raises
    ------
    ArtefactError
        If the folder holds something else than a model.
    """
    folder = Path(folder)
    require_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    older = scratch.with_name(f"{scratch.name}.older")
    try:
        _write(model, scratch)
        scratch.chmod(0o755)
        if folder.exists():
            folder.rename(older)
        scratch.rename(folder)
    except OSError:
        if older.exists():
            older.rename(folder)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """
    Refuse a place that no model should take.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    ArtefactError
        If it is a file, or a folder with files but without a model.
    """
    if folder.is_file():
        raise ArtefactError(f"{folder}: is a file; choose a folder for the model")
    if folder.is_dir() and any(folder.iterdir()) and not _holds_model(folder):
        raise ArtefactError(f"{folder}: holds other files; choose a new folder for the model")


def _holds_model(folder: Path) -> bool:
    try:
        _read_manifest(folder)
    except ArtefactError:
        return False
    return True


def _write(model: RiskModel, folder: Path) -> None:
    settings = model.scorer.write(folder)
    if model.challenger is not None:
        (folder / CHALLENGER).mkdir()
        _write(model.challenger, folder / CHALLENGER)
    if model.background is not None:
        save_file({"rows": model.background}, folder / BACKGROUND)
    if model.reference is not None:
        text = json.dumps(model.reference.to_dict())
        (folder / REFERENCE).write_text(text, encoding="utf-8")
    if model.history is not None:
        (folder / HISTORY).write_text(write_history(model.history), encoding="utf-8")
    rows = model.encoder.simulate(_GOLDEN_ROWS, seed=0)
    manifest = {
        "format": FORMAT,
        "scorer": model.scorer.name,
        "settings": settings,
        "encoder": model.encoder.to_dict(),
        "heads": [head.to_dict() for head in model.scored],
        "schema": None if model.schema is None else model.schema.to_dict(),
        "lineage": model.lineage,
        "estimator": model.made_by,
        "golden": {"rows": _plain_rows(rows), "outputs": _golden_outputs(model, rows).tolist()},
        "files": {name: _sha256(folder / name) for name in _files(folder)},
    }
    text = json.dumps(manifest, indent=1, allow_nan=False, default=_plain)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    # In the form that sha256sum writes and checks.
    seal = f"{_sha256(folder / MANIFEST)}  {MANIFEST}\n"
    (folder / SEAL).write_text(seal, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)


def _golden_outputs(model: RiskModel, rows: pl.DataFrame) -> NDArray[np.float64]:
    raw = model.scorer.raw(model.encoder.transform(rows))
    if raw.shape[1] != len(model.scored):
        raise ValueError(f"{raw.shape[1]} outputs for {len(model.scored)} heads")
    return model.finished(raw)


def load_model(folder: str | Path, *, with_challenger: bool = False) -> RiskModel:
    """
    Read a model from a folder after checking it.

    Parameters
    ----------
    folder : str or Path
    with_challenger : bool
        Whether to read the challenger too, if there is one; that of a blend is always read.

    Returns
    -------
    RiskModel
        ``lineage["model_id"]`` is the SHA-256 of the manifest.

    Raises
    ------
    ArtefactError
        If a file is missing, changed or not listed, if a class or key is unknown, or if the golden
        rows score differently.
    """
    folder = Path(folder)
    manifest, model_id = _read_manifest(folder)
    _check_files(folder, manifest["files"])
    scorer = manifest["scorer"]
    if not isinstance(scorer, str) or scorer not in SCORERS:
        raise ArtefactError(f"{folder}: {unknown_name('scorer', scorer, SCORERS)}")
    try:
        model = _follow(manifest, folder)
        model.lineage["model_id"] = model_id
        sound = _scores_as_before(model, manifest["golden"])
    except Exception as error:
        raise ArtefactError(f"{folder}: the manifest cannot be followed ({error})") from error
    if not sound:
        raise ArtefactError(f"{folder}: the golden rows score differently than when it was written")
    if model.is_blend and not (folder / CHALLENGER).is_dir():
        raise ArtefactError(f"{folder}: is a blend, but its {CHALLENGER} is missing")
    if (with_challenger or model.is_blend) and (folder / CHALLENGER).is_dir():
        model.challenger = load_model(folder / CHALLENGER)
        if model.is_blend:
            _require_same_rows(model, model.challenger, folder / CHALLENGER)
    return model


def _read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """Read the manifest, and the SHA-256 of its bytes, which must be the one in the seal."""
    path = folder / MANIFEST
    if not path.is_file() or not (folder / SEAL).is_file():
        raise ArtefactError(f"{folder}: not a model (it has no {MANIFEST} with {SEAL})")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if (folder / SEAL).read_bytes() != f"{digest}  {MANIFEST}\n".encode():
        raise ArtefactError(f"{path}: changed since the model was written")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(f"{path}: not a manifest of format {FORMAT}")
    for key in manifest:
        if key not in _KEYS:
            raise ArtefactError(f"{path}: {unknown_name('key', key, _KEYS)}")
    for key in _KEYS:
        if key not in manifest:
            raise ArtefactError(f"{path}: key {key!r} is missing")
    return manifest, digest


def _check_files(folder: Path, listed: Any) -> None:
    if not isinstance(listed, dict):
        raise ArtefactError(f"{folder / MANIFEST}: files must map names to hashes")
    present = _files(folder)
    for name in present:
        if name not in listed:
            raise ArtefactError(f"{folder / name}: not listed in the manifest")
    for name, digest in listed.items():
        if name not in present:
            raise ArtefactError(f"{folder / name}: listed in the manifest, but missing")
        if _sha256(folder / name) != digest:
            raise ArtefactError(f"{folder / name}: changed since the model was written")


def _follow(manifest: Mapping[str, Any], folder: Path) -> RiskModel:
    """Build a model as the manifest says; whatever does not fit raises."""
    schema = manifest["schema"]
    heads = [Head.from_dict(head) for head in manifest["heads"]]
    answering = [head for head in heads if head.answers]
    # Those that only lend come last, as the scorer has them.
    lending = [head for head in heads if not head.answers]
    if [*answering, *lending] != heads:
        raise ValueError("heads that only lend must come after those that answer")
    model = RiskModel(
        encoder=FeatureEncoder.from_dict(manifest["encoder"]),
        scorer=SCORERS[manifest["scorer"]].read(folder, manifest["settings"]),
        heads=answering,
        schema=None if schema is None else DataSchema.from_dict(schema),
        lineage=dict(manifest["lineage"]),
        made_by=dict(manifest["estimator"]),
        background=_read_background(folder),
        reference=_read_reference(folder),
        history=_read_history(folder, [head["task"] for head in manifest["heads"]]),
        lenders=lending,
    )
    if not model.tasks:
        raise ValueError("there is no binary head")
    names = [head.task for head in heads]
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError("heads must be of different tasks")
    if sum(head.kind == "binary" for head in heads) == 1 and any(head.lent for head in heads):
        raise ValueError("a head leans on others, but there is none")
    if "created" not in model.lineage:
        raise ValueError("the lineage does not say when the model was made")
    cardinalities = manifest["settings"].get("cardinalities", model.encoder.cardinalities_)
    if cardinalities != model.encoder.cardinalities_:
        raise ValueError("encoder and network have other numbers of codes")
    kinds = [head.kind == "regression" for head in heads]
    if manifest["settings"].get("regression", kinds) != kinds:
        raise ValueError("network and heads have other regressions")
    if model.background is not None and model.background.shape[1] != len(model.encoder.columns_):
        raise ValueError("background and encoder have other columns")
    if model.reference is not None:
        described = [[bins.name for bins in kind] for kind in
                     (model.reference.columns, model.reference.scores)]  # fmt: skip
        if described != [[column.name for column in model.encoder.columns_], model.tasks]:
            raise ValueError("reference and encoder have other columns, or other tasks")
    if model.schema is not None:
        inputs = [column.name for column in model.schema.input_columns]
        if inputs != [column.name for column in model.encoder.columns_]:
            raise ValueError("schema and encoder have other columns")
        _require_rules(model.schema)
    return model


def _require_rules(schema: DataSchema) -> None:
    """Refuse a schema whose rules cannot be worked out, here on a row without values."""
    row = pl.DataFrame([pl.Series(c.name, [None], _KINDS[c.type]) for c in schema.columns])
    schema.check(row, labelled=False)
    schema.inputs(row)


def _read_background(folder: Path) -> NDArray[np.float32] | None:
    if not (folder / BACKGROUND).exists():
        return None
    rows: NDArray[np.float32] = load_file(folder / BACKGROUND)["rows"]
    return rows


def _read_reference(folder: Path) -> Reference | None:
    if not (folder / REFERENCE).exists():
        return None
    return Reference.from_dict(json.loads((folder / REFERENCE).read_text(encoding="utf-8")))


def _read_history(folder: Path, tasks: list[str]) -> pl.DataFrame | None:
    """What training recorded; older models do not keep it."""
    if not (folder / HISTORY).exists():
        return None
    return read_history((folder / HISTORY).read_text(encoding="utf-8"), tasks)


def _require_same_rows(model: RiskModel, challenger: RiskModel, folder: Path) -> None:
    """Refuse a part of a blend that could not answer for the same encoded rows."""
    if model.encoder.to_dict() != challenger.encoder.to_dict():
        raise ArtefactError(f"{folder}: encodes rows otherwise than the model that it blends with")
    own, other = ([(head.task, head.kind) for head in m.heads] for m in (model, challenger))
    if own != other:
        raise ArtefactError(f"{folder}: has other tasks than the model that it blends with")


def _scores_as_before(model: RiskModel, golden: Mapping[str, Any]) -> bool:
    expected = np.array(golden["outputs"], dtype=np.float64)
    frame = pl.DataFrame(
        [
            pl.Series(c.name, values, dtype=pl.String if c.is_categorical else pl.Float32)
            for c, values in zip(model.encoder.columns_, golden["rows"].values(), strict=True)
        ]
    )
    found = _golden_outputs(model, frame)
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=_GOLDEN_TOLERANCE, atol=_GOLDEN_TOLERANCE
    )


def _files(folder: Path) -> list[str]:
    """Names of all files, links to anything among them, but for the manifest and its seal."""
    paths = sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if name not in (MANIFEST, SEAL)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_rows(rows: pl.DataFrame) -> dict[str, list[Any]]:
    # JSON has no NaN; the encoder reads null as missing just the same.
    return {column.name: column.fill_nan(None).to_list() if column.dtype.is_float() else
            column.to_list() for column in rows}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written to JSON")
