"""
Export: a network with its calibrators as one file that runs without this package.

The file holds the weights, how to encode a row, and nothing of any row. It is compared with the
model before it appears.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.files import replacing
from riskmtl.frames import as_frame
from riskmtl.model import Head, RiskModel, sigmoid
from riskmtl.scorers import CPU_ROWS, NetworkScorer
from riskmtl.scoring.description import KEY, describe, in_archive, in_onnx
from riskmtl.scoring.program import INPUT, OUTPUTS, Program, exported, quantised, to_onnx

if TYPE_CHECKING:
    import onnx

FORMATS = ("onnx", "pt2")

_SIMULATED_ROWS = 1000
# Runtimes add up in another order, which moves log-odds by 1e-6; a mistake moves them far more.
_TOLERANCE = 1e-4

# Encoded rows to probabilities and log-odds, each (rows, heads).
_Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
_Run = Callable[[NDArray[np.float32]], _Scores]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """
    What came of an export.

    Parameters
    ----------
    out : Path
    bytes : int
        Size of the file.
    rows : int
        Rows on which file and model were compared.
    heads : polars.DataFrame
        A line per head: ``head``, ``largest`` and ``mean`` difference of its probability (a
        regression: its prediction) from the model's, and ``rank_correlation`` (Spearman) with it,
        null where all rows score alike.
    """

    out: Path
    bytes: int
    rows: int
    heads: pl.DataFrame


def export_model(
    model: RiskModel,
    out: str | Path,
    *,
    format: str = "onnx",
    head: str | None = None,
    int8: bool = False,
    rows: Any = None,
) -> ExportReport:
    """
    Write a network as one file, with linear form and calibrators of its heads inside.

    Parameters
    ----------
    model : RiskModel
        A network that answers alone.
    out : str or Path
        The file; it appears whole or not at all.
    format : {"onnx", "pt2"}
        For ONNX runtimes, or for ``torch.export.load``.
    head : str, optional
        The one head to export, without what only the others use; default: all.
    int8 : bool
        Whether to store and multiply matrices with 8 bits; ONNX only.
    rows : table, optional
        Rows on which to compare file and model, without those that break the schema; default:
        1,000 that are drawn from the ranges of the columns and look like nobody.

    Returns
    -------
    ExportReport

    Raises
    ------
    ValueError
        If the model is no network that answers alone, an option is unknown or does not go with
        the format, `rows` has none that can be scored, or the file scores otherwise than the model,
        by more than rounding can explain (not with `int8`, where the report says how much).
    ImportError
        If ONNX is asked for and the packages of ``riskmtl[export]`` are missing.

    Notes
    -----
    The program maps ``encoded``, float32 of shape (rows, columns), to ``probability`` and
    ``log_odds``, float64 of shape (rows, heads). It scores whatever it is given: the schema's rules
    that refuse rows are not in it. A code outside its column's vocabulary counts as unseen, a code
    of NaN as missing.

    With 8 bits, the scale of the products follows from all rows of a batch, so that a row's score
    depends, within the error reported, on the rows beside it.
    """
    _require_network(model)
    if format not in FORMATS:
        raise ValueError(unknown_name("format", format, FORMATS))
    if int8 and format != "onnx":
        raise ValueError("int8 needs format 'onnx': a .pt2 file has float32 weights")
    if format == "onnx":
        _require_packages()
    heads = _positions(model, head)
    encoded = _compared(model, rows)
    program = exported(Program(model, heads))
    said = describe(model, heads, is_int8=int8)
    data, run = _as_onnx(program, said, int8=int8) if format == "onnx" else _as_pt2(program, said)
    chosen = [model.heads[i] for i in heads]
    found, expected = _in_batches(run, encoded), _expected(model, chosen, encoded)
    if not int8:
        _require_same(chosen, found, expected)
    with replacing(out) as scratch:
        scratch.write_bytes(data)
    return ExportReport(Path(out), len(data), len(encoded), _compare(chosen, found, expected))


def read_export(path: str | Path) -> dict[str, Any]:
    """
    Read what an exported file says of itself.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict
        ``version``, ``model_id``, ``schema_sha256``, ``precision``, ``columns``, ``heads``, and in
        ``how`` the sentences that say how a row is encoded and what the outputs are.

    Raises
    ------
    ValueError
        If it is not a file from :func:`export_model`.
    ImportError
        If it is no .pt2 file and the packages of ``riskmtl[export]`` are missing.

    Notes
    -----
    Without this package, it is the JSON under the name ``riskmtl`` in the custom metadata of an
    ONNX file, or in the ``extra_files`` of ``torch.export.load``.
    """
    if zipfile.is_zipfile(path):
        found = in_archive(path)
    else:
        _require_packages()
        found = in_onnx(path)
    if found is None:
        raise ValueError(f"{path}: not a file that riskmtl has exported")
    said: dict[str, Any] = json.loads(found)
    return said


def _require_network(model: RiskModel) -> None:
    if model.is_blend:
        kinds = " and ".join(model.parts())
        raise ValueError(
            f"the model is a blend of {kinds}, which one file cannot hold: export the network "
            "alone, export_model(model.parts()['network'], …), or train without challenger='blend'"
        )
    if not isinstance(model.scorer, NetworkScorer):
        raise ValueError(
            f"a {model.kind} model cannot be exported, only a network: train one with "
            "MultiTaskClassifier or riskmtl train"
        )


def _require_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            message = f"files in ONNX need {name}: pip install 'riskmtl[export]'"
            raise ImportError(message) from error


def _positions(model: RiskModel, head: str | None) -> list[int]:
    names = [each.task for each in model.heads]
    if head is None:
        return list(range(len(names)))
    if head not in names:
        raise ValueError(unknown_name("head", head, names))
    return [names.index(head)]


def _compared(model: RiskModel, rows: Any) -> NDArray[np.float32]:
    if rows is None:
        return model.encoder.transform(model.encoder.simulate(_SIMULATED_ROWS, seed=0))
    frame = as_frame(rows)
    if model.schema is not None:
        frame = model.schema.check(frame, labelled=False).good
    if frame.is_empty():
        raise ValueError("there are no rows to compare on that keep the schema: give others")
    return model.encode(frame)


# ---- the two formats -----------------------------------------------------------------------------


def _as_onnx(
    program: torch.export.ExportedProgram, said: dict[str, Any], *, int8: bool
) -> tuple[bytes, _Run]:
    import onnxruntime

    proto: onnx.ModelProto = to_onnx(program)
    if int8:
        proto = quantised(proto)
    proto.metadata_props.add(key=KEY, value=_json(said))
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(encoded: NDArray[np.float32]) -> _Scores:
        probability, log_odds = session.run(list(OUTPUTS), {INPUT: encoded})
        return probability, log_odds

    return data, run


def _as_pt2(program: torch.export.ExportedProgram, said: dict[str, Any]) -> tuple[bytes, _Run]:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: _json(said)})
    module = torch.export.load(io.BytesIO(file.getvalue())).module()

    def run(encoded: NDArray[np.float32]) -> _Scores:
        probability, log_odds = module(torch.from_numpy(encoded))
        return probability.numpy(), log_odds.numpy()

    return file.getvalue(), run


def _json(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, allow_nan=False)


# ---- beside the model ----------------------------------------------------------------------------


def _in_batches(run: _Run, encoded: NDArray[np.float32]) -> _Scores:
    batches = [run(encoded[i : i + CPU_ROWS]) for i in range(0, len(encoded), CPU_ROWS)]
    probability, log_odds = zip(*batches, strict=True)
    return np.concatenate(probability), np.concatenate(log_odds)


def _expected(model: RiskModel, heads: Sequence[Head], encoded: NDArray[np.float32]) -> _Scores:
    outputs = model.outputs(encoded)
    log_odds = np.column_stack([outputs[head.task] for head in heads])
    is_binary = [head.kind == "binary" for head in heads]
    return np.where(is_binary, sigmoid(log_odds), log_odds), log_odds


def _require_same(heads: Sequence[Head], found: _Scores, expected: _Scores) -> None:
    for i, head in enumerate(heads):
        a, b = found[1][:, i], expected[1][:, i]
        if not np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * head.scale):
            raise ValueError(
                f"the file is not written: head {head.task!r} would score otherwise in it than in "
                f"the model, by up to {abs(a - b).max():.1e} in log-odds; please report this with "
                "the versions of torch and onnxruntime"
            )


def _compare(heads: Sequence[Head], found: _Scores, expected: _Scores) -> pl.DataFrame:
    apart = abs(found[0] - expected[0])
    return pl.DataFrame(
        {
            "head": [head.task for head in heads],
            "largest": apart.max(axis=0),
            "mean": apart.mean(axis=0),
            "rank_correlation": [
                _rank_correlation(a, b) for a, b in zip(found[0].T, expected[0].T, strict=True)
            ],
        },
        schema_overrides={"rank_correlation": pl.Float64},
    )


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    from scipy.stats import rankdata

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
