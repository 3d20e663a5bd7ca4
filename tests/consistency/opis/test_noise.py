from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import labelled
from retrieval.consistency.opis import noise
from retrieval.consistency.opis.noise import (
    PairAgreement,
    SharedCurve,
    independent_pairs,
    measure_agreement,
    noise_floor,
    noise_of_tar,
    pair_correlation,
    variance_inflation,
)
from retrieval.consistency.opis.utility import Band, utility

LEVELS = np.array([0.2, 0.35, 0.5])


def reference_agreement(rows: np.ndarray, level: float) -> tuple[float, float, float]:
    """Every two of the pairs of one class, those that share an image apart from those that do not."""
    pairs = list(itertools.combinations(range(len(rows)), 2))
    accepted = {pair: float(rows[pair[0]] @ rows[pair[1]] >= level) for pair in pairs}
    twos = [(accepted[a] * accepted[b], bool({*a} & {*b})) for a, b in itertools.combinations(pairs, 2)]
    sharing = [both for both, shared in twos if shared]
    disjoint = [both for both, shared in twos if not shared]
    mean = [np.mean(found) if found else np.nan for found in (list(accepted.values()), sharing, disjoint)]
    return float(mean[0]), float(mean[1]), float(mean[2])


def test_agreement_agrees_with_counting_twos_of_pairs(family) -> None:
    """Classes of 1 to 7 images, in any order of the caller; those of one image are left out."""
    draw = np.random.default_rng(0)
    rows, labels = family(draw, n_classes=14, n_images=7)
    kept = draw.permutation([row for row in range(len(rows)) if row % 7 <= (row // 7) % 7])
    rows, labels = rows[kept], [labels[row] for row in kept]
    agreement = measure_agreement(labelled(rows, labels), LEVELS)
    assert agreement.n_images.tolist() == [2, 3, 4, 5, 6, 7] * 2
    names = [name for name in sorted(set(labels)) if labels.count(name) > 1]
    for place, name in enumerate(names):
        own = rows[[label == name for label in labels]]
        for column, level in enumerate(LEVELS):
            found = [agreement.single, agreement.sharing, agreement.disjoint]
            expected = reference_agreement(own, float(np.float32(level)))
            np.testing.assert_allclose([part[place, column] for part in found], expected)


def test_blocks_change_nothing(family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=9, n_images=4)
    vectors = labelled(rows, labels)
    whole = measure_agreement(vectors, LEVELS)
    monkeypatch.setattr(noise, "_BLOCK_SCORES", 33)
    for part in ("single", "sharing", "disjoint"):
        np.testing.assert_array_equal(getattr(measure_agreement(vectors, LEVELS), part), getattr(whole, part))


def test_large_classes_are_measured_on_a_part_of_their_images(family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=3, n_images=40)
    vectors = labelled(rows, labels)
    whole = measure_agreement(vectors, LEVELS)
    monkeypatch.setattr(noise, "_MAX_IMAGES", 20)
    part = measure_agreement(vectors, LEVELS)
    every_second = measure_agreement(labelled(rows[::2], labels[::2]), LEVELS)
    np.testing.assert_array_equal(part.disjoint, every_second.disjoint)
    assert part.n_images.tolist() == [40, 40, 40]
    # The noise of 40 images, not of 20; a quarter of the pairs tells it within a third or so.
    assert noise_of_tar(part).mean() == pytest.approx(noise_of_tar(whole).mean(), rel=0.5)


@pytest.mark.parametrize("n_images", [4, 6])
def test_noise_of_tar_has_no_bias(n_images: int) -> None:
    """Images that are good with probability 1/2, a pair accepted if both are: the variance is known."""
    draw = np.random.default_rng(3)
    good = draw.random((4000, n_images)) < 0.5
    vectors = labelled(
        np.stack([good, ~good], axis=2).reshape(-1, 2).astype(np.float32),
        [f"{code:04d}" for code in range(4000) for _ in range(n_images)],
    )
    # Two bad images also agree, so a pair is accepted with probability 1/2, pairs that share an image independently.
    agreement = measure_agreement(vectors, np.array([0.5]))
    n_pairs = n_images * (n_images - 1) / 2
    variances = noise_of_tar(agreement)
    assert abs(variances.mean() - 0.25 / n_pairs) < 3 * variances.std() / np.sqrt(4000)
    assert agreement.single.var() == pytest.approx(0.25 / n_pairs, rel=0.05)
    assert pair_correlation(agreement, np.full(4000, 1 / 4000)) == pytest.approx(0, abs=0.02)


def test_noise_of_few_images_is_the_least_possible() -> None:
    agreement = PairAgreement(
        single=np.array([[0.5], [2 / 3], [0.5]]),
        sharing=np.array([[np.nan], [1 / 3], [0.25]]),
        disjoint=np.array([[np.nan], [np.nan], [0.2]]),
        n_images=np.array([2, 3, 4]),
    )
    # (2/3 - 1/3) / 3 as if independent; (0.5 - 0.2 + 4 (0.25 - 0.2)) / 6.
    np.testing.assert_allclose(noise_of_tar(agreement)[:, 0], [0, 1 / 9, 0.5 / 6])
    assert agreement.measurable.tolist() == [False, False, True]


def test_pair_correlation_by_hand() -> None:
    agreement = PairAgreement(
        single=np.array([[0.5], [0.4]]),
        sharing=np.array([[0.3], [0.22]]),
        disjoint=np.array([[0.25], [np.nan]]),
        n_images=np.array([5, 3]),
    )
    # The class of five alone; of three alone under the null, with 0.4 ^ 2 for the square.
    assert pair_correlation(agreement, np.array([0.5, 0.5])) == pytest.approx(0.05 / 0.25)
    assert pair_correlation(agreement, np.array([0.0, 1.0])) == pytest.approx(0.06 / 0.24)
    assert variance_inflation(np.array([2, 5]), 0.2).tolist() == [1, pytest.approx(2.2)]


def test_perfect_classes_have_no_pair_correlation() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    agreement = measure_agreement(labelled(rows, list("aaaabbbbcccc")), np.array([0.5]))
    assert pair_correlation(agreement, np.full(3, 1 / 3)) == 0
    assert (noise_of_tar(agreement) == 0).all()


BAND = Band(np.array([0.1, 0.2]), np.array([1.0, 0.9]), np.array([0.1, 0.05]))


def test_floor_of_two_images_by_hand() -> None:
    """One pair of TAR 0.6: utility is that of TAR 1 or 0, so its variance is U(1)^2 * 0.24, less the share 1/T."""
    band = Band(np.array([0.1, 0.2]), np.array([1.0, 0.9]), np.array([0.1, 0.1]))
    top = 2 * 0.9 / 1.9
    found = noise_floor(SharedCurve(band, np.array([0.6, 0.6]), np.full(8, 1.0), np.full(8, 1 / 8), c=1))
    assert found == pytest.approx(top**2 * 0.24 * 7 / 8)


@pytest.mark.parametrize(
    ("sizes", "correlation", "weights"),
    [([5] * 40, 0.0, None), ([3, 4, 6, 12] * 10, 0.0, None), ([15] * 40, 0.0, None), ([5, 20] * 20, 0.1, [3, 1] * 20)],
)
def test_floor_agrees_with_simulated_classes(sizes: list[int], correlation: float, weights: list[int] | None) -> None:
    """Beta-binomial draws have the variance that pairs sharing an image have; without correlation it is binomial."""
    draw = np.random.default_rng(4)
    share = np.full(40, 1 / 40) if weights is None else np.array(weights) / sum(weights)
    n_images, tar = np.array(sizes), np.array([0.7, 0.5])
    n_pairs = n_images * (n_images - 1) // 2
    total = 0.0
    for _ in range(1500):
        for column in (0, 1):
            chance = np.full(40, tar[column])
            if correlation:
                extra = 2 * (n_images - 2) * correlation / (n_pairs - 1)  # between any two pairs
                chance = draw.beta(tar[column] * (1 / extra - 1), (1 - tar[column]) * (1 / extra - 1))
            values = utility(draw.binomial(n_pairs, chance) / n_pairs, np.full(40, BAND.pooled_far[column]), 1.0)
            total += float(share @ (values - share @ values) ** 2) / 2
    found = noise_floor(SharedCurve(BAND, tar, independent_pairs(n_images, correlation), share, c=1.0))
    # The simulation's own error is about 1 %; the law beyond its variance is another where pairs correlate.
    assert found == pytest.approx(total / 1500, rel=0.06 if correlation else 0.03)


def test_floor_vanishes_where_nothing_varies() -> None:
    null = SharedCurve(BAND, np.array([1.0 + 1e-16, 1.0]), np.full(9, 2.5), np.full(9, 1 / 9), c=1.0)
    assert noise_floor(null) == pytest.approx(0, abs=1e-12)
