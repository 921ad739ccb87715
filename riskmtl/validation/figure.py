"""Charts as inline SVG in the page's colours, with alt texts, small at any number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_POINTS = 200
_FEWEST_POINTS = 60
_WIDEST_NAME = 26
_WIDEST_DATE = 10
_WIDEST_LEGEND = 16
_ROW = 22
_CELL = 34  # of a width for -0.25
_FEWEST_LETTERS = 9  # of a row's name, however many columns there are
_DIGITS = (3, 4, 5)  # of ticks: as few as tell them apart
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve of a chart, with a band from ``low`` to ``high``; NaN is a gap."""

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Dots:
    """Marks with intervals, one per row of a chart."""

    name: str
    values: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    start: float
    end: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.start), self.end)
        return self.first + (inside - self.start) / (self.end - self.start) * (
            self.last - self.first
        )


def lines(
    series: Sequence[Line],
    *,
    key: str,
    title: str,
    alt: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    marks: Sequence[float] = (),
    percent_x: bool = False,
    percent_y: bool = False,
    dates: Sequence[str] | None = None,
    width: int = 360,
    height: int = 260,
) -> str:
    """
    Draw curves.

    Parameters
    ----------
    series : sequence of Line
    key : str
        Different for each figure of a page.
    title, alt : str
    x_label, y_label : str
    x_range, y_range : tuple of float, optional
        Default: that of the values.
    diagonal : bool
        Whether to draw the line of equal values.
    marks : sequence of float
        Places of vertical lines.
    percent_x, percent_y : bool
    dates : sequence of str, optional
        Names of the places 0, 1, … on the horizontal axis, cut short where they are long.
    width, height : int

    Returns
    -------
    str
        SVG.

    Raises
    ------
    ValueError
        If a curve's lengths differ.

    Examples
    --------
    >>> svg = lines([Line("a", np.arange(3), np.arange(3))], key="k", title="t", alt="a line",
    ...             x_label="x", y_label="y")
    >>> svg.count('class="line')
    1
    """
    for one in series:
        parts = [one.x, one.y, *(end for end in (one.low, one.high) if end is not None)]
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"line {one.name!r} has values of different lengths")
    legend, top = "", 28
    if len(series) > 1:
        names, dashes = (
            [one.name for one in series],
            [_dash(one, i) for i, one in enumerate(series)],
        )
        legend, rows = _legend(names, 52, width, dashes)
        top += 16 * rows
    xs = [np.asarray(one.x, dtype=np.float64) for one in series]
    ys = [np.asarray(v, dtype=np.float64) for one in series for v in (one.y, one.low, one.high)
          if v is not None]  # fmt: skip
    x = _Scale(*(x_range or _range(xs)), 52, width - 22)
    y = _Scale(*(y_range or _range(ys, room=0.06)), height - 40, top)
    body = [_axes(x, y, width, height, percent_x, percent_y, dates, x_label, y_label)]
    if diagonal:
        low, high = max(x.start, y.start), min(x.end, y.end)
        body.append(
            f'<path class="aside" d="M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}"/>'
        )
    for mark in filter(math.isfinite, marks):
        body.append(f'<path class="aside" d="M{x(mark):.1f} {y.first:.1f}V{y.last:.1f}"/>')
    outlines = sum(1 if one.low is None or one.high is None else 3 for one in series)
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, 320 // max(outlines, 1)))
    for number, one in enumerate(series):
        body.append(_curve(one, number, x, y, most))
    return _svg([*body, legend], key, title, alt, width, height)


