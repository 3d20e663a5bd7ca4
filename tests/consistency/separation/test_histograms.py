from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from retrieval.consistency import labelled, score_histograms
from retrieval.consistency.pairs import tiles
from retrieval.consistency.separation.histograms import (
    area_under_curve,
    class_moments,
    d_prime,
    overlap_of,
    pooled_moments,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence


def scores_of(rows, labels) -> dict[bool, list[float]]:
    scores: dict[bool, list[float]] = {True: [], False: []}
    for i, j in itertools.combinations(range(len(rows)), 2):
        scores[labels[i] == labels[j]].append(float(rows[i] @ rows[j]))
    return scores


def test_histograms_and_d_prime_agree_with_one_pair_at_a_time(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=10, n_images=4)
    scores = scores_of(rows, labels)
    result = score_histograms(labelled(rows, labels), n_bins=20)
    assert len(result.edges) == 21
    assert (result.within.sum(), result.between.sum()) == (60, 720)
    # A score on an edge may fall to either side: its last bit depends on how the product was computed.
    assert np.abs(result.within - np.histogram(scores[True], result.edges)[0]).sum() <= 2
    assert np.abs(result.between - np.histogram(scores[False], result.edges)[0]).sum() <= 2
    spread = np.sqrt((np.var(scores[True]) + np.var(scores[False])) / 2)
    assert result.d_prime == pytest.approx((np.mean(scores[True]) - np.mean(scores[False])) / spread, rel=1e-5)


def test_auc_and_overlap_agree_with_their_definitions(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=12, n_images=3, crowding=0.5)
    scores = scores_of(rows, labels)
    result = score_histograms(labelled(rows, labels), n_bins=30)
    expected = roc_auc_score([True] * 36 + [False] * 594, scores[True] + scores[False])
    # the bound is exact for a pair in every shared bin; a score at a bin's edge may change its bin
    assert result.auc == pytest.approx(expected, abs=result.auc_error + 1e-4)
    assert result.auc_error < 1e-3
    shares = [np.histogram(scores[kind], result.edges)[0] / len(scores[kind]) for kind in (True, False)]
    assert result.overlap == pytest.approx(np.minimum(*shares).sum(), abs=2 / 36)
    assert result.auc in result.auc_interval


def test_intervals_leave_out_a_class_as_if_it_had_never_been_there(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=6, n_images=4, spread=0.4)
    names = sorted(set(labels))
    kept = [np.array([label != name for label in labels]) for name in names]
    without = [
        score_histograms(labelled(rows[k], [x for x, y in zip(labels, k, strict=True) if y])).d_prime for k in kept
    ]
    whole = score_histograms(labelled(rows, labels))
    error = np.sqrt(5 / 6 * np.square(np.array(without) - np.mean(without)).sum())
    half_width = 2.5706 * error  # Student's quantile with 5 degrees of freedom
    assert whole.d_prime_interval.low == pytest.approx(whole.d_prime - half_width, rel=1e-4)
    assert whole.d_prime_interval.high == pytest.approx(whole.d_prime + half_width, rel=1e-4)


def test_intervals_cover_the_population_about_as_often_as_promised(family) -> None:
    population = {"n_images": 3, "spread": 0.3, "crowding": 0.5, "dimension": 16}
    truth = score_histograms(labelled(*family(np.random.default_rng(0), n_classes=700, **population)))
    covered = np.zeros(2)
    for seed in range(100):
        drawn = score_histograms(labelled(*family(np.random.default_rng(seed + 1), n_classes=30, **population)))
        covered += truth.d_prime in drawn.d_prime_interval, truth.auc in drawn.auc_interval
    # 100 draws: the promised 95 less three standard errors of 2.2
    assert (covered >= 88).all()


def test_relabelling_and_order_change_nothing_and_the_score_need_not_be_cosine(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=8, n_images=3)
    mixed = np.random.default_rng(0).permutation(len(rows))
    density = rows.mean(axis=1, keepdims=True)
    ones = np.ones_like(density)
    query, gallery = np.hstack([rows, density, ones]), np.hstack([rows, ones, density])
    whole = score_histograms(labelled(query, labels, gallery=gallery))
    again = score_histograms(labelled(query[mixed], [f"x{labels[i]}" for i in mixed], gallery=gallery[mixed]))
    assert again.d_prime == pytest.approx(whole.d_prime, rel=1e-6)
    assert again.auc == pytest.approx(whole.auc, abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(counts=st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=2, max_size=2))
def test_auc_and_overlap_keep_their_bounds_and_symmetries(counts: list[list[int]]) -> None:
    both = np.array(counts) + np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])  # no side is empty
    assert 0 <= area_under_curve(both) <= 1
    assert 0 <= overlap_of(both) <= 1
    assert area_under_curve(both[::-1]) == pytest.approx(1 - area_under_curve(both))
    assert overlap_of(both[::-1]) == pytest.approx(overlap_of(both))
    # a single threshold between two bins errs at least as much as the distributions overlap
    shares = both / both.sum(axis=1, keepdims=True)
    errors = [shares[0, :cut].sum() + shares[1, cut:].sum() for cut in range(7)]
    assert overlap_of(both) <= min(errors) + 1e-12
    assert overlap_of(np.stack([both[0], both[0]])) == pytest.approx(1)


