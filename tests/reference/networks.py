"""
The networks and their loss once more: one row, one task, one expert, one bin at a time.

Weights are those of the batched modules, a slice for each group, so that outputs and gradients can
be compared number by number. A row is a vector; :func:`for_each_row` makes a batch of rows.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from riskmtl.networks import Network, NetworkConfig
from riskmtl.networks.aitm import AITM
from riskmtl.networks.cross_attention import CrossAttention
from riskmtl.networks.embedding import (
    CategoricalEmbedding,
    FeatureEmbedding,
    NumericEmbedding,
    Periodic,
    PiecewiseLinear,
    Standardized,
)
from riskmtl.networks.encoder_decoder import EncoderDecoder
from riskmtl.networks.gating import Gates
from riskmtl.networks.layers import GroupLinear, GroupMLP, Towers
from riskmtl.networks.mmoe import MMoE
from riskmtl.networks.ple import PLE, ExtractionLayer
from riskmtl.networks.shared_bottom import SharedBottom
from riskmtl.networks.soft_sharing import StitchedBodies, TiedBodies


def for_each_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([function(row) for row in x])


# --- Embeddings -----------------------------------------------------------------------------------


Bin = tuple[float, float]


def bins_of(embedding: PiecewiseLinear, feature: int) -> list[Bin]:
    """Left and right edge of each bin of one feature; none for a constant one."""
    lefts, widths = embedding.left[feature].tolist(), embedding.bin_width[feature].tolist()
    return [
        (left, left + width)
        for left, width in zip(lefts, widths, strict=True)
        if math.isfinite(left)
    ]


def filling(value: float, bins: Sequence[Bin]) -> list[float]:
    """Gorishniy et al. 2022, equation 1, after the value is brought to the nearest end."""
    value = min(max(value, bins[0][0]), bins[-1][1])
    filled = []
    for left, right in bins:
        if value < left:
            filled.append(0.0)
        elif value >= right:
            filled.append(1.0)
        else:
            filled.append((value - left) / (right - left))
    return filled


def piecewise_linear(embedding: PiecewiseLinear, feature: int, value: float) -> Tensor:
    bins = bins_of(embedding, feature)
    filled = filling(value, bins) if bins else [0.0]
    rank = math.sqrt(3) * (2 * sum(filled) / len(filled) - 1)
    vector = embedding.bias[feature] + rank * embedding.linear[feature]
    for t, share in enumerate(filled):
        vector = vector + share * embedding.weight[feature, t]
    if embedding.step_weight is None:
        return vector
    reached = sum(value >= begin for begin in embedding.step[feature].tolist())
    return vector + embedding.step_weight[feature * embedding.steps + reached]


def standardized(embedding: Standardized, feature: int, value: float) -> float:
    low, high = embedding.low[feature].item(), embedding.high[feature].item()
    mean, scale = embedding.mean[feature].item(), embedding.scale[feature].item()
    return (min(max(value, low), high) - mean) / scale


def periodic(embedding: Periodic, feature: int, value: float) -> Tensor:
    z = standardized(embedding, feature, value)
    frequencies = list(embedding.frequency[feature])
    waves = [torch.cos(2 * math.pi * c * z) for c in frequencies]
    waves += [torch.sin(2 * math.pi * c * z) for c in frequencies]
    vector = embedding.bias[feature]
    for wave, weight in zip(waves, embedding.weight[feature], strict=True):
        vector = vector + wave * weight
    return vector.clamp(min=0)


def numeric(embedding: NumericEmbedding, feature: int, value: float) -> Tensor:
    if math.isnan(value):
        return embedding.missing[feature]
    if isinstance(embedding, PiecewiseLinear):
        return piecewise_linear(embedding, feature, value)
    if isinstance(embedding, Periodic):
        return periodic(embedding, feature, value)
    assert isinstance(embedding, Standardized)
    return embedding.missing.new_tensor([standardized(embedding, feature, value)])


def categorical(
    embedding: CategoricalEmbedding, cardinalities: Sequence[int], feature: int, code: int
) -> Tensor:
    row = sum(cardinalities[:feature]) + code
    return embedding.credibility[row] * embedding.weight[row]


def features(embedding: FeatureEmbedding, cardinalities: Sequence[int], row: Tensor) -> Tensor:
    """Numeric features in order, then categorical ones in order."""
    numbers = [value for value, size in zip(row.tolist(), cardinalities, strict=True) if size == 0]
    codes = [int(value) for value, size in zip(row.tolist(), cardinalities, strict=True) if size]
    sizes = [size for size in cardinalities if size]
    parts = [numeric(embedding.numeric, i, value) for i, value in enumerate(numbers)]
    parts += [categorical(embedding.categorical, sizes, i, code) for i, code in enumerate(codes)]
    return torch.cat(parts)


# --- Layers ---------------------------------------------------------------------------------------


def linear(layer: GroupLinear, group: int, row: Tensor) -> Tensor:
    """``torch.nn.Linear`` with the weights of one group."""
    bias = None if layer.bias is None else layer.bias[group, 0]
    return torch.nn.functional.linear(row, layer.weight[group].T, bias)


def mlp(network: GroupMLP, group: int, row: Tensor) -> Tensor:
    for layer in network.layers:
        row = linear(layer, group, row).clamp(min=0)
    return row


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def gate_weights(
    gates: Gates, config: NetworkConfig, number: int, row: Tensor, positions: Sequence[int]
) -> list[Tensor]:
    """What a gate gives each of the experts that it may select; a product without bias."""
    numbers = row @ gates.linear.weight[number]
    if config.gating == "dselect_k":
        return selected(list(numbers), gates.selectors, len(positions))
    scores = [numbers[position] for position in positions]
    if config.gating == "softmax":
        return softmax(scores)
    # Shazeer et al. 2017, equations 3 and 5: what is not among the largest is minus infinity.
    best = sorted((score.item() for score in scores), reverse=True)[: config.active_experts]
    kept = softmax([score for score in scores if score.item() >= best[-1]])
    return [kept.pop(0) if score.item() >= best[-1] else row.new_zeros(()) for score in scores]


def selected(numbers: Sequence[Tensor], selectors: int, experts: int) -> list[Tensor]:
    """Hazimeh et al. 2021: a weighted sum of selectors, each of which has a code's bits."""
    alpha, bits = softmax(numbers[:selectors]), len(numbers) // selectors - 1
    weights = [alpha[0].new_zeros(()) for _ in range(experts)]
    for selector in range(selectors):
        begin = selectors + selector * bits
        steps = [smooth_step(number) for number in numbers[begin : begin + bits]]
        for code in range(2**bits):
            share = alpha[selector]
            for bit, step in enumerate(steps):
                share = share * (step if code >> bit & 1 else 1 - step)
            weights[code % experts] = weights[code % experts] + share
    return weights


