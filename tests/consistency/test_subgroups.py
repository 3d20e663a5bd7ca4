from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import class_rates, group_rates, operating_curves, wilson_interval
from retrieval.errors import InvalidEmbeddings, InvalidInput


def test_class_rates_are_those_of_the_curves(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=8, n_images=4)
    labels[-1] = "single"
    curves = operating_curves(rows, labels, thresholds=[0.3])
    rates = class_rates(rows, labels, 0.3)
    assert [rate.name for rate in rates] == list(curves.classes)
    assert [rate.far for rate in rates] == curves.far[:, 0].tolist()
    assert [1 - rate.frr for rate in rates[:-1]] == pytest.approx(curves.tar[:, 0].tolist())
    single = rates[-1]
    assert (single.n_images, single.positives, single.frr, single.small) == (1, 0, None, True)
    assert (single.frr_interval.low, single.frr_interval.high) == (0, 1)
    assert [rate.small for rate in class_rates(rows, labels, 0.3, small_below=4)] == [False] * 7 + [True, True]


def test_pairs_count_for_a_group_when_both_ends_are_in_it(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=12, n_images=5)
    groups = list(np.random.default_rng(2).choice(["day", "dusk", "night"], size=60, p=[0.5, 0.3, 0.2]))
    rates = group_rates(rows, labels, groups, 0.3, tile=16)
    assert [rate.name for rate in rates] == ["day", "dusk", "night"]
    for rate in rates:
        inside = [row for row in range(60) if groups[row] == rate.name]
        accepted: dict[bool, list[bool]] = {True: [], False: []}
        for i, j in itertools.combinations(inside, 2):
            accepted[labels[i] == labels[j]].append(bool(rows[i] @ rows[j] >= np.float32(0.3)))
        assert (rate.n_images, rate.positives, rate.negatives) == (
            len(inside),
            len(accepted[True]),
            len(accepted[False]),
        )
        assert rate.far == pytest.approx(np.mean(accepted[False]))
        assert rate.frr == pytest.approx(1 - np.mean(accepted[True]))
        assert rate.far_interval == wilson_interval(sum(accepted[False]), len(accepted[False]))
        assert rate.small == (len(inside) < 20)


def test_group_of_one_class_has_no_far_and_group_of_one_image_no_rate(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=3, n_images=3)
    one_class, one_image, _ = group_rates(rows, labels, ["a"] * 3 + ["b"] + ["c"] * 5, 0.3)
    assert (one_class.far, one_class.negatives, one_class.positives) == (None, 0, 3)
    assert (one_image.far, one_image.frr) == (None, None)


def test_wrong_number_of_groups_or_threshold_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=3, n_images=3)
    with pytest.raises(InvalidEmbeddings, match="found 2 groups for 9 labels"):
        group_rates(rows, labels, ["a", "b"], 0.3)
    with pytest.raises(InvalidInput, match="finite"):
        class_rates(rows, labels, float("nan"))
