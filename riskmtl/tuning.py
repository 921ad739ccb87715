"""
Tuning: a seeded search for the parameters that score best on the validation rows.

The first trial is the defaults, so that a search never ends with less than them. Each trial is
drawn from a sampler of its own, seeded by the number of trials before it: a search that was killed
and begun again from its journal makes the very trials of one that was not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from riskmtl import __version__
from riskmtl.errors import unknown_name
from riskmtl.estimator import MultiTaskClassifier
from riskmtl.frames import as_frame
from riskmtl.given import is_number, require_count
from riskmtl.networks import TRUNKS
from riskmtl.schema import DataSchema
from riskmtl.training.callbacks import EpochReport

try:
    import optuna
except ImportError as error:
    raise ImportError("tuning needs Optuna, an optional extra: install riskmtl[tune]") from error

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

_NAME = "riskmtl"  # of the study in its journal
_UNITS = ("expert_units", "shared_units")
# Some that need no other package, add little to a step, and weigh losses in unlike ways.
_BALANCINGS = ("sum", "uncertainty", "dwa", "famo", "geometric_mean")
_ALL_PARTITIONS = 4  # tasks of which all partitions are searched
_SPACE = "search space"  # in the fingerprint
# Parameters that belong to one training, not to all trials of a search.
_OF_ONE_TRAINING = ("schema", "callbacks", "logger", "checkpoint_dir")
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """
    What a search found.

    Parameters
    ----------
    parameters : dict
        Plain values for ``MultiTaskClassifier(**parameters)``: the best ones, the fixed ones, and
        the ``random_state`` of all trials. Fitted to the same rows they give `score` again.
    score : float
        Best validation score: the mean over the heads of the ``monitor``, in its best epoch.
    default_score : float
        That of the defaults, with the fixed parameters.
    trials : polars.DataFrame
        One row per trial: ``number``, ``state`` (complete, pruned or failed), ``score`` (null if
        it failed), ``epochs`` (null where a network per task was trained), ``seconds``, ``error``,
        and what was drawn. ``width`` is a factor on the default units of experts and bottom;
        ``groups`` such as ``"default | fraud+takeover"`` counts for nothing where the network is
        ``single_task``, and neither does ``balancing``.
    """

    parameters: dict[str, Any]
    score: float
    default_score: float
    trials: pl.DataFrame


def tune(
    train: Any,
    validation: Any = None,
    *,
    schema: DataSchema,
    trials: int = 30,
    fixed: Mapping[str, Any] | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    timeout: float | None = None,
    progress: bool = False,
) -> Tuned:
    """
    Search parameters of :class:`riskmtl.MultiTaskClassifier` for the best validation score.

    Searched are the network, its width, its members, the linear path, the learning rate, dropout,
    dropout on the embedded features, and where there are several tasks the balancing of their
    losses and a factor on the automatic weight of each. Where there are three or more, it is
    searched too which of them have a network together: all partitions of up to four tasks; of more,
    all together, each one apart, and each pair apart. Trials that fall behind the median of the
    earlier ones are cut short, but for those of independent networks.

    Parameters
    ----------
    train : table of shape (rows, columns)
        Raw rows, as the schema describes them.
    validation : table of shape (rows, columns), optional
        Without it each trial validates on the rows that the estimator holds out of `train`.
    schema : DataSchema
    trials : int
        Trials in all, those in the journal among them. A trial that fails, because it diverged or
        memory was short, is one of them; one that was interrupted is not.
    fixed : mapping of str to value, optional
        Parameters of the estimator that are not searched. Fixed ``expert_units`` or
        ``shared_units`` fix the width.
    seed : int
        Of the search, and ``random_state`` of every trial unless that is fixed.
    journal : str or Path, optional
        File that notes every trial; a search that finds its own there goes on from it.
    timeout : float, optional
        Seconds after which no further trial is begun.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Tuned

    Raises
    ------
    ValueError
        If a parameter, a column or a label cannot be, or the journal belongs to another search.

    Examples
    --------
    >>> import polars as pl
    >>> from riskmtl.columns import Column, Task
    >>> table = pl.DataFrame({"amount": [1.0, 9.0, 2.0, 8.0] * 50, "fraud": [0, 1, 0, 0] * 50})
    >>> schema = DataSchema(
    ...     name="cards",
    ...     columns=(Column("amount", "number", "numeric"),),
    ...     tasks=(Task("fraud", label="fraud"),),
    ... )
    >>> fixed = {"network": "shared_bottom", "members": 1, "epochs": 1}
    >>> found = tune(table, schema=schema, trials=2, fixed=fixed)
    >>> found.trials["state"].to_list(), found.score >= found.default_score
    (['complete', 'complete'], True)
    """
    _require_limits(trials, seed, timeout)
    plain = _plain(fixed or {})
    rows = as_frame(train), None if validation is None else as_frame(validation)
    search = _search(*rows, schema, {"random_state": seed, **plain})
    path = None if journal is None else Path(journal)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with _quiet_optuna(), _storage(path) as storage:
        study = _study(storage, search.epochs // 4)
        _require_same_search(study, _fingerprint(search, plain, seed), path)
        try:
            _run(study, search, trials, seed, deadline, progress)
        finally:
            if path is not None and not _ended(study):
                path.unlink()  # Once a mistake is corrected, the journal would be that of another.
        return _result(study, search)


# ---- what is searched ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Search:
    """Rows, settings and space of a search; trains one trial."""

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
        found = {name: _short(value) for name, value in drawn.items()}
        if found.get("learning_rate") == _short(self.rate):
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
                name: _short(factor * self.observed[name]) for name, factor in factors.items()
            }
        return {**self.settings, **found}

    def score(self, drawn: Mapping[str, Any], report: Callable[[int, float], None]) -> float:
        """Train with what was drawn, and return the best validation score."""
        parameters = self.parameters(drawn)
        # The epochs of networks that train one after another are no course of one trial.
        is_alone = parameters.get("network") == "single_task"
        is_apart = is_alone or len(parameters.get("groups") or ()) > 1
        model = MultiTaskClassifier(
            **{**parameters, "challenger": None, "calibrate": False, "verbose": False},
            schema=self.schema,
            callbacks=[] if is_apart else [EpochReport(report)],
        )
        model.fit(self.train, X_val=self.validation)
        return _best_score(model)


def _search(
    train: pl.DataFrame,
    validation: pl.DataFrame | None,
    schema: DataSchema,
    settings: dict[str, Any],
) -> _Search:
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
    space = _space(names, rate, settings)
    if not space:
        raise ValueError("fixed: leaves no parameter to search, fix fewer")
    # The width and the tasks' weights are factors; of 1, the weights stay automatic.
    defaults = {name: getattr(model, name, 1.0) for name in space}
    # What is automatic has a value by now.
    automatic = {
        "learning_rate": rate,
        "members": model._shape(rows).members,
        "embedding_decay": training.embedding_decay,
        "groups": _said([names]),
    }
    defaults |= {name: value for name, value in automatic.items() if name in space}
    units = {name: getattr(model, name) for name in _UNITS}
    labels = schema.labels(train)
    counts = {task.name: labels[task.name].count() for task in schema.tasks}
    observed = {name: count / max(1, *counts.values()) for name, count in counts.items()}
    return _Search(
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
        {_said(groups): groups for groups in _partitions(names)},
    )


def _space(
    tasks: Sequence[str], rate: float, settings: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    # With one task, a network per task is the shared bottom; with given groups, it has none.
    may_be_alone = len(tasks) > 1 and settings.get("groups") is None
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
        if len(tasks) > 2:
            space["groups"] = CategoricalDistribution([_said(g) for g in _partitions(tasks)])
    space = {name: values for name, values in space.items() if name not in settings}
    if not any(name in settings for name in _UNITS):
        space["width"] = FloatDistribution(0.5, 2.0, log=True)
    if len(tasks) > 1 and "task_weights" not in settings:
        space |= {_weight_of(task): FloatDistribution(0.3, 3.0, log=True) for task in tasks}
    return space


def _partitions(tasks: Sequence[str]) -> list[list[list[str]]]:
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


def _said(groups: Sequence[Sequence[str]]) -> str:
    """Such as "default | fraud+takeover"."""
    return " | ".join("+".join(group) for group in groups)


def _weight_of(task: str) -> str:
    return f"task_weight_{task}"


def _short(value: Any) -> Any:
    """Give numbers three digits, which is more than a search can tell apart."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _best_score(model: MultiTaskClassifier) -> float:
    """
    Score of the kept epochs, as the module computes it.

    Independent networks have a best epoch each.
    """
    monitor = pl.col(f"val_{model.monitor}")
    seen = model.history_.with_columns(monitor.fill_nan(None)).filter(monitor.is_not_null())
    if seen.is_empty():
        raise ValueError(
            "no task has both classes among the validation rows: tuning has nothing to go by"
        )
    tasks = seen["task"].unique(maintain_order=True).to_list()
    groups = [[t] for t in tasks] if model.network == "single_task" else model.groups or [tasks]
    kept = []
    for group in groups:
        epochs = (
            seen.filter(pl.col("task").is_in(list(group)))
            .group_by("epoch", maintain_order=True)
            .agg(monitor)
        )
        best: list[float] = max(epochs[monitor.meta.output_name()].to_list(), key=_mean, default=[])
        kept += best
    return _mean(kept)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


