"""The trials of a search: trained, cut short, scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import polars as pl
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm.auto import tqdm

from riskmtl.estimator import MultiTaskClassifier
from riskmtl.training.callbacks import EpochReport
from riskmtl.tuning.space import Search


def make_trials(
    study: optuna.Study,
    search: Search,
    trials: int,
    seed: int,
    deadline: float,
    progress: bool,
) -> None:
    """Make the trials that are missing, the defaults first."""
    for interrupted in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(interrupted.number, state=TrialState.FAIL)
    ended = ended_trials(study)
    if not ended and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(search.defaults))
    with tqdm(
        total=trials, initial=len(ended), desc="tuning", unit="trial", disable=not progress
    ) as bar:
        while len(ended) < trials and not (ended and time.monotonic() > deadline):
            stream = np.random.SeedSequence([seed, len(ended)])
            study.sampler = optuna.samplers.TPESampler(seed=int(stream.generate_state(1)[0]))
            _try(study, search, is_first=not ended)
            ended = ended_trials(study)
            bar.update()
            bar.set_postfix(best=f"{study.best_value:.4f}")


def _try(study: optuna.Study, search: Search, *, is_first: bool) -> None:
    """Make one trial and note what came of it."""
    trial = study.ask(dict(search.space))
    # Once the defaults have trained, data and fixed parameters are sound: what fails then fails by
    # what was drawn. A number out of bounds is a ValueError, too little memory a RuntimeError.
    bearable: tuple[type[Exception], ...] = () if is_first else (ValueError, RuntimeError)
    try:
        score = _score(search, trial.params, _reporter(trial, search.epochs))
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


def _score(search: Search, drawn: Mapping[str, Any], report: Callable[[int, float], None]) -> float:
    """Train with what was drawn, and return the best validation score."""
    parameters = search.parameters(drawn)
    # The epochs of networks that train one after another are no course of one trial.
    is_alone = parameters.get("network") == "single_task"
    is_apart = is_alone or len(parameters.get("groups") or ()) > 1
    model = MultiTaskClassifier(
        **{**parameters, "challenger": None, "calibrate": False, "verbose": False},
        schema=search.schema,
        callbacks=[] if is_apart else [EpochReport(report)],
    )
    model.fit(search.train, X_val=search.validation)
    return best_score(model)


def best_score(model: MultiTaskClassifier) -> float:
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


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end of their own: an interrupted one failed without an error."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "error" in trial.user_attrs
    ]
