from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import crossed, identification_rates, labelled, largest_gallery
from retrieval.consistency.identification import Searches, draw_searches, threshold_at_fpir
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import Family


def test_a_case_by_hand() -> None:
    """Strangers' best answers 0.1, 0.4, 0.7, 0.7; members' 0.3, 0.8: at 0.7 half of either are wrong."""
    searches = Searches(np.array([0.3, 0.8], np.float32), np.array([0.1, 0.4, 0.7, 0.7], np.float32))
    assert searches.rates(float(np.float32(0.7))) == (0.5, 0.5)
    assert searches.rates(0.0) == (1.0, 0.0)
    assert searches.rates(0.9) == (0.0, 1.0)


def test_searches_of_a_gallery_against_loops(family: Family) -> None:
    """Every member with a mate searches the others, every image of another class is a stranger."""
    rows, labels = family(np.random.default_rng(1), n_classes=12, n_images=3, spread=0.5)
    labels[0] = "alone"
    vectors = labelled(rows, labels)
    found = draw_searches(vectors, 10, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    gallery: list[int] = []
    taken = set()
    for code in rng.permutation(np.unique(vectors.codes)):
        if len(gallery) < 10:
            gallery += rng.permutation(np.flatnonzero(vectors.codes == code)).tolist()
            taken.add(code)
    gallery = gallery[:10]
    mated = []
    for probe in gallery:
        mates = [row for row in gallery if row != probe and vectors.codes[row] == vectors.codes[probe]]
        if mates:
            mated.append(max(vectors.query[probe] @ vectors.query[row] for row in mates))
    strangers = [
        max(vectors.query[probe] @ vectors.query[row] for row in gallery)
        for probe in range(len(rows))
        if vectors.codes[probe] not in taken
    ]
    assert found.mated == pytest.approx(np.array(mated), abs=1e-6)
    assert found.strangers == pytest.approx(np.array(strangers), abs=1e-6)


def test_threshold_at_a_share_of_strangers() -> None:
    """The lowest at which at most the share is answered; ties are answered together; too few strangers say nothing."""
    strangers = np.linspace(0, 0.99, 100, dtype=np.float32)
    threshold = threshold_at_fpir(Searches(strangers, strangers), 0.1)
    assert threshold is not None
    assert np.mean(strangers >= threshold) == pytest.approx(0.1)
    assert threshold == pytest.approx(0.89, abs=1e-6)
    tied = np.repeat(np.float32([0.2, 0.8]), 50)
    assert threshold_at_fpir(Searches(tied, tied), 0.1) > 0.8
    assert threshold_at_fpir(Searches(strangers[:40], strangers[:40]), 0.1) is None


def test_larger_galleries_answer_more_strangers(family: Family) -> None:
    """At one threshold FPIR grows with the gallery, FNIR does not; at a fixed FPIR FNIR grows instead."""
    rows, labels = family(np.random.default_rng(2), n_classes=120, n_images=4, dimension=12, spread=0.5)
    options = {"target_far": 0.01, "n_repeats": 8}
    small, large = identification_rates(
        labelled(rows, labels), gallery_sizes=[20, 160], **options, rng=np.random.default_rng(0)
    )
    assert (small.gallery_size, large.gallery_size) == (20, 160)
    assert small.at_far.fpir < 0.5 * large.at_far.fpir
    assert small.at_far.fnir == pytest.approx(large.at_far.fnir, abs=0.05)
    assert small.at_fpir is not None
    assert large.at_fpir is not None
    assert small.at_fpir.fpir == pytest.approx(0.1, abs=0.04)
    assert large.at_fpir.fpir == pytest.approx(0.1, abs=0.06)
    assert large.at_fpir.fnir > small.at_fpir.fnir
    assert large.at_far.fpir in large.at_far.fpir_range
    assert (large.n_mated, large.n_strangers) == (160, 80)


def test_perfect_classes_are_found_and_strangers_are_not(family: Family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=60, n_images=4, dimension=256)
    tight = np.repeat(rows[::4], 4, axis=0)
    (found,) = identification_rates(
        labelled(tight, labels), gallery_sizes=[40], target_far=0.01, rng=np.random.default_rng(0)
    )
    assert found.at_far.fnir == 0.0
    assert found.at_fpir is not None
    assert found.at_fpir.fnir == 0.0


def test_what_the_data_allow() -> None:
    """Half of the classes, ten of them strangers, the smallest counted: 24 classes leave two."""
    assert largest_gallery(labelled(np.eye(72, dtype=np.float32), [f"{row % 24}" for row in range(72)])) == 6
    assert largest_gallery(labelled(np.eye(4, dtype=np.float32), ["a", "a", "b", "b"])) == 0


def test_too_little_is_refused(family: Family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=60, n_images=4)
    rng = np.random.default_rng(0)
    with pytest.raises(NotEnoughEvidence, match="fill a gallery of 80 images at most, expected one of 81"):
        identification_rates(labelled(rows, labels), gallery_sizes=[20, 81], target_far=0.01, rng=rng)
    with pytest.raises(NotEnoughEvidence, match="false accepts"):
        identification_rates(labelled(rows, labels), gallery_sizes=[20], target_far=1e-5, rng=rng)
    singles = [f"{row}" for row in range(240)]
    with pytest.raises(NotEnoughEvidence, match="no class has two images in a gallery"):
        identification_rates(labelled(rows, singles), gallery_sizes=[20], target_far=0.01, rng=rng)
    for options in ({"gallery_sizes": []}, {"gallery_sizes": [0]}, {"gallery_sizes": [9], "target_fpir": 1.0}):
        with pytest.raises(InvalidInput, match="expected gallery_sizes and n_repeats of at least 1 and targets in"):
            identification_rates(labelled(rows, labels), **options, target_far=0.01, rng=rng)
    for vectors in (crossed(rows, labels, rows, labels), labelled(rows, labels, exclude=(singles,))):
        with pytest.raises(InvalidInput, match=r"one set of images|without excluded pairs"):
            identification_rates(vectors, [20], target_far=0.01, rng=rng)
