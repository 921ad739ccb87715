"""Where a model comes from: data, versions, code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riskmtl.labels import TaskLabels
from riskmtl.schema import DataSchema
from riskmtl.training.rows import TrainingRows


def training_lineage(
    schema: DataSchema | None, tasks: Sequence[TaskLabels], rows: TrainingRows, seed: int
) -> dict[str, Any]:
    """
    Say where a model comes from, as far as it can be known here.

    Parameters
    ----------
    schema : DataSchema, optional
    tasks : sequence of TaskLabels
    rows : TrainingRows
        The rows it was trained on, without those held out.
    seed : int

    Returns
    -------
    dict
        Plain values: time, counts, fingerprint of the data, versions, git commit.
    """
    digest = hashlib.sha256(np.ascontiguousarray(rows.x).data)
    digest.update(np.ascontiguousarray(rows.y).data)
    packages = ("riskmtl", "torch", "pytorch-lightning", "lightgbm", "scikit-learn", "polars")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": len(rows.x),
        "columns": rows.x.shape[1],
        "tasks": {task.name: _counts(task, rows.y[:, i]) for i, task in enumerate(tasks)},
        "data_sha256": digest.hexdigest(),
        "schema_sha256": None if schema is None else schema.hash,
        "seed": seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": _git_commit(),
    }


def made_from(lineage: Mapping[str, Any], how: str) -> dict[str, Any]:
    """
    What the lineage of a model says of the one that it was made from.

    Parameters
    ----------
    lineage : mapping
        Of that one.
    how : str
        What was done with it.

    Returns
    -------
    dict
        ``how``, and what identifies the other, and what that was made from in its turn.
        ``model_id`` is there only if it had been read from disk.
    """
    kept = ("model_id", "created", "rows", "data_sha256", "made_from")
    return {"how": how, **{name: lineage[name] for name in kept if name in lineage}}


def _counts(task: TaskLabels, labels: NDArray[np.float32]) -> dict[str, int | None]:
    observed = int((~np.isnan(labels)).sum())
    return {"observed": observed, "events": int(np.nansum(labels)) if task.classes else None}


def _git_commit() -> str | None:
    """Commit of the folder that the program runs in, if it is in a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
