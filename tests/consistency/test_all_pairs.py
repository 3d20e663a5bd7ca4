"""Formulas over all pairs of one set refuse vectors with other pairs, in place of a wrong figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrieval import consistency
from retrieval.consistency import Target, crossed, labelled
from retrieval.errors import InvalidInput

CALLS: dict[str, Callable[[Any], object]] = {
    "choose_threshold": lambda vectors: consistency.choose_threshold(vectors, target=Target("far", 0.1)),
    "certify": lambda vectors: consistency.certify(vectors, alpha=0.2, delta=0.1),
    "certify_mean": lambda vectors: consistency.certify_mean(vectors, alpha=0.2),
    "cross_fitted_rates": lambda vectors: consistency.cross_fitted_rates(
        vectors, target_far=0.1, rng=np.random.default_rng(0)
    ),
    "class_rates": lambda vectors: consistency.class_rates(vectors, 0.5),
    "compare_groups": lambda vectors: consistency.compare_groups(
        vectors, ["x"] * 80, 0.5, rng=np.random.default_rng(0)
    ),
    "score_histograms": consistency.score_histograms,
    "most_confused": lambda vectors: consistency.most_confused(vectors, 0.5),
    "class_confusions": lambda vectors: consistency.class_confusions(vectors, 0.5),
    "label_margins": lambda vectors: consistency.label_margins(vectors, 0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_two_sets_and_excluded_pairs_are_refused(family, name: str) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=20, n_images=4)
    CALLS[name](labelled(rows, labels))
    with pytest.raises(InvalidInput, match="expected one set of images"):
        CALLS[name](crossed(rows, labels, rows, labels))
    with pytest.raises(InvalidInput, match="without excluded pairs"):
        CALLS[name](labelled(rows, labels, exclude=[["maker"] * 2 + [""] * 78]))
