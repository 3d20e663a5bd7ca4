from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import GroupRates, LabelledVectors, class_rates, labelled, operating_curves, wilson_interval
from retrieval.consistency.subgroups.counts import count_groups
from retrieval.consistency.subgroups.estimates import FrrPairs
from retrieval.consistency.subgroups.rates import rates_of_groups
from retrieval.errors import InvalidInput


def group_rates(
    vectors: LabelledVectors,
    groups: list[str],
    threshold: float,
    *,
    small_below: int = 20,
    frr_pairs: FrrPairs = "within",
) -> list[GroupRates]:
    counts = count_groups(vectors, groups, threshold)
    return rates_of_groups(counts, small_below=small_below, confidence=0.95, frr_pairs=frr_pairs)


def test_class_rates_are_those_of_the_curves(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=8, n_images=4)
    labels[-1] = "single"
    curves = operating_curves(labelled(rows, labels), thresholds=[0.3])
    rates = class_rates(labelled(rows, labels), 0.3)
    assert [rate.name for rate in rates] == list(curves.classes)
    assert [rate.far for rate in rates] == curves.far[:, 0].tolist()
    assert [1 - rate.frr for rate in rates[:-1]] == pytest.approx(curves.tar[:, 0].tolist())
    single = rates[-1]
    assert (single.n_images, single.positives, single.frr, single.small) == (1, 0, None, True)
    assert (single.frr_interval.low, single.frr_interval.high) == (0, 1)
    assert [rate.small for rate in class_rates(labelled(rows, labels), 0.3, small_below=4)] == [False] * 7 + [
        True,
        True,
    ]


def test_pairs_count_for_a_group_when_both_ends_are_in_it(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=12, n_images=5)
    groups = list(np.random.default_rng(2).choice(["day", "dusk", "night"], size=60, p=[0.5, 0.3, 0.2]))
    rates = group_rates(labelled(rows, labels), groups, 0.3)
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
        assert rate.far in rate.far_interval
        assert rate.frr in rate.frr_interval
        n_classes = len({labels[row] for row in inside})
        assert (rate.n_classes, rate.small) == (n_classes, len(inside) < 20 or n_classes < 10)
    alone = group_rates(labelled(rows, labels), groups, 0.3, small_below=10**6)
    assert all(rate.small for rate in alone)


def test_touching_pairs_of_one_class_count_for_the_group_of_either_end(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=12, n_images=3)
    groups = ["day", "dusk", "night"] * 12
    assert all(rate.frr is None for rate in group_rates(labelled(rows, labels), groups, 0.3))
    rates = group_rates(labelled(rows, labels), groups, 0.3, frr_pairs="touching")
    for number, rate in enumerate(rates):
        own, others = rows[number::3], [rows[(number + step) % 3 :: 3] for step in (1, 2)]
        rejected = [float(a @ b) < np.float32(0.3) for other in others for a, b in zip(own, other, strict=True)]
        assert (rate.name, rate.positives) == (["day", "dusk", "night"][number], 24)
        assert rate.frr == pytest.approx(np.mean(rejected))


@pytest.mark.parametrize("spans", ["classes inside groups", "groups across classes"])
def test_intervals_cover_the_population_where_wilson_is_too_narrow(family, spans: str) -> None:
    """Crowded classes of different spread: pairs of one class rise and fall together, and so do those of two."""
    shape = {"dimension": 16, "spread": 0.3, "crowding": 0.5}
    rows, _ = family(np.random.default_rng(0), n_classes=3000, n_images=2, **shape)
    scores = rows[::2] @ rows[1::2].T
    true_frr = float((np.diag(scores) < 0.45).mean())
    np.fill_diagonal(scores, -9)
    true_far = float((scores >= 0.45).sum() / (3000 * 2999))
    covered, n_intervals = np.zeros(4), 0
    for seed in range(100):
        rows, labels = family(np.random.default_rng(seed), n_classes=48, n_images=4, **shape)
        per_group = 12 if spans == "classes inside groups" else 1
        groups = [str(row // 4 // per_group % 4 if per_group > 1 else row // 2 % 2) for row in range(len(labels))]
        for rate in group_rates(labelled(rows, labels), groups, 0.45):
            assert rate.far is not None
            assert rate.frr is not None
            covered += [
                true_far in rate.far_interval,
                true_frr in rate.frr_interval,
                true_far in wilson_interval(round(rate.far * rate.negatives), rate.negatives),
                true_frr in wilson_interval(round(rate.frr * rate.positives), rate.positives),
            ]
            n_intervals += 1
    far, frr, wilson_far, wilson_frr = covered / n_intervals
    assert min(far, frr) > 0.91  # 95 % promised; over 200 intervals at least, three standard errors below
    assert wilson_far < 0.85
    if spans == "classes inside groups":  # across, each group holds one pair of a class: those are independent
        assert wilson_frr < 0.85


def test_nothing_accepted_or_all_is_still_uncertain(family) -> None:
    """A rate of 0 or 1 shows no variance; its interval is at least as wide as that of independent pairs."""
    rows, labels = family(np.random.default_rng(6), n_classes=30, n_images=4)
    for threshold in (-1.0, 1.1):
        for rate in (
            *class_rates(labelled(rows, labels), threshold),
            *group_rates(labelled(rows, labels), ["a", "b"] * 60, threshold),
        ):
            for value, interval, pairs in (
                (rate.far, rate.far_interval, rate.negatives),
                (rate.frr, rate.frr_interval, rate.positives),
            ):
                assert value is not None
                wilson = wilson_interval(round(value * pairs), pairs)
                assert value in interval
                assert interval.high - interval.low >= (wilson.high - wilson.low) * (1 - 1e-9)


def test_group_of_one_class_has_no_far_and_group_of_one_image_no_rate(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=3, n_images=3)
    one_class, one_image, _ = group_rates(labelled(rows, labels), ["a"] * 3 + ["b"] + ["c"] * 5, 0.3)
    assert (one_class.far, one_class.negatives, one_class.positives) == (None, 0, 3)
    assert (one_class.far_interval.low, one_class.far_interval.high) == (0, 1)
    assert (one_image.name, one_image.far, one_image.frr, one_image.small) == ("b", None, None, True)


def test_a_threshold_that_is_no_number_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=3, n_images=3)
    with pytest.raises(InvalidInput, match="finite"):
        class_rates(labelled(rows, labels), float("nan"))
