from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import Division, LabelledVectors, OpisOptions, SearchRound, consistency_report, in_rounds
from retrieval.consistency.opis import query_noise as module
from retrieval.consistency.opis.query_noise import query_noise
from retrieval.consistency.pairs.vectors import Vectors
from tests.searches import searched, uneven

LEVELS = np.array([0.2, 0.35, 0.5])
SIZES = [1, 2, 3, 4, 5, 6, 7, 7] * 2


def searches(query: NDArray[np.float64], gallery: NDArray[np.float64]) -> LabelledVectors:
    """Return one round: query [T, n, D] and gallery [T, g, D] of T classes."""
    (n_classes, n, _), g = query.shape, gallery.shape[1]
    codes = np.repeat(np.arange(n_classes), n + g)
    asks = np.tile(np.arange(n + g) < n, n_classes)
    division = Division(np.flatnonzero(asks), np.flatnonzero(~asks))
    sides: list[Vectors] = [side.reshape(-1, side.shape[2]).astype(np.float32) for side in (query, gallery)]
    return in_rounds([f"{code:05d}" for code in codes], [SearchRound(division, *sides)])


def shares_of(vectors: LabelledVectors, code: int, level: float) -> NDArray[np.float64]:
    """Return for each query of a class the share of its items that accept it."""
    scores = vectors.query[vectors.codes == code] @ vectors.gallery[vectors.gallery_codes == code].T
    return (scores >= np.float32(level)).mean(axis=1)


def weights_of(vectors: LabelledVectors) -> NDArray[np.float64]:
    n = np.count_nonzero(vectors.positives)
    return np.full(n, 1 / n)


def test_noise_is_the_variance_of_the_shares_of_queries(family) -> None:
    """Unequal classes; those without a query are left out, those of one query have no noise."""
    rows, labels = uneven(*family(np.random.default_rng(0), n_classes=16, n_images=7, spread=0.4), SIZES)
    vectors = searched(rows, labels)[0].one_round(1)
    noise, correlation, independent = query_noise(vectors, LEVELS, weights_of(vectors))
    present = [code for code in range(16) if SIZES[code] > 1]
    assert noise.measurable.tolist() == [SIZES[code] > 3 for code in present]
    excess, share = 0.0, 0.0
    for place, code in enumerate(present):
        q, g = SIZES[code] // 2, SIZES[code] - SIZES[code] // 2
        for column, level in enumerate(LEVELS):
            shares = shares_of(vectors, code, level)
            variance = shares.var(ddof=1) if q > 1 else 0.0
            assert noise.variance[place, column] == pytest.approx(variance / q)
            if q > 1:
                alone = shares.mean() * (1 - shares.mean()) + variance / q
                excess += variance - alone / g
                share += alone * (1 - 1 / g)
        assert independent[place] == pytest.approx(q * g / (1 + (g - 1) * correlation))
        assert noise.relative[place] == pytest.approx(1 / independent[place])
    assert correlation == pytest.approx(excess / share)


