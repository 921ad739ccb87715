"""Counterfactuals: the fewest changes, then the smallest, of what can change, and they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from riskmtl import DataSchema, MultiTaskClassifier
from riskmtl.encoding import FeatureEncoder
from riskmtl.explain.counterfactual import Counterfactual, find_counterfactual
from riskmtl.model import Head, RiskModel, sigmoid
from riskmtl.schema import Split
from riskmtl.schema_file import parse_schema
from riskmtl.scorers import LinearScorer
from tests.reference import counterfactual as brute

ROWS = 401


class Surface:
    """Scores with any function of encoded rows."""

    name = "surface"

    def __init__(self, function: Callable[[NDArray[np.float32]], NDArray[np.float64]]) -> None:
        self.function = function

    def raw(self, encoded: Any) -> NDArray[np.float64]:
        return np.asarray(self.function(encoded), dtype=np.float64)[:, None]

    def write(self, folder: Any) -> dict[str, Any]:
        raise NotImplementedError


def surface(
    frame: pl.DataFrame,
    function: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    schema: DataSchema | None = None,
) -> tuple[RiskModel, NDArray[np.float32]]:
    """A model of a function, and the frame as its background."""
    inputs = schema.inputs(frame) if schema else frame
    encoder = FeatureEncoder(schema.categorical_features if schema else "from_dtype").fit(inputs)
    model = RiskModel(encoder, Surface(function), [Head("default")], schema=schema)
    return model, model.encode(frame)


def linear(
    frame: pl.DataFrame,
    weights: Mapping[str, Any],
    intercept: float = 0.0,
    schema: DataSchema | None = None,
) -> tuple[RiskModel, NDArray[np.float32]]:
    """A model with a weight per number and a weight per value of a category."""
    model, background = surface(frame, lambda rows: rows[:, 0], schema)
    columns = model.encoder.columns_
    table, offset, slope = [], [], []
    for column in columns:
        weight = weights.get(column.name, 0.0)
        slope.append(0.0 if column.is_categorical else weight)
        offset.append(len(table) if column.is_categorical else -1)
        if column.vocabulary is not None:
            given = weight if isinstance(weight, dict) else {}
            table += [given.get(word, 0.0) for word in (None, None, *column.vocabulary)]
    ones = np.ones(len(columns))
    arrays = {
        "mean": 0 * ones,
        "scale": ones,
        "low": -np.inf * ones,
        "high": np.inf * ones,
        "slope": np.array(slope)[:, None],
        "missing": np.zeros((len(columns), 1)),
        "table": np.array([*table, 0.0])[:, None],
        "offset": np.array(offset),
        "intercept": np.array([intercept]),
    }
    return replace(model, scorer=LinearScorer(arrays)), background


def flat(**highest: float) -> pl.DataFrame:
    """Columns spread evenly from 0, each in an order of its own."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {name: rng.permutation(np.linspace(0, high, ROWS)) for name, high in highest.items()}
    )


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def told(found: Counterfactual) -> dict[str, str]:
    return dict(zip(found.changes["column"], found.changes["to"], strict=True))


# ---- the truth -----------------------------------------------------------------------------------


def test_one_change_is_of_the_cheapest_column_and_ends_at_the_boundary() -> None:
    model, background = linear(flat(a=10, b=100, c=1), {"a": 0.5, "b": 0.02, "c": 0.1}, -4)
    row = pl.DataFrame({"a": [8.0], "b": [50.0], "c": [0.5]})
    # The log-odds must fall from 1.05 to 0: 21 % of the rows in a, 52.5 % in b, and c has too few.
    options = {"head": "default", "target": 0.5, "changeable": ["a", "b", "c"]}
    found = find_counterfactual(model, row, background, **options)
    assert found.reached
    assert found.changes["column"].to_list() == ["a"]
    boundary = 8 - 1.05 / 0.5
    assert boundary - 0.01 * 2.1 <= found.row["a"].item() <= boundary
    assert found.before == pytest.approx(sigmoid(np.array(1.05)))
    assert 0.49 < found.after <= 0.5


