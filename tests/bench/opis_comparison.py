"""How often does the paired test of OPIS reject: at its level where two models are equal, and where they are not?

Two models of the same classes in 32 dimensions: the width of a class is exp(spread * z) with z correlated between the
models, as is the noise of each image. Columns: share of draws with p <= 0.05 and its 95 % interval; share of intervals
that hold the true difference, where it is 0; mean and standard deviation of the difference in debiased OPIS.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import OpisOptions, compare_consistency, labelled, wilson_interval

_DIMENSION = 32
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """Classes, images a class, spread of either model; shared: correlation of widths and of noise between the two."""

    n_classes: int
    n_images: int
    first: float
    second: float
    shared: float


CASES = (
    Case(60, 5, 0.0, 0.0, 0.5),
    Case(60, 5, 0.2, 0.2, 0.5),
    Case(100, 4, 0.3, 0.3, 0.9),
    Case(100, 5, 0.3, 0.3, 0.5),
    Case(150, 8, 0.2, 0.2, 0.9),
    Case(100, 5, 0.2, 0.25, 0.9),
    Case(100, 5, 0.2, 0.35, 0.5),
    Case(100, 8, 0.2, 0.35, 0.5),
)


@dataclass(frozen=True, slots=True)
class Line:
    case: Case
    rejected: float
    rejected_interval: tuple[float, float]
    zero_held: float
    difference: tuple[float, float]


def draw(case: Case, rng: np.random.Generator) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Unit rows by both models, and their labels."""
    n, k = case.n_classes, case.n_images
    centres = rng.normal(size=(n, 1, _DIMENSION))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    common, rest = np.sqrt(case.shared), np.sqrt(1 - case.shared)
    z, noise = rng.normal(size=(n, 1, 1)), rng.normal(size=(n, k, _DIMENSION))
    models = []
    for spread in (case.first, case.second):
        width = np.exp(spread * (common * z + rest * rng.normal(size=z.shape))) / np.sqrt(_DIMENSION)
        rows = centres + width * (common * noise + rest * rng.normal(size=noise.shape))
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        models.append(rows.reshape(-1, _DIMENSION).astype(np.float32))
    return models, [f"class {code:04d}" for code in range(n) for _ in range(k)]


def measure(case: Case, n_draws: int, n_bootstrap: int, seed: int) -> Line:
    p_values, held, differences = [], [], []
    for number in range(n_draws):
        rng = np.random.default_rng([seed, number])
        (first, second), labels = draw(case, rng)
        models = (labelled(rows, labels) for rows in (first, second))
        found = compare_consistency(*models, OpisOptions(axis="log_far", n_bootstrap=n_bootstrap), rng=rng)
        p_values.append(found.p_value)
        held.append(0 in found.difference_interval)
        differences.append(found.difference)
    rejected = int(np.count_nonzero(np.array(p_values) <= _LEVEL))
    interval = wilson_interval(rejected, n_draws)
    spread = (float(np.mean(differences)), float(np.std(differences, ddof=1)))
    return Line(case, rejected / n_draws, (interval.low, interval.high), float(np.mean(held)), spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, help="draws of each case (default 200, quick 4)")
    parser.add_argument("--bootstrap", type=int, default=499, help="replicates of each test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    reps = options.reps or (4 if options.quick else 200)
    lines = []
    if not options.json:
        print(f"{__doc__}\n{reps} draws, {options.bootstrap} replicates, seed {options.seed}, log-FAR axis\n")
        print("classes images  spreads    shared  rejected              0 held   difference x 1e3")
    with threadpool_limits(1):
        for case in CASES[:: 3 if options.quick else 1]:
            lines.append(measure(case, reps, options.bootstrap, options.seed))
            if not options.json:
                print(row_of(lines[-1]), flush=True)
    if options.json:
        print(json.dumps({"question": __doc__.splitlines()[0], "draws": reps, "lines": [*map(asdict, lines)]}))


def row_of(line: Line) -> str:
    case, (low, high), (mean, deviation) = line.case, line.rejected_interval, line.difference
    held = f"{line.zero_held:.3f}" if case.first == case.second else "     "
    return (
        f"{case.n_classes:7}{case.n_images:7}  {case.first:.2f} {case.second:.2f}{case.shared:8.1f}"
        f"  {line.rejected:.3f} ({low:.3f} to {high:.3f})  {held}   {1e3 * mean:.2f}±{1e3 * deviation:.2f}"
    )


if __name__ == "__main__":
    main()
