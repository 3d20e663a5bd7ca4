"""Classes are numbered by name, in memory that one long label does not multiply."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency.classes import number_classes
from retrieval.contract.manifest import Item
from training.data.splits import split_by_class


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)))
def test_equals_numpy(labels: list[str]) -> None:
    names, codes = number_classes(labels)
    expected, places = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
    assert list(names) == expected.tolist()
    np.testing.assert_array_equal(codes, places)


def test_one_long_label_costs_its_own_length() -> None:
    """Memory grows with the text: an array of text would take 4 bytes a letter of the longest label for each item."""
    items = [Item(id=str(i), uri="x", label=f"c{i // 2}", attributes={}) for i in range(20_000)]
    items[0] = Item(id="0", uri="x", label="L" * 20_000, attributes={})
    labels = [item.label for item in items]
    tracemalloc.start()
    number_classes(labels)
    split_by_class(items, {"new": 0.2}, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000  # as arrays of text 800 MB and more


def test_a_seed_keeps_its_split() -> None:
    """The classes of a part are those that a permutation of the names themselves would give."""
    items = [Item(id=str(i), uri="x", label=f"c{i % 50}", attributes={}) for i in range(100)]
    names = np.random.default_rng(3).permutation(sorted({item.label for item in items}))
    assert {item.label for item in split_by_class(items, {"new": 0.2}, seed=3)["new"]} == set(names[:10].tolist())