def test_where_one_is_not_enough_two_change_and_the_split_is_the_cheapest() -> None:
    model, background = linear(flat(a=10, b=100), {"a": 0.5, "b": 0.02}, -4)
    row = pl.DataFrame({"a": [8.0], "b": [50.0]})
    # 4.5 to go, of which a can give 4 and b 1: a is the cheaper by the row, so it gives all.
    found = find_counterfactual(
        model, row, background, head="default", target=1 / (1 + np.exp(3.5)), changeable=["b", "a"]
    )
    assert found.reached
    assert found.row["a"].item() == 0
    assert found.row["b"].item() == pytest.approx(25, abs=0.25)
    assert told(found).keys() == {"a", "b"}


def test_a_category_is_changed_where_numbers_would_have_to_go_further() -> None:
    frame = flat(a=10).with_columns(kind=pl.Series(["x", "y", "z"] * 133 + ["x", "y"]))
    weights = {"a": 0.1, "kind": {"x": 1.0, "y": 0.2, "z": 0.5}}
    model, background = linear(frame, weights)
    row = pl.DataFrame({"a": [5.0], "kind": ["x"]})
    goal = {"head": "default", "changeable": ["a", "kind"]}
    small = find_counterfactual(
        model, row, background, target=float(sigmoid(np.array(1.3))), **goal
    )
    assert told(small) == {"a": "2.99"}
    large = find_counterfactual(
        model, row, background, target=float(sigmoid(np.array(0.75))), **goal
    )
    assert told(large) == {"kind": "y"}


def test_a_change_is_as_large_as_the_rows_that_it_passes() -> None:
    # By distance a has less to go, but most rows lie on its way.
    crowded = np.concatenate([np.linspace(4, 5, ROWS - 2), [0.0, 10.0]])
    frame = flat(b=10).with_columns(a=pl.Series(crowded)).select("a", "b")
    model, background = linear(frame, {"a": 1.2, "b": 1.0}, -10.5)
    row = pl.DataFrame({"a": [5.0], "b": [5.0]})
    found = find_counterfactual(
        model, row, background, head="default", target=0.5, changeable=["a", "b"]
    )
    assert told(found) == {"b": "4.499"}


