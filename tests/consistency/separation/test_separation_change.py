from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.pairs.vectors import labelled_vectors
from retrieval.consistency.separation.class_separation import class_separation
from retrieval.consistency.separation.separation_change import separation_change
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def moved(rows, labels, name, factor, rng):
    """The same images, those of one class with more or less noise of their own."""
    member = np.array(labels) == name
    rows = rows.astype(np.float64)
    centre = rows[member].mean(axis=0)
    rows[member] = centre + factor * (rows[member] - centre)
    return unit(rows + 0.01 * rng.normal(size=rows.shape))


def test_the_class_that_was_blurred_is_named_and_no_other(family) -> None:
    rng = np.random.default_rng(0)
    rows, labels = family(rng, n_classes=12, n_images=8, dimension=24)
    before = labelled_vectors(rows, labels)
    worse = labelled_vectors(moved(rows, labels, "class 0003", 2.0, rng), labels)
    change = separation_change(before, worse, rng=rng, same_images=True)
    assert [c.name for c in change.closer] == ["class 0003"] == [change.classes[0].name]
    assert change.classes[0].interval.high < 0
    better = separation_change(worse, before, rng=rng, same_images=True)
    assert [c.name for c in better.further] == ["class 0003"]
    assert "1 further apart" in str(better)


def test_changes_are_those_of_the_single_classes(family) -> None:
    rng = np.random.default_rng(1)
    first, second = family(rng, n_classes=6, n_images=4), family(rng, n_classes=8, n_images=5)
    change = separation_change(labelled_vectors(*first), labelled_vectors(*second), rng=rng)
    before = {c.name: c.d_prime for c in class_separation(*first)}
    after = {c.name: c.d_prime for c in class_separation(*second)}
    assert {c.name: c.change for c in change.classes} == pytest.approx({n: after[n] - before[n] for n in before})
    assert change.n_left_out == 2
    assert change.mean == pytest.approx(np.mean([after[n] - before[n] for n in before]))
    assert change.mean in change.interval


def test_a_score_on_another_scale_is_no_change(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=6, n_images=4)
    ones = np.ones((len(rows), 1), dtype=np.float32)
    # 0.5 * cosine - 3
    other = labelled_vectors(np.hstack([rows / 2, -3 * ones]), labels, np.hstack([rows, ones]))
    change = separation_change(labelled_vectors(rows, labels), other, rng=np.random.default_rng(0), same_images=True)
    assert max(abs(c.change) for c in change.classes) < 1e-3  # float32 loses digits to the shift
    assert change.mean == pytest.approx(0, abs=1e-3)


def test_the_same_data_twice_have_not_changed(family) -> None:
    vectors = labelled_vectors(*family(np.random.default_rng(3), n_classes=4, n_images=3))
    change = separation_change(vectors, vectors, rng=np.random.default_rng(0), same_images=True)
    assert all(c.change == 0 and c.p_value == 1 and not c.significant for c in change.classes)


def test_noise_alone_is_seldom_called_a_change(family) -> None:
    named = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(20, 16))
        labels = [f"c{c}" for c in range(20) for _ in range(6)]
        pair = [
            labelled_vectors(unit((centres[:, None] + rng.normal(size=(20, 6, 16))).reshape(-1, 16)), labels)
            for _ in range(2)
        ]
        change = separation_change(*pair, rng=rng, n_bootstrap=10)
        named += bool(change.closer or change.further)
    # at a rate of 5 % two of 40 are expected; 6 is more than three standard errors above
    assert named <= 6


def test_two_images_a_class_give_changes_without_intervals(family) -> None:
    rng = np.random.default_rng(4)
    pair = [labelled_vectors(*family(rng, n_classes=4, n_images=2)) for _ in range(2)]
    change = separation_change(*pair, rng=rng)
    assert all(c.interval is c.p_value is c.significant is None for c in change.classes)
    assert (change.closer, change.further) == ((), ())


def test_what_cannot_be_compared_is_refused(family) -> None:
    rng = np.random.default_rng(5)
    rows, labels = family(rng, n_classes=4, n_images=3)
    vectors = labelled_vectors(rows, labels)
    other = labelled_vectors(rows, [f"other {label}" for label in labels])
    with pytest.raises(NotEnoughEvidence, match="found 0"):
        separation_change(vectors, other, rng=rng)
    with pytest.raises(InvalidEmbeddings, match="same_images"):
        separation_change(vectors, other, rng=rng, same_images=True)
    with pytest.raises(InvalidInput, match="false discovery"):
        separation_change(vectors, vectors, rng=rng, false_discovery_rate=0)
