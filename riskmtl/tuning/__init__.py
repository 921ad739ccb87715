"""
Tuning: a seeded search for the parameters that score best on the validation rows.

The first trial is the defaults, so that a search never ends with less than them. Each trial is
drawn from a sampler of its own, seeded by the number of trials before it: a search that was killed
and begun again from its journal makes the very trials of one that was not.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from riskmtl.frames import as_frame
from riskmtl.given import is_number, require_count
from riskmtl.schema import DataSchema

try:
    import optuna
except ImportError as error:
    raise ImportError("tuning needs Optuna, an optional extra: install riskmtl[tune]") from error

from optuna.trial import FrozenTrial, TrialState

from riskmtl.tuning.journal import fingerprint, require_same_search, storage_of, study_in
from riskmtl.tuning.space import Search, lay_out, three_digits
from riskmtl.tuning.trials import ended_trials, make_trials

__all__ = ["Tuned", "tune"]

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
    all together, each one apart, and each pair apart. With ``selected_by`` fixed, only those that
    keep a task with the one that selects its rows. Trials that fall behind the median of the
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
    search = lay_out(*rows, schema, {"random_state": seed, **plain})
    path = None if journal is None else Path(journal)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with _quiet_optuna(), storage_of(path) as storage:
        study = study_in(storage, search.epochs // 4)
        require_same_search(study, fingerprint(search, plain, seed), path)
        try:
            make_trials(study, search, trials, seed, deadline, progress)
        finally:
            if path is not None and not ended_trials(study):
                path.unlink()  # Once a mistake is corrected, the journal would be that of another.
        return _result(study, search)


def _result(study: optuna.Study, search: Search) -> Tuned:
    ended = ended_trials(study)
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
            **{name: three_digits(trial.params[name]) for name in names},
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
