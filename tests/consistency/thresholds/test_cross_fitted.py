from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import cross_fitted_rates, labelled
from retrieval.consistency.thresholds.cross_fitted import split_classes
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import Family


def by_loops(rows: np.ndarray, labels: list[str], target: float, n_splits: int, rng: np.random.Generator) -> tuple:
    """Thresholds by trying every score, rates pair by pair."""
    classes = sorted(set(labels))
    thresholds, counts = [], {name: [0, 0, 0, 0] for name in classes}
    pairs = [(i, j, np.float32(rows[i] @ rows[j])) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    for _ in range(n_splits):
        first = {classes[code] for code in rng.permutation(len(classes))[: len(classes) // 2]}
        for fixing, measured in ((first, set(classes) - first), (set(classes) - first, first)):
            negatives = [s for i, j, s in pairs if {labels[i], labels[j]} <= fixing and labels[i] != labels[j]]
            allowed = int(np.floor(target * len(negatives) + 1e-9))
            threshold = np.nextafter(sorted(negatives)[-allowed - 1], np.float32(np.inf))
            thresholds.append(threshold)
            for i, j, score in pairs:
                if {labels[i], labels[j]} <= measured:
                    for name in {labels[i], labels[j]}:
                        at = 0 if labels[i] == labels[j] else 2
                        counts[name][at] += score >= threshold
                        counts[name][at + 1] += 1
    return thresholds, counts


def test_against_loops(family: Family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=14, n_images=4, spread=0.5)
    labels[-4] = "alone"  # a class without a positive pair
    found = cross_fitted_rates(labelled(rows, labels), target_far=0.05, n_splits=2, rng=np.random.default_rng(7))
    thresholds, counts = by_loops(rows, labels, 0.05, 2, np.random.default_rng(7))
    assert found.thresholds == pytest.approx(np.array(thresholds), abs=1e-6)
    tars = np.array([counts[name][0] / counts[name][1] if counts[name][1] else np.nan for name in found.classes])
    assert found.class_tars == pytest.approx(tars, nan_ok=True)
    assert found.class_fars == pytest.approx([counts[name][2] / counts[name][3] for name in found.classes])
    totals = np.array(list(counts.values())).sum(axis=0)
    assert (found.tar, found.far) == (pytest.approx(totals[0] / totals[1]), pytest.approx(totals[2] / totals[3]))
    assert found.worst_tar == np.nanmin(tars)  # the tenth of 15 classes, rounded, is one: of 14 with pairs, and of 15
    assert found.worst_far == pytest.approx(np.sort(found.class_fars)[-2:].mean())


def test_halves_share_no_class_and_miss_none(family: Family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=9, n_images=3)
    first, second = split_classes(labelled(rows, labels), np.random.default_rng(0))
    assert set(first.codes).isdisjoint(second.codes)
    assert (len(set(first.codes)), len(set(second.codes))) == (4, 5)
    assert len(first.codes) + len(second.codes) == 27


def test_on_average_the_target_is_met(family: Family) -> None:
    """Classes of both halves come from one population, so the FAR elsewhere is the target but for chance."""
    rows, labels = family(np.random.default_rng(3), n_classes=120, n_images=4, crowding=0.5)
    found = cross_fitted_rates(labelled(rows, labels), target_far=0.02, rng=np.random.default_rng(0))
    assert found.far == pytest.approx(0.02, rel=0.1)
    assert np.ptp(found.fars) > 0


def test_too_little_is_refused(family: Family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=10, n_images=2)
    rng = np.random.default_rng(0)
    with pytest.raises(NotEnoughEvidence, match=r"40 negative pairs give 0\.4"):
        cross_fitted_rates(labelled(rows, labels), target_far=0.01, rng=rng)
    with pytest.raises(NotEnoughEvidence, match="no class with two images"):
        cross_fitted_rates(labelled(rows, [str(row) for row in range(20)]), target_far=0.5, rng=rng)
    for options in ({"target_far": 0.0}, {"target_far": 0.5, "n_splits": 0}):
        with pytest.raises(InvalidInput, match="n_splits of at least 1"):
            cross_fitted_rates(labelled(rows, labels), **options, rng=rng)
