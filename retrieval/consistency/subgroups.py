"""Error rates at one threshold: of every class, and of every declared group of images.

Whether a difference between groups is acceptable is decided by the reader of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.curves import count_accepted
from retrieval.consistency.intervals import Interval, wilson_interval
from retrieval.consistency.pairs import LabelledVectors, Vectors, labelled_vectors
from retrieval.errors import InvalidEmbeddings, InvalidInput


@dataclass(frozen=True, slots=True)
class GroupRates:
    """False accept and false reject rate of one group.

    positives, negatives: pairs; far, frr: None without such pairs; the intervals are Wilson's and take pairs as
    independent: pairs share images, so the true ones are wider; small: fewer images than `small_below`, do not rank it.
    """

    name: str
    n_images: int
    positives: int
    negatives: int
    far: float | None
    frr: float | None
    far_interval: Interval
    frr_interval: Interval
    small: bool


def class_rates(
    query_vectors: Vectors,
    labels: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    confidence: float = 0.95,
    small_below: int = 5,
    tile: int = 1024,
) -> list[GroupRates]:
    """Return the rates of every class, sorted by name; negatives of a class have exactly one end in it.

    Raises:
        InvalidInput: threshold is not finite.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.
    """
    _check_threshold(threshold)
    curves = count_accepted(labelled_vectors(query_vectors, labels, gallery_vectors), np.array([threshold]), tile=tile)
    return [
        _rates(
            name,
            n_images=int(curves.n_images[row]),
            positives=int(curves.positives[row]),
            negatives=int(curves.negatives[row]),
            true_accepts=int(curves.positives_accepted[row, 0]),
            false_accepts=int(curves.negatives_accepted[row, 0]),
            confidence=confidence,
            small_below=small_below,
        )
        for row, name in enumerate(curves.classes)
    ]


def group_rates(
    query_vectors: Vectors,
    labels: Sequence[str],
    groups: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    confidence: float = 0.95,
    small_below: int = 20,
    tile: int = 1024,
) -> list[GroupRates]:
    """Return the rates of every group, sorted by name; groups: n strings, one per image, classes may span groups.

    A pair counts for a group when both its ends are in it; pairs across groups count for none.

    Raises:
        InvalidInput: threshold is not finite.
        InvalidEmbeddings: groups of another length; see also `labelled_vectors`.
        NotEnoughEvidence: fewer than two classes in all.
    """
    _check_threshold(threshold)
    if len(groups) != len(labels):
        raise InvalidEmbeddings(f"expected one group per label, found {len(groups)} groups for {len(labels)} labels")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    names = np.array(groups, dtype=object)[vectors.order]
    return [
        _one_group(str(name), vectors.subset(np.flatnonzero(names == name)), threshold, confidence, small_below, tile)
        for name in sorted(set(groups))
    ]


def _one_group(
    name: str, vectors: LabelledVectors, threshold: float, confidence: float, small_below: int, tile: int
) -> GroupRates:
    curves = count_accepted(vectors, np.array([threshold]), tile=tile)
    return _rates(
        name,
        n_images=len(vectors.codes),
        positives=int(curves.positives.sum()),
        negatives=curves.n_negative_pairs,
        true_accepts=int(curves.positives_accepted.sum()),
        false_accepts=int(curves.negatives_accepted.sum()) // 2,
        confidence=confidence,
        small_below=small_below,
    )


def _rates(
    name: str,
    *,
    n_images: int,
    positives: int,
    negatives: int,
    true_accepts: int,
    false_accepts: int,
    confidence: float,
    small_below: int,
) -> GroupRates:
    false_rejects = positives - true_accepts
    return GroupRates(
        name=name,
        n_images=n_images,
        positives=positives,
        negatives=negatives,
        far=false_accepts / negatives if negatives else None,
        frr=false_rejects / positives if positives else None,
        far_interval=wilson_interval(false_accepts, negatives, confidence),
        frr_interval=wilson_interval(false_rejects, positives, confidence),
        small=n_images < small_below,
    )


def _check_threshold(threshold: float) -> None:
    if not np.isfinite(threshold):
        raise InvalidInput(f"threshold must be finite, found {threshold}")
