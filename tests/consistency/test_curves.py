from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import OperatingCurves, crossed, labelled, operating_curves, threshold_grid
from retrieval.consistency.pairs.batches import scored_pairs
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import tile_of

# Whole numbers make every float32 product exact, so that order and tiling cannot change a bit.
whole = st.integers(-4, 4).map(np.float32)
drawn = st.tuples(
    arrays(np.float32, (10, 3), elements=whole),
    st.lists(st.sampled_from("abcd"), min_size=10, max_size=10).filter(lambda labels: len(set(labels)) > 1),
)
THRESHOLDS = np.array([-8.5, -2.0, 0.0, 3.0, 7.5])
FIELDS = ("n_images", "thresholds", "positives_accepted", "negatives_accepted", "positives", "negatives")


def assert_equal(left: OperatingCurves, right: OperatingCurves) -> None:
    assert (left.classes, left.cosine) == (right.classes, right.cosine)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field), err_msg=field)


def scores_as_distances(base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query and gallery whose product is symmetric but no cosine: a . b - (|a| + |b|) as in a cohort score."""
    size = np.abs(base).sum(axis=1, keepdims=True)
    one = np.ones_like(size)
    return np.hstack([base, -size, one]), np.hstack([base, one, -size])


def reference_counts(query: np.ndarray, gallery: np.ndarray, labels: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Accepted (positives, negatives) of each class at each threshold, one pair at a time."""
    counts = {name: [[0, 0] for _ in THRESHOLDS] for name in sorted(set(labels))}
    for i, j in itertools.combinations(range(len(labels)), 2):
        score = float(np.dot(query[i], gallery[j]))
        for column, threshold in enumerate(THRESHOLDS):
            if score >= threshold:
                if labels[i] == labels[j]:
                    counts[labels[i]][column][0] += 1
                else:
                    counts[labels[i]][column][1] += 1
                    counts[labels[j]][column][1] += 1
    return {name: [(p, n) for p, n in rows] for name, rows in counts.items()}


def test_three_vectors_by_hand() -> None:
    """a: one positive at 0.8; negatives at 0 and 0.6; b has no positive and is left out of TAR."""
    rows = np.array([[1, 0], [0, 1], [0.8, 0.6]], dtype=np.float32)
    curves = operating_curves((rows, ["a", "b", "a"]), thresholds=[0.9, 0.5, 0.0])
    assert curves.classes == ("a", "b")
    assert curves.thresholds.tolist() == [0.0, 0.5, 0.9]
    assert curves.positives.tolist() == [1, 0]
    assert curves.negatives.tolist() == [2, 2]
    assert curves.tar.tolist() == [[1, 1, 0]]
    assert curves.far.tolist() == [[1, 0.5, 0], [1, 0.5, 0]]
    assert curves.pooled_far.tolist() == curves.mean_far.tolist() == [1, 0.5, 0]
    assert curves.pooled_tar.tolist() == curves.mean_tar.tolist() == [1, 1, 0]
    assert (curves.n_excluded, curves.n_negative_pairs, curves.cosine) == (1, 2, True)


@settings(deadline=None)
@given(data=drawn, tile=st.integers(1, 12))
def test_counts_agree_with_one_pair_at_a_time(data: tuple[np.ndarray, list[str]], tile: int) -> None:
    query, gallery = scores_as_distances(data[0])
    labels = data[1]
    with tile_of(tile):
        curves = operating_curves(labelled(query, labels, gallery=gallery), thresholds=THRESHOLDS)
    accepted = np.stack([curves.positives_accepted, curves.negatives_accepted], axis=2)
    expected = reference_counts(query, gallery, labels)
    assert curves.classes == tuple(expected)
    np.testing.assert_array_equal(accepted, list(expected.values()))


@settings(deadline=None)
@given(data=drawn, order=st.permutations(range(10)))
def test_order_and_names_do_not_matter(data: tuple[np.ndarray, list[str]], order: list[int]) -> None:
    query, gallery = scores_as_distances(data[0])
    labels = data[1]
    whole_curves = operating_curves(labelled(query, labels, gallery=gallery), thresholds=THRESHOLDS)
    renamed = ["class " + labels[row] for row in order]
    shuffled = operating_curves(labelled(query[order], renamed, gallery=gallery[order]), thresholds=THRESHOLDS)
    assert shuffled.classes == tuple("class " + name for name in whole_curves.classes)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(shuffled, field), getattr(whole_curves, field), err_msg=field)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shards_add_up_to_the_whole_bit_for_bit(count: int, family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=30, n_images=5)
    vectors = labelled(rows, labels)
    grid = threshold_grid(vectors, n_band=50)
    with tile_of(32):
        shards = [operating_curves(vectors, thresholds=grid, shard=(index, count)) for index in range(count)]
        whole_curves = operating_curves(vectors, thresholds=grid)
    merged = shards[0]
    for shard in shards[1:]:
        merged += shard
    assert_equal(merged, whole_curves)


