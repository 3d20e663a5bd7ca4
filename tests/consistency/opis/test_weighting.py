from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency.opis import weighting
from retrieval.consistency.opis.weighting import mean_over_classes, resampled_weights, weigh_classes
from retrieval.errors import InvalidInput


def test_weights_of_classes_by_hand() -> None:
    sizes = np.array([1, 2, 5])
    assert weigh_classes("equal", ("a", "b", "c"), sizes).tolist() == pytest.approx([1 / 3] * 3)
    assert weigh_classes("images", ("a", "b", "c"), sizes).tolist() == [0.125, 0.25, 0.625]
    assert weigh_classes({"c": 3, "b": 1, "a": 0, "d": 9}, ("a", "b", "c"), sizes).tolist() == [0, 0.25, 0.75]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("size", "weighting is 'equal', 'images' or a weight for each class by name, found 'size'"),
        ({"a": 1.0}, "1 have none, the first is 'b'"),
        ({"a": -1.0, "b": 1}, "finite, not negative, and not all 0"),
        ({"a": float("nan"), "b": 1}, "finite, not negative, and not all 0"),
        ({"a": 0, "b": 0}, "finite, not negative, and not all 0"),
    ],
)
def test_impossible_weights_are_refused(bad, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        weigh_classes(bad, ("a", "b"), np.array([2, 2]))


@given(st.lists(st.floats(0, 5), min_size=2, max_size=30).filter(lambda found: sum(found) > 0.1), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_replicates_draw_classes_with_their_weights(given_weights: list[float], n_bootstrap: int) -> None:
    """Each replicate sums to 1, and is a whole number of draws times the weights, rescaled."""
    weights = np.array(given_weights) / sum(given_weights)
    drawn = np.concatenate(list(resampled_weights(weights, n_bootstrap, np.random.default_rng(0))))
    assert drawn.shape == (n_bootstrap, len(weights))
    assert drawn.sum(axis=1) == pytest.approx(1)
    assert (drawn[:, weights == 0] == 0).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.full(7, 1 / 7)
    whole = np.concatenate(list(resampled_weights(weights, 20, np.random.default_rng(1))))
    monkeypatch.setattr(weighting, "_BLOCK_ENTRIES", 21)
    blocks = list(resampled_weights(weights, 20, np.random.default_rng(1)))
    assert [len(block) for block in blocks] == [3] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_standard_error_agrees_with_counting_draws_one_by_one() -> None:
    """The error of a ratio of sums over single draws, written out draw by draw."""
    rng = np.random.default_rng(2)
    weights = rng.random(6)
    weights /= weights.sum()
    values = rng.normal(size=6)
    draws = np.array([0, 0, 0, 2, 3, 5])
    total = weights[draws].sum()
    mean = weights[draws] @ values[draws] / total
    expected = np.sqrt(((weights[draws] / total * (values[draws] - mean)) ** 2).sum())
    drawn = np.bincount(draws, minlength=6) * weights / total
    assert weighting._standard_errors(drawn, weights, values) == pytest.approx(expected)


def test_mean_interval_and_p_value_agree() -> None:
    rng = np.random.default_rng(3)
    weights = np.full(40, 1 / 40)
    options = {"n_bootstrap": 999, "confidence": 0.95}
    values = rng.normal(size=40)
    for shift in (0.0, 0.2, 0.5, 2.0):
        found = mean_over_classes(values + shift, weights, **options, rng=np.random.default_rng(4))
        assert found.value == pytest.approx(values.mean() + shift)
        assert (0 in found.interval) == (found.p_value > 0.05)
        # Student's interval of normal values, within the noise of 999 replicates.
        assert found.interval.high - found.value == pytest.approx(2.02 * values.std(ddof=1) / np.sqrt(40), rel=0.1)
    constant = mean_over_classes(np.zeros(5), np.full(5, 0.2), **options, rng=rng)
    assert (constant.value, constant.interval.high, constant.p_value) == (0, 0, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n_bootstrap": 0}, "at least one bootstrap replicate, found 0"),
        ({"confidence": 0.0}, "strictly between 0 and 1, found 0.0"),
        ({"confidence": 1.0}, "strictly between 0 and 1, found 1.0"),
    ],
)
def test_impossible_bootstraps_are_refused(bad: dict[str, float], message: str) -> None:
    options = {"n_bootstrap": 10, "confidence": 0.9} | bad
    with pytest.raises(InvalidInput, match=message):
        mean_over_classes(np.ones(3), np.full(3, 1 / 3), **options, rng=np.random.default_rng(0))
