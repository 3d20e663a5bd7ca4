from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency import (
    Division,
    SearchRound,
    crossed,
    divide,
    in_rounds,
    labelled,
    operating_curves,
    strangers,
)
from retrieval.consistency.curves import count_accepted
from retrieval.consistency.pairs import selection
from retrieval.consistency.pairs.selection import one_pass_grid, threshold_grid, thresholds_at_far
from retrieval.consistency.pairs.vectors import check_one_population
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import tile_of
from tests.searches import search_rounds, searched, uneven

SIZES = [1, 2, 3, 4, 5, 1, 7, 2]


@given(
    labels=st.lists(st.sampled_from("abcd"), max_size=40), n_rounds=st.integers(1, 4), seed=st.integers(0, 2**32 - 1)
)
@settings(deadline=None)
def test_each_image_is_a_query_or_an_item_of_each_round(labels: list[str], n_rounds: int, seed: int) -> None:
    """And of a class of n images floor(n / 2) are queries, in every round, in any order of the images."""
    divisions = divide(labels, n_rounds, rng=np.random.default_rng(seed))
    assert len(divisions) == n_rounds
    for division in divisions:
        assert sorted([*division.queries, *division.items]) == list(range(len(labels)))
        assert (np.diff(division.queries) > 0).all()
        assert (np.diff(division.items) > 0).all()
        for name in "abcd":
            n = labels.count(name)
            assert sum(labels[row] == name for row in division.queries) == n // 2
            assert sum(labels[row] == name for row in division.items) == n - n // 2


def test_every_split_of_a_class_is_as_likely() -> None:
    """Of three images each is the query as often: 3,000 rounds know a third to 0.009."""
    drawn = np.concatenate([d.queries for d in divide(["a", "a", "a"], 3000, rng=np.random.default_rng(0))])
    assert np.bincount(drawn) / 3000 == pytest.approx([1 / 3] * 3, abs=0.035)


def test_no_round_is_refused() -> None:
    with pytest.raises(InvalidInput, match="n_rounds: expected at least 1, found 0"):
        divide(["a"], 0, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInput, match="at least one round, found none"):
        in_rounds(["a", "b"], [])


UNIT = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], dtype=np.float32)
LABELS = ["b", "a", "b", "a"]


def of(queries: list[int], items: list[int]) -> SearchRound:
    return SearchRound(Division(np.array(queries), np.array(items)), UNIT[queries], UNIT[items])


def test_two_rounds_by_hand() -> None:
    """Round 0: images 0 (b) and 1 (a) ask 2 (b) and 3 (a); round 1 the other way round."""
    vectors = in_rounds(LABELS, [of([0, 1], [2, 3]), of([2, 3], [0, 1])])
    assert vectors.classes == ("a", "b")
    assert vectors.order.tolist() == [1, 0, 3, 2]
    assert vectors.gallery_order.tolist() == [3, 2, 1, 0]
    assert vectors.positives.tolist() == [2, 2]
    assert vectors.negatives.tolist() == [4, 4]
    assert (vectors.n_positives, vectors.n_negatives) == (4, 4)
    assert vectors.n_images.tolist() == [2, 2]
    # Four pairs of images of two classes; in both rounds 1 meets 2, 0 meets 3.
    assert (vectors.repeats, vectors.positive_repeats) == (1.0, 2.0)
    assert not vectors.one_set
    curves = operating_curves(vectors, thresholds=[0.7, 0.9])  # scores: b-b 0, a-a 0.96, b-a 0.8 twice, each again
    assert curves.positives_accepted.tolist() == [[2, 2], [0, 0]]
    assert curves.negatives_accepted.tolist() == [[4, 0], [4, 0]]
    assert curves.repeats == 1.0


