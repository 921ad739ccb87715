"""Some of very many rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from riskmtl.reference import Bins
from riskmtl.spread import spread


@given(rows=st.integers(0, 500), most=st.integers(1, 60))
def test_one_row_of_each_stretch(rows: int, most: int) -> None:
    found = spread(rows, most)
    stretch = max(1, -(-rows // most))
    np.testing.assert_array_equal(found // stretch, np.arange(-(-rows // stretch)))
    assert len(found) <= most
    assert (found < rows).all()


def test_bins_of_a_reference_are_those_of_all_rows_that_take_turns() -> None:
    values = np.arange(900_000, dtype=np.float64)
    values[::4] += 10_000_000
    counts = Bins.of_numbers("amount", values).counts
    np.testing.assert_allclose(counts[:-1], 90_000, rtol=0.05)
