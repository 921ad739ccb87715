"""
Networks with one task more, or with fewer, from a trained one.

Both build a network of the new size from the same shape and move the weights. Which slice goes
where is known from :meth:`Network.owners` alone, and the answers are compared before anything is
handed out; so a way of sharing needs no code of its own for either.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from riskmtl.networks import IndependentNetworks, Network, NetworkConfig
from riskmtl.networks.trunk import SomeTasks

# Of float64: another number of groups adds up in another order, and nothing else may differ.
_TOLERANCE = 1e-9
_PROBES = 64


# ---- one task more -------------------------------------------------------------------------------


class Grown(NamedTuple):
    """
    A network with one task more.

    Parameters
    ----------
    network : Network
    old : dict of str to Tensor of bool
        For each parameter, which slices along its first axis were there before.
    """

    network: Network
    old: dict[str, Tensor]


def grown(
    network: Network, shape: NetworkConfig, cardinalities: Sequence[int], *, regression: bool
) -> Grown:
    """
    A copy of a network with one task more, whose old heads answer as before.

    Parameters
    ----------
    network : Network
    shape : NetworkConfig
        Of the network.
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    regression : bool
        Whether the new head predicts a number.

    Returns
    -------
    Grown
        The new task is the last. What is new is freshly drawn; what was there before reads from it
        with weight zero.

    Raises
    ------
    ValueError
        If the way of sharing lets the old heads see a new one, so that they would answer otherwise.

    Examples
    --------
    >>> shape = NetworkConfig(network="mmoe")
    >>> larger, old = grown(Network([0, 5], 2, shape), shape, [0, 5], regression=False)
    >>> larger(torch.zeros(1, 2)).shape, old["towers.out.weight"]
    (torch.Size([1, 3]), tensor([ True,  True, False]))
    """
    if isinstance(network.trunk, SomeTasks):
        raise ValueError(
            "the network keeps the trunk of a larger model: add the task to that one, and take "
            "only() the heads wanted then"
        )
    tasks = network.towers.tasks
    kinds = [*network.regression.tolist(), regression]
    larger = Network(cardinalities, tasks + 1, shape, regression=kinds)
    before, after = network.owners(), larger.owners()
    places = _Places(before, after, shape.network)
    state, old = network.state_dict(), {}
    with torch.no_grad():
        for name, target in larger.state_dict().items():
            old[name] = torch.zeros(target.shape[:1], dtype=torch.bool)
            if name in state:
                where = places.of(name, state[name].shape, target.shape)
                _move(state[name].cpu(), target, where)
                old[name][where[0] if where else ...] = True
    old = {name: old[name] for name, _ in larger.named_parameters()}
    if not _same(network, _redrawn(larger.eval(), old), range(tasks)):
        raise ValueError(_cannot_grow(shape.network))
    return Grown(larger, old)


def _redrawn(network: Network, old: Mapping[str, Tensor]) -> Network:
    """A copy in which all that is new is something else, as it will be once it has learned."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            new = parameter[~old[name]]
            parameter[~old[name]] = torch.randn(new.shape, generator=generator)
    return other


class _Places:
    """
    Where the slices of a parameter go in that of a larger network, along each axis.

    Along the first axis the owners of the parameter itself tell. Where another axis has grown, it
    counts what some other parameter has as its first axis, such as the experts that gates weigh.
    """

    def __init__(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], network: str
    ) -> None:
        self.network = network
        self.own = {
            name: _matched(owners, after[name]) for name, owners in before.items() if name in after
        }
        self.by_size: dict[tuple[int, int], set[tuple[int, ...]]] = {}
        for name, places in self.own.items():
            sizes = len(before[name]), len(after[name])
            self.by_size.setdefault(sizes, set()).add(tuple(places.tolist()))

    def of(self, name: str, before: Sequence[int], after: Sequence[int]) -> list[Tensor]:
        """New positions of the old slices along each axis."""
        found = []
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            if axis == 0 and name in self.own:
                found.append(self.own[name])
            elif old == new:
                found.append(torch.arange(old))
            else:
                known = self.by_size.get((old, new), set())
                if len(known) != 1:
                    raise ValueError(_cannot_grow(self.network))
                found.append(torch.tensor(next(iter(known))))
        return found


def _matched(before: Tensor, after: Tensor) -> Tensor:
    """Position in `after` of each slice of `before`: the same owner's, in the same order."""
    if any((after == owner).sum() < (before == owner).sum() for owner in set(before.tolist())):
        # What a task had for itself feeds others now; then slices follow the order of the tasks.
        return torch.arange(len(before))
    places = torch.empty(len(before), dtype=torch.long)
    for owner in set(before.tolist()):
        theirs = (after == owner).nonzero().flatten()
        mine = (before == owner).nonzero().flatten()
        places[mine] = theirs[: len(mine)]
    return places


