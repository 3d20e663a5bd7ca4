"""Exact search finds what brute force in float64 finds: nothing is missed, nothing is too much, for any data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.engine.index.exact import kernels, search
from retrieval.engine.index.exact.hits import read_keys
from retrieval.engine.index.exact.instructions import Form, Portable, Vnni, has_vnni
from retrieval.engine.index.exact.layout import as_queries, directions, encode, has_offset, in_half
from retrieval.engine.index.exact.lists import no_lists, sort_into_lists
from retrieval.engine.index.exact.ranges import find_ranges
from retrieval.engine.index.exact.search import Encoded, Matches, find, pairs
from retrieval.engine.index.exact.table import table_of
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.errors import InvalidEmbeddings
from tests.engine.index.exact.galleries import KINDS, WITH_OFFSET, Vectors, queries_of, rounded, scores, unit

FORMS: list[Form] = [Portable(), Vnni()] if has_vnni() else [Portable()]


def encoded_as(vectors: Vectors, n_bytes: int, *, lists: bool, half: bool = False) -> Encoded:
    """Return the encoded gallery; half: stored in float16, which its numbers must fit."""
    offset = has_offset(vectors)
    own = vectors[:, :-2] if offset else vectors
    basis = directions(own)
    stored = in_half(vectors) if half else vectors
    if not lists:
        return Encoded(encode(stored, basis, n_bytes), no_lists(own.shape[1]), np.empty(0, np.int32))
    order, sorted_lists = sort_into_lists(own, vectors[:, -1] if offset else vectors[:0, -1])
    return Encoded(encode(stored[order], basis, n_bytes), sorted_lists, order)


def as_set(found: Matches) -> set[tuple[int, int, float]]:
    rows, values = read_keys(found.keys)
    queries = found.queries
    listed = list(zip(queries.tolist(), rows.tolist(), values.tolist(), strict=True))
    assert len(set(listed)) == len(listed), "a match is found twice"
    return set(listed)


def expected(all_scores: np.ndarray, threshold: float) -> set[tuple[int, int, float]]:
    queries, rows = np.nonzero(all_scores.astype(np.float64) >= threshold)
    return set(zip(queries.tolist(), rows.tolist(), all_scores[queries, rows].tolist(), strict=True))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 300),
    d=st.integers(1, 90),
    n_bytes=st.sampled_from([4, 16, 32, 128]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_finds_what_brute_force_finds(
    form: Form, half: bool, kind: str, n: int, d: int, n_bytes: int, data: st.DataObject
) -> None:
    """Thresholds are fixed ones, and scores that occur: a score equal to the threshold is a match."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    vectors = KINDS[kind](n, d, rng)
    queries = queries_of(vectors, kind, data.draw(st.integers(1, 9)), rng)
    if half:
        vectors = rounded(vectors)
    all_scores = scores(vectors, queries)
    threshold = data.draw(
        st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf])
        | st.sampled_from(sorted(map(float, all_scores.ravel()))).flatmap(
            lambda score: st.sampled_from([score, np.nextafter(score, np.inf), np.nextafter(score, -np.inf)])
        )
    )
    encoded = encoded_as(vectors, n_bytes, lists=data.draw(st.booleans()), half=half)
    wanted = expected(all_scores, threshold)
    assert as_set(find(form, encoded, queries, threshold)) == wanted
    alone = [find(form, encoded, query[None], threshold) for query in queries]
    found = {(q, row, score) for q, part in enumerate(alone) for _, row, score in as_set(part)}
    assert found == wanted


