"""Labelled embeddings as searches: which images are queries, which are items, and what a cap leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.score import Score
from retrieval.errors import InvalidInput
from tests.crowds import crowded, normalised

CATALOG = Score(classes=ClassTerms(pull=0.7))


def test_a_query_is_compared_with_items_pulled_by_the_items_of_its_round_only() -> None:
    """Pair by pair: no query adds to the mean of its class."""
    data = replace(crowded(12, 5), n_rounds=3)
    vectors = data.scored(CATALOG)
    assert len(vectors.rounds) == 3
    for queries, items in vectors.rounds:
        rows = vectors.gallery_order[items]
        assert not set(rows) & set(vectors.order[queries])
        gallery = CATALOG.gallery(data.embeddings[rows], [data.labels[row] for row in rows]).vectors
        np.testing.assert_allclose(vectors.gallery[items], gallery, atol=1e-6)
        np.testing.assert_array_equal(vectors.query[queries], data.embeddings[vectors.order[queries]])


def test_draws_do_not_depend_on_the_order_of_the_images() -> None:
    data = replace(crowded(20, 5), n_rounds=2)
    order = np.random.default_rng(1).permutation(len(data.labels))
    shuffled = data.subset(order)
    first, second = data.scored(CATALOG), shuffled.scored(CATALOG)
    for whole, part in zip(first.rounds, second.rounds, strict=True):
        assert set(first.order[whole[0]]) == set(order[second.order[part[0]]])
    kept = {data.embeddings[row].tobytes() for row in range(len(order))}
    capped = [one.capped(2) for one in (data, shuffled)]
    texts = [{row.tobytes() for row in one.embeddings} for one in capped]
    assert texts[0] == texts[1] < kept
    assert set(Counter(capped[0].labels).values()) == {2}


def test_strangers_meet_the_gallery_of_all_images_but_not_their_own_class() -> None:
    data = crowded(12, 3)
    vectors = data.strangers(CATALOG)
    assert vectors.n_positives == 0
    assert vectors.n_negatives == 36 * 33
    gallery = CATALOG.gallery(data.embeddings, data.labels).vectors
    np.testing.assert_array_equal(vectors.gallery, gallery[vectors.gallery_order])


def test_one_set_has_no_catalogue_score() -> None:
    with pytest.raises(InvalidInput, match="compares queries with a labelled gallery"):
        crowded(12, 3).scored(CATALOG)


def test_families_stay_with_their_classes() -> None:
    data = replace(crowded(12, 4), n_rounds=2)
    named = replace(data, families=[f"family {int(label.split()[1]) // 3}" for label in data.labels])
    assert named.scored(CATALOG).n_families == 4
    assert named.strangers(CATALOG).n_families == 4


def test_images_that_are_alone_in_their_class_are_items_only() -> None:
    rng = np.random.default_rng(0)
    alone = normalised(rng.normal(size=(3, 24)))
    data = crowded(12, 2)
    joined = replace(
        data,
        embeddings=np.concatenate([data.embeddings, alone]),
        labels=[*data.labels, "x", "y", "z"],
        n_rounds=2,
    )
    vectors = joined.scored(CATALOG)
    assert not {24, 25, 26} & set(vectors.order)
    assert {24, 25, 26} <= set(vectors.gallery_order)
