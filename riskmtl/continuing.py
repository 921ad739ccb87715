"""Training that goes on from a trained network: for one task more, or on other rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from riskmtl.model import Head, sigmoid
from riskmtl.networks import IndependentNetworks, Network
from riskmtl.networks.resizing import grown
from riskmtl.prepared import Prepared
from riskmtl.scorers import NetworkScorer
from riskmtl.training.rows import TaskPlan, TrainingRows

if TYPE_CHECKING:
    from riskmtl.training.config import TrainingConfig
    from riskmtl.training.fit import Trained

# One task learns, or is held: what a fit does to many tasks at once has no place.
_PLAIN: Mapping[str, Any] = {
    "balancing": "sum",
    "balancing_options": {},
    "schedule": "joint",
    "freeze_shared_after": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
}


def with_task(
    scorer: NetworkScorer,
    heads: Sequence[Head],
    config: TrainingConfig,
    data: Prepared,
    factor: float,
    shared: str,
) -> tuple[NetworkScorer, Trained]:
    """
    Train a network with one task more.

    Parameters
    ----------
    scorer : NetworkScorer
        Of the trained network.
    heads : sequence of Head
        Those of its outputs.
    config : TrainingConfig
        What it says of many tasks at once is left out.
    data : Prepared
        Rows with the label of the new task alone.
    factor : float
        On the events of the new task.
    shared : {"frozen", "distilled"}
        See :meth:`riskmtl.MultiTaskClassifier.add_task`.

    Returns
    -------
    scorer : NetworkScorer
        The new task comes last.
    trained : Trained
    """
    from riskmtl.training.fit import base_outputs, train

    regression = data.tasks[0].kind == "regression"
    alone = TaskPlan((data.tasks[0].name,), (regression,), (1.0,), (factor,))
    config = replace(config, **_PLAIN)
    if isinstance(scorer.network, IndependentNetworks):
        shape = replace(scorer.shape, groups=(), cut_trunks=())
        trained = train(shape, scorer.cardinalities, alone, config, data.rows, data.validation)
        return scorer.beside(trained.network, regression=regression), trained
    before = copy.deepcopy(scorer.network).cpu()
    with torch.random.fork_rng():
        torch.manual_seed(data.seed)
        network, old = grown(before, scorer.shape, scorer.cardinalities, regression=regression)
    bias = network.towers.out.bias
    assert bias is not None
    with torch.no_grad():
        bias[network.towers.owners() == len(heads)] = base_outputs(data.rows, alone)
    if shared == "distilled":
        rows = _labelled_by(scorer, heads, data.rows)
        validation = _drawn(_labelled_by(scorer, heads, data.validation), scorer, data.seed)
    else:
        rows, validation = (_beside_nothing(heads, part) for part in (data.rows, data.validation))
    observed = float((~np.isnan(data.rows.y)).mean())
    plan = TaskPlan(
        names=(*(head.task for head in heads), data.tasks[0].name),
        regression=(*scorer.regression, regression),
        weights=(*(1.0 for _ in heads), observed),
        positive_weights=(*(1.0 for _ in heads), factor),
    )
    frozen = old if shared == "frozen" else None
    shape, cardinalities = scorer.shape, scorer.cardinalities
    trained = train(
        shape, cardinalities, plan, config, rows, validation, start=network, frozen=frozen
    )
    assert isinstance(trained.network, Network)
    larger = NetworkScorer(
        trained.network, shape, cardinalities, plan.regression, device=str(scorer.device)
    )
    return larger, trained


def _labelled_by(scorer: NetworkScorer, heads: Sequence[Head], rows: TrainingRows) -> TrainingRows:
    """Rows whose labels of the old tasks are what the network says of them."""
    raw = scorer.raw(rows.x)
    is_binary = [head.kind == "binary" for head in heads]
    said = np.where(is_binary, sigmoid(raw), raw).astype(np.float32)
    return TrainingRows(rows.x, np.column_stack([said, rows.y]), rows.weights)


def _drawn(rows: TrainingRows, scorer: NetworkScorer, seed: int) -> TrainingRows:
    """Rows with events drawn by their probabilities, which the metrics of an epoch can count."""
    y = rows.y.copy()
    old = np.flatnonzero(~np.array(scorer.regression))
    y[:, old] = np.random.default_rng(seed).random((len(y), len(old))) < y[:, old]
    return TrainingRows(rows.x, y, rows.weights)


def _beside_nothing(heads: Sequence[Head], rows: TrainingRows) -> TrainingRows:
    """Rows that observe none of the old tasks."""
    nothing = np.full((len(rows.y), len(heads)), np.nan, dtype=np.float32)
    return TrainingRows(rows.x, np.column_stack([nothing, rows.y]), rows.weights)


def tuned(
    scorer: NetworkScorer, plan: TaskPlan, config: TrainingConfig, data: Prepared, shared: str
) -> Trained:
    """
    Train a network on, on other rows.

    Parameters
    ----------
    scorer : NetworkScorer
        Of the trained network.
    plan : TaskPlan
    config : TrainingConfig
    data : Prepared
        A network all of whose heads only lend has no labels, and stays as it is.
    shared : {"learned", "frozen"}
        See :meth:`riskmtl.MultiTaskClassifier.fine_tune`.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If a network of its own has no label to learn from.
    """
    from riskmtl.training.fit import train
    from riskmtl.training.freezing import not_of

    start, frozen = copy.deepcopy(scorer.network).cpu(), None
    if isinstance(start, IndependentNetworks):
        for group in start.groups:
            answers = any(data.heads[task].answers for task in group)
            if answers and np.isnan(data.rows.y[:, group]).all():
                names = ", ".join(repr(plan.names[task]) for task in group)
                raise ValueError(f"no label of {names} is observed, whose network is its own")
    elif shared == "frozen":
        frozen = not_of(start, range(len(plan.names)))
        # From the first step on, whatever the fit had.
        config = replace(config, freeze_shared_after=None)
    return train(
        scorer.shape,
        scorer.cardinalities,
        plan,
        config,
        data.rows,
        data.validation,
        start=start,
        frozen=frozen,
    )
