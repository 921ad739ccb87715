"""The words that a customer reads for a reason, from a YAML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from riskmtl.encoding import EncodedColumn
from riskmtl.errors import unknown_name
from riskmtl.schema import DataSchema
from riskmtl.yaml_file import Node, read_yaml


class WordingError(ValueError):
    """A mistake in a file of reasons; the message names the file, the place and the remedy."""


class _Node(Node):
    error = WordingError


@dataclass(frozen=True, slots=True)
class Reason:
    """
    What is said where a column or group is a reason. Where there are no words, nothing is said.

    Parameters
    ----------
    code : str
    high, low : str
        Where the value is above the background's median, or not.
    missing : str
        Where there is no value.
    """

    code: str
    high: str = ""
    low: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class ReasonTable:
    """
    Words per column or group; a feature without an entry is never a reason.

    Parameters
    ----------
    heads : tuple of str
        Heads whose reasons are for customers.
    reasons : mapping of str to Reason
    groups : mapping of str to tuple of str
        Columns that are explained as one.

    Examples
    --------
    >>> ReasonTable(("default",), {"income": Reason("01", low="Income is low")}).reasons["income"]
    Reason(code='01', high='', low='Income is low', missing='')
    """

    heads: tuple[str, ...]
    reasons: Mapping[str, Reason]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Sixteen digits that tell one table from another."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def require_fit(
        self, head: str, columns: Sequence[EncodedColumn], schema: DataSchema | None
    ) -> None:
        """
        Refuse words that do not go with a model.

        Parameters
        ----------
        head : str
            Whose reasons are asked for.
        columns : sequence of EncodedColumn
            Of the model.
        schema : DataSchema, optional
            Of the model.

        Raises
        ------
        ValueError
            If the head's reasons are not for customers, or an entry names no column of the model,
            a protected one, or has words for a high or low value of what is no number.
        """
        if head not in self.heads:
            raise ValueError(
                f"words are for the head {', '.join(self.heads)}, and {head!r} is asked for: "
                "leave words out for the reasons of analysts"
            )
        by_name = {column.name: column for column in columns}
        known = [*by_name, *self.groups]
        protected = [c.name for c in schema.columns if c.protected] if schema else []
        for name, reason in self.reasons.items():
            members = self.groups.get(name, (name,))
            for column in members:
                if column in protected:
                    raise ValueError(f"words: {column!r} is protected and can be no reason")
                if column not in by_name:
                    raise ValueError(f"words: {unknown_name('column', column, known)}")
            is_number = name in by_name and not by_name[name].is_categorical
            if reason.high != reason.low and not is_number:
                raise ValueError(f"words: {name!r} is no number, it has text and not high or low")


def load_reasons(path: str | Path) -> ReasonTable:
    """
    Read the words for reasons from a YAML file.

    Parameters
    ----------
    path : str or Path
        A file as those in ``data_schemas/reasons/``.

    Returns
    -------
    ReasonTable

    Raises
    ------
    WordingError
        If the file is absent, is not YAML, or holds a mistake.
    """
    root = _Node(read_yaml(path, WordingError), str(path), ("heads", "reasons", "groups"))
    groups = _mapping(root, "groups")
    reasons = _mapping(root, "reasons")
    if not reasons:
        root.fail("key 'reasons' is missing: give the words of at least one column")
    for name in groups:
        if name not in reasons:
            root.fail(f"group {name!r} has no words: add it to reasons")
    return ReasonTable(
        heads=tuple(str(head) for head in root.as_codes(root.items("heads"), "heads")),
        reasons={
            name: _reason(value, f"{path}: reasons: {name}") for name, value in reasons.items()
        },
        groups={name: _members(root, name, value) for name, value in groups.items()},
    )


def _mapping(node: Node, key: str) -> Mapping[str, Any]:
    value = node.values.get(key, {})
    if not isinstance(value, Mapping):
        node.fail(f"{key} must be a mapping of names, got {value!r}")
    return {str(name): entry for name, entry in value.items()}


def _members(root: Node, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        root.fail(f"group {name!r} must be a list with at least one column, got {value!r}")
    return tuple(str(column) for column in value)


def _reason(value: Any, place: str) -> Reason:
    node = _Node(value, place, ("code", "text", "high", "low", "missing"))
    text = node.text("text", "")
    reason = Reason(
        code=node.text("code"),
        high=node.text("high", text),
        low=node.text("low", text),
        missing=node.text("missing", text),
    )
    if not (reason.high or reason.low or reason.missing):
        node.fail("there are no words: give text, or high, low or missing")
    return reason
