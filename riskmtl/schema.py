"""
What a table holds: its columns, its tasks, when a label counts as observed, how to split it.

A schema never changes a value but for two things: a code that stands for "missing" becomes null,
and a date that is an input becomes the number of days before the row's time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from riskmtl.checking import Checked, RefusedRows, from_text, separated
from riskmtl.columns import (
    DATE_TYPES,
    DIRECTIONS,
    ROLES,
    TYPES,
    Column,
    DataError,
    Task,
    among,
    decoded,
    label_column,
    moment,
    out_of_years,
)
from riskmtl.splits import Part, Split, SplitRule, split_table

__all__ = [
    "Checked",
    "Column",
    "DataError",
    "DataSchema",
    "Part",
    "RefusedRows",
    "Split",
    "SplitRule",
    "Task",
]


@dataclass(frozen=True, slots=True)
class DataSchema:
    """
    The promise that a table makes; read one with :func:`riskmtl.load_schema`.

    Parameters
    ----------
    name : str
    columns : tuple of Column
        Every column but the labels.
    tasks : tuple of Task
    split_rule : SplitRule
    as_of : datetime, optional
        The day the table was drawn, for maturity windows.
    title, source : str
        Free text.

    Examples
    --------
    >>> schema = DataSchema(
    ...     name="cards",
    ...     columns=(Column("amount", "number", "numeric", minimum=0),),
    ...     tasks=(Task("fraud", label="is_fraud"),),
    ... )
    >>> good, quarantine = schema.check(pl.DataFrame({"amount": [5.0, -1.0], "is_fraud": [0, 1]}))
    >>> good.height, quarantine["_rule"].to_list()
    (1, ['amount: below 0'])
    """

    name: str
    columns: tuple[Column, ...]
    tasks: tuple[Task, ...]
    split_rule: SplitRule = field(default_factory=SplitRule)
    as_of: datetime | None = None
    title: str = ""
    source: str = ""

    # ---- names -------------------------------------------------------------------------------

    def with_role(self, *roles: str) -> list[Column]:
        """Columns that have one of the roles, in order."""
        return [column for column in self.columns if column.role in roles]

    @property
    def input_columns(self) -> list[Column]:
        """Columns that the model sees."""
        return [column for column in self.columns if column.is_input]

    @property
    def time(self) -> Column | None:
        """The column of the row's time, if there is one."""
        return next(iter(self.with_role("time")), None)

    @property
    def categorical_features(self) -> list[str]:
        """Names of the categorical inputs."""
        return [column.name for column in self.columns if column.role == "categorical"]

    def needed(self, *, labelled: bool) -> list[str]:
        """Columns without which a table cannot be scored, or trained on if `labelled`."""
        roles = {"numeric", "categorical", "key"}
        if self._dated_inputs() or labelled:
            roles.add("time")
        if labelled:
            roles.add("weight")
        names = [column.name for column in self.columns if column.role in roles]
        if labelled:
            names += [task.label for task in self.tasks]
            names += [name for task in self.tasks for name in task.where]
        return list(dict.fromkeys(names))

    def _dated_inputs(self) -> list[Column]:
        return [c for c in self.input_columns if c.role == "numeric" and c.type in DATE_TYPES]

    # ---- checking ----------------------------------------------------------------------------

    def check(
        self, frame: pl.DataFrame, *, labelled: bool = True, broken: pl.Series | None = None
    ) -> Checked:
        """
        Separate the rows that keep the schema from those that do not, in one pass.

        Parameters
        ----------
        frame : polars.DataFrame
            A table.
        labelled : bool
            Whether the table must carry labels, weights and filter columns.
        broken : polars.Series of String, optional
            A rule for each row that is to be refused already; see :meth:`from_text`.

        Returns
        -------
        Checked
            ``good``: rows unchanged; ``quarantine``: rows with ``_row`` (position in `frame`) and
            ``_rule`` (the first rule broken) in front.

        Raises
        ------
        DataError
            If the table is empty, or a column is missing, not declared, or of the wrong type.
        """
        if frame.is_empty():
            raise DataError("the table has no rows")
        self.require_columns(frame.schema, labelled=labelled)
        return separated(frame, self.columns, broken)

    def require_columns(self, dtypes: Mapping[str, pl.DataType], *, labelled: bool) -> None:
        """
        Refuse a table by its columns alone.

        Parameters
        ----------
        dtypes : mapping of str to polars.DataType
            The table's columns.
        labelled : bool
            Whether it must carry labels, weights and filter columns.

        Raises
        ------
        DataError
            If a column is missing, not declared, or of the wrong type.
        """
        missing = [name for name in self.needed(labelled=labelled) if name not in dtypes]
        if missing:
            raise DataError(
                f"column {missing[0]!r} is missing from the table"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + f": schema {self.name!r} needs it"
            )
        declared = {column.name for column in self.columns} | {task.label for task in self.tasks}
        extra = [name for name in dtypes if name not in declared]
        if extra:
            raise DataError(
                f"column {extra[0]!r} is not in schema {self.name!r}: drop it, or declare it with "
                "role ignored"
            )
        for column in self.columns:
            if column.name in dtypes and not column.accepts(dtypes[column.name]):
                raise DataError(
                    f"column {column.name!r} is {dtypes[column.name]} in the table, "
                    f"schema {self.name!r} says {column.type}: convert it or correct the schema"
                )

    def from_text(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """
        Read the values of a table all of whose columns are text, as a CSV file gives them.

        Parameters
        ----------
        frame : polars.DataFrame
            An empty field is missing.

        Returns
        -------
        values : polars.DataFrame
            Columns of the schema's types; null for what cannot be read.
        broken : polars.Series of String
            For each row the first column that cannot be read, as a rule, or null.
        """
        return from_text(frame, self.columns)

    def require_informative(self, frame: pl.DataFrame) -> None:
        """
        Refuse inputs that can teach a model nothing.

        Parameters
        ----------
        frame : polars.DataFrame
            Training rows.

        Raises
        ------
        DataError
            If an input is missing in every row, or holds one value only.
        """
        values = self.inputs(frame)
        for name, distinct, missing in zip(
            values.columns,
            values.select(pl.all().n_unique()).row(0),
            values.null_count().row(0),
            strict=True,
        ):
            if missing == frame.height:
                raise DataError(f"column {name!r} is missing in every training row: declare it "
                                "with role ignored")  # fmt: skip
            if distinct == 1:
                raise DataError(f"column {name!r} holds one value in all training rows: declare "
                                "it with role ignored")  # fmt: skip

    # ---- reading parts of a table -----------------------------------------------------------

    def inputs(self, frame: pl.DataFrame) -> pl.DataFrame:
        """
        Inputs of a table: missing codes as null, dates as days before the row's time.

        Parameters
        ----------
        frame : polars.DataFrame
            A table with the input columns, in any order.

        Returns
        -------
        polars.DataFrame
            One column per input, in the schema's order.

        Raises
        ------
        DataError
            If an input is missing from the table or has the wrong type.
        """
        for column in self.input_columns:
            if column.name not in frame.columns:
                raise DataError(f"column {column.name!r} is missing from the table")
            if not column.accepts(frame.schema[column.name]):
                raise DataError(
                    f"column {column.name!r} is {frame.schema[column.name]} in the table, "
                    f"schema {self.name!r} says {column.type}"
                )
        dated = {column.name for column in self._dated_inputs()}
        if dated and self.time is not None and self.time.name not in frame.columns:
            raise DataError(
                f"column {self.time.name!r} is missing from the table: date inputs count from it"
            )
        expressions = [
            self._days_before(column) if column.name in dated else decoded(column)
            for column in self.input_columns
        ]
        return frame.select(expressions)

    def _days_before(self, column: Column) -> pl.Expr:
        if self.time is None:
            raise DataError(f"column {column.name!r} is a date input: give a column role time")
        elapsed = moment(self.time) - moment(column)
        return (elapsed.dt.total_seconds() / 86_400).cast(pl.Float32).alias(column.name)

    def labels(self, frame: pl.DataFrame, *, as_of: date | None = None) -> pl.DataFrame:
        """
        Labels per task, null wherever the outcome is not observed.

        Parameters
        ----------
        frame : polars.DataFrame
            A table with label, filter and time columns.
        as_of : date, optional
            The day from which maturity is counted back; default: the schema's.

        Returns
        -------
        polars.DataFrame
            One Float64 column per task: 0, 1 or null (a regression task: its value or null).

        Raises
        ------
        DataError
            If a label is neither of two values, or a column is missing.
        """
        day = _as_datetime(as_of) if as_of is not None else self.as_of
        return frame.select(self._label(task, frame, day) for task in self.tasks)

    def _label(self, task: Task, frame: pl.DataFrame, as_of: datetime | None) -> pl.Expr:
        for name in (task.label, *task.where):
            if name not in frame.columns:
                raise DataError(f"column {name!r} is missing: task {task.name!r} needs it")
        dtype = frame.schema[task.label]
        if task.kind == "regression" and not dtype.is_numeric():
            raise DataError(f"label {task.label!r} of task {task.name!r} is not a number")
        observed = self._observed(task, frame, as_of)
        if task.kind == "regression":
            value = pl.col(task.label).cast(pl.Float64)
        else:
            self._check_label_values(task, frame.filter(observed)[task.label])
            what = f"is the positive value of task {task.name!r}"
            value = among(task.label, task.positive, dtype, what, noun="label").cast(pl.Float64)
        return pl.when(observed).then(value).otherwise(None).alias(task.name)

    def _observed(self, task: Task, frame: pl.DataFrame, as_of: datetime | None) -> pl.Expr:
        """Where a task's label counts: known, in its filter, and mature."""
        dtype = frame.schema[task.label]
        declared = next((column for column in self.columns if column.name == task.label), None)
        label = pl.col(task.label) if declared is None else decoded(declared)
        observed = label.is_not_null()
        if dtype.is_float():
            observed &= label.is_not_nan()
        for name, values in task.where.items():
            what = f"task {task.name!r} filters on"
            observed &= among(name, values, frame.schema[name], what).fill_null(False)
        if task.maturity_days is not None:
            if as_of is None or self.time is None or self.time.name not in frame.columns:
                raise DataError(
                    f"task {task.name!r} has maturityDays: give asOf and a column with role time"
                )
            observed &= moment(self.time) + timedelta(days=task.maturity_days) <= as_of
        return observed

    def _check_label_values(self, task: Task, observed: pl.Series) -> None:
        if task.negative_rest:
            return
        others = [value for value in observed.unique().to_list() if value not in task.positive]
        if task.negative is not None:
            others = [value for value in others if value not in task.negative]
            allowed = 0
        else:
            allowed = 1
        if len(others) > allowed:
            raise DataError(
                f"label {task.label!r} of task {task.name!r} holds {others[0]!r}, which is neither "
                f"its positive value ({_join(task.positive)}) nor "
                + ("its negative value" if task.negative else "the only other value")
                + ": correct the rows, or set positive and negative in the schema"
            )

    def weights(self, frame: pl.DataFrame) -> np.ndarray[Any, Any] | None:
        """Sample weights of a table, float64 of shape (rows,); ``None`` without such a column."""
        columns = self.with_role("weight")
        if not columns:
            return None
        name = columns[0].name
        if name not in frame.columns:
            raise DataError(f"column {name!r} is missing from the table: it holds the weights")
        return frame[name].cast(pl.Float64).to_numpy()

    def keys(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Key and time columns, for an output that someone must join back."""
        columns = [c for c in self.with_role("key", "time") if c.name in frame.columns]
        # A date so far away, of a refused row, cannot be written as text.
        return frame.select(
            pl.when(~out_of_years(c, frame.schema[c.name])).then(c.name).alias(c.name)
            if c.type in DATE_TYPES
            else c.name
            for c in columns
        )

    # ---- other tasks -------------------------------------------------------------------------

    def only(self, tasks: Sequence[str]) -> DataSchema:
        """
        The schema of a model of some of the tasks.

        Parameters
        ----------
        tasks : sequence of str

        Returns
        -------
        DataSchema
            Labels of the other tasks are columns to ignore, so that a table may still have them.
        """
        kept = tuple(task for task in self.tasks if task.name in tasks)
        known = {column.name for column in self.columns} | {task.label for task in kept}
        labels = {task.label: label_column(task) for task in self.tasks if task.label not in known}
        rule = self.split_rule
        if rule.stratify not in (None, *(task.name for task in kept)):
            rule = replace(rule, stratify=None)
        columns = (*self.columns, *labels.values())
        return replace(self, columns=columns, tasks=kept, split_rule=rule)

    def with_task(self, task: Task) -> DataSchema:
        """
        The schema of a model that has one more task.

        Parameters
        ----------
        task : Task

        Returns
        -------
        DataSchema

        Raises
        ------
        DataError
            If the task has the name of another, or its label is an input, or a column that it
            filters on is not declared.
        """
        if task.name in [other.name for other in self.tasks]:
            raise DataError(f"task {task.name!r} is in schema {self.name!r} already")
        if task.label in [column.name for column in self.input_columns]:
            raise DataError(f"label {task.label!r} is an input: a head would read its own answer")
        declared = {column.name for column in self.columns}
        for name in task.where:
            if name not in declared:
                raise DataError(f"task {task.name!r} filters on {name!r}, which is not declared")
        return replace(self, tasks=(*self.tasks, task))

    # ---- times -------------------------------------------------------------------------------

    def times(self, frame: pl.DataFrame) -> pl.Series | None:
        """Moments of the rows; ``None`` without a time column."""
        if self.time is None or self.time.name not in frame.columns:
            return None
        return frame.select(moment(self.time)).to_series()

    # ---- splitting ---------------------------------------------------------------------------

    def split(self, frame: pl.DataFrame) -> Split:
        """
        Split a table as the schema says.

        Parameters
        ----------
        frame : polars.DataFrame
            A table.

        Returns
        -------
        Split
            ``train``, ``validation``, ``test``; rows within the gap before the test are in none.

        Raises
        ------
        DataError
            If a part ends up empty though the schema defines it.
        """
        labels = self.labels(frame) if self.split_rule.stratify is not None else None
        return split_table(frame, self.split_rule, self.times(frame), labels, self.name)

    # ---- identity ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, the same for equal schemas."""
        plain: dict[str, Any] = json.loads(json.dumps(_whole(asdict(self)), default=_plain))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSchema:
        """Build a schema from what :meth:`to_dict` gave."""
        rule = dict(values["split_rule"])
        for name in ("test", "validation"):
            if rule[name] is not None:
                part = dict(rule[name])
                part["start"] = part["start"] and datetime.fromisoformat(part["start"])
                part["values"] = _tuple(part["values"])
                rule[name] = Part(**part)
        for c in values["columns"]:
            if c["type"] not in TYPES or c["role"] not in ROLES:
                raise ValueError(f"column {c['name']!r} has an unknown type or role")
            if c.get("changeable", "") not in ("", *DIRECTIONS):
                raise ValueError(f"column {c['name']!r} changes in an unknown direction")
        columns = [
            Column(**{**c, "enum": _tuple(c["enum"]), "missing_values": tuple(c["missing_values"])})
            for c in values["columns"]
        ]
        tasks = [
            Task(
                **{
                    **t,
                    "positive": tuple(t["positive"]),
                    "negative": _tuple(t["negative"]),
                    "where": {k: tuple(v) for k, v in t["where"].items()},
                }
            )
            for t in values["tasks"]
        ]
        as_of = values["as_of"]
        return cls(
            **{
                **values,
                "columns": tuple(columns),
                "tasks": tuple(tasks),
                "split_rule": SplitRule(**rule),
                "as_of": as_of and datetime.fromisoformat(as_of),
            }
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the schema's content."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _as_datetime(value: date) -> datetime:
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)


def _join(values: tuple[Any, ...]) -> str:
    return ", ".join(repr(value) for value in values)


def _tuple(values: Any) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def _whole(value: Any) -> Any:
    """Write whole floats as integers, so that equal schemas read the same."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{value!r} cannot be written to JSON")
