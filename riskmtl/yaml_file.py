"""Reading YAML files that people write; each mistake is named with its file and place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from riskmtl.errors import unknown_name

_CODE = (str, int, float, bool)


class _Loader(yaml.SafeLoader):
    """
    Reads YAML and refuses a key that is written twice.

    ``1e-3`` is the number that it is to everybody but YAML 1.1, which wants ``1.0e-3``.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is written twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "+-0123456789"
)


def read_values(text: str) -> Any:
    """
    Read YAML.

    Parameters
    ----------
    text : str

    Returns
    -------
    object

    Raises
    ------
    yaml.YAMLError
        If it is no YAML, or has a key twice.

    Examples
    --------
    >>> read_values("{learning_rate: 1e-3, network: ple}")
    {'learning_rate': 0.001, 'network': 'ple'}
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: str | Path, error: type[ValueError]) -> Any:
    """
    Read a YAML file.

    Parameters
    ----------
    path : str or Path
    error : type
        What is raised if the file is absent, is no YAML, or has a key twice.

    Returns
    -------
    object
        What the file holds.
    """
    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as reason:
        message = " ".join(str(reason).split())
        raise error(f"{path}: not a readable YAML file ({message})") from reason


class Node:
    """
    A mapping in a file that knows where it stands.

    Parameters
    ----------
    values : mapping
    place : str
        What error messages call it.
    valid : sequence of str
        The keys that it may have.
    """

    error: ClassVar[type[ValueError]] = ValueError

    def __init__(self, values: Any, place: str, valid: Sequence[str]) -> None:
        self.place = place
        if not isinstance(values, Mapping):
            self.fail(f"expected a mapping with the keys {', '.join(valid)}, got {values!r}")
        self.values: Mapping[str, Any] = values
        for key in values:
            if key not in valid:
                self.fail(unknown_name("key", key, valid))

    def fail(self, message: str) -> NoReturn:
        """Raise the file's kind of error, with the place in front."""
        raise self.error(f"{self.place}: {message}")

    def text(self, key: str, default: str | None = None, valid: Sequence[str] = ()) -> str:
        """Read text; without a default it must be there."""
        value = self.values.get(key, default)
        if value is None:
            self.fail(f"key {key!r} is missing")
        if not isinstance(value, str):
            self.fail(f"{key} must be text, got {value!r}: put it in quotes")
        if valid and value not in valid:
            self.fail(unknown_name(key, value, valid))
        return value

    def scalar(self, key: str, kinds: tuple[type, ...], what: str) -> Any:
        """Read a value of some types, or ``None`` where the key is absent."""
        value = self.values.get(key)
        misfit = isinstance(value, bool) and bool not in kinds
        misfit |= isinstance(value, float) and not math.isfinite(value)
        if (value is None and key in self.values) or (
            value is not None and (misfit or not isinstance(value, kinds))
        ):
            self.fail(f"{key} must be {what}, got {value!r}")
        return value

    def flag(self, key: str) -> bool:
        """Read true or false; false where the key is absent."""
        return bool(self.scalar(key, (bool,), "true or false"))

    def codes(self, key: str) -> tuple[Any, ...] | None:
        """Read a value or a list of values."""
        return self.as_codes(self.values[key], key) if key in self.values else None

    def as_codes(self, value: Any, key: str) -> tuple[Any, ...]:
        """Take a value, or a list of values, for a tuple of values."""
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, _CODE):
                self.fail(f"{key} must be a value or a list of values, got {item!r}")
        return tuple(items)

    def some_codes(self, key: str) -> tuple[Any, ...] | None:
        """Read a value or a list of at least one value."""
        codes = self.codes(key)
        if codes == ():
            self.fail(f"{key} must hold at least one value")
        return codes

    def items(self, key: str) -> list[Any]:
        """Read a list of at least one entry."""
        value = self.values.get(key)
        if not isinstance(value, list) or not value:
            self.fail(f"{key} must be a list with at least one entry")
        return value
