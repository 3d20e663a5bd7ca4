"""Each slack of the bounds is needed: without it, one of these vectors would be dropped, though it is a match.

They have no other error: their numbers are whole multiples of the steps of their codes.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import float32_at_least
from retrieval.engine.index.exact import ranges
from retrieval.engine.index.exact.blocks import NORM_LEVELS
from retrieval.engine.index.exact.instructions import BLOCK
from retrieval.engine.index.exact.layout import directions, encode, has_offset
from retrieval.engine.index.exact.lists import Lists, _nearest, _unit, sort_into_lists
from retrieval.engine.index.exact.query import encode_query, room_for_queries
from retrieval.engine.index.exact.ranges import find_ranges
from retrieval.engine.index.exact.table import Gallery
from tests.engine.index.exact.galleries import Vectors, scores, unit

STEP = float(np.float32(0x15555) / np.float32(1 << 17))  # 17 bits: 127 times it is a float32, its square is not


def lowest_of(threshold: float) -> float:
    """The float32 before the least one that reaches the threshold."""
    return float(np.nextafter(float32_at_least(np.array([threshold]))[0], np.float32(-np.inf)))


def passing(gallery: Gallery, query: Vectors, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which vectors pass level 1, and level 2: calculated here from the codes, as docs/exact-search.md says."""
    n, encoded = len(gallery.rows), room_for_queries(gallery, 1)
    encode_query(query, lowest_of(threshold), gallery, encoded, 0)
    groups = gallery.blocks.transpose(0, 2, 1, 3).reshape(-1, gallery.blocks.shape[1], 4)[:n]
    halves = np.stack([groups[:, 1:] & 15, groups[:, 1:] >> 4], axis=2).reshape(n, -1)
    first = np.concatenate([groups[:, 0], halves], axis=1).astype(np.int64) @ encoded.codes[0].astype(np.int64)
    unit_of_sum, limit, weight = encoded.row_limits[0]
    second = gallery.codes.astype(np.int64) @ encoded.row_codes[0].astype(np.int64) * unit_of_sum
    if len(gallery.offsets):
        second = second + weight * gallery.offsets.astype(np.float64)
    return first >= encoded.limits[0], second >= limit


def assert_no_match_is_dropped(
    vectors: Vectors, queries: Vectors, n_bytes: int = 128, basis: NDArray[np.float64] | None = None
) -> None:
    """Every score is the threshold once; both levels must let all matches pass."""
    d = vectors.shape[1] - (2 if has_offset(vectors) else 0)
    gallery = encode(vectors, directions(vectors[:, :d]) if basis is None else basis, n_bytes)
    for query, line in zip(queries, scores(vectors, queries), strict=True):
        for threshold in np.unique(line):
            match = line >= threshold
            for passed in passing(gallery, query, float(threshold)):
                assert passed[match].all(), (query, vectors[match & ~passed], threshold)


def axes(d: int) -> NDArray[np.float64]:
    return np.eye(d)


def steps(codes: object, step: float = STEP) -> Vectors:
    """Vectors that are whole multiples of a step; one of them is 127 of it."""
    return np.asarray(np.asarray(codes, np.float64) * step, np.float32)


def test_the_gallery_loses_what_its_codes_leave() -> None:
    """On a line, what is lost has the direction of the query."""
    line = np.linspace(-1, 1, 499, dtype=np.float32)[:, None]
    assert_no_match_is_dropped(line, line[[0, 100, 400]])


@pytest.mark.parametrize("n_bytes", [128, 2])
def test_a_query_loses_what_its_codes_leave(n_bytes: int) -> None:
    """The small second part of each query, which its codes round to 0, decides between the vectors."""
    grid = steps([(127, j) for j in range(-63, 64, 2)] + [(i, 127) for i in (-127, 0, 127)])
    queries = np.array([(1, share / 127) for share in (-0.49, -0.2, 0.3, 0.49)], np.float32)
    assert_no_match_is_dropped(grid, queries, n_bytes, axes(2))


