"""Galleries have the sizes and the wrong labels that were asked for, and ratios compare the same classes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.score import Score
from tests.bench.measuring.catalogue_galleries import exactly, grown, half, mislabelled, searches, uneven
from tests.bench.measuring.catalogue_rates import BANDS, measure, ratio

N_CLASSES, N_IMAGES = 60, 7


def images(spread: float = 0.4) -> tuple[NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(N_CLASSES, 16)), N_IMAGES, axis=0)
    rows += spread * rng.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"class {row // N_IMAGES:02d}" for row in range(len(rows))]


@pytest.mark.parametrize(("sizes", "items"), [(half, 4), (exactly(3), 3), (exactly(5), 5)])
def test_every_class_has_as_many_items_as_asked_and_all_other_images_are_queries(sizes: object, items: int) -> None:
    """No image is on both sides, in any round."""
    found = searches(*images(), sizes, n_rounds=3)  # type: ignore[arg-type]  # a parameter of pytest
    assert len(found.rounds) == 3
    for division, given in found.rounds:
        assert sorted([*division.queries, *division.items]) == list(range(N_CLASSES * N_IMAGES))
        labels, counts = np.unique(given, return_counts=True)
        assert len(labels) == N_CLASSES
        assert set(counts.tolist()) == {items}


def test_classes_that_do_not_leave_two_queries_are_left_out() -> None:
    """Seven images cannot make six items."""
    rows, labels = images()
    found = searches(rows, [*labels[:-1], "class 00"], exactly(5))
    assert set(found.labels) == set(labels) - {f"class {N_CLASSES - 1}"}


def test_uneven_galleries_have_one_to_half_of_the_images() -> None:
    """All sizes occur, and they are the same in each round."""
    found = searches(*images(), uneven)
    counts = [np.unique(given, return_counts=True)[1].tolist() for _, given in found.rounds]
    assert counts[0] == counts[1]
    assert set(counts[0]) == {1, 2, 3, 4}


def test_grown_galleries_reach_beyond_the_images_and_keep_the_spread() -> None:
    """Made-up items are about as similar to each other as real ones."""
    rows, labels = images()
    found = grown(rows, labels, 50)
    ((division, given),) = found.rounds
    sizes = np.unique(given, return_counts=True)[1]
    assert sizes.min() < 4
    assert 30 < sizes.max() <= 50
    largest = np.unique(given)[sizes.argmax()]
    members = found.embeddings[division.items][np.array(given) == largest]
    real = rows[np.array(labels) == largest]
    made, seen = ((of @ of.T)[np.triu_indices(len(of), 1)].mean() for of in (members, real))
    assert made == pytest.approx(seen, abs=0.06)  # the spread is that of four images


def test_only_the_labels_that_the_score_takes_are_wrong() -> None:
    """A tenth of the given labels differs from the true ones."""
    found = searches(*images(), half, wrong=0.1)
    division, given = found.rounds[0]
    wrong = np.mean([found.labels[row] != label for row, label in zip(division.items, given, strict=True)])
    assert 0.02 < wrong < 0.2
    assert mislabelled(["a", "b"], 0.0, np.random.default_rng(0)) == ("a", "b")


def test_a_score_beside_itself_has_the_ratio_one() -> None:
    """Class means beside the cosine change the ratio."""
    found = searches(*images(0.9), half)
    cosine, pulled = measure(found, Score()), measure(found, Score(classes=ClassTerms(pull=0.9)))
    assert pulled.tars[0] > cosine.tars[0]
    for band in BANDS:
        assert ratio([cosine], [cosine], band) == (1.0, 1.0, 1.0)
