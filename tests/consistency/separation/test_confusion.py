from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency import class_confusions, labelled, most_confused
from retrieval.consistency.pairs import tiles
from retrieval.errors import InvalidInput, NotEnoughEvidence


def by_definition(query, gallery, labels, threshold):
    """(count, accepted, mean, highest, rows of the best pair) of every pair of classes."""
    found = {}
    for a, b in itertools.combinations(sorted(set(labels)), 2):
        pairs = [(i, j) for i, x in enumerate(labels) for j, y in enumerate(labels) if (x, y) == (a, b)]
        scores = [float(query[i] @ gallery[j]) for i, j in pairs]
        best = max(zip(scores, pairs, strict=True))[1]
        found[a, b] = (len(scores), sum(s >= threshold for s in scores), np.mean(scores), max(scores), best)
    return found


@pytest.mark.parametrize("tile", [3, 8, 1000])
def test_every_pair_of_classes_agrees_with_its_definition_whatever_the_tile(
    family, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles smaller than a class as well."""
    monkeypatch.setattr(tiles, "TILE", tile)
    rows, labels = family(np.random.default_rng(0), n_classes=7, n_images=5, crowding=1.0)
    mixed = np.random.default_rng(1).permutation(35)
    rows, labels = rows[mixed], [labels[i] for i in mixed]
    expected = by_definition(rows, rows, labels, 0.3)
    result = most_confused(labelled(rows, labels), 0.3, n_listed=100)
    assert len(result.pairs) == 21 == result.n_class_pairs
    for pair in result.pairs:
        n_pairs, accepted, mean, highest, best = expected[pair.first, pair.second]
        assert (pair.n_pairs, pair.n_accepted, pair.share) == (n_pairs, accepted, accepted / n_pairs)
        assert (pair.mean, pair.highest) == pytest.approx((mean, highest), abs=1e-6)
        assert (pair.examples[0].first_row, pair.examples[0].second_row) == best
        assert [example.score for example in pair.examples] == sorted((e.score for e in pair.examples), reverse=True)
        assert len(pair.examples) == 3
    assert result.n_false_accepts == sum(e[1] for e in expected.values())
    assert result.n_confused == sum(e[1] > 0 for e in expected.values())
    assert result.concentration == pytest.approx(1)


@pytest.mark.parametrize("order", ["accepted", "share", "mean", "highest"])
@pytest.mark.parametrize("n_listed", [1, 4])
def test_the_list_holds_the_worst_in_order_however_many_blocks_there_are(family, order: str, n_listed: int) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=9, n_images=4, crowding=1.0)
    column = {"accepted": 1, "mean": 2, "highest": 3}
    expected = by_definition(rows, rows, labels, 0.2)
    ranked = sorted(expected.values(), key=lambda e: (-(e[1] / e[0] if order == "share" else e[column[order]]), -e[2]))
    result = most_confused(labelled(rows, labels), 0.2, order=order, n_listed=n_listed)
    assert [pair.mean for pair in result.pairs] == pytest.approx([e[2] for e in ranked[:n_listed]], abs=1e-6)


def test_a_score_that_is_not_cosine_is_used_as_given() -> None:
    query = np.array([[1, 1], [2, 1], [3, 1]], dtype=np.float32)
    gallery = np.array([[1, 1], [1, 2], [1, 3]], dtype=np.float32)
    worst = most_confused(labelled(query, ["b", "a", "c"], gallery=gallery), 5.0, n_listed=1).pairs[0]
    # a-c: 2 * 1 + 1 * 3 = 5
    assert (worst.first, worst.second, worst.highest, worst.n_accepted) == ("a", "c", 5, 1)
    assert (worst.examples[0].first_row, worst.examples[0].second_row) == (1, 2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), low=st.floats(-1, 1), step=st.floats(0, 1))
def test_raising_the_threshold_never_adds_confusion(seed: int, low: float, step: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = [f"c{code}" for code in rng.integers(4, size=10)] + ["c0", "c1"]
    at_low, at_high = (most_confused(labelled(rows, labels), t) for t in (low, low + step))
    assert at_high.n_false_accepts <= at_low.n_false_accepts
    assert at_high.n_confused <= at_low.n_confused


def test_what_makes_no_sense_is_refused() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(InvalidInput, match="finite threshold"):
        most_confused(labelled(rows, ["a", "b", "c"]), np.nan)
    with pytest.raises(InvalidInput, match="worst"):
        most_confused(labelled(rows, ["a", "b", "c"]), 0.5, order="worst")
    with pytest.raises(NotEnoughEvidence, match="at least 2 classes"):
        most_confused(labelled(rows, ["a", "a", "a"]), 0.5)


def test_class_confusions_against_loops(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=8, n_images=4, dimension=4)
    found = class_confusions(labelled(rows, labels), 0.5, n_listed=2)
    assert list(found) == sorted(set(labels))
    for name, listed in found.items():
        counts = Counter(
            labels[j]
            for i in range(len(rows))
            for j in range(len(rows))
            if labels[i] == name != labels[j] and rows[i] @ rows[j] >= 0.5
        )
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:2]
        assert [(c.name, c.n_accepted, c.n_pairs) for c in listed] == [(other, count, 16) for other, count in expected]


def test_classes_without_confusion_and_bad_options() -> None:
    rows, labels = np.eye(4, dtype=np.float32), ["a", "a", "b", "b"]
    assert class_confusions(labelled(rows, labels), 0.5) == {"a": (), "b": ()}
    with pytest.raises(InvalidInput, match="n_listed must be"):
        class_confusions(labelled(rows, labels), 0.5, n_listed=0)
    with pytest.raises(InvalidInput, match="threshold must be finite"):
        class_confusions(labelled(rows, labels), float("nan"))
