"""Pages that need neither script nor network: their templates, styles and figures as text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl

_PAGE = Path(__file__).parent / "page"


def render(template: str, *, folder: Path | None = None, **values: Any) -> str:
    """
    Fill in a template with the styles and the script that all pages share.

    Parameters
    ----------
    template : str
        File name.
    folder : Path, optional
        Where templates are looked for beside those of this room.
    **values
        What the template names.

    Returns
    -------
    str
        HTML.
    """
    from jinja2 import Environment, FileSystemLoader

    folders = [_PAGE] if folder is None else [folder, _PAGE]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell, "is_number": _is_number}
    return environment.get_template(template).render(
        style=_text("report.css") + _text("figure.css"), script=_text("report.js"), **values
    )


def cell(value: Any) -> str:
    """
    Text of a figure in a table.

    Examples
    --------
    >>> cell(0.123456), cell(1234567), cell(None), cell(float("inf"))
    ('0.1235', '1,234,567', '–', '∞')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if value and abs(value) < 1e-3:
            return f"{value:.1e}"
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric()


def _text(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")
