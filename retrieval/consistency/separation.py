"""How far the scores of pairs within classes lie from those between classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs import Vectors, labelled_vectors, scored_pairs
from retrieval.errors import InvalidInput, NotEnoughEvidence


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistograms:
    """Counts of pairs by score.

    edges: [b + 1] float64, from the lowest to the highest score; within, between: [b] int64, pairs inside a class and
    across classes; d_prime: distance of the two means in units of the root mean square of the two standard deviations,
    infinite where neither spreads.
    """

    edges: NDArray[np.float64]
    within: NDArray[np.int64]
    between: NDArray[np.int64]
    d_prime: float


def score_histograms(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    n_bins: int = 100,
    tile: int = 1024,
) -> ScoreHistograms:
    """Return histograms of within- and between-class scores over equal bins, in two passes over the pairs.

    Raises:
        InvalidInput: n_bins below 1.
        NotEnoughEvidence: no class has two images, or fewer than two classes.
        InvalidEmbeddings: see `labelled_vectors`.
    """
    if n_bins < 1:
        raise InvalidInput(f"n_bins must be at least 1, found {n_bins}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    if vectors.n_positives == 0:
        raise NotEnoughEvidence(f"no class has two images, among {len(vectors.classes)} classes; add images per class")
    sums = np.zeros((2, 3))
    lowest, highest = np.inf, -np.inf
    for batch in scored_pairs(vectors, tile=tile):
        if len(batch.scores):
            lowest = min(lowest, float(batch.scores.min()))
            highest = max(highest, float(batch.scores.max()))
        for row, chosen in enumerate((batch.matches, ~batch.matches)):
            scores = batch.scores[chosen].astype(np.float64)
            sums[row] += len(scores), scores.sum(), (scores**2).sum()
    # np.histogram widens a range of zero width in the same way.
    edges = np.histogram_bin_edges(np.array([lowest, highest]), n_bins)
    counts = np.zeros((2, n_bins), dtype=np.int64)
    for batch in scored_pairs(vectors, tile=tile):
        counts[0] += np.histogram(batch.scores[batch.matches], edges)[0]
        counts[1] += np.histogram(batch.scores[~batch.matches], edges)[0]
    return ScoreHistograms(edges, counts[0], counts[1], _d_prime(sums))


def _d_prime(sums: NDArray[np.float64]) -> float:
    """Return d' from rows (count, sum, sum of squares) of within and between."""
    means = sums[:, 1] / sums[:, 0]
    spread = float(np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - means**2, 0).mean()))
    gap = float(means[0] - means[1])
    return gap / spread if spread > 0 else float(np.copysign(np.inf, gap))
