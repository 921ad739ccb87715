"""Reading a schema file; each mistake is named with its file, its place and its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, NoReturn

from riskmtl.columns import (
    DATE_TYPES,
    KINDS,
    RESERVED,
    ROLES,
    TYPES,
    Column,
    Task,
    score_columns,
)
from riskmtl.errors import unknown_name
from riskmtl.schema import DataSchema
from riskmtl.splits import Part, SplitRule
from riskmtl.yaml_file import Node, read_yaml

_NUMBER = (int, float)
_DATE = (date,)


class SchemaError(ValueError):
    """A mistake in a schema file; the message names the file, the place and the remedy."""


class _Node(Node):
    error = SchemaError


def load_schema(path: str | Path) -> DataSchema:
    """
    Read a schema from a YAML file.

    Parameters
    ----------
    path : str or Path
        A file as those in ``data_schemas/``.

    Returns
    -------
    DataSchema

    Raises
    ------
    SchemaError
        If the file is absent, is not YAML, or holds a mistake: the message names the file, the
        place in it and what to write instead.
    """
    values = read_yaml(path, SchemaError)
    return parse_schema(values, str(path))


def parse_schema(values: Any, source: str = "schema") -> DataSchema:
    """
    Build a schema from the mapping that a schema file holds.

    Parameters
    ----------
    values : mapping
        The file's content.
    source : str
        What error messages call it.

    Returns
    -------
    DataSchema

    Raises
    ------
    SchemaError
        If it holds a mistake.

    Examples
    --------
    >>> schema = parse_schema({
    ...     "name": "cards",
    ...     "fields": [{"name": "amount", "type": "number"}],
    ...     "tasks": [{"name": "fraud", "label": "is_fraud", "positive": 1}],
    ... })
    >>> schema.columns[0].role
    'numeric'
    """
    root = _Node(
        values,
        source,
        ("name", "title", "source", "missingValues", "fields", "tasks", "asOf", "split"),
    )
    missing = root.codes("missingValues") or ()
    columns = tuple(
        _column(item, f"{source}: fields[{i}]", missing)
        for i, item in enumerate(root.items("fields"))
    )
    tasks = tuple(
        _task(item, f"{source}: tasks[{i}]") for i, item in enumerate(root.items("tasks"))
    )
    split = _split(root.values["split"], f"{source}: split") if "split" in values else SplitRule()
    as_of = _moment(root.scalar("asOf", _DATE, "a date such as 2024-12-31"), root)
    schema = DataSchema(
        name=root.text("name"),
        columns=columns,
        tasks=tasks,
        split_rule=split,
        as_of=as_of,
        title=root.text("title", ""),
        source=root.text("source", ""),
    )
    _check_whole(schema, root)
    return schema


def _column(values: Any, place: str, table_missing: tuple[Any, ...]) -> Column:
    valid = (
        "name", "type", "role", "constraints", "missingValues", "protected", "changeable", "title",
    )  # fmt: skip
    node = _Node(values, place, valid)
    name = node.text("name")
    node.place = f"{place} ({name})"
    if name in RESERVED:
        node.fail(f"the name {name!r} is reserved for refused rows: rename the column")
    if name == "*" or (name.startswith("^") and name.endswith("$")):
        node.fail(f"the name {name!r} reads as a pattern of names: rename the column")
    kind = node.text("type", valid=TYPES)
    usual = "categorical" if kind in ("string", "boolean") else "numeric"
    role = node.text("role", usual, valid=ROLES)
    if role == "numeric" and kind in ("string", "boolean"):
        node.fail(f"a {kind} cannot have role numeric: use categorical")
    if role == "categorical" and kind in ("date", "datetime"):
        node.fail(f"a {kind} cannot have role categorical: use numeric, time or ignored")
    if role == "time" and kind not in DATE_TYPES:
        node.fail(f"role time needs type date, datetime or year, not {kind}")
    if role == "weight" and kind not in ("number", "integer"):
        node.fail(f"role weight needs type number, not {kind}")
    rules = _Node(
        node.values.get("constraints", {}),
        f"{node.place}: constraints",
        ("required", "minimum", "maximum", "enum"),
    )
    minimum = rules.scalar("minimum", _NUMBER, "a number")
    maximum = rules.scalar("maximum", _NUMBER, "a number")
    if (minimum is not None or maximum is not None) and kind not in ("number", "integer", "year"):
        rules.fail(f"minimum and maximum are for numbers, the field is a {kind}")
    if minimum is not None and maximum is not None and minimum > maximum:
        rules.fail(f"minimum {minimum} is above maximum {maximum}")
    enum = rules.some_codes("enum")
    for value in enum or ():
        if not _fits(value, kind) and not (kind == "boolean" and isinstance(value, bool)):
            rules.fail(f"enum value {value!r} can never occur in a {kind} field")
    own_missing = node.codes("missingValues") or ()
    codes = tuple(
        _fitting(code, kind)
        for code in dict.fromkeys(own_missing + table_missing)
        if _fits(code, kind) or (code in own_missing and _misfit(node, code, kind))
    )
    return Column(
        name=name,
        type=kind,
        role=role,
        required=rules.flag("required"),
        minimum=minimum,
        maximum=maximum,
        enum=enum,
        missing_values=codes,
        protected=node.flag("protected") or role == "protected",
        changeable=_changeable(node, kind, role),
    )


def _changeable(node: _Node, kind: str, role: str) -> str:
    """Read in which ways a field can change."""
    value = node.values.get("changeable", False)
    if value is False:
        return ""
    if value is not True and value not in ("up", "down"):
        node.fail(f"changeable must be true, false, up or down, got {value!r}")
    if role not in ("numeric", "categorical"):
        node.fail(f"a field of role {role} cannot be changeable: it is no input")
    if node.flag("protected"):
        node.fail("a protected field cannot be changeable: remove one of the two")
    if kind in DATE_TYPES:
        node.fail(f"a {kind} cannot be changeable: remove the key")
    if value is not True and role == "categorical":
        node.fail(f"a category cannot go {value}: use changeable: true")
    return "both" if value is True else str(value)


def _fits(code: Any, kind: str) -> bool:
    if kind in ("number", "integer", "year"):
        return isinstance(code, _NUMBER) and not isinstance(code, bool)
    return kind == "string" and isinstance(code, str)


def _fitting(code: Any, kind: str) -> Any:
    return float(code) if kind == "number" else code


def _misfit(node: _Node, code: Any, kind: str) -> NoReturn:
    node.fail(f"missing code {code!r} can never occur in a {kind} field")


def _task(values: Any, place: str) -> Task:
    node = _Node(values, place, ("name", "label", "kind", "positive", "negative", "observed"))
    name = node.text("name")
    node.place = f"{place} ({name})"
    kind = node.text("kind", "binary", valid=KINDS)
    if kind == "regression" and ("positive" in values or "negative" in values):
        node.fail("a regression task has no positive or negative value: remove them")
    if kind == "binary" and "positive" not in values:
        node.fail("key 'positive' is missing: say which label value is the adverse outcome")
    positive = node.some_codes("positive") or ()
    rest = values.get("negative") == "rest"
    negative = None if rest else node.some_codes("negative")
    both = set(positive) & set(negative or ())
    if both:
        node.fail(f"{both.pop()!r} is both positive and negative")
    observed = _Node(
        values.get("observed", {}), f"{node.place}: observed", ("where", "maturityDays")
    )
    where = observed.values.get("where", {})
    if not isinstance(where, Mapping):
        observed.fail(f"where must map columns to values, got {where!r}")
    days = observed.scalar("maturityDays", (int,), "a whole number of days")
    if days is not None and days < 0:
        observed.fail(f"maturityDays must not be negative, got {days}")
    return Task(
        name=name,
        label=node.text("label"),
        kind=kind,
        positive=positive,
        negative=negative,
        negative_rest=rest,
        where={column: observed.as_codes(value, "where") for column, value in where.items()},
        maturity_days=days,
    )


def _split(values: Any, place: str) -> SplitRule:
    valid = ("test", "validation", "gapDays", "column", "stratify", "seed")
    node = _Node(values, place, valid)
    gap = node.scalar("gapDays", (int,), "a whole number of days") or 0
    if gap < 0:
        node.fail(f"gapDays must not be negative, got {gap}")
    column = node.text("column", "") or None
    parts = {
        name: _part(values[name], f"{place}: {name}", column)
        for name in ("test", "validation")
        if name in values
    }
    return SplitRule(
        test=parts.get("test"),
        validation=parts.get("validation"),
        gap_days=gap,
        column=column,
        stratify=node.text("stratify", "") or None,
        seed=node.scalar("seed", (int,), "a whole number") or 0,
    )


def _part(values: Any, place: str, column: str | None) -> Part:
    choices = ("share", "latest", "from", "values")
    node = _Node(values, place, choices)
    if len(node.values) != 1:
        node.fail(f"give exactly one of {', '.join(choices)}")
    for key in ("share", "latest"):
        share = node.scalar(key, _NUMBER, "a number between 0 and 1")
        if share is not None and not 0 < share < 1:
            node.fail(f"{key} must lie between 0 and 1, got {share}")
    if "values" in node.values and column is None:
        node.fail("values needs the key 'column' in split: the column that holds them")
    return Part(
        share=node.values.get("share"),
        latest=node.values.get("latest"),
        start=_moment(node.scalar("from", _DATE, "a date such as 2024-07-01"), node),
        values=node.some_codes("values"),
    )


def _check_whole(schema: DataSchema, root: _Node) -> None:
    """Mistakes that show only when all parts are seen together."""
    names = [column.name for column in schema.columns]
    _refuse_twice(names, "field", root)
    _refuse_twice([task.name for task in schema.tasks], "task", root)
    for role in ("time", "weight"):
        several = schema.with_role(role)
        if len(several) > 1:
            root.fail(f"{several[0].name!r} and {several[1].name!r} both have role {role}: "
                      "only one column can")  # fmt: skip
    if not schema.input_columns:
        root.fail("no field has role numeric or categorical: there is nothing to learn from")
    roles = {column.name: column for column in schema.columns}
    for column in schema.with_role("key", "time"):
        if column.name in score_columns([task.name for task in schema.tasks]):
            root.fail(f"{column.role} {column.name!r} has the name of a score: rename the column")
    for task in schema.tasks:
        if task.label in roles and roles[task.label].is_input:
            root.fail(f"label {task.label!r} of task {task.name!r} is also an input: give the "
                      "field role ignored, or leave it out")  # fmt: skip
        for name in task.where:
            if name not in roles:
                root.fail(f"task {task.name!r} filters on {name!r}, which is no field: "
                          + unknown_name("field", name, names))  # fmt: skip
        if task.maturity_days is not None and schema.time is None:
            root.fail(f"task {task.name!r} has maturityDays: one field needs role time")
    _check_split(schema, root, names)


def _check_split(schema: DataSchema, root: _Node, names: list[str]) -> None:
    rule = schema.split_rule
    tasks = [task.name for task in schema.tasks if task.kind == "binary"]
    if rule.stratify is not None and rule.stratify not in tasks:
        root.fail(f"split: stratify: {unknown_name('task', rule.stratify, tasks)}")
    if rule.column is not None and rule.column not in names:
        root.fail(f"split: column: {unknown_name('field', rule.column, names)}")
    timed = [part for part in (rule.test, rule.validation) if part and (part.start or part.latest)]
    if timed and schema.time is None:
        root.fail("split: from and latest need a field with role time")
    if rule.gap_days and not (rule.test and (rule.test.start or rule.test.latest)):
        root.fail("split: gapDays needs test.from or test.latest: the gap lies before that")
    starts = [part.start for part in (rule.validation, rule.test) if part and part.start]
    if len(starts) == 2 and starts[0] >= starts[1]:
        root.fail("split: validation must begin before test")


def _refuse_twice(names: list[str], what: str, root: _Node) -> None:
    for name in names:
        if names.count(name) > 1:
            root.fail(f"{what} {name!r} is declared twice")


def _moment(value: date | None, node: _Node) -> datetime | None:
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            node.fail(f"{value.isoformat()} has a time zone: write it without one")
        return value
    return None if value is None else datetime(value.year, value.month, value.day)
