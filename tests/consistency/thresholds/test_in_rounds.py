"""What thresholds, variances and certificates make of rounds of searches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import (
    Division,
    SearchRound,
    certificate_from_curves,
    certify,
    certify_mean,
    choose_threshold,
    crossed,
    in_rounds,
    labelled,
    operating_curves,
    parse_target,
    threshold_from_curves,
    threshold_grid,
)
from retrieval.consistency.pairs.sizes import PairSizes
from retrieval.consistency.subgroups.counts import accepted_class_pairs
from retrieval.consistency.thresholds.look_alike import class_means, find_look_alikes
from retrieval.consistency.thresholds.near_optimum import _of_utility
from retrieval.consistency.thresholds.rate_variances import _residuals, rate_variances
from retrieval.consistency.thresholds.room import MeanRoom, Units, best_cap
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.thresholds.test_near_optimum import achieved_by_weighted_classes
from tests.searches import Pairs, search_rounds, searched, uneven

SIZES = [3] * 18 + [2, 2, 1, 5]
FAMILIES = np.array([0, 0, 0, 1, 1, *range(2, 19)])


def small(family: Callable[..., tuple], *, seed: int = 2) -> tuple[NDArray[np.float32], list[str]]:
    """Twenty-two classes of 1 to 5 images."""
    drawn = family(np.random.default_rng(seed), n_classes=22, n_images=5, dimension=16, spread=0.3, crowding=1.0)
    return uneven(*drawn, SIZES)


def between(pairs: Pairs, n_classes: int, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return accepted pairs and all pairs of each two classes, both ways together: two symmetric [T, T]."""
    accepted = pairs.by_classes(pairs.scores >= np.float32(threshold), n_classes)
    every = pairs.by_classes(np.ones(len(pairs.scores), dtype=bool), n_classes)
    return accepted + accepted.T, every + every.T


@pytest.mark.parametrize("kind", ["one set", "crossed", "rounds"])
@pytest.mark.parametrize("units", [np.arange(22), FAMILIES])
def test_residuals_are_sums_over_all_pairs_of_classes(kind: str, units: NDArray[np.int64], family) -> None:
    """Of unequal classes and families, with any weights of the classes."""
    rows, labels = small(family)
    codes = np.unique(labels, return_inverse=True)[1]
    threshold, weights = 0.45, np.random.default_rng(0).random(22)
    if kind == "rounds":
        vectors, pairs = searched(rows, labels)
        accepted, every = between(pairs, 22, threshold)
    elif kind == "crossed":
        asks = np.random.default_rng(1).random(len(rows)) < 0.4
        sides = [(rows[side], [labels[row] for row in np.flatnonzero(side)]) for side in (asks, ~asks)]
        vectors = crossed(*sides[0], *sides[1])
        scores = sides[0][0] @ sides[1][0].T
        accepted, every = (
            np.array([[part[codes[asks] == i][:, codes[~asks] == j].sum() for j in range(22)] for i in range(22)])
            for part in (scores >= threshold, np.ones_like(scores))
        )
        accepted, every = accepted + accepted.T, every + every.T
    else:
        vectors = labelled(rows, labels)
        scores = rows @ rows.T >= threshold
        accepted = np.array([[scores[codes == i][:, codes == j].sum() for j in range(22)] for i in range(22)])
        every = np.multiply.outer(SIZES, SIZES)
    rate, n_units = 0.03, int(units.max()) + 1
    share = (weights[:, None] + weights) * every
    residual = (weights[:, None] + weights) * accepted - rate * share
    np.fill_diagonal(share, 0)
    np.fill_diagonal(residual, 0)
    of_units, shares = np.zeros((n_units, n_units)), np.zeros((n_units, n_units))
    for i in range(22):
        for j in range(i):
            place = max(units[i], units[j]), min(units[i], units[j])
            of_units[place] += residual[i, j]
            shares[place] += share[i, j]
    ends = [part.sum(axis=0) + part.sum(axis=1) - part.diagonal() for part in (of_units, shares)]
    by_unit, by_pair, found_shares = _residuals(
        accepted_class_pairs(vectors, threshold), vectors.sizes, units, rate, weights
    )
    np.testing.assert_allclose(found_shares, ends[1])
    np.testing.assert_allclose(by_unit, ends[0] / np.maximum(1 - ends[1], 1e-9))
    assert by_pair == pytest.approx((np.tril(of_units, -1) ** 2).sum())


