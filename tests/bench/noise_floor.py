"""How well do noise floor and debiased OPIS do, by images per class, where the true OPIS is known?

Families of classes in 32 dimensions; the true OPIS comes from their distribution: 20,000 pairs for each of 64 widths.
Columns: true OPIS of so many classes; means over --reps draws of plain OPIS, of the floor, of plain - floor, of the
debiased estimate (its upper bound with 2 and 3 images, marked <) and of the estimate from halves of the images that it
replaced, each estimate with the standard deviation of one draw; how often the debiased interval holds the true value.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import (
    LabelledVectors,
    OpisOptions,
    OpisResult,
    consistency_report,
    labelled,
    operating_curves,
    threshold_grid,
)
from retrieval.consistency.opis.utility import class_utilities, find_band, utility

_DIMENSION = 32
_BAND = {"far_low": 1e-2, "far_high": 1e-1}
_MIN_TO_HALVE = 4


@dataclass(frozen=True, slots=True)
class Family:
    """spread: standard deviation of the log width of a class, 0 for identical true curves; quality: of an image."""

    name: str
    spread: float
    quality: float

    def draw(self, rng: np.random.Generator, z: NDArray[np.float64], n_images: int) -> NDArray[np.float32]:
        """Unit rows of classes whose log width is spread * z: [T, n_images, d] float32."""
        centres = rng.normal(size=(len(z), 1, _DIMENSION))
        centres /= np.linalg.norm(centres, axis=2, keepdims=True)
        log_width = self.spread * z[:, None, None] + self.quality * rng.normal(size=(len(z), n_images, 1))
        rows = centres + np.exp(log_width) * rng.normal(size=(len(z), n_images, _DIMENSION)) / np.sqrt(_DIMENSION)
        return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)

    def true_opis(self, rng: np.random.Generator, n_widths: int = 64, n_pairs: int = 20_000) -> float:
        """Variance of utility over the distribution of widths, on the distance axis."""
        if self.spread == 0:
            return 0.0
        z = np.sort(rng.normal(size=200_001))[np.linspace(0, 200_000, 2 * n_widths + 1).astype(int)[1::2]]
        positives, negatives = [], []
        for width in z:
            rows = self.draw(rng, np.full(n_pairs, width), 2)
            others = self.draw(rng, rng.permutation(np.resize(z, n_pairs)), 1)
            positives.append(np.sort((rows[:, 0] * rows[:, 1]).sum(axis=1)))
            negatives.append(np.sort((rows[:, 0] * others[:, 0]).sum(axis=1)))
        low, high = np.quantile(np.concatenate(negatives), [1 - _BAND["far_high"], 1 - _BAND["far_low"]])
        distances = np.linspace(np.sqrt(2 - 2 * high), np.sqrt(2 - 2 * low), 201)
        levels = 1 - distances**2 / 2
        tar, far = (
            np.stack([1 - np.searchsorted(scores, levels) / n_pairs for scores in kind])
            for kind in (positives, negatives)
        )
        return float(np.trapezoid(utility(tar, far, 1.0).var(axis=0), distances) / (distances[-1] - distances[0]))


FAMILIES = (
    Family("identical", 0.0, 0.0),
    Family("identical, images differ", 0.0, 0.3),
    Family("spread 0.1", 0.1, 0.0),
    Family("spread 0.2, images differ", 0.2, 0.3),
    Family("spread 0.2", 0.2, 0.0),
    Family("spread 0.4", 0.4, 0.0),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; the pairs are means and standard deviations of one draw."""

    family: str
    n_images: int
    n_draws: int
    true: float
    plain: tuple[float, float]
    floor: float
    excess: tuple[float, float]
    debiased: tuple[float, float]
    bound: bool
    halves: tuple[float, float] | None
    coverage: float


