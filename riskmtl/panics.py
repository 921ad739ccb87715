"""What libraries print on their own before they raise, kept off terminals and logs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any


@contextmanager
def without_panics() -> Iterator[None]:
    """
    Drop what libraries write on file descriptor 2 if the verb is refused, or write it at its end.

    Reading a damaged file, polars prints pages on its own before it raises.
    """
    try:
        saved, scratch = os.dup(2), os.memfd_create("stderr")
    except (OSError, AttributeError):  # no such descriptor, or no such system
        yield
        return
    with (
        open(saved, "w", buffering=1, errors="backslashreplace") as ours,
        open(scratch, "rb") as read,
    ):
        os.dup2(scratch, 2)
        try:
            # What this process says itself goes on as before.
            with redirect_stderr(ours) if _is_descriptor_2(sys.stderr) else nullcontext():
                yield
        except (ValueError, OSError):
            os.ftruncate(scratch, 0)
            raise
        finally:
            ours.flush()
            os.dup2(saved, 2)
            os.lseek(scratch, 0, os.SEEK_SET)
            shutil.copyfileobj(read, ours.buffer)


def _is_descriptor_2(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 2)
    except (AttributeError, OSError, ValueError):
        return False
