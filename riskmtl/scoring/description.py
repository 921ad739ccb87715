"""What an exported file says of itself: how to encode a row, and what the outputs are."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riskmtl import __version__
from riskmtl.columns import DATE_TYPES, Column
from riskmtl.encoding import FIRST_KNOWN, MISSING, UNSEEN, EncodedColumn
from riskmtl.model import Head, RiskModel

# The name under which a file holds its description.
KEY = "riskmtl"

_HOW = (
    "The input has a float32 number for each column, in the order given here.",
    "A value is missing if it is null, NaN, or one of the column's missing_values.",
    "number: the value itself, which must be finite; NaN if it is missing.",
    "number with days_before: the days from the value to the row's value in that column, with "
    "their fraction; a date is its midnight, a year its first of January.",
    f"category: {UNSEEN} for a value not in values, {MISSING} if it is missing, otherwise "
    f"{FIRST_KNOWN} and the position in values, from 0. Values are text: a boolean is true or "
    "false, a whole number has no decimal point.",
    "probability is that of the label positive, log_odds its log-odds; for a head of kind "
    "regression both are the prediction. Their columns are the heads, in the order given here.",
)


def describe(model: RiskModel, heads: Sequence[int], *, is_int8: bool = False) -> dict[str, Any]:
    """
    Say all that a user of an exported file needs who has neither this package nor the model.

    Parameters
    ----------
    model : RiskModel
    heads : sequence of int
        Positions of the heads that the file answers for.
    is_int8 : bool
        Whether its matrices have 8 bits.

    Returns
    -------
    dict
        Plain values that JSON can hold: versions, columns with the vocabularies in the order of
        their codes, heads, and sentences on how to use them. No number of any row is among them.
    """
    return {
        "version": __version__,
        **model.identity,
        "precision": "int8" if is_int8 else "float32",
        "how": list(_HOW),
        "columns": [_column(model, column) for column in model.encoder.columns_],
        "heads": [_head(model.heads[i]) for i in heads],
    }


def _head(head: Head) -> dict[str, Any]:
    positive = {"positive": head.classes[1]} if head.kind == "binary" else {}
    return {"name": head.task, "kind": head.kind, **positive}


def _column(model: RiskModel, encoded: EncodedColumn) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": encoded.name,
        "kind": "category" if encoded.is_categorical else "number",
    }
    if model.schema is not None:
        raw = {column.name: column for column in model.schema.columns}
        said |= _source(raw[encoded.name], model.schema.time)
    if encoded.vocabulary is not None:
        said["values"] = list(encoded.vocabulary)
    return said


def _source(column: Column, time: Column | None) -> dict[str, Any]:
    said: dict[str, Any] = {"type": column.type, "missing_values": list(column.missing_values)}
    if column.type in DATE_TYPES and column.role == "numeric" and time is not None:
        said["days_before"] = time.name
    return said


def in_archive(path: str | Path) -> str | None:
    """The description in a .pt2 file, as JSON; None if it holds none."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            # The first part is a name that torch gives the archive.
            if name.partition("/")[2] == f"extra/{KEY}":
                return archive.read(name).decode("utf-8")
    return None


def in_onnx(path: str | Path) -> str | None:
    """The description in an ONNX file, as JSON; None if it holds none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        properties = onnx.load_model_from_string(Path(path).read_bytes()).metadata_props
    except DecodeError:
        return None
    return next((entry.value for entry in properties if entry.key == KEY), None)
