"""With which other classes each class is confused most at a threshold; the worst pairs of all are in `confusion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.pairs.pairs import Vectors, accepted_pairs, labelled_vectors
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.subgroups.rates import check_threshold
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ConfusedWith:
    """Another class, and how many of the pairs of images with it are accepted."""

    name: str
    n_accepted: int
    n_pairs: int


def class_confusions(
    query_vectors: Vectors,
    labels: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    n_listed: int = 3,
    tile: int = 1024,
) -> dict[str, tuple[ConfusedWith, ...]]:
    """Return for each class the others with most accepted pairs, most first; ties go to the name, none to nobody.

    Cost: one pass over the pairs; memory: a count for each pair of classes with a false accept.

    Raises:
        InvalidInput: threshold not finite, or n_listed below 1.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> class_confusions(rows, ["a", "b", "c"], 0.7)["a"]  # a-b 0.8, b-c 0.6, a-c 0
    (ConfusedWith(name='b', n_accepted=1, n_pairs=1),)
    """
    check_threshold(threshold)
    if n_listed < 1:
        raise InvalidInput(f"n_listed must be at least 1, found {n_listed}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    n_classes, n_images = len(vectors.classes), vectors.n_images
    tally = PairTally()
    for batch in accepted_pairs(vectors, threshold, tile=tile):
        differs = ~batch.matches
        tally.add(batch.first[differs] * n_classes + batch.second[differs])
    keys, counts = tally.counts()
    first, second = keys // n_classes, keys % n_classes
    own, other = np.append(first, second), np.append(second, first)
    both = np.append(counts, counts)
    order = np.lexsort((other, -both, own))
    own, other, both = own[order], other[order], both[order]
    starts = np.searchsorted(own, np.arange(n_classes + 1))
    return {
        name: tuple(
            ConfusedWith(vectors.classes[other[row]], int(both[row]), int(n_images[code] * n_images[other[row]]))
            for row in range(starts[code], min(starts[code] + n_listed, starts[code + 1]))
        )
        for code, name in enumerate(vectors.classes)
    }
