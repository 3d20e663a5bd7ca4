"""The brute force that the benchmark of the exact index trusts equals float64, and sees each kind of wrong answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from retrieval.engine.index.index import Hits
from tests.bench.measuring.brute_force import Difference, Truth, brute_force

THRESHOLD = 0.25


def _truth() -> Truth:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 24)).astype(np.float32)
    rows[:, 8:] *= np.float32(0.3)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[400:420] = rows[:20]  # equal scores
    return brute_force(rows, rows[480:] * np.float32(1.5), THRESHOLD - 0.2, lambda done, total: None)


def _right(truth: Truth, number: int, threshold: float) -> Hits:
    scores = (truth.gallery.astype(np.float64) @ truth.queries[number].astype(np.float64)).astype(np.float32)
    positions = np.flatnonzero(scores.astype(np.float64) >= threshold)
    return Hits(positions, scores[positions])


def test_the_expected_rows_are_those_of_float64() -> None:
    truth = _truth()
    for number in range(len(truth.queries)):
        assert np.array_equal(truth.expected(number, THRESHOLD), _right(truth, number, THRESHOLD).positions)


def test_a_stored_score_is_a_score_of_the_gallery_on_either_side() -> None:
    truth = _truth()
    stored = [truth.stored_score(number, THRESHOLD) for number in range(len(truth.queries))]
    assert all(score in _right(truth, number, -9.0).scores for number, score in enumerate(stored))
    assert {score is not None and score >= THRESHOLD for score in stored} == {True, False}


@pytest.mark.parametrize(
    ("change", "missed", "wrong"),
    [
        (lambda hits: hits, 0, 0),
        (lambda hits: Hits(hits.positions[1:], hits.scores[1:]), 1, 0),
        (lambda hits: Hits(np.append(hits.positions, hits.positions[0]), np.append(hits.scores, hits.scores[0])), 0, 1),
        (lambda hits: Hits(hits.positions, np.append(np.nextafter(hits.scores[:1], 9), hits.scores[1:])), 0, 1),
    ],
)
def test_each_kind_of_wrong_answer_is_counted(change: Callable[[Hits], Hits], missed: int, wrong: int) -> None:
    truth, difference = _truth(), Difference()
    difference.add(truth, 0, THRESHOLD, change(_right(truth, 0, THRESHOLD)))
    assert (difference.missed, difference.wrong) == (missed, wrong)


def test_the_lowest_match_counts_at_a_threshold_equal_to_its_score() -> None:
    truth, difference = _truth(), Difference()
    hits = _right(truth, 0, THRESHOLD)
    lowest = int(np.argmin(hits.scores))
    threshold = float(hits.scores[lowest])
    above = np.delete(np.arange(len(hits.scores)), lowest)
    difference.add(truth, 0, threshold, hits)
    assert (difference.missed, difference.wrong) == (0, 0)
    difference.add(truth, 0, threshold, Hits(hits.positions[above], hits.scores[above]))
    assert (difference.missed, difference.wrong) == (1, 0)
