"""
The folder of a scoring job: whose it is, what is finished, and the manifest that ends it.

A part's file counts once its receipt lies beside it, and the scores count once there is a manifest.
Each is written to a scratch file, synced and renamed, so a job may be killed anywhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from riskmtl.files import replacing, sync_folder

NOTE = "_JOB.json"
MANIFEST = "_MANIFEST.json"
QUARANTINE = "quarantine"
RECEIPTS = "receipts"
_LOCK = ".lock"
_RECEIPT = ("part", "input", "rows", "scored", "refused", "first", "files", "counts", "sums")
# What is written to before it is renamed; a hidden file of another name is somebody's.
_SCRATCH = (".part-", f".{NOTE}.", f".{MANIFEST}.")


class JobError(ValueError):
    """A folder that cannot take this job; the message says why and what to do."""


class JobFolder:
    """
    Where a job writes; open one with :func:`open_folder`.

    Parameters
    ----------
    path : Path
    note : mapping
        What the job was asked to do.
    """

    def __init__(self, path: Path, note: Mapping[str, Any]) -> None:
        self.path = path
        self.note = dict(note)

    @property
    def lineage(self) -> dict[str, Any]:
        """What each file says of the job: its note but for the inputs."""
        return {name: value for name, value in self.note.items() if name != "inputs"}

    def write(self, name: str, data: bytes) -> str:
        """Write a file whole or not at all, and return the SHA-256 of its bytes."""
        with replacing(self.path / name) as scratch:
            scratch.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def write_receipt(self, part: str, receipt: Mapping[str, Any]) -> None:
        """Say that a part is finished."""
        self.write(f"{RECEIPTS}/{part}.json", _plain_text(receipt))

    def receipt(self, part: str) -> dict[str, Any] | None:
        """What was said of a finished part; ``None`` if it is not, or a file of it was changed."""
        path = self.path / RECEIPTS / f"{part}.json"
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        if not isinstance(found, dict) or not found.keys() >= set(_RECEIPT):
            return None
        return found if self._holds(found["files"]) else None

    def _holds(self, files: Mapping[str, str]) -> bool:
        """Whether files are there, byte for byte."""
        return all(
            (self.path / name).is_file() and digest_of(self.path / name) == digest
            for name, digest in files.items()
        )

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Name a folder that another program makes and fills; afterwards it is gone."""
        path = self.path / f".part-{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def adopt(self, file: Path, name: str) -> None:
        """Take a file over from a scratch folder."""
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(self.path / name)
        sync_folder(self.path)

    def discard(self) -> None:
        """Delete what the job has written but for its note."""
        # Without a manifest the scores do not count; while there is a note, they are a job's.
        (self.path / MANIFEST).unlink(missing_ok=True)
        for name in (QUARANTINE, RECEIPTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for file in self.path.glob("part-*"):
            file.unlink(missing_ok=True)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which makes the scores count."""
        self.write(MANIFEST, _plain_text(manifest))

    def manifest(self) -> dict[str, Any] | None:
        """What ended the job; ``None`` if it is not finished, or a file of it was changed."""
        path = self.path / MANIFEST
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if all(self._holds(part["files"]) for part in found["parts"]) else None


@contextmanager
def open_folder(
    path: str | Path, note: Mapping[str, Any], *, resume: bool = False, restart: bool = False
) -> Iterator[JobFolder]:
    """
    Take a folder for a job, for this process alone.

    Parameters
    ----------
    path : str or Path
    note : mapping
        What the job is asked to do, in plain values. Its ``time`` may differ when it goes on, and
        is then that of the beginning.
    resume : bool
        Go on with the same job, if it was begun here.
    restart : bool
        Delete what another job has written here.

    Yields
    ------
    JobFolder

    Raises
    ------
    JobError
        If another process works here, if there are other files, or those of a job and neither
        option is given, or if that job was another.
    ValueError
        If both options are given.
    """
    if resume and restart:
        raise ValueError("resume and restart exclude each other")
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise JobError(f"{path}: is a file, choose a folder for the scores")
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        begun = _read_note(path)
        if begun is None:
            _require_empty(path)
        elif restart:
            JobFolder(path, begun).discard()
            (path / NOTE).unlink()
        elif not resume:
            raise JobError(
                f"{path}: a job was begun here: --resume goes on with it, --restart deletes it"
            )
        else:
            _require_same(path, begun, note)
            note = {**note, "time": begun["time"]}
        _remove_scratch(path)
        folder = JobFolder(path, note)
        if begun is None or restart:
            folder.write(NOTE, _plain_text(note))
        yield folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go when the process ends, however it ends."""
    with (path / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(f"{path}: another job is writing here: wait for its end") from None
        yield


def _read_note(path: Path) -> dict[str, Any] | None:
    note = path / NOTE
    if not note.exists():
        return None
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and "time" in found else {"time": None}
    except ValueError:
        return {"time": None}


def _require_empty(path: Path) -> None:
    names = [p.name for p in path.iterdir()]
    others = [name for name in names if name != _LOCK and not name.startswith(_SCRATCH)]
    if others:
        raise JobError(f"{path}: holds other files ({others[0]}): choose a new folder")


def _require_same(path: Path, begun: Mapping[str, Any], note: Mapping[str, Any]) -> None:
    changed = [name for name in note if name != "time" and begun.get(name) != note[name]]
    if changed:
        what = ", ".join(_difference(name, begun.get(name), note[name]) for name in changed)
        raise JobError(f"{path}: the job that was begun here had another {what}: --restart "
                       "deletes it and begins anew")  # fmt: skip


def _difference(name: str, before: Any, now: Any) -> str:
    """Name what differs as closely as can be told."""
    if name != "inputs" or not isinstance(before, list):
        return name
    older, newer = ({item["name"]: item for item in items} for items in (before, now))
    names = [key for key in {**older, **newer} if older.get(key) != newer.get(key)]
    return f"input ({names[0]})" if names else "order of inputs"


def _remove_scratch(path: Path) -> None:
    """Delete what a job that was killed wrote aside."""
    for folder in (path, path / QUARANTINE, path / RECEIPTS):
        for found in folder.iterdir() if folder.is_dir() else ():
            if found.name.startswith(_SCRATCH) and found.is_dir():
                shutil.rmtree(found)
            elif found.name.startswith(_SCRATCH):
                found.unlink()


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_text(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode()
