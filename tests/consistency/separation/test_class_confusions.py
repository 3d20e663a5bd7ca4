from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from retrieval.consistency import class_confusions
from retrieval.errors import InvalidInput
from tests.consistency.conftest import Family


def test_against_loops(family: Family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=8, n_images=4, dimension=4)
    found = class_confusions(rows, labels, 0.5, n_listed=2, tile=7)
    assert list(found) == sorted(set(labels))
    for name, listed in found.items():
        counts = Counter(
            labels[j]
            for i in range(len(rows))
            for j in range(len(rows))
            if labels[i] == name != labels[j] and rows[i] @ rows[j] >= 0.5
        )
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:2]
        assert [(c.name, c.n_accepted, c.n_pairs) for c in listed] == [(other, count, 16) for other, count in expected]


def test_no_confusion_and_bad_options() -> None:
    rows, labels = np.eye(4, dtype=np.float32), ["a", "a", "b", "b"]
    assert class_confusions(rows, labels, 0.5) == {"a": (), "b": ()}
    with pytest.raises(InvalidInput):
        class_confusions(rows, labels, 0.5, n_listed=0)
    with pytest.raises(InvalidInput):
        class_confusions(rows, labels, float("nan"))