# ---- the trials ----------------------------------------------------------------------------------


def _run(
    study: optuna.Study,
    search: _Search,
    trials: int,
    seed: int,
    deadline: float,
    progress: bool,
) -> None:
    """Make the trials that are missing, the defaults first."""
    for interrupted in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(interrupted.number, state=TrialState.FAIL)
    ended = _ended(study)
    if not ended and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(search.defaults))
    with tqdm(
        total=trials, initial=len(ended), desc="tuning", unit="trial", disable=not progress
    ) as bar:
        while len(ended) < trials and not (ended and time.monotonic() > deadline):
            stream = np.random.SeedSequence([seed, len(ended)])
            study.sampler = optuna.samplers.TPESampler(seed=int(stream.generate_state(1)[0]))
            _try(study, search, is_first=not ended)
            ended = _ended(study)
            bar.update()
            bar.set_postfix(best=f"{study.best_value:.4f}")


def _try(study: optuna.Study, search: _Search, *, is_first: bool) -> None:
    """Make one trial and note what came of it."""
    trial = study.ask(dict(search.space))
    # Once the defaults have trained, data and fixed parameters are sound: what fails then fails by
    # what was drawn. A number out of bounds is a ValueError, too little memory a RuntimeError.
    bearable: tuple[type[Exception], ...] = () if is_first else (ValueError, RuntimeError)
    try:
        score = search.score(trial.params, _reporter(trial, search.epochs))
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except bearable as error:
        trial.set_user_attr("error", " ".join(str(error).split()))
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, score)