def measure(family: Family, true: float, n_classes: int, n_images: int, n_draws: int, n_splits: int, seed: int) -> Line:
    results: list[OpisResult] = []
    halves: list[float] = []
    for draw in range(n_draws):
        rng = np.random.default_rng([seed, draw, n_images])
        rows = family.draw(rng, rng.normal(size=n_classes), n_images).reshape(-1, _DIMENSION)
        labels = [f"class {code:04d}" for code in range(n_classes) for _ in range(n_images)]
        results.append(consistency_report((rows, labels), OpisOptions(**_BAND), rng=rng))
        if n_images >= _MIN_TO_HALVE and n_splits:
            halves.append(from_halves(labelled(rows, labels), n_splits, rng))
    bound = results[0].debiased is None
    debiased = [result.debiased_interval.high if bound else result.debiased for result in results]
    return Line(
        family=family.name,
        n_images=n_images,
        n_draws=n_draws,
        true=true,
        plain=spread_of([result.value for result in results]),
        floor=float(np.mean([result.floor for result in results])),
        excess=spread_of([result.value - result.floor for result in results]),
        debiased=spread_of(debiased),
        bound=bound,
        halves=spread_of(halves) if halves else None,
        coverage=float(np.mean([true in result.debiased_interval for result in results])),
    )


def spread_of(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1))


def from_halves(vectors: LabelledVectors, n_splits: int, rng: np.random.Generator) -> float:
    """Covariance over classes of the utilities of two random halves of each class's images."""
    grid = threshold_grid(vectors, **_BAND, n_band=200)
    band = find_band(operating_curves(vectors, thresholds=grid), **_BAND, axis="distance", distance_range=None)
    n_classes = len(vectors.classes)
    estimates = []
    for _ in range(n_splits):
        shuffled = np.lexsort((rng.random(len(vectors.codes)), vectors.codes)).reshape(n_classes, -1)
        size = shuffled.shape[1] // 2
        deviations = []
        for half in (shuffled[:, :size], shuffled[:, size:]):
            curves = operating_curves(vectors.subset(np.sort(half.ravel())), thresholds=band.nodes)
            utilities = class_utilities(curves, band, 1.0)
            deviations.append(utilities - utilities.mean(axis=0))
        estimates.append(float(band.mean((deviations[0] * deviations[1]).mean(axis=0))))
    return float(np.mean(estimates)) * n_classes / (n_classes - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, help="draws of up to 10 images a class, fewer above (default 100, quick 4)")
    parser.add_argument("--classes", type=int, help="default 100, quick 30")
    parser.add_argument("--images", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 10, 20, 50])
    parser.add_argument("--families", default="", help="those whose names begin with this (default all)")
    parser.add_argument("--splits", type=int, default=4, help="splits for the estimate from halves; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    reps, n_classes = options.reps or (4 if options.quick else 100), options.classes or (30 if options.quick else 100)
    lines = []
    if not options.json:
        print(f"{__doc__}\n{n_classes} classes, seed {options.seed}, OPIS in units of 1e-3, FAR {_BAND}\n\n{_HEAD}")
    with threadpool_limits(1):
        for family in FAMILIES[:: 3 if options.quick else 1]:
            if not family.name.startswith(options.families):
                continue
            rng = np.random.default_rng(options.seed)
            true = family.true_opis(rng, n_pairs=2_000 if options.quick else 20_000) * (1 - 1 / n_classes)
            for n_images in options.images[:: 3 if options.quick else 1]:
                n_draws = max(2, int(reps * min(1, 10 / n_images)))
                lines.append(measure(family, true, n_classes, n_images, n_draws, options.splits, options.seed))
                if not options.json:
                    print(row_of(lines[-1]), flush=True)
    if options.json:
        print(json.dumps({"question": __doc__.splitlines()[0], "classes": n_classes, "lines": [*map(asdict, lines)]}))


_HEAD = (
    f"{'family':26}{'images':>7}{'draws':>6}{'true':>8}{'plain':>8}{'floor':>8}{'- floor':>14}"
    f"{'debiased':>15}{'halves':>15}{'held':>6}"
)


def row_of(line: Line) -> str:
    def cell(pair: tuple[float, float] | None) -> str:
        return f"{'':14}" if pair is None else f"{1e3 * pair[0]:8.2f}±{1e3 * pair[1]:<5.2f}"

    return (
        f"{line.family:26}{line.n_images:7}{line.n_draws:6}{1e3 * line.true:8.2f}{1e3 * line.plain[0]:8.2f}"
        f"{1e3 * line.floor:8.2f}{cell(line.excess)}{'<' if line.bound else ' '}{cell(line.debiased)} "
        f"{cell(line.halves)}{line.coverage:6.2f}"
    )


if __name__ == "__main__":
    main()
