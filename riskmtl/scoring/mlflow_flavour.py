"""
An MLflow model: the folder of a model as it is, a signature, and a loader that checks it.

Nothing is pickled and no row is kept as an example. MLflow's own file ``MLmodel``, which names the
module that loads and how to score, is outside of what the loader checks.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riskmtl import __version__
from riskmtl.artefact import load_model
from riskmtl.scoring.batches import BatchScorer, ScoreSettings
from riskmtl.scoring.mlflow_rows import FrameScorer, SignatureColumn

if TYPE_CHECKING:
    from mlflow.types.schema import ColSpec


def save_mlflow(
    model_folder: str | Path, out: str | Path, *, settings: ScoreSettings | None = None
) -> Path:
    """
    Write an MLflow model, whole or not at all.

    Parameters
    ----------
    model_folder : str or Path
        Folder of the model.
    out : str or Path
        Folder of the MLflow model, new or empty.
    settings : ScoreSettings, optional
        What is written of each row.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    riskmtl.artefact.ArtefactError
        If there is no sound model.
    ValueError
        If `out` holds something, or the settings do not go with the model.
    ImportError
        If the packages of ``riskmtl[mlflow]`` are missing.
    """
    arguments = mlflow_arguments(model_folder, settings=settings)
    import mlflow.pyfunc

    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out}: holds something already; choose a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        with warnings.catch_warnings():
            # An example would be somebody's row.
            warnings.filterwarnings("ignore", ".*An input example was not provided")
            mlflow.pyfunc.save_model(scratch, **arguments)
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def mlflow_arguments(
    model_folder: str | Path, *, settings: ScoreSettings | None = None
) -> dict[str, Any]:
    """
    Say how ``mlflow.pyfunc.save_model`` or, within a run, ``log_model`` keeps a model.

    Parameters
    ----------
    model_folder : str or Path
        Folder of the model.
    settings : ScoreSettings, optional
        What is written of each row. Kept as the model's configuration, which
        ``mlflow.pyfunc.load_model(…, model_config={"challenger": True})`` changes.

    Returns
    -------
    dict
        Arguments by name, but for where to put it.

    Raises
    ------
    riskmtl.artefact.ArtefactError
        If there is no sound model.
    ValueError
        If the settings do not go with the model.
    ImportError
        If the packages of ``riskmtl[mlflow]`` are missing.
    """
    _require_packages()
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    settings = settings or ScoreSettings()
    if settings.words is not None:
        raise ValueError("an MLflow model has no place for words: its reasons are columns")
    frames = _frame_scorer(model_folder, settings)
    inputs, outputs = frames.inputs(), frames.outputs()
    return {
        "loader_module": __name__,
        "data_path": str(model_folder),
        "signature": ModelSignature(
            Schema([_spec(column) for column in inputs]),
            Schema([_spec(column) for column in outputs]),
        ),
        "pip_requirements": [f"riskmtl[mlflow]=={__version__}"],
        "model_config": _plain(settings),
        "metadata": {
            "riskmtl": {
                "version": __version__,
                **frames.scorer.model.identity,
                "columns": frames.types(),
            }
        },
    }


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> FrameScorer:
    """Read a model from MLflow's copy of its folder; the name is the one that MLflow calls."""
    given = dict(model_config or {})
    for name in ("graded", "grades"):
        if name in given:
            given[name] = tuple(given[name])
    return _frame_scorer(path, ScoreSettings(**given))


def _frame_scorer(folder: str | Path, settings: ScoreSettings) -> FrameScorer:
    model = load_model(folder, with_challenger=settings.challenger)
    return FrameScorer(BatchScorer(model, settings))


def _plain(settings: ScoreSettings) -> dict[str, Any]:
    kept = settings.to_dict()
    del kept["words"]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in kept.items()}


def _spec(column: SignatureColumn) -> ColSpec:
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType

    special = {"any": AnyType(), "strings": Array(DataType.string)}
    kind = special.get(column.type, column.type)
    return ColSpec(kind, column.name, required=column.is_required)


def _require_packages() -> None:
    for name in ("mlflow", "pandas"):
        try:
            import_module(name)
        except ImportError as error:
            message = f"an MLflow model needs {name}: pip install 'riskmtl[mlflow]'"
            raise ImportError(message) from error
