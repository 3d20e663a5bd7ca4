"""What is measured of a score on labelled galleries, and means over seeds with intervals over classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    LabelledVectors,
    OpisOptions,
    consistency_report,
    recall_at_k,
    stranger_rate,
    thresholds_at_far,
)
from retrieval.consistency.curves import count_accepted
from retrieval.contract.score import Score
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from tests.bench.measuring.catalogue_galleries import Searches

Shares = NDArray[np.float64]
FARS = (1e-2, 1e-3, 1e-4)
BANDS = {"1e-2 to 1e-1": (1e-2, 1e-1), "around 1e-3": (10**-3.5, 10**-2.5)}
_N_BOOTSTRAP = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A score on galleries. tars: at FARS; shares: of each band, those of the classes; thresholds: at FARS."""

    recall_at_1: float
    tars: tuple[float, ...]
    shares: Mapping[str, Shares]
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]


def measure(found: Searches, score: Score) -> Measured:
    """Return the rates of a score; shares are without sampling noise, over the draw of queries given the gallery."""
    vectors = found.scored(score)
    thresholds = thresholds_at_far(vectors, FARS)
    order = np.argsort(thresholds, kind="stable")
    accepted = count_accepted(vectors, thresholds[order])
    tars = np.empty(len(FARS))
    tars[order] = accepted.pooled_tar
    shares, classes = {}, ()
    for name, (low, high) in BANDS.items():
        options = OpisOptions(far_low=low, far_high=high, axis="log_far", n_bootstrap=2)
        result = consistency_report(vectors, options, rng=np.random.default_rng(0))
        if result.shares is None:
            raise ValueError(f"expected at least 10 classes of two queries, found {result}")
        shares[name] = result.shares.shares
        with_positives = [vectors.classes[row] for row in np.flatnonzero(accepted.with_positives)]
        classes = tuple(with_positives[row] for row in result.shares.rows)
    return Measured(recall_at_k(vectors)[1], tuple(tars.tolist()), shares, classes, tuple(thresholds.tolist()))


def strangers_over_target(judging: LabelledEmbeddings, score: Score, at: Measured) -> tuple[float, ...]:
    """Return the FAR of queries whose class is absent, over the FAR that each threshold was chosen for."""
    vectors = judging.strangers(score)
    rates = [stranger_rate(vectors, threshold).far for threshold in at.thresholds]
    return tuple(rate / far for rate, far in zip(rates, FARS, strict=True))


def far_over_target(vectors: LabelledVectors, at: Measured) -> tuple[float, ...]:
    """Return the FAR on other classes at the thresholds, over the FAR that each was chosen for."""
    order = np.argsort(at.thresholds, kind="stable")
    found = np.empty(len(FARS))
    found[order] = count_accepted(vectors, np.array(at.thresholds)[order]).pooled_far
    return tuple((found / FARS).tolist())


def ratio(of: Sequence[Measured], to: Sequence[Measured], band: str) -> tuple[float, float, float]:
    """Return the ratio of mean debiased OPIS over the seeds, with a 95 % interval over classes.

    A class that all seeds measure is drawn once for all of them; if seeds have other classes, each seed draws its own.
    """
    pairs = [(one.shares[band], other.shares[band]) for one, other in zip(of, to, strict=True)]
    if len({one.classes for one in of}) == 1:
        pairs = [(np.mean([first for first, _ in pairs], axis=0), np.mean([second for _, second in pairs], axis=0))]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(_N_BOOTSTRAP):
        sums = np.zeros(2)
        for first, second in pairs:
            rows = rng.integers(len(first), size=len(first))
            sums += first[rows].mean(), second[rows].mean()
        drawn.append(sums[0] / sums[1])
    means = np.mean([(first.mean(), second.mean()) for first, second in pairs], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(means[0] / means[1]), float(low), float(high)