@pytest.mark.parametrize("prefix", [0, 1e-4, 1])
def test_the_norm_of_the_rest_is_rounded_up(prefix: float) -> None:
    """The rest of a query and of a vector have one direction, so that the bound is an equation."""
    vectors = np.zeros((200, 6), np.float32)
    vectors[:, 0], vectors[:, 5] = 1e-3, np.linspace(0.1, 1, 200)
    queries = np.array([[prefix, 0, 0, 0, 0, size] for size in (1e-4, 0.01, 0.3, 1, 7)], np.float32)
    assert_no_match_is_dropped(vectors, queries, 4, axes(6))


def test_half_bytes_lose_what_the_codes_of_the_query_leave() -> None:
    """A query is a little less than half a unit in each of them, so that its codes there are 0."""
    rng = np.random.default_rng(6)
    size = 0.01 * np.where(rng.random((4000, 8)) < 0.8953, 3.5, 2.5)  # its 15 steps are then nearly 0.01 each
    vectors = np.zeros((4000, 10), np.float32)
    vectors[::2, 0] = 31
    vectors[:, 2:] = size * rng.choice([-1, 1], (4000, 8))
    query = np.full((1, 10), 0.49 * 100, np.float32)
    query[0, :2] = 127, 0
    gallery = encode(vectors, axes(10), 128)
    assert np.allclose(gallery.steps[2:, 1], 0.01, rtol=0.02)
    assert_no_match_is_dropped(vectors, query, 128, axes(10))


def test_a_rest_below_the_precision_of_squares_is_not_lost() -> None:
    """1 + 1e-16 is 1 in float64, but a rest of 1e-8 gives a score of 1e-8."""
    vectors = np.array([[1, 0, 0, 1e-8], [1, 0, 0, 2.1e-8]], np.float32)
    assert_no_match_is_dropped(vectors, np.array([[0, 0, 0, 1]], np.float32), 4, axes(4))
    vectors = np.array([[0, 0, 0, 1], [1e-9, 0, 0, 1]], np.float32)
    assert_no_match_is_dropped(vectors, np.array([[1, 0, 0, 1e-8]], np.float32), 4, axes(4))


def test_a_score_is_rounded_up_to_its_threshold() -> None:
    """The product of two numbers of 17 bits is no float32: some scores are above the number that they stand for."""
    codes = np.random.default_rng(0).integers(-127, 128, (300, 3))
    codes[0] = 127
    assert_no_match_is_dropped(steps(codes), steps([[127, 5, -3], [127, -127, 1], [127, 90, 33]], STEP / 3))


