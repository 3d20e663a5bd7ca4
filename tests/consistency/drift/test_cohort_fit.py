from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from retrieval.consistency import CohortFit, Interval, LabelledVectors, cohort_fit, labelled
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import draw_family

RNG = np.random.default_rng
Rows = NDArray[np.float32]


def each(rows: Rows) -> LabelledVectors:
    """Independent pictures."""
    return labelled(rows, [f"{row:03d}" for row in range(len(rows))])


def domain(seed: int, n_classes: int, n_images: int = 1) -> tuple[Rows, list[str]]:
    return draw_family(RNG(seed), n_classes=n_classes, n_images=n_images, dimension=16, crowding=1.0)


def foreign(seed: int, n_classes: int) -> Rows:
    """Pictures elsewhere, close together."""
    rows = RNG(seed).normal(size=(n_classes, 16)) * 0.4
    rows[:, 0] += 2.0
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow(cohort: Rows, catalogue: Rows, k: int, skip: int, rng: np.random.Generator) -> tuple[float, float]:
    """Crowding and agreement, picture by picture, for pictures of their own."""
    half = rng.permutation(len(cohort))[: len(cohort) // 2]
    others = [row for row in range(len(cohort)) if row not in half]

    def density(row: NDArray[np.float32], among: Rows, size: int, left_out: int = 0) -> float:
        similarities = sorted((float(row @ other) for other in among), reverse=True)
        return float(np.mean(similarities[left_out : left_out + size]))

    own = [density(cohort[row], cohort[half], round(k / 2)) for row in others]
    new = [density(row, cohort[half], round(k / 2)) for row in catalogue]
    crowding = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(own, new)])
    outside = rankdata([density(row, cohort, k) for row in catalogue])
    inside = rankdata([density(row, catalogue, k, skip + 1) for row in catalogue])
    return float(crowding), float(np.corrcoef(outside, inside)[0, 1])


@pytest.mark.parametrize("skip", [0, 2])
def test_agrees_with_a_picture_by_picture_reference(skip: int) -> None:
    cohort, catalogue = domain(0, 40)[0], domain(1, 25)[0]
    found = cohort_fit(each(cohort), each(catalogue), k=4, rng=RNG(5), skip=skip)
    assert (found.crowding, found.agreement) == pytest.approx(slow(cohort, catalogue, 4, skip, RNG(5)), abs=1e-5)
    assert found.crowding in found.crowding_interval
    assert found.agreement in found.agreement_interval
    assert (found.n_cohort, found.n_catalogue) == (20, 25)


def test_a_cohort_that_fits_is_turned_down_no_more_often_than_stated() -> None:
    """Groups of three pictures, other classes in the catalogue: 300 draws, within the simulation's error of alpha."""
    turned_down = []
    for seed in range(300):
        cohort, catalogue = labelled(*domain(2 * seed, 30, 3)), labelled(*domain(2 * seed + 1, 30, 3))
        found = cohort_fit(cohort, catalogue, k=6, rng=RNG(seed))
        turned_down.append(not found.fits(0.1))
    assert np.mean(turned_down) <= 0.1 + 2.6 * math.sqrt(0.1 * 0.9 / 300)


def test_a_foreign_cohort_is_turned_down() -> None:
    found = cohort_fit(each(foreign(0, 80)), each(domain(1, 80)[0]), k=6, rng=RNG(0))
    assert not found.fits(0.001)
    assert found.crowding > 0.9
    assert str(found).startswith("the cohort does not fit the catalogue: p ")


def test_a_cohort_of_the_same_kind_agrees_better_than_a_foreign_one() -> None:
    catalogue = each(domain(1, 150)[0])
    same = cohort_fit(each(domain(0, 150)[0]), catalogue, k=6, rng=RNG(0))
    other = cohort_fit(each(foreign(0, 150)), catalogue, k=6, rng=RNG(0))
    assert same.fits()
    assert same.agreement > other.agreement_interval.high


def test_pictures_of_one_thing_taken_as_independent_exaggerate() -> None:
    """The cohort's own classes make it look more crowded than the catalogue: what the groups are for."""
    cohort, catalogue = domain(0, 40, 5), domain(1, 40, 5)
    assert not cohort_fit(each(cohort[0]), each(catalogue[0]), k=6, rng=RNG(0)).fits()
    assert cohort_fit(labelled(*cohort), labelled(*catalogue), k=6, rng=RNG(0)).fits()


def test_order_of_the_catalogue_does_not_matter() -> None:
    cohort, catalogue = domain(0, 60)[0], domain(1, 60)[0]
    plain, changed = (
        cohort_fit(each(cohort), each(rows), k=4, rng=RNG(0)) for rows in (catalogue, catalogue[::-1].copy())
    )
    assert plain.p_value == pytest.approx(changed.p_value)
    assert plain.agreement == pytest.approx(changed.agreement)


@pytest.mark.parametrize(("n_cohort", "n_catalogue", "k"), [(19, 30, 4), (30, 9, 4), (30, 30, 8), (40, 10, 10)])
def test_too_few_pictures_are_refused(n_cohort: int, n_catalogue: int, k: int) -> None:
    with pytest.raises(NotEnoughEvidence, match=r"groups.*images in the cohort.*give more, or a smaller k"):
        cohort_fit(each(domain(0, n_cohort)[0]), each(domain(1, n_catalogue)[0]), k=k, rng=RNG(0))


def test_pictures_all_alike_are_refused() -> None:
    same = np.tile(np.eye(16, dtype=np.float32)[0], (30, 1))
    with pytest.raises(NotEnoughEvidence, match="the same density"):
        cohort_fit(each(domain(0, 40)[0]), each(same), k=4, rng=RNG(0))


def test_bad_input_is_refused() -> None:
    cohort, catalogue = each(domain(0, 40)[0]), each(domain(1, 40)[0])
    with pytest.raises(InvalidInput, match="k of at least 1"):
        cohort_fit(cohort, catalogue, k=0, rng=RNG(0))
    with pytest.raises(InvalidEmbeddings, match="expected unit rows of one dimension"):
        cohort_fit(cohort, each(np.eye(40, dtype=np.float32)), k=4, rng=RNG(0))
    with pytest.raises(InvalidEmbeddings, match="expected unit rows of one dimension"):
        cohort_fit(labelled(cohort.query, list("ab" * 20), gallery=2 * cohort.query), catalogue, k=4, rng=RNG(0))
    some = Interval(0.0, 1.0)
    fit = CohortFit(
        p_value=0.5,
        crowding=0.5,
        crowding_interval=some,
        agreement=0.5,
        agreement_interval=some,
        n_cohort=10,
        n_catalogue=10,
        confidence=0.95,
    )
    with pytest.raises(InvalidInput, match="alpha"):
        fit.fits(0.0)
