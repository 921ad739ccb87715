"""One way to say that a name is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """
    Say that a name is not one of the valid ones, with the nearest that is.

    Parameters
    ----------
    kind : str
        What the name stands for, such as ``"network"``.
    name : object
        What was given.
    valid : iterable of str
        The names that would do.

    Returns
    -------
    str
        A sentence for an error message.

    Examples
    --------
    >>> unknown_name("network", "pel", ["mmoe", "ple"])
    "unknown network 'pel': did you mean 'ple'? Valid: mmoe, ple"
    """
    options = list(valid)
    near = get_close_matches(str(name), options, n=1)
    hint = f": did you mean {near[0]!r}? Valid: " if near else ": valid are "
    return f"unknown {kind} {name!r}{hint}{', '.join(options)}"
