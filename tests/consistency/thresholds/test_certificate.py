from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import cap_advice, certify, certify_mean, highest_mean_far, labelled, operating_curves
from retrieval.errors import InvalidInput, NotEnoughEvidence


def needed(rows: NDArray[np.float32], codes: NDArray[np.int64], alpha: float, *, of_new: int = 0) -> list[float]:
    """Each class's smallest threshold with FAR at most alpha, from its sorted scores."""
    scores, found = rows @ rows.T, []
    for code in np.unique(codes):
        own = codes == code
        negatives = np.sort(scores[np.ix_(own, ~own)].ravel())[::-1]
        extra = own.sum() * of_new
        allowed = math.floor(alpha * (len(negatives) + extra) - extra + 1e-9)
        found.append(float(np.nextafter(negatives[allowed], np.float32(9))))
    return found


@pytest.mark.parametrize(("delta", "rank"), [(0.1, 18), (0.05, 19)])
@pytest.mark.parametrize("strict", [False, True])
def test_it_is_the_order_statistic_of_what_classes_need(delta: float, rank: int, strict: bool, family) -> None:
    """ceil(20 * 0.9) = 18: the 18th smallest of 19 needed thresholds; with delta 0.05 the 19th."""
    rows, labels = family(np.random.default_rng(0), n_classes=19, n_images=5, spread=0.3)
    codes = np.repeat(np.arange(19), 5)
    kept = np.random.default_rng(1).permutation(95)[:80]
    rows, codes = rows[kept], codes[kept]
    largest = int(np.bincount(codes).max())
    expected = sorted(needed(rows, codes, 0.2, of_new=largest if strict else 0))[rank - 1]
    found = certify(labelled(rows, [labels[5 * code] for code in codes]), alpha=0.2, delta=delta, strict=strict)
    assert found.threshold == pytest.approx(expected, abs=1e-6)  # products of other tiles differ in the last digit
    curves = operating_curves(labelled(rows, [labels[5 * code] for code in codes]), thresholds=[found.threshold])
    assert (found.far, found.tar) == (curves.pooled_far[0], curves.pooled_tar[0])
    assert np.count_nonzero(curves.far[:, 0] <= 0.2) >= rank
    assert f"FAR <= 0.2 with probability >= {1 - delta:g} (from 19 classes" in str(found)


def test_no_lower_float32_is_certified(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=30, n_images=4, spread=0.3)
    found = certify(labelled(rows, labels), alpha=0.1, delta=0.1, strict=False)
    below = float(np.nextafter(np.float32(found.threshold), np.float32(-1)))
    keeping = (operating_curves(labelled(rows, labels), thresholds=[below, found.threshold]).far <= 0.1).sum(axis=0)
    assert keeping[0] < math.ceil(31 * 0.9) == 28 <= keeping[1]
    mean = certify_mean(labelled(rows, labels), alpha=0.1, strict=False)
    below = float(np.nextafter(np.float32(mean.threshold), np.float32(-1)))
    risk = (operating_curves(labelled(rows, labels), thresholds=[below, mean.threshold]).far.sum(axis=0) + 1) / 31
    assert risk[1] <= 0.1 + 1e-12 < risk[0]


def test_frr_is_certified_from_the_other_side(family) -> None:
    """The highest threshold at which enough classes keep FRR; their own pairs alone decide."""
    rows, labels = family(np.random.default_rng(3), n_classes=40, n_images=4, spread=0.3)
    found = certify(labelled(rows, labels), alpha=0.5, delta=0.1, rate="frr")
    above = float(np.nextafter(np.float32(found.threshold), np.float32(9)))
    keeping = (operating_curves(labelled(rows, labels), thresholds=[found.threshold, above]).tar >= 0.5).sum(axis=0)
    assert keeping[1] < math.ceil(41 * 0.9) <= keeping[0]
    mean = certify_mean(labelled(rows, labels), alpha=0.3, rate="frr")
    above = float(np.nextafter(np.float32(mean.threshold), np.float32(9)))
    frr = 1 - operating_curves(labelled(rows, labels), thresholds=[mean.threshold, above]).tar
    risk = (frr.sum(axis=0) + 1) / 41
    assert risk[0] <= 0.3 + 1e-12 < risk[1]
    assert not found.strict
    assert "FRR of a new class is <= 0.3 on average (from 40 classes)" in str(mean)


def test_strict_is_never_below_plain(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=50, n_images=3, spread=0.3)
    for alpha in (0.1, 0.3):
        plain, strict = (certify(labelled(rows, labels), alpha=alpha, delta=0.1, strict=s) for s in (False, True))
        assert plain.threshold <= strict.threshold
        plain_mean, strict_mean = (certify_mean(labelled(rows, labels), alpha=alpha, strict=s) for s in (False, True))
        assert plain_mean.threshold <= strict_mean.threshold


