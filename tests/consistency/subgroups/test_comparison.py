from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import compare_groups, labelled
from retrieval.consistency.subgroups.differentials import gini
from retrieval.errors import InvalidEmbeddings, InvalidInput

CROWDED = {"dimension": 16, "spread": 0.3, "crowding": 0.5}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.slow
def test_alike_groups_are_seldom_called_different(family) -> None:
    """Groups drawn at random: each of the four statements is false in at most 5 % of data sets."""
    wrong = np.zeros(4)
    for seed in range(60):
        rows, labels = family(np.random.default_rng(seed), n_classes=40, n_images=6, **CROWDED)
        comparison = compare_groups(labelled(rows, labels), list("abc") * 80, 0.45, rng=rng())
        assert comparison.far is not None
        assert comparison.frr is not None
        for place, differential in enumerate((comparison.far, comparison.frr)):
            assert differential.p_equal is not None
            wrong[2 * place : 2 * place + 2] += [
                differential.p_equal < 0.05,
                any(test.differs for test in differential.tests),
            ]
    assert (wrong / 60 < 0.14).all()  # three standard errors above 5 %


def test_a_group_that_stands_out_is_found_and_named(family) -> None:
    """Images of one group are noisier: more misses; drawn to one place: more false accepts."""
    rows, labels = family(np.random.default_rng(1), n_classes=60, n_images=6, **CROWDED)
    groups = np.array(list("abc") * 120)
    drawn = rows + 0.7 * (groups == "b")[:, None] * np.eye(16)[0]
    rows = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    comparison = compare_groups(labelled(rows, labels), groups.tolist(), 0.55, rng=rng())
    assert comparison.far is not None
    assert comparison.far.p_equal is not None
    assert comparison.far.p_equal < 1e-6
    worst = max(comparison.far.tests, key=lambda test: test.ratio)
    assert (worst.name, worst.differs) == ("b", True)
    assert worst.ratio > 2
    assert comparison.far.max_min_ratio is not None
    assert comparison.far.max_min_ratio > 2 * comparison.far.max_min_ratio_by_chance


def test_pairs_across_groups_are_counted(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=24, n_images=4, **CROWDED)
    groups = np.random.default_rng(3).choice(["x", "y", "z"], size=96).tolist()
    comparison = compare_groups(labelled(rows, labels), groups, 0.45, rng=rng(), small_below=1)
    assert comparison.frr_pairs == "within"
    assert [(pair.first, pair.second) for pair in comparison.across] == [("x", "y"), ("x", "z"), ("y", "z")]
    accepted = rows @ rows.T >= np.float32(0.45)
    different = np.array(labels)[:, None] != np.array(labels)
    for pair in comparison.across:
        ends = np.outer(np.array(groups) == pair.first, np.array(groups) == pair.second) & different
        assert (pair.negatives, pair.far) == (ends.sum(), pytest.approx(accepted[ends].mean()))
        assert pair.far in pair.far_interval
    far = np.array([rates.far for rates in comparison.groups])
    assert comparison.far is not None
    assert comparison.far.gini == pytest.approx(gini(far))


def test_one_image_of_a_class_in_each_group_is_compared_across_groups(family) -> None:
    """As with makers who draw every picture once: pairs inside a group are never of one class."""
    rows, labels = family(np.random.default_rng(4), n_classes=20, n_images=3)
    comparison = compare_groups(labelled(rows, labels), ["x", "y", "z"] * 20, 0.3, rng=rng())
    assert comparison.frr_pairs == "touching"
    assert [rates.positives for rates in comparison.groups] == [40, 40, 40]
    assert comparison.frr is not None


def test_small_groups_are_shown_and_left_out(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=20, n_images=4)
    groups = ["big"] * 34 + ["large"] * 34 + ["tiny"] * 12
    groups = [groups[row] for row in np.random.default_rng(6).permutation(80)]
    comparison = compare_groups(labelled(rows, labels), groups, 0.3, rng=rng())
    assert comparison.left_out == ("tiny",)
    assert comparison.far is not None
    assert [test.name for test in comparison.far.tests] == ["big", "large"]
    assert len(comparison.groups) == 3


def test_one_group_has_no_differential(family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=20, n_images=3)
    comparison = compare_groups(labelled(rows, labels), ["all"] * 60, 0.3, rng=rng())
    assert (comparison.far, comparison.frr, comparison.garbe, comparison.fdr) == (None, None, None, None)
    assert comparison.across == ()


def test_the_order_of_images_does_not_matter(family) -> None:
    rows, labels = family(np.random.default_rng(8), n_classes=15, n_images=4)
    groups = np.random.default_rng(9).choice(["x", "y"], size=60)
    order = np.random.default_rng(10).permutation(60)
    first = compare_groups(labelled(rows, labels), groups.tolist(), 0.3, rng=rng())
    second = compare_groups(
        labelled(rows[order], [labels[row] for row in order]), groups[order].tolist(), 0.3, rng=rng()
    )
    assert second == first


def test_unusable_input_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(11), n_classes=12, n_images=2)
    with pytest.raises(InvalidEmbeddings, match="found 1 groups for 24 labels"):
        compare_groups(labelled(rows, labels), ["x"], 0.3, rng=rng())
    for change in ({"threshold": float("nan")}, {"confidence": 1.0}):
        with pytest.raises(InvalidInput, match=r"threshold must be finite|confidence must lie"):
            compare_groups(labelled(rows, labels), ["x", "y"] * 12, **{"threshold": 0.3, "rng": rng(), **change})
