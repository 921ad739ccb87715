"""What a search draws from, and what a drawing means for the estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import polars as pl
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from riskmtl.errors import unknown_name
from riskmtl.estimator import MultiTaskClassifier
from riskmtl.networks import TRUNKS
from riskmtl.schema import DataSchema

_UNITS = ("expert_units", "shared_units")
# Some that need no other package, add little to a step, and weigh losses in unlike ways.
_BALANCINGS = ("sum", "uncertainty", "dwa", "famo", "geometric_mean")
_ALL_PARTITIONS = 4  # tasks of which all partitions are searched
# Parameters that belong to one training, not to all trials of a search.
_OF_ONE_TRAINING = ("schema", "callbacks", "logger", "checkpoint_dir")


@dataclass(frozen=True, slots=True)
class Search:
    """Rows, settings and space of a search."""

    train: pl.DataFrame
    validation: pl.DataFrame | None
    schema: DataSchema
    settings: Mapping[str, Any]
    rate: float
    epochs: int
    units: Mapping[str, Sequence[int]]
    space: Mapping[str, BaseDistribution]
    defaults: Mapping[str, Any]
    observed: Mapping[str, float]
    partitions: Mapping[str, list[list[str]]]

    def parameters(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the estimator for what a trial drew."""
        found = {name: three_digits(value) for name, value in drawn.items()}
        if found.get("learning_rate") == three_digits(self.rate):
            found["learning_rate"] = "auto"
        if found.get("network") == "single_task":
            found.pop("groups", None)
            found.pop("balancing", None)
        if (name := found.pop("groups", None)) is not None and len(self.partitions[name]) > 1:
            found["groups"] = self.partitions[name]
        if (width := found.pop("width", None)) is not None:
            for name, units in self.units.items():
                found[name] = [max(1, round(unit * width)) for unit in units]
        names = [task.name for task in self.schema.tasks if _weight_of(task.name) in found]
        factors = {name: found.pop(_weight_of(name)) for name in names}
        if any(factor != 1 for factor in factors.values()):
            found["task_weights"] = {
                name: three_digits(factor * self.observed[name]) for name, factor in factors.items()
            }
        return {**self.settings, **found}


def lay_out(
    train: pl.DataFrame,
    validation: pl.DataFrame | None,
    schema: DataSchema,
    settings: dict[str, Any],
) -> Search:
    """Lay out the search, once the fixed parameters are known to be good."""
    if not isinstance(schema, DataSchema):
        raise TypeError("schema must be a DataSchema: read one with riskmtl.load_schema")
    valid = [
        name for name in MultiTaskClassifier._get_param_names() if name not in _OF_ONE_TRAINING
    ]
    for name in settings:
        if name not in valid:
            raise ValueError(f"fixed: {unknown_name('parameter', name, valid)}")
    model = MultiTaskClassifier(schema=schema, **settings)
    model._check_shared_parameters()
    model._check_parameters()
    held_out = 0 if validation is not None else round(train.height * model.validation_share)
    rows = train.height - held_out
    training = model._training(rows, seed=0)
    rate = training.learning_rate
    names = [task.name for task in schema.tasks]
    space = space_of(names, rate, settings)
    if not space:
        raise ValueError("fixed: leaves no parameter to search, fix fewer")
    # The width and the tasks' weights are factors; of 1, the weights stay automatic.
    defaults = {name: getattr(model, name, 1.0) for name in space}
    # What is automatic has a value by now.
    automatic = {
        "learning_rate": rate,
        "members": model._shape(rows).members,
        "embedding_decay": training.embedding_decay,
        "groups": said([names]),
    }
    defaults |= {name: value for name, value in automatic.items() if name in space}
    units = {name: getattr(model, name) for name in _UNITS}
    labels = schema.labels(train)
    counts = {task.name: labels[task.name].count() for task in schema.tasks}
    observed = {name: count / max(1, *counts.values()) for name, count in counts.items()}
    return Search(
        train,
        validation,
        schema,
        settings,
        rate,
        model.epochs,
        units,
        space,
        defaults,
        observed,
        {said(groups): groups for groups in partitions(names)},
    )


def space_of(
    tasks: Sequence[str], rate: float, settings: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """Say what each parameter is drawn from that is not given."""
    selected_by = settings.get("selected_by") or {}
    # With one task, a network per task is the shared bottom; with given groups, it has none. And a
    # task shares a network with the one that selects its rows.
    may_be_alone = len(tasks) > 1 and settings.get("groups") is None and not selected_by
    space: dict[str, BaseDistribution] = {
        "network": CategoricalDistribution(
            [name for name in TRUNKS if may_be_alone or name != "single_task"]
        ),
        "members": CategoricalDistribution([1, 2, 4, 8]),
        "linear_path": CategoricalDistribution([False, True]),
        "learning_rate": FloatDistribution(0.3 * rate, 3 * rate, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "feature_dropout": FloatDistribution(0.0, 0.3),
        "embedding_decay": FloatDistribution(0.0, 10.0),
    }
    if settings.get("network") != "single_task":
        # With steps for one task at a time there is nothing to balance within one.
        is_joint = settings.get("schedule", "joint") == "joint"
        if len(tasks) > 1 and is_joint and "balancing_options" not in settings:
            space["balancing"] = CategoricalDistribution(_BALANCINGS)
        found = [said(g) for g in partitions(tasks) if _holds_together(g, selected_by)]
        if len(found) > 1:
            space["groups"] = CategoricalDistribution(found)
    space = {name: values for name, values in space.items() if name not in settings}
    if not any(name in settings for name in _UNITS):
        space["width"] = FloatDistribution(0.5, 2.0, log=True)
    if len(tasks) > 1 and "task_weights" not in settings:
        space |= {_weight_of(task): FloatDistribution(0.3, 3.0, log=True) for task in tasks}
    return space


def partitions(tasks: Sequence[str]) -> list[list[list[str]]]:
    """
    Groups to choose from, all tasks together first.

    Each by itself is not among them: that is what ``single_task`` is for.
    """
    if len(tasks) <= _ALL_PARTITIONS:
        found = [groups for groups in _all_partitions(tasks) if len(groups) < max(2, len(tasks))]
        return sorted(found, key=len)
    apart = [{task} for task in tasks] + [set(pair) for pair in combinations(tasks, 2)]
    return [
        [list(tasks)],
        *(
            # The group of the first task comes first.
            sorted(
                ([t for t in tasks if t in own], [t for t in tasks if t not in own]),
                key=lambda group: tasks.index(group[0]),
            )
            for own in apart
        ),
    ]


def _all_partitions(tasks: Sequence[str]) -> list[list[list[str]]]:
    if not tasks:
        return [[]]
    first, *rest = tasks
    found = []
    for groups in _all_partitions(rest):
        found.append([[first], *groups])
        found += [
            [[first, *group], *groups[:i], *groups[i + 1 :]] for i, group in enumerate(groups)
        ]
    return found


def _holds_together(groups: Sequence[Sequence[str]], selected_by: Mapping[str, str]) -> bool:
    """Whether each selected task is in the group of the task that selects its rows."""
    return all(any({*pair} <= {*group} for group in groups) for pair in selected_by.items())


def said(groups: Sequence[Sequence[str]]) -> str:
    """Such as "default | fraud+takeover"."""
    return " | ".join("+".join(group) for group in groups)


def _weight_of(task: str) -> str:
    return f"task_weight_{task}"


def three_digits(value: Any) -> Any:
    """Give numbers three digits, which is more than a search can tell apart."""
    return float(f"{value:.3g}") if isinstance(value, float) else value
