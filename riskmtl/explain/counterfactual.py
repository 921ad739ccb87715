"""
What would change the outcome: the fewest and then smallest changes of one row's columns.

Only columns that a person can change are changed, within their ranges and in their direction. The
search asks nothing of the model but its answers, so it is the same for any scorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.columns import DIRECTIONS, Column, DataError
from riskmtl.errors import unknown_name
from riskmtl.explain.levers import Values, make_lever
from riskmtl.frames import category_text
from riskmtl.model import RiskModel, sigmoid
from riskmtl.schema import DataSchema

# States kept from one number of changes to the next: in all, and of those that change the same.
_MOST_KEPT, _MOST_ALIKE = 64, 8
# A change is drawn back to within 2^-20 of itself.
_HALVINGS = 20
# In log-odds: what float32 answers to one row may differ by in batches of other sizes.
_SLACK = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Counterfactual:
    """
    Changes of one row that bring P(positive) of a head down to a target.

    Parameters
    ----------
    head : str
    target : float
        The largest P(positive) wanted.
    before, after : float
        P(positive) of the row as it was given, and as changed.
    reached : bool
        Whether ``after`` is at most the target.
    changes : polars.DataFrame
        A line per change: ``column``, ``from`` and ``to`` as text, and ``effect``, by how much the
        change moves the log-odds of the head after those above it. The effects add up to the whole
        move; each line is the change that lowers the log-odds most at its turn.
    row : polars.DataFrame
        The changed row, of the columns and types of the one given.
    """

    head: str
    target: float
    before: float
    after: float
    reached: bool
    changes: pl.DataFrame
    row: pl.DataFrame

    def __repr__(self) -> str:
        state = "reached" if self.reached else "not reached"
        changed = ", ".join(self.changes["column"]) or "nothing"
        return (
            f"Counterfactual({self.head}: {self.before:.3g} to {self.after:.3g}, "
            f"target {self.target:g} {state}; changes {changed})"
        )


def find_counterfactual(
    model: RiskModel,
    row: pl.DataFrame,
    background: NDArray[np.float32],
    *,
    head: str,
    target: float,
    changeable: Sequence[str] | Mapping[str, str] | None = None,
    most: int = 3,
) -> Counterfactual:
    r"""
    Find the fewest and then smallest changes that bring a row down to a target.

    Parameters
    ----------
    model : RiskModel
    row : polars.DataFrame
        One raw row.
    background : ndarray of shape (background rows, features)
        Encoded rows, for the values to try and the size of a change.
    head : str
        A binary task.
    target : float
        The largest P(positive) wanted, between 0 and 1.
    changeable : sequence of str, or mapping of str to {"both", "up", "down"}, optional
        Columns that can change. Default: those that the schema marks; given with a schema, these
        among them. Without a schema they must be given.
    most : int
        Most changes.

    Returns
    -------
    Counterfactual
        With the lowest P(positive) found, and ``reached=False``, where the target is out of reach.

    Raises
    ------
    ValueError
        If the frame is not one row, the head or a column is unknown, a column is not marked as
        changeable, or a category is to go up or down.
    ArithmeticError
        If the model does not answer the same row the same way.

    Notes
    -----
    These are counterfactual explanations (Wachter et al. 2018) with the costs of actionable
    recourse (Ustun et al. 2019). A number takes quantiles of the background and the ends of its
    range, the schema's minimum and maximum or where it has none the background's, or else the
    values of its enum; an integer stays whole. A category takes the values known from training, of
    its enum if there is one. A missing number is left as it is.

    A change of a number from :math:`x` to :math:`x'` costs the share of background rows between
    them, :math:`|F(x') - F(x)|`, where a row at :math:`x` or :math:`x'` counts half, and a
    thousandth of the distance in shares of the range, so that the smaller of two changes is always
    the cheaper. A change of a category costs 1.

    Changes are added one by one in a beam search; the first number of them that reaches the target
    stands. The cheapest finds are then drawn back by bisection towards the row, one change after
    another and each change first once, and the cheapest is taken. Over the values tried the number
    of changes is exact where one is enough; where more are, a beam of 64 states, up to 8 for each
    set of columns, may miss a way.

    What is found is checked by scoring the raw row. Numbers are rounded, to three digits of the
    change where the target still holds, to the nearest or else away from the row.

    Examples
    --------
    >>> from riskmtl import LogisticBaseline
    >>> rng = np.random.default_rng(0)
    >>> X = pl.DataFrame({"debt": rng.uniform(0, 9, 2000), "age": rng.integers(18, 80, 2000)})
    >>> y = pl.DataFrame({"default": (X["debt"] > rng.normal(5, 1, 2000)).cast(pl.Int8)})
    >>> model = LogisticBaseline(random_state=0).fit(X, y).model_
    >>> row = pl.DataFrame({"debt": [8.0], "age": [30]})
    >>> found = find_counterfactual(
    ...     model, row, model.encode(X), head="default", target=0.2, changeable={"debt": "down"}
    ... )
    >>> found
    Counterfactual(default: 0.99 to 0.199, target 0.2 reached; changes debt)
    >>> found.row.row(0)
    (4.2..., 30)
    """
    _check(model, row, head, target, most)
    directions = _directions(model, row, changeable)
    before = _probability(model, row, head)
    changed = row
    if before > target:
        changed = _Case(model, row, background, head, directions).changed(target, most)
    after = _probability(model, changed, head)
    changes = _told(model, row, changed, head)
    return Counterfactual(head, target, before, after, after <= target, changes, changed)


def _check(model: RiskModel, row: pl.DataFrame, head: str, target: float, most: int) -> None:
    if row.height != 1:
        raise ValueError(f"a counterfactual is of one row, got {row.height}: give them one by one")
    if head not in model.tasks:
        raise ValueError(unknown_name("head", head, model.tasks))
    if not 0 < target < 1:
        raise ValueError(f"target is a probability between 0 and 1, got {target}")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")


def _directions(
    model: RiskModel, row: pl.DataFrame, changeable: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """The columns that can change with their directions, in the order of the encoder."""
    declared = model.schema.columns if model.schema else ()
    marked = {column.name: column.changeable for column in declared if column.changeable}
    asked = _asked(model, marked, changeable)
    columns = {column.name: column for column in model.encoder.columns_}
    for name, direction in asked.items():
        if name not in columns:
            raise ValueError(f"changeable: {unknown_name('column', name, columns)}")
        if direction not in DIRECTIONS:
            raise ValueError(f"changeable: {unknown_name('direction', direction, DIRECTIONS)}")
        if model.schema and name not in marked:
            raise ValueError(
                f"column {name!r} is not marked as changeable: add 'changeable: true' (or up, "
                f"down) to its field in schema {model.schema.name!r}"
            )
        if model.schema and marked[name] not in ("both", direction):
            raise ValueError(
                f"column {name!r} is marked 'changeable: {marked[name]}' in schema "
                f"{model.schema.name!r}, got {direction!r}"
            )
        is_category = columns[name].is_categorical or row.schema.get(name) == pl.Boolean
        if is_category and direction != "both":
            raise ValueError(f"column {name!r} is a category and cannot go {direction}: use 'both'")
    return {name: asked[name] for name in columns if name in asked}


def _asked(
    model: RiskModel,
    marked: Mapping[str, str],
    changeable: Sequence[str] | Mapping[str, str] | None,
) -> Mapping[str, str]:
    if changeable is None:
        if model.schema is None:
            raise ValueError("the model has no schema: name the columns in changeable")
        if not marked:
            raise ValueError(
                f"schema {model.schema.name!r} marks no column as changeable: add 'changeable: "
                "true' (or up, down) to the fields that a person can change"
            )
        return marked
    if isinstance(changeable, str):
        raise ValueError(f"changeable must be a list of columns, got {changeable!r}")
    if not changeable:
        raise ValueError("changeable must name at least one column")
    if isinstance(changeable, Mapping):
        return changeable
    return {name: marked.get(name, "both") for name in changeable}


def _probability(model: RiskModel, row: pl.DataFrame, head: str) -> float:
    return float(model.predict_frame(row)[head].item())


def _declared(model: RiskModel, name: str) -> Column | None:
    """What the schema says of a column, if there is one."""
    declared = model.schema.columns if model.schema else ()
    return next((column for column in declared if column.name == name), None)


# ---- the search ----------------------------------------------------------------------------------


class _Case:
    """
    One row, what can change in it, and the model's answers to changed rows.

    A state is a value per lever, ``(levers,)``; where it is that of the row, nothing is changed.
    """

    def __init__(
        self,
        model: RiskModel,
        row: pl.DataFrame,
        background: NDArray[np.float32],
        head: str,
        directions: Mapping[str, str],
    ) -> None:
        self.model, self.row, self.head = model, row, head
        self.encoded = model.encode(row)[0]
        levers = {}
        for place, column in enumerate(model.encoder.columns_):
            now = float(self.encoded[place])
            if column.name in directions and not np.isnan(now):
                direction, values = directions[column.name], background[:, place]
                declared = _declared(model, column.name)
                levers[place] = make_lever(
                    column, declared, row.schema[column.name], now, values, direction
                )
        levers = {place: lever for place, lever in levers.items() if len(lever.tried)}
        self.places, self.levers = list(levers), list(levers.values())
        self.now = np.array([lever.now for lever in self.levers])
        self.keeps_schema = _keeps_schema(model.schema, row)

    def changed(self, target: float, most: int) -> pl.DataFrame:
        """The row with the changes found."""
        if not self.levers:
            return self.row
        goal = float(np.log(target) - np.log1p(-target)) - 2 * _SLACK
        states, goal = self._search(goal, most)
        if not (states != self.now).any():
            return self.row
        drawn = self._drawn_back(states, goal)
        pool = _distinct(np.concatenate([drawn, states]))
        pool = pool[np.lexsort((self._costs(pool), (pool != self.now).sum(1)))]
        return self._first_sound(pool, goal + _SLACK)

    def _search(self, goal: float, most: int) -> tuple[Values, float]:
        """
        The cheapest states that reach the goal with the fewest changes.

        Out of reach, the best of all states, with a goal that it reaches.
        """
        states, best = self.now[None], self.now
        least = float(self._margins(states)[0])
        singles = self._singles()
        for _ in range(most):
            states = self._one_more(states, singles)
            if len(states) == 0:
                break
            margins = self._margins(states)
            reaching = states[margins <= goal]
            if len(reaching):
                return reaching[self._leading(reaching, self._costs(reaching))], goal
            if margins.min() < least:
                least, best = float(margins.min()), states[margins.argmin()]
            states = states[self._leading(states, margins)]
        return best[None], least + _SLACK

    def _singles(self) -> Values:
        """States of one change each, in the order of the levers, that the raw row can hold."""
        changes = [np.tile(self.now, (len(lever.tried), 1)) for lever in self.levers]
        for place, lever in enumerate(self.levers):
            changes[place][:, place] = lever.tried
        singles = np.concatenate(changes)
        told = self._ways(singles)[-1]
        return singles[self._survive(told, self._raw(told))]

    def _one_more(self, states: Values, singles: Values) -> Values:
        """All states with one more change, each once."""
        is_taken = ((singles != self.now) & (states[:, None] != self.now)).any(2)
        state, single = np.nonzero(~is_taken)
        changed = np.where(singles[single] != self.now, singles[single], states[state])
        return _distinct(changed)

    def _leading(self, states: Values, keys: Values) -> NDArray[np.int64]:
        """Positions of the lowest keys, few of any one set of columns; ties in the order given."""
        order = np.argsort(keys, kind="stable")
        changed = states[order] != self.now
        alike = np.unique(changed, axis=0, return_inverse=True)[1].ravel()
        turn = pl.DataFrame({"set": alike}).select(pl.int_range(pl.len()).over("set"))
        return order[turn.to_series().to_numpy() < _MOST_ALIKE][:_MOST_KEPT]

    def _drawn_back(self, states: Values, goal: float) -> Values:
        """States, all of as many changes, drawn back change by change; each change first once."""
        changed = np.nonzero(states != self.now)[1].reshape(len(states), -1)
        turns = np.concatenate([np.roll(changed, turn, axis=1) for turn in range(changed.shape[1])])
        drawn = np.tile(states, (changed.shape[1], 1))
        for places in turns.T:
            self._draw_back(drawn, places, goal)
        return drawn

    def _draw_back(self, states: Values, places: NDArray[np.int64], goal: float) -> None:
        """Draw one change of each state back as far as the goal holds, in place."""
        rows = np.arange(len(states))
        far = states[rows, places]
        states[rows, places] = self.now[places]
        is_needed = ~(self._margins(states) <= goal)
        lower, upper = np.zeros(len(states)), np.ones(len(states))
        for _ in range(_HALVINGS):
            share = (lower + upper) / 2
            states[rows, places] = self._between(places, far, share)
            holds = self._margins(states) <= goal
            lower, upper = np.where(holds, lower, share), np.where(holds, share, upper)
        drawn = self._between(places, far, upper)
        states[rows, places] = np.where(is_needed, drawn, self.now[places])

    def _between(self, places: NDArray[np.int64], far: Values, share: Values) -> Values:
        found = far.copy()
        for place in np.unique(places):
            mine = places == place
            found[mine] = self.levers[place].between(far[mine], share[mine])
        return found

    def _first_sound(self, pool: Values, limit: float) -> pl.DataFrame:
        """The raw row of the first state that holds as a raw row, in its shortest way."""
        # One state after the other, (states x ways, levers)
        versions = self._ways(pool).transpose(1, 0, 2).reshape(-1, len(self.levers))
        rows = self._raw(versions)
        scores = self.model.predict_frame(rows)[self.head].to_numpy()
        is_sound = self._survive(versions, rows) & (scores <= sigmoid(np.array(limit)))
        if not is_sound.any():
            raise ArithmeticError(
                "no change found holds when scored again: "
                "the model does not answer the same row the same way"
            )
        return rows[int(is_sound.argmax())]

    # ---- states as rows ----------------------------------------------------------------------

    def _margins(self, states: Values) -> Values:
        """Log-odds of states, ``(states,)``."""
        rows = np.tile(self.encoded, (len(states), 1))
        rows[:, self.places] = states
        return self.model.outputs(rows)[self.head]

    def _costs(self, states: Values) -> Values:
        costs = [lever.cost(values) for lever, values in zip(self.levers, states.T, strict=True)]
        return np.asarray(np.sum(costs, axis=0))

    def _ways(self, states: Values) -> Values:
        """Ways to write states down, ``(ways, states, levers)``."""
        ways = [lever.ways(values) for lever, values in zip(self.levers, states.T, strict=True)]
        return np.where(states == self.now, self.now, np.array(ways).transpose(1, 2, 0))

    def _raw(self, states: Values) -> pl.DataFrame:
        """Raw rows of states; what is not changed is as it was given."""
        rows = self.row[[0] * len(states)]
        for lever, values in zip(self.levers, states.T, strict=True):
            given = rows[lever.name]
            raw = lever.raw(values, given.dtype)
            rows = rows.with_columns(given.zip_with(pl.Series(values == lever.now), raw))
        return rows

    def _survive(self, states: Values, rows: pl.DataFrame) -> NDArray[np.bool_]:
        """Whether raw rows are read as the states they are of, and keep the schema."""
        read = self.model.encode(rows)[:, self.places]
        survive = (read == states.astype(np.float32)).all(1)
        if self.model.schema is not None and self.keeps_schema:
            refused = self.model.schema.check(rows, labelled=False).quarantine["_row"]
            survive[refused.to_numpy()] = False
        return np.asarray(survive)


def _keeps_schema(schema: DataSchema | None, row: pl.DataFrame) -> bool:
    """Whether the row given keeps the schema; where it does not, none made from it can."""
    try:
        return schema is not None and schema.check(row, labelled=False).good.height == 1
    except DataError:
        return False


def _distinct(states: Values) -> Values:
    """Each state once, in the order of their first."""
    return states[np.sort(np.unique(states, axis=0, return_index=True)[1])]


# ---- what is told --------------------------------------------------------------------------------


def _told(model: RiskModel, row: pl.DataFrame, changed: pl.DataFrame, head: str) -> pl.DataFrame:
    """A line per change, each the one that lowers the log-odds most at its turn."""
    now, then = model.encode(row)[0], model.encode(changed)[0]
    left = np.flatnonzero((now != then) & ~np.isnan(now)).tolist()
    path, places = [now], []
    while left:
        tried = np.tile(path[-1], (len(left), 1))
        tried[np.arange(len(left)), left] = then[left]
        best = int(model.outputs(tried)[head].argmin())
        path.append(tried[best])
        places.append(left.pop(best))
    names = [model.encoder.columns_[place].name for place in places]
    return pl.DataFrame(
        {
            "column": names,
            "from": [category_text(row[name]).item() for name in names],
            "to": [category_text(changed[name]).item() for name in names],
            "effect": np.diff(model.outputs(np.stack(path))[head]),
        },
        schema={"column": pl.String, "from": pl.String, "to": pl.String, "effect": pl.Float64},
    )
