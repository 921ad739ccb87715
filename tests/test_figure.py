"""Charts are sound XML within their frame, whatever the values."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from riskmtl.validation import figure
from riskmtl.validation.figure import Dots, Line, bars, dots, heatmap, lines

WORDS = {"key": "k", "title": "A <b> & c", "alt": "three 'values'"}
VALUES = arrays(
    np.float64,
    st.integers(1, 12),
    elements=st.floats(allow_nan=True, allow_infinity=True, width=64),
)


def inside(svg: str) -> None:
    """Each place of each mark is within the frame, and no text is of a value that is none."""
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.find("title") is not None
    assert root.find("desc") is not None
    assert not re.search(r"\b(nan|inf)\b", svg)
    for x, y in places(root):
        assert 0 <= x <= width
        assert 0 <= y <= height


def places(root: ET.Element) -> list[tuple[float, float]]:
    found = []
    for mark in root.iter():
        has = {name: float(v) for name, v in mark.attrib.items()
               if name in {"x", "y", "cx", "cy", "r", "width", "height"}}  # fmt: skip
        if mark.tag == "circle":
            found += [(has["cx"] + sign * has["r"], has["cy"] + sign * has["r"])
                      for sign in (-1, 1)]  # fmt: skip
        elif mark.tag in {"rect", "text"}:
            wide, high = has.get("width", 0), has.get("height", 0)
            found += [(has["x"], has["y"]), (has["x"] + wide, has["y"] + high)]
        elif mark.tag == "polygon":
            found += [tuple(map(float, at.split(","))) for at in mark.attrib["points"].split()]
        elif mark.tag == "path":
            found += walked(mark.attrib["d"])
    return found


def walked(path: str) -> list[tuple[float, float]]:
    found, x, y = [], 0.0, 0.0
    for pen, text in re.findall(r"([MLHVhv])([^MLHVhv]*)", path):
        ends = [float(value) for value in text.split()]
        if pen in "ML":
            x, y = ends
        elif pen in "Hh":
            x = ends[0] + (x if pen == "h" else 0)
        else:
            y = ends[0] + (y if pen == "v" else 0)
        found.append((x, y))
    return found


@settings(max_examples=60, deadline=None)
@given(VALUES)
@example(np.full(5, 0.3))
@example(np.full(3, np.nan))
@example(np.array([-1e308, 1e308]))
@example(np.array([0.0, 5e-324]))
@example(np.array([1e-305, 3e-305]))
@example(np.array([0.5, np.nan, 0.7, 0.8]))
def test_any_values_stay_in_the_frame(values: np.ndarray) -> None:
    count = len(values)
    band = Line("one", np.arange(count), values, low=values, high=values, dots=True)
    inside(lines([band] * 6, x_label="x", y_label="y", marks=(values[0],), **WORDS))
    inside(lines([Line("x", values, values)], x_label="x", y_label="y", diagonal=True, **WORDS))
    names = [f"a rather long name of the row {i}" for i in range(count)]
    inside(bars(names, np.zeros(count), low=values, high=values, x_label="x",
                **WORDS))  # fmt: skip
    inside(dots(names, [Dots("a", values, values, -values)] * 4, reference=0, x_label="x", **WORDS))
    inside(heatmap(names, ["c"], values[:, None], signed=True, **WORDS))
    inside(heatmap(["r"], names, values[None], percent=True, **WORDS))


def test_text_is_escaped_and_described() -> None:
    root = ET.fromstring(lines([Line("a", np.arange(2), np.arange(2))], x_label="<", y_label="&",
                               **WORDS))  # fmt: skip
    assert next(root.iter("title")).text == WORDS["title"]
    assert next(root.iter("desc")).text == WORDS["alt"]


def test_a_long_curve_is_thinned_with_its_ends() -> None:
    x = np.linspace(0, 1, 100_000)
    svg = lines(
        [Line("a", x, x)], x_label="x", y_label="y", x_range=(0, 1), y_range=(0, 1), **WORDS
    )
    path = re.search(r'class="line s0" d="([^"]+)"', svg)
    assert path is not None
    assert path[1].count("L") == 199
    assert path[1].startswith("M52.0 220.0")
    assert len(svg) < 6_000


def test_figures_with_bands_are_small() -> None:
    x = np.linspace(0, 1, 5000)
    svg = lines([Line("a", x, x, low=x / 2, high=x)], x_label="x", y_label="y", **WORDS)
    assert len(svg) < 6_500
    assert len(lines([Line("a", x, x)] * 3, x_label="x", y_label="y", **WORDS)) < 6_500


def test_a_gap_breaks_curve_and_band() -> None:
    y = np.array([0, 1, np.nan, 1])
    svg = lines([Line("a", np.arange(4), y, low=y, high=y)], x_label="x", y_label="y", **WORDS)
    assert svg.count("<polygon") == 2
    assert svg.count("<circle") == 1  # The last point has no neighbour to draw a line to.
    path = re.search(r'class="line s0" d="([^"]+)"', svg)
    assert path is not None
    assert path[1].count("M") == 2


def test_several_curves_have_a_legend_and_dashes() -> None:
    one, two = (Line(name, np.arange(2), np.arange(2)) for name in ("first", "second"))
    alone = lines([one], x_label="x", y_label="y", **WORDS)
    both = lines([one, two], x_label="x", y_label="y", **WORDS)
    assert "first" not in alone
    assert ">first<" in both
    assert "stroke-dasharray" in both


def test_a_legend_goes_on_below_where_it_is_too_wide() -> None:
    names = [f"a model of some name {i}" for i in range(6)]
    svg = lines([Line(name, np.arange(2), np.arange(2)) for name in names], x_label="x",
                y_label="y", **WORDS)  # fmt: skip
    starts = [(float(x), float(y)) for x, y in
              re.findall(r'<text x="(\d+)" y="(\d+)">…\d<title>a model of', svg)]  # fmt: skip
    assert len(set(starts)) == 6
    assert max(x for x, _ in starts) + 16 * 6.2 < 360


LONG = [f"credit default within {i} months of origination" for i in range(12, 20)]


def test_names_that_begin_alike_are_told_apart() -> None:
    x = np.arange(8)
    for svg in (
        lines([Line(name, x, x) for name in LONG], x_label="x", y_label="y", **WORDS),
        heatmap([*LONG, "fraud"], list("abcdefgh"), np.ones((9, 8)), **WORDS),
        heatmap(["a"], LONG, np.ones((1, 8)), **WORDS),
        bars(LONG, np.ones(8), x_label="x", **WORDS),
    ):
        shown = re.findall(r">([^<>]+)<title>credit default within \d\d months", svg)
        assert len(set(shown)) == 8, shown
        # Nothing is lost: the rest is in a tooltip.
        assert set(re.findall(r"<title>(credit [^<]*)", svg)) == set(LONG)


def test_curves_beyond_the_colours_have_other_dashes() -> None:
    x = np.arange(2)
    svg = lines([Line(str(i), x, x) for i in range(12)], x_label="x", y_label="y", **WORDS)
    drawn = re.findall(r'class="line (s\d)" d="[^"]+"( stroke-dasharray="[^"]+")?', svg)
    assert len(set(drawn[:12])) == 12


def test_ticks_are_told_apart() -> None:
    values = np.array([0.68411, 0.68589])
    svg = lines([Line("a", np.arange(2), values)], x_label="x", y_label="y", **WORDS)
    ticks = re.findall(r'class="tick" text-anchor="end"[^>]*>([^<]+)<', svg)
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)
    # No more digits than that takes.
    plain = lines([Line("a", np.arange(2), np.arange(2))], x_label="x", y_label="y", **WORDS)
    assert ">0.2<" in plain


@pytest.mark.parametrize("count", [2, 8, 12])
def test_numbers_of_cells_do_not_run_into_one_another(count: int) -> None:
    names = [f"{name} and more" for name in LONG] * 2
    names = [f"{i} {name}" for i, name in enumerate(names)][:count]
    svg = heatmap(names, names, np.full((count, count), -0.25), signed=True, **WORDS)
    cells = re.findall(r'<rect class="f1" x="[\d.]+" y="\d+" width="([\d.]+)"', svg)
    assert len(cells) == count**2
    shown = svg.count(">-0.25<")
    # Where there is no room the colour and the words must do.
    assert shown == (count**2 if count <= 8 else 0)
    assert not shown or float(cells[0]) > 6 * len("-0.25")


def test_a_long_title_ends_in_dots_within_the_frame() -> None:
    title = "w" * 100
    svg = bars(["a"], np.ones(1), x_label="x", key="k", title=title, alt="a")
    shown = re.search(r'class="title"[^>]*>(w+)…<title>', svg)
    assert shown is not None
    assert 40 < len(shown[1]) < 50


def test_a_legend_shows_the_dash_of_its_line() -> None:
    x = np.arange(2)
    svg = lines([Line("a", x, x, dashed=True), Line("b", x, x)], x_label="x", y_label="y", **WORDS)
    drawn = re.findall(r'class="line s0" d="[^"]+"( stroke-dasharray="[^"]+")?', svg)
    assert len(drawn) == 2
    assert drawn[0] == drawn[1] == ' stroke-dasharray="6 3"'


def test_a_long_name_is_cut_and_kept_as_a_tooltip() -> None:
    name = "a name of the column that is far too long <for a row>"
    root = ET.fromstring(bars([name], np.array([1.0]), x_label="x", **WORDS))
    text = next(t for t in root.iter("text") if (t.text or "").startswith("a name"))
    assert text.text == "a name of the column that…"
    assert text.findtext("title") == name


def test_bars_start_at_nought_on_either_side() -> None:
    svg = bars(["up", "down"], np.array([2.0, -1.0]), x_label="x", **WORDS)
    found = re.findall(r'<rect class="f0" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    up, down = ([float(value) for value in one] for one in found)
    assert down[0] + down[1] == pytest.approx(up[0], abs=0.11)
    assert up[1] == pytest.approx(2 * down[1], abs=0.11)


@pytest.mark.parametrize("value", [0.00341, 7.0, 123456.0])
def test_the_longest_bar_ends_before_its_number(value: float) -> None:
    svg = bars(["a"], np.array([value]), x_label="x", **WORDS)
    first, wide = map(
        float, re.search(r'<rect class="f0" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg).groups()
    )
    at, text = re.search(r'text-anchor="end" x="(354)" y="[\d.]+">([^<]+)</text>', svg).groups()
    assert first + wide + 4 < float(at) - 6.2 * len(text)


def test_cells_are_strong_by_size_and_coloured_by_sign() -> None:
    svg = heatmap(["r"], ["a", "b", "c"], np.array([[1.0, -0.5, -0.001]]), signed=True, **WORDS)
    cells = re.findall(r'<rect class="(f\d)"[^>]*fill-opacity="([\d.]+)"', svg)
    assert [colour for colour, _ in cells] == ["f0", "f1", "f1"]
    assert float(cells[0][1]) == pytest.approx(2 * float(cells[1][1]), abs=0.011)
    assert ">-0.50<" in svg
    assert ">-0.00<" not in svg
    assert svg.count("<text") == 1 + 1 + 3 + 3
    many = heatmap(["r"] * 16, ["c"] * 10, np.ones((16, 10)), **WORDS)
    assert many.count("<text") == 1 + 16 + 10


def test_every_colour_of_a_mark_has_a_style() -> None:
    style = (Path(figure.__file__).parent / "page" / "figure.css").read_text(encoding="utf-8")
    x = np.arange(2)
    svg = lines([Line("a", x, x, low=x, high=x)] * 7, x_label="x", y_label="y", **WORDS)
    used = {name for names in re.findall(r'class="([^"]+)"', svg) for name in names.split()}
    assert {"s0", "s5", "f5", "band"} <= used
    assert all(f"svg .{name} " in style or f"svg .{name}," in style for name in used)


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        lines([Line("a", np.arange(2), np.arange(3))], x_label="x", y_label="y", **WORDS)
    with pytest.raises(ValueError, match="one per name"):
        bars(["a"], np.arange(2), x_label="x", **WORDS)
    with pytest.raises(ValueError, match="shape"):
        heatmap(["a"], ["b"], np.zeros((2, 2)), **WORDS)
    with pytest.raises(ValueError, match="one per name"):
        dots(["a"], [Dots("g", np.zeros(1), np.zeros(2), np.zeros(1))], x_label="x", **WORDS)
