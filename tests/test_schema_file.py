"""Schema files: the good ones are read as they stand, each mistake is named with its remedy."""

import copy
import datetime as dt
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from riskmtl.schema import Column, DataSchema, Part, SplitRule, Task
from riskmtl.schema_file import SchemaError, load_schema, parse_schema
from riskmtl.yaml_file import read_yaml

SCHEMAS = sorted((Path(__file__).parents[1] / "data_schemas").glob("*.yaml"))

GOOD: dict[str, Any] = {
    "name": "cards",
    "title": "Card payments",
    "source": "made for this test",
    "missingValues": [-9, "?"],
    "fields": [
        {"name": "id", "type": "integer", "role": "key"},
        {"name": "day", "type": "date", "role": "time"},
        {"name": "opened", "type": "date"},
        {
            "name": "amount",
            "type": "number",
            "constraints": {"required": True, "minimum": 0, "maximum": 1000},
            "missingValues": [-1],
        },
        {"name": "age", "type": "integer", "protected": True},
        {"name": "country", "type": "string", "constraints": {"enum": ["FR", "DE"]}},
        {"name": "online", "type": "boolean"},
        {"name": "gender", "type": "string", "role": "protected"},
        {"name": "approved", "type": "boolean", "role": "ignored"},
        {"name": "part", "type": "string", "role": "ignored"},
    ],
    "tasks": [
        {
            "name": "default",
            "label": "bad",
            "positive": ["late", "lost"],
            "negative": "rest",
            "observed": {"where": {"approved": True, "country": ["FR", "DE"]}, "maturityDays": 90},
        },
        {"name": "loss", "label": "euros", "kind": "regression"},
    ],
    "asOf": dt.date(2024, 12, 31),
    "split": {
        "seed": 3,
        "test": {"from": dt.date(2024, 9, 1)},
        "validation": {"from": dt.date(2024, 7, 1)},
        "gapDays": 7,
    },
}


def written(values: Any, folder: Path) -> Path:
    path = folder / "cards.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def test_a_whole_file_is_read_as_it_stands(tmp_path: Path) -> None:
    schema = load_schema(written(GOOD, tmp_path))
    assert schema == DataSchema(
        name="cards",
        title="Card payments",
        source="made for this test",
        columns=(
            Column("id", "integer", "key", missing_values=(-9,)),
            Column("day", "date", "time"),
            Column("opened", "date", "numeric"),
            Column(
                "amount",
                "number",
                "numeric",
                required=True,
                minimum=0,
                maximum=1000,
                missing_values=(-1.0, -9.0),
            ),
            Column("age", "integer", "numeric", missing_values=(-9,), protected=True),
            Column("country", "string", "categorical", enum=("FR", "DE"), missing_values=("?",)),
            Column("online", "boolean", "categorical"),
            Column("gender", "string", "protected", missing_values=("?",), protected=True),
            Column("approved", "boolean", "ignored"),
            Column("part", "string", "ignored", missing_values=("?",)),
        ),
        tasks=(
            Task(
                "default",
                "bad",
                positive=("late", "lost"),
                negative_rest=True,
                where={"approved": (True,), "country": ("FR", "DE")},
                maturity_days=90,
            ),
            Task("loss", "euros", "regression", positive=()),
        ),
        split_rule=SplitRule(
            test=Part(start=dt.datetime(2024, 9, 1)),
            validation=Part(start=dt.datetime(2024, 7, 1)),
            gap_days=7,
            seed=3,
        ),
        as_of=dt.datetime(2024, 12, 31),
    )


def test_what_can_change_is_marked_with_its_direction() -> None:
    values = copy.deepcopy(GOOD)
    marks = {"amount": "down", "age": False, "country": True, "online": False}
    for item in values["fields"]:
        item.update({"changeable": marks[item["name"]]} if item["name"] in marks else {})
    schema = parse_schema(values)
    read = {column.name: column.changeable for column in schema.columns if column.changeable}
    assert read == {"amount": "down", "country": "both"}
    assert DataSchema.from_dict(schema.to_dict()) == schema
    assert schema.hash != parse_schema(GOOD).hash


