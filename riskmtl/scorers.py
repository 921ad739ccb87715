"""
What turns encoded rows into raw outputs: a network, trees, or a linear form.

A scorer writes itself into a folder as plain files and settings, and is read back from them by a
name in :data:`SCORERS`. Nothing is unpickled, and no name leads to code outside this table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from riskmtl.networks import IndependentNetworks, Network, NetworkConfig, groups_of
from riskmtl.networks.folded import FoldedNetwork, fold
from riskmtl.networks.resizing import shrunk

# Activations of so many rows stay in a CPU's cache; a GPU wants far more at once.
CPU_ROWS = 1024
GPU_ROWS = 65_536


class Scorer(Protocol):
    """
    Encoded rows in, one raw number per head out: log-odds, or a standardised prediction.

    Attributes
    ----------
    name : str
        Its name in :data:`SCORERS`.
    """

    name: str

    def raw(self, encoded: NDArray[np.float32] | Tensor) -> NDArray[np.float64]:
        """Map ``(rows, features)`` to ``(rows, heads)``."""

    def only(self, heads: Sequence[int]) -> Scorer:
        """A scorer of some of the heads."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write files into a folder and return what else is needed to read them."""


class NetworkScorer:
    """
    Score with a network.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    shape : NetworkConfig
    cardinalities : sequence of int
    regression : sequence of bool
        Which heads predict a number.
    device : str
        Where to compute.
    """

    name = "network"

    def __init__(
        self,
        network: Network | IndependentNetworks,
        shape: NetworkConfig,
        cardinalities: Sequence[int],
        regression: Sequence[bool],
        *,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device)
        self.shape = shape
        self.cardinalities = list(cardinalities)
        self.regression = [bool(kind) for kind in regression]
        self.device = torch.device(device)
        self.folded: FoldedNetwork | None = None

    def on(self, device: torch.device) -> NetworkScorer:
        """Compute on another device from now on."""
        self.network, self.device, self.folded = self.network.to(device), device, None
        return self

    def fold(self) -> NetworkScorer:
        """The same scorer, ready for many rows on a CPU; its network must stay as it is."""
        ready = copy.copy(self)
        if self.device.type == "cpu" and isinstance(self.network, Network):
            ready.folded = fold(self.network, self.cardinalities)
        return ready

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        size = GPU_ROWS if self.device.type == "cuda" else CPU_ROWS
        return max(1, size // self.shape.members)

    @property
    def networks(self) -> list[Network]:
        """The networks that share nothing; most often it is one."""
        if isinstance(self.network, Network):
            return [self.network]
        return [network for network in self.network.networks if isinstance(network, Network)]

    @property
    def places(self) -> list[int]:
        """Where each head is among the outputs of all :attr:`networks` side by side."""
        if isinstance(self.network, Network):
            return list(range(len(self.regression)))
        return self.network.places

    def raw(self, encoded: NDArray[np.float32] | Tensor) -> NDArray[np.float64]:
        """Map ``(rows, features)`` to ``(rows, heads)`` in micro-batches."""
        out = np.empty((len(encoded), len(self.regression)), dtype=np.float64)
        network, start = self.folded or self.network, 0
        with torch.inference_mode():
            for rows in self.batches(encoded):
                out[start : start + len(rows)] = network(rows).cpu().numpy()
                start += len(rows)
        return out

    def batches(self, encoded: NDArray[np.float32] | Tensor) -> Iterator[Tensor]:
        """Micro-batches of ``(rows, features)`` where the network is."""
        for start in range(0, len(encoded), self.rows):
            yield torch.as_tensor(encoded[start : start + self.rows]).to(self.device)

    def cut(self, members: int) -> NetworkScorer:
        """A scorer that averages the first of the members only."""
        is_cut = self.shape.is_cut or self.shape.members > 1
        shape = replace(self.shape, members=members, is_cut=is_cut)
        network = self.network.cut(members).eval()
        return NetworkScorer(
            network, shape, self.cardinalities, self.regression, device=str(self.device)
        )

    def with_network(self, network: Network | IndependentNetworks) -> NetworkScorer:
        """A scorer with another network of the same shape."""
        return NetworkScorer(
            network, self.shape, self.cardinalities, self.regression, device=str(self.device)
        )

    def beside(self, network: Network | IndependentNetworks, *, regression: bool) -> NetworkScorer:
        """A scorer of one head more, which has a network for itself."""
        assert isinstance(self.network, IndependentNetworks)
        new = network if isinstance(network, Network) else network.networks[0]
        head, shape = len(self.regression), self.shape
        whole = IndependentNetworks([*self.network.networks, new], [*self.network.groups, [head]])
        if shape.groups:
            shape = replace(shape, groups=(*shape.groups, (head,)))
        if shape.cut_trunks:
            shape = replace(shape, cut_trunks=(*shape.cut_trunks, (0, ())))
        return NetworkScorer(
            whole.eval(),
            shape,
            self.cardinalities,
            [*self.regression, regression],
            device=str(self.device),
        )

    def only(self, heads: Sequence[int]) -> NetworkScorer:
        """A scorer of some of the heads, without what only the others use."""
        network, shape = shrunk(self.network, self.shape, self.cardinalities, heads)
        regression = [self.regression[head] for head in heads]
        return NetworkScorer(
            network, shape, self.cardinalities, regression, device=str(self.device)
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Write ``weights.safetensors``."""
        weights = {name: t.cpu().contiguous() for name, t in self.network.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        return {
            "shape": asdict(self.shape),
            "cardinalities": self.cardinalities,
            "regression": self.regression,
        }

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> NetworkScorer:
        """Read what :meth:`write` wrote."""
        shape = NetworkConfig.from_dict(settings["shape"])
        cardinalities = settings["cardinalities"]
        regression = settings["regression"]
        network: Network | IndependentNetworks
        groups = groups_of(shape, len(regression))
        if len(groups) == 1 and shape.network != "single_task":
            network = Network(cardinalities, len(regression), shape, regression=regression)
        else:
            parts = [[regression[task] for task in group] for group in groups]
            network = IndependentNetworks(
                [
                    Network(cardinalities, len(kinds), shape.part(i), regression=kinds)
                    for i, kinds in enumerate(parts)
                ],
                groups,
            )
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        return cls(network.eval(), shape, cardinalities, regression)


class TreeScorer:
    """
    Score with one LightGBM model per head.

    Parameters
    ----------
    models : sequence of str
        LightGBM text models, one per head.
    threads : int, optional
        Threads for prediction; default: all that LightGBM takes.
    """

    name = "lightgbm"

    def __init__(self, models: Sequence[str], *, threads: int | None = None) -> None:
        self.models = list(models)
        self.threads = threads
        self._boosters: list[Any] = []

    def raw(self, encoded: NDArray[np.float32] | Tensor) -> NDArray[np.float64]:
        """Map ``(rows, features)`` to log-odds ``(rows, heads)``."""
        return np.stack(self._predicted(encoded, raw_score=True), axis=-1)

    def contributions(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """
        LightGBM's own attributions of the log-odds (Lundberg et al. 2020, path-dependent).

        Parameters
        ----------
        encoded : ndarray of shape (rows, features)

        Returns
        -------
        ndarray of shape (rows, features + 1, heads)
            The mean over the training rows comes last.
        """
        return np.stack(self._predicted(encoded, pred_contrib=True), axis=-1)

    def _predicted(
        self, encoded: NDArray[np.float32] | Tensor, **options: Any
    ) -> list[NDArray[np.float64]]:
        import lightgbm

        if not self._boosters:
            self._boosters = [lightgbm.Booster(model_str=text) for text in self.models]
        if self.threads is not None:
            options["num_threads"] = self.threads
        rows = np.asarray(encoded)
        return [
            np.asarray(booster.predict(rows, **options), dtype=np.float64)
            for booster in self._boosters
        ]

    def only(self, heads: Sequence[int]) -> TreeScorer:
        """A scorer of some of the heads."""
        return TreeScorer([self.models[head] for head in heads], threads=self.threads)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write ``head_0.lgb.txt``, ``head_1.lgb.txt``, …."""
        for position, text in enumerate(self.models):
            (folder / f"head_{position}.lgb.txt").write_text(text, encoding="utf-8")
        return {"heads": len(self.models)}

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> TreeScorer:
        """Read what :meth:`write` wrote."""
        paths = [folder / f"head_{position}.lgb.txt" for position in range(settings["heads"])]
        return cls([path.read_text(encoding="utf-8") for path in paths])


class LinearScorer:
    r"""
    Score with a linear form per head: :math:`a + \sum_j c_j z_j + m_j [x_j\ \text{missing}]`.

    A categorical column contributes a number per code instead.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        ``mean``, ``scale``, ``low``, ``high`` of shape (features,); ``slope`` and ``missing`` of
        shape (features, heads); ``table`` of shape (codes, heads); ``offset`` of shape (features,),
        the first row of each categorical column in the table, or -1; ``intercept`` (heads,).
    """

    name = "logistic"

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = dict(arrays)

    def raw(self, encoded: NDArray[np.float32] | Tensor) -> NDArray[np.float64]:
        """Map ``(rows, features)`` to log-odds ``(rows, heads)``."""
        a, encoded = self.arrays, np.asarray(encoded)
        is_number = a["offset"] < 0
        values = encoded[:, is_number].astype(np.float64)
        missing = np.isnan(values)
        scaled = np.clip(values, a["low"][is_number], a["high"][is_number]) - a["mean"][is_number]
        scaled = np.where(missing, 0.0, scaled / a["scale"][is_number])
        margins = a["intercept"] + scaled @ a["slope"][is_number]
        margins += missing @ a["missing"][is_number]
        for position in np.flatnonzero(~is_number):
            codes = encoded[:, position].astype(np.int64) + a["offset"][position]
            margins += a["table"][codes]
        return np.asarray(margins, dtype=np.float64)

    def only(self, heads: Sequence[int]) -> LinearScorer:
        """A scorer of some of the heads."""
        per_head = ("slope", "missing", "table", "intercept")
        return LinearScorer(
            {n: a[..., list(heads)] if n in per_head else a for n, a in self.arrays.items()}
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Write ``coefficients.safetensors``."""
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in self.arrays.items()
        }
        save_file(tensors, folder / "coefficients.safetensors")
        return {}

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> LinearScorer:
        """Read what :meth:`write` wrote."""
        tensors = load_file(folder / "coefficients.safetensors")
        return cls({name: tensor.numpy() for name, tensor in tensors.items()})


SCORERS: Mapping[str, type[NetworkScorer] | type[TreeScorer] | type[LinearScorer]] = {
    scorer.name: scorer for scorer in (NetworkScorer, TreeScorer, LinearScorer)
}
