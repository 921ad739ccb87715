"""What an explanation holds, and the forms it takes elsewhere."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """
    Contributions of each feature to each head's answer, with their errors.

    Parameters
    ----------
    values : ndarray of shape (rows, features, heads)
        What each feature adds to a head's answer, compared with the background.
    errors : ndarray of shape (rows, features, heads)
        Standard error of each value; NaN where it is not known (``"path"``).
    base : ndarray of shape (heads,)
        Mean answer over the background.
    outputs : ndarray of shape (rows, heads)
        The answers; ``base + values.sum(1)``, only nearly so with ``"path"``.
    features, heads : list of str
        Names: columns, or groups of columns.
    inputs : polars.DataFrame
        The explained rows.
    encoded : ndarray of shape (rows, features)
        Their values as numbers, codes for categories; NaN for a group of several columns.
    scale : {"log_odds", "probability"}
    calibrated : bool
        Whether the answers are those after calibration.
    method : {"sampled", "path", "tree"}
        The last two explain other games; see :meth:`riskmtl.MultiTaskClassifier.explain`.
    background : str
        Hash of the rows compared with.
    permutations : ndarray of int, shape (rows,)
        Permutations per background row; 0 where nothing was sampled.
    met : ndarray of bool, shape (rows,)
        Whether what was wanted was met, and not the budget used up.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    base: NDArray[np.float64]
    outputs: NDArray[np.float64]
    features: list[str]
    heads: list[str]
    inputs: pl.DataFrame
    encoded: NDArray[np.float64]
    scale: str
    calibrated: bool
    method: str
    background: str
    permutations: NDArray[np.int64]
    met: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        rows, features, heads = self.values.shape
        state = "calibrated" if self.calibrated else "uncalibrated"
        if self.method == "path":
            quality = f"approximate, largest residual {self.residual.max(initial=0):.2g}"
        else:
            quality = f"largest error {self.errors.max(initial=0):.2g}"
        return (
            f"Explanation({rows} rows, {features} features, {heads} heads; {self.method}, "
            f"{state} {self.scale}, background {self.background}, {quality})"
        )

    @property
    def residual(self) -> NDArray[np.float64]:
        """How far base and values miss the answer, ``(rows, heads)``."""
        residual: NDArray[np.float64] = np.abs(self.base + self.values.sum(1) - self.outputs)
        return residual

    def head(self, name: str) -> int:
        """
        Position of a head.

        Parameters
        ----------
        name : str

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If there is no such head; the message names the nearest.
        """
        if name not in self.heads:
            raise ValueError(unknown_name("head", name, self.heads))
        return self.heads.index(name)

    def to_frame(self) -> pl.DataFrame:
        """
        One line per row, head and feature.

        Returns
        -------
        polars.DataFrame
            ``row``, ``head``, ``feature``, ``value``, ``error``, ``method``.
        """
        rows, features, heads = self.values.shape
        return pl.DataFrame(
            {
                "row": np.repeat(np.arange(rows), heads * features),
                "head": pl.Series(np.repeat(self.heads, features).tolist() * rows),
                "feature": pl.Series(self.features * (rows * heads)),
                "value": self.values.transpose(0, 2, 1).ravel(),
                "error": self.errors.transpose(0, 2, 1).ravel(),
            }
        ).with_columns(method=pl.lit(self.method))

    def to_shap(self, head: str) -> Any:
        """
        One head as shap's plots take it.

        Parameters
        ----------
        head : str

        Returns
        -------
        shap.Explanation
            With the rows as the user gave them as ``display_data``.

        Raises
        ------
        ImportError
            If shap is not installed.
        """
        try:
            with warnings.catch_warnings():
                # shap 0.51 makes its colours in a way that matplotlib will give up.
                warnings.simplefilter("ignore", PendingDeprecationWarning)
                import shap
        except ImportError as error:
            message = "shap's plots need shap: pip install 'riskmtl[explain]'"
            raise ImportError(message) from error
        position = self.head(head)
        names = set(self.inputs.columns)
        shown = [
            self.inputs[name].to_list() if name in names else [None] * len(self)
            for name in self.features
        ]
        return shap.Explanation(
            values=self.values[:, :, position],
            base_values=np.full(len(self), self.base[position]),
            data=self.encoded,
            display_data=np.array(shown, dtype=object).T,
            feature_names=self.features,
            error_std=self.errors[:, :, position],
            output_names=f"{head} (path attributions, approximate)"
            if self.method == "path"
            else head,
        )
