"""Threads: many small operations of torch are quicker side by side than each in many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread_each() -> Iterator[int]:
    """
    Let each operation of torch run in one thread, and give how many there were to share the work.

    Operations on a few thousand numbers wait longer for each other's threads, on a machine that has
    other work too, than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