def test_a_sum_in_float64_is_not_exact() -> None:
    """The products add up to 0. Their float64 sum is a little more, because a lane of 96 passes 53 bits on its way."""
    rng = np.random.default_rng(1)
    query = np.where(np.arange(1536) % 2, 1, -1)
    signs = np.zeros((60, 96, 16))
    for i in range(60):
        totals = rng.integers(-5, 6, 16) * 2
        totals[-1] -= totals.sum()
        for lane, total in enumerate(totals.tolist()):
            sorted_signs = np.repeat([1, -1], [(96 + total) // 2, (96 - total) // 2])
            signs[i, :, lane] = sorted_signs if rng.random() < 0.5 else rng.permutation(sorted_signs)
    largest = np.nextafter(np.float32(1.7), np.float32(2))
    assert float(largest) / 127 * 127 == float(largest)
    vectors = (signs.reshape(60, 1536) * query * largest).astype(np.float32)
    queries = (query * largest).astype(np.float32)[None]
    assert (scores(vectors, queries) > 0).any()
    assert_no_match_is_dropped(vectors, queries, 128, axes(1536))


@pytest.mark.parametrize("units", [90, 100, 120])
def test_an_offset_is_rounded_up(units: int) -> None:
    """Scores are offsets near a whole step, a step is a whole number of units, and the largest scores are about 0."""
    step = 2 / NORM_LEVELS
    offsets = np.float32(-1 + step * np.arange(NORM_LEVELS + 1))
    for _ in range(2):
        offsets = np.unique(np.r_[np.nextafter(offsets, np.float32(9)), np.nextafter(offsets, np.float32(-9)), offsets])
    offsets = offsets[(offsets >= -1) & (offsets <= 1)]
    vectors = np.zeros((len(offsets), 6), np.float32)
    vectors[:, 0], vectors[:, 4], vectors[:, 5] = 1, 1, offsets
    first = np.float32(127 * step / units)
    for _ in range(3):
        assert_no_match_is_dropped(vectors, np.array([[first, 0, 0, 0, -first - 0.9, 1]], np.float32), 16, axes(4))
        first = np.nextafter(first, np.float32(9))


@pytest.mark.parametrize("d", [1, 3])
def test_a_huge_offset_that_the_query_takes_back(d: int) -> None:
    """The float64 sum of both is wrong by more than a billionth of the rest of the score."""
    codes = np.random.default_rng(3).integers(-127, 128, (300, 3))
    codes[0] = 127
    own = steps(codes) if d == 3 else steps(np.arange(32)[:, None])
    query = steps([[127, 33, -5]], STEP / 2) if d == 3 else np.array([[1.3 / STEP]])
    others = np.tile([1, 3e15], (len(own), 1))
    vectors = np.concatenate([own, others], axis=1).astype(np.float32)
    query = np.concatenate([query, -others[:1, ::-1] * [1, -1]], axis=1).astype(np.float32)
    assert_no_match_is_dropped(vectors, query, 16, axes(d))


def test_a_negative_weight_of_the_offset() -> None:
    rng = np.random.default_rng(4)
    own = unit(rng.normal(size=(300, 5)))
    vectors = np.concatenate([own, np.ones((300, 1)), rng.normal(size=(300, 1))], axis=1).astype(np.float32)
    queries = np.concatenate([own[:3], [[0.5, -1], [-0.5, -0.1], [0, -20]]], axis=1).astype(np.float32)
    assert_no_match_is_dropped(vectors, queries, 16)


def blocks_of(lists: Lists, query: Vectors, threshold: float, n_blocks: int, *, offset: bool) -> NDArray[np.bool_]:
    """Which blocks may hold a match."""
    parts = np.empty((len(lists.centres) + 1, 2), np.int64)
    found = np.zeros(n_blocks, np.bool_)
    for first, last in parts[: find_ranges(lists, query, lowest_of(threshold), offset, 0, n_blocks, parts)]:
        found[first:last] = True
    return found


def planes(n: int, d: int, spread: float, rng: np.random.Generator) -> Vectors:
    """Unit vectors in a plane: their angles to each other and to a centre add up exactly."""
    turned = np.linalg.qr(rng.normal(size=(d, 2)))[0].T if d > 2 else np.eye(2)
    angles = rng.uniform(0, spread, n)
    return unit(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ turned)


@pytest.mark.parametrize(("d", "spread"), [(2, 3e-3), (2, 1), (24, 0.05), (24, 7), (300, 1)])
@pytest.mark.parametrize("offset", [0, 0.25, 3e15])
def test_lists_drop_no_match(d: int, spread: float, offset: float) -> None:
    """A vector fills a block with 64 copies of itself, so that no neighbour keeps its block.

    The query takes the offset back. A huge one leaves no precision to skip anything.
    """
    rng = np.random.default_rng(5)
    distinct = planes(200, d, spread, rng)
    vectors = np.repeat(distinct, BLOCK, axis=0)
    offsets = np.full(len(vectors) if offset else 0, offset, np.float32)
    order, lists = sort_into_lists(vectors, offsets)
    assert len(lists.centres) > 10
    in_blocks = order[::BLOCK] // BLOCK
    n_skipped = 0
    for query in distinct[:10]:
        asked, gallery = query, distinct
        if offset:
            asked = np.concatenate([query, [-offset, 1]]).astype(np.float32)
            gallery = np.concatenate([distinct, np.tile([1, offset], (200, 1))], axis=1).astype(np.float32)
        line = scores(gallery, asked[None])[0]
        for threshold in np.unique(line)[::7]:
            kept = blocks_of(lists, asked, float(threshold), len(in_blocks), offset=offset > 0)
            assert kept[line[in_blocks] >= threshold].all(), (query, threshold)
            n_skipped += int((~kept).sum())
    assert n_skipped > 0 or offset > 1


def test_lists_bound_the_longest_vector_of_a_list() -> None:
    """A query in the direction of the longest finds it, whatever the others of its list are."""
    rng = np.random.default_rng(9)
    distinct = planes(200, 24, 0.5, rng) * rng.uniform(0.1, 3, (200, 1)).astype(np.float32)
    order, lists = sort_into_lists(np.repeat(distinct, BLOCK, axis=0), distinct[:0, 0])
    in_blocks = order[::BLOCK] // BLOCK
    line = scores(distinct, distinct)
    for query, own in zip(distinct, line, strict=True):
        threshold = float(np.sort(own)[-3])
        kept = blocks_of(lists, query, threshold, 200, offset=False)
        assert kept[own[in_blocks] >= threshold].all()


def test_lists_keep_a_cosine_of_1() -> None:
    """The float64 product of two norms is less than the inner product of the vectors, which are equal."""
    vectors = np.ones((BLOCK, 3), np.float32)
    assert np.sqrt(3.0) * np.sqrt(3.0) < 3
    _, lists = sort_into_lists(vectors, np.full(BLOCK, -3, np.float32))
    assert blocks_of(lists, np.array([1, 1, 1, 0, 1], np.float32), 0.0, 1, offset=True).all()


def test_a_query_against_the_offset_visits_every_block() -> None:
    """With a negative weight, the largest offset of a list bounds nothing."""
    vectors = np.repeat(planes(50, 2, 3, np.random.default_rng(7)), BLOCK, axis=0)
    _, lists = sort_into_lists(vectors, np.repeat(np.arange(50, dtype=np.float32), BLOCK))
    assert blocks_of(lists, np.array([1, 0, 0, -1], np.float32), 0.5, 50, offset=True).all()
    assert blocks_of(lists, np.array([0, 0, 0, 1], np.float32), 0.5, 50, offset=True).all()


def test_an_arc_cosine_is_nearer_than_its_slack() -> None:
    """A reach, an angle of a query and an angle of a vector, stored in float32, are wrong in each comparison."""
    cosines = np.r_[np.linspace(-1, 1, 20_001), 1 - np.logspace(-16, -1, 500), np.logspace(-16, -1, 500) - 1]
    of_query = max(abs(ranges._angle_of(cosine) - np.arccos(cosine)) for cosine in cosines.tolist())
    angles = np.r_[np.linspace(0, np.pi, 2001), np.logspace(-9, -1, 500)]
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    _, found, _ = _nearest(vectors, np.array([[1, 0]], np.float32), None)
    exactly = np.arctan2(vectors[:, 1].astype(np.float64), vectors[:, 0].astype(np.float64))
    of_vector = np.abs(found.astype(np.float32) - exactly).max()
    assert 1e-9 < of_query < 3e-8
    assert 1e-9 < of_vector < 2e-7
    assert 2 * of_query + of_vector < ranges._ANGLE


@pytest.mark.parametrize("d", [2, 100, 1536])
def test_a_cosine_is_nearer_than_its_slack(d: int) -> None:
    """Centres are not quite of norm 1, and the products are added in float32."""
    rng = np.random.default_rng(8)
    largest = 0.0
    for _ in range(50):
        centre = _unit(rng.random((1, d), np.float32))[0]
        direction = rng.random(d)
        direction /= np.linalg.norm(direction)
        exactly = centre.astype(np.float64) @ direction / np.linalg.norm(centre.astype(np.float64))
        largest = max(largest, abs(float(ranges._cosine(centre, direction.astype(np.float32))) - exactly))
    assert 0 < largest < ranges._wrong(centre) / 2
