"""
Challengers with the same face as the network: LightGBM and logistic regression, one per task.

LightGBM gets the encoder's matrix and nothing else: a polars category aborts its process, a null
label would count as a negative, columns would be taken in whatever order they come, and names with
JSON characters are refused. Codes in training order, observed rows only, and no names avoid all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from riskmtl.base import MultiTaskEstimator
from riskmtl.errors import unknown_name
from riskmtl.given import require_count
from riskmtl.metrics import average_precision
from riskmtl.model import Head
from riskmtl.prepared import Prepared
from riskmtl.schema import DataSchema
from riskmtl.scorers import LinearScorer, Scorer, TreeScorer
from riskmtl.training.rows import TrainingRows

_FIRST_TRIAL: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "lambda_l2": 0.0,
    "cat_smooth": 10.0,
}
# What a search adds to the settings that it kept.
_FOUND = ("trees", "validation_loss")
_TREES_WITHOUT_STOPPING = 100


class LightGBMBaseline(MultiTaskEstimator):
    """
    One LightGBM model per task, tuned on the validation rows.

    Parameters
    ----------
    trials : int
        Settings tried per task: sound ones first, then seeded random ones.
    settings : mapping of str to mapping, optional
        Task to the settings tried first instead, such as ``best_params_`` of an earlier fit; with
        ``trials=1`` the only ones.
    max_seconds : float, optional
        Most wall time for all tasks together; a trial begun is finished.
    n_estimators : int
        Most trees; early stopping on validation rows usually takes fewer.
    early_stopping : int
        Trees without improvement after which a trial ends.
    n_jobs : int, optional
        Threads; default: what LightGBM chooses.
    schema, categorical_features, min_count, regression_tasks, validation_share, calibrate, verbose
        As in :class:`riskmtl.MultiTaskClassifier`.
    random_state : int, RandomState or None

    Attributes
    ----------
    best_params_ : dict
        Task to the settings that were kept, with ``trees``.
    trials_ : dict
        Task to the list of all trials with their validation loss.

    Examples
    --------
    >>> import polars as pl
    >>> from riskmtl import LightGBMBaseline
    >>> X = pl.DataFrame({"amount": [float(i % 50) for i in range(400)]})
    >>> y = pl.DataFrame({"fraud": [int(i % 50 > 40) for i in range(400)]})
    >>> LightGBMBaseline(trials=1, n_jobs=1, random_state=0).fit(X, y).predict_proba(X).shape
    (400, 1)
    """

    _unsaved: ClassVar[frozenset[str]] = frozenset({"schema", "n_jobs"})

    def __init__(
        self,
        *,
        schema: DataSchema | None = None,
        categorical_features: Any = "from_dtype",
        min_count: int | str = "auto",
        regression_tasks: Sequence[str] = (),
        trials: int = 8,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        max_seconds: float | None = None,
        n_estimators: int = 2000,
        early_stopping: int = 50,
        calibrate: bool = True,
        validation_share: float = 0.15,
        n_jobs: int | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.schema = schema
        self.categorical_features = categorical_features
        self.min_count = min_count
        self.regression_tasks = regression_tasks
        self.trials = trials
        self.settings = settings
        self.max_seconds = max_seconds
        self.n_estimators = n_estimators
        self.early_stopping = early_stopping
        self.calibrate = calibrate
        self.validation_share = validation_share
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.random_state = random_state

    def _check_parameters(self) -> None:
        for name in ("trials", "n_estimators", "early_stopping"):
            require_count(name, getattr(self, name))
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds!r}")
        self._check_settings()

    def _check_settings(self) -> None:
        if self.settings is not None and not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must map tasks to settings, got {self.settings!r}")
        for task, settings in (self.settings or {}).items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"settings of {task!r} must be a mapping, got {settings!r}")
            for name in settings:
                if name not in (*_FIRST_TRIAL, *_FOUND):
                    raise ValueError(
                        f"settings of {task!r}: {unknown_name('setting', name, _FIRST_TRIAL)}"
                    )

    def require_tasks(self, tasks: Sequence[str]) -> None:
        """
        Refuse settings of a task that there is not.

        Parameters
        ----------
        tasks : sequence of str

        Raises
        ------
        ValueError
        """
        for task in self.settings or {}:
            if task not in tasks:
                raise ValueError(f"settings: {unknown_name('task', task, tasks)}")

    def _learn(self, data: Prepared) -> tuple[Scorer, list[Head]]:
        deadline = None if self.max_seconds is None else time.monotonic() + self.max_seconds
        categorical = [i for i, n in enumerate(data.encoder.cardinalities_) if n > 0]
        self.best_params_: dict[str, dict[str, Any]] = {}
        self.trials_: dict[str, list[dict[str, Any]]] = {}
        models = []
        bar = tqdm(
            total=self.trials * len(data.heads),
            desc="LightGBM",
            unit="trial",
            disable=not self.verbose,
        )
        self.require_tasks([head.task for head in data.heads])
        for position, head in enumerate(data.heads):
            rng = np.random.default_rng([data.seed, position])
            rows, validation = data.rows.only([position]), data.validation.only([position])
            search = _Search(self, head, rows, validation, categorical, data.seed)
            for trial in range(self.trials):
                if trial and deadline is not None and time.monotonic() > deadline:
                    break
                search.run(self._first_trial(head.task) if trial == 0 else _random_trial(rng))
                bar.update()
            models.append(search.model)
            self.best_params_[head.task] = search.best
            self.trials_[head.task] = search.tried
        bar.close()
        return TreeScorer(models, threads=self.n_jobs), data.heads

    def _first_trial(self, task: str) -> dict[str, Any]:
        given = (self.settings or {}).get(task, {})
        return {**_FIRST_TRIAL, **{k: v for k, v in given.items() if k not in _FOUND}}


class _Search:
    """The trials of one task; keeps the model with the lowest validation loss."""

    def __init__(
        self,
        baseline: LightGBMBaseline,
        head: Head,
        rows: TrainingRows,
        validation: TrainingRows,
        categorical: Sequence[int],
        seed: int,
    ) -> None:
        self.metric = "binary_logloss" if head.kind == "binary" else "l2"
        self.fixed: dict[str, Any] = {
            "objective": "binary" if head.kind == "binary" else "regression",
            "metric": self.metric,
            "bagging_freq": 1,
            "verbose": -1,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_row_wise": True,
            # All trials share one binned table, whatever their smallest leaf.
            "feature_pre_filter": False,
            "num_threads": baseline.n_jobs or 0,
        }
        self.baseline = baseline
        self.train = self._dataset(rows, categorical)
        # A task that no validation row observes cannot stop early: it keeps a modest number.
        self.can_stop = len(validation.y) > 0
        self.validation = self._dataset(validation, categorical, self.train)
        self.loss = float("inf")
        self.model = ""
        self.best: dict[str, Any] = {}
        self.tried: list[dict[str, Any]] = []

    def run(self, settings: dict[str, Any]) -> None:
        """Train with one set of settings."""
        import lightgbm

        most_trees = self.baseline.n_estimators
        stop = lightgbm.early_stopping(self.baseline.early_stopping, verbose=False)
        booster = lightgbm.train(
            {**self.fixed, **settings},
            self.train,
            most_trees if self.can_stop else min(most_trees, _TREES_WITHOUT_STOPPING),
            valid_sets=[self.validation] if self.can_stop else None,
            valid_names=["validation"] if self.can_stop else None,
            callbacks=[stop] if self.can_stop else None,
        )
        loss = booster.best_score["validation"][self.metric] if self.can_stop else 0.0
        trees = booster.best_iteration if self.can_stop else booster.num_trees()
        tried = {**settings, "trees": trees, "validation_loss": float(loss)}
        self.tried.append(tried)
        if loss < self.loss:
            self.loss, self.best = loss, tried
            self.model = booster.model_to_string(num_iteration=trees)

    def _dataset(
        self, rows: TrainingRows, categorical: Sequence[int], reference: Any = None
    ) -> Any:
        import lightgbm

        return lightgbm.Dataset(
            rows.x,
            np.ascontiguousarray(rows.y[:, 0]),
            weight=rows.weights,
            categorical_feature=list(categorical),
            reference=reference,
            params=self.fixed,
        )


def _random_trial(rng: np.random.Generator) -> dict[str, Any]:
    """Draw settings, log-uniform where they are scales."""
    return {
        "learning_rate": float(np.exp(rng.uniform(np.log(0.02), np.log(0.1)))),
        "num_leaves": int(np.exp(rng.uniform(np.log(8), np.log(128)))),
        "min_data_in_leaf": int(np.exp(rng.uniform(np.log(10), np.log(300)))),
        "feature_fraction": float(rng.uniform(0.4, 1.0)),
        "bagging_fraction": float(rng.uniform(0.6, 1.0)),
        "lambda_l2": float(np.exp(rng.uniform(np.log(1e-3), np.log(30)))),
        "cat_smooth": float(np.exp(rng.uniform(np.log(1), np.log(100)))),
    }


class LogisticBaseline(MultiTaskEstimator):
    """
    One logistic regression per task.

    Numbers are clipped at their outer half per cent and standardised, with a flag for missing;
    categories are one-hot.

    Parameters
    ----------
    strengths : sequence of float
        Inverse penalties tried; the one with the best average precision on the validation rows is
        kept.
    schema, categorical_features, min_count, validation_share, calibrate
        As in :class:`riskmtl.MultiTaskClassifier`.
    random_state : int, RandomState or None

    Attributes
    ----------
    best_strength_ : dict
        Task to the inverse penalty that was kept.
    """

    def __init__(
        self,
        *,
        schema: DataSchema | None = None,
        categorical_features: Any = "from_dtype",
        min_count: int | str = "auto",
        strengths: Sequence[float] = (0.001, 0.01, 0.1),
        calibrate: bool = True,
        validation_share: float = 0.15,
        random_state: Any = None,
    ) -> None:
        self.schema = schema
        self.categorical_features = categorical_features
        self.min_count = min_count
        self.strengths = strengths
        self.calibrate = calibrate
        self.validation_share = validation_share
        self.random_state = random_state

    # A logistic regression predicts no numbers.
    regression_tasks: Sequence[str] = ()

    def _check_parameters(self) -> None:
        if not len(self.strengths) or not all(strength > 0 for strength in self.strengths):
            raise ValueError(f"strengths must be positive numbers, got {self.strengths!r}")

    def _learn(self, data: Prepared) -> tuple[Scorer, list[Head]]:
        from sklearn.linear_model import LogisticRegression

        arrays = _scales(data.rows.x, data.encoder.cardinalities_)
        design, checked = _design(data.rows.x, arrays), _design(data.validation.x, arrays)
        columns, intercepts = [], []
        self.best_strength_: dict[str, float] = {}
        for position, head in enumerate(data.heads):
            y, y_val = data.rows.y[:, position], data.validation.y[:, position]
            seen = ~np.isnan(y)
            weights = None if data.rows.weights is None else data.rows.weights[seen]
            best = -np.inf
            for strength in self.strengths:
                fit = LogisticRegression(C=strength, max_iter=2000, tol=1e-3)
                fit.fit(design[seen], y[seen], sample_weight=weights)
                score = average_precision(y_val, fit.decision_function(checked))
                score = 0.0 if np.isnan(score) else score
                if score > best:
                    best, kept = score, fit
                    self.best_strength_[head.task] = float(strength)
            columns.append(kept.coef_[0])
            intercepts.append(kept.intercept_[0])
        return LinearScorer(_coefficients(arrays, np.array(columns).T, intercepts)), data.heads


def _scales(x: NDArray[np.float32], cardinalities: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Range, mean and deviation of each numeric column, and where each category's table begins."""
    features = len(cardinalities)
    arrays = {
        "low": np.zeros(features),
        "high": np.zeros(features),
        "mean": np.zeros(features),
        "scale": np.ones(features),
        "offset": np.full(features, -1, dtype=np.int64),
    }
    next_row = 0
    for position, cardinality in enumerate(cardinalities):
        if cardinality:
            arrays["offset"][position] = next_row
            next_row += cardinality
            continue
        values = x[:, position].astype(np.float64)
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        # Amounts have tails that a straight line must not follow.
        low, high = np.quantile(values, [0.005, 0.995])
        clipped = np.clip(values, low, high)
        arrays["low"][position], arrays["high"][position] = low, high
        arrays["mean"][position] = clipped.mean()
        arrays["scale"][position] = clipped.std() or 1.0
    arrays["codes"] = np.array(next_row)
    return arrays


