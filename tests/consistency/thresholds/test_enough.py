"""How much data a refused target needs, in the words of whoever asked."""

from __future__ import annotations

import re

import numpy as np
import pytest

from retrieval.consistency import Target, choose_threshold, labelled
from retrieval.consistency.thresholds.enough import enough_data, least_target
from retrieval.errors import NotEnoughEvidence


def _classes(n_classes: int, n_images: int) -> tuple[np.ndarray, list[str]]:
    rows = np.random.default_rng(0).normal(size=(n_classes * n_images, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, [str(row // n_images) for row in range(len(rows))]


@pytest.mark.parametrize("positive", [False, True])
def test_the_stated_number_of_classes_is_the_smallest_that_is_enough(positive: bool) -> None:
    """One class fewer of the same size makes too few pairs."""
    n_pairs = 5_000
    stated = enough_data(labelled(*_classes(30, 4)), n_pairs, positive=positive)
    found = re.match(r"about ([0-9,]+) classes of 4 images", stated)
    assert found is not None
    n_classes = int(found[1].replace(",", ""))

    def pairs(n: int) -> int:
        return n * 6 if positive else n * (n - 1) // 2 * 16

    assert pairs(n_classes) >= n_pairs > pairs(n_classes - 1)


@pytest.mark.parametrize(
    ("target", "share", "least"),
    [
        (Target("false-matches", 1, 5000), 0.0123, "false-matches=62@5000"),
        (Target("far", 1e-9), 0.0123, "far=0.013"),
        (Target("class-far", 1e-9), 1e-3, "class-far=0.001"),
        (Target("frr", 1e-9), 0.2, "frr=0.2"),
        (Target("precision", 0.99, 1e-6), 2.31e-5, "far=2.4e-05"),
    ],
)
def test_a_feasible_target_is_in_the_unit_that_was_asked(target: Target, share: float, least: str) -> None:
    """Rounded up, because less would be refused again."""
    assert least_target(target, share) == least


def test_the_offered_target_is_accepted() -> None:
    """What a refusal of false matches in a gallery names can be measured, and it never speaks of a FAR of 1e-06."""
    data = _classes(40, 4)
    with pytest.raises(
        NotEnoughEvidence, match=r"false-matches=1@1000000 needs .* 40 classes and 160 images"
    ) as refusal:
        choose_threshold(data, target=Target("false-matches", 1, 1_000_000))
    assert "e-06" not in str(refusal.value)
    offered = re.search(r"ask for false-matches=([0-9.e+]+)@1000000", str(refusal.value))
    assert offered is not None
    value = float(offered[1])
    assert choose_threshold(data, target=Target("false-matches", value, 1_000_000)).far > 0
    with pytest.raises(NotEnoughEvidence, match="needs at least"):
        choose_threshold(data, target=Target("false-matches", value / 1.2, 1_000_000))


def test_a_refused_class_mean_is_called_so() -> None:
    """A FAR target is another one: it is pooled."""
    with pytest.raises(NotEnoughEvidence, match=r"^a target class-far=0\.0003 needs .* ask for class-far="):
        choose_threshold(_classes(40, 4), target="class-far=0.0003")
