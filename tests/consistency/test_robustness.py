from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency import crossed, decision_flips, labelled
from retrieval.errors import InvalidEmbeddings, InvalidInput
from tests.consistency.conftest import tile_of


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def noisy(rows, amount, rng):
    return unit(rows + amount * rng.normal(size=rows.shape))


def by_definition(query, gallery, new_query, new_gallery, labels, threshold, side):
    """Counts by (true pair, accepted clean, accepted now)."""
    counts = dict.fromkeys(itertools.product((True, False), repeat=3), 0)
    for i, j in itertools.permutations(range(len(labels)), 2):
        if side == "both" and labels[i] + str(i) > labels[j] + str(j):
            continue
        clean = float(query[i] @ gallery[j]) >= threshold
        now = float(new_query[i] @ (gallery if side == "query" else new_gallery)[j]) >= threshold
        counts[labels[i] == labels[j], clean, now] += 1
    return counts


@pytest.mark.parametrize("tile", [4, 7, 1000])
def test_flips_agree_with_one_pair_at_a_time(family, tile: int) -> None:
    rng = np.random.default_rng(0)
    rows, labels = family(rng, n_classes=6, n_images=4, crowding=0.7)
    changed = noisy(rows, 0.1, rng)
    with tile_of(tile):
        result = decision_flips(labelled(rows, labels), {"noise": labelled(changed, labels)}, 0.35)
    for flips in result.flips:
        counts = by_definition(rows, rows, changed, changed, labels, 0.35, flips.sides)
        for share, true, clean in (
            (flips.lost, True, True),
            (flips.won, True, False),
            (flips.gained, False, False),
            (flips.dropped, False, True),
        ):
            assert share.count == counts[true, clean, not clean]
            assert share.total == counts[true, clean, True] + counts[true, clean, False]
            assert share.rate in share.interval
        n_true = sum(v for (true, _, _), v in counts.items() if true)
        assert flips.tar == (counts[True, True, True] + counts[True, False, True]) / n_true
        assert flips.tar_clean == (counts[True, True, True] + counts[True, True, False]) / n_true
    assert [flips.sides for flips in result.flips] == ["query", "both"]


def test_a_score_that_is_not_cosine_is_perturbed_on_the_side_it_says(family) -> None:
    rng = np.random.default_rng(1)
    rows, labels = family(rng, n_classes=5, n_images=3)
    changed = noisy(rows, 0.1, rng)

    def sides(vectors):
        density, ones = vectors.mean(axis=1, keepdims=True), np.ones((len(vectors), 1), dtype=np.float32)
        return np.hstack([vectors, -density / 2, ones]), np.hstack([vectors, ones, -density / 2])

    (query, gallery), (new_query, new_gallery) = sides(rows), sides(changed)
    vectors, copies = labelled(query, labels, gallery=gallery), labelled(new_query, labels, gallery=new_gallery)
    result = decision_flips(vectors, {"n": copies}, 0.5)
    for flips in result.flips:
        counts = by_definition(query, gallery, new_query, new_gallery, labels, 0.5, flips.sides)
        assert flips.lost.count == counts[True, True, False]
    assert decision_flips(vectors, {"n": copies}, 0.5, sides=["query"]).flips == result.flips[:1]
    with pytest.raises(InvalidEmbeddings, match=r"the same score as the clean images, found \(15, 34\) and cosine"):
        decision_flips(vectors, {"n": labelled(unit(new_query), labels)}, 0.5)


def test_identical_copies_flip_nothing_and_more_noise_loses_more(family) -> None:
    rng = np.random.default_rng(2)
    rows, labels = family(rng, n_classes=20, n_images=4)
    copies = {"none": rows.copy(), "little": noisy(rows, 0.05, rng), "much": noisy(rows, 0.3, rng)}
    perturbed = {name: labelled(copy, labels) for name, copy in copies.items()}
    with tile_of(32):
        result = decision_flips(labelled(rows, labels), perturbed, 0.4, sides=["query"])
    none, little, much = result.flips
    assert none.lost.count == none.won.count == none.gained.count == none.dropped.count == 0
    assert (none.tar, none.far) == (none.tar_clean, none.far_clean)
    assert 0 < little.lost.rate < much.lost.rate


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), threshold=st.floats(-0.5, 0.9))
def test_order_and_names_change_no_count_and_what_is_lost_comes_back(seed: int, threshold: float) -> None:
    """Counts do not depend on the order of images or the names of classes; swapped, clean and perturbed swap roles."""
    rng = np.random.default_rng(seed)
    # multiples of a power of two: products are exact, so that no score depends on the order of its sum
    rows = np.eye(6, dtype=np.float32)[rng.integers(6, size=14)]
    changed = np.eye(6, dtype=np.float32)[rng.integers(6, size=14)]
    labels = [f"c{code}" for code in rng.integers(4, size=12)] + ["c0", "c1"]
    mixed = rng.permutation(14)

    def counts(clean, copies, names):
        perturbed = {"x": labelled(copies, names)}
        with tile_of(5):
            flips = decision_flips(labelled(clean, names), perturbed, threshold, sides=["both"]).flips[0]
        return [share.count for share in (flips.lost, flips.won, flips.gained, flips.dropped)]

    lost, won, gained, dropped = counts(rows, changed, labels)
    assert counts(rows[mixed], changed[mixed], [f"other {labels[i]}" for i in mixed]) == [lost, won, gained, dropped]
    assert counts(changed, rows, labels) == [won, lost, dropped, gained]


def test_nothing_accepted_is_nothing_lost(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=4, n_images=2)
    vectors = labelled(rows, labels)
    lost = decision_flips(vectors, {"none": vectors}, 1.5).flips[0].lost
    assert (lost.total, lost.rate, lost.interval.low, lost.interval.high) == (0, 0, 0, 1)


def test_copies_that_do_not_fit_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=4, n_images=2)
    vectors, other = labelled(rows, labels), [*labels[1:], labels[0]]
    with pytest.raises(InvalidEmbeddings, match="perturbed copies fewer: expected vectors of the same images"):
        decision_flips(vectors, {"fewer": labelled(rows[:-1], labels[:-1])}, 0.5)
    with pytest.raises(InvalidEmbeddings, match="perturbed copies moved: expected vectors of the same images"):
        decision_flips(vectors, {"moved": labelled(rows, other)}, 0.5)
    with pytest.raises(InvalidInput, match="expected a finite threshold, sides among query, both"):
        decision_flips(vectors, {"none": vectors}, 0.5, sides=["gallery"])
    for impossible in (crossed(rows, labels, rows, labels), labelled(rows, labels, exclude=(labels,))):
        with pytest.raises(InvalidInput, match=r"one set of images|without excluded pairs"):
            decision_flips(impossible, {"same": impossible}, 0.5)
