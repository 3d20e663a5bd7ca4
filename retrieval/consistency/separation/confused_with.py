"""Find for each class the other classes that it is mistaken for most. The worst pairs of all are in `confusion.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_population
from retrieval.consistency.subgroups.counts import accepted_class_pairs, check_threshold
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ConfusedWith:
    """Another class, and how many of the pairs of images with it are accepted."""

    name: str
    n_accepted: int
    n_pairs: int


@checked
def class_confusions(
    vectors: LabelledVectors, threshold: float, *, n_listed: int = 3
) -> dict[str, tuple[ConfusedWith, ...]]:
    """Return for each class the other classes with most accepted pairs, most first; ties are sorted by name.

    Cost: one pass over the pairs; memory: a count for each pair of classes with a false accept.

    Raises:
        InvalidInput: threshold not finite, n_listed below 1, two sets of images or excluded pairs.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> class_confusions(labelled(rows, ["a", "b", "c"]), 0.7)["a"]  # a-b 0.8, b-c 0.6, a-c 0
    (ConfusedWith(name='b', n_accepted=1, n_pairs=1),)
    """
    check_threshold(threshold)
    if n_listed < 1:
        raise InvalidInput(f"n_listed must be at least 1, found {n_listed}")
    check_one_population(vectors)
    n_classes = len(vectors.classes)
    first, second, counts = accepted_class_pairs(vectors, threshold)
    own, other = np.append(first, second), np.append(second, first)
    both, pairs = np.append(counts, counts), vectors.sizes.between(own, other)
    order = np.lexsort((other, -both, own))
    own, other, both, pairs = own[order], other[order], both[order], pairs[order]
    starts = np.searchsorted(own, np.arange(n_classes + 1))
    return {
        name: tuple(
            ConfusedWith(vectors.classes[other[row]], int(both[row]), int(pairs[row]))
            for row in range(starts[code], min(starts[code] + n_listed, starts[code + 1]))
        )
        for code, name in enumerate(vectors.classes)
    }