def test_rates_never_rise_with_the_threshold(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=12, n_images=4)
    curves = operating_curves((rows, labels))
    assert (np.diff(curves.tar, axis=1) <= 0).all()
    assert (np.diff(curves.far, axis=1) <= 0).all()
    assert (np.diff(curves.thresholds) > 0).all()
    assert 1000 <= len(curves.thresholds) <= 1100


def test_curves_of_other_images_or_thresholds_do_not_merge(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=4, n_images=3)
    curves = operating_curves((rows, labels), thresholds=[0.1, 0.5])
    for other in (
        operating_curves((rows, labels), thresholds=[0.1, 0.6]),
        operating_curves((rows[1:], labels[1:]), thresholds=[0.1, 0.5]),
        operating_curves(labelled(rows, labels, gallery=rows * np.float32(2)), thresholds=[0.1, 0.5]),
    ):
        with pytest.raises(InvalidInput, match="merge"):
            curves + other


def test_curves_at_one_threshold_are_a_column() -> None:
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    curves = operating_curves((rows, ["a", "a", "b"]), thresholds=[0.1, 0.5, 0.9])
    assert_equal(curves.at(0.5), operating_curves((rows, ["a", "a", "b"]), thresholds=[0.5]))
    for elsewhere in (0.4, 2.0):
        with pytest.raises(InvalidInput, match="not among the 3 thresholds"):
            curves.at(elsewhere)


def test_table_round_trip_and_cut_table(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=4, n_images=3)
    curves = operating_curves((rows, labels), thresholds=[0.1, 0.5, 0.7])
    table = curves.to_table()
    assert_equal(OperatingCurves.from_table(table), curves)
    with pytest.raises(InvalidInput, match="cut or re-sorted"):
        OperatingCurves.from_table({name: column[:-1] for name, column in table.items()})


def test_parquet_round_trip_and_other_bytes(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=4, n_images=3)
    curves = operating_curves((rows, labels), thresholds=[0.1, 0.5, 0.7])
    assert_equal(OperatingCurves.from_parquet(curves.to_parquet()), curves)
    with pytest.raises(InvalidInput, match="expected a Parquet file"):
        OperatingCurves.from_parquet(b"no parquet")


names = st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=10, max_size=10)


@pytest.mark.slow
@settings(deadline=None)
@given(data=drawn, makers=names, ids=names, tile=st.integers(1, 12), threads=st.integers(1, 3))
def test_excluded_pairs_are_not_counted(
    data: tuple[np.ndarray, list[str]], makers: list[str], ids: list[str], tile: int, threads: int
) -> None:
    """A pair that shares a maker, or an id, is no pair; the empty name is shared with none."""
    query, gallery = scores_as_distances(data[0])
    labels = data[1]
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(10), 2)
        if not (makers[i] == makers[j] != "") and not (ids[i] == ids[j] != "")
    ]
    if not any(labels[i] == labels[j] for i, j in pairs):
        return
    vectors = labelled(query, labels, gallery=gallery, exclude=(makers, ids))
    with tile_of(tile):
        curves = operating_curves(vectors, thresholds=THRESHOLDS, threads=threads)
        scores = np.concatenate([batch.scores for batch in scored_pairs(vectors)])
        shards = [operating_curves(vectors, thresholds=THRESHOLDS, shard=(index, 2)) for index in range(2)]
    check_against(curves, [(query[i] @ gallery[j], labels[i], labels[j]) for i, j in pairs])
    assert sorted(scores.tolist()) == sorted(float(query[i] @ gallery[j]) for i, j in pairs)
    assert_equal(shards[0] + shards[1], curves)