def _reporter(trial: Trial, epochs: int) -> Callable[[int, float], None]:
    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        # After the last epoch there is nothing left to save.
        if epoch + 1 < epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end of their own: an interrupted one failed without an error."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "error" in trial.user_attrs
    ]


def _result(study: optuna.Study, search: _Search) -> Tuned:
    ended = _ended(study)
    best = study.best_trial
    assert best.value is not None
    assert ended[0].value is not None
    names = list(search.space)
    rows = [
        {
            "number": number,
            "state": _STATES[trial.state],
            "score": _reached(trial),
            "epochs": len(trial.intermediate_values) or None,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "error": trial.user_attrs.get("error"),
            **{name: _short(trial.params[name]) for name in names},
        }
        for number, trial in enumerate(ended)
    ]
    types = {"score": pl.Float64, "epochs": pl.Int64, "seconds": pl.Float64, "error": pl.String}
    table = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
    return Tuned(search.parameters(best.params), best.value, ended[0].value, table)


def _reached(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.PRUNED:
        return max(trial.intermediate_values.values())
    return trial.value if trial.state == TrialState.COMPLETE else None


# ---- the journal ---------------------------------------------------------------------------------


class _HeldLock(JournalFileOpenLock):
    """
    No lock for single lines: the whole file is held already, by a lock that dies with the process.

    Optuna's own locks are files, which a killed search would leave behind.
    """

    def acquire(self) -> bool:
        """Do nothing."""
        return True

    def release(self) -> None:
        """Do nothing."""


@contextmanager
def _storage(journal: Path | None) -> Iterator[BaseStorage]:
    if journal is None:
        yield InMemoryStorage()
        return
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{journal}: another search is using this journal") from error
        file.seek(0)
        content = file.read()
        if content and not content.startswith(b'{"op_code":'):
            raise ValueError(f"{journal}: is not a journal of a search, choose another file")
        # A line that was being written when the machine stopped.
        file.truncate(content.rfind(b"\n") + 1)
        lock = _HeldLock(str(journal))
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
        except (ValueError, LookupError) as error:
            raise ValueError(f"{journal}: damaged journal ({error}), remove it") from error
        yield storage


def _study(storage: BaseStorage, warmup: int) -> optuna.Study:
    # In the first quarter of the epochs the learning rate still rises: nothing is judged there.
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=warmup)
    if _NAME in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=_NAME, storage=storage, pruner=pruner)
    return optuna.create_study(
        study_name=_NAME, storage=storage, pruner=pruner, direction="maximize"
    )


