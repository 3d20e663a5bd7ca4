from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.pairs.selection import thresholds_at_far
from retrieval.consistency.thresholds import influence
from retrieval.consistency.thresholds.influence import threshold_influence
from retrieval.errors import InvalidInput, NotEnoughEvidence


def without_each(rows, labels, target, gallery=None):
    found = {}
    for name in sorted(set(labels)):
        kept = [i for i, label in enumerate(labels) if label != name]
        found[name] = thresholds_at_far(
            rows[kept],
            [labels[i] for i in kept],
            gallery_vectors=None if gallery is None else gallery[kept],
            fars=[target],
        )[0]
    return found


@pytest.mark.parametrize("target", [0.1, 0.01])
def test_every_threshold_agrees_with_calibrating_again_without_the_class(family, target: float) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=30, n_images=5, crowding=1.0)
    result = threshold_influence(rows, labels, target_far=target, tile=64)
    expected = without_each(rows, labels, target)
    errors = [abs(c.threshold_without - expected[c.name]) for c in result.classes]
    largest = max(abs(value - result.threshold) for value in expected.values())
    assert max(errors) == 0
    assert abs(result.classes[0].move) == largest
    moves = [abs(c.move) for c in result.classes]
    assert moves == sorted(moves, reverse=True)
    mean = np.mean(list(expected.values()))
    assert result.standard_error == pytest.approx(
        np.sqrt(29 / 30 * sum((value - mean) ** 2 for value in expected.values()))
    )


def test_where_not_every_level_is_tried_the_error_is_a_small_part_of_the_influence(
    family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer levels on fewer pairs stand for the levels tried on millions."""
    monkeypatch.setattr(influence, "_EXACT_UP_TO", 0)
    monkeypatch.setattr(influence, "_N_GRID", 128)
    rows, labels = family(np.random.default_rng(0), n_classes=40, n_images=6, crowding=1.0)
    result = threshold_influence(rows, labels, target_far=0.05)
    expected = without_each(rows, labels, 0.05)
    errors = [abs(c.threshold_without - expected[c.name]) for c in result.classes]
    # 128 levels over a factor of two in FAR: neighbours differ by about ten pairs of 1,400
    assert max(errors) < abs(result.classes[0].move) / 20


def test_two_classes_that_are_one_hold_the_threshold_up(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=20, n_images=5, dimension=256)
    split = ["twin" if label == "class 0007" and i % 2 else label for i, label in enumerate(labels)]
    result = threshold_influence(rows, split, target_far=0.001)
    assert {c.name for c in result.classes[:2]} == {"twin", "class 0007"}
    assert result.classes[0].move < 0
    assert result.classes[0].share_of_false_accepts > 0.5
    assert "threshold" in str(result)


def test_a_score_that_is_not_cosine_is_used_as_given(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=12, n_images=4, crowding=0.5)
    ones = np.ones((len(rows), 1), dtype=np.float32)
    query, gallery = np.hstack([rows, -ones]), np.hstack([rows, ones])
    plain = threshold_influence(rows, labels, target_far=0.05)
    shifted = threshold_influence(query, labels, gallery_vectors=gallery, target_far=0.05)
    assert shifted.threshold == pytest.approx(plain.threshold - 1, abs=1e-6)
    for one, other in zip(plain.classes, shifted.classes, strict=True):
        assert other.move == pytest.approx(one.move, abs=1e-5)


def test_too_few_classes_or_pairs_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=3, n_images=3)
    with pytest.raises(NotEnoughEvidence, match="at least 1000 negative pairs"):
        threshold_influence(rows, labels, target_far=0.001)
    with pytest.raises(NotEnoughEvidence, match="at least 3 classes"):
        threshold_influence(rows[:6], labels[:6], target_far=0.2)
    with pytest.raises(InvalidInput, match="target_far"):
        threshold_influence(rows, labels, target_far=1)
