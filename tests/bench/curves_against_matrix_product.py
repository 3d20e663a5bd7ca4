"""What do operating curves and OPIS cost, compared with the similarity matrix product alone and with scikit-learn?

CPU time on one thread; for several threads the clock. The product is of all n x n pairs in blocks of rows; curves need
each unordered pair once. scikit-learn's roc_curve is called for each class at a smaller n, and its rates must equal the
curves' exactly. OPIS on thresholds from a sample is compared with OPIS on ten times as many.
"""

from __future__ import annotations

import argparse
import tracemalloc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import OperatingCurves, OpisOptions, labelled, measure_opis, operating_curves, threshold_grid
from tests.bench.measuring.rounds import Group, clock_of, cpu_of, in_turns, option_parser, show

_FAR_LOW, _FAR_HIGH = 1e-2, 1e-1  # the band of OPIS, by default
_GRAIN = 2.0**-11  # products of multiples of it add up to cosines without rounding in float32, in any order
_BLOCK = 1024  # rows of the product, as many as the curves' tile


@dataclass(frozen=True, slots=True)
class Data:
    """Labelled rows of unit norm up to _GRAIN: vectors [n, d] float32; codes [n] int64; labels: n strings."""

    vectors: NDArray[np.float32]
    codes: NDArray[np.int64]
    labels: list[str]


