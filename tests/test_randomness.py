"""A generator set back for a while goes on afterwards as if nobody had."""

from __future__ import annotations

import pytest
import torch

from riskmtl.training.randomness import RandomState


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_drawn_is_drawn_again_and_nothing_else_moves(fails: bool) -> None:
    torch.manual_seed(0)
    before = RandomState.of(torch.device("cpu"))
    first, second = torch.rand(3), torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    try:
        with before.again():
            again = torch.rand(3)
            torch.rand(5)
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert torch.equal(again, first)
    assert torch.equal(torch.rand(3), second)


def test_nothing_remembered_sets_nothing_back() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with RandomState().again():
        assert torch.equal(torch.rand(3), expected)
