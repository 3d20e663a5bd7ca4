"""The interval of a recall: clustered by query, and never surer than the queries allow."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.engine.index.index import Hits
from retrieval.engine.index.recall import measured_recall


def hits(*positions: int) -> Hits:
    return Hits(np.array(positions, dtype=np.int64), np.zeros(len(positions), dtype=np.float32))


def test_a_recall_by_hand() -> None:
    """Of the 6 matches of the others, 4 are found; a query's own row, and what was not expected, do not count."""
    expected = [hits(0, 5, 6), hits(1, 7), hits(2, 5, 6, 8)]
    found = [hits(0, 5), hits(1, 7, 9), hits(2, 5, 6)]
    result = measured_recall(found, expected, np.array([0, 1, 2]))
    assert (result.n_queries, result.n_matches) == (3, 6)
    assert result.value == pytest.approx(4 / 6)
    assert measured_recall(found, expected).value == pytest.approx(7 / 9)


def test_without_a_match_nothing_is_known() -> None:
    result = measured_recall([hits(3)], [hits(3)], np.array([3]))
    assert (result.value, result.low, result.high, result.n_queries) == (1.0, 0.0, 1.0, 0)


def test_all_found_is_as_sure_as_the_number_of_queries() -> None:
    """A thousand matches of four queries show less than a hundred matches of a hundred queries."""
    few = [hits(*range(250)) for _ in range(4)]
    many = [hits(1) for _ in range(100)]
    assert measured_recall(few, few).low < 0.6 < 0.95 < measured_recall(many, many).low < 1
    assert measured_recall(many, many).high == 1


def test_the_interval_holds_if_queries_fail_as_a_whole() -> None:
    """Nine in ten queries find all of their matches, one finds none: binomial intervals would be far too narrow."""
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(400):
        sizes = rng.integers(1, 40, 100)
        expected = [hits(*range(size)) for size in sizes]
        found = [each if rng.random() < 0.9 else hits() for each in expected]
        result = measured_recall(found, expected)
        covered += result.low <= 0.9 <= result.high
        widths.append(result.high - result.low)
    assert covered / 400 > 0.92
    assert 0.08 < np.mean(widths) < 0.2
