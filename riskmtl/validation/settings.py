"""What a user can say about a validation: heads with grades, protected columns, costs, bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riskmtl.grades import MASTER_SCALE
from riskmtl.validation.criteria import Criterion, criteria
from riskmtl.yaml_file import Node, read_yaml

_USUAL_BUDGET = 0.01


@dataclass(frozen=True, slots=True)
class Costs:
    """What decisions of a head cost, in any unit: a missed event, and a false alarm."""

    missed: float
    false_alarm: float


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Parameters of a validation; read a file with :func:`load_settings`.

    Parameters
    ----------
    min_events : int
        Fewer events, or non-events, than this give no verdict, nor do those of fewer customers
        where a key repeats.
    alert_budget : float or mapping of str to float
        Share of rows that a head may flag, which makes its cut-off; a head that a mapping does not
        name may flag 1 %.
    graded : sequence of str
        Heads whose probabilities are put into rating grades.
    grades : sequence of float
        Ascending upper bounds of the grades' probabilities, the last one 1.
    protected : sequence of str
        Columns to compare groups by; none unless asked.
    costs : mapping of str to Costs
        By head.
    decision : str
        A boolean column that says which rows were accepted, for overrides; empty: none.
    vintage : str
        A column by which stability is shown; a date counts with its month. Empty: the month of
        the row's time.
    explained_rows : int
        Rows for the global explanations.
    seed : int
    bounds : mapping
        Other bounds of verdicts; see :func:`riskmtl.validation.criteria.criteria`.
    """

    min_events: int = 30
    alert_budget: float | Mapping[str, float] = _USUAL_BUDGET
    graded: tuple[str, ...] = ("default",)
    grades: tuple[float, ...] = MASTER_SCALE
    protected: tuple[str, ...] = ()
    costs: Mapping[str, Costs] = field(default_factory=dict)
    decision: str = ""
    vintage: str = ""
    explained_rows: int = 2000
    seed: int = 0
    bounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.alert_budget
        for budget in asked.values() if isinstance(asked, Mapping) else [asked]:
            if not isinstance(budget, int | float) or not 0 < budget < 1:
                raise ValueError(f"alert_budget must lie between 0 and 1, got {budget!r}")
        if self.min_events < 2 or self.explained_rows < 2:
            raise ValueError("min_events and explained_rows must be at least 2")

    def budget(self, task: str) -> float:
        """Share of rows that a head may flag."""
        asked = self.alert_budget
        return asked.get(task, _USUAL_BUDGET) if isinstance(asked, Mapping) else asked

    @property
    def criteria(self) -> dict[str, Criterion]:
        """The bounds of all figures."""
        return criteria(self.bounds)


def load_settings(path: str | Path) -> Settings:
    """
    Read the settings of a validation from a YAML file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        If the file is absent, or holds a mistake; the message names the file and the place.
    """
    node = Node(read_yaml(path, ValueError) or {}, str(path), list(Settings.__dataclass_fields__))
    values: dict[str, Any] = {}
    for name, kinds, what in (
        ("min_events", (int,), "a whole number"),
        ("explained_rows", (int,), "a whole number"),
        ("seed", (int,), "a whole number"),
    ):
        if name in node.values:
            values[name] = node.scalar(name, kinds, what)
    for name in ("graded", "grades", "protected"):
        if name in node.values:
            values[name] = node.codes(name)
    for name in ("decision", "vintage"):
        if name in node.values:
            values[name] = node.text(name)
    if "costs" in node.values:
        values["costs"] = _costs(node)
    for name in ("alert_budget", "bounds"):
        if name in node.values:
            values[name] = node.values[name]
    try:
        settings = Settings(**values)
        _ = settings.criteria
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return settings


def _costs(node: Node) -> dict[str, Costs]:
    found = {}
    for head, values in Node(
        node.values["costs"], f"{node.place}: costs", list(node.values["costs"] or {})
    ).values.items():
        entry = Node(values, f"{node.place}: costs: {head}", ("missed", "false_alarm"))
        missed, alarm = (
            entry.scalar(key, (int, float), "a number") for key in ("missed", "false_alarm")
        )
        if missed is None or alarm is None or missed <= 0 or alarm <= 0:
            entry.fail("give missed and false_alarm, both above 0")
        found[head] = Costs(float(missed), float(alarm))
    return found
