"""
What an epoch has done to each task: how hard it pulls at what is shared, where to, and its gate.

All of it is found on a probe, some training rows drawn once, in evaluation mode: nothing random is
asked for, so training goes on as if nobody had looked. A look costs a pass over the probe and a way
back for each task: with three tasks 3 to 4 % of an epoch of 100,000 rows, 5 to 6 % of one of 6,000
to 50,000, and 13 % of one of 3,000, a tenth of a second (one thread, the default sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riskmtl.networks import Gated, Network, Trace
from riskmtl.training.batches import Batch
from riskmtl.training.gradients import Owned, task_gradients
from riskmtl.training.loss import observed_labels, per_task
from riskmtl.training.rows import TrainingRows

DEAD = 0.01  # least mean weight, of any gate that may select it, that an expert lives on

_MOST_ROWS = 2048
_FEWEST_ROWS = 128
_ROWS_PER_PROBED = 64


def draw_probe(rows: TrainingRows, regression: Sequence[bool], *, seed: int) -> TrainingRows:
    r"""
    Draw the rows that every epoch is looked at on.

    Parameters
    ----------
    rows : TrainingRows
    regression : sequence of bool, of length tasks
    seed : int

    Returns
    -------
    TrainingRows
        One in 64 of the rows, at least 128 and at most 2,048 where there are so many. The weights
        make means over them estimates of the means over all rows that observe any task.

    Notes
    -----
    A loss of rare events hangs on few rows. So the events, the other rows and the rows of numbers
    of each task are drawn with even shares: row :math:`i` has a chance :math:`\pi_i \propto
    \sum_k 1 / n_k` over its kinds :math:`k`, of which there are :math:`n_k` rows, at most 1, and
    counts :math:`1 / \pi_i` times (Horvitz and Thompson 1952). The draw is systematic along rows
    ordered by what their labels are: each combination of labels has its share to within a row.
    On the simulated portfolio, 15,000 rows with 473 events of three heads, 512 rows drawn so find
    the cosines of gradients to 0.03 to 0.2 (standard deviation); as many drawn evenly, to 0.15 to
    0.3, with norms about twice too long.
    """
    size = min(_MOST_ROWS, max(_FEWEST_ROWS, len(rows.x) // _ROWS_PER_PROBED))
    chances = _chances(rows.y, regression, size)
    generator = np.random.default_rng(seed)
    kinds = np.where(np.isnan(rows.y), -1, rows.y > 0)
    order = np.lexsort((generator.random(len(chances)), *kinds.T))
    # Chances are laid end to end, and every step of 1 meets a row: none twice, a sure one always.
    steps = np.floor(np.cumsum(chances[order]) + generator.random())
    chosen = np.sort(order[np.diff(steps, prepend=0.0) > 0])
    weights = (1 / chances[chosen]).astype(np.float32)
    if rows.weights is not None:
        # Of a row, or of a row for each task.
        weights = (weights * rows.weights[chosen].T).T
    return TrainingRows(rows.x[chosen], rows.y[chosen], weights)


def _chances(
    labels: NDArray[np.float32], regression: Sequence[bool], size: int
) -> NDArray[np.float64]:
    """Chance of each row to be among so many, ``(rows,)``; 0 if it observes nothing."""
    shares = np.zeros(len(labels))
    for task, is_number in enumerate(regression):
        seen = ~np.isnan(labels[:, task])
        is_event = labels[:, task] > 0
        for kind in [seen] if is_number else [seen & is_event, seen & ~is_event]:
            shares[kind] += 1 / max(kind.sum(), 1)
    is_sure = np.zeros(len(labels), dtype=bool)
    if (shares > 0).sum() <= size:
        return (shares > 0).astype(np.float64)
    while True:
        free = (size - is_sure.sum()) / shares[~is_sure].sum()
        chances = np.where(is_sure, 1.0, free * shares)
        # Whoever would have more than a sure chance leaves the rest to the others.
        above = chances > 1
        if not above.any():
            return chances
        is_sure |= above


def look_at(
    network: Network,
    probe: Batch,
    losses: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """
    Say of each task how it pulls at what is shared, and what its gate does.

    Parameters
    ----------
    network : Network
        In evaluation mode.
    probe : tuple of Tensor
        Rows, labels and weights; see :func:`draw_probe`.
    losses : callable
        Maps outputs ``(members, batch, tasks)``, labels and weights to losses ``(tasks,)``.
    names : sequence of str
        Of the tasks.

    Returns
    -------
    list of dict
        Per task, ``None`` where there is nothing to be said:

        - ``gradient_norm`` of its loss, without its weight, over the shared parameters;
        - ``gradient_cosine_<other>``, the cosine of this gradient and another task's;
        - ``gate_weights``, the mean weight that its gate at the last level gives each expert, in
          their order, ``None`` for those that it cannot select;
        - ``gate_entropy``, the mean entropy of its gate's answers, as a share of the entropy of an
          even gate: 1 mixes all alike, 0 follows one expert in each row;
        - ``dead_experts``, how many of the experts that it can select have a mean weight below
          :data:`DEAD` at every gate that can select them.
    """
    dtype = next(network.parameters()).dtype
    trace = Trace()
    # Validation takes place where there are no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        x, y = (part.to(dtype) for part in probe[:2])
        weights = torch.ones_like(x[:, 0]) if probe[2] is None else probe[2].to(dtype)
        # Past `compile`: rows of another number would have to be compiled for.
        outputs = network.forward(x, pooled=False, trace=trace)
        by_task = per_task(weights)
        observed = observed_labels(y, weights).any(0)
        products = gradient_products(network, losses(outputs, y, weights), observed)
    found = _gradients(products, names)
    if not trace.gated or not len(x):
        nothing = dict.fromkeys(("gate_weights", "gate_entropy", "dead_experts"))
        return [{**row, **nothing} for row in found]
    of_rows = by_task.mean(1).repeat(len(outputs))
    gates = _gates(trace.gated[-1], of_rows, len(names))
    return [{**row, **gate} for row, gate in zip(found, gates, strict=True)]


def gradient_products(network: Network, losses: Tensor, observed: Tensor) -> Tensor:
    """
    Products of the tasks' gradients over the shared parameters.

    Parameters
    ----------
    network : Network
    losses : Tensor of shape (tasks,)
    observed : Tensor of bool, shape (tasks,)

    Returns
    -------
    Tensor of float64, shape (tasks, tasks)
        NaN in the lines of tasks that nothing is observed of.
    """
    owned = Owned.of(network)
    tasks = len(losses)
    products = losses.new_full((tasks, tasks), math.nan, dtype=torch.float64)
    seen = observed.nonzero().flatten().tolist()
    if not seen or not owned.is_shared:
        return products
    gradients = task_gradients(losses, seen, owned.parameters, torch.ones_like(losses[0]))
    places = torch.tensor(seen, device=losses.device)
    products[places.unsqueeze(1), places] = owned.gramian(gradients).double()
    return products


def _gradients(products: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    norms = products.diagonal().sqrt()
    # NaN where there is no direction.
    cosines = (products / norms.outer(norms)).clamp(-1, 1).tolist()
    return [
        {
            "gradient_norm": known(norm),
            **{
                f"gradient_cosine_{name}": known(cosines[i][j])
                for j, name in enumerate(names)
                if j != i
            },
        }
        for i, norm in enumerate(norms.tolist())
    ]


def _gates(level: Gated, of_rows: Tensor, tasks: int) -> list[dict[str, Any]]:
    """How the tasks' gates use the experts of a level; `of_rows`: ``(members * batch,)``."""
    weights = level.weights[:tasks].detach().double()  # (tasks, members * batch, experts)
    of_rows = of_rows.double() / of_rows.double().sum()
    stream = level.stream.to(weights.device)
    gate = torch.arange(tasks, device=weights.device).unsqueeze(1)
    selects = (stream == gate) | (stream == tasks)  # (tasks, experts)
    mean = torch.einsum("tbe,b->te", weights, of_rows)
    entropy = torch.special.entr(weights).sum(-1) @ of_rows / selects.sum(1).log()
    is_dead = selects & ~((mean >= DEAD) & selects).any(0)
    return [
        {
            "gate_weights": [known(w) if can else None for w, can in zip(line, may, strict=True)],
            "gate_entropy": known(evenness) if sum(may) > 1 else None,
            "dead_experts": dead,
        }
        for line, may, evenness, dead in zip(
            mean.tolist(),
            selects.tolist(),
            entropy.tolist(),
            is_dead.sum(1).tolist(),
            strict=True,
        )
    ]


def known(value: float) -> float | None:
    """A number, or ``None`` for one that is not finite."""
    return value if math.isfinite(value) else None
