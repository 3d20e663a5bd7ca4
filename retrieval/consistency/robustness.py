"""Which decisions at the threshold flip when images are replaced by perturbed copies of themselves.

Decides how flips are counted; what a perturbation does to an image is decided where its pixels are. The images, their
labels and the threshold stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import Interval
from retrieval.consistency.jackknife import rate_interval
from retrieval.consistency.pairs.pairs import LabelledVectors, Vectors, float32_at_least, labelled_vectors
from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.separation.classwise import slices
from retrieval.errors import InvalidEmbeddings, InvalidInput

SIDES = ("query", "both")
_State: TypeAlias = tuple[int, int, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Share:
    """count of total pairs, with an interval over the draw of classes; rate: 0 of none, with the interval 0 to 1."""

    count: int
    total: int
    interval: Interval

    @property
    def rate(self) -> float:
        """The share, 0 of no pairs."""
        return self.count / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{100 * self.rate:.3g} % ({100 * self.interval.low:.3g} to {100 * self.interval.high:.3g})"


@dataclass(frozen=True, slots=True)
class Flips:
    """What one perturbation does to the decisions at the threshold.

    sides: `query`, every image as a perturbed query against every other clean image, or `both`, each pair perturbed
    alike. lost: true pairs accepted clean and rejected now; won: rejected clean and accepted now; gained: non-matches
    rejected clean and accepted now; dropped: accepted clean and rejected now. Each is a share of the pairs that could
    flip so. tar, far: shares of
    true pairs and of non-matches accepted, clean and now.
    """

    perturbation: str
    sides: str
    lost: Share
    won: Share
    gained: Share
    dropped: Share
    tar_clean: float
    tar: float
    far_clean: float
    far: float

    def __str__(self) -> str:
        return (
            f"{self.perturbation}, {self.sides}: lost {self.lost} of accepted true pairs, gained {self.gained} of "
            f"rejected non-matches; TAR {self.tar_clean:.4g} to {self.tar:.4g}, FAR {self.far_clean:.4g} to "
            f"{self.far:.4g}"
        )


@dataclass(frozen=True, slots=True)
class DecisionFlips:
    """Flips of every perturbation, one side perturbed and both, in the order given."""

    threshold: float
    confidence: float
    flips: tuple[Flips, ...]

    def __str__(self) -> str:
        head = f"decisions at {self.threshold:.4f}, {100 * self.confidence:g} % intervals over classes"
        return "\n  ".join([head, *map(str, self.flips)])


def decision_flips(
    query_vectors: Vectors,
    perturbed: Mapping[str, Vectors],
    labels: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    perturbed_gallery: Mapping[str, Vectors] | None = None,
    sides: Sequence[str] = SIDES,
    confidence: float = 0.95,
    tile: int = 1024,
) -> DecisionFlips:
    """Return the flips of decisions that each perturbation causes.

    query_vectors, gallery_vectors: of the clean images, see `labelled_vectors`; perturbed, perturbed_gallery: of the
    perturbed copies, row by row, under the name of the perturbation; the second is needed where gallery_vectors is
    given and `both` sides are asked for. Intervals: Student's on the logit with the jackknife over classes; in
    simulations with 30 and 100 classes 95 % ones held the rate of lost pairs in 93 % and that of gained ones in 99 %.
    Cost: a [n, n] product for each perturbation and side, half of it for `both`, and as much again for the
    clean images; memory: a few [tile, tile].

    Raises:
        InvalidInput: threshold not finite, no or unknown sides, confidence outside (0, 1), or tile below 1.
        InvalidEmbeddings: an array of perturbed copies that does not fit; see also `labelled_vectors`.
        NotEnoughEvidence: fewer than two classes.

    >>> clean = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> turned = np.array([[0.6, 0.8], [0.8, 0.6], [0, 1]], dtype=np.float32)  # the first image only
    >>> flips = decision_flips(clean, {"turned": turned}, ["a", "a", "b"], 0.7, sides=["query"]).flips[0]
    >>> flips.lost.count, flips.lost.total, flips.gained.count, flips.gained.total  # turned image: 0.96 to a, 0.8 to b
    (0, 2, 1, 4)
    """
    if not np.isfinite(threshold) or not sides or not set(sides) <= set(SIDES) or not 0 < confidence < 1 or tile < 1:
        raise InvalidInput(
            f"expected a finite threshold, sides among {', '.join(SIDES)}, confidence in (0, 1) and tile >= 1, found "
            f"{threshold}, {list(sides)}, {confidence} and {tile}"
        )
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    limit = float32_at_least(np.array([threshold]))[0]
    flips: list[Flips] = []
    for name, queries in perturbed.items():
        changed = _changed(vectors, name, queries, labels, perturbed_gallery, "both" in sides)
        flips += [_summary(name, side, _count(vectors, changed, side, limit, tile), confidence) for side in sides]
    return DecisionFlips(threshold, confidence, tuple(flips))


def _changed(
    vectors: LabelledVectors,
    name: str,
    queries: Vectors,
    labels: Sequence[str],
    galleries: Mapping[str, Vectors] | None,
    needs_gallery: bool,
) -> LabelledVectors:
    """Check the perturbed copies and return them in the order of the clean vectors."""
    gallery = None if galleries is None else galleries.get(name)
    if gallery is None and not vectors.cosine:
        if needs_gallery:
            raise InvalidEmbeddings(
                f"{name}: both sides perturbed needs perturbed_gallery where the score is not cosine"
            )
        gallery = np.zeros_like(queries)  # never looked at
    if queries.shape != vectors.query.shape:
        raise InvalidEmbeddings(f"{name}: expected perturbed copies {vectors.query.shape}, found {queries.shape}")
    return labelled_vectors(queries, labels, gallery)


@dataclass(frozen=True, slots=True, eq=False)
class _Tally:
    """Pairs by (accepted clean, accepted now), true pairs of each class and non-matches at both their classes.

    true_pairs, non_matches: [T, 2, 2] int64; every non-match stands twice.
    """

    true_pairs: NDArray[np.int64]
    non_matches: NDArray[np.int64]

    def add(
        self, first: NDArray[np.int64], second: NDArray[np.int64], pairs: NDArray[np.bool_], states: tuple[_State, ...]
    ) -> None:
        """Count the pairs of a tile: class codes of its rows and columns, which cells are pairs, and their states."""
        match = first[:, None] == second[None, :]
        for clean, now, state in states:
            true = (state & pairs & match).sum(axis=1)
            np.add.at(self.true_pairs[:, clean, now], first, true)
            other = state & pairs & ~match
            np.add.at(self.non_matches[:, clean, now], first, other.sum(axis=1))
            np.add.at(self.non_matches[:, clean, now], second, other.sum(axis=0))


def _count(vectors: LabelledVectors, changed: LabelledVectors, side: str, limit: np.float32, tile: int) -> _Tally:
    n, n_classes = len(vectors.codes), len(vectors.classes)
    tally = _Tally(*(np.zeros((n_classes, 2, 2), dtype=np.int64) for _ in range(2)))
    gallery = vectors.gallery if side == "query" else changed.gallery
    for rows in slices(0, n, tile):
        for columns in slices(0 if side == "query" else rows.start, n, tile):
            clean = scores_of(vectors.query[rows], vectors.gallery[columns]) >= limit
            now = scores_of(changed.query[rows], gallery[columns]) >= limit
            pairs = np.ones_like(clean)
            if rows == columns:
                # One side: a query meets every image but itself. Both sides: each pair once.
                pairs = ~np.eye(len(clean), dtype=np.bool_) if side == "query" else np.triu(pairs, k=1)
            tally.add(
                vectors.codes[rows],
                vectors.codes[columns],
                pairs,
                ((1, 1, clean & now), (1, 0, clean & ~now), (0, 1, ~clean & now), (0, 0, ~(clean | now))),
            )
    return tally


def _summary(name: str, side: str, tally: _Tally, confidence: float) -> Flips:
    def share(of_classes: NDArray[np.int64], clean: int, now: int, ends: int) -> Share:
        hits, trials = of_classes[:, clean, now], of_classes[:, clean].sum(axis=1)
        count, total = int(hits.sum()) // ends, int(trials.sum()) // ends
        return Share(count, total, rate_interval(hits, trials, count, total, confidence))

    def accepted(of_classes: NDArray[np.int64], axis: int) -> float:
        total = of_classes.sum(axis=0)
        return float(total.sum(axis=axis)[1] / max(total.sum(), 1))

    true, other = tally.true_pairs, tally.non_matches
    return Flips(
        perturbation=name,
        sides=side,
        lost=share(true, 1, 0, 1),
        won=share(true, 0, 1, 1),
        gained=share(other, 0, 1, 2),
        dropped=share(other, 1, 0, 2),
        tar_clean=accepted(true, 1),
        tar=accepted(true, 0),
        far_clean=accepted(other, 1),
        far=accepted(other, 0),
    )
