"""The file that notes every trial, held by one search at a time."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from riskmtl import __version__
from riskmtl.tuning.space import Search

_NAME = "riskmtl"  # of the study in its journal
_SPACE = "search space"  # in the fingerprint


class _HeldLock(JournalFileOpenLock):
    """
    No lock for single lines: the whole file is held already, by a lock that dies with the process.

    Optuna's own locks are files, which a killed search would leave behind.
    """

    def acquire(self) -> bool:
        """Do nothing."""
        return True

    def release(self) -> None:
        """Do nothing."""


@contextmanager
def storage_of(journal: Path | None) -> Iterator[BaseStorage]:
    """Memory, or the journal, which nobody else may use meanwhile."""
    if journal is None:
        yield InMemoryStorage()
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{journal}: another search is using this journal") from error
        file.seek(0)
        content = file.read()
        if content and not content.startswith(b'{"op_code":'):
            raise ValueError(f"{journal}: is not a journal of a search, choose another file")
        # A line that was being written when the machine stopped.
        file.truncate(content.rfind(b"\n") + 1)
        lock = _HeldLock(str(journal))
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
        except (ValueError, LookupError) as error:
            raise ValueError(f"{journal}: damaged journal ({error}), remove it") from error
        yield storage


def study_in(storage: BaseStorage, warmup: int) -> optuna.Study:
    """Go on with the study that is there, or begin one; `warmup` epochs are never cut short."""
    # In the first quarter of the epochs the learning rate still rises: nothing is judged there.
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=warmup)
    if _NAME in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=_NAME, storage=storage, pruner=pruner)
    return optuna.create_study(
        study_name=_NAME, storage=storage, pruner=pruner, direction="maximize"
    )


def fingerprint(search: Search, fixed: dict[str, Any], seed: int) -> dict[str, Any]:
    """Say of which rows, schema and settings the scores are, by hashes where they are long."""
    return {
        "data": _digest(search.train),
        "validation data": None if search.validation is None else _digest(search.validation),
        "schema": search.schema.hash,
        "fixed parameters": fixed,
        "seed": seed,
        "version of riskmtl": __version__,
        _SPACE: {name: distribution_to_json(values) for name, values in search.space.items()},
    }


def require_same_search(
    study: optuna.Study, fingerprint: dict[str, Any], journal: Path | None
) -> None:
    """Refuse a journal whose scores cannot be compared with those of this search."""
    noted = study.user_attrs.get("fingerprint")
    if noted is None:
        study.set_user_attr("fingerprint", fingerprint)
        return
    changed = [name for name in fingerprint if noted.get(name) != fingerprint[name]]
    if len(changed) > 1 and _SPACE in changed:
        changed.remove(_SPACE)  # It follows from the others.
    if changed:
        raise ValueError(
            f"{journal}: belongs to another search (other {', '.join(changed)}); choose another "
            "journal, or remove this one to begin anew"
        )


def _digest(frame: pl.DataFrame) -> str:
    digest = hashlib.sha256(repr(frame.schema).encode())
    digest.update(frame.hash_rows().to_numpy().data)
    return digest.hexdigest()
