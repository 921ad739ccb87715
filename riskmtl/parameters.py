"""What a user may ask of :class:`riskmtl.MultiTaskClassifier`, checked when it is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np

from riskmtl.errors import unknown_name
from riskmtl.given import (
    is_number,
    is_sequence,
    mapping_of,
    require_choice,
    require_count,
    require_positive,
)
from riskmtl.networks import NUMERIC_EMBEDDINGS, TRUNKS
from riskmtl.networks.gating import GATINGS

if TYPE_CHECKING:
    from riskmtl.estimator import MultiTaskClassifier

_CHOICES: Mapping[str, Sequence[str]] = {
    "network": list(TRUNKS),
    "numeric_embedding": NUMERIC_EMBEDDINGS,
    "gating": list(GATINGS),
    "tie": ("l2", "trace_norm", "cross_stitch"),
    "schedule": ("joint", "round_robin", "by_size", "by_uncertainty"),
    "selection": ("entire_space", "inverse_propensity"),
    "monitor": ("log_loss_skill", "average_precision", "roc_auc"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "32", "bf16"),
}
_CHALLENGERS = ("lightgbm", "blend")
_COUNTS = (
    "active_experts",
    "code_width",
    "embedding_dim",
    "bins",
    "levels",
    "epochs",
    "patience",
)
# Counts that follow from the number of rows where they are "auto".
_AUTOMATIC = (
    "members",
    "steps",
    "experts",
    "task_experts",
    "shared_experts",
    "batch_size",
)
_SHARES = ("dropout", "feature_dropout", "expert_dropout", "label_smoothing")
_UNITS = ("expert_units", "shared_units", "decoder_units", "tower_units")


def check_parameters(model: MultiTaskClassifier) -> None:
    """
    Refuse parameters that no fit could be made with.

    Parameters
    ----------
    model : MultiTaskClassifier
        Untouched, as scikit-learn wants parameters to be until `fit`.

    Raises
    ------
    ValueError
        With the parameter's name and what it may be.
    """
    for name, valid in _CHOICES.items():
        require_choice(name, getattr(model, name), valid)
    if model.challenger not in (None, *_CHALLENGERS):
        raise ValueError(unknown_name("challenger", model.challenger, _CHALLENGERS))
    if model.challenger is not None:
        model._beside()._check_parameters()
    for name in ("linear_path", "compile"):
        if not isinstance(getattr(model, name), (bool, np.bool_)):
            raise ValueError(f"{name} must be true or false, got {getattr(model, name)!r}")
    if not isinstance(model.checkpoint_dir, (str, PathLike, NoneType)):
        raise ValueError(f"checkpoint_dir must be a folder's path, got {model.checkpoint_dir!r}")
    for name in _COUNTS:
        require_count(name, getattr(model, name))
    for name in _AUTOMATIC:
        if getattr(model, name) != "auto":
            require_count(name, getattr(model, name))
    for name in _UNITS:
        units = getattr(model, name)
        # A body has at least one layer; a tower may have none but its last.
        if not is_sequence(units) or (name != "tower_units" and not units):
            raise ValueError(f"{name} must be a sequence such as (128, 64), got {units!r}")
        for unit in units:
            require_count(name, unit)
    for name in _SHARES:
        value = getattr(model, name)
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    if model.learning_rate != "auto":
        require_positive("learning_rate", model.learning_rate)
    require_positive("clip", model.clip)
    for name in ("weight_decay", "embedding_decay", "credible_rows", "few_events"):
        value = getattr(model, name)
        is_automatic = name == "embedding_decay" and value == "auto"
        # Nothing compares with NaN, which so would be let through.
        if not is_automatic and not (is_number(value) and value >= 0):
            raise ValueError(f"{name} must be a number from 0 up, got {value!r}")
    if isinstance(model.event_weight, str) and model.event_weight != "balanced":
        raise ValueError(unknown_name("event_weight", model.event_weight, ["balanced"]))
    if not isinstance(model.event_weight, str):
        mapping_of("event_weight", model.event_weight)
    for name in ("task_weights", "warm_up", "balanced_events", "selected_by", "penalties"):
        mapping_of(name, getattr(model, name))
    _check_balancing(model)
    _check_schedule(model)
    _check_regularisation(model)
    _check_groups(model)
    _check_trainer_options(model)


def _check_schedule(model: MultiTaskClassifier) -> None:
    if model.freeze_shared_after is not None:
        require_count("freeze_shared_after", model.freeze_shared_after)
    if model.balanced_events and model.schedule != "joint":
        raise ValueError(
            f"balanced_events needs schedule='joint', got {model.schedule!r}: where a step "
            "trains one task, use event_weight"
        )
    floor = model.propensity_floor
    if not is_number(floor) or not 0 < floor <= 1:
        raise ValueError(f"propensity_floor must lie in (0, 1], got {floor!r}")


def _check_regularisation(model: MultiTaskClassifier) -> None:
    if not is_number(model.mixup) or not 0 <= model.mixup < math.inf:
        raise ValueError(f"mixup must be a finite number of at least 0, got {model.mixup!r}")
    if model.mixup and model.compile:
        raise ValueError("mixup does not go with compile: rows are mixed within the network")
    for name, factor in mapping_of("penalties", model.penalties).items():
        from riskmtl.training.penalties import PENALTIES

        if name not in PENALTIES:
            raise ValueError(f"penalties: {unknown_name('penalty', name, PENALTIES)}")
        if not is_number(factor) or not 0 <= factor < math.inf:
            raise ValueError(
                f"penalties: {name!r} must be a finite number of at least 0, got {factor!r}"
            )


def _check_groups(model: MultiTaskClassifier) -> None:
    if model.groups is None:
        return
    if model.network == "single_task":
        raise ValueError(
            "groups: network='single_task' has a network per task already; choose another "
            "network, or leave groups out"
        )
    is_lists = is_sequence(model.groups) and all(is_sequence(group) for group in model.groups)
    if not is_lists or not all(isinstance(t, str) for group in model.groups for t in group):
        raise ValueError(
            "groups must be lists of task names such as [['default'], ['fraud', 'takeover']], "
            f"got {model.groups!r}"
        )
    if not model.groups or not all(model.groups):
        raise ValueError(f"groups: each must hold a task, got {model.groups!r}")
    seen: set[str] = set()
    for task in (task for group in model.groups for task in group):
        if task in seen:
            raise ValueError(f"groups: task {task!r} comes up twice; keep it in one group")
        seen.add(task)


def _check_balancing(model: MultiTaskClassifier) -> None:
    from riskmtl.training.balancing import check_balancing

    options = mapping_of("balancing_options", model.balancing_options)
    compiled = model.compile and model.network != "single_task"
    multiplied = bool(model.selected_by) and model.selection == "entire_space"
    check_balancing(
        model.balancing,
        options,
        compiled=compiled,
        multiplied=multiplied,
        # Networks of one task sum whatever is asked for: the control of any strategy.
        alone=model.schedule != "joint" and model.network != "single_task",
    )
    if model.balancing == "static" and not model.task_weights:
        raise ValueError(
            "balancing='static' takes the weights from task_weights: give one task or more, "
            "such as task_weights={'fraud': 2.0}"
        )


def _check_trainer_options(model: MultiTaskClassifier) -> None:
    options = mapping_of("trainer_options", model.trainer_options)
    if options:
        from pytorch_lightning import Trainer

        valid = list(signature(Trainer.__init__).parameters)[1:]
        for name in options:
            if name not in valid:
                raise ValueError(f"trainer_options: {unknown_name('option', name, valid)}")
        # Of Lightning's values those that mean it; 1 would be every batch, and 1.0 every epoch.
        for name, usual in (("val_check_interval", "1.0"), ("num_sanity_val_steps", "0")):
            if repr(options.get(name)) not in ("None", usual):
                raise ValueError(
                    "trainer_options: an epoch is validated once, at its end, and none before: "
                    f"leave out {name}"
                )


def per_task(
    name: str,
    given: Mapping[str, float] | None,
    tasks: Sequence[str],
    automatic: Sequence[float],
) -> list[float]:
    """
    A number for each task.

    Parameters
    ----------
    name : str
        Of the parameter.
    given : mapping of str to float, optional
        What the user says of some tasks: positive numbers.
    tasks : sequence of str
    automatic : sequence of float, of length tasks
        What holds for the others.

    Returns
    -------
    list of float, of length tasks

    Examples
    --------
    >>> per_task("task_weights", {"fraud": 2.0}, ["default", "fraud"], [1.0, 0.5])
    [1.0, 2.0]
    """
    values = mapping_of(name, given)
    for task, value in values.items():
        if task not in tasks:
            raise ValueError(f"{name}: {unknown_name('task', task, tasks)}")
        require_positive(f"{name} of {task!r}", value)
        if math.isinf(value):
            raise ValueError(f"{name} of {task!r} must be finite, got {value!r}")
    return [float(values.get(t, value)) for t, value in zip(tasks, automatic, strict=True)]
