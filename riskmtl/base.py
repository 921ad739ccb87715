"""
The face that the network and its challengers share, in scikit-learn's manner.

An estimator reads tables and labels, holds rows out, leaves the learning to its subclass, adds
calibration and lineage, and answers from the :class:`~riskmtl.model.RiskModel` that results.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import narwhals as nw
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from riskmtl.artefact import ArtefactError, load_model, save_model
from riskmtl.encoding import FeatureEncoder
from riskmtl.errors import unknown_name
from riskmtl.explain.background import representative_rows
from riskmtl.explaining import ExplainerMixin
from riskmtl.frames import as_frame
from riskmtl.given import is_number
from riskmtl.holdout import held_out_rows
from riskmtl.labels import Labels, TaskLabels, encode_labels, read_labels
from riskmtl.lineage import training_lineage
from riskmtl.metrics import roc_auc
from riskmtl.model import Head, RiskModel, sigmoid
from riskmtl.prepared import (
    Prepared,
    calibrated,
    make_head,
    make_rows,
    require_weighted_classes,
    warn_of_uninformative,
)
from riskmtl.reference import Reference
from riskmtl.schema import DataSchema
from riskmtl.scorers import Scorer
from riskmtl.training.rows import TrainingRows


class MultiTaskEstimator(ExplainerMixin, ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """
    Base of the estimators; see :class:`riskmtl.MultiTaskClassifier` for the shared methods.

    A subclass stores its parameters untouched in ``__init__``, names those of this class among
    them (``schema``, ``categorical_features``, ``min_count``, ``regression_tasks``,
    ``validation_share``, ``calibrate``, ``random_state``), and defines :meth:`_check_parameters`
    and :meth:`_learn`.
    """

    schema: DataSchema | None
    categorical_features: Any
    min_count: int | str
    regression_tasks: Sequence[str]
    validation_share: float
    calibrate: bool
    random_state: Any

    model_: RiskModel
    tasks_: list[str]
    classes_: Any
    n_features_in_: int
    feature_names_in_: Any

    # Parameters that are objects of the running program and mean nothing on disk.
    _unsaved: ClassVar[frozenset[str]] = frozenset({"schema"})

    # ---- what a subclass defines ---------------------------------------------------------------

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise if a parameter of this class cannot be."""

    @abstractmethod
    def _learn(self, data: Prepared) -> tuple[Scorer, list[Head]]:
        """Train, and return the scorer and the heads, with shifts where events were reweighted."""

    # ---- fitting -------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """
        Learn from labelled rows.

        Parameters
        ----------
        X : table of shape (rows, columns)
            A polars or pandas frame, a lazy frame, an Arrow table or a 2-d array. With a schema:
            the raw table.
        y : frame, series or array of shape (rows,) or (rows, tasks), optional
            Labels, null or NaN where the outcome is not observed. May be left out with a schema,
            which reads them from `X`.
        sample_weight : array of shape (rows,), optional
        X_val, y_val, sample_weight_val : optional
            Rows for early stopping and calibration. Without them a share of `X` is held out: the
            latest rows where the schema has a time column, else at random by label pattern.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter, a column or a label cannot be; the message names it.
        """
        self._check_shared_parameters()
        self._check_parameters()
        started = time.perf_counter()
        data = self._prepare(X, y, sample_weight, X_val, y_val, sample_weight_val)
        model = self._fit_model(data, started)
        model.background = representative_rows(model, data.rows.x, seed=data.seed)
        model.reference = Reference.of(
            model.encoder.columns_, data.rows.x, model.tasks, model.margins(data.validation.x)
        )
        if model.challenger is not None:
            model.challenger.background = model.background
        self._take_up(model)
        return self

    def _prepare(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        X_val: Any,
        y_val: Any,
        sample_weight_val: Any,
    ) -> Prepared:
        """Read tables and labels, hold rows out, and encode."""
        X = as_frame(X) if _is_table(X) else X
        inputs, times = self._read_inputs(X, reset=True)
        labels = self._read_labels(X, y)
        weights = self._read_weights(X, sample_weight, inputs)
        check_consistent_length(inputs, labels.values)
        if self.schema is None:
            warn_of_uninformative(inputs)
        else:
            self.schema.require_informative(X)
        require_weighted_classes(labels, weights)
        seed = self._seed()
        held_out = np.zeros(inputs.height, dtype=bool)
        if X_val is None:
            share = self.validation_share
            held_out = held_out_rows(labels.values, times, share=share, seed=seed)
        encoder = FeatureEncoder(self._categorical(), min_count=self.min_count)
        encoder.fit(inputs.filter(~held_out))
        heads = [
            make_head(task, labels.values[~held_out, i]) for i, task in enumerate(labels.tasks)
        ]
        rows = make_rows(encoder.transform(inputs), labels.values, weights, heads)
        seen = rows.where(~held_out) if held_out.any() else rows
        if X_val is not None:
            validation = self._read_validation(
                X_val, y_val, sample_weight_val, labels.tasks, encoder, heads
            )
        else:
            validation = rows.where(held_out) if held_out.any() else rows
        return Prepared(encoder, labels.tasks, heads, seen, validation, seed, labels.is_single)

    def _fit_like(self, other: MultiTaskEstimator, data: Prepared) -> Self:
        """Learn from what another estimator prepared, and answer to the same columns."""
        self.random_state = data.seed
        self.n_features_in_ = other.n_features_in_
        if hasattr(other, "feature_names_in_"):
            self.feature_names_in_ = other.feature_names_in_
        self._take_up(self._fit_model(data, time.perf_counter()))
        return self

    def _fit_model(self, data: Prepared, started: float) -> RiskModel:
        """Learn, calibrate, and say where the model comes from."""
        scorer, heads = self._learn(data)
        if self.calibrate:
            heads = calibrated(scorer, heads, data)
        lineage = training_lineage(self.schema, data.tasks, data.rows, data.seed)
        lineage["seconds"] = round(time.perf_counter() - started, 3)
        made_by = {
            "class": type(self).__name__,
            "parameters": self._saved_parameters(),
            "is_single": data.is_single,
            "has_names": hasattr(self, "feature_names_in_"),
        }
        return RiskModel(data.encoder, scorer, heads, self.schema, lineage, made_by)

    def _check_shared_parameters(self) -> None:
        if self.schema is not None and not isinstance(self.schema, DataSchema):
            raise TypeError("schema must be a DataSchema: read one with riskmtl.load_schema")
        tasks = self.regression_tasks
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ValueError(f"regression_tasks must be a list of task names, got {tasks!r}")
        if not isinstance(self.calibrate, (bool, np.bool_)):
            raise ValueError(f"calibrate must be true or false, got {self.calibrate!r}")
        if not is_number(self.validation_share) or not 0 < self.validation_share < 1:
            raise ValueError(
                f"validation_share must lie between 0 and 1, got {self.validation_share!r}"
            )

    def _categorical(self) -> Any:
        if self.schema is None or self.categorical_features != "from_dtype":
            return self.categorical_features
        return self.schema.categorical_features

    def _read_inputs(self, X: Any, *, reset: bool) -> tuple[pl.DataFrame, pl.Series | None]:
        """Input columns of a table, in training order, and the rows' times where known."""
        if not _is_table(X):
            X = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")
            return as_frame(X, columns=None if reset else self._names()), None
        frame = as_frame(X)
        if self.schema is not None:
            inputs, times = self.schema.inputs(frame), self.schema.times(frame)
        else:
            inputs, times = frame, None
        if inputs.height == 0:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={inputs.shape}) while a minimum of 1 is "
                "required: the table has no rows"
            )
        if reset:
            self.feature_names_in_ = np.array(inputs.columns, dtype=object)
            self.n_features_in_ = inputs.width
        elif not hasattr(self, "feature_names_in_"):
            validate_data(self, X, reset=False, skip_check_array=True)
            return inputs.rename(dict(zip(inputs.columns, self._names(), strict=True))), times
        return inputs, times

    def _names(self) -> list[str]:
        return [column.name for column in self.model_.encoder.columns_]

    def _read_labels(self, X: Any, y: Any) -> Labels:
        regression = list(self.regression_tasks)
        if y is None and self.schema is not None:
            regression += [t.name for t in self.schema.tasks if t.kind == "regression"]
            y = self.schema.labels(as_frame(X))
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        labels = read_labels(y, regression=regression)
        if all(task.kind == "regression" for task in labels.tasks):
            raise ValueError("all tasks are regressions: at least one must be binary")
        return labels

    def _read_weights(self, X: Any, weights: Any, inputs: pl.DataFrame) -> Any:
        if weights is None and self.schema is not None:
            weights = self.schema.weights(as_frame(X))
        if weights is None:
            return None
        return _check_sample_weight(weights, inputs, dtype=np.float64, ensure_non_negative=True)

    def _read_validation(
        self,
        X: Any,
        y: Any,
        weights: Any,
        tasks: Sequence[TaskLabels],
        encoder: FeatureEncoder,
        heads: list[Head],
    ) -> TrainingRows:
        names = [column.name for column in encoder.columns_]
        frame = as_frame(X) if _is_table(X) else as_frame(np.asarray(X), columns=names)
        inputs = self.schema.inputs(frame) if self.schema is not None else frame
        if y is None and self.schema is not None:
            y = self.schema.labels(frame)
        if y is None:
            raise ValueError("X_val was given without y_val: give both, or neither")
        values = encode_labels(y, tasks)
        check_consistent_length(inputs, values)
        if not inputs.height:
            raise ValueError("X_val has no rows")
        weights = self._read_weights(frame, weights, inputs)
        return make_rows(encoder.transform(inputs), values, weights, heads)

    def _seed(self) -> int:
        try:
            generator = check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(f"random_state: {error}") from error
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(generator.randint(2**31 - 1))

    # ---- answering -----------------------------------------------------------------------------

    def _take_up(self, model: RiskModel) -> None:
        """Set what scikit-learn's users look for, from a fitted model."""
        self.model_ = model
        self.tasks_ = model.tasks
        self._is_single = bool(model.made_by["is_single"])
        classes = [np.array(head.classes) for head in model.heads if head.kind == "binary"]
        self.classes_ = classes[0] if self._is_single else classes

    def _saved_parameters(self) -> dict[str, Any]:
        parameters = {
            k: v for k, v in self.get_params(deep=False).items() if k not in self._unsaved
        }
        if not isinstance(parameters["random_state"], (int, type(None))):
            parameters["random_state"] = None
        return parameters

    def _encode(self, X: Any) -> NDArray[np.float32]:
        inputs, _ = self._read_inputs(X, reset=False)
        return self.model_.encoder.transform(inputs)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """
        Calibrated log-odds of each binary task.

        Parameters
        ----------
        X : table of shape (rows, columns)

        Returns
        -------
        ndarray of shape (rows, tasks); (rows,) after a fit on one column of labels
        """
        self._require_fitted()
        margins = self.model_.margins(self._encode(X))
        return margins[:, 0] if self._is_single else margins

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """
        P(positive) of each binary task.

        Parameters
        ----------
        X : table of shape (rows, columns)

        Returns
        -------
        ndarray of shape (rows, tasks)
            Columns as in ``tasks_``. After a fit on 1-d labels: (rows, 2), with P(negative) and
            P(positive), as scikit-learn's binary classifiers give them.
        """
        self._require_fitted()
        positive = self.model_.probabilities(self._encode(X))
        return np.column_stack([1 - positive, positive]) if self._is_single else positive

    def predict(self, X: Any) -> NDArray[Any]:
        """
        The likelier label of each binary task.

        Parameters
        ----------
        X : table of shape (rows, columns)

        Returns
        -------
        ndarray of shape (rows, tasks); (rows,) after a fit on one column of labels
        """
        self._require_fitted()
        likely = (self.model_.margins(self._encode(X)) > 0).astype(int)
        if self._is_single:
            return np.asarray(self.classes_[likely[:, 0]])
        columns = [classes[likely[:, i]] for i, classes in enumerate(self.classes_)]
        if len({column.dtype.kind in "OU" for column in columns}) > 1:
            # NumPy would make text of the numbers beside text.
            columns = [column.astype(object) for column in columns]
        return np.column_stack(columns)

    def predict_frame(self, X: Any) -> pl.DataFrame:
        """
        One named column per task.

        Parameters
        ----------
        X : table of shape (rows, columns)

        Returns
        -------
        polars.DataFrame
            P(positive) of binary tasks, predictions of regression tasks.
        """
        self._require_fitted()
        outputs = self.model_.outputs(self._encode(X))
        kinds = {head.task: head.kind for head in self.model_.heads}
        return pl.DataFrame(
            {t: sigmoid(v) if kinds[t] == "binary" else v for t, v in outputs.items()}
        )

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """
        Mean ROC AUC over the binary tasks, each over the rows that observe it.

        Parameters
        ----------
        X : table of shape (rows, columns)
        y : labels, optional with a schema
        sample_weight : array of shape (rows,), optional

        Returns
        -------
        float
            Tasks with one observed class are left out.
        """
        self._require_fitted()
        labels = self.read_labels(X, y)
        margins = self.model_.margins(self._encode(X))
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        scores = [roc_auc(labels[:, i], margins[:, i], weights) for i in range(margins.shape[1])]
        return float(np.nanmean(scores))

    def read_labels(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """
        Labels of the binary tasks as 0, 1 and NaN.

        Parameters
        ----------
        X : table
            Read for labels with the schema where `y` is not given.
        y : labels, optional

        Returns
        -------
        ndarray of shape (rows, tasks)
        """
        self._require_fitted()
        if y is None and self.model_.schema is not None:
            y = self.model_.schema.labels(as_frame(X))
        tasks = [TaskLabels(h.task, h.kind, h.classes) for h in self.model_.heads]
        binary = [i for i, task in enumerate(tasks) if task.kind == "binary"]
        return encode_labels(y, tasks)[:, binary]

    def _require_fitted(self) -> None:
        check_is_fitted(self, "model_")

    # ---- disk ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """
        Write the fitted model to a folder, whole or not at all.

        Parameters
        ----------
        folder : str or Path
            A new folder, or one that holds a model to be replaced.
        """
        self._require_fitted()
        save_model(self.model_, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """
        Read an estimator that :meth:`save` wrote.

        Parameters
        ----------
        folder : str or Path

        Returns
        -------
        estimator

        Raises
        ------
        riskmtl.artefact.ArtefactError
            If the folder is not a sound model, or one of another class.
        """
        model = load_model(folder, with_challenger=True)
        try:
            return cls._of(model)
        except ValueError as error:
            raise ArtefactError(f"{folder}: {error}") from error

    @classmethod
    def _of(cls, model: RiskModel) -> Self:
        """Put a fitted model behind an estimator of the class that made it."""
        made_by = model.made_by
        if made_by.get("class") != cls.__name__:
            raise ValueError(f"holds a {made_by.get('class')}, not a {cls.__name__}")
        for key in ("parameters", "is_single", "has_names"):
            if key not in made_by:
                raise ValueError(f"does not say {key!r} of its estimator")
        valid = cls._get_param_names()
        for name in made_by["parameters"]:
            if name not in valid:
                raise ValueError(unknown_name("parameter", name, valid))
        estimator = cls(**made_by["parameters"])
        if model.schema is not None:
            estimator.schema = model.schema
        if made_by["has_names"]:
            estimator.feature_names_in_ = model.encoder.feature_names_in_
        estimator.n_features_in_ = model.encoder.n_features_in_
        estimator._take_up(model)
        return estimator

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.target_tags.multi_output = True
        tags.classifier_tags.multi_class = False
        return tags


def _is_table(X: Any) -> bool:
    if isinstance(X, (pl.DataFrame, pl.LazyFrame)) or nw.dependencies.is_pandas_dataframe(X):
        return True
    return hasattr(X, "__arrow_c_stream__") and not nw.dependencies.is_into_series(X)
