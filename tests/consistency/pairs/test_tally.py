from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.pairs import tally as module
from retrieval.consistency.pairs.tally import PairTally


def test_tally_joins_what_it_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BUFFERED", 50)
    rng = np.random.default_rng(1)
    keys = rng.integers(20, size=1000)
    tally = PairTally()
    for part in np.array_split(keys, 13):
        tally.add(part)
    np.testing.assert_array_equal(tally.counts(), np.unique(keys, return_counts=True))
    assert [len(part) for part in PairTally().counts()] == [0, 0]
