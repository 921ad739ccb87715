"""
A fitted model: what training makes, the disk keeps and scoring uses.

It holds schema, encoder, scorer, heads with their calibrators, and lineage, and knows neither
scikit-learn's manners nor how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.calibration import Calibrator
from riskmtl.columns import KINDS
from riskmtl.encoding import FeatureEncoder
from riskmtl.errors import unknown_name
from riskmtl.frames import as_frame
from riskmtl.reference import Reference
from riskmtl.schema import DataSchema
from riskmtl.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Head:
    """
    From a scorer's raw output to a task's answer.

    Parameters
    ----------
    task : str
    kind : {"binary", "regression"}
    classes : tuple
        Label of the negative and of the positive class; empty for a regression.
    shift : float
        Subtracted from raw log-odds: what reweighting events in training added.
    mean, scale : float
        Of the labels of a regression task in training.
    calibrator : Calibrator
    blend : float
        Share of these log-odds in the answer; the rest is the challenger's.
    own, lent, lift : float
        What is calibrated: `own` times the head's log-odds, `lent` times the mean of the other
        binary heads', and `lift`. See :func:`riskmtl.borrowing.borrowing`.
    leans_on : tuple of str
        Whose mean that is; empty: all other binary heads'.
    answers : bool
        Whether it gives an answer, or only lends to other heads.
    """

    task: str
    kind: str = "binary"
    classes: tuple[Any, ...] = (0, 1)
    shift: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    calibrator: Calibrator = field(default_factory=Calibrator)
    blend: float = 1.0
    own: float = 1.0
    lent: float = 0.0
    lift: float = 0.0
    leans_on: tuple[str, ...] = ()
    answers: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {**asdict(self), "calibrator": self.calibrator.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Head:
        """Build a head from what :meth:`to_dict` gave."""
        if values["kind"] not in KINDS:
            raise ValueError(unknown_name("kind", values["kind"], KINDS))
        if not 0 <= values["blend"] <= 1:
            raise ValueError(f"blend must lie between 0 and 1, got {values['blend']!r}")
        calibrator = Calibrator.from_dict(values["calibrator"])
        texts = {name: tuple(values.get(name, ())) for name in ("classes", "leans_on")}
        return cls(**{**values, **texts, "calibrator": calibrator})


def uncalibrated(heads: Sequence[Head], raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Log-odds of binary heads, or predictions of regressions, before calibration.

    Parameters
    ----------
    heads : sequence of Head
    raw : ndarray of shape (rows, heads)
        What the scorer gives.

    Returns
    -------
    ndarray of shape (rows, heads)
    """
    factors, offsets = linear_form(heads)
    return raw @ factors.T + offsets