def bars(
    names: Sequence[str],
    values: NDArray[Any],
    *,
    key: str,
    title: str,
    alt: str,
    x_label: str,
    low: NDArray[Any] | None = None,
    high: NDArray[Any] | None = None,
    width: int = 360,
) -> str:
    """
    Draw horizontal bars with whiskers from `low` to `high`; parameters as in :func:`lines`.

    Parameters
    ----------
    names : sequence of str
    values, low, high : ndarray of shape (names,)

    Raises
    ------
    ValueError
        If names and values differ in length.
    """
    _require_rows(names, [values, *(e for e in (low, high) if e is not None)])
    ends = [np.asarray(v, dtype=np.float64) for v in (values, low, high, [0.0]) if v is not None]
    left, height = _left(names), 46 + _ROW * len(names) + 18
    texts = [_number(value) for value in values]
    x = _Scale(*_range(ends), left, width - 16 - 6.3 * max(map(len, texts), default=0))
    body = [_rows(names, left), _x_axis(x, height, x_label, width)]
    for row, value in enumerate(np.asarray(values, dtype=np.float64)):
        if not math.isfinite(value):
            continue
        middle = _middle(row)
        first, last = sorted((x(0), x(value)))
        body.append(
            f'<rect class="f0" x="{first:.1f}" y="{middle - 6}" width="{last - first:.1f}" '
            f'height="12" rx="1.5"/>'
        )
        if low is not None and high is not None:
            body.append(_whisker(x, low[row], high[row], middle, "axis"))
        body.append(f'<text class="tick" text-anchor="end" x="{width - 6}" y="{middle + 4}">'
                    f"{texts[row]}</text>")  # fmt: skip
    return _svg(body, key, title, alt, width, height)


