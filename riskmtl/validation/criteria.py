"""The bounds that verdicts are held against, and the rules behind a report, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from riskmtl.errors import unknown_name
from riskmtl.validation.result import Finding, Verdict
from riskmtl.yaml_file import read_yaml

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Criterion:
    """
    Bounds of one figure.

    Parameters
    ----------
    name : str
    worse : {"above", "below"}
        The side on which a figure is worse.
    watch, fail : float
    source : str
        Where the bounds come from.
    """

    name: str
    worse: str
    watch: float
    fail: float
    source: str

    def judge(
        self,
        head: str,
        what: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
    ) -> Finding:
        """
        Hold a figure against the bounds.

        Parameters
        ----------
        head, what : str
        value : float
        low, high : float, optional
            Its interval, which has to lie beyond a bound as a whole. Default: the figure itself.

        Returns
        -------
        Finding
            Not enough events, if the figure is NaN.

        Examples
        --------
        >>> auc = Criterion("auc", "below", watch=0.65, fail=0.55, source="example")
        >>> auc.judge("fraud", "AUC", 0.64, 0.60, 0.68).verdict.value
        'pass'
        >>> auc.judge("fraud", "AUC", 0.60, 0.57, 0.63).verdict.value
        'watch'
        """
        low, high = value if low is None else low, value if high is None else high
        near, sign = (low, 1) if self.worse == "above" else (-high, -1)
        if math.isnan(near):
            verdict = Verdict.TOO_FEW
        elif near > sign * self.fail:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.WATCH if near > sign * self.watch else Verdict.PASS
        return Finding(head, what, verdict, value, low, high, str(self))

    def __str__(self) -> str:
        bounds = {"watch": self.watch, "fail": self.fail}
        if self.fail == self.watch:
            del bounds["watch"]
        said = [
            f"{n} {self.worse} {bound:g}" for n, bound in bounds.items() if math.isfinite(bound)
        ]
        return f"{', '.join(said)} ({self.source})"


@lru_cache(maxsize=1)
def _published() -> dict[str, Criterion]:
    read = read_yaml(_HERE / "criteria.yaml", ValueError)
    return {name: Criterion(name=name, **values) for name, values in read.items()}


def criteria(changes: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Criterion]:
    """
    The bounds of all figures.

    Parameters
    ----------
    changes : mapping of str to mapping, optional
        Other values of ``watch`` or ``fail``, by name of the criterion.

    Returns
    -------
    dict of str to Criterion

    Raises
    ------
    ValueError
        If a criterion or a bound is unknown.

    Examples
    --------
    >>> criteria({"auc": {"watch": 0.7}})["auc"].source
    'set by the user'
    """
    found = dict(_published())
    for name, bounds in (changes or {}).items():
        if name not in found:
            raise ValueError(unknown_name("criterion", name, found))
        for bound, value in bounds.items():
            if bound not in ("watch", "fail"):
                raise ValueError(f"{name}: {unknown_name('bound', bound, ('watch', 'fail'))}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}: {bound} must be a number, got {value!r}")
        found[name] = replace(
            found[name],
            source="set by the user",
            watch=float(bounds.get("watch", found[name].watch)),
            fail=float(bounds.get("fail", found[name].fail)),
        )
    return found


def rules() -> list[dict[str, Any]]:
    """Rules with their dates: ``name``, ``issuer``, ``dated``, ``asks``, ``sections``."""
    return [
        {key: str(value) for key, value in rule.items()}
        for rule in read_yaml(_HERE / "rules.yaml", ValueError)
    ]
