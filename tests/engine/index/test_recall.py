"""The interval of a recall: clustered by query, and never surer than the queries allow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.score import Score
from retrieval.engine.index import recall
from retrieval.engine.index.exact.layout import as_queries
from retrieval.engine.index.index import Hits
from retrieval.engine.index.open import build_index
from retrieval.engine.index.recall import COMPLETE, ENOUGH, counted, measure_recall, recall_of
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import ValidationFailed
from tests.engine.index.exact.galleries import KINDS, clustered

Counts = NDArray[np.float64]


def hits(*positions: int) -> Hits:
    return Hits(np.array(positions, dtype=np.int64), np.zeros(len(positions), dtype=np.float32))


def test_a_recall_by_hand() -> None:
    """Of the 6 matches of the others, 4 are found; a query's own row, and what was not expected, do not count."""
    expected = [hits(0, 5, 6), hits(1, 7), hits(2, 5, 6, 8)]
    found = [hits(0, 5), hits(1, 7, 9), hits(2, 5, 6)]
    wanted, missed = counted(found, expected, np.array([0, 1, 2]))
    assert (wanted.tolist(), missed.tolist()) == ([2, 1, 3], [1, 0, 1])
    result = recall_of(wanted, missed)
    assert (result.n_queries, result.n_matches) == (3, 6)
    assert result.value == pytest.approx(4 / 6)


@pytest.mark.parametrize("wanted", [[0, 0], []])
def test_without_a_match_nothing_is_known(wanted: list[float]) -> None:
    result = recall_of(np.array(wanted), np.array(wanted))
    assert (result.value, result.low, result.high, result.n_queries) == (1.0, 0.0, 1.0, 0)


@pytest.mark.parametrize("missed", [0, 3, 500])
def test_one_query_shows_nothing(missed: int) -> None:
    """However many matches it has."""
    result = recall_of(np.array([500.0]), np.array([float(missed)]))
    assert (result.value, result.low, result.high) == (1 - missed / 500, 0.0, 1.0)


def test_all_found_is_as_sure_as_the_number_of_queries() -> None:
    """A thousand matches of four queries show less than a hundred matches of a hundred queries."""
    few = recall_of(np.full(4, 250.0), np.zeros(4))
    many = recall_of(np.ones(100), np.zeros(100))
    assert few.low < 0.6 < 0.95 < many.low < many.high == 1


@pytest.mark.parametrize("n_queries", [3, 30, 300, 3000])
def test_the_interval_grows_with_what_is_missed(n_queries: int) -> None:
    """Nothing missed gives the narrowest interval and the highest limit; each match missed lowers both ends."""
    sizes = np.random.default_rng(0).integers(1, 30, n_queries).astype(np.float64)
    missed, results = np.zeros(n_queries), [recall_of(sizes, np.zeros(n_queries))]
    for query in range(min(n_queries, 40)):
        missed[query] = 1
        results.append(recall_of(sizes, missed))
    lows, highs = ([getattr(result, end) for result in results] for end in ("low", "high"))
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs, reverse=True)
    assert highs[0] - lows[0] < min(high - low for low, high in zip(lows[1:], highs[1:], strict=True))


def even(n: int, rng: np.random.Generator) -> Counts:
    return np.full(n, 8.0)


def uneven(n: int, rng: np.random.Generator) -> Counts:
    """A few queries have hundreds of matches, most have one to five."""
    return np.ceil(np.exp(rng.normal(1, 1.3, n)))


def alone(sizes: Counts, rate: float, rng: np.random.Generator) -> Counts:
    """Each match is missed for itself."""
    return rng.binomial(sizes.astype(int), rate).astype(np.float64)


def together(sizes: Counts, rate: float, rng: np.random.Generator) -> Counts:
    """A query misses all of its matches, or none."""
    return sizes * (rng.random(len(sizes)) < rate)


def in_part(sizes: Counts, rate: float, rng: np.random.Generator) -> Counts:
    """Queries miss different shares."""
    return rng.binomial(sizes.astype(int), rng.beta(rate, 1 - rate, len(sizes))).astype(np.float64)


