from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata
from sklearn.metrics import adjusted_rand_score, silhouette_score

from retrieval.consistency import choose_threshold, labelled, operating_curves, warnings_at
from retrieval.consistency.thresholds import look_alike
from retrieval.consistency.thresholds.look_alike import class_means, cuts, find_look_alikes, mean_silhouette, moran


def draw(rng, n_families: int, size: int, *, n_images: int = 4, alike: float = 0.75, width: float = 0.0, d: int = 24):
    """Rows, labels and families of classes with a direction of the family; width: spread of the noise of families."""
    n = n_families * size
    family = np.arange(n) // size
    centres = np.sqrt(alike) * rng.normal(size=(n_families, d))[family] + np.sqrt(1 - alike) * rng.normal(size=(n, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.exp(width * rng.normal(size=n_families))[family].repeat(n_images)[:, None] / np.sqrt(d)
    rows = centres.repeat(n_images, axis=0) + 0.8 * noise * rng.normal(size=(n * n_images, d))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows, [f"{row // n_images:05d}" for row in range(len(rows))], family


@pytest.mark.parametrize(("n_families", "size"), [(12, 8), (5, 20), (40, 3)])
def test_groups_are_the_families_that_nobody_named(n_families: int, size: int) -> None:
    rows, labels, family = draw(np.random.default_rng(3), n_families, size)
    found = find_look_alikes(labelled(rows, labels))
    assert found is not None
    assert adjusted_rand_score(family, found.units) > 0.8
    assert f"{n_families} groups of look-alike classes" in str(found) or adjusted_rand_score(family, found.units) < 1


@pytest.mark.slow
def test_classes_drawn_one_by_one_are_rarely_in_groups(family) -> None:
    """Also where six crowded places attract them, by amounts that differ; at most 3 of 60 collections."""
    rng, found = np.random.default_rng(7), 0
    for number in range(60):
        rows, labels = family(rng, n_classes=60, n_images=3, dimension=16, spread=0.4, crowding=0.4 * (number % 3))
        found += find_look_alikes(labelled(rows, labels)) is not None
    assert found <= 3


@pytest.mark.slow
def test_intervals_count_the_groups_and_state_it() -> None:
    """As wide as with named families, about; naming each class as its own family gives the narrow ones back."""
    rows, labels, family = draw(np.random.default_rng(5), 20, 6, width=0.4)
    choice = choose_threshold((rows, labels), target="far=0.01")
    alone = choose_threshold(labelled(rows, labels, families=labels), target="far=0.01")
    named = choose_threshold(
        labelled(rows, labels, families=[f"{family[int(label)]}" for label in labels]), target="far=0.01"
    )
    assert "groups of look-alike classes were found" in choice.warnings[0]
    assert not any("look-alike" in warning for warning in (*alone.warnings, *named.warnings))

    def widths(of):
        return [interval.high - interval.low for interval in (of.predicted_far(120), of.predicted_tar(120))]

    assert all(now > 1.3 * before for now, before in zip(widths(choice), widths(alone), strict=True))
    assert widths(choice) == pytest.approx(widths(named), rel=0.35)
    assert (choice.threshold, choice.far, choice.tar) == (alone.threshold, alone.far, alone.tar)


@pytest.mark.slow
def test_a_rate_is_widened_by_its_own_evidence_alone() -> None:
    """In clear groups whose classes are not about as alike inside, TAR widens by the least factor at most."""
    rows, labels, _ = draw(np.random.default_rng(8), 12, 8, n_images=6)
    vectors = labelled(rows, labels)
    groups = find_look_alikes(vectors)
    assert groups is not None
    assert groups.clear
    choice = choose_threshold(vectors, target="far=0.01")
    alone = choose_threshold(labelled(rows, labels, families=labels), target="far=0.01")
    now, before = (of.predicted_tar(96).high - of.predicted_tar(96).low for of in (choice, alone))
    assert 1.1 * before < now < 1.7 * before


def test_warnings_at_a_threshold_name_the_groups() -> None:
    rows, labels, _ = draw(np.random.default_rng(4), 12, 5)
    curves = operating_curves((rows, labels), thresholds=[0.5])
    assert "groups of look-alike classes were found" in warnings_at(labelled(rows, labels), curves)[0]
    assert not any("look-alike" in warning for warning in warnings_at(labelled(rows, labels, families=labels), curves))


def test_order_and_names_of_classes_do_not_matter() -> None:
    rows, labels, _ = draw(np.random.default_rng(4), 12, 5)
    other = np.random.default_rng(1).permutation(60)
    order = np.random.default_rng(2).permutation(len(rows))
    first = find_look_alikes(labelled(rows, labels))
    second = find_look_alikes(labelled(rows[order], [f"{other[int(labels[row])]:05d}" for row in order]))
    assert first is not None
    assert second is not None
    assert adjusted_rand_score(first.units, second.units[other]) == 1


def test_more_classes_than_are_compared_join_the_nearest_group(monkeypatch) -> None:
    rows, labels, family = draw(np.random.default_rng(6), 12, 8)
    monkeypatch.setattr(look_alike, "_MOST_CLASSES", 60)
    found = find_look_alikes(labelled(rows, labels))
    assert found is not None
    assert adjusted_rand_score(family, found.units) > 0.8


def test_silhouettes_and_cuts_agree_with_scikit_learn_and_scipy() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    tree = linkage(squareform(distances, checks=False), "average")
    for n_groups, units in zip([20, 7, 2], cuts(tree, [2, 7, 20]), strict=True):
        reference = fcluster(tree, n_groups, "maxclust")
        assert adjusted_rand_score(reference, units) == 1
        assert units.max() + 1 == n_groups
        assert mean_silhouette(distances, units) == pytest.approx(
            silhouette_score(distances, reference, metric="precomputed")
        )


@pytest.mark.slow
def test_likeness_of_neighbours_is_in_standard_errors_of_random_orders() -> None:
    rng = np.random.default_rng(0)
    neighbours = np.array([rng.permutation(np.delete(np.arange(30), i))[:4] for i in range(30)])
    values = rng.normal(size=30)
    values[3] = np.nan

    def index(ranks):
        return sum(ranks[i] * ranks[j] for i in range(30) for j in neighbours[i])

    ranks = rankdata(np.where(np.isnan(values), np.nanmedian(values), values)) - 15.5
    random = [index(rng.permutation(ranks)) for _ in range(2000)]
    expected = (index(ranks) - np.mean(random)) / np.std(random)
    assert moran(neighbours, values) == pytest.approx(expected, abs=0.15)  # 2,000 orders know the mean to 0.02
    assert moran(neighbours, np.ones(30)) == 0


def test_means_of_classes_leave_out_an_image_with_itself() -> None:
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]], dtype=np.float32)
    means, own = class_means(labelled(rows, ["a", "a", "a", "b"]))
    assert means[0] == pytest.approx([1.6 / 3, 0.6])
    assert own[0] == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert np.isnan(own[1])


def test_few_or_equal_classes_show_no_groups() -> None:
    rows, labels, _ = draw(np.random.default_rng(4), 3, 5)
    assert find_look_alikes(labelled(rows, labels)) is None
    same = np.tile(np.array([[1, 0]], dtype=np.float32), (60, 1))
    assert find_look_alikes(labelled(same, [str(row // 3) for row in range(60)])) is None