@pytest.mark.slow
def test_promises_hold_for_unseen_classes(family) -> None:
    """Over 150 draws of 30 classes and 10 new ones: the strict promises are kept, on average over everything drawn."""
    rng, kept, means, rejected = np.random.default_rng(5), [], [], []
    for _ in range(150):
        rows, labels = family(rng, n_classes=40, n_images=2, dimension=12, spread=0.3, crowding=0.8)
        old = (rows[:60], labels[:60])
        scores = rows[60:] @ rows[:60].T
        for certificate, found in (
            (certify(labelled(*old), alpha=0.2, delta=0.1), kept),
            (certify_mean(labelled(*old), alpha=0.2), means),
        ):
            far = (scores >= certificate.threshold).reshape(10, -1).mean(axis=1)
            found.append((far <= 0.2).mean() if found is kept else far.mean())
        own = (rows[60::2] * rows[61::2]).sum(axis=1)
        rejected.append((own < certify_mean(labelled(*old), alpha=0.3, rate="frr").threshold).mean())
    # Standard errors over draws are below 0.01.
    assert np.mean(kept) >= 0.9 - 0.02
    assert np.mean(means) <= 0.2 + 0.02
    assert 0.2 <= np.mean(rejected) <= 0.3 + 0.03


def test_too_few_classes_are_refused_with_the_number_that_suffices(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=18, n_images=3)
    with pytest.raises(NotEnoughEvidence, match="at least 19 classes, found 18"):
        certify(labelled(rows, labels), alpha=0.2, delta=0.05)
    with pytest.raises(
        NotEnoughEvidence, match=r"at no threshold do 18 of 18 classes keep FAR <= 0.02.* about 50 classes"
    ):
        certify(labelled(rows, labels), alpha=0.02, delta=0.06)
    with pytest.raises(NotEnoughEvidence, match="at least 19 classes, found 18"):
        certify_mean(labelled(rows, labels), alpha=0.05, strict=False)
    with pytest.raises(NotEnoughEvidence, match="at least 20 classes, found 18"):
        certify_mean(labelled(rows, labels), alpha=0.05)
    alone = [f"{label} {row}" if row % 3 else label for row, label in enumerate(labels)]
    with pytest.raises(NotEnoughEvidence, match="at least 9 classes, found 0"):
        certify(labelled(rows, alone), alpha=0.2, delta=0.1, rate="frr")


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1), (float("nan"), 0.1)])
def test_impossible_levels_are_refused(alpha: float, delta: float, family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=20, n_images=2)
    with pytest.raises(InvalidInput, match="alpha and delta must lie"):
        certify(labelled(rows, labels), alpha=alpha, delta=delta)
    with pytest.raises(InvalidInput, match="'far' or 'frr', found 'eer'"):
        certify_mean(labelled(rows, labels), alpha=0.2, rate="eer")  # type: ignore[arg-type]  # without types


def test_the_class_that_decides_is_named_and_capped(family) -> None:
    """99 classes of 5 images and one of 300: classes are enough, but a new one may be as large as the largest."""
    rng = np.random.default_rng(20)
    rows, labels = family(rng, n_classes=100, n_images=300, dimension=8)
    kept = np.concatenate([np.arange(300), *(300 * code + np.arange(5) for code in range(1, 100))])
    vectors = labelled(rows[kept], [labels[row] for row in kept])
    for refused in (
        lambda: certify(vectors, alpha=0.1, delta=0.05),
        lambda: certify_mean(vectors, alpha=0.1),
    ):
        with pytest.raises(NotEnoughEvidence, match=r"'class 0000' with 300 of 795 images.*\(max_images=5;"):
            refused()
    found = certify(vectors, alpha=0.1, delta=0.05, max_images=5, seed=3)
    assert (found.n_classes, found.max_images, found.seed) == (100, 5, 3)
    assert "(from 100 classes, at most 5 images of each drawn with seed 3, strict)" in str(found)
    assert certify(vectors, alpha=0.1, delta=0.05, max_images=5, seed=3) == found
    assert certify_mean(vectors, alpha=0.1, max_images=5).max_images == 5
    with pytest.raises(InvalidInput, match="max_images of at least 2"):
        certify(vectors, alpha=0.1, delta=0.05, max_images=1)


