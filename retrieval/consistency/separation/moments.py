"""Sum up the scores of every class with itself and with the others: count, sum and sum of squares.

These give the means, spreads and d' of all pairs, with or without a class, in one pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.pairs.tiles import tiles_of
from retrieval.consistency.pairs.vectors import LabelledVectors

Moments = NDArray[np.float64]


def class_moments(vectors: LabelledVectors) -> Moments:
    """Return (count, sum, sum of squares) of the scores of each class: [T, 2, 3] float64.

    [:, 0]: pairs within, counted once; [:, 1]: pairs between, counted for both their classes.
    Cost: one [n, n] / 2 matrix product; memory: a few tiles.
    """
    moments = np.zeros((len(vectors.codes), 2, 3))  # of each image
    for rows, columns in tiles_of(vectors):
        scores = scores_of(vectors.query[rows], vectors.gallery[columns]).astype(np.float64)
        within = vectors.codes[rows][:, None] == vectors.codes[columns][None, :]
        pairs = np.ones_like(within)
        if rows == columns:
            pairs = np.triu(pairs, k=1)
        for side, chosen in enumerate((pairs & within, pairs & ~within)):
            kept = np.where(chosen, scores, 0)
            for axis, images in ((1, rows), (0, columns)):
                moments[images, side, 0] += chosen.sum(axis=axis)
                moments[images, side, 1] += kept.sum(axis=axis)
                moments[images, side, 2] += np.square(kept).sum(axis=axis)
    of_classes = np.zeros((len(vectors.classes), 2, 3))
    np.add.at(of_classes, vectors.codes, moments)
    of_classes[:, 0] /= 2
    return of_classes


def pooled_moments(of_classes: Moments) -> Moments:
    """Return the moments of all pairs, each once: [2, 3]."""
    pooled: Moments = of_classes.sum(axis=0)
    pooled[1] /= 2
    return pooled


def d_prime(moments: Moments) -> NDArray[np.float64]:
    """Return the distance of two means in units of the root mean square of the two standard deviations: [...].

    moments: [..., 2, 3], with at least one pair on each side. If neither side spreads, it is infinite, or 0 for equal
    means.

    Source: Macmillan, Creelman, "Detection Theory: A User's Guide" (2005), the index d_a.
    """
    counts, sums, squares = moments[..., 0], moments[..., 1], moments[..., 2]
    means = sums / counts
    # A smaller difference of squares is a rounding error of float64, not a spread.
    variances = squares / counts - means**2
    variances = np.where(variances > 1e-13 * np.maximum(squares / counts, 1e-300), variances, 0)
    spread = np.sqrt(variances.mean(axis=-1))
    gap = means[..., 0] - means[..., 1]
    values: NDArray[np.float64] = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    np.divide(gap, spread, out=values, where=spread > 0)
    return values
