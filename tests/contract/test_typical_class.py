"""A typical class is means over pairs, as loops over the pairs give them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.contract.typical_class import TypicalClass, fit_typical_class
from retrieval.errors import InvalidEmbeddings, NotEnoughEvidence


def unit_rows(n: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, dimension)) + 0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def pair_by_pair(rows: NDArray[np.float32], codes: list[int]) -> tuple[float, float, float]:
    """Return within, between and variance by loops over the pairs in double precision."""
    used = [row for row, code in enumerate(codes) if code >= 0 and codes.count(code) > 1]
    similarity = {(a, b): float(rows[a].astype(float) @ rows[b].astype(float)) for a, b in combinations(used, 2)}
    apart = [value for (a, b), value in similarity.items() if codes[a] != codes[b]]
    inside = [
        [value for (a, b), value in similarity.items() if codes[a] == codes[b] == code]
        for code in sorted({codes[row] for row in used})
    ]
    variances = [float(np.var(apart))]
    if freedom := sum(len(values) - 1 for values in inside):
        variances.append(sum(float(np.var(values)) * len(values) for values in inside) / freedom)
    return float(np.mean([np.mean(values) for values in inside])), float(np.mean(apart)), float(np.mean(variances))


@given(
    codes=st.lists(st.integers(-1, 3), min_size=4, max_size=14), dimension=st.integers(3, 12), seed=st.integers(0, 9)
)
def test_means_are_those_over_pairs(codes: list[int], dimension: int, seed: int) -> None:
    """Sums over gram matrices are sums over pairs, whether a class has more items than dimensions or fewer."""
    if len({code for code in codes if code >= 0 and codes.count(code) > 1}) < 2:
        return
    rows, densities = unit_rows(len(codes), dimension, seed), np.arange(len(codes), dtype=np.float32)
    found = fit_typical_class(rows, np.array(codes), densities)
    np.testing.assert_allclose((found.within, found.between, found.variance), pair_by_pair(rows, codes), atol=1e-6)
    used = [row for row, code in enumerate(codes) if code >= 0 and codes.count(code) > 1]
    assert found.density == pytest.approx(np.mean(used))


def test_neither_order_nor_names_of_the_classes_matter() -> None:
    """Other codes and another order give the same means up to rounding."""
    rows, codes = unit_rows(30, 5), np.arange(30) // 3
    order, densities = np.random.default_rng(1).permutation(30), np.linspace(0, 1, 30, dtype=np.float32)
    found, again = (
        fit_typical_class(rows, codes, densities),
        fit_typical_class(rows[order], (11 - codes)[order], densities[order]),
    )
    for name in ("within", "between", "variance", "density"):
        assert getattr(found, name) == pytest.approx(getattr(again, name), abs=1e-7)


def test_one_class_of_two_items_is_not_enough() -> None:
    """A mean between classes needs two of them."""
    with pytest.raises(NotEnoughEvidence, match="at least 2 of them, found 1"):
        fit_typical_class(unit_rows(4, 3), np.array([0, 0, 1, -1]), np.zeros(4, np.float32))


def test_identical_items_are_refused() -> None:
    """Without a variance no item is more likely than another to have a wrong label."""
    rows = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    with pytest.raises(NotEnoughEvidence, match="identical"):
        fit_typical_class(rows, np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, np.float32))


@pytest.mark.parametrize("changed", [{"variance": 0.0}, {"variance": float("nan")}, {"within": float("inf")}])
def test_numbers_must_be_finite_and_the_variance_positive(changed: dict[str, float]) -> None:
    """What cannot be used is refused before it is stored."""
    values = {"within": 0.5, "between": 0.0, "variance": 0.02, "density": 0.4} | changed
    with pytest.raises(InvalidEmbeddings, match="variance above 0"):
        TypicalClass(**values)
