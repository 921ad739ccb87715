"""What users give as values, checked in its form; what does not fit is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from riskmtl.errors import unknown_name


def is_number(value: Any) -> bool:
    """Whether a parameter is a number, which ``True`` is not."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def mapping_of(name: str, given: Any) -> dict[str, Any]:
    """A copy of what the user maps names to; nothing if nothing was given."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping of names to values, got {given!r}")
    return dict(given or {})


def is_sequence(value: Any) -> bool:
    """Whether a parameter is a list or the like, which a text is not."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def require_count(name: str, value: Any, *, least: int = 1) -> None:
    """
    Refuse what is no whole number, or too small a one.

    Examples
    --------
    >>> require_count("epochs", 2.5)
    Traceback (most recent call last):
    ValueError: epochs must be a whole number of at least 1, got 2.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def require_positive(name: str, value: Any) -> None:
    """Refuse what is no number above 0."""
    if not is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def require_choice(name: str, value: Any, valid: Iterable[str]) -> None:
    """Refuse what is none of the names that would do."""
    if value not in valid:
        raise ValueError(unknown_name(name, value, valid))