def test_a_schema_written_before_there_were_marks_is_read() -> None:
    plain = parse_schema(GOOD).to_dict()
    for column in plain["columns"]:
        del column["changeable"]
    assert DataSchema.from_dict(plain) == parse_schema(GOOD)


def test_the_portfolio_marks_what_a_customer_can_bring_about() -> None:
    path = next(path for path in SCHEMAS if path.stem == "risk_portfolio")
    assert {c.name: c.changeable for c in load_schema(path).columns if c.changeable} == {
        "acc_utilisation": "down",
        "acc_payment_ratio": "up",
        "acc_inquiries_6m": "down",
        "txn_cash_share": "both",
        "txn_gambling_share": "down",
        "txn_low_balance_days": "down",
    }


def test_a_code_of_the_table_is_kept_only_where_it_can_occur() -> None:
    schema = parse_schema(GOOD)
    codes = {column.name: column.missing_values for column in schema.columns}
    assert codes["country"] == ("?",)
    assert codes["age"] == (-9,)
    assert codes["online"] == ()
    assert all(isinstance(code, float) for code in codes["amount"])


def field(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """A change to one field; ``None`` takes the key away."""

    def change(values: dict[str, Any]) -> None:
        target = next(f for f in values["fields"] if f["name"] == name)
        _update(target, changes)

    return change


def task(position: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: _update(values["tasks"][position], changes)


def split(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["split"] = {key.rstrip("_"): value for key, value in changes.items()}

    return change


def root(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: _update(values, changes)


def _update(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            del target[key]
        else:
            target[key] = value


def without_time(values: dict[str, Any]) -> None:
    values["fields"] = [f for f in values["fields"] if f["name"] not in ("day", "opened")]


def timeless_split(values: dict[str, Any]) -> None:
    without_time(values)
    del values["tasks"][0]


def timeless_maturity(values: dict[str, Any]) -> None:
    without_time(values)
    del values["split"]


def appended(*more: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["fields"].extend(more)


MISTAKES = {
    # --- keys
    "unknown key at the top": (root(task=[]), r": unknown key 'task': did you mean 'tasks'\?"),
    "unknown key of a field": (
        field("amount", rol="key"),
        r": fields\[3\]: unknown key 'rol': did you mean 'role'\?",
    ),
    "unknown constraint": (
        field("amount", constraints={"minimun": 0}),
        r"fields\[3\] \(amount\): constraints: unknown key 'minimun': did you mean 'minimum'\?",
    ),
    "unknown key of a task": (
        task(0, positiv=1),
        r": tasks\[0\]: unknown key 'positiv': did you mean 'positive'\?",
    ),
    "unknown key of observed": (
        task(0, observed={"maturity": 90}),
        r"tasks\[0\] \(default\): observed: unknown key 'maturity': did you mean 'maturityDays'\?",
    ),
    "unknown key of a split": (
        split(tests={"share": 0.2}),
        r": split: unknown key 'tests': did you mean 'test'\?",
    ),
    "unknown key of a part": (
        split(test={"shares": 0.2}),
        r": split: test: unknown key 'shares': did you mean 'share'\?",
    ),
    "no name": (root(name=None), r": key 'name' is missing"),
    "no fields": (root(fields=None), r": fields must be a list with at least one entry"),
    "empty fields": (root(fields=[]), r": fields must be a list with at least one entry"),
    "no tasks": (root(tasks=None), r": tasks must be a list with at least one entry"),
    "fields as a mapping": (root(fields={"a": "number"}), r": fields must be a list"),
    "a field without type": (field("amount", type=None), r"\(amount\): key 'type' is missing"),
    "a field as text": (
        lambda v: v["fields"].append("amount"),
        r"fields\[10\]: expected a mapping with the keys name, type.*got 'amount'",
    ),
    "a task without label": (task(0, label=None), r"\(default\): key 'label' is missing"),
    "constraints as a list": (
        field("amount", constraints=["required"]),
        r"\(amount\): constraints: expected a mapping",
    ),
    # --- types
    "a name that is a number": (root(name=2024), r": name must be text, got 2024: put it in quot"),
    "an unknown type": (
        field("amount", type="numbr"),
        r"fields\[3\] \(amount\): unknown type 'numbr': did you mean 'number'\?",
    ),
    "an unknown role": (
        field("id", role="keys"),
        r"fields\[0\] \(id\): unknown role 'keys': did you mean 'key'\?",
    ),
    "an unknown kind": (
        task(1, kind="regresion"),
        r"tasks\[1\] \(loss\): unknown kind 'regresion': did you mean 'regression'\?",
    ),
    "required as text": (
        field("amount", constraints={"required": "yes"}),
        r"\(amount\): constraints: required must be true or false, got 'yes'",
    ),
    "minimum as text": (
        field("amount", constraints={"minimum": "0"}),
        r"\(amount\): constraints: minimum must be a number, got '0'",
    ),
    "minimum as a flag": (
        field("amount", constraints={"minimum": True}),
        r"\(amount\): constraints: minimum must be a number, got True",
    ),
    "minimum that is not a number": (
        field("amount", constraints={"minimum": float("nan")}),
        r"\(amount\): constraints: minimum must be a number",
    ),
    "enum of mappings": (
        field("country", constraints={"enum": [{"a": 1}]}),
        r"\(country\): constraints: enum must be a value or a list of values",
    ),
    "maturity in half days": (
        task(0, observed={"maturityDays": 1.5}),
        r"observed: maturityDays must be a whole number of days, got 1.5",
    ),
    "a negative maturity": (
        task(0, observed={"maturityDays": -1}),
        r"observed: maturityDays must not be negative, got -1",
    ),
    "where as a list": (
        task(0, observed={"where": ["approved"]}),
        r"observed: where must map columns to values",
    ),
    "asOf as text": (
        root(asOf="31 December"),
        r": asOf must be a date such as 2024-12-31, got '31 December'",
    ),
    "seed as a float": (split(seed=0.5), r": split: seed must be a whole number, got 0.5"),
    "a negative gap": (split(gapDays=-7), r": split: gapDays must not be negative, got -7"),
    "a split that is text": (root(split="random"), r": split: expected a mapping"),
    # --- fields that make no sense
    "minimum on a string": (
        field("country", constraints={"minimum": 1}),
        r"fields\[5\] \(country\): constraints: minimum and maximum are for numbers, .* a string",
    ),
    "minimum above maximum": (
        field("amount", constraints={"minimum": 5, "maximum": 1}),
        r"\(amount\): constraints: minimum 5 is above maximum 1",
    ),
    "a numeric string": (
        field("country", role="numeric"),
        r"\(country\): a string cannot have role numeric: use categorical",
    ),
    "a categorical date": (
        field("opened", role="categorical"),
        r"\(opened\): a date cannot have role categorical: use numeric, time or ignored",
    ),
    "time that is a number": (
        field("amount", role="time"),
        r"\(amount\): role time needs type date, datetime or year, not number",
    ),
    "a weight that is text": (
        field("country", role="weight"),
        r"\(country\): role weight needs type number, not string",
    ),
    "a missing code of another type": (
        field("age", missingValues=["unknown"]),
        r"fields\[4\] \(age\): missing code 'unknown' can never occur in a integer field",
    ),
    "an allowed value of another type": (
        field("age", constraints={"enum": ["young", "old"]}),
        r"fields\[4\] \(age\).*enum.*'young'",
    ),
    "an allowed number in a text field": (
        field("country", constraints={"enum": ["FR", 1]}),
        r"fields\[5\] \(country\).*enum.*1",
    ),
    "changeable in a way that there is not": (
        field("amount", changeable="upwards"),
        r"fields\[3\] \(amount\): changeable must be true, false, up or down, got 'upwards'",
    ),
    "changeable as a number": (
        field("amount", changeable=1),
        r"\(amount\): changeable must be true, false, up or down, got 1",
    ),
    "a changeable key": (
        field("id", changeable=True),
        r"fields\[0\] \(id\): a field of role key cannot be changeable: it is no input",
    ),
    "a changeable field for fairness evidence": (
        field("gender", changeable=True),
        r"\(gender\): a field of role protected cannot be changeable: it is no input",
    ),
    "a protected input that is changeable": (
        field("age", changeable="up"),
        r"fields\[4\] \(age\): a protected field cannot be changeable: remove one of the two",
    ),
    "a changeable date": (
        field("opened", changeable=True),
        r"\(opened\): a date cannot be changeable: remove the key",
    ),
    "a changeable year": (
        appended({"name": "built", "type": "year", "changeable": "up"}),
        r"fields\[10\] \(built\): a year cannot be changeable: remove the key",
    ),
    "a string that goes up": (
        field("country", changeable="up"),
        r"\(country\): a category cannot go up: use changeable: true",
    ),
    "a boolean that goes down": (
        field("online", changeable="down"),
        r"\(online\): a category cannot go down: use changeable: true",
    ),
    "a number as a category that goes up": (
        field("amount", role="categorical", changeable="up"),
        r"\(amount\): a category cannot go up: use changeable: true",
    ),
    "the same field twice": (
        appended({"name": "amount", "type": "number"}),
        r": field 'amount' is declared twice",
    ),
    "two times": (
        field("opened", role="time"),
        r"'day' and 'opened' both have role time: only one column can",
    ),
    "two weights": (
        appended(
            {"name": "w1", "type": "number", "role": "weight"},
            {"name": "w2", "type": "number", "role": "weight"},
        ),
        r"'w1' and 'w2' both have role weight: only one column can",
    ),
    "no inputs": (
        lambda v: v.update(fields=[v["fields"][1], v["fields"][8]]),
        r"no field has role numeric or categorical",
    ),
    # --- tasks
    "a label that is an input": (
        task(0, label="country"),
        r": label 'country' of task 'default' is also an input: give the field role ignored",
    ),
    "the same task twice": (task(1, name="default"), r": task 'default' is declared twice"),
    "a binary task without positive": (
        task(0, positive=None),
        r"tasks\[0\] \(default\): key 'positive' is missing",
    ),
    "a positive that is empty": (task(0, positive=[]), r"tasks\[0\] \(default\): .*positive"),
    "a value both positive and negative": (
        task(0, negative=["late"]),
        r"tasks\[0\] \(default\): 'late' is both positive and negative",
    ),
    "a regression with a positive": (
        task(1, positive=1),
        r"tasks\[1\] \(loss\): a regression task has no positive or negative value: remove them",
    ),
    "a filter on no field": (
        task(0, observed={"where": {"aproved": True}}),
        r"task 'default' filters on 'aproved', which is no field: .* did you mean 'approved'\?",
    ),
    "maturity without a time": (
        timeless_maturity,
        r": task 'default' has maturityDays: one field needs role time",
    ),
    # --- splits
    "a part of two kinds": (
        split(test={"share": 0.2, "latest": 0.2}),
        r": split: test: give exactly one of share, latest, from, values",
    ),
    "a part of no kind": (split(test={}), r": split: test: give exactly one of"),
    "a share of everything": (
        split(test={"share": 1}),
        r": split: test: share must lie between 0 and 1, got 1",
    ),
    "a share of nothing": (
        split(validation={"latest": 0}),
        r": split: validation: latest must lie between 0 and 1, got 0",
    ),
    "a share in per cent": (
        split(test={"share": "25%"}),
        r": split: test: share must be a number between 0 and 1, got '25%'",
    ),
    "a start as text": (
        split(test={"from": "July"}),
        r": split: test: from must be a date such as 2024-07-01, got 'July'",
    ),
    "values without a column": (
        split(test={"values": ["test"]}),
        r": split: test: values needs the key 'column' in split",
    ),
    "an unknown split column": (
        split(column="parts", test={"values": ["test"]}),
        r": split: column: unknown field 'parts': did you mean 'part'\?",
    ),
    "an unknown stratum": (
        split(stratify="defualt", test={"share": 0.2}),
        r": split: stratify: unknown task 'defualt': did you mean 'default'\?",
    ),
    "strata of a regression": (
        split(stratify="loss", test={"share": 0.2}),
        r": split: stratify: unknown task 'loss'",
    ),
    "validation after test": (
        split(
            test={"from": dt.date(2024, 7, 1)},
            validation={"from": dt.date(2024, 9, 1)},
        ),
        r": split: validation must begin before test",
    ),
    "a split by time without a time": (
        timeless_split,
        r": split: from and latest need a field with role time",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_file_place_and_remedy(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    values = copy.deepcopy(GOOD)
    change(values)
    path = written(values, tmp_path)
    with pytest.raises(SchemaError, match="^" + re.escape(str(path)) + ".*" + message):
        load_schema(path)


@pytest.mark.parametrize("key", ["share", "from", "values"])
def test_a_part_whose_value_was_left_blank_is_a_mistake(key: str) -> None:
    blank = {**GOOD, "split": {"column": "part", "test": {key: None}}}
    with pytest.raises(SchemaError, match=rf"schema: split: test: .*{key}"):
        parse_schema(blank)


def test_a_positive_left_blank_is_a_mistake() -> None:
    values = copy.deepcopy(GOOD)
    values["tasks"][0]["positive"] = None
    with pytest.raises(SchemaError, match=r"tasks\[0\] \(default\): .*positive"):
        parse_schema(values)


def test_moments_with_and_without_a_time_zone_are_not_mixed_up() -> None:
    values = copy.deepcopy(GOOD)
    values["split"]["test"]["from"] = dt.datetime(2024, 9, 1, tzinfo=dt.UTC)
    try:
        start = parse_schema(values).split_rule.test.start
    except SchemaError as error:
        assert "split: test" in str(error)  # noqa: PT017
    else:
        assert start == dt.datetime(2024, 9, 1)


def test_numbers_may_be_written_with_powers_of_ten_alone(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("{least: 1e-3, most: -2E6, code: 1e, name: e5}")
    assert read_yaml(path, ValueError) == {"least": 1e-3, "most": -2e6, "code": "1e", "name": "e5"}


def test_a_key_written_twice_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "\nname: other\n", encoding="utf-8")
    with pytest.raises(SchemaError, match=r"twice\.yaml: .*name"):
        load_schema(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [cards", "not a readable YAML file"),
        (b"name: \xff\xfe", "not a readable YAML file"),
        (b"", "expected a mapping with the keys name, title"),
        (b"- a\n- b\n", "expected a mapping with the keys name, title"),
        (b"!!python/object/apply:os.getcwd []", "not a readable YAML file"),
    ],
    ids=["open bracket", "not UTF-8", "empty", "a list", "code"],
)
def test_a_file_that_is_no_schema_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=re.escape(str(path)) + ".*" + message) as raised:
        load_schema(path)
    assert "\n" not in str(raised.value)


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"absent\.yaml: no such file"):
        load_schema(tmp_path / "absent.yaml")
    with pytest.raises(SchemaError, match=re.escape(str(tmp_path))):
        load_schema(tmp_path)


# --- The files that come with the package ---------------------------------------------------------


def test_there_are_schema_files() -> None:
    assert len(SCHEMAS) >= 8


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_a_schema_file_loads_and_comes_back_from_plain_values(path: Path) -> None:
    schema = load_schema(path)
    assert schema.name == path.stem
    again = DataSchema.from_dict(yaml.safe_load(yaml.safe_dump(schema.to_dict())))
    assert again == schema
    assert again.hash == schema.hash
    assert again.to_dict() == schema.to_dict()


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    schema = load_schema(written(GOOD, tmp_path))
    reordered = dict(reversed(GOOD.items()))
    assert parse_schema(reordered).hash == schema.hash
    assert len({load_schema(path).hash for path in SCHEMAS}) == len(SCHEMAS)
    changed = copy.deepcopy(GOOD)
    changed["fields"][3]["constraints"]["maximum"] = 1001
    assert parse_schema(changed).hash != schema.hash
    swapped = copy.deepcopy(GOOD)
    swapped["fields"].reverse()
    assert parse_schema(swapped).hash != schema.hash


def test_equal_schemas_have_equal_hashes() -> None:
    decimal = copy.deepcopy(GOOD)
    decimal["fields"][3]["constraints"]["minimum"] = 0.0
    assert parse_schema(decimal) == parse_schema(GOOD)
    assert parse_schema(decimal).hash == parse_schema(GOOD).hash


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "import sys; from riskmtl.schema_file import load_schema;"
        "print(*(load_schema(path).hash for path in sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, SCHEMAS)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [load_schema(path).hash for path in SCHEMAS]