def smooth_step(number: Tensor) -> Tensor:
    if number.item() <= -0.5:
        return torch.zeros_like(number)
    if number.item() >= 0.5:
        return torch.ones_like(number)
    return -2 * number**3 + 3 * number / 2 + 0.5


def mixture(weights: Sequence[Tensor], experts: Sequence[Tensor]) -> Tensor:
    return sum(weight * expert for weight, expert in zip(weights, experts, strict=True))


def towers(network: Towers, representations: Sequence[Tensor], member: int = 0) -> Tensor:
    """The towers of one member, a task at a time."""
    numbers = []
    for task, representation in enumerate(representations):
        group = task * network.members + member
        numbers.append(linear(network.out, group, mlp(network.hidden, group, representation)))
    return torch.cat(numbers)


# --- Trunks: a row in, one representation per task out --------------------------------------------


def shared_bottom(trunk: SharedBottom, tasks: int, config: NetworkConfig, row: Tensor) -> Tensor:
    return torch.stack([mlp(trunk.body, 0, row) for _ in range(tasks)])


def mmoe(trunk: MMoE, tasks: int, config: NetworkConfig, row: Tensor) -> Tensor:
    """Ma et al. 2018, equations 5 and 6."""
    experts = [mlp(trunk.experts, i, row) for i in range(config.experts)]
    outputs = []
    for task in range(tasks):
        weights = gate_weights(trunk.gates, config, task, row, range(config.experts))
        outputs.append(mixture(weights, experts))
    return torch.stack(outputs)


