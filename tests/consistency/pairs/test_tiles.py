from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency import crossed, labelled
from retrieval.consistency.pairs.tiles import slices, tiles_of
from retrieval.errors import InvalidInput
from tests.consistency.conftest import tile_of


@given(
    n=st.integers(2, 12),
    n_gallery=st.one_of(st.none(), st.integers(1, 12)),
    size=st.integers(1, 15),
    count=st.integers(1, 4),
)
def test_shards_hold_every_pair_once(n: int, n_gallery: int | None, size: int, count: int) -> None:
    """Of one set those above the diagonal, of two sets all, for any size of tile and number of shards."""
    query, labels = np.eye(n, 12, dtype=np.float32), ["a"] + ["b"] * (n - 1)
    vectors = labelled(query, labels)
    if n_gallery is not None:
        vectors = crossed(query, labels, np.eye(n_gallery, 12, dtype=np.float32), ["a"] * n_gallery)
    met = np.zeros((n, n_gallery or n), dtype=np.int64)
    with tile_of(size):
        for index in range(count):
            for tile in tiles_of(vectors, (index, count)):
                assert met[tile].size <= size**2
                met[tile] += 1
    expected = np.ones_like(met) if n_gallery else np.triu(np.ones_like(met), k=1)
    np.testing.assert_array_equal(met if n_gallery else np.triu(met, k=1), expected)


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_impossible_shards_are_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="expected 0 <= shard index < count, found shard"):
        tiles_of(labelled(np.eye(2, dtype=np.float32), ["a", "b"]), shard)


def test_slices_cover_the_rows_in_order() -> None:
    with tile_of(4):
        assert list(slices(3, 12)) == [slice(3, 7), slice(7, 11), slice(11, 12)]
        assert list(slices(5, 5)) == []