def _design(x: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Sparse matrix: standardised numbers, flags for missing, one column per code."""
    from scipy import sparse

    is_number = arrays["offset"] < 0
    values = x[:, is_number].astype(np.float64)
    missing = np.isnan(values)
    scaled = np.clip(values, arrays["low"][is_number], arrays["high"][is_number])
    scaled = (scaled - arrays["mean"][is_number]) / arrays["scale"][is_number]
    scaled = np.where(missing, 0.0, scaled)
    codes = x[:, ~is_number].astype(np.int64) + arrays["offset"][~is_number]
    rows = np.repeat(np.arange(len(x)), codes.shape[1])
    one_hot = sparse.csr_array(
        (np.ones(codes.size), (rows, codes.ravel())), shape=(len(x), int(arrays["codes"]))
    )
    dense = sparse.csr_array(np.hstack([scaled, missing.astype(np.float64)]))
    return sparse.hstack([dense, one_hot], format="csr")


def _coefficients(
    arrays: Mapping[str, NDArray[Any]], weights: NDArray[np.float64], intercepts: Sequence[float]
) -> dict[str, NDArray[Any]]:
    """Lay the weights ``(design columns, heads)`` out as the scorer wants them."""
    is_number = arrays["offset"] < 0
    numbers, heads = int(is_number.sum()), weights.shape[1]
    slope = np.zeros((len(is_number), heads))
    missing = np.zeros((len(is_number), heads))
    slope[is_number] = weights[:numbers]
    missing[is_number] = weights[numbers : 2 * numbers]
    scales = {name: arrays[name] for name in ("low", "high", "mean", "scale", "offset")}
    return {
        **scales,
        "slope": slope,
        "missing": missing,
        "table": weights[2 * numbers :],
        "intercept": np.array(intercepts),
    }
