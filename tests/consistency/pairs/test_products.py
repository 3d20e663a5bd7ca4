from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency import float32_at_least


@given(threshold=st.floats(-3, 3), score=st.floats(-3, 3, width=32))
def test_rounded_thresholds_accept_the_same_scores(threshold: float, score: float) -> None:
    rounded = float32_at_least(np.array([threshold]))[0]
    assert (np.float32(score) >= rounded) == (score >= threshold)