def make_data(n: int, d: int, n_classes: int) -> Data:
    """Clusters of unequal width, so that classes differ."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % n_classes
    widths = rng.uniform(1, 3, n_classes)
    rows = rng.normal(size=(n_classes, d))[codes] + widths[codes, None] * rng.normal(size=(n, d))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = (np.round(unit / _GRAIN) * _GRAIN).astype(np.float32)
    return Data(vectors, codes, [f"class {code}" for code in codes])


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--n", type=int, help="images (default 50000, quick 12000)")
    parser.add_argument("--n-roc", type=int, help="images to compare with roc_curve (default 10000, quick 500)")
    parser.add_argument("--d", type=int, default=128, help="dimension")
    parser.add_argument("--classes", type=int, help="classes (default 1000, quick 240)")
    parser.add_argument("--threads", type=int, default=2, help="number of threads to compare with one")
    options = parser.parse_args()
    n, n_roc = options.n or (12_000 if options.quick else 50_000), options.n_roc or (500 if options.quick else 10_000)
    n_classes = options.classes or (240 if options.quick else 1000)
    data = make_data(n, options.d, n_classes)
    with threadpool_limits(1):
        groups = [beside_product(data, options), beside_threads(data, options)]
        facts = {
            "relative error of OPIS by its thresholds": discretisation_error(data),
            "MiB beside the embeddings": round(memory_beside_embeddings(data), 1),
            "MiB at half as many images": round(memory_beside_embeddings(make_data(n // 2, options.d, n_classes)), 1),
            "rates equal to roc_curve's": True,  # beside_roc_curve stops where they are not
        }
        groups.append(beside_roc_curve(make_data(n_roc, options.d, n_roc // 20), options))
    show(__doc__, options, groups, facts)


def beside_product(data: Data, options: argparse.Namespace) -> Group:
    """Curves with thresholds from a sample and with given ones, and OPIS of them."""
    curves = operating_curves((data.vectors, data.labels), threads=1)

    def curves_on(thresholds: NDArray[np.float64] | None) -> OperatingCurves:
        return operating_curves((data.vectors, data.labels), thresholds=thresholds, threads=1)

    cases = {
        "matrix product": cpu_of(lambda: product(data.vectors)),
        "curves and OPIS": cpu_of(lambda: value_of(curves_on(None))),
        "curves": cpu_of(lambda: curves_on(None)),
        "curves on a given grid": cpu_of(lambda: curves_on(curves.thresholds)),
        "OPIS of given curves": cpu_of(lambda: value_of(curves)),
    }
    title = (
        f"n = {len(data.vectors)}, d = {options.d}, {len(curves.classes)} classes, {len(curves.thresholds)} thresholds"
    )
    return in_turns(title, cases, n_rounds=options.rounds)


def beside_threads(data: Data, options: argparse.Namespace) -> Group:
    """Curves on several threads and on one, by the clock."""
    cases = {
        f"{options.threads} threads": clock_of(
            lambda: operating_curves((data.vectors, data.labels), threads=options.threads)
        ),
        "1 thread": clock_of(lambda: operating_curves((data.vectors, data.labels), threads=1)),
    }
    return in_turns("operating curves by the clock", cases, n_rounds=options.rounds)


def discretisation_error(data: Data) -> float:
    """Return how far OPIS on the default thresholds is from OPIS on ten times as many, relative to it."""
    curves = operating_curves((data.vectors, data.labels))
    far = curves.pooled_far
    inside = np.flatnonzero((far >= _FAR_LOW) & (far <= _FAR_HIGH))
    low, high = curves.thresholds[max(inside[0] - 1, 0)], curves.thresholds[inside[-1] + 1]
    fine = operating_curves((data.vectors, data.labels), thresholds=np.linspace(low, high, 10_000))
    return abs(value_of(curves) / value_of(fine) - 1)


def memory_beside_embeddings(data: Data) -> float:
    """Return the most memory that curves took at once, in MiB, less their sorted copy of the embeddings."""
    tracemalloc.start()
    operating_curves((data.vectors, data.labels), threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - data.vectors.nbytes) / 2**20


def beside_roc_curve(data: Data, options: argparse.Namespace) -> Group:
    """Curves against one roc_curve per class on the finished matrix, at the thresholds that the curves choose.

    The wide grid goes on to a FAR of 1, where every pair is counted.
    """
    curves = operating_curves((data.vectors, data.labels))
    grid, wide = curves.thresholds, threshold_grid(labelled(data.vectors, data.labels))
    tar, far = rates_of_roc_curve(data, grid)
    np.testing.assert_array_equal(tar, curves.tar)
    np.testing.assert_array_equal(far, curves.far)
    cases = {
        "matrix product": cpu_of(lambda: product(data.vectors)),
        "curves": cpu_of(lambda: operating_curves((data.vectors, data.labels), threads=1)),
        "curves on a wide grid": cpu_of(
            lambda: operating_curves((data.vectors, data.labels), thresholds=wide, threads=1)
        ),
        "product, roc_curve per class": cpu_of(lambda: rates_of_roc_curve(data, grid)),
    }
    title = f"n = {len(data.vectors)}, d = {options.d}, {len(curves.classes)} classes"
    return in_turns(title, cases, n_rounds=options.rounds)


def product(vectors: NDArray[np.float32]) -> None:
    """All similarities, each block written over the one before."""
    block = np.empty((min(_BLOCK, len(vectors)), len(vectors)), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        np.matmul(rows, vectors.T, out=block[: len(rows)])


def value_of(curves: OperatingCurves) -> float:
    return measure_opis(curves, OpisOptions(far_low=_FAR_LOW, far_high=_FAR_HIGH), rng=np.random.default_rng(0)).value


def rates_of_roc_curve(data: Data, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """TAR and FAR of each class at each threshold, both [T, m], classes in the order of their names."""
    similarities = data.vectors @ data.vectors.T
    order = np.argsort([f"class {code}" for code in range(data.codes.max() + 1)])
    rates = [_class_rates(similarities, data.codes == code, thresholds) for code in order]
    tar, far = zip(*rates, strict=True)
    return np.stack(tar), np.stack(far)


def _class_rates(
    similarities: NDArray[np.float32], member: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inside = similarities[np.ix_(member, member)]
    positives = inside[np.triu_indices(len(inside), k=1)]
    negatives = similarities[np.ix_(member, ~member)].ravel()
    matches = np.repeat([True, False], [len(positives), len(negatives)])
    far, tar, descending = roc_curve(matches, np.concatenate([positives, negatives]), drop_intermediate=False)
    last_reached = np.searchsorted(-descending, -thresholds, side="right") - 1
    return tar[last_reached], far[last_reached]


if __name__ == "__main__":
    main()