@pytest.mark.parametrize("lists", [False, True])
def test_what_finds_no_room_at_once_is_found_in_parts(lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every vector of a gallery of several tiles is a match."""
    n = 2 * kernels.ROOM + 77
    vectors = KINDS["clustered"](n, 8, np.random.default_rng(3))
    encoded = encoded_as(vectors, 16, lists=lists)
    for queries in (vectors[:1], vectors[:9]):
        found = find(FORMS[-1], encoded, queries, -2.0)
        rows, _ = read_keys(found.keys)
        assert len(rows) == n * len(queries)
        assert np.array_equal(np.sort(found.queries * np.int64(n) + rows), np.arange(n * len(queries)))


@given(
    n=st.integers(1, 400),
    share=st.sampled_from([0.0, 0.003, 0.5, 1.0]),
    lists=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("half", [False, True])
def test_only_allowed_rows_are_found(half: bool, n: int, share: float, lists: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rounded(KINDS["clustered"](n, 20, rng))
    allowed = rng.random(n) < share
    encoded = encoded_as(vectors, 16, lists=lists, half=half)
    wanted = {hit for hit in expected(scores(vectors, vectors[:6]), 0.4) if allowed[hit[1]]}
    assert as_set(find(FORMS[-1], encoded, vectors[:6], 0.4, allowed)) == wanted


@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 400),
    d=st.integers(1, 40),
    lists=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("half", [False, True])
def test_pairs_are_those_of_brute_force(
    half: bool, kind: str, n: int, d: int, lists: bool, data: st.DataObject
) -> None:
    vectors = KINDS[kind](n, d, np.random.default_rng(data.draw(st.integers(0, 999))))
    if half:
        vectors = rounded(vectors)
    queries = as_queries(vectors, offset=kind in WITH_OFFSET)
    all_scores = scores(vectors, queries)
    first, second = np.triu_indices(n, 1)
    threshold = data.draw(st.sampled_from([-np.inf, 0.5, *map(float, all_scores.ravel()[:50])]))
    reach = all_scores[first, second].astype(np.float64) >= threshold
    parts = list(pairs(FORMS[-1], encoded_as(vectors, 16, lists=lists, half=half), threshold))
    found = [
        (*pair, score) for both, values in parts for pair, score in zip(both.tolist(), values.tolist(), strict=True)
    ]
    assert len(set(found)) == len(found)
    assert {pair[:2] for pair in found} == set(zip(first[reach].tolist(), second[reach].tolist(), strict=True))
    assert all(score == all_scores[i, j] for i, j, score in found)


@pytest.mark.parametrize("norm", [1e-12, 1e-8, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("d", [3, 7, 124])
def test_vectors_of_one_direction_and_any_norm(norm: float, d: int) -> None:
    """Coordinates that do not vary have no step; one of 1 would be far larger than short vectors."""
    vectors = np.zeros((60, d), np.float32)
    vectors[:, 0] = norm
    index = ExactIndex.build(vectors)
    queries = np.ones((200, d), np.float32)
    queries[:, 1] = -np.linspace(1e-5, 0.01, 200)  # every value is at another place between two codes
    for query in queries:
        threshold = float(scores(vectors[:1], query[None])[0, 0])
        assert len(index.above(query[None], threshold)[0].positions) == 60, query[1]
        assert len(index.above(query[None], np.nextafter(np.float32(threshold), np.float32(np.inf)))[0].positions) == 0


@pytest.mark.parametrize("half", [False, True])
def test_any_layout_in_memory(half: bool) -> None:
    """Columns first, every second row, or an array that its owner changes afterwards."""
    rng = np.random.default_rng(8)
    vectors = unit(rng.normal(size=(50, 8)))
    stored = rounded(vectors) if half else vectors
    wanted = expected(scores(stored, vectors), 0.3)
    wide = np.zeros((50, 16), np.float32)
    wide[:, ::2] = vectors
    allowed = np.ones(100, np.bool_)[::2]
    for each in (np.asfortranarray(vectors), wide[:, ::2], vectors.copy()):
        index = ExactIndex.build(each, half=half)
        each[:] = 0
        found = {
            (number, row, score)
            for number, hits in enumerate(index.above(np.asfortranarray(vectors), 0.3, allowed))
            for row, score in zip(hits.positions.tolist(), hits.scores.tolist(), strict=True)
        }
        assert found == wanted


@pytest.mark.parametrize("lists", [False, True])
def test_pairs_come_in_parts_that_fit_into_memory(lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair reaches a low threshold. The thread may search for something else between two parts."""
    n = 600
    vectors = unit(np.random.default_rng(5).normal(size=(n, 8)))
    room = search._own_scratch().room
    small = room._replace(queries=room.queries[: kernels.ROOM + 9], keys=room.keys[: kernels.ROOM + 9])
    monkeypatch.setattr(search._scratch, "kept", search._Scratch(small, table_of(*small), np.zeros(2, np.int64)))
    encoded = encoded_as(vectors, 16, lists=lists, half=False)
    found: list[tuple[int, int]] = []
    sizes = []
    for both, _ in pairs(FORMS[-1], encoded, -2.0):
        assert len(find(FORMS[-1], encoded, vectors[:3], 2.0).keys) == 0
        sizes.append(len(both))
        found += map(tuple, both.tolist())
    assert len(sizes) > -(-n // 256)
    assert len(found) == len(set(found)) == n * (n - 1) // 2


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("n_others", [0, 256])
def test_pairs_of_vectors_that_look_like_ones_with_an_offset(n_others: int, axis: int) -> None:
    """The last vectors, or all, have a 1 in the last column but one, as a gallery with an offset has everywhere."""
    axes = np.eye(4, dtype=np.float32)
    vectors = np.concatenate([np.repeat(axes[:1], n_others, axis=0), np.repeat(axes[axis : axis + 1], 3, axis=0)])
    found = [tuple(pair) for both, _ in ExactIndex.build(vectors).pairs_above(0.5) for pair in both.tolist()]
    assert len(found) == n_others * (n_others - 1) // 2 + 3
    assert {(n_others, n_others + 1), (n_others, n_others + 2), (n_others + 1, n_others + 2)} <= set(found)


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_threads_find_the_same(n_threads: int, lists: bool, half: bool) -> None:
    vectors = KINDS["clustered"](900, 20, np.random.default_rng(4))
    encoded = encoded_as(vectors, 16, lists=lists, half=half)
    for n_queries in (1, 2, 7):
        alone, shared = (find(FORMS[-1], encoded, vectors[:n_queries], 0.5, n_threads=n) for n in (1, n_threads))
        assert as_set(alone) == as_set(shared)


@pytest.mark.parametrize("d", [2, 3, 17, 128, 512, 1536])
@pytest.mark.parametrize("kind", ["clustered", "offset"])
@pytest.mark.parametrize("half", [False, True])
def test_every_dimension(d: int, kind: str, half: bool) -> None:
    vectors = KINDS[kind](500, d, np.random.default_rng(d))
    vectors[:, -1] = vectors[:, -1].clip(-100, 100)
    index = ExactIndex.build(vectors, threshold=0.3, half=half)
    queries = queries_of(vectors, kind, 5, np.random.default_rng(1))
    if half:
        vectors = rounded(vectors)
    found = index.above(queries, 0.3)
    for number, hits in enumerate(found):
        row_scores = scores(vectors, queries[number : number + 1])[0]
        order = np.lexsort((np.arange(len(row_scores)), -row_scores))
        order = order[row_scores[order] >= np.float32(0.3)]
        assert hits.positions.tolist() == order.tolist()
        assert np.array_equal(hits.scores, row_scores[order])


def test_lists_skip_blocks_without_missing_anything() -> None:
    """The test has teeth: a query at a high threshold visits few blocks."""
    rng = np.random.default_rng(5)
    vectors = KINDS["clustered"](20_000, 24, rng)
    encoded = encoded_as(vectors, 16, lists=True)
    ranges = np.empty((len(encoded.lists.centres) + 1, 2), np.int64)
    n = find_ranges(encoded.lists, vectors[7], 0.97, False, 0, len(encoded.gallery.blocks), ranges)
    visited = (ranges[:n, 1] - ranges[:n, 0]).sum() / len(encoded.gallery.blocks)
    assert 0 < visited < 0.2
    wanted = expected(scores(vectors, vectors[:40]), 0.97)
    assert len(wanted) > 40
    assert as_set(find(FORMS[-1], encoded, vectors[:40], 0.97)) == wanted


def test_the_bound_of_the_lists_is_needed_on_a_circle() -> None:
    """In a plane, the angle between a query and a vector is |a - b|, so any smaller reach misses matches."""
    angles = np.random.default_rng(6).uniform(0, 2 * np.pi, 20_000)
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    encoded = encoded_as(vectors, 4, lists=True)
    assert len(encoded.lists.centres) > 20
    for number in range(30):
        query = vectors[number : number + 1]
        all_scores = scores(vectors, query)
        threshold = float(all_scores[0, 100 + number])
        assert as_set(find(FORMS[-1], encoded, query, threshold)) == expected(all_scores, threshold)


def test_bad_queries_are_refused() -> None:
    index = ExactIndex.build(KINDS["clustered"](100, 8, np.random.default_rng(0)))
    with pytest.raises(InvalidEmbeddings, match=r"expected float32 vectors \[n, 8\], found float32 \(2, 7\)"):
        index.above(np.zeros((2, 7), np.float32), 0.5)
    with pytest.raises(InvalidEmbeddings, match="expected a threshold, found NaN"):
        index.above(np.zeros((2, 8), np.float32), float("nan"))
    with pytest.raises(InvalidEmbeddings, match="NaN or infinity in row 1"):
        index.above(np.array([[0] * 8, [np.inf] * 8], np.float32), 0.5)


def grids() -> list[tuple[Vectors, Vectors]]:
    """Return galleries and queries whose rounding errors point in the worst direction.

    On a line, the error of the gallery's codes is parallel to the query. On the grid, the gallery has no error, and the
    small part of each query, which its codes lose, is all that the matches differ by.
    """
    line = np.linspace(-1, 1, 997, dtype=np.float32)[:, None]
    grid = np.array([(i, j) for i in range(-127, 128, 8) for j in range(-63, 64, 2)]) / 127
    queries = [(1, share / 127) for share in (-0.49, -0.2, 0.3, 0.49)]
    return [(line, line[::83]), (grid.astype(np.float32), np.array(queries, np.float32))]


@pytest.mark.parametrize("gallery", [0, 1])
def test_each_slack_is_needed(gallery: int) -> None:
    """Every score that occurs is the threshold once, and the match that has it is found."""
    vectors, queries = grids()[gallery]
    encoded = encoded_as(vectors, 16, lists=False)
    all_scores = scores(vectors, queries)
    for threshold in np.unique(all_scores)[::7]:
        for form in FORMS:
            found = find(form, encoded, queries, float(threshold))
            assert as_set(found) == expected(all_scores, threshold)


def test_a_threshold_beyond_float32() -> None:
    """No score reaches it, or every score does, and nobody is warned."""
    index = ExactIndex.build(KINDS["clustered"](100, 8, np.random.default_rng(0)))
    query = np.ones((1, 8), np.float32)
    assert [len(index.above(query, threshold)[0].positions) for threshold in (1e39, -1e39, -1e300)] == [0, 100, 100]


def test_details_are_plain_values_that_say_what_was_chosen() -> None:
    index = ExactIndex.build(KINDS["clustered"](5000, 16, np.random.default_rng(0)), threshold=0.9)
    details = json.loads(json.dumps(index.details()))
    assert details["complete"] is True
    assert details["bytes_at_level_1"] == index.choice.n_bytes
    assert details["lists"] == index.choice.n_lists
    assert 0 < details["slack"] < 0.5
    assert details["expected_microseconds"] > 0
    assert 4 * 16 + 64 < details["bytes_per_vector"] < 4 * 16 + 64 + 128 + 100


def test_a_filter_of_another_length_is_refused() -> None:
    index = ExactIndex.build(KINDS["clustered"](100, 8, np.random.default_rng(0)))
    with pytest.raises(InvalidEmbeddings, match=r"expected a filter of bool \[100\], found bool \[99\]"):
        index.above(np.zeros((1, 8), np.float32), 0.5, np.ones(99, np.bool_))