def check_against(curves: OperatingCurves, scored: list[tuple[float, str, str]]) -> None:
    """Compare with pairs (score, class of one end, class of the other), one at a time."""
    for row, name in enumerate(curves.classes):
        positives = [score for score, one, other in scored if one == other == name]
        negatives = [score for score, one, other in scored if one != other and name in (one, other)]
        for counts, total, scores in (
            (curves.positives_accepted, curves.positives, positives),
            (curves.negatives_accepted, curves.negatives, negatives),
        ):
            assert total[row] == len(scores)
            assert counts[row].tolist() == [sum(score >= t for score in scores) for t in curves.thresholds]


@settings(deadline=None)
@given(
    query=arrays(np.float32, (7, 3), elements=whole),
    gallery=arrays(np.float32, (5, 3), elements=whole),
    labels=st.lists(st.sampled_from("abc"), min_size=12, max_size=12),
    ids=st.lists(st.sampled_from(["", "1", "2"]), min_size=12, max_size=12),
    tile=st.integers(1, 8),
)
def test_queries_meet_a_gallery(
    query: np.ndarray, gallery: np.ndarray, labels: list[str], ids: list[str], tile: int
) -> None:
    """Every query with every gallery image but those of the same id, each once."""
    of_query, of_gallery = labels[:7], labels[7:]
    pairs = [(i, j) for i in range(7) for j in range(5) if not (ids[i] == ids[7 + j] != "")]
    if len(set(labels)) < 2 or not any(of_query[i] == of_gallery[j] for i, j in pairs):
        return
    exclude = {"exclude": (ids[:7],), "gallery_exclude": (ids[7:],)}
    vectors = crossed(query, of_query, gallery, of_gallery, cosine=False, **exclude)
    with tile_of(tile):
        curves = operating_curves(vectors, thresholds=THRESHOLDS)
    check_against(curves, [(query[i] @ gallery[j], of_query[i], of_gallery[j]) for i, j in pairs])
    assert curves.n_images.sum() == 12


def test_query_and_gallery_must_fit_each_other(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=4, n_images=3)
    for arguments, message in (
        ((rows, labels, rows[:, :5], labels), "of 32 columns, found 5"),
        ((rows, labels, rows * np.float32(2), labels), "gallery_vectors"),
        ((rows, labels, rows, labels[1:]), "11 labels for 12 rows"),
    ):
        with pytest.raises(InvalidEmbeddings, match=message):
            crossed(*arguments)
    with pytest.raises(InvalidEmbeddings, match="as many columns to exclude by"):
        crossed(rows, labels, rows, labels, exclude=(labels,))
    with pytest.raises(InvalidEmbeddings, match="found 2 for 12 rows"):
        labelled(rows, labels, exclude=(["a", "b"],))
    with pytest.raises(NotEnoughEvidence, match="make a pair"):
        operating_curves(labelled(rows, labels, exclude=(["one maker"] * 12,)), thresholds=[0.5])


def test_threads_change_nothing_and_progress_counts_every_tile(family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=60, n_images=4)
    seen: list[tuple[int, int]] = []
    vectors = labelled(rows, labels)
    grid = threshold_grid(vectors, n_band=50)
    with tile_of(32):
        alone = operating_curves(vectors, thresholds=grid, threads=1)
        many = operating_curves(
            vectors, thresholds=grid, threads=4, progress=lambda done, total: seen.append((done, total))
        )
    assert_equal(many, alone)
    assert seen == [(done, 36) for done in range(1, 37)]
    with pytest.raises(InvalidInput, match="threads must be at least 1"):
        operating_curves(vectors, thresholds=grid, threads=0)


