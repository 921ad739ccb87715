"""What can be done with a trained network: add a head, keep some heads, move to other rows."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.base import MultiTaskEstimator
from riskmtl.blending import UNDECIDED, blend_weight
from riskmtl.borrowing import borrowing
from riskmtl.calibration import fit_calibrator_to
from riskmtl.columns import KINDS, Task
from riskmtl.continuing import tuned, with_task
from riskmtl.errors import unknown_name
from riskmtl.explain.background import representative_rows
from riskmtl.frames import as_frame
from riskmtl.given import require_count, require_positive
from riskmtl.history import history_frame
from riskmtl.holdout import held_out_rows
from riskmtl.labels import Labels, TaskLabels, encode_labels, read_label
from riskmtl.lineage import made_from, training_lineage
from riskmtl.model import Head, RiskModel, sigmoid, uncalibrated
from riskmtl.networks import IndependentNetworks, Network
from riskmtl.prepared import Prepared, calibrated, make_head, make_rows
from riskmtl.reference import Reference
from riskmtl.saving import Saving, saving_of
from riskmtl.schema import DataSchema
from riskmtl.scorers import NetworkScorer, TreeScorer
from riskmtl.training.rows import TaskPlan, TrainingRows

if TYPE_CHECKING:
    from riskmtl.baseline import LightGBMBaseline
    from riskmtl.training.config import TrainingConfig

ADDED = ("frozen", "distilled")
TUNED = ("learned", "frozen")
# Of the rate that training anew would take: what is there already should move, not be forgotten.
_GENTLE = 0.1
# Parameters that say something of each task.
_PER_TASK = ("task_weights", "event_weight", "warm_up", "balanced_events", "selected_by")
# What a copy takes from its own model.
_LEARNED = (
    *("challenger_", "blend_weights_", "saving_"),
    *("history_", "best_epoch_", "best_epochs_"),
)


class _Rows(NamedTuple):
    """Encoded rows with labels as the model counts them, before they are standardised."""

    encoded: NDArray[np.float32]
    values: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    times: pl.Series | None


class AdaptingMixin(MultiTaskEstimator, ABC):
    """Methods of a fitted network that make another estimator of it; none changes it."""

    saving_: Saving
    few_events: int
    network: str

    @abstractmethod
    def _training(self, rows: int, seed: int) -> TrainingConfig:
        """How a network is trained on so many rows."""

    @abstractmethod
    def _plan(self, data: Prepared, names: list[str]) -> TaskPlan:
        """The tasks as the loss sees them."""

    @abstractmethod
    def _beside(self) -> LightGBMBaseline:
        """The challenger to be trained."""

    # ---- one more head -------------------------------------------------------------------------

    def add_task(
        self,
        name: str | Task,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        shared: str = "frozen",
        kind: str = "binary",
        X_val: Any = None,
        y_val: Any = None,
        epochs: int | None = None,
        learning_rate: float | str = "auto",
    ) -> Self:
        """
        A copy with one more head on the trained network, without forgetting the others.

        Parameters
        ----------
        name : str or Task
            What the new task is called. A :class:`riskmtl.schema.Task` says where a schema's table
            has its label, and when that counts as observed.
        X : table of shape (rows, columns)
            With the columns of training. Encoder and embedding stay as they are: categories that
            were not seen then are unseen still.
        y : series, frame or array of one column, optional
            Labels of the new task, null or NaN where not observed. May be left out where `name` is
            a ``Task`` and the model has a schema.
        sample_weight : array of shape (rows,), optional
        shared : {"frozen", "distilled"}
            ``"frozen"``: only what the network has grown by learns (the new head's tower, gate and
            experts, as the way of sharing has it). The other heads answer as before, but for the
            rounding of float32 products of another size, measured at up to 1e-6 of a log-odds and
            not at all at the default sizes. ``"distilled"``:
            everything learns, and the other heads are held to what they said: their labels are
            their own probabilities on `X` (Li and Hoiem 2016, "Learning without forgetting").
            Networks that share nothing with the new task are left alone either way.
        kind : {"binary", "regression"}
        X_val, y_val : optional
            Rows for early stopping and calibration. Without them a share of `X` is held out, as
            in :meth:`fit`.
        epochs : int, optional
            Default: as many as `fit` had at most.
        learning_rate : float or "auto"
            ``"auto"``: what `fit` would take for so many rows; a tenth of it where the shared part
            learns too.

        Returns
        -------
        MultiTaskClassifier
            The new task is the last. Background and reference for the old heads stay; the lineage
            says in ``made_from`` what it was made from. A challenger gets a LightGBM model for the
            new task, trained on the same rows.

        Raises
        ------
        ValueError
            If the name is taken, labels are missing, or the way of sharing has no room for another
            task without a change of the old heads (several levels of PLE, heads that read one
            another).

        Notes
        -----
        Labels of the old tasks are not read. The tasks' losses are summed, whatever `balancing` and
        `schedule` say. With a schema, the new task is added to it: under ``label=name``, with 0 and
        1 for the two labels in order, unless `name` is a ``Task``.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import MultiTaskClassifier
        >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX"] * 100})
        >>> y = pl.DataFrame({"fraud": [0, 1] * 100, "takeover": [0, 1, None, 0] * 50})
        >>> model = MultiTaskClassifier(network="mmoe", epochs=2, random_state=0).fit(X, y)
        >>> model.add_task("default", X, [0, 1, 1, 0] * 50).tasks_
        ['fraud', 'takeover', 'default']
        """
        self._require_fitted()
        started = time.perf_counter()
        scorer = _network_of(self.model_)
        _require_choice("shared", shared, ADDED)
        _require_choice("kind", kind, KINDS)
        task, schema = self._new_task(name, kind, y)
        found = _label_of(task, schema, X, y)
        label = found.tasks[0]
        rows = self._encoded(X, found.values, sample_weight)
        validation = None
        if X_val is not None:
            y_val = _read_by(task, schema, X_val) if y_val is None and y is None else y_val
            validation = self._validation(X_val, y_val, (label,))
        if schema is not None and label.kind == "binary":
            # As the schema reads them.
            label = replace(label, classes=(0.0, 1.0))
        seed = self._seed()
        data = self._held_out(
            rows, validation, (label,), seed, keep_unobserved=shared == "distilled"
        )
        config = self._continued(
            len(data.rows.x),
            seed,
            folder=f"add_task {task.name} {shared}",
            epochs=epochs,
            learning_rate=learning_rate,
            is_gentle=shared == "distilled",
        )
        factor = self._event_factor(task, data.rows.y[:, 0])
        larger, trained = with_task(scorer, self.model_.scored, config, data, factor, shared)
        new = replace(data.heads[0], shift=math.log(factor))
        model = self._with_head(larger, new, data, schema)
        if shared == "distilled" and isinstance(scorer.network, Network):
            model.heads[:-1] = _held(model, self.model_, data)
        lineage = training_lineage(schema, data.tasks, data.rows, seed)
        lineage["tasks"] = {**self.model_.lineage.get("tasks", {}), **lineage["tasks"]}
        lineage["seconds"] = round(time.perf_counter() - started, 3)
        lineage["made_from"] = made_from(
            self.model_.lineage, f"add_task({task.name!r}, shared={shared!r})"
        )
        model.lineage = lineage
        changes: dict[str, Any] = {}
        if schema is not None:
            changes["schema"] = schema
        elif task.kind == "regression":
            changes["regression_tasks"] = [*self.regression_tasks, task.name]
        if getattr(self, "groups", None):
            changes["groups"] = _with_group(self.groups, task.name, scorer.network)
        history = [row for row in trained.history if shared != "frozen" or row["task"] == task.name]
        model.history = history_frame(history)
        return self._derived(model, changes)

    def _new_task(self, name: str | Task, kind: str, y: Any) -> tuple[Task, DataSchema | None]:
        """The task as a schema has it, and the schema that has it."""
        schema = self.model_.schema
        if isinstance(name, Task):
            if schema is None and y is None:
                raise ValueError("the model has no schema to read labels with: give y")
            task = name
        elif not isinstance(name, str) or not name:
            raise ValueError(f"name must be the name of a task, or a Task, got {name!r}")
        elif y is None:
            raise ValueError(f"labels of task {name!r} are missing: give y, or a Task as name")
        else:
            task = Task(name, name, kind, positive=(1,), negative=(0,))
        names = [head.task for head in self.model_.scored]
        if task.name in names:
            raise ValueError(
                f"the model has a task {task.name!r} already: choose another name, or fine_tune"
            )
        if task.name in [column.name for column in self.model_.encoder.columns_]:
            raise ValueError(f"{task.name!r} is an input: a head would read its own answer")
        return task, None if schema is None else schema.with_task(task)

    def _encoded(self, X: Any, values: NDArray[np.float64], weights: Any) -> _Rows:
        inputs, times = self._read_inputs(X, reset=False)
        if inputs.height != len(values):
            raise ValueError(f"X has {inputs.height} rows, y has {len(values)}")
        weights = self._read_weights(X, weights, inputs)
        return _Rows(self.model_.encoder.transform(inputs), values, weights, times)

    def _validation(self, X: Any, y: Any, tasks: Sequence[TaskLabels]) -> _Rows:
        if y is None:
            raise ValueError("X_val was given without y_val: give both, or neither")
        return self._encoded(X, encode_labels(y, tasks), None)

    def _held_out(
        self,
        rows: _Rows,
        validation: _Rows | None,
        tasks: Sequence[TaskLabels],
        seed: int,
        *,
        heads: list[Head] | None = None,
        keep_unobserved: bool = False,
    ) -> Prepared:
        """Rows to learn from and rows to watch, with heads at their beginning."""
        seen = ~np.isnan(rows.values)
        observed = seen.any(axis=0)
        held_out = np.zeros(len(rows.values), dtype=bool)
        if validation is None:
            share = self.validation_share
            held_out = held_out_rows(rows.values[:, observed], rows.times, share=share, seed=seed)
        if heads is None:
            heads = [make_head(t, rows.values[~held_out, i]) for i, t in enumerate(tasks)]
        all_rows = make_rows(rows.encoded, rows.values, rows.weights, heads)
        wanted = seen.any(axis=1) | keep_unobserved
        learned = all_rows.where(~held_out & wanted)
        if validation is not None:
            watched = make_rows(*validation[:3], heads)
        else:
            watched = all_rows.where(held_out & wanted) if held_out.any() else learned
        return Prepared(self.model_.encoder, tuple(tasks), heads, learned, watched, seed, False)

    def _continued(
        self,
        rows: int,
        seed: int,
        *,
        folder: str,
        epochs: int | None,
        learning_rate: float | str,
        is_gentle: bool,
    ) -> TrainingConfig:
        """How to go on training, beside the checkpoint of the first fit."""
        config = self._training(rows, seed)
        if epochs is not None:
            require_count("epochs", epochs)
            config = replace(config, epochs=int(epochs))
        if learning_rate != "auto":
            require_positive("learning_rate", learning_rate)
            config = replace(config, learning_rate=float(learning_rate))
        elif is_gentle:
            config = replace(config, learning_rate=_GENTLE * config.learning_rate)
        if config.checkpoint_dir is not None:
            config = replace(config, checkpoint_dir=Path(config.checkpoint_dir) / folder)
        return config

    def _event_factor(self, task: Task, labels: NDArray[np.float32]) -> float:
        """Factor on the events of a new task, as the estimator's parameters have it."""
        given = self.get_params(deep=False)["event_weight"]
        if task.kind == "regression" or given is None:
            return 1.0
        if isinstance(given, Mapping):
            return float(given.get(task.name, 1.0))
        seen = labels[~np.isnan(labels)]
        events = float(seen.sum())
        return (len(seen) - events) / events if 0 < events < len(seen) else 1.0

    def _with_head(
        self, scorer: NetworkScorer, new: Head, data: Prepared, schema: DataSchema | None
    ) -> RiskModel:
        """The model with a new last head: leaning, calibrated, blended, with its reference."""
        before = self.model_
        binary = tuple(head.task for head in before.scored if head.kind == "binary")
        # A head leans on those that it was fitted on, and not on a newcomer.
        old = [
            replace(h, leans_on=h.leans_on or tuple(t for t in binary if t != h.task))
            if h.lent
            else h
            for h in before.heads
        ]
        # Raw outputs have the lenders before the newcomer; it goes before them.
        order = [*range(len(old)), len(before.scored), *range(len(old), len(before.scored))]
        if before.lenders:
            scorer = scorer.only(order)
        heads = [*old, new, *before.lenders]
        place = len(old)
        whole = _spread(data, len(heads), place)
        if data.is_held_out and self.network != "single_task":
            raw = scorer.raw(data.validation.x)
            alone = [replace(h, own=1.0, lent=0.0, lift=0.0) for h in heads]
            leaning = borrowing(alone, raw, whole.rows, whole.validation, few=self.few_events)[
                place
            ]
            heads[place] = replace(leaning, leans_on=binary) if leaning.lent else leaning
        if self.calibrate:
            heads[place] = calibrated(scorer, heads, whole)[place]
        model = replace(before, scorer=scorer, heads=heads[: place + 1], schema=schema)
        if before.challenger is not None:
            model.challenger = self._with_trees(before.challenger, data, schema)
        if before.made_by["parameters"]["challenger"] == "blend":
            model.heads[place] = _mixed(model, model.heads[place], data)
        if before.reference is not None and new.kind == "binary":
            margins = model.margins(data.validation.x)[:, -1:]
            scores = Reference.of((), data.rows.x, [new.task], margins).scores
            model.reference = replace(before.reference, scores=(*before.reference.scores, *scores))
        return model

    def _with_trees(
        self, challenger: RiskModel, data: Prepared, schema: DataSchema | None
    ) -> RiskModel:
        """The challenger with a LightGBM model for the new task."""
        beside = self._beside()
        if beside.settings is not None:
            name = data.tasks[0].name
            beside.settings = {k: v for k, v in beside.settings.items() if k == name} or None
        found = beside._fit_like(self, data).model_
        assert isinstance(challenger.scorer, TreeScorer)
        assert isinstance(found.scorer, TreeScorer)
        return replace(
            challenger,
            scorer=TreeScorer(
                [*challenger.scorer.models, *found.scorer.models], threads=challenger.scorer.threads
            ),
            heads=[*challenger.heads, *found.heads],
            made_by={**challenger.made_by, "is_single": False},
            schema=schema,
        )

    # ---- fewer heads ---------------------------------------------------------------------------

    def only(self, *heads: str, report: bool = True) -> Self:
        """
        A smaller model that holds just what some heads use, and scores them as this one does.

        Parameters
        ----------
        *heads : str
            Tasks to keep, at least one of them binary; they stay in the model's order.
        report : bool
            Whether to print what is saved.

        Returns
        -------
        MultiTaskClassifier
            With ``saving_``, a :class:`riskmtl.saving.Saving`, which its lineage keeps too. Where
            a head leans on others, these stay in the network but give no answer. Where a way of
            sharing mixes all heads, such as several levels of PLE, the whole trunk stays and little
            is saved.

        Raises
        ------
        ValueError
            If a head is unknown, or none is left that is binary.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import MultiTaskClassifier
        >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX"] * 100})
        >>> y = pl.DataFrame({"fraud": [0, 1] * 100, "takeover": [0, 1, None, 0] * 50})
        >>> model = MultiTaskClassifier(epochs=2, random_state=0).fit(X, y)
        >>> smaller = model.only("fraud", report=False)
        >>> smaller.tasks_, 0.5 < smaller.saving_.parameters_kept < 1
        (['fraud'], True)
        """
        self._require_fitted()
        _network_of(self.model_)
        names = [head.task for head in self.model_.heads]
        for head in heads:
            if head not in names:
                raise ValueError(unknown_name("head", head, names))
        kept = [name for name in names if name in heads]
        if not set(kept) & set(self.tasks_):
            raise ValueError("only() needs at least one binary head")
        model = self.model_.only(kept)
        saving = saving_of(self.model_, model)
        how = f"only({', '.join(map(repr, kept))})"
        lineage = {k: v for k, v in self.model_.lineage.items() if k != "model_id"}
        if "tasks" in lineage:
            lineage["tasks"] = {k: v for k, v in lineage["tasks"].items() if k in kept}
        lineage["made_from"] = {**made_from(self.model_.lineage, how), "saving": asdict(saving)}
        model.lineage = lineage
        smaller = self._derived(model, self._parameters_of(kept))
        smaller.saving_ = saving
        if report:
            print(f"{', '.join(kept)}: {saving}")
        return smaller

    def _parameters_of(self, kept: Sequence[str]) -> dict[str, Any]:
        """Parameters with what they say of other tasks left out."""
        own = self.get_params(deep=False)
        changes: dict[str, Any] = {}
        for name in _PER_TASK:
            if isinstance(own[name], Mapping):
                changes[name] = {
                    task: value
                    for task, value in own[name].items()
                    if task in kept and (name != "selected_by" or value in kept)
                }
        if own["groups"]:
            groups = [[task for task in group if task in kept] for group in own["groups"]]
            changes["groups"] = [group for group in groups if group]
        changes["regression_tasks"] = [t for t in self.regression_tasks if t in kept]
        if self.model_.schema is not None:
            changes["schema"] = self.model_.schema.only(kept)
        return changes

    # ---- other rows ----------------------------------------------------------------------------

    def fine_tune(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        shared: str = "learned",
        X_val: Any = None,
        y_val: Any = None,
        epochs: int | None = None,
        learning_rate: float | str = "auto",
    ) -> Self:
        """
        A copy that goes on learning on other rows, such as a new portfolio with few labels.

        Parameters
        ----------
        X : table of shape (rows, columns)
            With the columns of training. Encoder and embedding's bins stay as they are: categories
            that were not seen then are unseen still.
        y : labels, optional with a schema
            Of all tasks, with the two values of each that the model knows; null or NaN where not
            observed. A task may have no observed label at all.
        sample_weight : array of shape (rows,), optional
        shared : {"learned", "frozen"}
            Whether the shared part of the network learns along with what each head has for itself.
        X_val, y_val : optional
            As in :meth:`add_task`.
        epochs : int, optional
            Default: as many as `fit` had at most.
        learning_rate : float or "auto"
            ``"auto"``: a tenth of what `fit` would take for so many rows.

        Returns
        -------
        MultiTaskClassifier
            Where no epoch is better on the rows held out, its weights are those it started from.
            Each head is calibrated anew where enough events were held out, else as before.
            Background and reference are the new rows'. A challenger is calibrated anew and not
            trained; a blend's weights are fitted anew. The lineage says in ``made_from`` what it
            was made from.

        Raises
        ------
        ValueError
            If no label is observed, or a label is none that the model knows.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import MultiTaskClassifier
        >>> X = pl.DataFrame({"amount": [1.0, 9.0] * 100, "country": ["FR", "XX"] * 100})
        >>> y = pl.DataFrame({"fraud": [0, 1] * 100, "takeover": [0, 1, None, 0] * 50})
        >>> model = MultiTaskClassifier(network="mmoe", epochs=2, random_state=0).fit(X, y)
        >>> tuned = model.fine_tune(X[:120], y[:120], epochs=1)
        >>> tuned.model_.lineage["made_from"]["how"], tuned.model_.lineage["rows"]
        ("fine_tune(shared='learned')", 104)
        """
        self._require_fitted()
        started = time.perf_counter()
        scorer = _network_of(self.model_)
        _require_choice("shared", shared, TUNED)
        if shared == "frozen" and isinstance(scorer.network, IndependentNetworks):
            raise ValueError("networks that share nothing have no shared part to freeze")
        seed = self._seed()
        data = self._other_rows(X, y, sample_weight, X_val, y_val, seed)
        names = [head.task for head in self.model_.scored]
        config = self._continued(
            len(data.rows.x),
            seed,
            folder=f"fine_tune {shared}",
            epochs=epochs,
            learning_rate=learning_rate,
            is_gentle=True,
        )
        plan = replace(
            self._plan(data, names),
            # What reweighting once added to the log-odds is subtracted still.
            positive_weights=tuple(math.exp(head.shift) for head in self.model_.scored),
            event_rates=(),
            warm_up=(),
        )
        trained = tuned(scorer, plan, config, data, shared)
        model = self._on_other_rows(trained.network, data)
        lineage = training_lineage(self.model_.schema, data.tasks, data.rows, seed)
        lineage["seconds"] = round(time.perf_counter() - started, 3)
        lineage["made_from"] = made_from(self.model_.lineage, f"fine_tune(shared={shared!r})")
        model.lineage = lineage
        model.history = history_frame(trained.history)
        return self._derived(model, {})

    def _other_rows(
        self, X: Any, y: Any, weights: Any, X_val: Any, y_val: Any, seed: int
    ) -> Prepared:
        heads = self.model_.scored
        tasks = [TaskLabels(head.task, head.kind, head.classes) for head in self.model_.heads]
        if y is None and self.model_.schema is not None:
            y = self.model_.schema.labels(as_frame(X))
        if y is None:
            raise ValueError("fine_tune needs y: the model has no schema to read labels with")
        values = encode_labels(y, tasks)
        if np.isnan(values).all():
            raise ValueError("y has no observed label: there is nothing to learn from")
        rows, validation = self._encoded(X, values, weights), None
        if X_val is not None:
            if y_val is None and self.model_.schema is not None:
                y_val = self.model_.schema.labels(as_frame(X_val))
            validation = self._validation(X_val, y_val, tasks)
        data = self._held_out(rows, validation, tasks, seed, heads=list(self.model_.heads))
        extra = len(heads) - len(tasks)
        if not extra:
            return data
        # Heads that only lend are not observed.
        lent = [TaskLabels(h.task, h.kind, h.classes) for h in self.model_.lenders]
        padded = _spread(data, len(heads), slice(0, len(tasks)))
        return replace(padded, tasks=(*data.tasks, *lent), heads=heads)

    def _on_other_rows(self, network: Network | IndependentNetworks, data: Prepared) -> RiskModel:
        """The model with a tuned network: calibration, challenger, blend, background, reference."""
        before = self.model_
        assert isinstance(before.scorer, NetworkScorer)
        scorer = before.scorer.with_network(network)
        heads = before.scored
        if self.calibrate:
            heads = _recalibrated(calibrated(scorer, heads, data), heads)
        model = replace(before, scorer=scorer, heads=heads[: len(before.heads)])
        if before.challenger is not None:
            theirs = before.challenger
            if self.calibrate:
                again = calibrated(theirs.scorer, theirs.heads, data)
                theirs = replace(theirs, heads=_recalibrated(again, theirs.heads))
            model.challenger = theirs
        if before.made_by["parameters"]["challenger"] == "blend":
            # Where events are too few for a calibrator, they are too few for a share.
            model.heads = [
                _mixed(model, head, data, position=i)
                if head.calibrator is not before.heads[i].calibrator
                else head
                for i, head in enumerate(model.heads)
            ]
        model.background = representative_rows(model, data.rows.x, seed=data.seed)
        if model.challenger is not None:
            model.challenger = replace(model.challenger, background=model.background)
        model.reference = Reference.of(
            model.encoder.columns_, data.rows.x, model.tasks, model.margins(data.validation.x)
        )
        return model

    # ---- another estimator ---------------------------------------------------------------------

    def _derived(self, model: RiskModel, changes: Mapping[str, Any]) -> Self:
        """A copy of this estimator that answers with another model."""
        other = copy.copy(self)
        for attribute in _LEARNED:
            other.__dict__.pop(attribute, None)
        for name, value in changes.items():
            setattr(other, name, value)
        model.made_by = {
            **self.model_.made_by,
            "parameters": other._saved_parameters(),
            "is_single": self._is_single and len(model.heads) == len(self.model_.heads),
        }
        other._take_up(model)
        return other


