"""Do thresholds from curves alone keep their promises, and how do they differ from `choose_threshold`?

The same collections (`measuring/coverage.py`) are given to both: as embeddings, and as curves of shards on a fine grid.
For each setting: the coverage of the 95 % intervals of both, how much wider those from curves are, how often the true
threshold is in the interval of the threshold, and the largest distance of the two thresholds in steps of the grid.
"Certified": the share of new classes whose FAR, over pairs with the calibration classes, is at most 0.1 at the
certificate from curves, which promises 0.9.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import (
    Target,
    ThresholdChoice,
    certificate_from_curves,
    choose_threshold,
    labelled,
    operating_curves,
    threshold_from_curves,
)
from retrieval.consistency.curves import OperatingCurves
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.coverage import SETTINGS, Setting, draw, population

_NAMES = (
    "100 classes of 5",
    "60 of 2 to 30",
    "99 of 5, one of 400",
    "30 of 2",
    "30 of 4, heavy tails",
    "40 of 2, TAR near 1",
    "100 of 4, FAR 1e-3",
)
_GRID = np.linspace(-0.3, 1.001, 1001)


@dataclass(frozen=True, slots=True)
class Line:
    """One promise in one setting: coverage from embeddings and from curves, and the ratio of the mean widths."""

    setting: str
    promise: str
    embeddings: float
    curves: float
    ratio: float
    draws: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="collections of each setting (default 300, quick 4)")
    parser.add_argument("--target", default="far", choices=["far", "class-far"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs, measures little")
    options = parser.parse_args()
    n_draws, started, lines = options.draws or (4 if options.quick else 300), time.monotonic(), []
    title = __doc__.splitlines()[0]  # type: ignore[union-attr]  # this module has a docstring
    print(title)
    settings = [setting for setting in SETTINGS if setting.name in _NAMES]
    with threadpool_limits(1):
        for setting in settings[::3] if options.quick else settings:
            for line in compared(setting, options.target, max(n_draws // setting.cost, 4), options.seed):
                lines.append(line)
                print(
                    f"{line.setting:24} {line.promise:28} embeddings {line.embeddings:.3f}  curves {line.curves:.3f}  "
                    f"width {line.ratio:.2f} times  ({line.draws})",
                    flush=True,
                )
    print(f"{time.monotonic() - started:.0f} s")
    print(json.dumps({"question": title, "draws": n_draws, "lines": [asdict(line) for line in lines]}))


def compared(setting: Setting, kind: str, n_draws: int, seed: int) -> Iterator[Line]:
    """Measure one setting."""
    rng = np.random.default_rng([seed, setting.n_classes, setting.sizes[1]])
    target, truth = Target("far" if kind == "far" else "class-far", setting.far), population(setting)
    hits: dict[str, list[tuple[int, bool]]] = {}
    widths: dict[str, list[tuple[int, float]]] = {}
    steps, certified = [], []
    for _ in range(n_draws):
        rows, labels, _ = draw(rng, setting)
        new_rows, new_labels, _ = draw(rng, setting)
        shards = [operating_curves((rows, labels), thresholds=_GRID, shard=(index, 2)) for index in range(2)]
        curves = shards[0] + shards[1]
        try:
            both = choose_threshold(labelled(rows, labels), target=target), threshold_from_curves(curves, target=target)
        except NotEnoughEvidence:
            continue
        steps.append((both[1].threshold - both[0].threshold) / (_GRID[1] - _GRID[0]))
        few = np.flatnonzero(np.array([int(label) for label in new_labels]) < setting.n_classes // 4)
        for choice_of in (0, 1):
            for name, (low, high, hit) in _promises(
                both[choice_of], setting, truth, (new_rows, new_labels), few
            ).items():
                hits.setdefault(name, []).append((choice_of, hit))
                widths.setdefault(name, []).append((choice_of, high - low))
        certified.append(_certified(curves, rows, new_rows, np.array([int(label) for label in new_labels])))
    for name, found in hits.items():
        cover = [float(np.mean([hit for which, hit in found if which == number])) for number in (0, 1)]
        wide = [float(np.mean([width for which, width in widths[name] if which == number])) for number in (0, 1)]
        yield Line(setting.name, name, cover[0], cover[1], wide[1] / wide[0], len(steps))
    yield Line(setting.name, "steps between thresholds", 0.0, float(np.max(np.abs(steps))), 1.0, len(steps))
    kept = [share for share in certified if share is not None]
    if kept:
        yield Line(setting.name, "certified", 0.9, float(np.mean(kept)), 1.0, len(kept))


def _promises(
    choice: ThresholdChoice,
    setting: Setting,
    truth: OperatingCurves,
    new: tuple[np.ndarray, list[str]],
    few: np.ndarray,
) -> dict[str, tuple[float, float, bool]]:
    """Return each interval, and whether it holds."""
    far, class_far, tar, true_threshold = (
        float(np.interp(choice.threshold, truth.thresholds, truth.pooled_far)),
        float(np.interp(choice.threshold, truth.thresholds, truth.mean_far)),
        float(np.interp(choice.threshold, truth.thresholds, truth.pooled_tar)),
        float(np.interp(-setting.far, -truth.pooled_far, truth.thresholds)),
    )
    rows, labels = new
    met = operating_curves(new, thresholds=[choice.threshold])
    met_few = operating_curves((rows[few], [labels[row] for row in few]), thresholds=[choice.threshold])
    found = {
        "threshold": (choice.threshold_interval, true_threshold),
        "FAR": (choice.far_interval, far),
        "class-mean FAR": (choice.class_far_interval, class_far),
        "TAR": (choice.tar_interval, tar),
        "predicted FAR": (choice.predicted_far(len(met.classes)), float(met.pooled_far[0])),
        "predicted FAR, a quarter": (choice.predicted_far(len(met_few.classes)), float(met_few.pooled_far[0])),
        "predicted TAR": (choice.predicted_tar(len(met.classes)), float(met.pooled_tar[0])),
    }
    return {name: (interval.low, interval.high, value in interval) for name, (interval, value) in found.items()}


def _certified(curves: OperatingCurves, rows: np.ndarray, new_rows: np.ndarray, new_codes: np.ndarray) -> float | None:
    """Return the share of 10 new classes that keep FAR 0.1 at the certificate; None if there is none."""
    try:
        threshold = certificate_from_curves(curves, alpha=0.1, delta=0.1).threshold
    except NotEnoughEvidence:
        return None
    fars = [float((new_rows[new_codes == code] @ rows.T >= threshold).mean()) for code in range(10)]
    return float(np.mean(np.array(fars) <= 0.1))


if __name__ == "__main__":
    main()
