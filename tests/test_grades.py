"""Rating grades."""

import numpy as np
import pytest

from riskmtl.grades import MASTER_SCALE, grades_of


def test_a_grade_holds_its_upper_bound_and_not_the_lower() -> None:
    bounds = np.array(MASTER_SCALE)
    assert grades_of(bounds).tolist() == list(range(1, len(bounds) + 1))
    assert grades_of(np.nextafter(bounds[:-1], 1)).tolist() == list(range(2, len(bounds) + 1))
    assert grades_of(np.array([0.0, 1.0])).tolist() == [1, len(bounds)]


@pytest.mark.parametrize("bounds", [(), (0.5,), (0.5, 0.2, 1.0), (0.0, 1.0), (0.5, 0.5, 1.0)])
def test_bounds_must_ascend_to_one(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending upper bounds that end in 1"):
        grades_of(np.array([0.5]), bounds)
