"""What all sections of a validation look at, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import DataError, moment
from riskmtl.errors import unknown_name
from riskmtl.frames import as_frame
from riskmtl.model import RiskModel
from riskmtl.schema import Checked, DataSchema
from riskmtl.validation.comparison import DRAWN, compare_heads
from riskmtl.validation.criteria import Criterion
from riskmtl.validation.explained import Explained, explained
from riskmtl.validation.result import Finding, Question, Result, Verdict
from riskmtl.validation.settings import Settings

Array = NDArray[np.float64]
_DRAWS = 200
_MOST_VINTAGES = 60


class Rows:
    """
    Rows of a table as a model sees them.

    Parameters
    ----------
    model : RiskModel
    frame : polars.DataFrame
        Rows that keep the schema.
    """

    def __init__(self, model: RiskModel, frame: pl.DataFrame) -> None:
        assert model.schema is not None
        self.model, self.frame, self.schema = model, frame, model.schema

    @cached_property
    def labels(self) -> Array:
        """Labels of the binary heads, ``(rows, heads)``; NaN where not observed."""
        found = self.schema.labels(self.frame).select(self.model.tasks).cast(pl.Float64)
        return found.fill_null(float("nan")).to_numpy()

    @cached_property
    def encoded(self) -> NDArray[np.float32]:
        """Encoded inputs, ``(rows, columns)``."""
        return self.model.encode(self.frame)

    @cached_property
    def scores(self) -> Array:
        """Probabilities of the binary heads, ``(rows, heads)``."""
        return self.model.probabilities(self.encoded)

    @cached_property
    def months(self) -> pl.Series | None:
        """Month of each row as text such as ``2024-05``; ``None`` without a time column."""
        if self.schema.time is None or self.schema.time.name not in self.frame.columns:
            return None
        month = moment(self.schema.time).dt.strftime("%Y-%m").alias("month")
        return self.frame.select(month).to_series()

    @cached_property
    def customers(self) -> NDArray[np.int64] | None:
        """
        A number per customer, if several rows of the table have the same customer.

        The customer is the key column that repeats; the first, if several do.
        """
        for column in self.schema.with_role("key"):
            codes = self.frame[column.name].rank("dense").cast(pl.Int64).to_numpy() - 1
            if codes.max() + 1 < len(codes):
                return np.asarray(codes)
        return None


def beside(model: RiskModel) -> dict[str, RiskModel]:
    """The parts of a blend, or the challenger that a model keeps, by kind."""
    if model.is_blend:
        return model.parts()
    return {} if model.challenger is None else {model.challenger.kind: model.challenger}


@dataclass(eq=False)
class Evidence:
    """
    A fitted model and the rows it is held against.

    Parameters
    ----------
    model : RiskModel or estimator
        With a schema.
    table : table
        Labelled rows that the model has not seen.
    reference : table, optional
        Labelled rows it was trained on.
    challengers : mapping of str to RiskModel or estimator, optional
        Other models of the same tasks, by name. One called ``single_task`` shows what joint
        training did. The model's own challenger and parts are always there.
    settings : Settings, optional

    Raises
    ------
    riskmtl.columns.DataError
        If the model has no schema, the table does not keep it, a challenger has other tasks, or
        the settings name a head or column that is not there, or a vintage of too many values.
    """

    model: RiskModel
    table: Any
    reference: Any = None
    challengers: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    _compared: dict[str, pl.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.model = getattr(self.model, "model_", self.model)
        if self.model.schema is None:
            raise DataError("the model has no schema: train it with one to validate it")
        self.given = {name: getattr(m, "model_", m) for name, m in self.challengers.items()}
        for name, other in self.given.items():
            missing = [task for task in self.tasks if task not in other.tasks]
            if missing:
                raise DataError(f"challenger {name!r} has no head {missing[0]!r}")
        self.raw = as_frame(self.table)
        self.checked: Checked = self.schema.check(self.raw)
        if self.checked.good.is_empty():
            raise DataError("no row of the table keeps the schema")
        self._check_settings()

    def _check_settings(self) -> None:
        """Refuse names of heads and columns that are not there, before any work is done."""
        settings, columns = self.settings, self.raw.columns
        budgets = settings.alert_budget if isinstance(settings.alert_budget, Mapping) else {}
        asked = () if settings.graded == Settings().graded else settings.graded
        for key, names, kind, valid in (
            ("graded", asked, "head", self.tasks),
            ("alert_budget", budgets, "head", self.tasks),
            ("costs", settings.costs, "head", self.tasks),
            ("protected", settings.protected, "column", columns),
            ("decision", [settings.decision] if settings.decision else [], "column", columns),
            ("vintage", [settings.vintage] if settings.vintage else [], "column", columns),
        ):
            for name in names:
                if name not in valid:
                    raise DataError(f"{key}: {unknown_name(kind, name, valid)}")
        if settings.vintage and self.vintages is not None:
            count = self.vintages.drop_nulls().n_unique()
            if count > _MOST_VINTAGES:
                raise DataError(
                    f"vintage: column {settings.vintage!r} has {count:,} different values, and may "
                    f"have {_MOST_VINTAGES}"
                )

    @property
    def schema(self) -> DataSchema:
        """The promise that the table makes."""
        assert self.model.schema is not None
        return self.model.schema

    @property
    def tasks(self) -> list[str]:
        """The heads with probabilities."""
        return self.model.tasks

    @property
    def criteria(self) -> dict[str, Criterion]:
        """Bounds of the verdicts."""
        return self.settings.criteria

    @cached_property
    def rows(self) -> Rows:
        """The rows that keep the schema."""
        return Rows(self.model, self.checked.good)

    @cached_property
    def trained(self) -> Rows | None:
        """The training rows, if they were given."""
        if self.reference is None:
            return None
        return Rows(self.model, self.schema.check(as_frame(self.reference)).good)

    @cached_property
    def vintages(self) -> pl.Series | None:
        """What the settings' column holds, or its month; without one the month of each row."""
        name = self.settings.vintage
        if not name:
            return self.rows.months
        given = self.rows.frame[name]
        is_date = given.dtype == pl.Date or isinstance(given.dtype, pl.Datetime)
        return given.dt.strftime("%Y-%m") if is_date else given

    @cached_property
    def contenders(self) -> dict[str, Array]:
        """Probabilities of the model's parts and of all challengers, by name, itself left out."""
        found = {}
        for name, other in {**beside(self.model), **self.given}.items():
            columns = [other.tasks.index(task) for task in self.tasks]
            found[name] = other.probabilities(other.encode(self.rows.frame))[:, columns]
        return found

    @cached_property
    def explained(self) -> Explained | None:
        """Some of the rows with their explanations, if the model keeps rows to compare with."""
        inputs, settings = self.schema.inputs(self.rows.frame), self.settings
        return explained(
            self.model, inputs, self.tasks, rows=settings.explained_rows, seed=settings.seed
        )

    def compared(self, name: str) -> pl.DataFrame:
        """
        The model less a contender on the same rows.

        Parameters
        ----------
        name : str
            Of ``contenders``.

        Returns
        -------
        polars.DataFrame
            A line per metric and head that has events enough. The intervals of AUC hold at 95 %
            for all heads at once; p-values are adjusted for the heads.
        """
        if name not in self._compared:
            self._compared[name] = self._compare(name)
        return self._compared[name]

    def _compare(self, name: str) -> pl.DataFrame:
        columns = [i for i, task in enumerate(self.tasks) if self.has_enough(task)]
        if not columns:
            return pl.DataFrame(schema=dict.fromkeys(("head", "challenger", "metric"), pl.String))
        tasks = [self.tasks[column] for column in columns]
        models = self.rows.scores[:, columns], self.contenders[name][:, columns]
        rows = tasks, self.rows.labels[:, columns], *models
        options: dict[str, Any] = {"draws": _DRAWS, "seed": self.settings.seed}
        # So that the intervals of all heads hold at once (Bonferroni).
        level = 1 - 0.05 / len(columns)
        table = pl.concat(
            [
                compare_heads(*rows, metrics=["roc_auc"], level=level),
                compare_heads(*rows, metrics=DRAWN, **options),
            ]
        )
        return table.rename({"first": "model", "second": "theirs"}).select(
            "head", pl.lit(name).alias("challenger"), pl.exclude("head")
        )

    def of(self, task: str) -> tuple[Array, Array]:
        """Labels and probabilities of a head, ``(rows,)`` each."""
        position = self.tasks.index(task)
        return self.rows.labels[:, position], self.rows.scores[:, position]

    def events(self, task: str) -> tuple[int, int]:
        """Observed events and non-events of a head."""
        labels, _ = self.of(task)
        return int((labels == 1).sum()), int((labels == 0).sum())

    def has_enough(self, task: str) -> bool:
        """Whether a head has events, and non-events, of enough customers for a verdict."""
        labels, _ = self.of(task)
        who = self.rows.customers
        counts = self.events(task)
        if who is not None and min(counts) >= self.settings.min_events:
            counts = len(np.unique(who[labels == 1])), len(np.unique(who[labels == 0]))
        return min(counts) >= self.settings.min_events

    def too_few(self, task: str, what: str) -> Finding:
        """The finding of a head that has not."""
        events, _ = self.events(task)
        least = f"at least {self.settings.min_events} events and non-events, of as many customers"
        return Finding(task, what, Verdict.TOO_FEW, bound=f"{events:,} events; {least}")

    def cutoff(self, task: str) -> float:
        """Probability above which the alert budget is spent on these rows."""
        _, scores = self.of(task)
        return float(np.quantile(scores, 1 - self.settings.budget(task)))


@dataclass(frozen=True)
class Section(Question):
    """
    One question of a validation; call it with a model and a table.

    Parameters
    ----------
    key, title, question : str
    examine : callable
        From :class:`Evidence` to :class:`~riskmtl.validation.result.Result`.
    """

    examine: Callable[[Evidence], Result]

    def __call__(self, model: Any, table: Any, **options: Any) -> Result:
        """
        Examine a model by this section alone.

        Parameters
        ----------
        model : RiskModel or estimator
        table : table
        **options
            Of :class:`Evidence`.

        Returns
        -------
        Result
        """
        return self.examine(Evidence(model, table, **options))


def section(
    key: str, title: str, question: str
) -> Callable[[Callable[[Evidence], Result]], Section]:
    """
    Make a section of a function.

    Parameters
    ----------
    key : str
        Names its files and anchors.
    title, question : str

    Returns
    -------
    callable
        A decorator of a function from :class:`Evidence` to a result.

    Examples
    --------
    >>> @section("rows", "Rows", "How many rows are there?")
    ... def counted(evidence):
    ...     return Result(notes=[f"{evidence.rows.frame.height} rows"])
    >>> counted.title
    'Rows'
    """
    return lambda examine: Section(key, title, question, examine)
