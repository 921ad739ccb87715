"""Charts are sound XML within their frame, whatever the values."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from riskmtl.validation.figure import Dots, Line, bars, dots, heatmap, lines

WORDS = {"key": "k", "title": "A <b> & c", "alt": "three 'values'"}
VALUES = arrays(
    np.float64,
    st.integers(1, 12),
    elements=st.floats(allow_nan=True, allow_infinity=False, width=64),
)


def inside(svg: str) -> None:
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert "nan" not in svg
    assert "inf" not in svg
    for path in root.iter("path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
            assert -1 <= float(x) <= width + 1
            assert -1 <= float(y) <= height + 1
    for mark in [*root.iter("circle"), *root.iter("rect")]:
        x = float(mark.attrib.get("cx", mark.attrib.get("x", "0")))
        assert -4 <= x <= width + 1


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_any_values_stay_in_the_frame(values: np.ndarray) -> None:
    count = len(values)
    band = Line("one", np.arange(count), values, low=values, high=values, dots=True)
    inside(lines([band, band], x_label="x", y_label="y", **WORDS))
    names = [f"name {i}" for i in range(count)]
    inside(bars(names, values, low=values, high=values, x_label="x", **WORDS))
    inside(dots(names, [Dots("a", values, values, values)], reference=0, x_label="x", **WORDS))
    inside(heatmap(names, ["c"], values[:, None], signed=True, **WORDS))


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


def test_a_gap_breaks_the_curve() -> None:
    svg = lines([Line("a", np.arange(4), np.array([0, 1, np.nan, 1]))], x_label="x", y_label="y",
                **WORDS)  # fmt: skip
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


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        lines([Line("a", np.arange(2), np.arange(3))], x_label="x", y_label="y", **WORDS)
    with pytest.raises(ValueError, match="one per name"):
        bars(["a"], np.arange(2), x_label="x", **WORDS)
    with pytest.raises(ValueError, match="shape"):
        heatmap(["a"], ["b"], np.zeros((2, 2)), **WORDS)