def test_variances_in_rounds_are_those_of_pairs_of_classes(family) -> None:
    """The dyadic variance of pooled FAR: residuals of classes by 1 - their share, without any formula for sums."""
    rows, labels = small(family)
    vectors, pairs = searched(rows, labels, families=labels)
    accepted, every = between(pairs, 22, 0.45)
    for part in (accepted, every):
        np.fill_diagonal(part, 0)
    total, far = every.sum() / 2, accepted.sum() / every.sum()
    residual = (accepted - far * every) / (total * far)
    by_class = residual.sum(axis=1) / (1 - every.sum(axis=1) / total)
    of_pair = (np.tril(residual, -1) ** 2).sum()
    found = rate_variances(vectors, operating_curves(vectors, thresholds=[0.45]))
    assert found.pair_variance == pytest.approx(of_pair)
    shares = every.sum(axis=1) / total
    even = (by_class**2 / shares).sum() / shares.sum() * (shares @ shares)
    assert found.class_variance == pytest.approx(max(by_class @ by_class, even) - 2 * of_pair)


def test_repeated_rounds_are_no_new_evidence(family) -> None:
    """The same round ten times: threshold, rates, variances and intervals are those of one."""
    rows, labels = family(np.random.default_rng(3), n_classes=40, n_images=4, dimension=16, spread=0.4, crowding=0.8)
    rounds = search_rounds(rows, labels, 1, np.random.default_rng(0))
    once, often = (choose_threshold(in_rounds(labels, rounds * n), target="far=0.02") for n in (1, 10))
    assert often.threshold == once.threshold
    for name in ("far", "tar", "class_variance", "pair_variance", "far_units", "tar_units", "n_images"):
        assert getattr(often, name) == pytest.approx(getattr(once, name)), name
    assert often.far_interval.high == pytest.approx(once.far_interval.high)
    assert often.tar_interval.low == pytest.approx(once.tar_interval.low)


@pytest.mark.parametrize("text", ["far=0.02", "class-far=0.02", "frr=0.3", "precision=0.2@0.01", "f1@0.01", "utility"])
def test_every_target_is_reached_on_the_pairs_of_the_rounds(text: str, family) -> None:
    """Rates are those of all pairs; a lower threshold misses the target, or achieves no more."""
    rows, labels = family(np.random.default_rng(4), n_classes=40, n_images=5, dimension=12, spread=0.3, crowding=0.5)
    vectors, pairs = searched(rows, labels)
    target = parse_target(text)
    choice = choose_threshold(vectors, target=target, confidence=0.9)
    accepted, every = between(pairs, 40, choice.threshold)
    matches = accepted.trace() / every.trace()
    assert choice.tar == pytest.approx(matches)
    assert choice.far == pytest.approx((accepted.sum() - accepted.trace()) / (every.sum() - every.trace()))
    curves = operating_curves(vectors, thresholds=np.append(np.linspace(-0.5, 1.2, 400), choice.threshold))
    achieved, chosen = target.achieved(curves), np.searchsorted(curves.thresholds, choice.threshold)
    level = achieved.max() if target.choice == "best" else target.level
    assert achieved[chosen] >= level - 1e-12
    stricter = slice(chosen + 1, None) if target.choice == "highest" else slice(None, chosen)
    assert (achieved[stricter] <= level).all()
    assert choice.threshold in choice.threshold_interval
    assert choice.far in choice.far_interval
    assert choice.tar in choice.tar_interval
    assert (choice.n_classes, choice.n_images) == (40, 200)
    assert choice.far in choice.predicted_far(30)
    assert choice.tar in choice.predicted_tar(30)


@pytest.mark.parametrize("text", ["utility", "utility=2"])
def test_influence_is_the_change_with_the_weight_of_a_class(text: str, family) -> None:
    """As in one set of images, with queries and items of each class in place of its images."""
    rows, labels = family(np.random.default_rng(0), n_classes=12, n_images=5, dimension=8, spread=0.4)
    rows, labels = rows[:-2], labels[:-2]
    target = parse_target(text)
    vectors, pairs = searched(rows, labels)
    thresholds = np.array([0.2, 0.4, 0.6])
    curves = operating_curves(vectors, thresholds=thresholds)
    influence = _of_utility(vectors, curves, target.value, exact=True)
    step = 1e-4
    weights = np.vstack([np.ones(12), np.ones(12) + step * np.eye(12)])
    for column, threshold in enumerate(thresholds):
        accepted, every = between(pairs, 12, threshold)
        for part in (accepted, every):
            np.fill_diagonal(part, 0)
        values = achieved_by_weighted_classes(target, weights, weights @ accepted, weights @ every, curves, column)
        change = (values[1:] - values[0]) / step
        assert influence[:, column] - influence[:, column].mean() == pytest.approx(change - change.mean(), abs=2e-3)


