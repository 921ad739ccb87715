"""
Rows as MLflow hands them over, and the columns that its signature names.

A column has a type in the signature only where MLflow's check neither refuses a good table nor
changes a value: text that every row must have. Otherwise it would refuse whole numbers where
``double`` is said, a gap where ``long`` is said, and a column of text without any value; and it
would make ``false`` of a JSON ``null`` where ``boolean`` is said. So all other columns are ``any``
there, and the schema checks them row by row. MLflow reads CSV without looking at the signature:
numbers and gaps as pandas guesses them, dates as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from riskmtl.columns import Column
from riskmtl.frames import as_frame, category_text
from riskmtl.scoring.batches import BatchScorer

if TYPE_CHECKING:
    import pandas as pd


class SignatureColumn(NamedTuple):
    """
    One column of a signature.

    Parameters
    ----------
    name : str
    type : {"any", "string", "strings", "double", "boolean"}
    is_required : bool
        An input: whether a table without it is refused. An answer: whether every row has one.
    """

    name: str
    type: str
    is_required: bool


class FrameScorer:
    """
    What MLflow calls: a pandas frame in, a pandas frame out.

    Parameters
    ----------
    scorer : BatchScorer
    """

    def __init__(self, scorer: BatchScorer) -> None:
        self.scorer = scorer
        self.schema = scorer.model.schema

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """
        Score a table.

        Parameters
        ----------
        frame : pandas.DataFrame
            Raw rows, as the schema of the model describes them; labels may be absent. Text in a
            column of another type is read as that of a CSV file.

        Returns
        -------
        pandas.DataFrame
            A line per row, in order and with its index: key and time columns as they came, the
            answers of :func:`riskmtl.scoring.batches.score_batches`, and ``_rule``, null where a
            row has scores. Numbers are floats, NaN where a row was refused.

        Raises
        ------
        riskmtl.schema.DataError
            If a column is missing, or of a type that cannot hold its values.
        """
        import pandas as pd

        rows, broken = self._read(as_frame(frame))
        found = self.scorer.score(rows, broken=broken).ruled()
        keys = self._keys(frame.columns)
        answers = [_as_pandas(answer, frame.index) for answer in found.drop("_row", *keys)]
        return pd.concat([frame[keys], *answers], axis="columns")

    def _keys(self, present: Any) -> list[str]:
        columns = [] if self.schema is None else self.schema.with_role("key", "time")
        return [column.name for column in columns if column.name in present]

    def _read(self, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series | None]:
        """Give columns the types that the schema says, with a rule for each row that cannot be."""
        if self.schema is None:
            return raw, None
        rows = raw.select(self.scorer.columns(raw.columns))
        # Of a column without any value, pandas has guessed a type.
        rows = rows.with_columns(pl.lit(None).alias(c.name) for c in rows if _is_empty(c))
        declared = [column for column in self.schema.columns if column.name in rows.columns]
        written = [c.name for c in declared if _is_written(c, rows.schema[c.name])]
        if not written:
            return rows, None
        values, broken = self.schema.from_text(
            pl.DataFrame([category_text(rows[n]) for n in written])
        )
        return rows.with_columns(values.get_columns()), broken

    # ---- signature ---------------------------------------------------------------------------

    def types(self) -> dict[str, str]:
        """What the schema says of the columns that scoring needs; else what the encoder knows."""
        if self.schema is None:
            kinds = {False: "number", True: "category"}
            return {c.name: kinds[c.is_categorical] for c in self.scorer.model.encoder.columns_}
        found = {column.name: column.type for column in self.schema.columns}
        return {name: found[name] for name in self.scorer.columns(found)}

    def inputs(self) -> list[SignatureColumn]:
        """Columns of a table to be scored."""
        if self.schema is None:
            return [SignatureColumn(name, "any", True) for name in self.types()]
        needed = self.schema.needed(labelled=False)
        declared = {column.name: column for column in self.schema.columns}
        return [
            SignatureColumn(name, _kind(declared[name]), name in needed) for name in self.types()
        ]

    def outputs(self) -> list[SignatureColumn]:
        """Columns of its scores, learned from a table without rows."""
        inputs = {column.name: column for column in self.inputs()}
        keys = [inputs[name] for name in self._keys(inputs)]
        nothing = pl.DataFrame(schema=dict.fromkeys(inputs, pl.Null))
        found = self.scorer.score(nothing).ruled().drop("_row", *(key.name for key in keys))
        answers = [
            SignatureColumn(answer.name, _kind_of_answer(answer.dtype), answer.dtype == pl.Boolean)
            for answer in found
        ]
        return keys + answers


def _kind(column: Column) -> str:
    is_everywhere = column.required or column.role == "key"
    return "string" if column.type == "string" and is_everywhere else "any"


def _kind_of_answer(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return "strings"
    return {pl.Boolean(): "boolean", pl.String(): "string"}.get(dtype, "double")


def _is_empty(values: pl.Series) -> bool:
    gaps = values.is_null()
    return bool((gaps | values.is_nan() if values.dtype.is_float() else gaps).all())


def _is_written(column: Column, dtype: pl.DataType) -> bool:
    """Whether values are written in another form than the schema's, such as 0 and 1 for false."""
    if column.type == "boolean":
        return dtype == pl.String or dtype.is_numeric()
    return column.type != "string" and dtype == pl.String


def _as_pandas(answers: pl.Series, index: pd.Index) -> pd.Series:
    """Give answers the type that they have whether a row was refused or not."""
    import pandas as pd

    if answers.dtype.is_numeric():
        return pd.Series(answers.cast(pl.Float64).to_numpy(), index, name=answers.name)
    kind = "bool" if answers.dtype == pl.Boolean else "object"
    return pd.Series(answers.to_list(), index, kind, answers.name)