def by_size(sizes: Counts, rate: float, rng: np.random.Generator) -> Counts:
    """Queries with many matches miss a larger share."""
    return in_part(sizes, np.clip(rate * sizes**0.5, 1e-9, 0.9), rng)  # type: ignore[arg-type]  # one for each query


@pytest.mark.parametrize("model", [alone, together, in_part, by_size])
@pytest.mark.parametrize("sizes_of", [even, uneven])
@pytest.mark.parametrize("rate", [0.1, 0.03, 0.005])
@pytest.mark.parametrize("n_queries", [50, 1000])
def test_the_interval_holds(
    sizes_of: Callable[[int, np.random.Generator], Counts],
    model: Callable[[Counts, float, np.random.Generator], Counts],
    rate: float,
    n_queries: int,
) -> None:
    """It covers the recall of all queries in at least 93 of 100 samples, however their matches are missed."""
    rng = np.random.default_rng(0)
    every = sizes_of(200_000, rng)
    truth = 1 - model(every, rate, rng).sum() / every.sum()
    covered = 0
    for _ in range(400):
        sizes = sizes_of(n_queries, rng)
        result = recall_of(sizes, model(sizes, rate, rng))
        covered += result.low <= truth <= result.high
    assert covered / 400 >= 0.93


def test_enough_queries_give_a_useful_interval() -> None:
    """Half a percent wide if nothing is missed, four percent at the least recall."""
    sizes = np.full(ENOUGH, 10.0)
    missed = np.zeros(ENOUGH)
    none = recall_of(sizes, missed)
    missed[: ENOUGH // 10] = 10
    many = recall_of(sizes, missed)
    assert none.high - none.low < 0.005
    assert many.high - many.low < 0.04
    assert many.value == pytest.approx(recall.LEAST_RECALL)


def test_queries_are_asked_until_they_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not all vectors of a large gallery."""
    vectors = clustered(3000, 8, np.random.default_rng(0))
    index = build_index(vectors, IndexSpec.parse("IVF8,nprobe=7"), threshold=0.9)
    monkeypatch.setattr(recall, "ENOUGH", 100)
    few = measure_recall(index, vectors, 0.9)
    assert 200 <= few.n_queries <= recall._FEWEST
    monkeypatch.setattr(recall, "ENOUGH", 10**6)
    assert 2500 < measure_recall(index, vectors, 0.9).n_queries <= 3000
    monkeypatch.setattr(recall, "_PRODUCTS", 1000 * 3000 * 8)
    assert 800 < measure_recall(index, vectors, 0.9).n_queries <= 1000


def test_a_poor_index_is_refused_and_a_good_one_described() -> None:
    """At the threshold in force: the message has the counts."""
    vectors = KINDS["random"](400, 6, np.random.default_rng(0))
    good, bad = IndexSpec.parse("IVF4,nprobe=3"), IndexSpec.parse("IVF4,nprobe=1")
    found = measure_recall(build_index(vectors, good), vectors, 0.5)
    assert 0.9 <= found.low < found.value < found.high < 1
    details = found.details()["measured_recall"]
    assert (details["n_queries"], details["n_matches"], details["least"]) == (found.n_queries, found.n_matches, 0.9)
    with pytest.raises(ValidationFailed, match=r"finds .*% .* of the [\d,]+ matches of [\d,]+ queries above 0.5000"):
        measure_recall(build_index(vectors, bad), vectors, 0.5)


def test_a_complete_index_is_not_measured() -> None:
    vectors = clustered(200, 6, np.random.default_rng(0))
    assert measure_recall(build_index(vectors, IndexSpec.parse("Flat")), vectors, 0.5) is COMPLETE
    assert COMPLETE.details() == {}


def test_stored_vectors_are_asked_as_the_score_would_ask_them(cohort_score: Score) -> None:
    """So the queries of the measurement are those that a client with the same images sends."""
    assert cohort_score.cohort is not None
    embeddings = KINDS["random"](50, cohort_score.cohort.shape[1], np.random.default_rng(0))
    gallery = cohort_score.gallery_vectors(embeddings)
    assert np.array_equal(as_queries(gallery, offset=True), cohort_score.query_vectors(embeddings))