def test_counts_by_hand() -> None:
    counts = np.array([[0, 1, 3], [2, 1, 1]])
    # within 1 in the middle: above 2, ties 1; 3 on top: above 3, tie 1 each
    assert area_under_curve(counts) == pytest.approx((2.5 + 3 * 3.5) / 16)
    assert overlap_of(counts) == pytest.approx(0 + 0.25 + 0.25)


def test_scores_without_any_spread_are_infinitely_apart() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    apart = score_histograms(labelled(rows, ["a", "a", "b", "b"]))
    assert (apart.d_prime, apart.auc, apart.overlap) == (np.inf, 1, 0)
    assert apart.d_prime_interval is None
    flat = score_histograms(labelled(np.array([[1, 0]] * 3, dtype=np.float32), ["a", "a", "b"]), n_bins=4)
    assert (flat.within.sum(), flat.between.sum()) == (1, 2)
    assert (flat.d_prime, flat.auc, flat.overlap) == (0, 0.5, 1)


def test_no_bins_or_no_positive_pair_is_refused() -> None:
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(InvalidInput, match="n_bins"):
        score_histograms(labelled(rows, ["a", "b"]), n_bins=0)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        score_histograms(labelled(rows, ["a", "b"]))


def test_moments_agree_with_one_pair_at_a_time_whatever_the_tile(family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=5, n_images=4)
    vectors = labelled(rows, labels)
    expected = np.zeros((5, 2, 3))
    for i, j in itertools.combinations(range(20), 2):
        score, first, second = float(vectors.query[i] @ vectors.gallery[j]), vectors.codes[i], vectors.codes[j]
        for code in {first, second}:
            expected[code, int(first != second)] += 1, score, score**2
    for tile in (3, 7, 100):
        monkeypatch.setattr(tiles, "TILE", tile)
        assert class_moments(vectors) == pytest.approx(expected, abs=1e-6)
    assert expected[:, :, 0].tolist() == [[6, 64]] * 5
    assert pooled_moments(expected)[:, 0].tolist() == [30, 160]


def test_d_prime_by_hand() -> None:
    # within 1, 3: mean 2, variance 1; between -1, 1: mean 0, variance 1
    assert d_prime(np.array([[2.0, 4, 10], [2, 0, 2]])) == pytest.approx(2.0)
    # no spread: apart, alike
    assert d_prime(np.array([[[2.0, 4, 8], [2, 0, 0]], [[2.0, 4, 8], [2, 4, 8]]])).tolist() == [np.inf, 0]