def test_what_helps_only_together_is_found_beside_what_helps_alone() -> None:
    def function(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        alone, p, q = 0.1 * rows[:, :5].sum(1), rows[:, 5] == 0, rows[:, 6] == 0
        return np.asarray(alone + 0.5 * (p != q) - 5.0 * (p & q))

    switch = pl.Series(np.arange(ROWS) % 2)
    frame = flat(d0=1, d1=1, d2=1, d3=1, d4=1).with_columns(p=switch, q=switch)
    model, background = surface(frame, function)
    row = frame[1:2].with_columns(pl.col("^d.$") * 0 + 0.9)
    found = find_counterfactual(
        model, row, background, head="default", target=0.1, changeable=frame.columns, most=2
    )
    assert told(found).keys() == {"p", "q"}


def bumpy(seed: int, columns: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """A function with interactions of every order, up and down in every column."""
    rng = np.random.default_rng(seed)
    weight, out = rng.normal(size=(columns, 8)) / 2, rng.normal(size=8)
    return lambda rows: np.sin(np.asarray(rows, dtype=np.float64) @ weight) @ out


def test_the_number_of_changes_is_that_of_trying_everything() -> None:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame({f"x{i}": rng.integers(0, 5 + i, ROWS) for i in range(5)})
    numbers, ratios = [], []
    for seed in range(40):
        function = bumpy(seed, 5)
        model, background = surface(frame, function)
        row = frame[seed : seed + 1]
        choices = {i: sorted(frame[f"x{i}"].unique()) for i in range(4)}
        best = function(background).min()
        goal = 0.8 * best + 0.2 * function(background[seed : seed + 1])[0]
        found = find_counterfactual(
            model,
            row,
            background,
            head="default",
            target=float(sigmoid(np.array(goal))),
            changeable=[f"x{i}" for i in range(4)],
        )
        ways = brute.reaching(function, row.row(0), choices, goal - 1e-4, 3)
        assert found.reached == bool(ways)
        if ways:
            costs = [cost(frame, row, way) for way in (*ways, found.row.row(0))]
            numbers.append(sum(a != b for a, b in zip(ways[0], row.row(0), strict=True)))
            assert found.changes.height == numbers[-1]
            ratios.append(costs[-1] / min(costs))
            if numbers[-1] == 1:
                assert ratios[-1] == 1
    assert {1, 2, 3} <= set(numbers)
    assert np.mean(ratios) < 1.05


def cost(frame: pl.DataFrame, row: pl.DataFrame, changed: tuple[float, ...]) -> float:
    return sum(
        brute.share_between(frame[name].to_list(), row[name].item(), value)
        for name, value in zip(frame.columns, changed, strict=True)
    )


def test_out_of_reach_the_best_is_given_and_says_so() -> None:
    model, background = linear(flat(a=10, b=100, c=1), {"a": 0.5, "b": -0.02, "c": 1.0})
    row = pl.DataFrame({"a": [8.0], "b": [50.0], "c": [0.5]})
    options = {"head": "default", "target": 1e-6, "changeable": ["a", "b", "c"]}
    found = find_counterfactual(model, row, background, most=2, **options)
    assert not found.reached
    # a to 0 gives 4, b to 100 gives 1, c only 0.5.
    assert told(found).keys() == {"a", "b"}
    assert logit(found.after) == pytest.approx(logit(found.before) - 5, abs=1e-3)
    assert "not reached; changes a, b)" in repr(found)
    all_three = find_counterfactual(model, row, background, most=9, **options)
    assert all_three.changes.height == 3


def test_changes_without_effect_are_not_told_even_out_of_reach() -> None:
    model, background = surface(flat(a=10, b=10), lambda rows: np.where(rows[:, 0] > 3, 1.0, 0.5))
    row = pl.DataFrame({"a": [9.0], "b": [9.0]})
    options = {"head": "default", "target": 0.1, "changeable": ["a", "b"]}
    found = find_counterfactual(model, row, background, **options)
    assert told(found) == {"a": "3"}
    slight, background = surface(
        flat(a=10, b=10), lambda rows: np.where(rows[:, 0] > 3, 1.0, 0.5) + 1e-7 * rows[:, 1]
    )
    assert told(find_counterfactual(slight, row, background, **options)) == {"a": "3"}
    stuck, background = surface(flat(a=10), lambda rows: np.ones(len(rows)))
    unmoved = find_counterfactual(
        stuck, row[["a"]], background, head="default", target=0.1, changeable=["a"]
    )
    assert not unmoved.reached
    assert unmoved.changes.is_empty()
    assert_frame_equal(unmoved.row, row[["a"]])


def test_a_row_that_is_there_already_is_left_alone() -> None:
    model, background = linear(flat(a=10), {"a": 1.0}, -9)
    row = pl.DataFrame({"a": [2.0]})
    found = find_counterfactual(
        model, row, background, head="default", target=0.3, changeable=["a"]
    )
    assert found.reached
    assert found.before == found.after == model.predict_frame(row)["default"].item()
    assert found.changes.is_empty()
    assert found.changes.columns == ["column", "from", "to", "effect"]
    assert_frame_equal(found.row, row)
    assert "changes nothing" in repr(found)


def test_effects_are_those_of_the_changes_in_the_order_told() -> None:
    model, background = surface(flat(a=1, b=1, c=1), lambda r: 4 * r[:, 0] * r[:, 1] + r[:, 2])
    row = pl.DataFrame({"a": [0.9], "b": [0.8], "c": [1.0]})
    found = find_counterfactual(
        model, row, background, head="default", target=0.51, changeable=["a", "b", "c"]
    )
    assert found.changes["effect"].sum() == pytest.approx(logit(found.after) - logit(found.before))
    step = row
    for column, to, effect in found.changes.select("column", "to", "effect").iter_rows():
        before = logit(model.predict_frame(step)["default"].item())
        rest = [name for name in told(found) if step[name].item() != found.row[name].item()]
        moves = [moved(model, step, found.row, name) - before for name in rest]
        assert rest[int(np.argmin(moves))] == column
        assert effect == pytest.approx(min(moves))
        assert float(to) == found.row[column].item()
        step = step.with_columns(found.row[column])
    assert found.changes.height == 2


def moved(model: RiskModel, row: pl.DataFrame, changed: pl.DataFrame, name: str) -> float:
    return logit(model.predict_frame(row.with_columns(changed[name]))["default"].item())


def test_of_equal_columns_the_first_is_changed_every_time() -> None:
    frame = flat(a=10).with_columns(b=pl.col("a"))
    for weight, value in ((0.5, 8.0), (-0.5, 2.0)):
        model, background = linear(frame, {"a": weight, "b": weight}, -6 if weight > 0 else 4)
        row = pl.DataFrame({"a": [value], "b": [value]})
        options = {"head": "default", "target": 0.5}
        found = [
            find_counterfactual(model, row, background, changeable=names, **options)
            for names in (["a", "b"], ["b", "a"], ["a", "b"])
        ]
        assert [list(told(each)) for each in found] == [["a"]] * 3
        assert len({each.after for each in found}) == 1


# ---- what may change, and to what ----------------------------------------------------------------

SCHEMA = parse_schema(
    {
        "name": "loans",
        "fields": [
            {"name": "id", "type": "integer", "role": "key"},
            {"name": "age", "type": "integer", "protected": True},
            {
                "name": "debt",
                "type": "number",
                "changeable": "down",
                "missingValues": [-9],
                "constraints": {"minimum": 0.5},
            },
            {"name": "savings", "type": "number", "changeable": "up"},
            {
                "name": "cards",
                "type": "integer",
                "changeable": True,
                "missingValues": 0,
                "constraints": {"minimum": 0, "maximum": 30},
            },
            {
                "name": "term",
                "type": "integer",
                "changeable": True,
                "constraints": {"enum": [12, 24, 36, 48]},
            },
            {
                "name": "purpose",
                "type": "string",
                "changeable": True,
                "missingValues": "unknown",
                "constraints": {"enum": ["car", "home", "unknown", "yacht", "loan"]},
            },
            {"name": "insured", "type": "boolean", "changeable": True},
            {"name": "score", "type": "number"},
        ],
        "tasks": [{"name": "default", "label": "bad", "positive": 1}],
    }
)
MARKED = {c.name: c.changeable for c in SCHEMA.columns if c.changeable}


def loans(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def some(values: NDArray[Any]) -> pl.Series:
        return pl.Series(values).set(pl.Series(rng.random(rows) < 0.1), None)

    debt = rng.gamma(2, 500, rows).round(2) + 0.5
    return pl.DataFrame(
        {
            "id": np.arange(rows),
            "age": rng.integers(18, 80, rows),
            "debt": np.where(rng.random(rows) < 0.1, -9, debt),
            "savings": some(rng.normal(0, 1, rows)),
            "cards": rng.integers(0, 9, rows),
            "term": rng.choice([12, 24, 36, 48], rows),
            "purpose": rng.choice(["car", "home", "loan", "unknown"], rows),
            "insured": some(rng.random(rows) < 0.5),
            "score": rng.normal(0, 1, rows),
        }
    )


LOANS = loans(600, 0)


def weighed(seed: int) -> tuple[RiskModel, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = dict(
        zip(
            ["debt", "savings", "cards", "term", "score", "age"],
            rng.normal(size=6) * [1e-3, 1, 0.2, 0.03, 1, 0.02],
            strict=True,
        )
    )
    weights["purpose"] = dict(zip(["car", "home", "loan"], rng.normal(size=3), strict=True))
    weights["insured"] = dict(zip(["true", "false"], rng.normal(size=2), strict=True))
    return linear(LOANS, weights, schema=SCHEMA)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9_999),
    target=st.floats(0.02, 0.9),
    most=st.integers(1, 4),
    dtype=st.sampled_from([pl.Float64, pl.Float32]),
)
def test_only_what_can_change_is_changed_within_its_range_and_the_target_holds(
    seed: int, target: float, most: int, dtype: Any
) -> None:
    model, background = weighed(seed)
    row = loans(1, seed + 1).with_columns(pl.col("debt", "savings").cast(dtype))
    found = find_counterfactual(model, row, background, head="default", target=target, most=most)
    assert found.row.schema == row.schema
    assert found.after == model.predict_frame(found.row)["default"].item()
    assert found.before == model.predict_frame(row)["default"].item()
    assert found.reached == (found.after <= target)
    assert found.after <= found.before
    assert found.changes.height <= most
    changed = [n for n in row.columns if not row[n].equals(found.row[n], null_equal=True)]
    assert sorted(changed) == sorted(found.changes["column"])
    assert set(changed) <= set(MARKED)
    for name in changed:
        old, new = SCHEMA.inputs(row)[name].item(), SCHEMA.inputs(found.row)[name].item()
        assert new is not None
        if name in ("purpose", "insured"):
            assert str(new).lower() in ("car", "home", "loan", "true", "false")
            continue
        assert old is not None
        assert new < old if MARKED[name] == "down" else True
        assert new > old if MARKED[name] == "up" else True
        assert name != "debt" or new >= 0.5
        assert name != "savings" or new <= np.float32(LOANS["savings"].max())
        assert name != "cards" or 1 <= new <= 30
        assert name != "term" or new in (12, 24, 36, 48)
    effects = logit(found.after) - logit(found.before)
    assert found.changes["effect"].sum() == pytest.approx(effects, abs=1e-6)
    assert (found.changes["effect"] < 1e-4).all() or found.changes.height > 1
    assert SCHEMA.check(found.row.with_columns(bad=0)).good.height == 1


def test_what_the_customer_reads_has_few_digits() -> None:
    model, background = weighed(3)
    ends = [Decimal("0.5"), Decimal(str(np.nanmax(background[:, 2])))]
    assert SCHEMA.input_columns[2].name == "savings"
    seen = []
    for seed in range(30):
        found = find_counterfactual(
            model, loans(1, seed), background, head="default", target=0.3, most=2
        )
        for column, old, new in found.changes.select("column", "from", "to").iter_rows():
            if found.reached and column in ("debt", "savings"):
                change = abs(Decimal(new) - Decimal(old))
                lowest = Decimal(new).normalize().as_tuple().exponent
                # No digit of the new value is below the third of the change.
                is_short = int(lowest) >= change.adjusted() - 2
                seen.append(is_short or Decimal(new) in ends)
    assert len(seen) > 10
    assert all(seen)


def test_what_is_rounded_to_nothing_has_no_sign() -> None:
    frame = pl.DataFrame({"a": np.linspace(-2, 2, ROWS)})
    model, background = linear(frame, {"a": -1.0}, -4e-4)
    row = pl.DataFrame({"a": [-1.0]})
    found = find_counterfactual(
        model, row, background, head="default", target=0.5, changeable=["a"]
    )
    assert str(found.row["a"].item()) == "0.0"


def test_a_missing_number_stays_missing_and_a_missing_category_may_be_filled() -> None:
    weights = {"debt": 1e-3, "savings": -1.0, "purpose": {"car": -1.0, "home": -3.0, "loan": 0.5}}
    model, background = linear(LOANS, weights, 2.0, SCHEMA)
    row = loans(1, 5).with_columns(
        debt=-9.0, savings=pl.lit(None, pl.Float64), purpose=pl.lit("unknown")
    )
    found = find_counterfactual(model, row, background, head="default", target=0.4)
    assert found.changes.select("column", "from", "to").rows() == [("purpose", "unknown", "home")]
    rest = find_counterfactual(
        model, row, background, head="default", target=0.4, changeable=["debt", "savings"]
    )
    assert not rest.reached
    assert rest.changes.is_empty()
    assert rest.row["debt"].item() == -9


def test_a_code_for_missing_is_never_what_to_change_to() -> None:
    # Fewer cards are better, and 0 means that nothing is known.
    model, background = linear(LOANS, {"cards": 1.0}, schema=SCHEMA)
    row = loans(1, 5).with_columns(pl.lit(7).alias("cards"))
    found = find_counterfactual(model, row, background, head="default", target=0.01)
    assert told(found) == {"cards": "1"}
    assert not found.reached
    field = {"name": "days", "type": "integer", "changeable": True, "missingValues": 40}
    values = {"name": "s", "fields": [field], "tasks": [{"name": "t", "label": "y", "positive": 1}]}
    frame = pl.DataFrame({"days": range(100)})
    model, background = linear(frame, {"days": 1.0}, -40.5, schema=parse_schema(values))
    # 40 days would do, were it not the code.
    found = find_counterfactual(model, frame[90:91], background, head="default", target=0.5)
    assert found.reached
    assert 30 < found.row["days"].item() < 40


def test_values_never_seen_are_not_advised_though_the_schema_allows_them() -> None:
    weights = {"purpose": {"car": 1.0, "home": 2.0, "loan": 3.0}}
    model, background = linear(LOANS, weights, schema=SCHEMA)
    row = loans(1, 5).with_columns(purpose=pl.lit("loan"))
    found = find_counterfactual(model, row, background, head="default", target=0.01)
    assert told(found) == {"purpose": "car"}


def test_values_that_the_schema_does_not_allow_are_not_advised_though_seen() -> None:
    more = LOANS.with_columns(
        purpose=pl.when(pl.col("age") < 30).then(pl.lit("boat")).otherwise("purpose")
    )
    weights = {"purpose": {"boat": -9.0, "car": 1.0, "home": 2.0, "loan": 3.0}}
    model, background = linear(more, weights, schema=SCHEMA)
    row = loans(1, 5).with_columns(purpose=pl.lit("loan"))
    for each in (row, row.drop("id")):
        found = find_counterfactual(model, each, background, head="default", target=0.01)
        assert told(found) == {"purpose": "car"}


def test_the_ends_of_the_range_are_those_of_the_schema_or_else_of_the_background() -> None:
    model, background = linear(LOANS, {"debt": 1e-3, "savings": -1.0}, schema=SCHEMA)
    row = loans(1, 5).with_columns(debt=800.0, savings=0.25)
    found = find_counterfactual(model, row, background, head="default", target=1e-5)
    assert found.row["debt"].item() == pytest.approx(0.5, abs=0.1)
    highest = LOANS["savings"].max()
    assert found.row["savings"].item() == pytest.approx(highest, abs=1e-4)
    beyond = row.with_columns(savings=99.0)
    stays = find_counterfactual(model, beyond, background, head="default", target=1e-50)
    assert stays.row["savings"].item() == 99


def test_a_column_without_background_changes_within_its_constraints_only() -> None:
    frame = pl.DataFrame({"a": [None, None], "b": [1.0, 2.0]}, schema_overrides={"a": pl.Float64})
    fields = [{"name": "a", "type": "number", "changeable": True}, {"name": "b", "type": "number"}]
    values = {"name": "s", "fields": fields, "tasks": [{"name": "t", "label": "y", "positive": 1}]}
    row = pl.DataFrame({"a": [5.0], "b": [1.0]})
    model, background = linear(frame, {"a": 1.0}, schema=parse_schema(values))
    options = {"head": "default", "target": 0.9}
    assert find_counterfactual(model, row, background, **options).changes.is_empty()
    fields[0]["constraints"] = {"minimum": 0, "maximum": 9}
    model, background = linear(frame, {"a": 1.0}, schema=parse_schema(values))
    found = find_counterfactual(model, row, background, **options)
    assert found.reached
    assert found.row["a"].item() == pytest.approx(2.19, abs=0.03)


def test_a_value_that_the_column_cannot_hold_as_the_schema_asks_is_not_advised() -> None:
    allowed = [0.25, 0.5, 0.7]
    field = {"name": "rate", "type": "number", "changeable": True, "constraints": {"enum": allowed}}
    values = {"name": "s", "fields": [field], "tasks": [{"name": "t", "label": "y", "positive": 1}]}
    frame = pl.DataFrame({"rate": allowed})
    model, background = linear(frame, {"rate": -9.0}, 4.0, schema=parse_schema(values))
    row, options = frame[1:2], {"head": "default", "target": 0.2}
    found = find_counterfactual(model, row, background, **options)
    assert found.row["rate"].to_list() == [0.7]
    # In float32 there is no 0.7, and the schema would refuse what comes nearest.
    narrow = row.cast(pl.Float32)
    assert find_counterfactual(model, narrow, background, **options).changes.is_empty()


def test_a_row_that_breaks_the_schema_elsewhere_is_answered_too() -> None:
    model, background = weighed(3)
    broken = [loans(1, 4).drop("id"), loans(1, 4).with_columns(pl.lit(1).alias("more"))]
    for row in broken:
        found = find_counterfactual(model, row, background, head="default", target=0.3)
        assert found.row.columns == row.columns
        assert found.reached


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("whole", pl.Series([200], dtype=pl.UInt8)),
        ("whole", pl.Series([200.0], dtype=pl.Float32)),
        ("number", pl.Series([Decimal("87.25")], dtype=pl.Decimal(10, 2))),
        ("number", pl.Series([87], dtype=pl.Int64)),
        ("kind", pl.Series(["c"], dtype=pl.Categorical)),
        ("kind", pl.Series(["c"], dtype=pl.Enum(["b", "c"]))),
        ("code", pl.Series([3], dtype=pl.Int8)),
        ("code", pl.Series([3.0], dtype=pl.Float64)),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, pl.Series) else value,
)
def test_values_survive_the_type_of_the_column(name: str, values: pl.Series) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "whole": rng.integers(0, 400, ROWS),
            "number": rng.uniform(0, 100, ROWS).round(2),
            "kind": rng.choice(["a", "b", "c"], ROWS),
            "code": rng.choice(["1", "2", "3"], ROWS),
        }
    )
    weights = {
        "whole": 0.01,
        "number": 0.1,
        "kind": {"a": 0.0, "b": 0.5, "c": 1.0},
        "code": {"2": 0.5, "3": 1.0},
    }
    model, background = linear(frame, weights)
    row = frame[:1].with_columns(values.alias(name))
    before = model.predict_frame(row)["default"].item()
    target = float(sigmoid(np.array(logit(before) - 0.4)))
    found = find_counterfactual(
        model, row, background, head="default", target=target, changeable=[name]
    )
    assert found.reached
    assert found.row.schema == row.schema
    assert told(found).keys() == {name}
    if isinstance(values.dtype, pl.Enum):
        assert told(found) == {"kind": "b"}