def test_any_thresholds_are_exact(family) -> None:
    """Crowded, huge and tied thresholds, and scores that equal them, are told apart to the last bit."""
    rows, labels = family(np.random.default_rng(8), n_classes=10, n_images=4)
    scores = np.unique((rows @ rows.T)[np.triu_indices(40, k=1)])
    near = np.concatenate([np.nextafter(scores, np.float32(-2)), scores, np.nextafter(scores, np.float32(2))])
    thresholds = np.unique(np.concatenate([near.astype(np.float64), [-1e30, -3.0, 5.0, 1e30]]))
    curves = operating_curves((rows, labels), thresholds=thresholds)
    # One tile holds all rows, so these products are those that were counted.
    every = (rows @ rows.T)[np.triu_indices(40, k=1)]
    expected = [int((every >= threshold).sum()) for threshold in thresholds]
    counted = curves.positives_accepted.sum(axis=0) + curves.negatives_accepted.sum(axis=0) // 2
    assert counted.tolist() == expected


def test_grid_from_a_sample_covers_the_band_with_exact_counts(family) -> None:
    """11,000 images: thresholds come from a fifth of them, counts from all."""
    rows, labels = family(np.random.default_rng(9), n_classes=2200, n_images=5, dimension=8, spread=0.3)
    curves = operating_curves((rows, labels))
    far = curves.pooled_far
    assert far[0] > 0.1
    assert far[-1] == 0
    assert np.count_nonzero((far >= 0.01) & (far <= 0.1)) > 500
    some = curves.thresholds[::200]
    exact = operating_curves((rows, labels), thresholds=some)
    np.testing.assert_array_equal(exact.negatives_accepted, curves.negatives_accepted[:, ::200])


def test_no_positive_pair_bad_thresholds_and_bare_shards_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=4, n_images=2)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        operating_curves((rows[::2], labels[::2]))
    for thresholds in ([], [0.5, float("nan")]):
        with pytest.raises(InvalidInput, match="threshold"):
            operating_curves((rows, labels), thresholds=thresholds)
    with pytest.raises(InvalidInput, match="shards must share thresholds"):
        operating_curves((rows, labels), shard=(0, 2))


def test_included_thresholds_are_counted_with_the_chosen_ones(family) -> None:
    """The grid and its counts stay as they are; the further threshold gets the counts that it has alone."""
    vectors = labelled(*family(np.random.default_rng(0), n_classes=20, n_images=4))
    plain, more = operating_curves(vectors), operating_curves(vectors, include=[0.4321])
    kept = more.thresholds != 0.4321
    assert np.array_equal(more.thresholds[kept], plain.thresholds)
    assert np.array_equal(more.negatives_accepted[:, kept], plain.negatives_accepted)
    alone = operating_curves(vectors, thresholds=[0.4321])
    assert np.array_equal(more.at(0.4321).positives_accepted, alone.positives_accepted)
    assert np.array_equal(more.at(0.4321).negatives_accepted, alone.negatives_accepted)


def test_shards_of_other_tiles_are_refused_and_those_of_one_tile_add_up(family) -> None:
    """Shards cut at 7 and at 16 rows overlap: their sum counted some pairs twice and others never."""
    rows, labels = family(np.random.default_rng(40), n_classes=9, n_images=5)
    whole = operating_curves((rows, labels), thresholds=THRESHOLDS)
    shards = {}
    for size in (7, 16):
        with tile_of(size):
            shards[size] = [operating_curves((rows, labels), thresholds=THRESHOLDS, shard=(i, 2)) for i in (0, 1)]
    for first, second in shards.values():
        total = OperatingCurves.from_parquet(first.to_parquet()) + second
        assert total.negatives.tolist() == whole.negatives.tolist()
        assert total.positives_accepted.tolist() == whole.positives_accepted.tolist()
    with pytest.raises(InvalidInput, match="tiles of one size, found 7 and 16"):
        shards[7][0] + shards[16][1]
    with pytest.raises(InvalidInput, match="tiles of one size, found None and 7"):
        whole + shards[7][0]