def strict_rates(pairs: Pairs, sizes: PairSizes, units: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """Return the FAR of each class if all pairs with a new unit as large as the largest are accepted."""
    n = len(units)
    accepted, every = between(pairs, n, threshold)
    for part in (accepted, every):
        np.fill_diagonal(part, 0)
    queries, items = (max(side[units == unit].sum() for unit in units) for side in (sizes.queries, sizes.items))
    new = sizes.factor * (sizes.queries * items + sizes.items * queries)
    return (accepted.sum(axis=1) + new) / (every.sum(axis=1) + new)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["share", "mean"])
def test_a_certificate_is_the_first_threshold_that_enough_classes_keep(
    kind: str, strict: bool, named: bool, family
) -> None:
    """Against rates counted pair by pair, for classes of 3 to 8 images, at the threshold and just below it."""
    rows, labels = family(np.random.default_rng(5), n_classes=40, n_images=8, spread=0.3)
    sizes = [3 + code % 6 for code in range(40)]
    rows, labels = uneven(rows, labels, sizes)
    units = np.array([0, 0, *range(1, 39)]) if named else np.arange(40)
    names = [str(units[int(label.split()[1])]) for label in labels]
    vectors, pairs = searched(rows, labels, families=names if named else None)
    alpha, delta, n = 0.15, 0.1, len(set(units))
    share = 1 / np.bincount(units)[units]
    found = (
        certify(vectors, alpha=alpha, delta=delta, strict=strict)
        if kind == "share"
        else certify_mean(vectors, alpha=alpha, strict=strict)
    )
    assert found.n_families == (39 if named else None)
    held = []
    for threshold in (found.threshold - 1e-6, found.threshold + 1e-6):  # products of other tiles differ by less
        if strict:
            rates = strict_rates(pairs, vectors.sizes, units, threshold)
        else:
            accepted, every = between(pairs, 40, threshold)
            for part in (accepted, every):
                np.fill_diagonal(part, 0)
            rates = accepted.sum(axis=1) / every.sum(axis=1)
        if kind == "share":
            held.append(share @ (rates <= alpha) >= (n + 1) * (1 - delta) - 1e-9)
        else:
            held.append((share @ rates + 1) / (n + 1) <= alpha + 1e-12)
    assert held == [False, True]


def test_classes_of_one_size_have_the_bound_of_equal_classes(family) -> None:
    """The mean FAR of pairs of classes is that of rounds, so the linear program of one set holds."""
    rows, labels = family(np.random.default_rng(6), n_classes=60, n_images=4, spread=0.3)
    equal, _ = searched(rows, labels)
    assert Units.of(equal).equal
    found = certify_mean(equal, alpha=0.05)
    curves = operating_curves(equal, thresholds=[found.threshold - 1e-6, found.threshold])
    assert curves.mean_far[1] <= 0.0298 + 1e-4 < curves.mean_far[0] + 1e-4
    # As many images, but one query fewer of one class: no two classes of other sides are exchangeable in that bound.
    (one,) = search_rounds(rows, labels, 1, np.random.default_rng(0))
    queries, items = one.division.queries[1:], np.sort(np.append(one.division.items, one.division.queries[0]))
    unequal = in_rounds(labels, [SearchRound(Division(queries, items), rows[queries], rows[items])])
    assert unequal.n_images.tolist() == [4] * 60
    assert not Units.of(unequal).equal


def test_certificates_of_frr_are_about_classes_with_a_query(family) -> None:
    rows, labels = uneven(*family(np.random.default_rng(7), n_classes=40, n_images=4), [1] * 10 + [4] * 30)
    vectors, pairs = searched(rows, labels)
    found = certify(vectors, alpha=0.5, delta=0.1, rate="frr")
    assert found.n_classes == 30
    kept = []
    for threshold in (found.threshold, found.threshold + 1e-6):
        accepted, every = between(pairs, 40, threshold)
        tar = accepted.diagonal()[10:] / every.diagonal()[10:]
        kept.append((1 - tar <= 0.5).sum())
    assert kept[0] >= math.ceil(31 * 0.9) > kept[1]


