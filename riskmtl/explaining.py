"""What a fitted estimator says of its answers: explanations, reasons, changes, experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.explain.attribution import explain_rows, within
from riskmtl.explain.counterfactual import Counterfactual, find_counterfactual
from riskmtl.explain.experts import expert_columns, gate_use
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.interactions import strongest_interactions
from riskmtl.explain.reasons import explain_reasons
from riskmtl.explain.sensitivity import Sensitivity, compare_backgrounds
from riskmtl.explain.wording import ReasonTable
from riskmtl.frames import as_frame
from riskmtl.model import RiskModel

_THIRDS = 3


class ExplainerMixin(ABC):
    """Methods of a fitted estimator that say why; they read tables as ``predict_proba`` does."""

    model_: RiskModel

    @abstractmethod
    def _require_fitted(self) -> None:
        """Raise if there is no model yet."""

    @abstractmethod
    def _read_inputs(self, X: Any, *, reset: bool) -> tuple[pl.DataFrame, pl.Series | None]:
        """Input columns of a table, and the rows' times where known."""

    @abstractmethod
    def _encode(self, X: Any) -> NDArray[np.float32]:
        """Encoded rows of a table."""

    def explain(
        self,
        X: Any,
        *,
        background: Any = None,
        heads: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        method: str = "sampled",
        scale: str = "log_odds",
        calibrated: bool = True,
        budget: int = 4,
        tolerance: float = 0.0,
        random_state: int = 0,
    ) -> Explanation:
        """
        Say what each column adds to each head's answer, compared with a background.

        Parameters
        ----------
        X : table of shape (rows, columns)
        background : table, optional
            Rows to compare with, such as approved customers. Default: 256 training rows, spread
            over the scores as all are, which the model keeps.
        heads : sequence of str, optional
            Default: all binary tasks; they cost little more than one.
        groups : mapping of str to sequence of str, optional
            Columns that are explained as one.
        method : {"sampled", "path", "tree"}
            ``"sampled"``: Shapley values of the interventional game over columns, from
            permutations; see :func:`riskmtl.explain.shapley.shapley_values`. The others are quick
            and answer other questions. ``"path"``: attributions along paths in the embedded space
            of a network, approximate and without errors, for pictures of many rows only; see
            :func:`riskmtl.explain.path.path_values`. ``"tree"``: LightGBM's own path-dependent
            attributions, whose background is the training rows; for a
            :class:`LightGBMBaseline` alone.
        scale : {"log_odds", "probability"}
        calibrated : bool
            Explain the answer after calibration, or before.
        budget : int
            Most permutations per background row: even, at least 4. A row costs so many times
            background rows times columns evaluations.
        tolerance : float
            A row is done once no standard error of a value is above this.
        random_state : int

        Returns
        -------
        Explanation
            ``base + values.sum(1)`` is the answer; on the default scale that of
            :meth:`decision_function`.

        Raises
        ------
        ValueError
            If a head, column, method or scale is unknown.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import LightGBMBaseline
        >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX", "FR", "DE"] * 50})
        >>> y = pl.DataFrame({"fraud": [0, 1] * 100})
        >>> model = LightGBMBaseline(trials=1, random_state=0).fit(X, y)
        >>> found = model.explain(X[:2])
        >>> found.features, found.heads, found.values.shape
        (['amount', 'country'], ['fraud'], (2, 2, 1))
        """
        self._require_fitted()
        inputs, _ = self._read_inputs(X, reset=False)
        if method == "tree" and background is not None:
            raise ValueError(
                "method='tree' compares with the training rows: leave background out, or use "
                "method='sampled'"
            )
        return explain_rows(
            self.model_,
            inputs,
            self._compared(background),
            heads=heads,
            groups=groups,
            method=method,
            scale=scale,
            calibrated=calibrated,
            budget=budget,
            is_enough=within(tolerance),
            seed=random_state,
        )

    def explain_sensitivity(
        self,
        X: Any,
        *,
        backgrounds: Sequence[Any] | None = None,
        heads: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        budget: int = 4,
        random_state: int = 0,
    ) -> Sensitivity:
        """
        Say how far explanations move with the rows that they compare with.

        Parameters
        ----------
        X : table of shape (rows, columns)
        backgrounds : sequence of table, optional
            At least two, such as approved customers and all. Default: three thirds of the rows
            that the model keeps; being smaller, they move more than whole ones would.
        heads, groups, budget, random_state
            As in :meth:`explain`.

        Returns
        -------
        Sensitivity

        Raises
        ------
        ValueError
            If there are fewer than two backgrounds.
        """
        self._require_fitted()
        inputs, _ = self._read_inputs(X, reset=False)
        if backgrounds is None:
            kept = self._compared(None)
            compared = [kept[start::_THIRDS] for start in range(_THIRDS)]
        else:
            compared = [self._encode(background) for background in backgrounds]
        options: dict[str, Any] = {
            "heads": heads,
            "groups": groups,
            "budget": budget,
            "seed": random_state,
        }
        return compare_backgrounds(
            [explain_rows(self.model_, inputs, rows, **options) for rows in compared]
        )

    def reasons(
        self,
        X: Any,
        *,
        head: str,
        n: int = 4,
        words: ReasonTable | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        background: Any = None,
        budget: int = 16,
        random_state: int = 0,
    ) -> pl.DataFrame:
        """
        Name the columns that push most towards a head's adverse outcome.

        Parameters
        ----------
        X : table of shape (rows, columns)
        head : str
        n : int
            Most reasons per row.
        words : ReasonTable, optional
            From :func:`riskmtl.load_reasons`: what a customer reads. A column without words is
            never a reason. Default: reasons for analysts, of all columns.
        groups : mapping of str to sequence of str, optional
            Columns that are explained as one; those of `words`, if these are given.
        background : table, optional
            As in :meth:`explain`.
        budget : int
            Most permutations per background row. A row is done earlier once its last reason is
            apart from the next column.
        random_state : int

        Returns
        -------
        polars.DataFrame
            A line per row and reason, in order: ``row``, ``head``, ``rank``, ``feature``; ``code``
            and ``reason``, null without `words`; ``value``, what it adds to the log-odds, and its
            standard ``error``; ``separable``, false where this reason and the next differ by less
            than two standard errors, so that their order is not certain; ``input``, the value;
            ``lower_quartile``, ``median`` and ``upper_quartile`` of a number in the background;
            ``background_share``, the share of background rows with the same category, or with at
            most this number; ``background``, the hash of these rows. Features that add nothing or
            less are no reasons, so a row may have fewer than `n`.

        Raises
        ------
        ValueError
            If the head or a column is unknown, or words and model do not go together.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import LightGBMBaseline
        >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX", "FR", "DE"] * 50})
        >>> y = pl.DataFrame({"fraud": [0, 1] * 100})
        >>> model = LightGBMBaseline(trials=1, random_state=0).fit(X, y)
        >>> model.reasons(X[1:2], head="fraud").select("rank", "feature", "input", "median").rows()
        [(1, 'country', 'XX', None), (2, 'amount', '9.0', 5.0)]
        """
        self._require_fitted()
        inputs, _ = self._read_inputs(X, reset=False)
        return explain_reasons(
            self.model_,
            inputs,
            self._compared(background),
            head=head,
            n=n,
            words=words,
            groups=groups,
            budget=budget,
            seed=random_state,
        )

    def counterfactual(
        self,
        row: Any,
        *,
        head: str,
        target: float,
        changeable: Sequence[str] | Mapping[str, str] | None = None,
        most: int = 3,
    ) -> Counterfactual:
        """
        Find the fewest and smallest changes that bring a head's probability down to a target.

        Parameters
        ----------
        row : table of one row
        head : str
        target : float
            Probability to be reached, between 0 and 1.
        changeable : sequence of str, or mapping of str to {"both", "up", "down"}, optional
            Columns that may change. Default: those that the schema marks as changeable.
        most : int
            Most columns to change.

        Returns
        -------
        Counterfactual
            Checked by scoring the changed row.

        Raises
        ------
        ValueError
            If it is not one row, or no column may change.
        """
        self._require_fitted()
        raw = as_frame(row) if self.model_.schema else self._read_inputs(row, reset=False)[0]
        return find_counterfactual(
            self.model_,
            raw,
            self._compared(None),
            head=head,
            target=target,
            changeable=changeable,
            most=most,
        )

    def interactions(
        self,
        X: Any,
        *,
        head: str,
        strongest: int = 5,
        groups: Mapping[str, Sequence[str]] | None = None,
        background: Any = None,
        scale: str = "log_odds",
        calibrated: bool = True,
        budget: int = 16,
        random_state: int = 0,
    ) -> pl.DataFrame:
        """
        Say what pairs of a head's strongest columns do together beyond what each does alone.

        Parameters
        ----------
        X : table of shape (rows, columns)
        head : str
        strongest : int
            How many columns, by the mean size of their values over the rows.
        groups, background, scale, calibrated, random_state
            As in :meth:`explain`.
        budget : int
            Coalitions per background row and pair: even, at least 4. With fewer than 16 the
            errors of trees, whose steps often agree by chance, come out too small.

        Returns
        -------
        polars.DataFrame
            A line per row and pair: ``row``, ``head``, ``first``, ``second``, ``value`` (the
            Shapley interaction index) and its standard ``error``.

        Raises
        ------
        ValueError
            If the head or a column is unknown, or `strongest` is below 2.
        """
        self._require_fitted()
        inputs, _ = self._read_inputs(X, reset=False)
        return strongest_interactions(
            self.model_,
            inputs,
            self._compared(background),
            head=head,
            strongest=strongest,
            groups=groups,
            scale=scale,
            calibrated=calibrated,
            budget=budget,
            seed=random_state,
        )

    def gates(self, X: Any, *, by: str | Sequence[str] | None = None) -> pl.DataFrame:
        """
        Say which experts each head listens to.

        Parameters
        ----------
        X : table of shape (rows, columns)
        by : str or sequence of str, optional
            A column of `X`, or a segment per row. Default: all rows are one segment.

        Returns
        -------
        polars.DataFrame
            A line per level, head, expert and segment: ``weight``, the mean of the gate over rows
            and members; ``spread``, its standard deviation over the rows; ``rows``. An expert
            that belongs to a head, or is shared, is called after it; where heads are in groups,
            such as ``"shared by fraud+takeover 1"``.

        Raises
        ------
        ValueError
            If the network has no gates.
        """
        self._require_fitted()
        encoded = self._encode(X)
        if by is None:
            segments: Any = ["all"] * len(encoded)
        elif isinstance(by, str):
            frame = as_frame(X)
            if by not in frame.columns:
                raise ValueError(f"by: {unknown_name('column', by, frame.columns)}")
            segments = frame[by].cast(pl.String)
        else:
            segments = pl.Series(by, dtype=pl.String, strict=False)
            if len(segments) != len(encoded):
                raise ValueError(f"by has {len(segments)} segments for {len(encoded)} rows")
        return gate_use(self.model_, encoded, segments)

    def expert_columns(
        self, X: Any, *, background: Any = None, random_state: int = 0
    ) -> pl.DataFrame:
        """
        Say which columns move each expert.

        Parameters
        ----------
        X : table of shape (rows, columns)
            Some hundred rows will do.
        background : table, optional
            As in :meth:`explain`.
        random_state : int

        Returns
        -------
        polars.DataFrame
            A line per level, expert and column: ``share`` of the expert's moves where one column
            is replaced by that of a background row, and its standard ``error`` over the rows.

        Raises
        ------
        ValueError
            If the network has no gates.
        """
        self._require_fitted()
        return expert_columns(
            self.model_, self._encode(X), self._compared(background), seed=random_state
        )

    def _compared(self, background: Any) -> NDArray[np.float32]:
        """Encoded rows to compare with: those given, or those that the model keeps."""
        if background is not None:
            return self._encode(background)
        if self.model_.background is None:
            raise ValueError("the model keeps no background: give one")
        return self.model_.background
