"""Items are pulled to their class as the formulas say, item by item, and a wrong label does little harm."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.contract import class_terms
from retrieval.contract.class_terms import ClassTerms, PulledItems, candidate_terms, class_codes, pull_items
from retrieval.contract.typical_class import TypicalClass
from retrieval.errors import InvalidEmbeddings, NotEnoughEvidence

Vectors = NDArray[np.float32]
TYPICAL = TypicalClass(within=0.5, between=0.0, variance=0.025, density=0.4)
WEIGHT = 0.5


def density(rows: Vectors) -> Vectors:
    """Return a density that differs from row to row."""
    return np.asarray(0.3 + 0.2 * rows[:, 0], dtype=np.float32)


def unit(rows: NDArray[np.float64]) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def around(centre: int, n: int, *, dimension: int = 8, spread: float = 0.3, seed: int = 0) -> Vectors:
    """Return n rows around one of the axes; two of them have a similarity of about 0.6 with this spread."""
    rows = np.random.default_rng(seed).normal(size=(n, dimension)) * spread
    rows[:, centre] += 1
    return unit(rows)


def pull(rows: Vectors, codes: list[int], **options: float) -> PulledItems:
    terms = ClassTerms(**({"pull": 0.8, "offset_weight": 0.5} | options), typical=TYPICAL)
    return pull_items(terms, rows, np.array(codes, dtype=np.int64), density=density, weight=WEIGHT)


def item_by_item(terms: ClassTerms, rows: Vectors, codes: list[int]) -> tuple[list[Vectors], list[float], list[float]]:
    """Return rows, offsets and probabilities by the formulas, with loops in double precision."""
    typical, out_rows, out_offsets, out_right = terms.typical, [], [], []
    assert typical is not None
    for row, code in enumerate(codes):
        members = [other for other, its in enumerate(codes) if its == code]
        if code < 0 or len(members) < 2:
            out_rows.append(rows[row])
            out_offsets.append(0.0)
            out_right.append(0.0)
            continue
        x = {member: rows[member].astype(float) for member in members}
        s = {a: np.mean([x[a] @ x[b] for b in members if b != a]) for a in members}
        k = (len(members) - 1) / (len(members) + 1)
        level = k * median(s.values()) + (1 - k) * typical.within
        gap = max(level - typical.between, 0)
        odds = {a: 9 * math.exp(gap * (s[a] - (level + typical.between) / 2) / typical.variance) for a in members}
        w = {a: odds[a] / (1 + odds[a]) for a in members}
        total = sum(w.values())
        mean = sum(w[a] * x[a] for a in members) / total
        pairs = [(a, b) for a in members for b in members if a != b]
        rho = sum(w[a] * w[b] * (x[a] @ x[b]) for a, b in pairs) / sum(w[a] * w[b] for a, b in pairs)
        moved = (1 - terms.pull * w[row]) * x[row] + terms.pull * w[row] * mean
        f = np.linalg.norm(moved)
        out_rows.append((moved / f).astype(np.float32))
        r = float(density(out_rows[-1][None])[0])
        k = max(total - 1, 0) / (max(total - 1, 0) + 2)
        seen, prior = rho / f - 2 * WEIGHT * r, typical.within / f - 2 * WEIGHT * typical.density
        lone = typical.within - 2 * WEIGHT * typical.density
        out_offsets.append(terms.offset_weight * w[row] * (k * seen + (1 - k) * prior - lone))
        out_right.append(w[row])
    return out_rows, out_offsets, out_right


@given(
    codes=st.lists(st.integers(-1, 3), min_size=1, max_size=12),
    strength=st.sampled_from([0.0, 0.4, 1.0]),
    spread=st.sampled_from([0.2, 0.5]),
    seed=st.integers(0, 9),
)
def test_items_are_pulled_as_the_formulas_say(codes: list[int], strength: float, spread: float, seed: int) -> None:
    """Rows, offsets and far items of any classes are those of loops over the items."""
    terms = ClassTerms(pull=strength, offset_weight=0.5, typical=TYPICAL)
    rows = around(1, len(codes), spread=spread, seed=seed)
    found = pull_items(terms, rows, np.array(codes), density=density, weight=WEIGHT)
    expected, offsets, right = item_by_item(terms, rows, codes)
    np.testing.assert_allclose(found.rows, expected, atol=2e-6)  # sums in float32
    np.testing.assert_allclose(found.offsets, offsets, atol=2e-6)
    np.testing.assert_allclose(found.densities, density(found.rows), atol=0)
    known = [abs(w - 0.5) > 1e-5 for w in right]
    far = [code >= 0 and codes.count(code) > 1 and w < 0.5 for code, w in zip(codes, right, strict=True)]
    np.testing.assert_array_equal(found.far[known], np.array(far)[known])


def test_two_items_by_hand() -> None:
    """Two items of similarity 0.6: L = (0.6 + 2 * 0.5) / 3 = 0.533, odds 9 exp(0.533 * 0.333 / 0.025), w = 0.9999."""
    rows = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    found = pull_items(
        ClassTerms(pull=1.0, offset_weight=1.0, typical=TYPICAL),
        rows,
        np.array([0, 0]),
        density=lambda x: 0 * x[:, 0],
        weight=0.0,
    )
    # Both become the mean (0.8, 0.4), of length 0.894. rho = 0.6 and k = 1 / 3: (0.6 + 2 * 0.5) / 3 / 0.894 - 0.5.
    np.testing.assert_allclose(found.rows, [[0.894, 0.447]] * 2, atol=1e-3)
    np.testing.assert_allclose(found.offsets, [0.0963, 0.0963], atol=1e-3)
    assert not found.far.any()


def test_an_item_without_others_of_its_class_stays_as_it_is() -> None:
    """Items without a label, or alone in their class, keep every bit and have no offset."""
    rows = around(0, 6)
    found = pull(rows, [-1, 4, -1, 2, 2, 7])
    lone = [0, 1, 2, 5]
    np.testing.assert_array_equal(found.rows[lone], rows[lone])
    np.testing.assert_array_equal(found.offsets[lone], 0)
    assert not found.far[lone].any()
    assert (found.rows[3] != rows[3]).any()


def test_a_gallery_of_lone_items_and_an_empty_one_stay_as_they_are() -> None:
    """Nothing is pulled where no class has two items."""
    rows = around(0, 3)
    np.testing.assert_array_equal(pull(rows, [0, 1, -1]).rows, rows)
    assert pull(rows[:0], []).rows.shape == (0, 8)


def test_a_change_of_one_class_leaves_the_others_bit_for_bit() -> None:
    """Later items of class 0 change neither the vectors nor the offsets of class 1."""
    rows, codes = np.concatenate([around(0, 5), around(1, 4, seed=1)]), [0] * 5 + [1] * 4
    more = np.concatenate([rows, around(0, 3, seed=2)])
    before, after = pull(rows, codes), pull(more, [*codes, 0, 0, 0])
    np.testing.assert_array_equal(before.rows[5:9], after.rows[5:9])
    np.testing.assert_array_equal(before.offsets[5:9], after.offsets[5:9])
    assert np.abs(before.rows[:5] - after.rows[:5]).max() > 1e-3


def test_blocks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the blocks that bound the memory decides nothing."""
    rows, codes = around(0, 40), (np.arange(40) % 7).tolist()
    whole = pull(rows, codes)
    monkeypatch.setattr(class_terms, "_BLOCK", 5)
    parts = pull(rows, codes)
    np.testing.assert_array_equal(whole.rows, parts.rows)
    np.testing.assert_array_equal(whole.offsets, parts.offsets)