def most_false_accepts(n: int, far: float) -> float:
    """Solve the program of `highest_mean_far`: for each pair of classes, the shares that fall at t_i and at t_j."""
    from scipy.optimize import linprog

    pairs = [(i, j) for i in range(n + 1) for j in range(i + 1, n + 1)]
    constraints = np.zeros((n + 1 + len(pairs), 2 * len(pairs)))
    for pair, (i, j) in enumerate(pairs):
        constraints[:i, 2 * pair] = constraints[:j, 2 * pair + 1] = 1
        constraints[i, 2 * pair + 1] = 0
        constraints[n + 1 + pair, 2 * pair : 2 * pair + 2] = 1
    limits = np.append(np.full(n + 1, far * n * (n - 1) / 2), np.ones(len(pairs)))
    return float(-linprog(-np.tile([1.0, 2.0], len(pairs)), A_ub=constraints, b_ub=limits, bounds=(0, 1)).fun)


@pytest.mark.parametrize("n", [5, 9, 14])
@pytest.mark.parametrize("alpha", [0.22, 0.25, 0.3])
def test_the_certified_mean_is_the_optimum_of_its_program(n: int, alpha: float) -> None:
    far = highest_mean_far(alpha, n)
    assert most_false_accepts(n, far) == pytest.approx(alpha * n * (n + 1), rel=1e-6)
    assert far > ((n + 1) * alpha - 2) / (n - 1)


def test_the_mean_certificate_holds_where_classes_are_bad_one_by_one() -> None:
    """Each class has a place, and below it is confused with all others: there the textbook's rule has no slack."""
    n, alpha, rng, found = 30, 0.2, np.random.default_rng(21), []
    pairs = n * (n - 1) / 2
    for _ in range(4000):
        places = np.sort(rng.random(n))[::-1]
        n_bad = np.arange(n + 1)  # at a threshold just below the place of the next class
        mean = 1 - (n - n_bad) * (n - n_bad - 1) / 2 / pairs
        bad = int(np.flatnonzero(mean <= highest_mean_far(alpha, n))[-1])
        threshold = places[bad]  # lowest threshold with so many bad classes
        found.append(1.0 if rng.random() > threshold else bad / n)
    assert alpha / 2 <= np.mean(found) <= alpha + 0.01


@pytest.mark.slow
def test_the_mean_certificate_covers_and_is_less_strict(family) -> None:
    """Over 200 draws of 60 classes: the mean FAR of new classes keeps alpha, at the higher mean that is now allowed."""
    rng, alpha, found = np.random.default_rng(22), 0.05, []
    for _ in range(200):
        rows, labels = family(rng, n_classes=80, n_images=2, dimension=8, spread=0.3, crowding=0.8)
        certificate = certify_mean((rows[:120], labels[:120]), alpha=alpha)
        found.append(((rows[120:] @ rows[:120].T) >= certificate.threshold).mean())
    assert 0.5 * alpha <= np.mean(found) <= alpha


