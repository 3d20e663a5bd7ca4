"""How much lower than the threshold FAISS's rounded scores may be, so that no match is lost before the exact score.

Rounding is proven: a float32 sum of D products errs by at most `D * 2^-24 / (1 - D * 2^-24) * |q| |x|`, and a vector
stored in 16 bits errs by its distance from the original, times |q|. What RaBitQ and PQ lose cannot be bounded so well
that a search would still be fast, so it is measured.
"""

from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.layout import as_queries, has_offset
from retrieval.engine.index.faiss_native import candidates_above, decoded, forget_places, only
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidInput

Vectors = NDArray[np.float32]

KEPT = 0.995  # of the measured matches have a rounded score that is higher than the lowered threshold
_ROUNDING = 2.0**-22  # of a sum for each term: four times what is proven, for the sums of a distance to a list
_SMALLEST = 2.0**-126  # products below it may be taken as 0
_LARGEST = 1e37  # a product of norms beyond it may overflow
_QUERIES, _MATCHES, _SAMPLE, _CHUNK = 64, 32, 1 << 17, 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """The slack of a query q is `of_norm * |q| + fixed`.

    largest: norm of a vector. n_measured: pairs behind `fixed`, 0 if it is proven.
    """

    of_norm: float
    fixed: float
    largest: float
    n_measured: int = 0

    @classmethod
    def parse(cls, value: Any) -> "Slack":
        """Return what was stored. Raises TypeError or ValueError if it is damaged."""
        slack = cls(**value)
        if not all(np.isfinite(number) and number >= 0 for number in (slack.of_norm, slack.fixed, slack.largest)):
            raise ValueError("its slack is no finite number")
        return slack

    def radius(self, lowest: float, queries: Vectors) -> float | None:
        """Return a radius that the rounded score of every match exceeds; None if float32 may overflow.

        lowest: a number below the scores that reach the threshold.
        """
        norm = float(np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64).max()))
        if norm * max(self.largest, 1.0) > _LARGEST:
            return None
        lowered = lowest - self.of_norm * norm - self.fixed
        return float(np.nextafter(np.float32(max(lowered, -np.inf)), np.float32(-np.inf)))

    def details(self) -> dict[str, Any]:
        """Return what the manifest records."""
        described: dict[str, Any] = {"proven_slack_of_norm": self.of_norm}
        if self.n_measured:
            described |= {"measured_slack": self.fixed, "measured_on": self.n_measured, "kept_by_slack": KEPT}
        return described


def coded_width(dimension: int, spec: IndexSpec) -> int:
    """Return D', the number of columns that are coded; PQ's parts are equally wide."""
    parts = spec.n_code_bytes or 1
    return -(-dimension // parts) * parts


def rotation(dimension: int, spec: IndexSpec) -> Vectors:
    """Return what vectors are multiplied with before they are coded: [D, D'], orthonormal rows; [0, 0]: nothing.

    It spreads the energy over the dimensions, which RaBitQ and PQ need, and fills up the last part of PQ.
    """
    if spec.codes in ("", "SQfp16"):
        return np.empty((0, 0), np.float32)
    width = coded_width(dimension, spec)
    square, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    return np.ascontiguousarray(square[:dimension], np.float32)


def turned(vectors: Vectors, turn: Vectors) -> Vectors:
    """Return the vectors as they are coded."""
    return np.ascontiguousarray(vectors @ turn) if turn.size else vectors


def slack_of(native: faiss.Index, spec: IndexSpec, vectors: Vectors, turn: Vectors, threshold: float | None) -> Slack:
    """Return the slack of an index over `vectors` at the threshold in force."""
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    largest = float(np.sqrt(squares.max()))
    of_norm = (vectors.shape[1] + 8) * _ROUNDING * largest
    fixed = vectors.shape[1] * _SMALLEST
    if spec.codes == "SQfp16":
        return Slack(of_norm=of_norm + _furthest(native, vectors), fixed=fixed, largest=largest)
    if spec.codes:
        lost, n = _lost_by_codes(native, spec, vectors, turn, threshold)
        return Slack(of_norm=0.0, fixed=lost, largest=largest, n_measured=n)
    return Slack(of_norm=of_norm, fixed=fixed, largest=largest)


def _furthest(native: faiss.Index, vectors: Vectors) -> float:
    """Return the largest distance of a vector from what is stored of it."""
    furthest = 0.0
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK]
        lost = part.astype(np.float64) - decoded(native, np.arange(start, start + len(part)))
        furthest = max(furthest, float(np.sqrt(np.einsum("nd,nd->n", lost, lost).max())))
    forget_places(native)
    if not np.isfinite(furthest):
        raise InvalidInput("index SQfp16: 16 bits hold no value beyond 65,504: use IVF without SQfp16, or Exact")
    return furthest


def _lost_by_codes(
    native: faiss.Index, spec: IndexSpec, vectors: Vectors, turn: Vectors, threshold: float | None
) -> tuple[float, int]:
    """Return by how much the rounded scores of most matches are too low, and the number of matches measured."""
    rng = np.random.default_rng(0)
    n = len(vectors)
    own, sample = (np.sort(rng.choice(n, min(n, size), replace=False)) for size in (_QUERIES, _SAMPLE))
    queries = as_queries(vectors[own], offset=has_offset(vectors))
    scores = queries @ vectors[sample].T
    scores[own[:, None] == sample] = -np.inf  # a query is no match of itself
    numbers, columns = _closest(scores, threshold)
    rows = sample[columns]
    allowed = np.zeros(n, np.bool_)
    allowed[rows] = True
    chosen = only(replace(spec, n_probes=spec.n_lists), allowed)
    found_by, found, rounded = candidates_above(native, turned(queries, turn), -_LARGEST, chosen)
    table = np.full(scores.shape, -np.inf, np.float32)
    table[found_by, np.searchsorted(sample, found)] = rounded
    lost = scores[numbers, columns].astype(np.float64) - table[numbers, columns]
    return max(0.0, float(np.quantile(lost, KEPT))), len(lost)


def _closest(scores: Vectors, threshold: float | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return queries and columns of the matches closest to the threshold; of the best scores if they are few."""
    best = np.argsort(-scores, axis=1, kind="stable")
    n_above = np.zeros(len(scores)) if threshold is None else (scores >= threshold).sum(axis=1)
    ends = np.clip(n_above, min(_MATCHES, scores.shape[1] - 1), None).astype(np.int64)
    chosen = [order[max(end - _MATCHES, 0) : end] for order, end in zip(best, ends, strict=True)]
    return np.repeat(np.arange(len(chosen)), [len(each) for each in chosen]), np.concatenate(chosen)
