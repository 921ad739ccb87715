"""
A model on disk: a folder with ``manifest.json`` and the scorer's files.

The manifest lists every file with its SHA-256, names classes from a closed registry, and holds
golden rows: simulated inputs with the scores they had when the model was written. Loading checks
all of it before anything is used, and there is no second, looser way to load.
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

from riskmtl.encoding import FeatureEncoder
from riskmtl.errors import unknown_name
from riskmtl.model import Head, RiskModel
from riskmtl.schema import DataSchema
from riskmtl.scorers import SCORERS

FORMAT = 1
MANIFEST = "manifest.json"
CHALLENGER = "challenger"

_KEYS = ("format", "scorer", "settings", "encoder", "heads", "schema", "lineage", "golden", "files")
_GOLDEN_ROWS = 16
# Other machines add up in another order; a wrong weight moves far more than this.
_GOLDEN_TOLERANCE = 1e-4


class ArtefactError(ValueError):
    """A folder that is not a sound model; the message names the folder or file."""


def save_model(model: RiskModel, folder: str | Path, *, estimator: Mapping[str, Any]) -> None:
    """
    Write a model to a folder, whole or not at all.

    Parameters
    ----------
    model : RiskModel
    folder : str or Path
        Created; a model that it holds is replaced, any other folder with files is refused.
    estimator : mapping
        Name and parameters of the estimator that made it, as plain values.

    Raises
    ------
    ArtefactError
        If the folder holds something else than a model.
    """
    folder = Path(folder)
    require_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write(model, scratch, estimator)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ArtefactError(f"{folder}: holds other files; choose a new folder for the model")


def _write(model: RiskModel, folder: Path, estimator: Mapping[str, Any]) -> None:
    settings = model.scorer.write(folder)
    if model.challenger is not None:
        (folder / CHALLENGER).mkdir()
        _write(model.challenger, folder / CHALLENGER, {})
    rows = model.encoder.simulate(_GOLDEN_ROWS, seed=0)
    scores = model.scorer.raw(model.encoder.transform(rows))
    manifest = {
        "format": FORMAT,
        "scorer": model.scorer.name,
        "settings": settings,
        "encoder": model.encoder.to_dict(),
        "heads": [head.to_dict() for head in model.heads],
        "schema": None if model.schema is None else model.schema.to_dict(),
        "lineage": {**model.lineage, "estimator": dict(estimator)},
        "golden": {"rows": _plain_rows(rows), "raw": scores.tolist()},
        "files": {name: _sha256(folder / name) for name in _files(folder)},
    }
    text = json.dumps(manifest, indent=1, allow_nan=False, default=_plain)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def load_model(folder: str | Path, *, with_challenger: bool = False) -> RiskModel:
    """
    Read a model from a folder after checking it.

    Parameters
    ----------
    folder : str or Path
    with_challenger : bool
        Whether to read the challenger too, if there is one.

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
    if manifest["scorer"] not in SCORERS:
        raise ArtefactError(f"{folder}: {unknown_name('scorer', manifest['scorer'], SCORERS)}")
    try:
        schema = manifest["schema"]
        model = RiskModel(
            encoder=FeatureEncoder.from_dict(manifest["encoder"]),
            scorer=SCORERS[manifest["scorer"]].read(folder, manifest["settings"]),
            heads=[Head.from_dict(head) for head in manifest["heads"]],
            schema=None if schema is None else DataSchema.from_dict(schema),
            lineage={**manifest["lineage"], "model_id": model_id},
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ArtefactError(f"{folder}: the manifest cannot be followed ({error})") from error
    _check_golden(folder, model, manifest["golden"])
    if with_challenger and (folder / CHALLENGER).is_dir():
        model.challenger = load_model(folder / CHALLENGER)
    return model


def _read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"{folder}: not a model (it has no {MANIFEST})")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(f"{path}: not a manifest of format {FORMAT}")
    for key in manifest:
        if key not in _KEYS:
            raise ArtefactError(f"{path}: {unknown_name('key', key, _KEYS)}")
    for key in _KEYS:
        if key not in manifest:
            raise ArtefactError(f"{path}: key {key!r} is missing")
    return manifest, hashlib.sha256(data).hexdigest()


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


def _check_golden(folder: Path, model: RiskModel, golden: Any) -> None:
    try:
        expected = np.array(golden["raw"], dtype=np.float64)
        rows = {c.name: golden["rows"][c.name] for c in model.encoder.columns_}
        frame = pl.DataFrame(
            [
                pl.Series(c.name, rows[c.name], dtype=pl.String if c.is_categorical else pl.Float32)
                for c in model.encoder.columns_
            ]
        )
        scores = model.scorer.raw(model.encoder.transform(frame))
    except (KeyError, TypeError, ValueError, IndexError, pl.exceptions.PolarsError) as error:
        raise ArtefactError(f"{folder}: the golden rows cannot be scored ({error})") from error
    if scores.shape != expected.shape or not np.allclose(
        scores, expected, rtol=_GOLDEN_TOLERANCE, atol=_GOLDEN_TOLERANCE
    ):
        raise ArtefactError(f"{folder}: the golden rows score differently than when it was written")


def _files(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if name != MANIFEST]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_rows(rows: pl.DataFrame) -> dict[str, list[Any]]:
    # JSON has no NaN; the encoder reads null as missing just the same.
    return {column.name: column.fill_nan(None).to_list() if column.dtype.is_float() else
            column.to_list() for column in rows}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written to JSON")