def test_blocks_change_nothing(family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = uneven(*family(np.random.default_rng(1), n_classes=16, n_images=7), SIZES)
    vectors = searched(rows, labels)[0].one_round(0)
    whole = query_noise(vectors, LEVELS, weights_of(vectors))
    monkeypatch.setattr(module, "_BLOCK_SCORES", 13)
    blocks = query_noise(vectors, LEVELS, weights_of(vectors))
    np.testing.assert_array_equal(blocks[0].variance, whole[0].variance)
    assert blocks[1] == whole[1]


def test_large_classes_are_measured_on_a_part_of_their_images(family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of 40 queries, from 20 of them and 20 items, which know it within a third or so."""
    rows, labels = family(np.random.default_rng(2), n_classes=12, n_images=80, spread=0.3)
    vectors = searched(rows, labels)[0].one_round(0)
    whole = query_noise(vectors, LEVELS, weights_of(vectors))[0].variance
    monkeypatch.setattr(module, "_MAX_IMAGES", 20)
    part = query_noise(vectors, LEVELS, weights_of(vectors))[0].variance
    assert part.mean() == pytest.approx(whole.mean(), rel=0.35)


def states(rng: np.random.Generator, n_classes: int, n: int, g: int, common: float) -> tuple[LabelledVectors, NDArray]:
    """Return searches by queries in one of 64 states, and the share of items that accept each: [T, 64].

    An item accepts a state or not: with probability `common` as all items of the class do, else by itself.
    """
    table = rng.random((n_classes, g, 64)) < 0.5
    together = rng.random((n_classes, 1, 64)) < common
    table = np.where(together, table[:, :1], table)
    state = rng.integers(64, size=(n_classes, n))
    return searches(np.eye(64)[state], table.astype(float)), table.mean(axis=1)


@pytest.mark.parametrize(("n", "g"), [(2, 1), (2, 3), (5, 4)])
def test_noise_has_no_bias_given_the_gallery(n: int, g: int) -> None:
    """The variance of the mean of n draws of the 64 states is known for each class, and TAR varies by as much."""
    n_classes, rng = 4000, np.random.default_rng(3)
    vectors, accepted = states(rng, n_classes, n, g, common=0.3)
    noise, *_ = query_noise(vectors.one_round(0), np.array([0.5]), weights_of(vectors))
    expected = accepted.var(axis=1) / n
    error = (noise.variance[:, 0] - expected).std() / np.sqrt(n_classes)
    assert abs(noise.variance.mean() - expected.mean()) < 3 * error
    tar = np.array([shares_of(vectors, code, 0.5).mean() for code in range(0, n_classes, 2)])
    apart = (tar - accepted[::2].mean(axis=1)) ** 2
    assert abs(apart.mean() - expected.mean()) < 3 * apart.std() / np.sqrt(len(tar))
    # t (1 - t), which the correlation takes: unbiased, too.
    alone = tar * (1 - tar) + noise.variance[::2, 0]
    true = accepted[::2].mean(axis=1)
    assert abs((alone - true * (1 - true)).mean()) < 3 * (alone - true * (1 - true)).std() / np.sqrt(len(tar))


@pytest.mark.parametrize("common", [0.0, 0.4, 1.0])
def test_correlation_is_that_of_two_items_for_one_query(common: float) -> None:
    vectors, _ = states(np.random.default_rng(4), 2000, 4, 3, common)
    _, correlation, independent = query_noise(vectors.one_round(0), np.array([0.5]), weights_of(vectors))
    assert correlation == pytest.approx(common, abs=0.03)  # 8,000 queries know it to 0.01
    assert independent[0] == pytest.approx(12 / (1 + 2 * correlation))


OPTIONS = OpisOptions(axis="log_far", n_bootstrap=200)


def alike(rng: np.random.Generator, n_rounds: int) -> LabelledVectors:
    """Return rounds of 60 classes with one true curve given the gallery, though items of a class differ.

    The score with an item is a number of the query for the class times a factor of the item: the same factors in every
    class, and numbers drawn alike.
    """
    n_classes, n, factors = 60, 4, np.array([0.8, 0.9, 1.0, 1.2])
    codes = np.repeat(np.arange(n_classes), 8)
    asks = np.tile(np.arange(8) < n, n_classes)
    division = Division(np.flatnonzero(asks), np.flatnonzero(~asks))
    gallery = (np.eye(n_classes)[:, None] * factors[:, None]).reshape(-1, n_classes).astype(np.float32)
    rounds = []
    for _ in range(n_rounds):
        query = rng.normal(scale=0.5, size=(n_classes, n, n_classes))
        query[np.arange(n_classes), :, np.arange(n_classes)] += 1
        rounds.append(SearchRound(division, query.reshape(-1, n_classes).astype(np.float32), gallery))
    return in_rounds([f"{code:02d}" for code in codes], rounds)


@pytest.mark.slow
@pytest.mark.parametrize(("n_rounds", "n_draws"), [(1, 80), (4, 20)])
def test_classes_of_one_true_curve_have_no_debiased_opis(n_rounds: int, n_draws: int) -> None:
    rng = np.random.default_rng(5)
    results = [consistency_report(alike(rng, n_rounds), OPTIONS, rng=rng) for _ in range(n_draws)]
    debiased = np.array([result.debiased for result in results])
    plain, floor = (np.mean([getattr(result, name) for result in results]) for name in ("value", "floor"))
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(n_draws)
    assert abs(debiased.mean()) < 0.05 * plain
    assert floor == pytest.approx(plain, rel=0.1)  # a law beyond its variance is assumed
    assert np.mean([0 in result.debiased_interval for result in results]) >= 0.85


@pytest.mark.slow
def test_debiased_opis_is_the_exact_value_given_the_gallery() -> None:
    """Of 60 classes of 5 queries, whose values with 100 queries and the same gallery are known; 25 draws.

    Exact to first order; what bends depends on the shape of the distribution. With 4 queries a class it was 5 % too
    high over 200 draws, with a standard error of 2 %.
    """
    rng, n_classes, dimension, found, exact = np.random.default_rng(6), 60, 24, [], []

    def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return rows / np.linalg.norm(rows, axis=2, keepdims=True)

    for _ in range(25):
        centres = unit(rng.normal(size=(n_classes, 1, dimension)))
        noise = np.exp(0.4 * rng.normal(size=(n_classes, 1, 1))) / np.sqrt(dimension)
        few, many, items = (unit(centres + noise * rng.normal(size=(n_classes, n, dimension))) for n in (5, 100, 5))
        pulled = unit(0.3 * items + 0.7 * items.mean(axis=1, keepdims=True))
        for query, values in ((few, found), (many, exact)):
            values.append(consistency_report(searches(query, pulled), OPTIONS, rng=rng).debiased)
    error = np.std(np.subtract(found, exact)) / 5
    assert error < 0.08 * np.mean(exact)
    assert -3 * error < np.mean(found) - np.mean(exact) < 0.2 * np.mean(exact)
