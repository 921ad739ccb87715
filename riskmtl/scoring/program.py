"""A model as one program of tensors: encoded rows in, probabilities and log-odds out."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from riskmtl.encoding import MISSING, UNSEEN
from riskmtl.model import Head, RiskModel, linear_form, taken_by
from riskmtl.scorers import NetworkScorer

if TYPE_CHECKING:
    import onnx

INPUT = "encoded"
OUTPUTS = ("probability", "log_odds")

# What torch translates to without a detour; runtimes from 2023 on know it.
_OPSET = 18


class Program(nn.Module):
    """
    Network, linear form and calibrators of some heads of a model.

    Parameters
    ----------
    model : RiskModel
        A network that answers alone.
    heads : sequence of int
        Positions of the heads in the answer.

    Notes
    -----
    What only other heads use is dropped; a head that borrows keeps those that lend to it. All that
    follows the network is computed in float64, as the model does.
    """

    factors: Tensor
    offsets: Tensor
    regression: Tensor
    cardinality: Tensor

    def __init__(self, model: RiskModel, heads: Sequence[int]) -> None:
        super().__init__()
        assert isinstance(model.scorer, NetworkScorer)
        factors, offsets = linear_form(model.scored)
        used = taken_by(model.scored, heads)
        # (heads in the answer, heads that it takes)
        factors, offsets = factors[list(heads)], offsets[list(heads)]
        chosen = [model.heads[i] for i in heads]
        slope = np.array([head.calibrator.slope for head in chosen])
        intercept = np.array([head.calibrator.intercept for head in chosen])
        self.network = model.scorer.network.only(used).cpu().requires_grad_(False)
        # A tensor that is a view of a larger one would take that into the file.
        taken = np.ascontiguousarray(slope[:, None] * factors[:, used])
        self.register_buffer("factors", torch.from_numpy(taken))
        self.register_buffer("offsets", torch.from_numpy(slope * offsets + intercept))
        self.register_buffer("regression", _are_regressions(chosen))
        self.register_buffer("cardinality", torch.tensor(model.encoder.cardinalities_))

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """
        Score encoded rows.

        Parameters
        ----------
        encoded : Tensor of float32, shape (rows, columns)

        Returns
        -------
        probability, log_odds : Tensor of float64, shape (rows, heads)
            Both the prediction where the head is a regression.
        """
        raw = self.network(self._in_vocabulary(encoded)).double()
        # No product of matrices, which a quantiser would take for one of the network's.
        log_odds = (raw.unsqueeze(1) * self.factors).sum(-1) + self.offsets
        return torch.where(self.regression, log_odds, torch.sigmoid(log_odds)), log_odds

    def _in_vocabulary(self, encoded: Tensor) -> Tensor:
        """Codes that no vector belongs to count as unseen: the next column's must not be read."""
        known = (encoded >= 0) & (encoded < self.cardinality)
        code = torch.where(torch.isnan(encoded), MISSING, torch.where(known, encoded, UNSEEN))
        return torch.where(self.cardinality > 0, code, encoded)


def _are_regressions(heads: Sequence[Head]) -> Tensor:
    return torch.tensor([head.kind == "regression" for head in heads])


def exported(program: Program) -> ExportedProgram:
    """
    Trace a program for any number of rows.

    Parameters
    ----------
    program : Program

    Returns
    -------
    ExportedProgram
        Its example inputs, which a file of it keeps, are zeros; it names no file of this machine.
    """
    columns = len(program.cardinality)
    made = torch.export.export(
        program.eval(),
        (torch.zeros(2, columns),),
        dynamic_shapes=({0: Dim("rows", min=1)},),
        # Torch cannot prove that a reshape holds for a single row, and would refuse it.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    for node in made.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)
    return made


def to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    """
    Translate a program to ONNX.

    Parameters
    ----------
    program : ExportedProgram

    Returns
    -------
    onnx.ModelProto
    """
    with _without_noise():
        made = torch.onnx.export(
            program.run_decompositions(_DETOURS),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    proto = made.model_proto
    _broadcast(proto.graph)
    # Shapes noted on the way are partly stale, and the traces name files of this machine.
    del proto.graph.value_info[:]
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return proto


def _broadcast(graph: onnx.GraphProto) -> None:
    """Let products broadcast the rows that groups share: a copy for each takes half the time."""
    grouped = {weight.name for weight in graph.initializer if len(weight.dims) == 3}
    copied = {node.output[0]: node for node in graph.node if node.op_type == "Expand"}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[0] in copied and node.input[1] in grouped:
            node.input[0] = copied[node.input[0]].input[0]
    read = {name for node in graph.node for name in node.input}
    for output, node in copied.items():
        if output not in read:
            graph.node.remove(node)


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """
    Turn the matrices of an ONNX program to 8 bits.

    Parameters
    ----------
    proto : onnx.ModelProto

    Returns
    -------
    onnx.ModelProto
        With products of 8-bit numbers, scaled anew for each batch; embeddings stay as they are.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    # Unmarked, it is said to lack a preparation, which the translation to ONNX has done.
    add_pre_process_metadata(whole)
    with _without_noise(), TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        # Weights use 7 of the 8 bits: with all, sums of products saturate on some processors. A
        # scale per column would be closer, but onnxruntime takes none for grouped matrices.
        quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        made = onnx.load(path)
    del made.metadata_props[:]
    return made


@contextmanager
def _without_noise() -> Iterator[None]:
    """Leave warnings and logging as they are, which torch and onnxruntime would not."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    # It warns that torchvision is not installed, whose operators no network here has.
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    was_disabled, registry.disabled = registry.disabled, True
    try:
        with warnings.catch_warnings():
            # The translation copies the program by a class that torch itself has deprecated.
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        registry.disabled = was_disabled
        # The quantiser logs by functions that give the root logger a handler.
        root.handlers[:] = handlers


# ---- what ONNX says otherwise --------------------------------------------------------------------


def _count_reached(steps: Tensor, x: Tensor, **options: Any) -> Tensor:
    """:func:`torch.searchsorted` from the right, which ONNX lacks, as a search by halves."""
    if not options.get("right"):
        raise NotImplementedError("only searchsorted(right=True) has a translation to ONNX")
    levels = steps.shape[-1].bit_length()
    padding = (0, 2**levels - 1 - steps.shape[-1])
    padded = nn.functional.pad(steps, padding, value=math.inf)
    reached = torch.zeros_like(x, dtype=torch.int64)
    for half in (2**level for level in reversed(range(levels))):
        is_right = padded.gather(-1, reached + (half - 1)) <= x
        reached = torch.where(is_right, reached + half, reached)
    return reached


def _log_sigmoid(x: Tensor) -> Tensor:
    """As a softplus: the logarithm of a sigmoid, torch's own translation, has few digits."""
    return -nn.functional.softplus(-x)


_DETOURS = {
    torch.ops.aten.searchsorted.Tensor: _count_reached,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
}