def families_of(labels: list[str], size: int) -> list[str]:
    return [str(int(label.split()[1]) // size) for label in labels]


def test_families_of_one_class_change_nothing(family) -> None:
    rows, labels = family(np.random.default_rng(23), n_classes=40, n_images=3, spread=0.3)
    plain, named = labelled(rows, labels), labelled(rows, labels, families=labels)
    found = certify(named, alpha=0.2, delta=0.1)
    assert (found.threshold, found.n_families) == (certify(plain, alpha=0.2, delta=0.1).threshold, 40)
    assert "(from 40 classes in 40 families, strict)" in str(found)
    assert certify_mean(named, alpha=0.2).threshold == certify_mean(plain, alpha=0.2).threshold
    assert certify_mean(plain, alpha=0.2).n_families is None


def test_a_family_counts_once(family) -> None:
    """Slow reference: the lowest threshold at which the sum over families of the share that keeps alpha is reached."""
    rows, labels = family(np.random.default_rng(24), n_classes=60, n_images=3, spread=0.4)
    units = [str(min(int(label.split()[1]), 29)) for label in labels]  # 29 classes alone, and a family of 31
    found = certify(labelled(rows, labels, families=units), alpha=0.2, delta=0.1, strict=False)
    grid = np.append(np.linspace(found.threshold - 0.2, found.threshold - 1e-4, 50), found.threshold)
    keeping = operating_curves((rows, labels), thresholds=grid).far <= 0.2
    reached = keeping[:29].sum(axis=0) + keeping[29:].mean(axis=0)
    assert reached[-1] >= 31 * 0.9 - 1e-9 > reached[:-1].max()


def test_few_families_are_refused_as_families(family) -> None:
    rows, labels = family(np.random.default_rng(25), n_classes=60, n_images=3)
    vectors = labelled(rows, labels, families=families_of(labels, 6))
    with pytest.raises(NotEnoughEvidence, match="needs at least 19 families, found 10; add families"):
        certify(vectors, alpha=0.2, delta=0.05)
    with pytest.raises(NotEnoughEvidence, match=r"by 10 families.* takes about 20 families of equal size"):
        certify_mean(vectors, alpha=0.1)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_as_many_families_as_are_asked_for_are_enough(alpha: float) -> None:
    """With the number of the message, of classes that never accept another; with two fewer they are refused."""
    enough = round(2 / alpha)
    for n in (enough - 2, enough):
        rows, labels = np.repeat(np.eye(3 * n, dtype=np.float32), 2, axis=0), [f"class {i // 2}" for i in range(6 * n)]
        vectors = labelled(rows, labels, families=families_of(labels, 3))
        if n == enough:
            assert certify_mean(vectors, alpha=alpha).n_families == n
        else:
            with pytest.raises(NotEnoughEvidence, match=f"by {n} families.* takes about {enough} families"):
                certify_mean(vectors, alpha=alpha)


def test_the_family_that_decides_is_named() -> None:
    """44 families of one class and one of 30: there are enough of them, and no cap makes the large one smaller."""
    rows, labels = np.repeat(np.eye(74, dtype=np.float32), 2, axis=0), [f"class {i // 2}" for i in range(148)]
    vectors = labelled(rows, labels, families=["all" if i >= 88 else label for i, label in enumerate(labels)])
    with pytest.raises(NotEnoughEvidence, match=r"largest of the families, that of class 'class 44' with 60 of 148 i"):
        certify_mean(vectors, alpha=0.05)


def test_a_certificate_that_a_cap_would_loosen_is_advised(family) -> None:
    """Sizes 3 and 30: with all images the mean certificate takes a FAR of 0.011, with 3 of each 0.030."""
    rows, labels = family(np.random.default_rng(26), n_classes=60, n_images=10, dimension=8, spread=0.3, crowding=0.8)
    kept = np.concatenate([10 * code + np.arange(10 if code % 5 == 0 else 3) for code in range(60)])
    vectors = labelled(rows[kept], [labels[row] for row in kept])
    found = certify_mean(vectors, alpha=0.06)
    advised = cap_advice(vectors, found)
    assert "'class 0000' with 10 of 264 images; at most 3 images a class (max_images=3)" in advised
    capped = certify_mean(vectors, alpha=0.06, max_images=3)
    assert capped.threshold < found.threshold
    assert cap_advice(vectors, capped) == ""
    assert cap_advice(vectors, certify_mean(vectors, alpha=0.06, strict=False)) == ""


@pytest.mark.slow
def test_certificates_hold_for_a_new_family(family) -> None:
    """Families of 4 look-alikes: counted once they keep the promise, counted as classes they break it."""
    rng, kept = np.random.default_rng(27), {True: [], False: []}
    for _ in range(120):
        centres = np.repeat(rng.normal(size=(26, 8)), 4, axis=0) + 0.6 * rng.normal(size=(104, 8))
        noise = np.repeat(np.exp(0.5 * rng.normal(size=26)), 4)[:, None]
        rows = np.repeat(centres, 2, axis=0) + 0.6 * np.repeat(noise, 2, axis=0) * rng.normal(size=(208, 8))
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        codes = np.arange(208) // 2
        labels, units = [f"{code:03d}" for code in codes[:200]], [str(code // 4) for code in codes[:200]]
        for named, found in kept.items():
            vectors = labelled(rows[:200], labels, families=units if named else None)
            threshold = certify(vectors, alpha=0.3, delta=0.1).threshold
            for code in range(100, 104):
                met = codes != code
                found.append((rows[codes == code] @ rows[met].T >= threshold).mean() <= 0.3)
    assert np.mean(kept[True]) >= 0.9 - 0.03
    assert np.mean(kept[False]) < np.mean(kept[True])


@pytest.mark.slow
def test_the_cap_that_is_named_leaves_nearly_the_most_room(family) -> None:
    """60 classes of 2 to 30 images: a cap of 20 was named, which certifies next to nothing."""
    rng = np.random.default_rng(28)
    rows, labels = family(rng, n_classes=60, n_images=30, dimension=12, spread=0.4, crowding=0.8)
    sizes = np.floor(np.exp(rng.uniform(np.log(2), np.log(31), size=60))).astype(int)
    kept = np.concatenate([30 * code + np.arange(size) for code, size in enumerate(sizes)])
    vectors = labelled(rows[kept], [labels[row] for row in kept])
    with pytest.raises(NotEnoughEvidence, match=r"with 29 of 628 images.*\(max_images=2\), or strict=False"):
        certify_mean(vectors, alpha=0.05)
    loose, strict = (certify_mean(vectors, alpha=0.05, max_images=cap) for cap in (2, 12))
    assert loose.threshold < strict.threshold - 0.05
    assert loose.tar > strict.tar + 0.05