def test_a_boolean_that_is_a_number_to_the_model_is_turned_round() -> None:
    frame = flat(a=10).with_columns(flag=pl.Series(np.arange(ROWS) % 2 == 0))
    encoder = FeatureEncoder([]).fit(frame)
    model = RiskModel(encoder, Surface(lambda rows: 2 * rows[:, 1] - 1), [Head("default")])
    row = pl.DataFrame({"a": [5.0], "flag": [True]})
    found = find_counterfactual(
        model, row, model.encode(frame), head="default", target=0.4, changeable=["a", "flag"]
    )
    assert found.changes.select("column", "from", "to").rows() == [("flag", "true", "false")]
    assert found.row["flag"].to_list() == [False]


def test_columns_are_narrowed_to_those_asked_for() -> None:
    model, background = linear(LOANS, {"debt": 1e-3, "cards": 0.5}, schema=SCHEMA)
    row = loans(1, 5).with_columns(pl.lit(5).alias("cards"), debt=900.0)
    options = {"head": "default", "target": 0.9}
    only = find_counterfactual(model, row, background, changeable=["debt"], **options)
    assert set(told(only)) <= {"debt"}
    one_way = find_counterfactual(model, row, background, changeable={"cards": "up"}, **options)
    assert one_way.changes.is_empty()
    other_way = find_counterfactual(model, row, background, changeable={"cards": "down"}, **options)
    assert told(other_way).keys() == {"cards"}


