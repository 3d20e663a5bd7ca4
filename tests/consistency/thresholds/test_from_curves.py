from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import (
    OperatingCurves,
    certificate_from_curves,
    certify,
    choose_threshold,
    crossed,
    judged_curves,
    labelled,
    operating_curves,
    sampled_curves,
    threshold_from_curves,
    threshold_grid,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence

TARGETS = ["far=0.01", "class-far=0.01", "frr=0.3", "precision=0.3@0.01", "false-matches=1@100"]


@pytest.fixture(scope="module")
def drawn(request: pytest.FixtureRequest) -> tuple[np.ndarray, list[str]]:
    family = request.getfixturevalue("family")
    rows, labels = family(np.random.default_rng(0), n_classes=60, n_images=5, dimension=10, spread=0.3, crowding=0.5)
    return rows, labels


@pytest.fixture(scope="module")
def grid(drawn: tuple[np.ndarray, list[str]]) -> np.ndarray:
    return threshold_grid(labelled(*drawn), far_low=1e-3, far_high=0.2)


@pytest.mark.parametrize("target", TARGETS)
def test_shards_give_the_threshold_of_the_whole_with_intervals_as_wide(target: str, drawn, grid) -> None:
    parts = [operating_curves(drawn, thresholds=grid, shard=(index, 3)) for index in range(3)]
    choice = threshold_from_curves(parts[0] + parts[1] + parts[2], target=target)
    exact = choose_threshold(drawn, target=target)
    place = int(np.searchsorted(grid, exact.threshold))
    assert grid[max(place - 1, 0)] <= choice.threshold <= grid[min(place + 1, len(grid) - 1)]
    assert choice.achieved == pytest.approx(exact.achieved, rel=0.1)
    assert choice.threshold in choice.threshold_interval
    assert choice.far in choice.far_interval
    assert choice.tar in choice.tar_interval
    wide, exact_wide = (c.far_interval.high / c.far_interval.low for c in (choice, exact))
    assert exact_wide * 0.98 <= wide <= exact_wide**2
    low, high = choice.predicted_far(60).low, choice.predicted_far(60).high
    assert low < choice.far_interval.low < choice.far_interval.high < high


def test_judged_sampled_and_crossed_curves_lead_to_a_threshold_and_a_certificate(drawn, grid) -> None:
    rows, labels = drawn
    exact = choose_threshold(drawn, target="far=0.01")
    i, j = np.triu_indices(len(labels), k=1)
    names = np.array(labels)
    judged = judged_curves(
        (rows @ rows.T)[i, j], names[i] == names[j], names[i].tolist(), names[j].tolist(), thresholds=grid
    )
    queries = crossed(rows[::2], labels[::2], rows[1::2], labels[1::2])
    curves: list[OperatingCurves] = [judged, operating_curves(queries, thresholds=grid)]
    for found in curves:
        choice = threshold_from_curves(found, target="far=0.01")
        assert choice.threshold == pytest.approx(exact.threshold, abs=0.05)
        assert 0 < choice.far_interval.low < choice.far < choice.far_interval.high
        assert certificate_from_curves(found, alpha=0.2, delta=0.1, strict=False).threshold < 1
    sample = sampled_curves(labelled(*drawn), thresholds=grid, share=0.3, rng=np.random.default_rng(1))
    of_sample, of_its_curves = (threshold_from_curves(c, target="far=0.01") for c in (sample, sample.curves))
    assert of_sample.far_interval.high > of_its_curves.far_interval.high  # the error of the sample is added


def test_the_certificate_is_that_of_the_images_up_to_the_grid(drawn, grid) -> None:
    curves = operating_curves(drawn, thresholds=grid)
    exact, found = certify(drawn, alpha=0.1, delta=0.1), certificate_from_curves(curves, alpha=0.1, delta=0.1)
    assert grid[np.searchsorted(grid, exact.threshold)] == pytest.approx(found.threshold, abs=1e-6)
    with pytest.raises(NotEnoughEvidence, match="at least 99 classes, found 60"):
        certificate_from_curves(curves, alpha=0.1, delta=0.01)
    with pytest.raises(NotEnoughEvidence, match="count at higher ones"):
        certificate_from_curves(operating_curves(drawn, thresholds=[-1.0]), alpha=0.1, delta=0.1)


def test_a_strict_certificate_that_no_threshold_gives_names_the_class_that_decides(family) -> None:
    """Judged pairs show ends and no images, and one class of 90 images takes the room of 40 of 3."""
    rows, labels = family(np.random.default_rng(31), n_classes=40, n_images=90, spread=0.2)
    kept = np.concatenate([90 * code + np.arange(90 if code == 5 else 3) for code in range(40)])
    rows, labels = rows[kept], [labels[row] for row in kept]
    first, second = np.triu_indices(len(labels), k=1)
    names = np.array(labels)
    judged = judged_curves(
        np.einsum("nd,nd->n", rows[first], rows[second]), names[first] == names[second], names[first].tolist(),
        names[second].tolist(), thresholds=[0.5, 1.1],
    )  # fmt: skip
    for curves, largest in ((operating_curves((rows, labels), thresholds=[0.5, 1.1]), "90 of 207"), (judged, "18540")):
        with pytest.raises(NotEnoughEvidence, match=f"the largest, 'class 0005' with {largest}.*use strict=False"):
            certificate_from_curves(curves, alpha=0.1, delta=0.1)
        assert certificate_from_curves(curves, alpha=0.1, delta=0.1, strict=False).threshold <= 1.1


def test_what_curves_cannot_show_is_refused(drawn, grid) -> None:
    curves = operating_curves(drawn, thresholds=grid)
    with pytest.raises(InvalidInput, match="its interval takes the images"):
        threshold_from_curves(curves, target="utility")
    with pytest.raises(NotEnoughEvidence, match="no threshold of the 1 of these curves reaches"):
        threshold_from_curves(operating_curves(drawn, thresholds=[-1.0]), target="far=0.01")
    with pytest.raises(NotEnoughEvidence, match="and a FAR needs 10 or more"):
        threshold_from_curves(operating_curves(drawn, thresholds=[0.999]), target="far=0.01")
    with pytest.raises(NotEnoughEvidence, match="at least 61 classes with a positive pair, found 60"):
        threshold_from_curves(curves, target="far=0.01", min_classes=61)


@pytest.mark.slow
def test_tar_is_that_of_the_embeddings_and_a_large_class_is_named(family) -> None:
    """At the same threshold the intervals, predictions and effective numbers of TAR are equal, at unequal sizes too."""
    rows, labels = family(np.random.default_rng(3), n_classes=60, n_images=40, dimension=10, spread=0.4, crowding=0.5)
    kept = np.concatenate([40 * code + np.arange(40 if code == 7 else 3 + code % 4) for code in range(60)])
    rows, labels = rows[kept], [labels[row] for row in kept]
    exact = choose_threshold((rows, labels), target="far=0.01")
    curves = operating_curves((rows, labels), thresholds=np.append(np.linspace(0, 1, 200), exact.threshold))
    found = threshold_from_curves(curves, target="far=0.01")
    assert (found.threshold, found.far, found.tar) == (exact.threshold, exact.far, exact.tar)
    assert found.tar_interval == exact.tar_interval
    assert found.predicted_tar(30) == exact.predicted_tar(30)
    assert (found.tar_units, found.tar_trials, found.class_tar) == (exact.tar_units, exact.tar_trials, exact.class_tar)
    assert found.far_units == pytest.approx(exact.far_units)
    assert any("class 'class 0007' (40 images) holds" in warning for warning in found.warnings)
    for name in ("far_interval", "class_far_interval"):
        wide, narrow = getattr(found, name), getattr(exact, name)
        assert wide.low <= narrow.low * 1.05
        assert narrow.high <= wide.high * 1.05
