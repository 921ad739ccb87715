"""Balancing once more, task by task with plain numbers and whole gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from riskmtl.networks import SHARED, Network

Numbers = Sequence[float]


# ---- Weights of losses ---------------------------------------------------------------------------


def dwa(epochs: Sequence[Numbers], temperature: float) -> list[float]:
    """Weights of the epoch after the last of these, each given by its mean losses."""
    tasks = len(epochs[0])
    if len(epochs) < 2:
        return [1.0] * tasks
    ratios = [epochs[-1][t] / epochs[-2][t] / temperature for t in range(tasks)]
    return [tasks * share for share in softmax(ratios)]


def geometric_mean(losses: Numbers, task_weights: Numbers) -> float:
    total = sum(task_weights)
    product = 1.0
    for loss, weight in zip(losses, task_weights, strict=True):
        product *= loss ** (weight / total)
    return total * product


def softmax(values: Numbers) -> list[float]:
    scores = [math.exp(value - max(values)) for value in values]
    return [score / sum(scores) for score in scores]


class Adam:
    """One number."""

    def __init__(self, value: float, learning_rate: float, decay: float = 0.0) -> None:
        self.value, self.learning_rate, self.decay = value, learning_rate, decay
        self.first = self.second = 0.0
        self.steps = 0

    def step(self, gradient: float) -> None:
        gradient += self.decay * self.value
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean = self.first / (1 - 0.9**self.steps)
        square = self.second / (1 - 0.999**self.steps)
        self.value -= self.learning_rate * mean / (math.sqrt(square) + 1e-8)


class FAMO:
    """Liu et al. 2023, algorithm 1, on the scale of the sum."""

    def __init__(self, tasks: int, learning_rate: float, gamma: float) -> None:
        self.logits = [Adam(0.0, learning_rate, gamma) for _ in range(tasks)]

    def factors(self, losses: Numbers) -> list[float]:
        shares = softmax([logit.value for logit in self.logits])
        pulls = [share / loss for share, loss in zip(shares, losses, strict=True)]
        return [len(losses) * pull / sum(pulls) for pull in pulls]

    def update(self, before: Numbers, after: Numbers) -> None:
        shares = softmax([logit.value for logit in self.logits])
        fallen = [math.log(b) - math.log(a) for b, a in zip(before, after, strict=True)]
        for i, logit in enumerate(self.logits):
            # Row i of the softmax's Jacobian, times what fell.
            slope = sum(shares[i] * ((i == j) - shares[j]) * fallen[j] for j in range(len(shares)))
            logit.step(slope)


class GradNorm:
    """Chen et al. 2018, algorithm 1, with the slope over the mean length."""

    def __init__(self, first_losses: Numbers, alpha: float, learning_rate: float) -> None:
        self.first_losses, self.alpha = list(first_losses), alpha
        self.weights = [Adam(1.0, learning_rate) for _ in first_losses]

    def update(self, losses: Numbers, lengths: Numbers) -> None:
        tasks = range(len(losses))
        weighted = [self.weights[t].value * lengths[t] for t in tasks]
        mean = sum(weighted) / len(losses)
        left = [losses[t] / self.first_losses[t] for t in tasks]
        for t in tasks:
            wanted = mean * (left[t] / (sum(left) / len(left))) ** self.alpha
            sign = (weighted[t] > wanted) - (weighted[t] < wanted)
            self.weights[t].step(sign * lengths[t] / mean)
        total = sum(weight.value for weight in self.weights)
        for weight in self.weights:
            weight.value *= len(losses) / total


# ---- Weights of gradients ------------------------------------------------------------------------


def pcgrad(gradients: Sequence[Tensor], orders: Sequence[Sequence[int]]) -> Tensor:
    """Yu et al. 2020, algorithm 1, with the vectors themselves."""
    projected = []
    for i, own in enumerate(gradients):
        vector = own.clone()
        for j in orders[i]:
            if j != i and vector @ gradients[j] < 0:
                vector = (
                    vector - (vector @ gradients[j]) / gradients[j].square().sum() * gradients[j]
                )
        projected.append(vector)
    return torch.stack(projected).sum(0)


def split_gradients(
    network: Network, losses: Sequence[Tensor]
) -> tuple[list[Tensor], dict[tuple[str, int], Tensor]]:
    """
    Per task its gradient along all that is shared, as one vector; and what is a task's own.

    Slices of a task are found by their name and number, one by one.
    """
    owners, shared, own = network.owners(), [], {}
    for task, loss in enumerate(losses):
        network.zero_grad()
        loss.backward(retain_graph=True)
        parts = []
        for name, parameter in network.named_parameters():
            if name not in owners:
                parts.append(parameter.grad.flatten().clone())
                continue
            for i, owner in enumerate(owners[name].tolist()):
                if owner == SHARED:
                    parts.append(parameter.grad[i].flatten().clone())
                elif owner == task:
                    own[name, i] = parameter.grad[i].clone()
                else:
                    assert not parameter.grad[i].any()
        shared.append(torch.cat(parts))
    network.zero_grad()
    return shared, own


def parts_of(network: Network) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """The gradient that the network has now, split in the same way."""
    owners, parts, own = network.owners(), [], {}
    for name, parameter in network.named_parameters():
        if name not in owners:
            parts.append(parameter.grad.flatten())
            continue
        for i, owner in enumerate(owners[name].tolist()):
            if owner == SHARED:
                parts.append(parameter.grad[i].flatten())
            else:
                own[name, i] = parameter.grad[i]
    return torch.cat(parts), own