# ---- fitted models -------------------------------------------------------------------------------


def fitted(trained: MultiTaskClassifier) -> list[RiskModel]:
    """A network, its LightGBM, and a blend of the two."""
    network, trees = trained.model_, trained.challenger_.model_
    heads = [replace(head, blend=0.5) for head in network.heads]
    return [network, trees, replace(network, heads=heads, challenger=trees)]


def test_fitted_models_are_answered_and_the_answers_hold(
    trained: MultiTaskClassifier, parts: Split, schema: DataSchema
) -> None:
    marked = {c.name: c.changeable for c in schema.columns if c.changeable}
    table = parts.test.head(400)
    for model in fitted(trained):
        scores = model.predict_frame(table)["default"].to_numpy()
        target = float(np.quantile(scores, 0.8))
        reached = []
        for position in np.argsort(-scores)[20:24].tolist():
            row = table[position]
            found = find_counterfactual(model, row, model.background, head="default", target=target)
            again = model.predict_frame(found.row)["default"].item()
            assert found.after == again <= found.before == pytest.approx(scores[position])
            assert found.reached == (again <= target)
            others = pl.all().exclude(*marked)
            assert_frame_equal(found.row.select(others), row.select(others))
            for name, direction in marked.items():
                old, new = row[name].item(), found.row[name].item()
                assert new == old or {"up": new > old, "down": new < old}.get(direction, True)
            reached.append(found.reached)
        assert any(reached)


