from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import score_histograms
from retrieval.errors import InvalidInput, NotEnoughEvidence


def test_histograms_and_d_prime_agree_with_one_pair_at_a_time(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=10, n_images=4)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(40), 2):
        scores[labels[i] == labels[j]].append(float(rows[i] @ rows[j]))
    result = score_histograms(rows, labels, n_bins=20, tile=16)
    assert len(result.edges) == 21
    assert (result.within.sum(), result.between.sum()) == (60, 720)
    # A score on an edge may fall to either side: its last bit depends on how the product was computed.
    assert np.abs(result.within - np.histogram(scores[True], result.edges)[0]).sum() <= 2
    assert np.abs(result.between - np.histogram(scores[False], result.edges)[0]).sum() <= 2
    spread = np.sqrt((np.var(scores[True]) + np.var(scores[False])) / 2)
    assert result.d_prime == pytest.approx((np.mean(scores[True]) - np.mean(scores[False])) / spread, rel=1e-5)


def test_scores_without_any_spread_are_infinitely_apart() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert score_histograms(rows, ["a", "a", "b", "b"]).d_prime == np.inf
    flat = score_histograms(np.array([[1, 0]] * 3, dtype=np.float32), ["a", "a", "b"], n_bins=4)
    assert (flat.within.sum(), flat.between.sum()) == (1, 2)


def test_no_bins_or_no_positive_pair_is_refused() -> None:
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(InvalidInput, match="n_bins"):
        score_histograms(rows, ["a", "b"], n_bins=0)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        score_histograms(rows, ["a", "b"])
