"""How far explanations move with the background."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from riskmtl import MultiTaskClassifier
from riskmtl.explain.explanation import Explanation
from riskmtl.explain.sensitivity import compare_backgrounds
from riskmtl.schema import Split


@pytest.fixture(scope="module")
def three(trained: MultiTaskClassifier, parts: Split) -> list[Explanation]:
    kept, rows = trained.model_.background, parts.test.head(3)
    inputs = trained.model_.schema.inputs(rows)
    from riskmtl.explain.attribution import explain_rows

    return [explain_rows(trained.model_, inputs, kept[start::3]) for start in range(3)]


def by_hand(three: list[Explanation], head: int) -> tuple[float, float, float]:
    """Moved, error and agreement of one head, pair by pair and row by row."""
    moved, size, error, common = [], [], [], []
    for first, second in ((0, 1), (0, 2), (1, 2)):
        a, b = three[first], three[second]
        for row in range(len(a)):
            x, y = a.values[row, :, head], b.values[row, :, head]
            moved.append(((x - y) ** 2).sum())
            top = [
                {i for i in sorted(range(len(v)), key=lambda i, v=v: -v[i])[:4] if v[i] > 0}
                for v in (x, y)
            ]
            common.append(len(top[0] & top[1]) / max(len(top[0]), len(top[1])))
    for e in three:
        size += [(e.values[row, :, head] ** 2).sum() for row in range(len(e))]
        error += [(e.errors[row, :, head] ** 2).sum() for row in range(len(e))]
    whole = np.sqrt(np.mean(size))
    return (
        float(np.sqrt(np.mean(moved)) / whole),
        float(np.sqrt(2 * np.mean(error)) / whole),
        float(np.mean(common)),
    )


def test_figures_are_those_of_the_definition(three: list[Explanation]) -> None:
    found = compare_backgrounds(three)
    assert found.heads["head"].to_list() == three[0].heads
    for head, line in enumerate(found.heads.iter_rows(named=True)):
        expected = by_hand(three, head)
        np.testing.assert_allclose([line[n] for n in ("moved", "error", "top")], expected)
        bases = [e.base[head] for e in three]
        assert line["base_range"] == pytest.approx(max(bases) - min(bases))
    assert found.backgrounds == [e.background for e in three]
    assert len(set(found.backgrounds)) == 3


def test_lines_of_features_belong_to_their_heads(three: list[Explanation]) -> None:
    found = compare_backgrounds(three).features
    line = found.filter(head="fraud", feature="txn_declined_count").row(0, named=True)
    place = slice(None), three[0].features.index("txn_declined_count"), 1
    assert line["value"] == pytest.approx(np.mean([np.abs(e.values[place]) for e in three]))
    assert found.height == len(three[0].features) * len(three[0].heads)


def test_the_same_background_moves_nothing(three: list[Explanation]) -> None:
    found = compare_backgrounds([three[0], three[0]])
    assert found.heads["moved"].to_list() == [0, 0, 0]
    assert found.heads["top"].to_list() == [1, 1, 1]
    assert found.features["moved"].max() == 0


def test_nothing_adverse_agrees(three: list[Explanation]) -> None:
    nothing = [replace(e, values=-np.abs(e.values)) for e in three[:2]]
    assert compare_backgrounds(nothing).heads["top"].to_list() == [1, 1, 1]


def test_backgrounds_are_thirds_of_the_models_own_or_given(
    trained: MultiTaskClassifier, parts: Split, three: list[Explanation]
) -> None:
    rows = parts.test.head(3)
    own = trained.explain_sensitivity(rows)
    assert own.backgrounds == [e.background for e in three]
    options: dict[str, Any] = {"heads": ["fraud"], "groups": {"device": ["dev_os", "dev_model"]}}
    given = trained.explain_sensitivity(
        rows, backgrounds=[parts.train.head(9), parts.train.tail(9)], **options
    )
    assert given.heads["head"].to_list() == ["fraud"]
    assert "device" in given.features["feature"].to_list()
    assert given.heads["moved"][0] > own.heads["moved"][1], "few rows move more than many"
    with pytest.raises(ValueError, match="at least two backgrounds"):
        trained.explain_sensitivity(rows, backgrounds=[parts.train.head(9)])