@pytest.mark.parametrize(
    ("rounds", "error", "message"),
    [
        ([of([0, 1], [2])], InvalidInput, "round 0: expected each of the 4 images once"),
        ([of([0, 1], [2, 3]), of([0, 1], [1, 2, 3])], InvalidInput, "round 1: expected each of the 4 images once"),
        ([of([0, 1], [2, 3]), of([0, 2], [1, 3])], InvalidInput, "as many query images of each class in every round"),
        (
            [replace(of([0, 1], [2, 3]), query=UNIT[:1])],
            InvalidEmbeddings,
            "round 0: expected 2 query vectors, as the division has, found 1",
        ),
        (
            [replace(of([0, 1], [2, 3]), gallery=UNIT[:2, :1])],
            InvalidEmbeddings,
            "expected a gallery of 2 columns, found 1",
        ),
        (
            [replace(of([0, 1], [2, 3]), query=UNIT[:2].astype(np.float64))],
            InvalidEmbeddings,
            "query vectors of round 0 must be float32",
        ),
        (
            [of([0, 1], [2, 3]), replace(of([0, 1], [2, 3]), gallery=np.full((2, 2), np.nan, np.float32))],
            InvalidEmbeddings,
            "gallery vectors of round 1 must be finite",
        ),
    ],
)
def test_unusable_rounds_are_refused(rounds: list[SearchRound], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        in_rounds(LABELS, rounds)


def test_unusable_labels_and_families_are_refused() -> None:
    rounds = [of([0, 1], [2, 3])]
    with pytest.raises(NotEnoughEvidence, match="at least 2 classes, found 1"):
        in_rounds(["a"] * 4, rounds)
    with pytest.raises(InvalidEmbeddings, match="one family per label, found 1 for 4"):
        in_rounds(LABELS, rounds, families=["x"])
    with pytest.raises(InvalidInput, match="all images of a class in one family"):
        in_rounds(LABELS, rounds, families=["x", "x", "y", "x"])


@pytest.mark.parametrize("tile", [3, 1024])
def test_counts_are_those_of_every_pair_of_a_query_and_an_item(tile: int, family) -> None:
    """Of each round, in unequal classes of one image and more, in any order of the caller; tiles change nothing."""
    rows, labels = uneven(*family(np.random.default_rng(0), n_classes=8, n_images=7, spread=0.4), SIZES)
    order = np.random.default_rng(1).permutation(len(labels))
    rows, labels = rows[order], [labels[row] for row in order]
    vectors, pairs = searched(rows, labels)
    thresholds = np.array([-0.2, 0.1, 0.3, 0.6])
    with tile_of(tile):
        curves = operating_curves(vectors, thresholds=thresholds)
    every = np.ones(len(pairs.scores), dtype=bool)
    for column, threshold in enumerate(thresholds):
        for counted, positives, negatives in (
            (every, curves.positives, curves.negatives),
            (pairs.scores >= np.float32(threshold), curves.positives_accepted[:, column],
             curves.negatives_accepted[:, column]),
        ):  # fmt: skip
            by_classes = pairs.by_classes(counted, 8)
            assert positives.tolist() == by_classes.diagonal().tolist()
            across = by_classes - np.diag(by_classes.diagonal())
            assert negatives.tolist() == (across.sum(axis=0) + across.sum(axis=1)).tolist()
    assert vectors.n_images.tolist() == curves.n_images.tolist() == SIZES
    n_queries, n_items = [size // 2 for size in SIZES], [size - size // 2 for size in SIZES]
    assert vectors.sizes.queries.tolist() == n_queries
    assert vectors.sizes.items.tolist() == n_items
    assert vectors.sizes.factor == 3
    # Two classes of one image never meet.
    n_pairs = sum(a * b for i, a in enumerate(SIZES) for b in SIZES[:i] if max(a, b) > 1)
    assert vectors.repeats == pytest.approx(vectors.n_negatives / n_pairs)
    assert curves.repeats == max(vectors.repeats, 1)
    assert vectors.positive_repeats == pytest.approx(vectors.n_positives / sum(n * (n - 1) // 2 for n in SIZES))


def test_shards_of_rounds_add_up(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=6, n_images=5)
    vectors, _ = searched(rows, labels)
    with tile_of(7):
        whole = operating_curves(vectors, thresholds=[0.1, 0.3])
        parts = [operating_curves(vectors, thresholds=[0.1, 0.3], shard=(part, 3)) for part in range(3)]
    total = parts[0] + parts[1] + parts[2]
    np.testing.assert_array_equal(total.positives_accepted, whole.positives_accepted)
    np.testing.assert_array_equal(total.negatives_accepted, whole.negatives_accepted)
    np.testing.assert_array_equal(total.negatives, whole.negatives)


def test_thresholds_are_exact_against_sorted_scores(family) -> None:
    """The lowest threshold whose FAR, over the pairs of all rounds, keeps each target."""
    rows, labels = uneven(*family(np.random.default_rng(3), n_classes=8, n_images=7), SIZES)
    vectors, pairs = searched(rows, labels)
    negatives = np.sort(pairs.scores[pairs.query != pairs.item])[::-1]
    fars = [0.0, 1 / len(negatives), 0.05, 0.37, 0.99]
    for far, found in zip(fars, thresholds_at_far(vectors, fars), strict=True):
        allowed = int(np.floor(far * len(negatives) + 1e-9))
        # A product of other tiles may differ in the last digit.
        assert found == pytest.approx(np.nextafter(negatives[allowed], np.float32(9)), abs=1e-6)


def test_one_round_holds_its_own_pairs(family) -> None:
    rows, labels = uneven(*family(np.random.default_rng(4), n_classes=8, n_images=7), SIZES)
    vectors, pairs = searched(rows, labels)
    for number in range(3):
        one = vectors.one_round(number)
        found = operating_curves(one, thresholds=[0.2])
        inside = pairs.round == number
        accepted = pairs.by_classes(inside & (pairs.scores >= np.float32(0.2)), 8)
        assert found.positives_accepted[:, 0].tolist() == accepted.diagonal().tolist()
        assert found.negatives_accepted.sum() == 2 * (accepted.sum() - accepted.trace())
        assert one.n_images.tolist() == SIZES
        assert one.classes == vectors.classes
        assert (one.sizes.factor, one.repeats) == (1, 1)


def test_a_symmetric_score_gives_the_rates_of_one_set(family) -> None:
    """Each pair of images counts in half of the rounds: 40 rounds differ by chance alone."""
    rows, labels = family(np.random.default_rng(5), n_classes=30, n_images=6, spread=0.3)
    rounds = search_rounds(rows, labels, 40, np.random.default_rng(0), pull=0)
    searches, once = in_rounds(labels, rounds), labelled(rows, labels)
    assert searches.repeats == pytest.approx(40 / 2)
    assert searches.positive_repeats == pytest.approx(40 * 9 / 15)  # 3 queries and 3 items, 15 pairs
    found, expected = (operating_curves(vectors, thresholds=[0.2, 0.4]) for vectors in (searches, once))
    # A class meets 40 * 3 * 3 of its pairs, each of which is known exactly: the error is that of the splits.
    np.testing.assert_allclose(found.pooled_tar, expected.pooled_tar, atol=0.01)
    np.testing.assert_allclose(found.pooled_far, expected.pooled_far, rtol=0.03)


def test_families_and_order_of_images_are_kept(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=6, n_images=4)
    names = [f"family {int(label.split()[1]) // 2}" for label in labels]
    vectors, _ = searched(rows, labels, families=names)
    assert vectors.families is not None
    assert vectors.families.tolist() == [0, 0, 1, 1, 2, 2]
    assert vectors.n_families == 3
    np.testing.assert_array_equal(vectors.query, rows[vectors.order])


def test_strangers_meet_every_item_of_another_class(family) -> None:
    rows, labels = uneven(*family(np.random.default_rng(7), n_classes=8, n_images=7), SIZES)
    gallery = np.roll(rows, 1, axis=1)  # a score that depends on which of the two is the query
    vectors = strangers(rows, gallery, labels, families=["one" if row < 3 else "" for row in range(len(labels))])
    codes = np.repeat(np.arange(8), SIZES)
    differs = codes[:, None] != codes
    assert vectors.n_positives == 0
    assert vectors.n_negatives == differs.sum()
    assert vectors.n_families == 7
    accepted = (rows @ gallery.T >= np.float32(0.1)) & differs
    found = count_accepted(vectors, np.array([0.1])).negatives_accepted[:, 0]
    assert found.tolist() == [
        accepted[codes == code].sum() + accepted[:, codes == code].sum() for code in range(8)
    ]  # fmt: skip


def test_other_pairs_of_two_sets_are_no_population() -> None:
    check_one_population(in_rounds(LABELS, [of([0, 1], [2, 3])]))
    with pytest.raises(InvalidInput, match="expected one set of images"):
        check_one_population(crossed(UNIT, LABELS, UNIT, LABELS))
    with pytest.raises(InvalidInput, match="without excluded pairs"):
        check_one_population(labelled(UNIT, LABELS, exclude=(["", "", "x", "x"],)))


def test_a_grid_from_a_part_of_a_round_covers_the_band(family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a part of one set: the counts at its thresholds reach beyond both ends of the band, and above."""
    monkeypatch.setattr(selection, "_PILOT_IMAGES", 200)
    rows, labels = family(np.random.default_rng(8), n_classes=200, n_images=8, spread=0.3)
    one = searched(rows, labels, 1)[0].one_round(0)
    grid = one_pass_grid(one, far_low=1e-2, far_high=1e-1, n_band=100)
    assert not np.array_equal(grid, threshold_grid(one, far_low=1e-2, far_high=1e-1, n_band=100))
    far = count_accepted(one, grid).pooled_far
    assert far[0] > 0.1
    assert far[-1] == 0
    assert np.count_nonzero((far > 0.01) & (far < 0.1)) > 50
