"""Scoring batch by batch: rows that keep the schema get scores, the others a rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import DataError
from riskmtl.errors import unknown_name
from riskmtl.explain.attribution import explain_rows
from riskmtl.explain.policy import RowPolicy
from riskmtl.explain.reasons import reasons_of
from riskmtl.explain.wording import ReasonTable
from riskmtl.frames import as_frame
from riskmtl.grades import MASTER_SCALE, grades_of
from riskmtl.model import RiskModel, sigmoid
from riskmtl.schema import Checked
from riskmtl.scorers import TreeScorer
from riskmtl.threads import one_thread_each

EMPTY_QUARANTINE = pl.DataFrame(schema={"_row": pl.Int64, "_rule": pl.String})
_NO_REASONS = pl.DataFrame(schema={"row": pl.Int64, "reasons": pl.List(pl.String)})
# As many rows as share the work of a background well.
_EXPLAINED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """
    What is written of each row.

    Parameters
    ----------
    graded : sequence of str
        Heads that have rating grades; those that the model lacks are passed over.
    grades : sequence of float
        Ascending upper bounds of the grades' probabilities, the last one 1.
    challenger : bool
        Whether to add the challenger's probabilities.
    reasons : str
        Rows that get reasons: ``score>=0.2`` (of any head) or ``all``; empty: none.
    words : ReasonTable, optional
        Whose codes to write for the heads that it names; else columns are named.
    most_reasons : int
        Per row and head.
    budget : int
        Most permutations per background row; see :meth:`riskmtl.MultiTaskClassifier.explain`.
    """

    graded: tuple[str, ...] = ("default",)
    grades: tuple[float, ...] = MASTER_SCALE
    challenger: bool = False
    reasons: str = ""
    words: ReasonTable | None = None
    most_reasons: int = 4
    budget: int = 4

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {**asdict(self), "words": None if self.words is None else self.words.digest}


class Scored(NamedTuple):
    """
    One scored batch.

    Parameters
    ----------
    scores : polars.DataFrame
        A line per row of the batch; see :func:`score_batches`.
    quarantine : polars.DataFrame
        Refused rows with ``_row``, counted from the first batch's first row, and ``_rule``.
    counts : dict or None
        The scored rows by the bins of the model's reference, if it keeps one.
    """

    scores: pl.DataFrame
    quarantine: pl.DataFrame
    counts: dict[str, dict[str, list[int]]] | None

    def ruled(self) -> pl.DataFrame:
        """Give the scores with ``_rule``, the rule that refused a row, null where none did."""
        rules = self.quarantine.select("_row", "_rule")
        return self.scores.join(rules, on="_row", how="left", maintain_order="left")


def score_batches(
    model: RiskModel, batches: Iterable[Any], settings: ScoreSettings | None = None
) -> Iterator[Scored]:
    """
    Score an iterable of tables.

    Parameters
    ----------
    model : RiskModel
    batches : iterable of tables
        See :func:`riskmtl.frames.as_frame`.
    settings : ScoreSettings, optional

    Yields
    ------
    Scored
        One per batch, in order. Its scores have ``_row``, key and time columns; for each binary
        task ``p_<task>`` and ``margin_<task>``, its probability and log-odds, perhaps
        ``grade_<task>``, ``p_<task>_challenger`` and ``reasons_<task>``; a regression as
        ``<task>``; and ``quarantined``, true for a refused row, which has no score.

    Raises
    ------
    riskmtl.schema.DataError
        If a batch lacks a column, or has one too many or of a wrong type.
    ValueError
        If the settings do not go with the model.
    """
    scorer = BatchScorer(model, settings or ScoreSettings())
    first_row = 0
    for batch in batches:
        frame = as_frame(batch)
        yield scorer.score(frame, first_row)
        first_row += frame.height


class BatchScorer:
    """
    Score tables with one model.

    Parameters
    ----------
    model : RiskModel
    settings : ScoreSettings

    Raises
    ------
    ValueError
        If the settings do not go with the model.
    """

    def __init__(self, model: RiskModel, settings: ScoreSettings) -> None:
        self.model = model
        self.settings = settings
        self.policy = RowPolicy.parse(settings.reasons) if settings.reasons else None
        grades_of(np.empty(0), settings.grades)
        if settings.challenger and model.challenger is None:
            raise ValueError("the model has no challenger: train it with one, or leave it out")
        if self.policy is not None:
            self._require_reasons(self.policy)

    def _require_reasons(self, policy: RowPolicy) -> None:
        model, words = self.model, self.settings.words
        if policy.kind not in ("score", "all"):
            raise ValueError(
                f"reasons: {self.settings.reasons!r} needs the scores of all rows at once: write "
                "score>=0.2 or all, or explain the rows afterwards with riskmtl explain"
            )
        if model.background is None:
            raise ValueError("the model keeps no background to compare with: train it again")
        if words is None:
            return
        for head in words.heads:
            if head not in model.tasks:
                raise ValueError(unknown_name("head of the words", head, model.tasks))
            words.require_fit(head, model.encoder.columns_, model.schema)

    @property
    def identity(self) -> dict[str, Any]:
        """What a file made with this scorer says of its models."""
        challenger = self.model.challenger if self.settings.challenger else None
        own = None if challenger is None else challenger.lineage.get("model_id")
        return {**self.model.identity, "challenger_id": own}

    def require_columns(self, dtypes: Mapping[str, pl.DataType], *, is_text: bool = False) -> None:
        """
        Refuse a table by its columns alone.

        Parameters
        ----------
        dtypes : mapping of str to polars.DataType
        is_text : bool
            Whether all values are written as text, so that names alone count.

        Raises
        ------
        riskmtl.schema.DataError
            If a column is missing, not declared, or of the wrong type, or if nobody can say what
            type a text stands for.
        """
        if self.model.schema is None and is_text:
            raise DataError(
                "the model was trained without a schema, which alone could say what the texts of "
                "a CSV file stand for: give Parquet, or train it with a schema"
            )
        if self.model.schema is not None:
            known = dict.fromkeys(dtypes, pl.Null()) if is_text else dtypes
            self.model.schema.require_columns(known, labelled=False)

    def columns(self, present: Iterable[str]) -> list[str]:
        """Those of a table's columns that must be read: keys, inputs, and the row's time."""
        schema, names = self.model.schema, list(present)
        if schema is None:
            return names
        asked = [*schema.needed(labelled=False), *(c.name for c in schema.with_role("time"))]
        return [name for name in dict.fromkeys(asked) if name in names]

    def parsed(self, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """Read a table of text; see :meth:`riskmtl.schema.DataSchema.from_text`."""
        assert self.model.schema is not None
        return self.model.schema.from_text(raw)

    @contextmanager
    def in_one_thread(self) -> Iterator[int]:
        """Score in one thread, and give how many there were: tables are scored side by side."""
        models = [self.model, *([self.model.challenger] if self.model.challenger else [])]
        trees = [one.scorer for one in models if isinstance(one.scorer, TreeScorer)]
        before = [scorer.threads for scorer in trees]
        for scorer in trees:
            scorer.threads = 1
        try:
            with one_thread_each() as threads:
                yield threads
        finally:
            for scorer, threads_before in zip(trees, before, strict=True):
                scorer.threads = threads_before

    def score(
        self, frame: pl.DataFrame, first_row: int = 0, broken: pl.Series | None = None
    ) -> Scored:
        """
        Score one table.

        Parameters
        ----------
        frame : polars.DataFrame
        first_row : int
            Number of its first row.
        broken : polars.Series of String, optional
            A rule for each row that must be refused, null for the others.

        Returns
        -------
        Scored
        """
        good, quarantine = self._checked(frame, broken)
        encoded = self.model.encode(good)
        outputs = self.model.outputs(encoded)
        answers = pl.DataFrame(self._answers(good, encoded, outputs))
        is_good = np.ones(frame.height, dtype=bool)
        if quarantine.height:
            is_good[quarantine["_row"].to_numpy()] = False
            answers = _spread(answers, is_good)
        rows = pl.Series("_row", np.arange(first_row, first_row + frame.height))
        scores = pl.DataFrame(
            [
                rows,
                *self._keys(frame),
                *answers.get_columns(),
                pl.Series("quarantined", ~is_good),
            ]
        )
        refused = quarantine.with_columns(pl.col("_row") + first_row)
        return Scored(scores, refused, self._counts(encoded, outputs))

    def _checked(self, frame: pl.DataFrame, broken: pl.Series | None) -> Checked:
        schema = self.model.schema
        if schema is None or frame.is_empty():
            return Checked(frame, EMPTY_QUARANTINE.hstack(frame.clear().get_columns()))
        return schema.check(frame, labelled=False, broken=broken)

    def _keys(self, frame: pl.DataFrame) -> list[pl.Series]:
        schema = self.model.schema
        return [] if schema is None else schema.keys(frame).get_columns()

    def _counts(
        self, encoded: NDArray[np.float32], outputs: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, dict[str, list[int]]] | None:
        if self.model.reference is None:
            return None
        margins = np.column_stack([outputs[task] for task in self.model.tasks])
        return self.model.reference.count(encoded, margins)

    def _answers(
        self,
        good: pl.DataFrame,
        encoded: NDArray[np.float32],
        outputs: Mapping[str, NDArray[np.float64]],
    ) -> list[pl.Series]:
        """Columns of answers for the rows that keep the schema."""
        model, settings = self.model, self.settings
        challenger = model.challenger if settings.challenger else None
        others = {} if challenger is None else challenger.outputs(encoded)
        binary = {task: sigmoid(outputs[task]) for task in model.tasks}
        reasons = self._reasons(good, binary)
        columns = []
        for head in model.heads:
            task = head.task
            if task not in binary:
                columns.append(pl.Series(task, outputs[task], dtype=pl.Float32))
                continue
            found = {f"p_{task}": binary[task], f"margin_{task}": outputs[task]}
            if challenger is not None:
                found[f"p_{task}_challenger"] = sigmoid(others[task])
            columns += [pl.Series(name, v, dtype=pl.Float32) for name, v in found.items()]
            if task in settings.graded:
                grades = grades_of(binary[task], settings.grades)
                columns.append(pl.Series(f"grade_{task}", grades, dtype=pl.UInt8))
            columns += reasons.get(task, [])
        return columns

    def _reasons(
        self, good: pl.DataFrame, probabilities: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, list[pl.Series]]:
        """Reasons by binary task, best first, where the rule asks for them; null elsewhere."""
        if self.policy is None:
            return {}
        chosen = self.policy.choose(np.column_stack(list(probabilities.values())))
        inputs = self.model.schema.inputs(good) if self.model.schema else good
        found = [
            self._explained(inputs[chosen[i : i + _EXPLAINED_AT_ONCE]], chosen[i:])
            for i in range(0, len(chosen), _EXPLAINED_AT_ONCE)
        ]
        place = pl.DataFrame({"row": np.arange(good.height)})
        columns = {}
        for task in self.model.tasks:
            of_task = pl.concat([_NO_REASONS, *(by_task[task] for by_task in found)])
            listed = place.join(of_task, on="row", how="left", maintain_order="left")
            columns[task] = [listed["reasons"].alias(f"reasons_{task}")]
        return columns

    def _explained(
        self, inputs: pl.DataFrame, places: NDArray[np.int64]
    ) -> dict[str, pl.DataFrame]:
        model, words = self.model, self.settings.words
        assert model.background is not None
        explanation = explain_rows(
            model,
            inputs,
            model.background,
            groups=None if words is None else words.groups,
            budget=self.settings.budget,
        )
        found = {}
        for task in model.tasks:
            is_worded = words is not None and task in words.heads
            table = reasons_of(
                explanation,
                model.background,
                model.encoder.columns_,
                head=task,
                n=self.settings.most_reasons,
                words=words if is_worded else None,
            )
            named = pl.col("code" if is_worded else "feature").alias("reasons")
            listed = table.group_by("row", maintain_order=True).agg(named)
            row = pl.Series("row", places[listed["row"].to_numpy()])
            found[task] = listed.with_columns(row)
        return found


def _spread(answers: pl.DataFrame, is_good: NDArray[np.bool_]) -> pl.DataFrame:
    """Put answers in their rows' places, null in those of refused rows."""
    place = pl.Series(np.cumsum(is_good) - 1, dtype=pl.Int64)
    place = place.set(pl.Series(~is_good), None)
    return answers.select(pl.all().gather(place))