def test_a_model_that_answers_the_same_row_in_two_ways_is_an_error() -> None:
    model, background = linear(flat(a=10), {"a": 1.0})
    calls = []

    def fickle(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        calls.append(len(rows))
        return rows[:, 0] + 0.5 * len(calls)

    with pytest.raises(ArithmeticError, match="does not answer the same row the same way"):
        find_counterfactual(
            replace(model, scorer=Surface(fickle)),
            pl.DataFrame({"a": [8.0]}),
            background,
            head="default",
            target=0.99,
            changeable=["a"],
        )


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "defualt"}, "unknown head 'defualt': did you mean 'default'?"),
        ({"target": 0.0}, "target is a probability between 0 and 1, got 0.0"),
        ({"target": 1.0}, "target is a probability between 0 and 1, got 1.0"),
        ({"target": float("nan")}, "target is a probability between 0 and 1, got nan"),
        ({"most": 0}, "most must be at least 1, got 0"),
        ({"changeable": ["debts"]}, "changeable: unknown column 'debts': did you mean 'debt'?"),
        ({"changeable": ["id"]}, "changeable: unknown column 'id'"),
        ({"changeable": "debt"}, "changeable must be a list of columns, got 'debt'"),
        ({"changeable": []}, "changeable must name at least one column"),
        ({"changeable": {"cards": "left"}}, "changeable: unknown direction 'left'"),
        (
            {"changeable": ["score"]},
            "column 'score' is not marked as changeable: add 'changeable: true' (or up, down) to "
            "its field in schema 'loans'",
        ),
        (
            {"changeable": {"debt": "both"}},
            "column 'debt' is marked 'changeable: down' in schema 'loans', got 'both'",
        ),
        (
            {"changeable": {"purpose": "up"}},
            "column 'purpose' is a category and cannot go up: use 'both'",
        ),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    model, background = weighed(0)
    usual = {"head": "default", "target": 0.1}
    with pytest.raises(ValueError, match=re.escape(message)):
        find_counterfactual(model, LOANS[:1], background, **{**usual, **options})


