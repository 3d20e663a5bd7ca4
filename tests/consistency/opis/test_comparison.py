from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import (
    Interval,
    OpisOptions,
    OpisResult,
    compare_consistency,
    compare_results,
    consistency_report,
    labelled,
    measure_opis,
)
from retrieval.consistency.opis.debiased import DebiasedShares
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.opis.test_measure import curves_of

FEW_DRAWS = OpisOptions(axis="log_far", n_bootstrap=500)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def with_shares(result: OpisResult, values: np.ndarray) -> OpisResult:
    n = len(values)
    return replace(result, shares=DebiasedShares(values, np.full(n, 1 / n), np.arange(n), "pairs"))


@pytest.fixture
def plain():
    curves = curves_of([[0.9, 0.5, 0.1]] * 12, [0.5, 0.05, 0.005], [0.1, 0.3, 0.5])
    return replace(
        measure_opis(curves, OpisOptions(n_bootstrap=1), rng=rng()), debiased=0.01, debiased_interval=Interval(0, 1)
    )


@pytest.mark.slow
def test_a_model_beside_itself_shows_no_difference(family) -> None:
    rows, labels = family(rng(), n_classes=30, n_images=5, spread=0.3)
    result = compare_consistency(labelled(rows, labels), labelled(rows.copy(), labels), FEW_DRAWS, rng=rng())
    assert (result.difference, result.p_value, result.n_classes) == (0, 1, 30)
    assert (result.difference_interval.low, result.difference_interval.high) == (0, 0)
    assert result.ratio == pytest.approx(1)
    assert "no difference is shown" in str(result)


def test_the_more_consistent_model_is_found_and_signs_turn_with_the_order(family) -> None:
    """Same classes, widths of one model spread four times as much as those of the other."""
    draw = np.random.default_rng(1)
    even, labels = family(draw, n_classes=80, n_images=8, spread=0.1)
    uneven, _ = family(draw, n_classes=80, n_images=8, spread=0.4)
    first, second = labelled(even, labels), labelled(uneven, labels)
    result = compare_consistency(first, second, FEW_DRAWS, rng=rng())
    assert result.difference < 0
    assert result.p_value < 0.05
    assert result.ratio < 0.6
    assert result.ratio in result.ratio_interval
    assert result.difference == pytest.approx(result.first.debiased - result.second.debiased)
    assert "the first is more consistent" in str(result)
    assert result.first.axis == "log_far"
    other = compare_consistency(second, first, FEW_DRAWS, rng=rng())
    assert other.difference == pytest.approx(-result.difference)
    assert "the second is more consistent" in str(other)
    assert result.first.value == consistency_report(first, OpisOptions(axis="log_far"), rng=rng()).value


@pytest.mark.slow
def test_equal_models_are_told_apart_at_about_the_level(plain) -> None:
    """Two sets of skewed, paired shares of one mean: at 0.05 about one in twenty is rejected."""
    draw = np.random.default_rng(2)
    rejected = 0
    for _ in range(200):
        common = draw.exponential(size=60)
        first, second = (with_shares(plain, common + draw.gamma(0.5, 2, size=60)) for _ in range(2))
        rejected += compare_results(first, second, n_bootstrap=199, rng=draw).p_value <= 0.05
    # Binomial error of 200 draws at 0.05: 0.015.
    assert 0.01 < rejected / 200 < 0.1


def test_ratio_is_withheld_where_the_second_may_be_zero(plain) -> None:
    draw = np.random.default_rng(3)
    first, second = (with_shares(plain, mean + draw.normal(size=50)) for mean in (1, 0.1))
    result = compare_results(first, second, n_bootstrap=200, rng=draw)
    assert (result.ratio, result.ratio_interval) == (None, None)
    assert "ratio" not in str(result)


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(family, plain) -> None:
    rows, labels = family(rng(), n_classes=40, n_images=3)
    vectors = labelled(rows, labels)
    with pytest.raises(NotEnoughEvidence, match="10 classes of at least 4 images"):
        compare_consistency(vectors, vectors, rng=rng())
    with pytest.raises(InvalidInput, match="these counted different classes"):
        compare_results(with_shares(plain, np.ones(12)), with_shares(plain, np.ones(11)), n_bootstrap=9, rng=rng())
    with pytest.raises(InvalidInput, match="vectors of the same images"):
        compare_consistency(vectors, labelled(rows[:-1], labels[:-1]), rng=rng())


@pytest.mark.slow
def test_the_ratio_of_equal_models_is_1_as_often_as_stated(family) -> None:
    """Skewed shares of 12 classes, equal on average: percentiles of the ratio held 1 in 0.88 of these draws."""
    rows, labels = family(np.random.default_rng(0), n_classes=12, n_images=5)
    result = consistency_report(labelled(rows, labels), FEW_DRAWS, rng=rng())
    draw, held = np.random.default_rng(3), 0
    for _ in range(120):
        both = np.exp(draw.normal(size=12))
        shares = [both * np.exp(0.8 * draw.normal(size=12)) for _ in range(2)]
        compared = compare_results(*(with_shares(result, values) for values in shares), n_bootstrap=300, rng=draw)
        assert compared.ratio_interval is not None
        assert compared.ratio in compared.ratio_interval
        held += 1 in compared.ratio_interval
    assert held / 120 >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 120)
