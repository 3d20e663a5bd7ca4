from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency import labelled
from retrieval.consistency.pairs.batches import accepted_pairs, scored_pairs
from tests.consistency.conftest import tile_of


@given(n=st.integers(2, 20), size=st.integers(1, 25))
def test_batches_hold_every_pair_once_with_its_own_score(n: int, size: int) -> None:
    query = np.arange(1, n + 1, dtype=np.float32)[:, None]
    gallery = query * np.float32(100)
    vectors = labelled(query, ["a"] + ["b"] * (n - 1), gallery=gallery)
    expected = sorted((i + 1) * 100.0 * (j + 1) for i, j in itertools.combinations(range(n), 2))
    with tile_of(size):
        batches = list(scored_pairs(vectors))
    assert sorted(np.concatenate([batch.scores for batch in batches]).tolist()) == expected
    assert sum(int(batch.matches.sum()) for batch in batches) == (n - 1) * (n - 2) // 2


def test_accepted_pairs_reach_the_threshold() -> None:
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    (batch,) = accepted_pairs(labelled(rows, ["a", "a", "b"]), float(np.float32(0.6)))
    assert batch.scores.tolist() == [np.float32(0.6), np.float32(0.8)]
    assert (batch.first_rows.tolist(), batch.second_rows.tolist()) == ([0, 1], [1, 2])
    assert batch.matches.tolist() == [True, False]
