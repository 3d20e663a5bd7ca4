from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency.pairs.sizes import PairSizes

COUNTS = arrays(np.float64, 5, elements=st.integers(0, 9).map(float))


def test_pairs_of_one_set_and_of_rounds_by_hand() -> None:
    one_set = PairSizes(np.array([2.0, 3.0]), np.array([2.0, 3.0]), 0.5)
    assert one_set.weighted(np.ones(2)).tolist() == [6, 6]
    assert one_set.with_new(4, 4).tolist() == [8, 12]
    # Three rounds: class 0 has 1 query and 1 item, class 1 has 1 query and 2 items.
    rounds = PairSizes(np.array([1.0, 1.0]), np.array([1.0, 2.0]), 3.0)
    assert rounds.weighted(np.ones(2)).tolist() == [9, 9]
    assert rounds.weighted(np.array([10.0, 1.0])).tolist() == [9, 90]  # by the weight of the other class
    assert rounds.with_new(2, 3).tolist() == [15, 21]


@given(COUNTS, COUNTS, arrays(np.float64, (5, 2), elements=st.floats(-2, 2)), st.sampled_from([0.5, 1.0, 5.0]))
def test_weights_are_summed_over_the_other_classes(queries, items, weights, factor: float) -> None:
    expected = [
        sum(factor * (queries[i] * items[j] + items[i] * queries[j]) * weights[j] for j in range(5) if j != i)
        for i in range(5)
    ]
    found = PairSizes(queries, items, factor)
    np.testing.assert_allclose(found.weighted(weights), expected, atol=1e-9)
    assert found.weighted(weights[:, 0]) == pytest.approx([row[0] for row in expected], abs=1e-9)
