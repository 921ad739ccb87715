"""Fewer heads of a trained network, and a trained network on other rows."""

from __future__ import annotations

import math
import time
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import numpy as np

from riskmtl.continuing import tuned
from riskmtl.deriving import DerivingMixin, network_of, spread
from riskmtl.errors import unknown_name
from riskmtl.explain.background import representative_rows
from riskmtl.frames import as_frame
from riskmtl.given import require_choice
from riskmtl.history import history_frame
from riskmtl.labels import TaskLabels, encode_labels
from riskmtl.lineage import made_from, training_lineage
from riskmtl.model import Head, RiskModel
from riskmtl.networks import IndependentNetworks, Network
from riskmtl.prepared import Prepared, blended, calibrated
from riskmtl.reference import Reference
from riskmtl.saving import Saving, saving_of
from riskmtl.scorers import NetworkScorer

TUNED = ("learned", "frozen")
# Parameters that say something of each task.
_PER_TASK = ("task_weights", "event_weight", "warm_up", "balanced_events", "selected_by")


class AdaptingMixin(DerivingMixin, ABC):
    """The part of the estimator that keeps some heads, and moves to other rows."""

    saving_: Saving

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
        network_of(self.model_)
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
            observed. A task may have no observed label at all, unless its network is its own.
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
        scorer = network_of(self.model_)
        require_choice("shared", shared, TUNED)
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
        answering = [head.task for head in model.heads]
        lineage["tasks"] = {task: lineage["tasks"][task] for task in answering}
        model.lineage = lineage
        model.history = history_frame([row for row in trained.history if row["task"] in answering])
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
        padded = spread(data, len(heads), slice(0, len(tasks)))
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
            refitted = [
                i
                for i, (new, old) in enumerate(zip(model.heads, before.heads, strict=True))
                if new.calibrator is not old.calibrator
            ]
            model.heads = blended(model, data, {i: i for i in refitted})
        model.background = representative_rows(model, data.rows.x, seed=data.seed)
        if model.challenger is not None:
            model.challenger = replace(model.challenger, background=model.background)
        model.reference = Reference.of(
            model.encoder.columns_, data.rows.x, model.tasks, model.margins(data.validation.x)
        )
        return model


def _recalibrated(again: Sequence[Head], before: Sequence[Head]) -> list[Head]:
    """Heads as calibrated anew, where that was possible."""
    return [
        new if new.calibrator.is_fitted else old for new, old in zip(again, before, strict=True)
    ]
