"""Arguments of the figures that can only lie in a range: what does not is refused by its name."""

from __future__ import annotations


def require_level(level: float) -> None:
    """
    Refuse a confidence that is not between 0 and 1.

    Raises
    ------
    ValueError
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a confidence between 0 and 1, such as 0.95")


def require_share(name: str, share: float, *, above_nought: bool = False) -> None:
    """
    Refuse a share that is not from 0 to 1, or is 0 where something is divided by it.

    Raises
    ------
    ValueError
    """
    if not 0 <= share <= 1 or (above_nought and share == 0):
        least = "above 0 and at most 1" if above_nought else "from 0 to 1"
        raise ValueError(f"{name} is {share}: give a share {least}")


def require_count(name: str, count: int, *, least: int = 1) -> None:
    """
    Refuse a number of things that is too small.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> require_count("draws", 0)
    Traceback (most recent call last):
    ValueError: draws is 0: ask for at least 1
    """
    if not count >= least:
        raise ValueError(f"{name} is {count}: ask for at least {least}")