def linear_form(heads: Sequence[Head]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    How uncalibrated answers follow from raw outputs: factors and an offset for each head.

    Parameters
    ----------
    heads : sequence of Head

    Returns
    -------
    factors : ndarray of shape (heads, heads)
        A line per answer.
    offsets : ndarray of shape (heads,)
    """
    factors = np.diag([head.scale for head in heads])
    offsets = np.array([head.mean - head.shift for head in heads])
    alone = factors.copy(), offsets.copy()
    binary = [i for i, head in enumerate(heads) if head.kind == "binary"]
    for i in binary:
        head, others = heads[i], [j for j in binary if j != i]
        if head.leans_on:
            others = [j for j in others if heads[j].task in head.leans_on]
        if head.lent:
            factors[i] = head.own * alone[0][i] + head.lent * alone[0][others].mean(0)
            offsets[i] = head.own * alone[1][i] + head.lent * alone[1][others].mean() + head.lift
    return factors, offsets


def taken_by(heads: Sequence[Head], chosen: Sequence[int]) -> list[int]:
    """
    Which raw outputs the answers of some heads take: their own, and those they lean on.

    Parameters
    ----------
    heads : sequence of Head
    chosen : sequence of int
        Positions of the heads that answer.

    Returns
    -------
    list of int
        Positions in ascending order.

    Examples
    --------
    >>> taken_by([Head("a"), Head("b", lent=0.5), Head("c")], [0])
    [0]
    >>> taken_by([Head("a"), Head("b", lent=0.5), Head("c")], [1])
    [0, 1, 2]
    """
    factors, _ = linear_form(heads)
    taken: list[int] = np.flatnonzero(factors[list(chosen)].any(axis=0)).tolist()
    return taken


@dataclass(slots=True)
class RiskModel:
    """
    A fitted model of several tasks.

    Parameters
    ----------
    encoder : FeatureEncoder
    scorer : Scorer
    heads : list of Head
    schema : DataSchema, optional
        Given one, tables come in raw, with missing codes and dates as the schema says.
    lineage : dict
        Where the model comes from.
    made_by : dict
        Class and parameters of the estimator that trained it, as plain values.
    challenger : RiskModel, optional
        A model of the same tasks trained on the same rows. A blend answers with both.
    background : ndarray of shape (rows, features), optional
        Encoded training rows that explanations compare with.
    reference : Reference, optional
        How training rows and scores were distributed, for drift.
    history : polars.DataFrame, optional
        What the network's training recorded of each epoch and task; see
        :attr:`riskmtl.MultiTaskClassifier.history_`.
    lenders : list of Head
        Heads of the scorer, after those that answer, that these lean on.
    """

    encoder: FeatureEncoder
    scorer: Scorer
    heads: list[Head]
    schema: DataSchema | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    challenger: RiskModel | None = None
    background: NDArray[np.float32] | None = None
    reference: Reference | None = None
    history: pl.DataFrame | None = None
    lenders: list[Head] = field(default_factory=list)

    @classmethod
    def load(cls, folder: str | Path, *, with_challenger: bool = False) -> RiskModel:
        """Read a model from a folder; see :func:`riskmtl.artefact.load_model`."""
        from riskmtl.artefact import load_model

        return load_model(folder, with_challenger=with_challenger)

    @property
    def is_blend(self) -> bool:
        """Whether the challenger has a share in the answers."""
        return any(head.blend < 1 for head in self.heads)

    @property
    def kind(self) -> str:
        """``"blend"``, or the name of its scorer."""
        return "blend" if self.is_blend else self.scorer.name

    @property
    def identity(self) -> dict[str, Any]:
        """What a file made with this model says of it."""
        return {name: self.lineage.get(name) for name in ("model_id", "schema_sha256")}

    def parts(self) -> dict[str, RiskModel]:
        """The models that answer, by kind: a blend's network and challenger, or the model alone."""
        if not self.is_blend:
            return {self.kind: self}
        assert self.challenger is not None
        alone = replace(
            self, heads=[replace(head, blend=1.0) for head in self.heads], challenger=None
        )
        return {alone.kind: alone, self.challenger.kind: self.challenger}

    @property
    def tasks(self) -> list[str]:
        """Names of the binary tasks, in the order of the columns of :meth:`probabilities`."""
        return [head.task for head in self.heads if head.kind == "binary"]

    @property
    def scored(self) -> list[Head]:
        """Heads of the scorer's outputs: those that answer, then those that only lend."""
        return [*self.heads, *self.lenders]

    def only(self, tasks: Sequence[str]) -> RiskModel:
        """
        A model that answers for some of the tasks as this one does.

        Parameters
        ----------
        tasks : sequence of str
            At least one of them binary. The order stays that of this model.

        Returns
        -------
        RiskModel
            Without what only the other heads use; heads that these lean on stay behind the scenes.
            The schema forgets the other tasks; their labels become columns to ignore.
        """
        heads = self.scored
        chosen = [i for i, head in enumerate(self.heads) if head.task in tasks]
        lenders = [i for i in taken_by(heads, chosen) if i not in chosen]
        reference = self.reference
        if reference is not None:
            scores = tuple(bins for bins in reference.scores if bins.name in tasks)
            reference = replace(reference, scores=scores)
        return replace(
            self,
            scorer=self.scorer.only([*chosen, *lenders]),
            heads=[heads[i] for i in chosen],
            lenders=[
                replace(heads[i], own=1.0, lent=0.0, lift=0.0, answers=False) for i in lenders
            ],
            schema=None if self.schema is None else self.schema.only(tasks),
            challenger=None if self.challenger is None else self.challenger.only(tasks),
            reference=reference,
            history=_of_tasks(self.history, tasks),
        )

    def encode(self, table: Any) -> NDArray[np.float32]:
        """Encode a table as the scorer wants it, ``(rows, features)``."""
        frame = as_frame(table)
        return self.encoder.transform(self.schema.inputs(frame) if self.schema else frame)

    def outputs(
        self, encoded: NDArray[np.float32] | Tensor, *, calibrated: bool = True
    ) -> dict[str, NDArray[np.float64]]:
        """
        Log-odds, or predictions, of every head.

        Parameters
        ----------
        encoded : ndarray or Tensor of shape (rows, features)
            A tensor may lie on the device of a network that answers alone.
        calibrated : bool
            A blend mixes calibrated log-odds whatever is asked.

        Returns
        -------
        dict of str to ndarray of shape (rows,)
        """
        found = self.finished(self.scorer.raw(encoded), calibrated=calibrated)
        outputs = {head.task: found[:, i] for i, head in enumerate(self.heads)}
        if not self.is_blend:
            return outputs
        assert self.challenger is not None
        # Both were trained on the same rows, so their encoders are the same too.
        others = self.challenger.outputs(encoded)
        return {
            head.task: head.blend * outputs[head.task] + (1 - head.blend) * others[head.task]
            for head in self.heads
        }

    def finished(self, raw: NDArray[np.float64], *, calibrated: bool = True) -> NDArray[np.float64]:
        """
        What follows from the scorer's raw outputs, without a challenger.

        Parameters
        ----------
        raw : ndarray of shape (rows, heads of the scorer)
        calibrated : bool

        Returns
        -------
        ndarray of shape (rows, heads)
            Log-odds, or predictions.
        """
        found = uncalibrated(self.scored, raw)[:, : len(self.heads)]
        if not calibrated:
            return found
        return np.column_stack(
            [head.calibrator.apply(found[:, i]) for i, head in enumerate(self.heads)]
        )

    def margins(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated log-odds of the binary heads, ``(rows, binary tasks)``."""
        outputs = self.outputs(encoded)
        return np.column_stack([outputs[task] for task in self.tasks])

    def probabilities(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """P(positive) of the binary heads, ``(rows, binary tasks)``."""
        return sigmoid(self.margins(encoded))

    def predict_frame(self, table: Any) -> pl.DataFrame:
        """
        Score a table.

        Parameters
        ----------
        table : table
            See :func:`riskmtl.frames.as_frame`.

        Returns
        -------
        polars.DataFrame
            One column per task: P(positive), or the prediction of a regression.
        """
        outputs = self.outputs(self.encode(table))
        return pl.DataFrame(
            {
                head.task: sigmoid(outputs[head.task])
                if head.kind == "binary"
                else outputs[head.task]
                for head in self.heads
            }
        )


def _of_tasks(history: pl.DataFrame | None, tasks: Sequence[str]) -> pl.DataFrame | None:
    own = None if history is None else history.filter(pl.col("task").is_in(tasks))
    return None if own is None or own.is_empty() else own


def sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of log-odds, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(margins, -700, 700))), dtype=np.float64)
