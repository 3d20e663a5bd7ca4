from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from retrieval.consistency import Interval, labelled, thresholds_at_far
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.bench.measuring.transfer import DomainPrior, TransferredThreshold, transfer_threshold
from tests.consistency.conftest import draw_family

TAR = Interval(0.3, 0.99)
Rows = NDArray[np.float32]


def drawn(seed: int, *, n_classes: int = 60, n_images: int = 5) -> tuple[Rows, list[str]]:
    rng = np.random.default_rng(seed)
    return draw_family(rng, n_classes=n_classes, n_images=n_images, spread=0.3, crowding=0.7)


def labelled_first(labels: list[str], k: int) -> list[str | None]:
    """Labels of k classes, the others unknown."""
    known = set(sorted(set(labels))[:k])
    return [label if label in known else None for label in labels]


def transfer(rows: Rows, labels: list[str | None], **options: object) -> TransferredThreshold:
    settings = {"target_far": 0.02, "prevalence": Interval(0.007, 0.026), "tar": TAR} | options
    prior = DomainPrior(prevalence=settings.pop("prevalence"), tar=settings.pop("tar"))  # type: ignore[arg-type]
    return transfer_threshold(rows, labels, prior=prior, **settings)  # type: ignore[arg-type]


def far_from_definition(
    rows: Rows, labels: list[str | None], threshold: float, prevalence: Interval, tar: Interval
) -> tuple[float, float, float]:
    """log FAR, its variance and the labels' weight, pair by pair, with the formulas written out."""
    n = len(rows)
    accepted = rows @ rows.T >= np.float32(threshold)
    np.fill_diagonal(accepted, False)
    share = accepted.sum() / (n * (n - 1))
    degrees = accepted.sum(axis=1).astype(float)
    known = sorted({label for label in labels if label is not None})
    of_class = np.array([known.index(label) if label is not None else -1 for label in labels])
    for code in range(len(known)):
        degrees[of_class == code] = degrees[of_class == code].mean()
    spread = float(np.mean((degrees / degrees.mean() - 1) ** 2))
    z = norm.ppf(0.975)
    mean, variance = (logit(tar.low) + logit(tar.high)) / 2, ((logit(tar.high) - logit(tar.low)) / (2 * z)) ** 2
    false = negatives = hits = positives = 0
    for i in range(n):
        for j in range(n):
            if of_class[i] >= 0 and of_class[i] != of_class[j]:
                false, negatives = false + int(accepted[i, j]), negatives + 1
            elif of_class[i] >= 0 and i < j:
                hits, positives = hits + int(accepted[i, j]), positives + 1
    k = len(known)
    found = (k * hits / positives + 0.5) / (k + 1)
    found_variance = 1 / (k * found * (1 - found))
    posterior = 1 / (1 / variance + 1 / found_variance)
    tar_now = expit(posterior * (mean / variance + logit(found) / found_variance))
    matching = math.sqrt(prevalence.low * prevalence.high)
    of_matching = (math.log(prevalence.high / prevalence.low) / (2 * z)) ** 2
    matches_variance = (matching * tar_now) ** 2 * (of_matching + (1 - tar_now) ** 2 * posterior)
    images_a_class = 1 + matching * (n - 1)
    sampling = 4 * spread * images_a_class / n + images_a_class**2 * 2 / accepted.sum()
    clean = share - matching * tar_now
    by_all = clean**2 / matches_variance
    by_labels = 1 / (spread / k + images_a_class**2 / (false + 0.5))
    weight = by_labels / (by_all + by_labels)
    log_far = (1 - weight) * math.log(clean / (1 - matching)) + weight * math.log((false + 0.5) / (negatives + 1))
    return log_far, sampling + 1 / (by_all + by_labels), weight