def test_what_rounds_cannot_show_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(8), n_classes=30, n_images=4)
    vectors, _ = searched(rows, labels)
    with pytest.raises(InvalidInput, match="max_images does not apply to rounds"):
        certify(vectors, alpha=0.2, delta=0.1, max_images=2)
    alone, _ = searched(rows[::4], labels[::4])
    for refused in (lambda: certify(alone, alpha=0.2, delta=0.1), lambda: certify_mean(alone, alpha=0.2)):
        with pytest.raises(NotEnoughEvidence, match="no query meets an item of another class"):
            refused()
    with pytest.raises(NotEnoughEvidence, match="needs at least 20 classes with 2 images or more, found 0"):
        choose_threshold(alone, target="far=0.1")
    assert best_cap(Units.of(vectors), MeanRoom(0.1)) is None
    with pytest.raises(NotEnoughEvidence, match=r"by 30 classes: with strict, a new one may be as large as the larg"):
        certify_mean(searched(*uneven(rows, labels, [4] + [2] * 29))[0], alpha=0.08)


def test_errors_are_counted_by_pairs_of_images_and_not_by_rounds(family) -> None:
    """Twenty classes of 2 images: 760 pairs of images, whatever the number of rounds; 20 pairs of one class."""
    rows, labels = family(np.random.default_rng(7), n_classes=20, n_images=2)
    for n_rounds in (1, 8):
        vectors, _ = searched(rows, labels, n_rounds)
        with pytest.raises(NotEnoughEvidence, match=r"at least 10000 negative pairs, found 760; that takes about 72"):
            choose_threshold(vectors, target="far=0.001")
        with pytest.raises(NotEnoughEvidence, match=r"at least 100 positive pairs, found 20; that takes about 100 cl"):
            choose_threshold(vectors, target="frr=0.1")


def test_curves_of_rounds_certify_no_lower_threshold(family) -> None:
    """The curves do not hold the numbers of queries, which a strict certificate takes: then they are refused."""
    rows, labels = family(np.random.default_rng(9), n_classes=40, n_images=4, spread=0.3)
    vectors, _ = searched(rows, labels, 6)
    curves = operating_curves(vectors, thresholds=threshold_grid(vectors, far_low=1e-2, far_high=0.3, n_band=2000))
    exact = certify(vectors, alpha=0.2, delta=0.1, strict=False)
    found = certificate_from_curves(curves, alpha=0.2, delta=0.1, strict=False)
    assert exact.threshold <= found.threshold <= exact.threshold + 1e-3
    with pytest.raises(InvalidInput, match="takes their queries and items: use certify"):
        certificate_from_curves(curves, alpha=0.2, delta=0.1)
    chosen = threshold_from_curves(curves, target="far=0.02")
    assert chosen.threshold == pytest.approx(choose_threshold(vectors, target="far=0.02").threshold, abs=1e-3)


def test_class_means_are_those_of_the_queries(family) -> None:
    """A class without a query has no mean; own scores are those of its pairs."""
    rows, labels = uneven(*family(np.random.default_rng(10), n_classes=6, n_images=4), [1, 2, 3, 4, 1, 4])
    vectors, pairs = searched(rows, labels)
    means, own = class_means(vectors)
    for code in range(6):
        inside = pairs.scores[(pairs.query == code) & (pairs.item == code)]
        asked = vectors.query[vectors.codes == code]
        if len(asked) == 0:
            assert np.isnan(means[code]).all()
            assert np.isnan(own[code])
        else:
            np.testing.assert_allclose(means[code], asked.mean(axis=0), atol=1e-6)
            assert own[code] == pytest.approx(inside.mean(), abs=1e-6)


def with_lonely(rows: NDArray[np.float32], labels: list[str]) -> tuple[NDArray[np.float32], list[str]]:
    """Add two classes of one image before the others and one behind."""
    extra = np.eye(rows.shape[1], dtype=np.float32)[:3]
    return np.concatenate([extra, rows]), ["!", "#", "~", *labels]


def test_groups_of_look_alikes_are_found_in_rounds() -> None:
    """As in one set; a class without a query is a group by itself."""
    rng = np.random.default_rng(12)
    family_of = np.arange(60) // 5
    centres = 0.87 * rng.normal(size=(12, 24))[family_of] + 0.5 * rng.normal(size=(60, 24))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres.repeat(4, axis=0) + 0.8 / np.sqrt(24) * rng.normal(size=(240, 24))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    vectors, _ = searched(*with_lonely(rows, [f"{row // 4:02d}" for row in range(240)]), 2)
    found = find_look_alikes(vectors)
    assert found is not None
    units = found.units
    lonely = [0, 1, 62]
    assert all(np.count_nonzero(units == units[code]) == 1 for code in lonely)
    inner = np.delete(units, lonely)
    same = inner[:, None] == inner
    assert (same == (family_of[:, None] == family_of)).mean() > 0.98
    choice = choose_threshold(vectors, target="far=0.02")
    assert "groups of look-alike classes were found" in choice.warnings[0]
