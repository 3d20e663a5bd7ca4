"""What is ready before an index is measured: the gallery, its thresholds, the true answers and the tuned opponents."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from tests.bench.measuring.approximate import Opponent, candidates_of, fastest_approximate
from tests.bench.measuring.brute_force import Truth, brute_force
from tests.bench.measuring.regimes import Regime, thresholds_of
from tests.bench.measuring.shown import Shown

Vectors = NDArray[np.float32]

FARS = (1e-2, 1e-3, 1e-4, 1e-5)
_STORED = 1.1  # the truth holds this much more than the highest FAR, so that a stored score lies below its threshold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """flat: FAISS's scan of the gallery; truth: of the queries that are checked; timed: the other queries, [q, d].

    thresholds: by FAR; opponents: by threshold, the fastest first.
    """

    name: str
    data: str
    flat: faiss.IndexFlatIP
    truth: Truth
    timed: Vectors
    thresholds: dict[float, float]
    opponents: dict[float, list[Opponent]]

    @property
    def gallery(self) -> Vectors:
        """The vectors [n, d]."""
        return self.truth.gallery


def prepare(name: str, regime: Regime, options: argparse.Namespace, shown: Shown) -> Prepared:
    """Find the thresholds and the true answers, and tune the approximate indexes on the first queries."""
    queries, d = regime.queries, regime.gallery.shape[1]
    flat = faiss.IndexFlatIP(d)
    flat.add(regime.gallery.astype(np.float16).astype(np.float32) if options.half else regime.gallery)
    # The copy of FAISS serves both, so that a million vectors are in memory once.
    gallery = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * d).reshape(-1, d)
    data = regime.data
    del regime
    faiss.cvar.distance_compute_blas_threshold = 16 * d
    thresholds = thresholds_of(gallery, queries, [*FARS, FARS[0] * _STORED])
    lowest = thresholds.pop(FARS[0] * _STORED)
    known = queries[: max(options.checked, options.queries)]
    truth = brute_force(gallery, known, lowest, shown.watch(f"{name}: brute force"))
    tuned_on = known[: options.queries]
    truths: dict[float, Sequence[NDArray[np.int32]]] = {
        threshold: [truth.expected(number, threshold) for number in range(len(tuned_on))]
        for threshold in thresholds.values()
    }
    built = candidates_of(gallery, quick=options.quick, hnsw=not options.no_hnsw)
    return Prepared(
        name=name,
        data=data,
        flat=flat,
        truth=truth,
        timed=queries[-options.queries :],
        thresholds=thresholds,
        opponents=fastest_approximate(tuned_on, truths, built, lambda text: shown.line(f"{name}: {text}")),
    )
