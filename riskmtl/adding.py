"""One more head on a trained network."""

from __future__ import annotations

import math
import time
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.borrowing import borrowing
from riskmtl.calibration import fit_calibrator_to
from riskmtl.columns import KINDS, Task
from riskmtl.continuing import with_task
from riskmtl.deriving import DerivingMixin, network_of, spread
from riskmtl.frames import as_frame
from riskmtl.given import require_choice
from riskmtl.history import history_frame
from riskmtl.labels import Labels, read_label
from riskmtl.lineage import made_from, training_lineage
from riskmtl.model import Head, RiskModel, sigmoid, uncalibrated
from riskmtl.networks import IndependentNetworks, Network
from riskmtl.prepared import Prepared, blended, calibrated
from riskmtl.reference import Reference
from riskmtl.schema import DataSchema
from riskmtl.scorers import NetworkScorer, TreeScorer

ADDED = ("frozen", "distilled")


class AddingMixin(DerivingMixin, ABC):
    """The part of the estimator that adds a head."""

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
        scorer = network_of(self.model_)
        require_choice("shared", shared, ADDED)
        require_choice("kind", kind, KINDS)
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
        learned = [task.name] if shared == "frozen" else [head.task for head in model.heads]
        model.history = history_frame([row for row in trained.history if row["task"] in learned])
        return self._derived(model, changes)

    def _new_task(self, name: str | Task, kind: str, y: Any) -> tuple[Task, DataSchema | None]:
        """The task as a schema has it, and the schema that has it."""
        schema = self.model_.schema
        if isinstance(name, Task):
            if schema is None and y is None:
                raise ValueError("the model has no schema to read labels with: give y")
            if kind not in ("binary", name.kind):
                raise ValueError(f"the Task is of the kind {name.kind!r}: leave out kind={kind!r}")
            task = name
        elif not isinstance(name, str) or not name:
            raise ValueError(f"name must be the name of a task, or a Task, got {name!r}")
        elif y is None:
            raise ValueError(f"labels of task {name!r} are missing: give y, or a Task as name")
        else:
            task = Task(name, name, kind, positive=(1,), negative=(0,))
        names = [head.task for head in self.model_.scored]
        if task.name in names[len(self.model_.heads) :]:
            raise ValueError(
                f"the model keeps a task {task.name!r}, which others lean on: choose another name"
            )
        if task.name in names:
            raise ValueError(
                f"the model has a task {task.name!r} already: choose another name, or fine_tune"
            )
        if task.name in [column.name for column in self.model_.encoder.columns_]:
            raise ValueError(f"{task.name!r} is an input: a head would read its own answer")
        return task, None if schema is None else schema.with_task(task)

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
        whole = spread(data, len(heads), place)
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
            model.heads = blended(model, data, {place: 0})
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


def _label_of(task: Task, schema: DataSchema | None, X: Any, y: Any) -> Labels:
    return read_label(_read_by(task, schema, X) if y is None else y, task.name, kind=task.kind)


def _read_by(task: Task, schema: DataSchema | None, X: Any) -> pl.DataFrame:
    assert schema is not None
    return replace(schema, tasks=(task,)).labels(as_frame(X))


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


def _with_group(
    groups: Sequence[Sequence[str]], name: str, network: Network | IndependentNetworks
) -> list[list[str]]:
    """Groups with a new task: in the one network, or with one for itself."""
    if isinstance(network, Network):
        return [[*groups[0], name]]
    return [*(list(group) for group in groups), [name]]