def extraction_layer(
    level: ExtractionLayer,
    config: NetworkConfig,
    task_inputs: Sequence[Tensor],
    shared_input: Tensor,
    *,
    is_last: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Tang et al. 2020, equations 1 to 3 for a task; its shared gate selects from all experts."""
    tasks, own, shared = len(task_inputs), config.task_experts, config.shared_experts
    positions_of_task = [[task * own + i for i in range(own)] for task in range(tasks)]
    positions_of_shared = [tasks * own + i for i in range(shared)]
    experts = [
        mlp(level.experts, position, task_inputs[task])
        for task in range(tasks)
        for position in positions_of_task[task]
    ]
    experts += [mlp(level.experts, position, shared_input) for position in positions_of_shared]

    def gate(number: int, row: Tensor, positions: Sequence[int]) -> Tensor:
        weights = gate_weights(level.gates, config, number, row, positions)
        return mixture(weights, [experts[i] for i in positions])

    outputs = [
        gate(task, task_inputs[task], positions_of_task[task] + positions_of_shared)
        for task in range(tasks)
    ]
    if is_last:
        return outputs, None
    return outputs, gate(tasks, shared_input, range(len(experts)))


def ple(trunk: PLE, tasks: int, config: NetworkConfig, row: Tensor) -> Tensor:
    """Tang et al. 2020: extraction layers, each fed with what the one before gives."""
    task_rows, shared_row = [row] * tasks, row
    for number, level in enumerate(trunk.levels, start=1):
        task_rows, shared_row = extraction_layer(
            level, config, task_rows, shared_row, is_last=number == config.levels
        )
    return torch.stack(task_rows)


def soft_sharing(
    trunk: TiedBodies | StitchedBodies, tasks: int, config: NetworkConfig, row: Tensor
) -> Tensor:
    """Duong et al. 2015 and Yang and Hospedales 2017; or Misra et al. 2016, equation 1."""
    x = [row] * tasks
    for position, layer in enumerate(trunk.bodies.layers):
        x = [linear(layer, task, x[task]).clamp(min=0) for task in range(tasks)]
        if config.tie == "cross_stitch":
            alpha = trunk.stitches[position].alpha
            x = [sum(alpha[i, j] * x[j] for j in range(tasks)) for i in range(tasks)]
    return torch.stack(x)


def encoder_decoder(
    trunk: EncoderDecoder, tasks: int, config: NetworkConfig, row: Tensor
) -> Tensor:
    code = linear(trunk.code, 0, mlp(trunk.encoder, 0, row))
    return torch.stack([mlp(trunk.decoders, task, code) for task in range(tasks)])


def cross_attention(
    trunk: CrossAttention, tasks: int, config: NetworkConfig, row: Tensor
) -> Tensor:
    """Vaswani et al. 2017, equation 1, one task asking one other at a time."""
    features = [mlp(trunk.bodies, task, row) for task in range(tasks)]
    outputs = []
    for asking in range(tasks):
        query = linear(trunk.query, asking, features[asking])
        match = []
        for asked in range(tasks):
            key = linear(trunk.key, asked, features[asked])
            match.append((query * key).sum() / math.sqrt(len(key)))
        values = [linear(trunk.value, asked, features[asked]) for asked in range(tasks)]
        outputs.append(features[asking] + mixture(softmax(match), values))
    return torch.stack(outputs)


def aitm(trunk: AITM, tasks: int, config: NetworkConfig, row: Tensor) -> Tensor:
    """Xi et al. 2021: z_1 = q_1, and z_t = AIT(p_{t-1}, q_t) with p_{t-1} = g(z_{t-1})."""
    outputs = [mlp(trunk.bodies, 0, row)]
    for task in range(1, tasks):
        transfer = trunk.transfers[task - 1]
        handed_on = mlp(transfer.hand_on, 0, outputs[-1])
        values, match = [], []
        for u in (handed_on, mlp(trunk.bodies, task, row)):
            h1, h2, h3 = (linear(transfer.project, number, u) for number in range(3))
            values.append(h1)
            match.append((h2 * h3).sum() / math.sqrt(len(h1)))
        outputs.append(mixture(softmax(match), values))
    return torch.stack(outputs)


TRUNKS = {
    "ple": ple,
    "mmoe": mmoe,
    "shared_bottom": shared_bottom,
    "soft_sharing": soft_sharing,
    "encoder_decoder": encoder_decoder,
    "cross_attention": cross_attention,
    "aitm": aitm,
    "single_task": shared_bottom,
}


# --- Members --------------------------------------------------------------------------------------


def members(
    module: Network, cardinalities: Sequence[int], tasks: int, config: NetworkConfig, row: Tensor
) -> list[Tensor]:
    """Gorishniy et al. 2025, TabM-mini: each member scales the embedded row and has own towers."""
    embedded = features(module.embedding, cardinalities, row)
    answers = []
    for member in range(config.members):
        scaled = embedded
        if module.members is not None:
            scaled = embedded * module.members.scale[member, 0]
        representations = TRUNKS[config.network](module.trunk, tasks, config, scaled)
        answer = towers(module.towers, representations, member)
        if module.linear is not None:
            answer = answer + torch.stack([line @ embedded for line in module.linear.weight])
        answers.append(answer)
    return answers


def pooled(answers: Sequence[Tensor], regression: Sequence[bool]) -> Tensor:
    """One task at a time: the mean prediction, or the log-odds of the mean probability."""
    numbers = []
    for task, predicts_number in enumerate(regression):
        said = [answer[task] for answer in answers]
        if predicts_number:
            numbers.append(sum(said) / len(said))
        elif len(said) == 1:
            numbers.append(said[0])
        else:
            event = sum(1 / (1 + torch.exp(-number)) for number in said) / len(said)
            other = sum(1 / (1 + torch.exp(number)) for number in said) / len(said)
            numbers.append(event.log() - other.log())
    return torch.stack(numbers)


def network(
    module: Network,
    cardinalities: Sequence[int],
    tasks: int,
    config: NetworkConfig,
    row: Tensor,
    regression: Sequence[bool] | None = None,
) -> Tensor:
    answers = members(module, cardinalities, tasks, config, row)
    return pooled(answers, regression or [False] * tasks)


# --- Loss -----------------------------------------------------------------------------------------


def task_losses(
    outputs: Tensor,
    labels: Tensor,
    weights: Sequence[float],
    positive_weight: Sequence[float],
    regression: Sequence[bool],
) -> Tensor:
    """Weighted mean over the rows that observe a task; 0 if there are none."""
    losses = []
    for task in range(outputs.shape[1]):
        total, weight_sum = outputs.new_zeros(()), 0.0
        for row in range(outputs.shape[0]):
            output, label = outputs[row, task], labels[row, task].item()
            if math.isnan(label):
                continue
            if regression[task]:
                loss = (output - label) ** 2
            else:
                p = 1 / (1 + torch.exp(-output))
                loss = -(positive_weight[task] * label * p.log() + (1 - label) * (1 - p).log())
            total = total + weights[row] * loss
            weight_sum += weights[row]
        losses.append(total / weight_sum if weight_sum > 0 else total)
    return torch.stack(losses)
