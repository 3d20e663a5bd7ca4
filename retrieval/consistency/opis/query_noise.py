"""Sampling noise in the TAR of a class whose queries meet a gallery: over the draw of queries, given the gallery.

`noise` has that of pairs inside one set of images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import Rates
from retrieval.consistency.opis.noise import TarNoise
from retrieval.consistency.pairs.products import float32_at_least
from retrieval.consistency.pairs.vectors import LabelledVectors

# The noise of larger classes is small: it is measured on this many of their queries and items, evenly spaced.
_MAX_IMAGES = 250
_BLOCK_SCORES = 1 << 20  # of a block of classes: with 65 levels, 65 MiB


def query_noise(vectors: LabelledVectors, levels: Rates, weights: Rates) -> tuple[TarNoise, float, Rates]:
    """Return the noise at ascending levels [L], the correlation of pairs with a common query, and independent pairs.

    vectors: of one round, see `LabelledVectors.one_round`; weights: [T'], of the classes with positives. The TAR of a
    class is the mean over its queries of the share of its items that accept the query; queries are independent given
    the gallery, so the variance of these shares over their number is that of the TAR, without bias from two queries
    on. With one query it is 0, the least that the data allow. correlation: in [0, 1], between the acceptance of two
    items of the class for one query. Independent pairs: [T'], so many would vary as the pairs of the class do.
    """
    queries, items = (
        np.bincount(codes, minlength=len(vectors.classes)) for codes in (vectors.codes, vectors.gallery_codes)
    )
    rows = np.flatnonzero((queries > 0) & (items > 0))
    tar, variance = _moments_of_shares(vectors, (queries, items), rows, float32_at_least(levels))
    queries, items = queries[rows], items[rows]
    noise = variance / queries[:, None]
    alone = tar * (1 - tar) + noise  # unbiased for t (1 - t)
    known, several = weights * (queries > 1), 1 - 1 / items
    share = float(((known * several) @ alone).sum())
    excess = float((known @ (variance - alone / items[:, None])).sum())
    correlation = float(np.clip(excess / share, 0, 1)) if share > 0 else 0.0
    independent = queries * items / (1 + (items - 1) * correlation)
    return TarNoise(noise, 1 / independent, queries > 1), correlation, independent


def _moments_of_shares(
    vectors: LabelledVectors,
    sizes: tuple[NDArray[np.int64], NDArray[np.int64]],
    rows: NDArray[np.int64],
    limits: NDArray[np.float32],
) -> tuple[Rates, Rates]:
    """Return mean and variance over the queries of a class of the share of its items that accept: two [rows, L].

    sizes: queries and items of all classes. The variance is 0 with one query.
    """
    starts = [np.cumsum(size) - size for size in sizes]
    used = [np.minimum(size[rows], _MAX_IMAGES) for size in sizes]
    mean, variance = np.zeros((len(rows), len(limits))), np.zeros((len(rows), len(limits)))
    for q, g in np.unique(np.stack(used, axis=1), axis=0).tolist():
        members = np.flatnonzero((used[0] == q) & (used[1] == g))
        step = max(1, _BLOCK_SCORES // (q * g))
        for start in range(0, len(members), step):
            block = members[start : start + step]
            picked = [
                starts[side][rows[block], None] + np.arange(n) * sizes[side][rows[block], None] // n
                for side, n in ((0, q), (1, g))
            ]
            scores = vectors.query[picked[0]] @ vectors.gallery[picked[1]].transpose(0, 2, 1)
            shares = _accepted_by_query(scores, limits) / g
            mean[block] = shares.mean(axis=1)
            if q > 1:
                variance[block] = shares.var(axis=1, ddof=1)
    return mean, variance


def _accepted_by_query(scores: NDArray[np.float32], limits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return how many items each query accepts: scores [k, q, g] -> [k, q, L]."""
    k, q, _ = scores.shape
    n_bins = len(limits) + 1
    reached = np.searchsorted(limits, scores, side="right")
    query = np.arange(k * q).reshape(k, q, 1)
    histogram = np.bincount((query * n_bins + reached).ravel(), minlength=k * q * n_bins).reshape(k, q, n_bins)
    return histogram[..., :0:-1].cumsum(axis=2)[..., ::-1]
