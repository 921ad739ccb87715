"""Which rows of a table are worth an explanation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FORMS = "all, top:1%, score>=0.2 or sample:5000"


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """
    A rule that chooses rows; read one with :meth:`parse`.

    Parameters
    ----------
    kind : {"all", "top", "score", "sample"}
    amount : float
        A probability for ``"score"``; a share below 1 or a number of rows for the others.

    Examples
    --------
    >>> policy = RowPolicy.parse("score>=0.2")
    >>> policy.choose(np.array([[0.1, 0.3], [0.1, 0.1], [0.9, 0.0]])).tolist()
    [0, 2]
    """

    kind: str
    amount: float = 1.0

    @classmethod
    def parse(cls, text: str) -> RowPolicy:
        """
        Read a rule as it is written on the command line.

        Parameters
        ----------
        text : str
            ``all``; ``top:1%`` or ``top:500``, the highest scores of any head; ``score>=0.2``, a
            probability of any head; ``sample:5000`` or ``sample:1%``, at random.

        Returns
        -------
        RowPolicy

        Raises
        ------
        ValueError
            If it is none of these.
        """
        if text == "all":
            return cls("all")
        found = re.fullmatch(r"(?:(top|sample):|(score)>=)([\d.]+)(%?)", text)
        if found is None:
            raise ValueError(f"rows: {text!r} is no rule: write {_FORMS}")
        kind, percent = found[1] or found[2], found[4]
        try:
            amount = float(found[3]) / (100 if percent else 1)
        except ValueError:
            raise ValueError(f"rows: {found[3]!r} in {text!r} is no number") from None
        if kind == "score" or percent:
            if not 0 < amount <= 1:
                raise ValueError(f"rows: {text!r} must lie above 0 and not above 1, or 100%")
        elif amount < 1 or amount != int(amount):
            raise ValueError(f"rows: {text!r} must give a share such as 1%, or a whole number")
        return cls(kind, amount if kind == "score" or percent else int(amount))

    @property
    def needs_scores(self) -> bool:
        """Whether the rule looks at scores."""
        return self.kind in ("top", "score")

    def choose(self, scores: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.int64]:
        """
        Choose rows.

        Parameters
        ----------
        scores : ndarray of shape (rows, heads)
            Probabilities; not looked at unless the rule needs them.
        seed : int

        Returns
        -------
        ndarray of int
            Positions in ascending order.
        """
        rows = len(scores)
        if self.kind == "all":
            return np.arange(rows)
        if self.kind == "score":
            return np.flatnonzero((scores >= self.amount).any(1))
        is_share = isinstance(self.amount, float)
        count = min(rows, math.ceil(self.amount * rows) if is_share else int(self.amount))
        if self.kind == "sample":
            return np.sort(np.random.default_rng(seed).permutation(rows)[:count])
        return np.unique(np.argsort(-scores, axis=0, kind="stable")[:count])
