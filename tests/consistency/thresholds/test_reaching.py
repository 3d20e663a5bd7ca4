from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.consistency import Target, labelled, parse_target, thresholds_at_far
from retrieval.consistency.thresholds.reaching import reach
from retrieval.errors import NotEnoughEvidence

TARGETS = ["far=0.02", "class-far=0.02", "frr=0.3", "precision=0.4@0.02", "f1@0.02", "f0.5@0.1", "utility", "utility=2"]


def uneven(rng: np.random.Generator, family, n_classes: int = 25) -> tuple[NDArray[np.float32], list[str]]:
    """Classes of 1 to 6 images, shuffled."""
    rows, labels = family(rng, n_classes=n_classes, n_images=6, dimension=12, spread=0.4, crowding=0.8)
    sizes = rng.integers(1, 7, size=n_classes)
    kept = rng.permutation([6 * code + image for code, size in enumerate(sizes) for image in range(size)])
    return rows[kept], [labels[row] for row in kept]


def achieved(target: Target, scores: NDArray[np.float32], codes: NDArray[np.int64], threshold: float) -> float:
    """The target's definition, pair by pair and class by class."""
    accepted, same = scores >= threshold, codes[:, None] == codes
    others = ~np.eye(len(codes), dtype=bool)
    far, tar = accepted[~same].mean(), accepted[same & others].mean()
    if target.kind in {"far", "false-matches"}:
        return -float(far)
    if target.kind == "frr":
        return float(tar) - 1
    if target.kind in {"class-far", "utility"}:
        values = []
        for code in np.unique(codes):
            own = codes == code
            class_far = accepted[np.ix_(own, ~own)].mean()
            if target.kind == "class-far":
                values.append(-class_far)
            elif own.sum() > 1:
                class_tar = accepted[np.ix_(own, own)][~np.eye(own.sum(), dtype=bool)].mean()
                c2, trr = target.value**2, 1 - class_far
                values.append((1 + c2) * trr * class_tar / (c2 * trr + class_tar) if trr + class_tar > 0 else 0.0)
        return float(np.mean(values))
    assert target.at is not None
    right, wrong = target.at * tar, (1 - target.at) * far
    precision = right / (right + wrong) if right + wrong > 0 else 0.0
    if target.kind == "precision":
        return float(precision)
    b2 = target.value**2
    return float((1 + b2) * precision * tar / (b2 * precision + tar)) if precision + tar > 0 else 0.0


@pytest.mark.parametrize("text", TARGETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_other_float32_does_better(text: str, seed: int, family) -> None:
    """Against the definition, evaluated at every distinct score and one step above it."""
    target = parse_target(text)
    rows, labels = uneven(np.random.default_rng(seed), family, n_classes=11)
    vectors = labelled(rows, labels)
    found = reach(vectors, target)
    scores = vectors.query @ vectors.gallery.T
    scores = np.triu(scores) + np.triu(scores, 1).T  # as counted: every pair once, from above the diagonal
    steps = np.unique(scores[np.triu_indices(len(scores), 1)])
    steps = np.unique(np.append(steps, np.nextafter(steps, np.float32(9))))
    values = np.array([achieved(target, scores, vectors.codes, step) for step in steps])
    tolerance = 1e-9  # sums in another order
    if target.choice == "best":
        assert achieved(target, scores, vectors.codes, found) == pytest.approx(values.max(), abs=tolerance)
        assert found in scores
        return
    reached = np.flatnonzero(values >= target.level - tolerance)
    assert found == steps[reached[0] if target.choice == "lowest" else reached[-1]]


def test_pooled_far_agrees_with_the_selection_by_rank(family) -> None:
    rows, labels = uneven(np.random.default_rng(3), family)
    for far in (0.5, 0.1, 0.01, 0.001):
        found = reach(labelled(rows, labels), Target("far", far))
        assert found == pytest.approx(thresholds_at_far(labelled(rows, labels), [far])[0], abs=1e-6)


def test_thresholds_are_ordered_as_their_targets(family) -> None:
    vectors = labelled(*uneven(np.random.default_rng(4), family))
    strict_first = {
        "class-far={}": [0.001, 0.01, 0.1, 0.5],
        "frr={}": [0.8, 0.5, 0.2, 0.05],
        "precision={}@0.1": [0.9, 0.7, 0.4, 0.2],
    }
    for form, values in strict_first.items():
        thresholds = [reach(vectors, parse_target(form.format(value))) for value in values]
        assert thresholds == sorted(thresholds, reverse=True), form
    betas = [reach(vectors, Target("f", beta, 0.05)) for beta in (0.2, 1, 5)]
    assert betas == sorted(betas, reverse=True)


@given(st.integers(0, 2**32 - 1), st.sampled_from([text for text in TARGETS if not text.startswith("precision")]))
@settings(max_examples=10)
def test_names_and_order_do_not_matter(seed: int, text: str) -> None:
    """Renamed classes and shuffled rows ask for the same threshold, up to the last digits of float32 products."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(8, 6)), 4, axis=0) + rng.normal(size=(32, 6))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    codes, order, names = np.repeat(np.arange(8), 4), rng.permutation(32), rng.permutation(8)
    target = parse_target(text)
    plain = reach(labelled(rows, [str(code) for code in codes]), target)
    renamed = labelled(rows[order], [str(names[code]) for code in codes[order]])
    again = reach(renamed, target)
    scores = rows @ rows.T
    if target.choice == "best":  # several may be equally good but for rounding
        assert achieved(target, scores, codes, again - 1e-6) == pytest.approx(
            achieved(target, scores, codes, plain - 1e-6), abs=0.02
        )
    else:
        assert again == pytest.approx(plain, abs=2e-6)


def test_scores_that_are_no_cosines(family) -> None:
    """Scores around -3 and of both signs are searched as well."""
    rows, labels = uneven(np.random.default_rng(5), family)
    for shift in (-3.0, 0.3):
        query = np.hstack([rows, np.full((len(rows), 1), shift, np.float32)])
        gallery = np.hstack([rows, np.ones((len(rows), 1), np.float32)])
        for text in TARGETS:
            plain = reach(labelled(rows, labels), parse_target(text))
            shifted = reach(labelled(query, labels, gallery=gallery), parse_target(text))
            assert shifted == pytest.approx(plain + shift, abs=2e-6), text


def test_a_target_that_no_threshold_reaches_is_refused() -> None:
    """Every negative pair is a copy of a positive one: precision never exceeds the prevalence."""
    rows = np.tile(np.eye(3, dtype=np.float32), (4, 1))
    vectors = labelled(rows, ["a"] * 6 + ["b"] * 6)
    with pytest.raises(NotEnoughEvidence, match=r"no threshold reaches precision at least 0\.9 .* lower the target"):
        reach(vectors, parse_target("precision=0.9@0.1"))