def _network_of(model: RiskModel) -> NetworkScorer:
    assert isinstance(model.scorer, NetworkScorer)
    return model.scorer


def _require_choice(name: str, value: Any, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(unknown_name(name, value, valid))


def _label_of(task: Task, schema: DataSchema | None, X: Any, y: Any) -> Labels:
    return read_label(_read_by(task, schema, X) if y is None else y, task.name, kind=task.kind)


def _read_by(task: Task, schema: DataSchema | None, X: Any) -> pl.DataFrame:
    assert schema is not None
    return replace(schema, tasks=(task,)).labels(as_frame(X))


# ---- heads ---------------------------------------------------------------------------------------


def _spread(data: Prepared, heads: int, places: int | slice) -> Prepared:
    """The same rows with a column of labels per head, those of some heads filled."""

    def wider(rows: TrainingRows) -> TrainingRows:
        y = np.full((len(rows.y), heads), np.nan, dtype=np.float32)
        y[:, [places] if isinstance(places, int) else places] = rows.y
        return TrainingRows(rows.x, y, rows.weights)

    rows = wider(data.rows)
    return replace(data, rows=rows, validation=wider(data.validation) if data.is_held_out else rows)


def _held(model: RiskModel, before: RiskModel, data: Prepared) -> list[Head]:
    """Old heads, calibrated to what they answered before."""
    x = data.validation.x
    raw = uncalibrated(model.scored, model.scorer.raw(x))
    answers = before.finished(before.scorer.raw(x))
    return [
        replace(
            head, calibrator=fit_calibrator_to(head.calibrator, sigmoid(answers[:, i]), raw[:, i])
        )
        if head.kind == "binary"
        else head
        for i, head in enumerate(model.heads[:-1])
    ]


def _recalibrated(again: Sequence[Head], before: Sequence[Head]) -> list[Head]:
    """Heads as calibrated anew, where that was possible."""
    return [
        new if new.calibrator.is_fitted else old for new, old in zip(again, before, strict=True)
    ]


def _mixed(model: RiskModel, head: Head, data: Prepared, *, position: int = 0) -> Head:
    """A head with the network's share in a blend, as :meth:`fit` would find it."""
    if not data.is_held_out or head.kind != "binary":
        return replace(head, blend=UNDECIDED)
    assert model.challenger is not None
    rows = data.validation
    alone = replace(model, heads=[replace(h, blend=1.0) for h in model.heads])
    own, other = alone.outputs(rows.x)[head.task], model.challenger.outputs(rows.x)[head.task]
    return replace(head, blend=blend_weight(rows.y[:, position], own, other, rows.weights))


def _with_group(
    groups: Sequence[Sequence[str]], name: str, network: Network | IndependentNetworks
) -> list[list[str]]:
    """Groups with a new task: in the one network, or with one for itself."""
    if isinstance(network, Network):
        return [[*groups[0], name]]
    return [*(list(group) for group in groups), [name]]
