"""Gradients task by task and slice by slice, as slow as they are plain."""

from __future__ import annotations

import torch
from torch import Tensor

from reference import networks as loops
from riskmtl.networks import Network


def shared_gradients(
    network: Network,
    x: Tensor,
    y: Tensor,
    weights: list[float],
    positive: tuple[float, ...],
    regression: tuple[bool, ...],
) -> list[Tensor]:
    """
    The gradient of each task's loss over what more than one task uses.

    Shared is a slice of a parameter that the outputs of at least two tasks depend on.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    answers = network(x, pooled=False)  # (members, batch, tasks)
    tasks = answers.shape[-1]
    reached = []
    for task in range(tasks):
        slopes = gradients(answers[..., task].sum(), parameters)
        reached.append([[bool(part.abs().sum() > 0) for part in slope] for slope in slopes])
    each = [loops.task_losses(said, y, weights, positive, regression) for said in answers]
    losses = sum(each) / len(answers)
    found = []
    for task in range(tasks):
        parts = []
        for place, slope in enumerate(gradients(losses[task], parameters)):
            for number, part in enumerate(slope):
                users = sum(reached[other][place][number] for other in range(tasks))
                if users > 1:
                    parts.append(part.flatten())
        found.append(torch.cat(parts))
    return found


def gradients(value: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
