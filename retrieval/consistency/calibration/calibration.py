"""Pairs of labelled vectors -> a fitted calibrator: similarity to match probability, at a stated prevalence.

How the kinds compare on classes that were not fitted on is decided in `calibration_choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.calibration.calibrator import Calibrator
from retrieval.consistency.calibration.fits import (
    fit_beta_pairs,
    fit_isotonic_pairs,
    fit_platt_pairs,
    fit_venn_abers_pairs,
)
from retrieval.consistency.pairs.pairs import LabelledVectors, Vectors, labelled_vectors, scored_pairs
from retrieval.errors import InvalidInput, NotEnoughEvidence


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPairs:
    """scores: [n] float32; first, second: [n] int64, class codes of both ends."""

    scores: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @property
    def matches(self) -> NDArray[np.bool_]:
        """Whether both ends are of one class: [n] bool."""
        return np.equal(self.first, self.second)

    def among(self, chosen: NDArray[np.bool_]) -> DrawnPairs:
        """Return the pairs with both ends in the chosen classes, [T] bool."""
        rows = np.flatnonzero(chosen[self.first] & chosen[self.second])
        return DrawnPairs(self.scores[rows], self.first[rows], self.second[rows])

    def weights(self, prevalence: float) -> NDArray[np.float64]:
        """Return weights that sum to 1 and give matches the stated share: [n] float64.

        Raises:
            NotEnoughEvidence: no positive or no negative pair.
        """
        matches = self.matches
        n_positives = np.count_nonzero(matches)
        n_negatives = len(matches) - n_positives
        if n_positives == 0 or n_negatives == 0:
            raise NotEnoughEvidence(
                f"a prevalence needs pairs of both kinds, found {n_positives} matches, {n_negatives} others; add "
                "images per class, or draw more pairs"
            )
        return np.where(matches, prevalence / n_positives, (1 - prevalence) / n_negatives)


def draw_pairs(vectors: LabelledVectors, *, rng: np.random.Generator, max_pairs: int, tile: int) -> DrawnPairs:
    """Return all pairs up to max_pairs of each kind; beyond, an independent random draw of about that many.

    Raises:
        InvalidInput: max_pairs below 1.
    """
    if max_pairs < 1:
        raise InvalidInput(f"max_pairs must be at least 1, found {max_pairs}")
    share_positive = min(1.0, max_pairs / max(vectors.n_positives, 1))
    share_negative = min(1.0, max_pairs / max(vectors.n_negatives, 1))
    scores, first, second = [], [], []
    for batch in scored_pairs(vectors, tile=tile):
        drawn = rng.random(len(batch.scores)) < np.where(batch.matches, share_positive, share_negative)
        scores.append(batch.scores[drawn])
        first.append(batch.first[drawn])
        second.append(batch.second[drawn])
    return DrawnPairs(np.concatenate(scores), np.concatenate(first), np.concatenate(second))


def fit_calibrator(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    kind: str,
    gallery_vectors: Vectors | None = None,
    prevalence: float,
    rng: np.random.Generator,
    max_pairs: int = 2_000_000,
    tile: int = 1024,
) -> Calibrator:
    """Return a calibrator of one kind, a word of CALIBRATOR_KINDS, fitted on pairs of labelled vectors.

    All pairs are used up to max_pairs of each kind; beyond, an independent random draw of about that many.

    Raises:
        NotEnoughEvidence: no positive pair, fewer than two classes, or nothing drawn.
        InvalidInput: unknown kind, prevalence outside (0, 1) or max_pairs below 1.
        InvalidEmbeddings: see `labelled_vectors`.
    """
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    pairs = draw_pairs(vectors, rng=rng, max_pairs=max_pairs, tile=tile)
    return fit_scores(pairs.scores, pairs.matches, kind=kind, prevalence=prevalence)


def fit_scores(scores: NDArray[np.float32], matches: NDArray[np.bool_], *, kind: str, prevalence: float) -> Calibrator:
    """Return a calibrator of one kind fitted on scores [n] and whether each pair matches [n].

    Pairs are weighted to the stated prevalence. One match at the lowest and one non-match at the highest score are
    added, Laplace's rule at both ends: no fit runs off to infinity where the two kinds are apart, and few pairs claim
    little. (Venn-Abers adds its own pair at every score instead.)

    Raises:
        NotEnoughEvidence: no positive or no negative pair.
        InvalidInput: unknown kind, prevalence outside (0, 1), or lengths that differ.

    >>> scores = np.array([0, 0, 0, 1, 1, 1], dtype=np.float32)
    >>> for kind in CALIBRATOR_KINDS:  # three others at 0 and three matches at 1, at either end one added: 1/4 and 3/4
    ...     print(kind, fit_scores(scores, scores > 0, kind=kind, prevalence=0.5).probability([0.0, 1.0]).round(3))
    platt [0.25 0.75]
    beta [0.25 0.75]
    isotonic [0.25 0.75]
    venn-abers [0.2 0.8]
    """
    if kind not in _FITS:
        raise InvalidInput(f"kind: expected one of {', '.join(_FITS)}, found {kind!r}")
    return _FITS[kind](scores, matches, prevalence)


_FITS: Mapping[str, Callable[[NDArray[np.float32], NDArray[np.bool_], float], Calibrator]] = MappingProxyType(
    {
        "platt": fit_platt_pairs,
        "beta": fit_beta_pairs,
        "isotonic": fit_isotonic_pairs,
        "venn-abers": fit_venn_abers_pairs,
    }
)
CALIBRATOR_KINDS = tuple(_FITS)
