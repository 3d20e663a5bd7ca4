"""Count, sum and sum of squares of the scores of every image, with its own class and with the others.

Enough for means, spreads and d' of anything that leaves out images or classes, without another look at the pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.pairs import LabelledVectors, tile_bounds
from retrieval.consistency.pairs.products import scores_of

Moments = NDArray[np.float64]


def image_moments(vectors: LabelledVectors, *, tile: int) -> Moments:
    """Return (count, sum, sum of squares) of the scores of each image: [n, 2, 3] float64, in the order of `vectors`.

    [:, 0]: with the other images of its class; [:, 1]: with those of other classes. A pair stands at both its ends.
    Cost: one [n, n] / 2 matrix product; memory: a few [tile, tile].
    """
    n = len(vectors.codes)
    moments = np.zeros((n, 2, 3))
    for rows, columns in tile_bounds(n, tile):
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
    return moments


def class_moments(moments: Moments, codes: NDArray[np.int64], n_classes: int) -> Moments:
    """Return the moments of each class: [T, 2, 3]; a pair within stands once, one between at both its classes."""
    sums = np.zeros((n_classes, 2, 3))
    np.add.at(sums, codes, moments)
    sums[:, 0] /= 2
    return sums


def pooled_moments(of_classes: Moments) -> Moments:
    """Return the moments of all pairs, each once: [2, 3]."""
    pooled: Moments = of_classes.sum(axis=0)
    pooled[1] /= 2
    return pooled


def d_prime(moments: Moments) -> NDArray[np.float64]:
    """Return the distance of two means in units of the root mean square of the two standard deviations: [...].

    moments: [..., 2, 3], with at least one pair on each side. Infinite where neither side spreads and the means differ,
    0 where they do not.

    Source: Macmillan, Creelman, "Detection Theory: A User's Guide" (2005), the index d_a.
    """
    counts, sums, squares = moments[..., 0], moments[..., 1], moments[..., 2]
    means = sums / counts
    # Below what float64 can tell from 0 in a difference of squares, there is no spread.
    variances = squares / counts - means**2
    variances = np.where(variances > 1e-13 * np.maximum(squares / counts, 1e-300), variances, 0)
    spread = np.sqrt(variances.mean(axis=-1))
    gap = means[..., 0] - means[..., 1]
    values: NDArray[np.float64] = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    np.divide(gap, spread, out=values, where=spread > 0)
    return values
