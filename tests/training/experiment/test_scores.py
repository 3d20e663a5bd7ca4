"""Post-hoc scores, against their definitions written as loops."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import labelled, recall_at_k
from retrieval.errors import NotEnoughEvidence
from tests.consistency.conftest import draw_family
from training.experiment import ScoreConfig, fit_score, scores


@pytest.fixture(scope="module")
def fitted_on() -> tuple[np.ndarray, list[str]]:
    return draw_family(np.random.default_rng(0), n_classes=60, n_images=6, spread=0.5, crowding=0.6)


@pytest.fixture(scope="module")
def others() -> tuple[np.ndarray, list[str]]:
    return draw_family(np.random.default_rng(1), n_classes=20, n_images=5, spread=0.5, crowding=0.6)


def scored(kind: str, fitted_on: tuple[np.ndarray, list[str]], rows: np.ndarray, **options: object) -> np.ndarray:
    score = fit_score(ScoreConfig(kind=kind, **options), *fitted_on, far_target=0.02)  # type: ignore[arg-type]
    query, gallery = score(rows)
    return query @ gallery.T


def test_cosine_and_cohort(fitted_on: tuple[np.ndarray, list[str]], others: tuple[np.ndarray, list[str]]) -> None:
    rows = others[0]
    assert np.array_equal(scored("cosine", fitted_on, rows), rows @ rows.T)
    density = np.sort(rows @ fitted_on[0].T, axis=1)[:, -7:].mean(axis=1)
    expected = rows @ rows.T - 0.5 * (density[:, None] + density)
    assert scored("cohort", fitted_on, rows, k=7) == pytest.approx(expected, abs=1e-5)
    assert scored("cohort", fitted_on, rows, k=7, whitened=True) != pytest.approx(expected, abs=1e-2)


def test_isotonic_keeps_every_order(
    fitted_on: tuple[np.ndarray, list[str]], others: tuple[np.ndarray, list[str]]
) -> None:
    """One rising map for all changes no ranking and no rate: the control that must come out as the cosine does."""
    rows, labels = others
    above = np.triu_indices(len(rows), 1)
    cosines, mapped = (rows @ rows.T)[above], scored("isotonic", fitted_on, rows)[above]
    order = np.argsort(cosines, kind="stable")
    assert (np.diff(mapped[order]) >= 0).all()
    query, gallery = fit_score(ScoreConfig(kind="isotonic"), *fitted_on, far_target=0.02)(rows)
    assert recall_at_k(labelled(query, labels, gallery=gallery)) == recall_at_k(labelled(rows, labels))


def test_offsets_give_each_cluster_the_same_far(fitted_on: tuple[np.ndarray, list[str]]) -> None:
    """On the images that they were fitted on, and up to the clusters that pairs have their other end in."""
    rows, labels = fitted_on
    names = np.array(labels)
    negatives = np.triu(names[:, None] != names, 1)
    clusters = scores._Clusters.fit(rows, 4).of(rows)
    touching = [(clusters == cluster)[:, None] | (clusters == cluster) for cluster in range(4)]

    def spread_of_far(values: np.ndarray) -> float:
        threshold = np.quantile(values[negatives], 0.98)
        return float(np.ptp([np.mean(values[negatives & pairs] >= threshold) for pairs in touching]))

    offset = scored("cluster_offsets", fitted_on, rows, clusters=4)
    assert offset == pytest.approx(offset.T, abs=1e-6)
    assert spread_of_far(offset) < 0.6 * spread_of_far(rows @ rows.T)


def test_cluster_isotonic_is_the_weighted_mean_of_both_maps(
    fitted_on: tuple[np.ndarray, list[str]], others: tuple[np.ndarray, list[str]]
) -> None:
    rows, labels = fitted_on
    new = others[0][:12]
    found = scored("cluster_isotonic", fitted_on, new, clusters=3)
    clusters = scores._Clusters.fit(rows, 3)
    of_rows, of_new = clusters.of(rows), clusters.of(new)
    assert len(set(of_new)) > 1
    pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    cosines = np.array([rows[i] @ rows[j] for i, j in pairs])
    matches = np.array([labels[i] == labels[j] for i, j in pairs])
    maps, sizes = {}, {}
    for cluster in set(of_new):
        inside = np.array([cluster in (of_rows[i], of_rows[j]) for i, j in pairs])
        maps[cluster], sizes[cluster] = scores._fit_isotonic(cosines[inside], matches[inside]), inside.sum()
    for i in range(len(new)):
        for j in range(len(new)):
            cosine = np.array([new[i] @ new[j]])
            first, second = (scores._rising(maps[of_new[row]], cosine)[0] for row in (i, j))
            n_first, n_second = sizes[of_new[i]], sizes[of_new[j]]
            expected = (n_first * first + n_second * second) / (n_first + n_second)
            assert found[i, j] == pytest.approx(expected, abs=1e-3)  # a knot's neighbour may be met a rounding apart


def test_too_few_and_too_many_images_are_refused(
    fitted_on: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotEnoughEvidence, match="40 clusters need at least 400 images, found 360"):
        scored("cluster_offsets", fitted_on, fitted_on[0], clusters=40)
    monkeypatch.setattr(scores, "MAX_PAIRWISE_IMAGES", 100)
    with pytest.raises(NotEnoughEvidence, match="at most 100 images, found 360"):
        scored("isotonic", fitted_on, fitted_on[0])
