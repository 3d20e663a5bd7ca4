"""What embeddings of unseen classes are worth: ranking, rates at one threshold, how alike the classes behave."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Axis,
    DebiasedShares,
    OpisOptions,
    consistency_report,
    fit_whitening,
    labelled,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
)
from retrieval.contract.score import Score, cohort_score

_FARS = (1e-2, 1e-3, 1e-4)
# Pooled FARs that OPIS is taken between: the source's range on its own axis and on the one that no scale of the
# similarities changes, and half a decade to either side of the deployed FAR of 1e-2.
BANDS: dict[str, tuple[Axis, float, float]] = {
    "distance": ("distance", 1e-2, 1e-1),
    "log_far": ("log_far", 1e-2, 1e-1),
    "deployed": ("log_far", 10**-2.5, 10**-1.5),
}


def cohort_score_of(trained_on: NDArray[np.float32]) -> Score:
    """The whitened cohort score, without labels, as the product's calibration offers it."""
    return cohort_score(trained_on, k=20, ignore_above=0.9999, whitening=fit_whitening(trained_on))


def measure(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], score: Score, *, bands: Collection[str] = tuple(BANDS)
) -> tuple[dict[str, float], dict[str, DebiasedShares]]:
    """R@1, TAR at three FARs and debiased OPIS in the bands; and each class's share of the latter, for paired tests."""
    names = [str(label) for label in labels]
    query, gallery = score.vectors(embeddings)
    vectors = labelled(query, names, gallery=gallery)
    levels = thresholds_at_far(vectors, _FARS)
    curves = operating_curves(vectors, thresholds=levels)
    found = {"r1": recall_at_k(vectors)[1]}
    found |= {f"tar{far:g}": float(curves.at(level).pooled_tar[0]) for far, level in zip(_FARS, levels, strict=True)}
    shares = {}
    for band in bands:
        axis, low, high = BANDS[band]
        if axis == "distance" and score.cohort is not None:  # such a score has no distance
            continue
        options = OpisOptions(far_low=low, far_high=high, axis=axis, n_bootstrap=2)
        report = consistency_report(vectors, options, rng=np.random.default_rng(0))
        share = report.shares
        assert share is not None  # hundreds of classes of four images and more
        found |= {band: share.mean, f"{band} plain": report.value}
        shares[band] = share
    return found, shares