def dots(
    names: Sequence[str],
    groups: Sequence[Dots],
    *,
    key: str,
    title: str,
    alt: str,
    x_label: str,
    reference: float | None = None,
    width: int = 360,
) -> str:
    """
    Draw marks with intervals, a row per name; parameters as in :func:`lines`.

    Raises
    ------
    ValueError
        If names and values differ in length.
    """
    for group in groups:
        _require_rows(names, [group.values, group.low, group.high])
    ends = [np.asarray(v, dtype=np.float64) for g in groups for v in (g.values, g.low, g.high)]
    if reference is not None:
        ends.append(np.array([reference]))
    left, legend, shift = _left(names), "", 0
    if len(groups) > 1:
        legend, rows = _legend([group.name for group in groups], 8, width)
        shift = 16 * rows
    step = max(_ROW, 9 * len(groups) + 8)
    height = 46 + shift + step * len(names) + 18
    x = _Scale(*_range(ends, room=0.04), left, width - 14)
    body = [_rows(names, left, shift=shift, step=step), _x_axis(x, height, x_label, width)]
    body.append(_reference(x, reference, 26 + shift, height))
    for number, group in enumerate(groups):
        colour = number % len(_DASHES)
        for row in range(len(names)):
            value = float(group.values[row])
            if not math.isfinite(value):
                continue
            middle = _middle(row, shift=shift, step=step) + 9 * (number - (len(groups) - 1) / 2)
            body.append(_whisker(x, group.low[row], group.high[row], middle, f"s{colour}"))
            body.append(_mark(number, x(value), middle))
    return _svg([*body, legend], key, title, alt, width, height)


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[Any],
    *,
    key: str,
    title: str,
    alt: str,
    signed: bool = False,
    percent: bool = False,
    width: int = 360,
) -> str:
    """
    Draw a table whose cells are as strong as their values; parameters as in :func:`lines`.

    Parameters
    ----------
    rows, columns : sequence of str
    values : ndarray of shape (rows, columns)
    signed : bool
        Whether values below nought have a colour of their own.
    percent : bool

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (len(rows), len(columns)):
        raise ValueError(f"values have shape {found.shape}, not {(len(rows), len(columns))}")
    left = min(_left(rows), max(16 + 6.3 * _FEWEST_LETTERS, width - 14 - _CELL * len(columns)))
    wide, top = (width - 14 - left) / max(len(columns), 1), 44
    height = top + _ROW * len(rows) + 10
    known = np.abs(found[np.isfinite(found)])
    strongest = float(known.max()) if len(known) and known.max() > 0 else 1.0
    body = [
        f'<text class="tick" text-anchor="middle" x="{left + (i + 0.5) * wide:.1f}" y="{top - 6}">'
        f"{name}</text>"
        for i, name in enumerate(_cut_all(columns, max(2, int(wide / 7.5))))
    ]
    for i, name in enumerate(_cut_all(rows, int((left - 15.9) / 6.3))):
        y = top + _ROW * i
        body.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{y + 15}">'
                    f"{name}</text>")  # fmt: skip
        for j, value in enumerate(found[i]):
            if not math.isfinite(value):
                continue
            colour = "f1" if signed and value < 0 else "f0"
            body.append(
                f'<rect class="{colour}" x="{left + j * wide:.1f}" y="{y}" width="{wide - 1:.1f}" '
                f'height="{_ROW - 1}" fill-opacity="{0.55 * abs(value) / strongest:.2f}"/>'
            )
            text = _cell(value, percent, wide)
            is_room = found.size <= 150 and wide > 6 * len(text)
            if is_room and not (percent and value < 0.005):
                body.append(f'<text text-anchor="middle" x="{left + (j + 0.5) * wide:.1f}" '
                            f'y="{y + 15}">{text}</text>')  # fmt: skip
    return _svg(body, key, title, alt, width, height)


# --- Parts ----------------------------------------------------------------------------------------


def _svg(body: Sequence[str], key: str, title: str, alt: str, width: int, height: int) -> str:
    place = escape("-".join(key.split()))
    shown = _cut(title, int(width / 7.4))  # it is bold
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" aria-labelledby="{place}-t {place}-d">'
        f'<title id="{place}-t">{escape(title)}</title><desc id="{place}-d">{escape(alt)}</desc>'
        f'<text class="title" x="8" y="16">{shown}</text>{"".join(body)}</svg>'
    )


def _range(values: Sequence[NDArray[np.float64]], room: float = 0.0) -> tuple[float, float]:
    known = np.concatenate([np.empty(0), *(np.ravel(v)[np.isfinite(np.ravel(v))] for v in values)])
    if not len(known):
        return 0.0, 1.0
    low, high = (float(np.clip(end, -1e12, 1e12)) for end in (known.min(), known.max()))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        spread = max(abs(low) * 0.1, 0.5)
        return low - spread, high + spread
    return low - room * (high - low), high + room * (high - low)


def _ticks(start: float, end: float, most: int) -> list[float]:
    """Round values of steps 1, 2 or 5."""
    raw = (end - start) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(start / step - 1e-9)
    found = [step * (first + i) for i in range(most + 2)]
    return [value for value in found if value <= end + 1e-9 * step]


def _told_apart(values: Sequence[float], percent: bool = False) -> list[tuple[float, str]]:
    """Values with texts that differ, as far as there is room for digits."""
    for digits in _DIGITS:
        texts = [_number(value, percent, digits) for value in values]
        if len(set(texts)) == len(texts):
            break
    return list(zip(values, texts, strict=True))


def _number(value: float, percent: bool = False, digits: int = _DIGITS[0]) -> str:
    if percent:
        return f"{100 * min(max(float(value), -1e300), 1e300):.{digits}g}%"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _axes(
    x: _Scale,
    y: _Scale,
    width: int,
    height: int,
    percent_x: bool,
    percent_y: bool,
    dates: Sequence[str] | None,
    x_label: str,
    y_label: str,
) -> str:
    parts = []
    for value, text in _told_apart(_ticks(y.start, y.end, 5), percent_y):
        at = y(value)
        parts.append(f'<path class="grid" d="M{x.first:.0f} {at:.1f}H{x.last:.0f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{x.first - 5:.0f}" y="{at + 4:.1f}">'
                     f"{text}</text>")  # fmt: skip
    if dates is None:
        shown = _told_apart(_ticks(x.start, x.end, 5), percent_x)
    else:
        wide = max(30, 10 * min(max(map(len, dates), default=0), _WIDEST_DATE))
        every = math.ceil(len(dates) * wide / (x.last - x.first))
        places = range(0, len(dates), max(1, every))
        shown = [(float(i), _cut(dates[i], _WIDEST_DATE)) for i in places]
    for value, text in shown:
        anchor = "end" if x.last - x(value) < 2 and len(text) > 5 else "middle"
        parts.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x(value):.1f}" y="{y.first + 15:.0f}">'
            f"{text}</text>"
        )
    parts.append(f'<path class="axis" d="M{x.first:.0f} {y.first:.0f}H{x.last:.0f}"/>')
    parts.append(f'<text class="label" text-anchor="end" x="{x.last:.0f}" y="{height - 8}">'
                 f"{escape(x_label)}</text>")  # fmt: skip
    parts.append(f'<text class="label" x="8" y="{height - 8}">↑ {escape(y_label)}</text>')
    return "".join(parts)


def _cell(value: float, percent: bool, wide: float) -> str:
    """Text of a cell: of two places, without the sign of a nought, without % where it is narrow."""
    if abs(value) >= 100:
        return _number(value, percent)
    text = f"{100 * value:.0f}" if percent else f"{value:.2f}"
    text = text if float(text) else text.lstrip("-")
    return f"{text}%" if percent and wide >= 34 else text


def _x_axis(x: _Scale, height: int, label: str, width: int) -> str:
    parts = []
    for value, text in _told_apart(_ticks(x.start, x.end, 4)):
        parts.append(f'<path class="grid" d="M{x(value):.1f} {height - 38}v4"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x(value):.1f}" '
                     f'y="{height - 22}">{text}</text>')  # fmt: skip
    parts.append(f'<path class="axis" d="M{x.first:.0f} {height - 38}H{x.last:.0f}"/>')
    parts.append(f'<text class="label" text-anchor="end" x="{width - 14}" y="{height - 6}">'
                 f"{escape(label)}</text>")  # fmt: skip
    return "".join(parts)


def _curve(one: Line, number: int, x: _Scale, y: _Scale, most: int) -> str:
    colour = number % len(_DASHES)
    thin = _thinned(len(one.x), most)
    xs, ys = (np.asarray(v, dtype=np.float64)[thin] for v in (one.x, one.y))
    parts = []
    if one.low is not None and one.high is not None:
        low, high = (np.asarray(e, dtype=np.float64)[thin] for e in (one.low, one.high))
        for run in _runs(xs, low, high):
            outline = [(x(xs[i]), y(low[i])) for i in run]
            outline += [(x(xs[i]), y(high[i])) for i in reversed(run)]
            places = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
            parts.append(f'<polygon class="band f{colour}" points="{places}"/>')
    path = []
    for run in _runs(xs, ys):
        line = [(x(xs[i]), y(ys[i])) for i in run]
        path.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in line))
        # A point between two gaps has no line to be seen by.
        for a, b in line if one.dots or len(run) == 1 else ():
            parts.append(f'<circle class="f{colour}" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>')
    dash = _stroke(_dash(one, number))
    parts.append(f'<path class="line s{colour}" d="{"".join(path)}"{dash}/>')
    return "".join(parts)


def _runs(*values: NDArray[np.float64]) -> list[list[int]]:
    """Places of neighbours where all are finite."""
    known = np.flatnonzero(np.isfinite(values).all(axis=0))
    if not len(known):
        return []
    return [run.tolist() for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)]


def _thinned(count: int, most: int) -> NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _dash(one: Line, number: int) -> str:
    """Another one for the same colour, where there are more curves than colours."""
    return _DASHES[1] if one.dashed else _DASHES[(number + number // len(_DASHES)) % len(_DASHES)]


def _stroke(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _legend(
    names: Sequence[str], left: float, width: int, dashes: Sequence[str] | None = None
) -> tuple[str, int]:
    """Names beside their lines, or their marks without `dashes`; and how many rows they take."""
    parts, at, row = [], left, 0
    for number, (name, text) in enumerate(zip(names, _cut_all(names, _WIDEST_LEGEND), strict=True)):
        wide = 30 + 6.6 * min(len(name), _WIDEST_LEGEND)
        if at > left and at + wide - 10 > width:
            at, row = left, row + 1
        y = 30 + 16 * row
        if dashes is None:
            parts.append(_mark(number, at + 8, y))
        else:
            line = f'class="line s{number % len(_DASHES)}" d="M{at:.0f} {y}h16"'
            parts.append(f"<path {line}{_stroke(dashes[number])}/>")
        parts.append(f'<text x="{at + 20:.0f}" y="{y + 4}">{text}</text>')
        at += wide
    return "".join(parts), row + 1


def _mark(number: int, x: float, y: float) -> str:
    """A circle, a square, a diamond, … so that colour does not tell alone."""
    colour = number % len(_DASHES)
    if number % 3 == 0:
        return f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if number % 3 == 2 else ""
    return f'<rect class="f{colour}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"{turn}/>'


def _whisker(x: _Scale, low: float, high: float, y: float, style: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f'<path class="whisker {style}" d="M{x(low):.1f} {y:.1f}H{x(high):.1f}"/>'


def _reference(x: _Scale, value: float | None, top: int, height: int) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f'<path class="aside" d="M{x(value):.1f} {top}V{height - 38}"/>'


def _middle(row: int, *, shift: int = 0, step: int = _ROW) -> float:
    return 28 + shift + step * row + step / 2


def _rows(names: Sequence[str], left: float, *, shift: int = 0, step: int = _ROW) -> str:
    return "".join(
        f'<text text-anchor="end" x="{left - 6:.0f}" '
        f'y="{_middle(row, shift=shift, step=step) + 4:.1f}">{name}</text>'
        for row, name in enumerate(_cut_all(names, _WIDEST_NAME))
    )


def _left(names: Sequence[str]) -> float:
    return 16 + 6.3 * min(max((len(name) for name in names), default=0), _WIDEST_NAME)


def _cut(name: str, most: int, start: int = 0) -> str:
    """The name, or a part of it with the whole one as a tooltip."""
    shown = shortened(name, most, start)
    return escape(shown) if shown == name else f"{escape(shown)}<title>{escape(name)}</title>"


def _cut_all(names: Sequence[str], most: int) -> list[str]:
    return [
        _cut(name, most, start) for name, start in zip(names, parting(names, most), strict=True)
    ]


def shortened(name: str, most: int, start: int = 0) -> str:
    """
    So many letters of a name, from some place on.

    Examples
    --------
    >>> shortened("default in 12 months", 9), shortened("default in 12 months", 9, 11)
    ('default…', '…12 mont…')
    """
    shown = f"…{name[start:]}" if start else name
    return shown if len(shown) <= most else f"{shown[: most - 1].rstrip()}…"


def parting(names: Sequence[str], most: int) -> list[int]:
    """
    Where each name parts from those that would look like it, cut to so many letters; else 0.

    Examples
    --------
    >>> parting(["default in 12 months", "default in 24 months", "fraud"], 9)
    [11, 11, 0]
    """
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault(shortened(name, most), set()).add(name)
    starts = {name: _parting(group) for group in alike.values() for name in group}
    return [starts[name] for name in names]


def _parting(alike: set[str]) -> int:
    if len(alike) == 1:
        return 0
    columns = zip(*alike, strict=False)
    common = [letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, columns)]
    # At the beginning of a word, if there are words.
    return max((i + 1 for i, c in enumerate(common) if not c.isalnum()), default=len(common))


def _require_rows(names: Sequence[str], values: Sequence[NDArray[Any]]) -> None:
    if any(len(value) != len(names) for value in values):
        raise ValueError(f"{len(names)} names, but values of another length: give one per name")