def _move(source: Tensor, target: Tensor, places: Sequence[Tensor]) -> None:
    """Put old numbers into their places; what else their slices now hold becomes zero."""
    if not source.dim():
        target.copy_(source)
        return
    target[places[0]] = 0
    dims = source.dim()
    index = tuple(
        place.view(*(-1 if axis == i else 1 for i in range(dims)))
        for axis, place in enumerate(places)
    )
    target[index] = source


def _cannot_grow(network: str) -> str:
    return (
        f"network={network!r} with this shape lets the heads there are depend on the number of "
        "tasks: none can be added without changing what they answer; train all tasks together"
    )


# ---- fewer tasks ---------------------------------------------------------------------------------


def shrunk(
    network: Network | IndependentNetworks,
    shape: NetworkConfig,
    cardinalities: Sequence[int],
    tasks: Sequence[int],
) -> tuple[Network | IndependentNetworks, NetworkConfig]:
    """
    A network with some of the heads, and the shape from which it can be built again.

    Parameters
    ----------
    network : Network or IndependentNetworks
    shape : NetworkConfig
        Of the network.
    cardinalities : sequence of int
        Per feature: its number of codes, or 0 if it is numeric.
    tasks : sequence of int
        Positions of the heads, in the order wanted.

    Returns
    -------
    network : Network or IndependentNetworks
        In evaluation mode. It scores these heads as the whole does, and is without what only the
        others use, as far as a shape can say so; else it keeps the whole trunk.
    shape : NetworkConfig
    """
    if isinstance(network, Network):
        return _shrunk_one(network, shape, cardinalities, tasks)
    parts: list[tuple[list[int], Network, NetworkConfig]] = []
    for position, (one, group) in enumerate(zip(network.networks, network.groups, strict=True)):
        kept = [task for task in tasks if task in group]
        if kept:
            assert isinstance(one, Network)
            own = [group.index(task) for task in kept]
            smaller, part = _shrunk_one(one, shape.part(position), cardinalities, own)
            parts.append(([list(tasks).index(task) for task in kept], smaller, part))
    # As they are told apart again where the shape names no groups.
    parts.sort(key=lambda part: part[0])
    if len(parts) == 1 and shape.network != "single_task":
        return parts[0][1], parts[0][2]
    groups = tuple(tuple(group) for group, _, _ in parts)
    cuts = tuple(part.cut_trunks[0] if part.cut_trunks else (0, ()) for _, _, part in parts)
    return IndependentNetworks([one for _, one, _ in parts], groups).eval(), replace(
        shape,
        groups=() if shape.network == "single_task" else groups,
        cut_trunks=cuts if any(of for of, _ in cuts) else (),
    )


def _shrunk_one(
    network: Network, shape: NetworkConfig, cardinalities: Sequence[int], tasks: Sequence[int]
) -> tuple[Network, NetworkConfig]:
    shape = replace(shape, groups=())
    if list(tasks) == list(range(network.towers.tasks)):
        return copy.deepcopy(network).eval(), shape
    smaller = network.only(tasks)
    if not isinstance(smaller.trunk, SomeTasks):
        rebuilt = _rebuilt(smaller, shape, cardinalities)
        if rebuilt is not None and _same(network, rebuilt, tasks):
            return rebuilt, replace(shape, cut_trunks=())
        smaller.trunk = SomeTasks(network.trunk, tasks)
    # 0 where another network of the model keeps its whole trunk, and this one does not yet.
    trunk_tasks = (shape.cut_trunks[0][0] if shape.cut_trunks else 0) or network.towers.tasks
    shape = replace(shape, cut_trunks=((trunk_tasks, tuple(smaller.trunk.tasks)),))
    whole = _rebuilt(smaller, shape, cardinalities)
    assert whole is not None
    return whole, shape


def _rebuilt(
    network: Network, shape: NetworkConfig, cardinalities: Sequence[int]
) -> Network | None:
    """The network as its shape describes it, or nothing if the shape describes another."""
    kinds = network.regression.tolist()
    try:
        made = Network(cardinalities, len(kinds), shape, regression=kinds)
    except ValueError:
        # Some ways of sharing are none for a single task.
        return None
    state, own = network.state_dict(), made.state_dict()
    if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in own.items()}:
        return None
    made.load_state_dict(state)
    return made.eval()


# ---- comparing -----------------------------------------------------------------------------------


def _outputs(network: Network) -> Tensor:
    """Raw outputs for embedded rows that look like nobody's, ``(rows, tasks)``."""
    exact = copy.deepcopy(network).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    width = network.embedding.out_features
    rows = torch.randn(_PROBES, width, generator=generator, dtype=torch.float64)
    # Here the numbers of all gates are level, so that a sparse one leaves no expert out.
    rows[0] = 0
    with torch.inference_mode():
        return exact.answer(rows)


def _same(network: Network, other: Network, tasks: Sequence[int]) -> bool:
    """Whether the first heads of another network, with the same embedding, answer as some do."""
    expected = _outputs(network)[:, list(tasks)]
    found = _outputs(other)[:, : len(tasks)]
    return torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