@pytest.mark.parametrize("rows", [0, 2])
def test_a_frame_that_is_not_one_row_is_refused(rows: int) -> None:
    model, background = weighed(0)
    with pytest.raises(ValueError, match=f"of one row, got {rows}: give them one by one"):
        find_counterfactual(model, LOANS[:rows], background, head="default", target=0.1)


def test_without_a_schema_or_a_mark_the_columns_must_be_named() -> None:
    model, background = linear(flat(a=10), {"a": 1.0})
    row, options = pl.DataFrame({"a": [8.0]}), {"head": "default", "target": 0.1}
    with pytest.raises(ValueError, match="no schema: name the columns in changeable"):
        find_counterfactual(model, row, background, **options)
    with pytest.raises(ValueError, match=r"unknown column 'b': valid are a"):
        find_counterfactual(model, row, background, changeable=["b"], **options)
    columns = tuple(replace(column, changeable="") for column in SCHEMA.columns)
    bare, background = linear(LOANS, {}, schema=replace(SCHEMA, columns=columns))
    with pytest.raises(ValueError, match="'loans' marks no column as changeable: add 'changeable"):
        find_counterfactual(bare, LOANS[:1], background, **options)


def test_a_boolean_goes_neither_up_nor_down() -> None:
    frame = pl.DataFrame({"flag": [True, False]})
    model = RiskModel(FeatureEncoder([]).fit(frame), Surface(lambda r: r[:, 0]), [Head("default")])
    with pytest.raises(ValueError, match="'flag' is a category and cannot go down"):
        find_counterfactual(
            model,
            frame[:1],
            model.encode(frame),
            head="default",
            target=0.1,
            changeable={"flag": "down"},
        )
