from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from retrieval.consistency.separation.class_separation import class_separation
from retrieval.errors import InvalidInput


def test_every_class_agrees_with_its_own_pairs(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=6, n_images=4, spread=0.4)
    scores = rows @ rows.T
    codes = np.array(labels)
    for found in class_separation(rows, labels, tile=5):
        member = codes == found.name
        within = scores[np.ix_(member, member)][np.triu_indices(4, k=1)]
        between = scores[np.ix_(member, ~member)].ravel()
        spread = np.sqrt((within.var() + between.var()) / 2)
        assert found.mean_within == pytest.approx(within.mean(), rel=1e-5)
        assert found.d_prime == pytest.approx((within.mean() - between.mean()) / spread, rel=1e-4)
        expected = roc_auc_score([True] * 6 + [False] * 80, [*within, *between])
        assert found.auc == pytest.approx(expected, abs=0.01)  # 512 bins: few pairs share one
        assert found.d_prime in found.d_prime_interval


def test_the_interval_leaves_out_one_image_at_a_time(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=4, n_images=5)
    first = class_separation(rows, labels)[0]
    without = []
    for row in range(5):
        kept = np.delete(np.arange(20), row)
        without.append(class_separation(rows[kept], [labels[i] for i in kept])[0].d_prime)
    error = np.sqrt(4 / 5 * np.square(np.array(without) - np.mean(without)).sum())
    assert first.d_prime_interval.high == pytest.approx(first.d_prime + 2.7764 * error, rel=1e-4)  # Student, 4 d. f.


def test_classes_of_few_images_say_what_they_cannot() -> None:
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    pair, single = class_separation(rows, ["a", "a", "b"])
    assert pair.d_prime_interval is None
    assert (single.d_prime, single.auc, single.mean_within) == (None, None, None)
    assert single.mean_between == pytest.approx(0.3)
    with pytest.raises(InvalidInput, match="confidence"):
        class_separation(rows, ["a", "a", "b"], confidence=1)
