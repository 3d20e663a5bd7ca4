from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from retrieval.consistency import (
    OperatingCurves,
    OpisOptions,
    consistency_around,
    consistency_report,
    crossed,
    labelled,
    measure_opis,
    operating_curves,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence


def curves_of(tar: list[list[float]], far: list[float], thresholds: list[float]) -> OperatingCurves:
    """Classes with the given TAR curves, all with the same FAR curve, 1,000 pairs each."""
    n = len(tar)
    return OperatingCurves(
        classes=tuple(f"class {row}" for row in range(n)),
        n_images=np.full(n, 10),
        thresholds=np.array(thresholds),
        positives_accepted=np.round(np.array(tar) * 1000).astype(np.int64),
        negatives_accepted=np.tile(np.round(np.array(far) * 1000).astype(np.int64), (n, 1)),
        positives=np.full(n, 1000),
        negatives=np.full(n, 1000),
        cosine=True,
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_two_classes_by_hand() -> None:
    """Constant TAR 1 and 0.5 at FAR 0.5: U = 2/3 and 1/2, each 1/12 from the mean, whatever the axis or range."""
    curves = curves_of([[1, 1, 1], [0.5, 0.5, 0.5]], [0.5, 0.5, 0.5], [0.0, 0.5, 0.9])
    result = measure_opis(curves, OpisOptions(distance_range=(0.6, 1.2)), rng=rng())
    assert result.value == pytest.approx(1 / 144)
    assert result.eps_opis == pytest.approx(1 / 36)


def test_trapezoid_over_distance_by_hand() -> None:
    """TAR differs only at the farthest of three distances 0, 1, 2: variance 1/4 there, weight 1/4."""
    curves = curves_of([[1, 0, 0], [0, 0, 0]], [0, 0, 0], [-1.0, 0.5, 1.0])
    assert measure_opis(curves, OpisOptions(distance_range=(0.0, 2.0)), rng=rng()).value == pytest.approx(1 / 16)


def test_log_far_weights_decades_equally() -> None:
    """Utilities differ where FAR goes from 0.1 to 0.01, not from 0.01 to 0.001: about half the log axis counts."""
    far = np.geomspace(0.1, 0.001, 201)
    tar = np.where(far > 0.01, 0.5, 1.0)
    curves = curves_of([list(tar), [1.0] * 201], list(far), list(np.linspace(0, 0.5, 201)))
    exact = replace(
        curves,
        negatives=np.full(2, 10**9),
        negatives_accepted=np.tile((far * 1e9).astype(np.int64), (2, 1)),
    )
    result = measure_opis(exact, OpisOptions(axis="log_far", far_low=0.001001, far_high=0.0999), rng=rng())
    upper = far[(far > 0.01)]
    utilities = [2 * (1 - upper) * t / (1 - upper + t) for t in (0.5, 1.0)]
    assert result.value == pytest.approx(np.mean((utilities[0] - utilities[1]) ** 2) / 4 / 2, rel=0.02)


def reference_opis(rows: np.ndarray, labels: list[str], low: float, high: float) -> float:
    """OPIS from the definition: a fine grid of distances, rates counted anew at each of them."""
    names = np.array(labels)
    scores = rows.astype(np.float64) @ rows.astype(np.float64).T
    pair = ~np.eye(len(rows), dtype=bool)
    same = (names[:, None] == names[None]) & pair
    negatives = np.sort(scores[(names[:, None] != names[None])])
    # Any lower threshold than the best rejected negative would exceed the FAR; each pair is in the matrix twice.
    d_of = [np.sqrt(2 - 2 * negatives[-round(far * len(negatives)) - 1]) for far in (low, high)]
    distances = np.linspace(*d_of, 400)
    deviations = []
    for distance in distances:
        accepted = scores >= 1 - distance**2 / 2
        utilities = []
        for name in sorted(set(labels)):
            inside = names == name
            tar = accepted[same & inside[:, None]].mean()
            trr = 1 - accepted[np.ix_(inside, ~inside)].mean()
            utilities.append(2 * tar * trr / (tar + trr) if tar + trr else 0.0)
        deviations.append(np.var(utilities))
    return float(np.trapezoid(deviations, distances) / (distances[-1] - distances[0]))


def test_value_agrees_with_the_definition(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=25, n_images=5, spread=0.3)
    result = measure_opis(operating_curves((rows, labels)), rng=rng())
    # Two grids of 1,000 and 400 points on a step function.
    assert result.value == pytest.approx(reference_opis(rows, labels, 1e-2, 1e-1), rel=0.01)
    assert result.value in result.interval
    assert (result.far_low, result.far_high) == (pytest.approx(1e-2), pytest.approx(1e-1))


def exact_opis(rows: np.ndarray, labels: list[str], near: float, far: float) -> float:
    """OPIS between two distances with every pair as a step: rates are constant between neighbouring distances."""
    codes = np.unique(labels, return_inverse=True)[1]
    first, second = np.triu_indices(len(rows), 1)
    distances = np.sqrt(2 - 2 * np.einsum("nd,nd->n", rows[first], rows[second]).astype(np.float64))
    order = np.argsort(distances)
    sizes = np.bincount(codes)
    pairs = np.stack([sizes * (sizes - 1) / 2, sizes * (len(rows) - sizes)])
    accepted, area, position = np.zeros_like(pairs), 0.0, near
    for one, other, distance in zip(codes[first[order]], codes[second[order]], distances[order], strict=True):
        if distance > far:
            break
        if distance > near:
            area += spread_of(accepted / pairs) * (distance - position)
            position = distance
        accepted[int(one != other), list({one, other})] += 1
    return (area + spread_of(accepted / pairs) * (far - position)) / (far - near)


def spread_of(rates: np.ndarray) -> float:
    tar, trr = rates[0], 1 - rates[1]
    return float(np.var(np.divide(2 * tar * trr, tar + trr, out=np.zeros_like(tar), where=tar + trr > 0)))


@pytest.mark.parametrize(("n_classes", "n_images"), [(25, 5), (60, 4), (20, 15)])
def test_thresholds_err_by_less_than_a_thousandth(n_classes: int, n_images: int, family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=n_classes, n_images=n_images, spread=0.2)
    limits = (1.1, 1.25)
    result = consistency_report((rows, labels), OpisOptions(distance_range=limits, n_bootstrap=1), rng=rng())
    assert result.value == pytest.approx(exact_opis(rows, labels, *limits), rel=1e-3)


def test_identical_classes_score_zero() -> None:
    falling = [0.9, 0.8, 0.6, 0.3]
    curves = curves_of([falling] * 5, [0.5, 0.2, 0.05, 0.001], [0.1, 0.2, 0.3, 0.4])
    result = measure_opis(curves, OpisOptions(far_low=0.01, far_high=0.3), rng=rng())
    assert (result.value, result.eps_opis) == (0, 0)
    assert result.interval.low == result.interval.high == 0
    assert result.floor > 0


def test_weights_by_hand() -> None:
    """Utilities 2/3 and 1/2 with weights 3/4 and 1/4: variance 3/16 of the squared gap 1/36."""
    curves = replace(curves_of([[1] * 3, [0.5] * 3], [0.5] * 3, [0.0, 0.5, 0.9]), n_images=np.array([30, 10]))
    for weighting in ("images", {"class 0": 3.0, "class 1": 1.0, "no such class": 5.0}):
        result = measure_opis(curves, OpisOptions(distance_range=(0.6, 1.2), weighting=weighting), rng=rng())
        assert result.value == pytest.approx(3 / 16 / 36)
        assert f"weighted by {result.weighting}" in str(result)
    assert result.weighting == "given"
    with pytest.raises(InvalidInput, match="class 1"):
        measure_opis(curves, OpisOptions(distance_range=(0.6, 1.2), weighting={"class 0": 1.0}), rng=rng())


def test_a_class_of_weight_zero_does_not_count(family) -> None:
    rows, labels = family(np.random.default_rng(12), n_classes=25, n_images=5, spread=0.3)
    curves = operating_curves((rows, labels))
    weighting = {name: float(place > 4) for place, name in enumerate(curves.classes)}
    kept = curves.with_positives & (np.arange(25) > 4)
    few = replace(curves, positives=np.where(kept, curves.positives, 0))
    weighted, alone = measure_opis(curves, OpisOptions(weighting=weighting), rng=rng()), measure_opis(few, rng=rng())
    assert weighted.value == pytest.approx(alone.value)
    assert weighted.floor == pytest.approx(alone.floor)
    assert consistency_report((rows, labels), OpisOptions(weighting=weighting), rng=rng()).debiased_method == "pairs"


def test_c_weighs_tar() -> None:
    """With c towards 0 utility becomes TRR, which the classes share; with large c it becomes TAR."""
    curves = curves_of([[0.9] * 3, [0.5] * 3], [0.1] * 3, [0.0, 0.5, 0.9])
    values = [
        measure_opis(curves, OpisOptions(distance_range=(0.6, 1.2), c=c), rng=rng()).value for c in (0.01, 1.0, 100.0)
    ]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[2] == pytest.approx(0.04, rel=1e-3)


@pytest.mark.parametrize("n_images", [4, 8])
def test_identical_classes_are_all_floor_and_debiased_to_nothing(n_images: int, family) -> None:
    """With one true curve for all classes the floor meets the plain value and debiased is 0 within its error."""
    results = []
    for seed in range(10):
        draw = np.random.default_rng(seed)
        rows, labels = family(draw, n_classes=60, n_images=n_images)
        results.append(consistency_report((rows, labels), OpisOptions(n_bootstrap=100), rng=draw))
    debiased = np.array([result.debiased for result in results])
    value = np.mean([result.value for result in results])
    standard_error = debiased.std(ddof=1) / np.sqrt(len(debiased))
    assert abs(debiased.mean()) < 3 * standard_error
    assert abs(debiased.mean()) < 0.3 * value
    # The mean of 10 plain values has an error of about a tenth.
    assert np.mean([result.floor for result in results]) == pytest.approx(value, rel=0.2)


def test_debiased_keeps_true_spread(family) -> None:
    """Spread measured with 24 images a class, where noise is small, is found again with 6 of them."""
    draw = np.random.default_rng(3)
    rows, labels = family(draw, n_classes=80, n_images=24, spread=0.3)
    kept = np.arange(len(labels)) % 24 < 6
    much = consistency_report((rows, labels), rng=draw)
    little = consistency_report((rows[kept], [labels[row] for row in np.flatnonzero(kept)]), rng=draw)
    assert much.debiased > 5 * much.floor
    assert little.debiased == pytest.approx(much.debiased, rel=0.35)
    assert much.debiased in little.debiased_interval
    assert little.floor > 3 * much.floor


def test_two_images_a_class_have_a_floor_and_a_bound_only(family) -> None:
    """One pair a class: independent pairs are the truth, and all of the value may be spread or none of it."""
    draw = np.random.default_rng(4)
    rows, labels = family(draw, n_classes=150, n_images=2)
    result = consistency_report((rows, labels), rng=draw)
    assert (result.debiased, result.debiased_method, result.pair_correlation) == (None, "bound", 0)
    assert result.floor == pytest.approx(result.value, rel=0.15)
    assert (result.debiased_interval.low, result.debiased_interval.high > result.value) == (0, True)
    assert "debiased at most" in str(result)


def test_same_generator_same_result_and_order_does_not_matter(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=20, n_images=4, spread=0.3)
    first = consistency_report((rows, labels), rng=rng())
    assert consistency_report((rows, labels), rng=rng()) == first
    order = np.random.default_rng(6).permutation(len(labels))
    shuffled = consistency_report((rows[order], [labels[row] for row in order]), rng=rng())
    # Matrix products of other row orders differ in the last bit of a few scores.
    assert shuffled.value == pytest.approx(first.value, rel=1e-3)


def test_cohort_scores_are_measured_on_the_log_far_axis_only(family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=30, n_images=4, spread=0.3)
    density = np.linspace(0, 0.3, len(rows), dtype=np.float32)[:, None]
    one = np.ones_like(density)
    query, gallery = np.hstack([rows, -density / 2, one]), np.hstack([rows, one, -density / 2])
    curves = operating_curves(labelled(query, labels, gallery=gallery))
    with pytest.raises(InvalidInput, match="log_far"):
        measure_opis(curves, rng=rng())
    result = consistency_report(labelled(query, labels, gallery=gallery), OpisOptions(axis="log_far"), rng=rng())
    assert result.axis == "log_far"
    assert result.value > result.floor > 0
    # Both arrays equal and unit: the same number as cosine.
    cosine = measure_opis(operating_curves((rows, labels)), OpisOptions(axis="log_far"), rng=rng())
    assert cosine == measure_opis(
        operating_curves(labelled(rows, labels, gallery=rows.copy())), OpisOptions(axis="log_far"), rng=rng()
    )


def test_distance_range_gets_its_own_thresholds(family) -> None:
    rows, labels = family(np.random.default_rng(8), n_classes=20, n_images=5, spread=0.3)
    result = consistency_report((rows, labels), OpisOptions(distance_range=(0.8, 1.1)), rng=rng())
    fine = operating_curves((rows, labels), thresholds=np.linspace(1 - 1.1**2 / 2, 1 - 0.8**2 / 2, 5000))
    assert result.value == pytest.approx(
        measure_opis(fine, OpisOptions(distance_range=(0.8, 1.1)), rng=rng()).value, rel=5e-3
    )


def test_classes_of_one_image_are_left_out_and_reported(family) -> None:
    rows, labels = family(np.random.default_rng(9), n_classes=30, n_images=4)
    labels = [*labels[:-2], "single 1", "single 2"]
    result = consistency_report((rows, labels), rng=rng())
    assert (result.n_classes, result.n_excluded) == (30, 2)
    text = str(result)
    for part in ("OPIS", "95 % interval", "noise floor", "debiased", "over 30 classes", "2 classes without"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"far_low": 0.2, "far_high": 0.1}, "far_low < far_high < 1, found 0.2 and 0.1"),
        ({"far_low": 0.0}, "far_low < far_high < 1, found 0.0 and 0.1"),
        ({"far_high": 1.0}, "far_low < far_high < 1, found 0.01 and 1.0"),
        ({"axis": "similarity"}, "axis must be one of .*, found 'similarity'"),
        ({"distance_range": (1.0, 0.5)}, "d_min < d_max <= 2, found"),
        ({"distance_range": (0.5, 2.5)}, "d_min < d_max <= 2, found"),
        ({"distance_range": (0.0, 0.1)}, "the band reaches from threshold 0.995 to 1, the curves hold 3 thresholds"),
        ({"c": 0.0}, "c must be positive, found 0.0"),
        ({"eps": 0.0}, r"eps is a percentage in \(0, 50\], .*found 0.0"),
        ({"eps": 60.0}, r"eps is a percentage in \(0, 50\], .*found 60.0"),
        ({"weighting": "by size"}, "weighting is 'equal', 'images' or .*, found 'by size'"),
        ({"weighting": {"class 0": -1.0, "class 1": 2.0}}, "weights of classes must be finite, not negative"),
        ({"weighting": {"class 0": 0.0, "class 1": 0.0}}, "weights of classes .* not all 0"),
        ({"confidence": 1.0}, "confidence must lie strictly between 0 and 1, found 1.0"),
        ({"n_bootstrap": 0}, "at least one bootstrap replicate, found 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    curves = curves_of([[0.9, 0.5, 0.1]] * 2, [0.5, 0.05, 0.005], [0.1, 0.3, 0.5])
    with pytest.raises(InvalidInput, match=message):
        measure_opis(curves, OpisOptions(**options), rng=rng())


def test_an_impossible_correlation_is_refused() -> None:
    curves = curves_of([[0.9, 0.5, 0.1]] * 2, [0.5, 0.05, 0.005], [0.1, 0.3, 0.5])
    with pytest.raises(InvalidInput, match=r"pair_correlation lies in \[0, 1\]; found .* 1.5"):
        measure_opis(curves, pair_correlation=1.5, rng=rng())


def test_a_report_takes_all_pairs_of_one_set(family) -> None:
    rows, labels = family(np.random.default_rng(11), n_classes=12, n_images=4)
    for vectors in (crossed(rows, labels, rows, labels), labelled(rows, labels, exclude=(labels,))):
        with pytest.raises(InvalidInput, match=r"one set of images|without excluded pairs"):
            consistency_report(vectors, rng=rng())


def test_json_holds_every_figure_but_the_shares(family) -> None:
    rows, labels = family(np.random.default_rng(13), n_classes=20, n_images=4)
    result = consistency_report((rows, labels), rng=rng())
    document = json.loads(json.dumps(result.to_json()))
    assert document.keys() == {field.name for field in fields(result)} - {"shares"}
    assert document["value"] == result.value
    assert document["interval"] == {"low": result.interval.low, "high": result.interval.high}
    assert result.shares is not None
    assert result.debiased == result.shares.mean


def test_curves_that_do_not_reach_the_band_are_refused() -> None:
    curves = curves_of([[0.9, 0.5]] * 2, [0.05, 0.02], [0.1, 0.3])
    with pytest.raises(InvalidInput, match=r"cover pooled FAR 0\.02 to 0\.05"):
        measure_opis(curves, rng=rng())


def test_too_few_negatives_or_classes_are_not_enough(family) -> None:
    rows, labels = family(np.random.default_rng(10), n_classes=5, n_images=2)
    with pytest.raises(NotEnoughEvidence, match="10 false accepts"):
        consistency_report((rows, labels), rng=rng())
    lonely = curves_of([[0.9, 0.5]] * 2, [0.5, 0.001], [0.1, 0.3])
    with pytest.raises(NotEnoughEvidence, match="at least 2 are needed, found 1"):
        measure_opis(replace(lonely, positives=np.array([1000, 0])), rng=rng())


def test_band_of_tied_scores_has_no_width() -> None:
    """Copies of one image score 1 within rounding: the distances of all thresholds are 0."""
    curves = curves_of([[0.9, 0.1]] * 2, [0.5, 0.0], [1.0, 1.0 + 2**-20])
    with pytest.raises(NotEnoughEvidence, match="no width"):
        measure_opis(curves, OpisOptions(far_low=0.05, far_high=0.2), rng=rng())
    empty = curves_of([[0.9, 0.1, 0.1]] * 2, [0.5, 0.0, 0.0], [0.1, 0.2, 0.3])
    with pytest.raises(NotEnoughEvidence, match="no false accept"):
        measure_opis(empty, OpisOptions(axis="log_far", distance_range=(1.2, 1.3)), rng=rng())


def test_opis_around_a_target_covers_a_decade_on_either_side(family) -> None:
    """And where the pairs cannot show a tenth of the target, the result states from which FAR on it was measured."""
    vectors = labelled(*family(np.random.default_rng(30), n_classes=60, n_images=5, dimension=8, spread=0.3))
    found = consistency_around(vectors, 0.004, rng=rng())
    assert (found.axis, found.far_low) == ("log_far", pytest.approx(4e-4, rel=0.05))
    assert found.far_high == pytest.approx(4e-2, rel=0.05)
    few = consistency_around(vectors, 0.001, rng=rng())
    assert few.far_low == pytest.approx(10.5 / vectors.n_negatives, rel=0.1)
    assert few.far_high == pytest.approx(1e-2, rel=0.05)
    with pytest.raises(NotEnoughEvidence, match=r"OPIS around a FAR of 0.0001 needs about 1"):
        consistency_around(vectors, 1e-4, rng=rng())
    with pytest.raises(InvalidInput, match=r"between 0 and 0.5"):
        consistency_around(vectors, 0.5, rng=rng())