def _fingerprint(search: _Search, fixed: dict[str, Any], seed: int) -> dict[str, Any]:
    """Say of which rows, schema and settings the scores are, by hashes where they are long."""
    return {
        "data": _digest(search.train),
        "validation data": None if search.validation is None else _digest(search.validation),
        "schema": search.schema.hash,
        "fixed parameters": fixed,
        "seed": seed,
        "version of riskmtl": __version__,
        _SPACE: {name: distribution_to_json(values) for name, values in search.space.items()},
    }


def _require_same_search(
    study: optuna.Study, fingerprint: dict[str, Any], journal: Path | None
) -> None:
    """Refuse a journal whose scores cannot be compared with those of this search."""
    noted = study.user_attrs.get("fingerprint")
    if noted is None:
        study.set_user_attr("fingerprint", fingerprint)
        return
    changed = [name for name in fingerprint if noted.get(name) != fingerprint[name]]
    if len(changed) > 1 and _SPACE in changed:
        changed.remove(_SPACE)  # It follows from the others.
    if changed:
        raise ValueError(
            f"{journal}: belongs to another search (other {', '.join(changed)}); choose another "
            "journal, or remove this one to begin anew"
        )


def _digest(frame: pl.DataFrame) -> str:
    digest = hashlib.sha256(repr(frame.schema).encode())
    digest.update(frame.hash_rows().to_numpy().data)
    return digest.hexdigest()


# ---- small things --------------------------------------------------------------------------------


def _require_limits(trials: Any, seed: Any, timeout: Any) -> None:
    for name, value, least in (("trials", trials, 1), ("seed", seed, 0)):
        require_count(name, value, least=least)
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")


def _plain(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Fixed parameters as a journal and a YAML file can hold them."""
    plain = {}
    for name, value in fixed.items():
        try:
            plain[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"fixed: {name} must be a plain value that a file can hold, got {value!r}"
            ) from error
    return plain


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)