def test_agrees_with_a_pair_by_pair_reference() -> None:
    """At the threshold the slow estimate gives the target; between two of the 33 thresholds it is interpolated."""
    rows, labels = drawn(0)
    partly = labelled_first(labels, 6)
    prevalence = Interval(0.007, 0.026)
    found = transfer(rows, partly, prevalence=prevalence)
    log_far, variance, weight = far_from_definition(rows, partly, found.threshold, prevalence, TAR)
    assert log_far == pytest.approx(math.log(0.02), abs=0.08)  # levels lie 0.11 apart in the logarithm of the share
    assert found.far_interval.high == pytest.approx(0.02 * math.exp(1.96 * math.sqrt(variance)), rel=0.05)
    assert found.label_share == pytest.approx(weight, abs=0.05)
    assert "6 classes of them labelled" in str(found)


@pytest.mark.parametrize(("k", "least_covered"), [(0, 0.9), (10, 0.9)])
def test_the_interval_holds_the_populations_threshold(k: int, least_covered: float) -> None:
    """Over 40 draws from one population, whose threshold comes from 6,000 images; nothing is tuned to it."""
    rows, labels = drawn(99, n_classes=600, n_images=5)
    true = float(thresholds_at_far(labelled(rows, labels), [0.02])[0])
    covered = []
    for seed in range(40):
        sample, names = drawn(seed)
        covered.append(true in transfer(sample, labelled_first(names, k)).interval)
    assert np.mean(covered) >= least_covered


def test_labels_narrow_the_interval() -> None:
    rows, labels = drawn(1)
    wide, narrow = transfer(rows, [None] * len(labels)), transfer(rows, labelled_first(labels, 30))
    assert narrow.far_interval.high < wide.far_interval.high
    assert (wide.label_share, wide.n_classes) == (0.0, 0)
    assert narrow.label_share > 0.3


def test_order_and_names_do_not_matter() -> None:
    rows, labels = drawn(2)
    partly = labelled_first(labels, 8)
    order = np.random.default_rng(0).permutation(len(rows))
    renamed = [None if partly[row] is None else f"x{partly[row]}" for row in order]
    plain, changed = transfer(rows, partly), transfer(rows[order], renamed)
    assert plain.threshold == pytest.approx(changed.threshold, abs=1e-6)
    assert plain.label_share == pytest.approx(changed.label_share, abs=1e-6)


def test_a_lower_target_needs_a_higher_threshold() -> None:
    rows, labels = drawn(3)
    thresholds = [transfer(rows, labelled_first(labels, 30), target_far=far).threshold for far in (0.05, 0.02, 0.01)]
    assert thresholds == sorted(thresholds)


def test_pairs_that_mostly_match_are_refused_without_labels() -> None:
    """A share of matches far above the target leaves nothing to see of the false accepts."""
    rows, labels = drawn(4)
    with pytest.raises(NotEnoughEvidence, match=r"0 classes are labelled.* label more classes"):
        transfer(rows, [None] * len(labels), target_far=0.002)


def test_few_pairs_are_refused_with_the_number_that_suffices() -> None:
    rows, _ = drawn(5, n_classes=5, n_images=5)
    with pytest.raises(NotEnoughEvidence, match="at least 500 pairs, found 300"):
        transfer(rows, [None] * 25, target_far=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_far": 0.0},
        {"confidence": 1.0},
        {"max_factor": 1.0},
        {"prevalence": Interval(0.0, 0.1)},
        {"tar": Interval(0.9, 0.1)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    rows, labels = drawn(6, n_classes=4)
    with pytest.raises(InvalidInput, match=r"expected target_far|must be an interval"):
        transfer(rows, list(labels), **wrong)


def test_vectors_that_are_not_unit_are_refused() -> None:
    rows, labels = drawn(7)
    with pytest.raises(InvalidEmbeddings, match="rows of norm 1"):
        transfer(2 * rows, list(labels))


def test_images_of_few_classes_are_refused() -> None:
    """300 images of 60 classes, said to be of about 5."""
    rows, labels = drawn(8)
    with pytest.raises(NotEnoughEvidence, match="of about 5 classes, expected at least 20"):
        transfer(rows, list(labels), prevalence=Interval(0.19, 0.2))
