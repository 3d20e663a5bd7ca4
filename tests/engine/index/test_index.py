"""Recall is the share of the expected hits that were found."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.engine.index.index import Hits, recall


def hits(*positions: int) -> Hits:
    return Hits(np.array(positions, dtype=np.int64), np.zeros(len(positions), dtype=np.float32))


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ([hits(1, 2), hits(3)], [hits(2, 1), hits(3)], 1.0),
        ([hits(1), hits()], [hits(1, 2), hits(3, 4)], 0.25),
        ([hits(1, 7), hits(3)], [hits(1), hits(2)], 0.5),
        ([hits(5)], [hits()], 1.0),
        ([], [], 1.0),
    ],
)
def test_recall_is_counted_over_all_queries(found: list[Hits], expected: list[Hits], share: float) -> None:
    """Each query's hits are compared with its own; nothing expected is nothing missed."""
    assert recall(found, expected) == share