@given(seed=st.integers(0, 99))
def test_the_order_of_the_items_does_not_matter(seed: int) -> None:
    """The items in another order get the same vectors, up to the rounding of sums."""
    rows, codes = around(2, 20, seed=seed), np.random.default_rng(seed).integers(-1, 4, 20)
    order = np.random.default_rng(seed + 1).permutation(20)
    found, again = pull(rows, codes.tolist()), pull(rows[order], codes[order].tolist())
    np.testing.assert_allclose(found.rows[order], again.rows, atol=1e-6)
    np.testing.assert_allclose(found.offsets[order], again.offsets, atol=1e-6)


def test_a_wrong_label_hardly_moves_the_class() -> None:
    """One item of another kind among five is far; it stays where it is, and the class moves little."""
    right, wrong = around(0, 4), around(5, 1)
    rows = np.concatenate([right, wrong])
    clean, mixed = pull(right, [0] * 4), pull(rows, [0] * 5)
    plain = pull_items(ClassTerms(pull=0.8), rows, np.zeros(5, np.int64), density=density, weight=WEIGHT)
    assert mixed.far.tolist() == [False] * 4 + [True]
    moved, without_weights = (1 - (found.rows[:4] * clean.rows).sum(axis=1) for found in (mixed, plain))
    assert (moved < 0.2 * without_weights).all()
    assert float(mixed.rows[4] @ wrong[0]) > 0.95 > float(plain.rows[4] @ wrong[0])
    assert 0 < mixed.offsets[4] < mixed.offsets[:4].min()


def test_every_label_counts_without_a_typical_class() -> None:
    """The plain mean takes the wrong item in, and none is far."""
    rows = np.concatenate([around(0, 4), around(5, 1)])
    found = pull_items(ClassTerms(pull=1.0), rows, np.zeros(5, np.int64), density=density, weight=WEIGHT)
    expected = unit(rows.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(found.rows, [expected] * 5, atol=1e-6)
    assert not found.far.any()


def test_two_items_that_disagree_are_pulled_little() -> None:
    """Nothing shows which of two is wrong: both are far, and both stay almost as they are."""
    rows = np.eye(8, dtype=np.float32)[[0, 1]]
    found = pull(rows, [0, 0], pull=1.0)
    assert found.far.all()
    assert (found.rows * rows).sum(axis=1).min() > 0.95


def test_a_label_of_unlike_images_is_no_class() -> None:
    """Such as "unknown": no item is pulled, all are far, and their offset is that of an item without a label."""
    rows = np.eye(48, dtype=np.float32)
    terms = ClassTerms(pull=1.0, offset_weight=0.5, typical=TYPICAL, lone_offset=0.25)
    found = pull_items(terms, rows, np.zeros(48, np.int64), density=lambda x: 0 * x[:, 0], weight=WEIGHT)
    assert found.far.all()
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.offsets, 0.25)


def test_items_that_cancel_stay_as_they_are() -> None:
    """The mean of opposite items has no direction."""
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    found = pull_items(ClassTerms(pull=1.0), rows, np.array([0, 0]), density=density, weight=WEIGHT)
    np.testing.assert_array_equal(found.rows, rows)


def test_rows_without_a_direction_do_no_harm() -> None:
    """Zeros, as a whitening leaves them, give no NaN."""
    rows = np.concatenate([around(0, 3), np.zeros((1, 8), np.float32)])
    found = pull(rows, [0, 0, 0, 0])
    assert np.isfinite(found.rows).all()
    assert np.isfinite(found.offsets).all()


def test_tight_classes_have_the_higher_offset() -> None:
    """A class that accepts its queries more easily gets more subtracted."""
    rows = np.concatenate([around(0, 6, spread=0.1), around(1, 6, spread=0.35)])
    terms = ClassTerms(pull=0.8, offset_weight=0.5, typical=TYPICAL)
    codes = np.arange(12) // 6
    offsets = pull_items(terms, rows, codes, density=lambda x: 0 * x[:, 0], weight=WEIGHT).offsets
    assert offsets[:6].min() > offsets[6:].max()


def test_candidates_are_fitted_on_the_classes_given() -> None:
    """All candidates share the typical class of the rows, and differ in pull and offset."""
    rows = np.concatenate([around(axis, 4, seed=axis) for axis in range(6)])
    found = candidate_terms(rows, np.arange(24) // 4, density=density, weight=WEIGHT)
    assert len({(terms.pull, terms.offset_weight) for terms in found}) == len(found)
    (typical,) = {terms.typical for terms in found}
    assert typical is not None
    assert typical.within > typical.between
    with pytest.raises(NotEnoughEvidence, match="classes of two items"):
        candidate_terms(rows, np.arange(24), density=density, weight=WEIGHT)


def test_codes_follow_the_sorted_names() -> None:
    """Empty labels have no class."""
    names, codes = class_codes(["b", "", "a", "b"])
    assert names == ("a", "b")
    assert codes.tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize("options", [{"pull": 1.1}, {"pull": -0.1}, {"pull": 0.5, "offset_weight": -1.0}])
def test_impossible_terms_are_refused(options: dict[str, float]) -> None:
    """A pull beyond the mean, and an offset that widens the differences, have no use."""
    with pytest.raises(InvalidEmbeddings, match=r"expected a pull in \[0, 1\]"):
        ClassTerms(**options, typical=TYPICAL)


def test_an_offset_needs_a_typical_class() -> None:
    """Small classes are compared with it."""
    with pytest.raises(InvalidEmbeddings, match="expected a typical class"):
        ClassTerms(pull=0.7, offset_weight=0.3)
