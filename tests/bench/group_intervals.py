"""Do intervals of group rates hold what they promise, and are groups that are alike seldom called different?

Synthetic classes, crowded and of different spread, from one population whose rates are known from many more of them.
Groups are drawn without regard to images, so that all have the same rates. Shares with their 95 % binomial interval,
somewhat narrow for coverage since groups of one data set share classes. Wilson's interval over pairs, which takes them
as independent, is the baseline.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from retrieval.consistency import Interval, compare_groups, labelled, wilson_interval
from tests.consistency.conftest import draw_family

DIMENSION, SPREAD = 16, 0.3


@dataclass(frozen=True, slots=True)
class Setting:
    """groups: "of classes": each class in one group; "of images": every class in all of them."""

    n_classes: int
    n_images: int
    n_groups: int
    groups: str
    threshold: float
    crowding: float


SETTINGS = (
    Setting(40, 8, 4, "of images", 0.45, 0.5),
    Setting(100, 8, 4, "of images", 0.45, 0.5),
    Setting(100, 6, 3, "of images", 0.6, 0.0),
    Setting(40, 8, 4, "of images", 0.75, 0.5),
    Setting(48, 4, 4, "of classes", 0.45, 0.5),
    Setting(120, 4, 4, "of classes", 0.45, 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="data sets of each setting, seeds from 0")
    parser.add_argument("--quick", action="store_true", help="20 data sets")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    repeats = 20 if options.quick else options.repeats
    results = []
    for setting in SETTINGS:
        shares = measure(setting, repeats)
        results.append({"setting": asdict(setting), **shares})
        if not options.json:
            print(f"\n{setting}")
            for name, value in shares.items():
                print(f"  {name:<46}{value}")
    if options.json:
        print(json.dumps({"question": __doc__.splitlines()[0], "repeats": repeats, "results": results}))


def measure(setting: Setting, repeats: int) -> dict[str, str]:
    """The shares over data sets, as text with their intervals."""
    far, frr = population(setting)
    counts: dict[str, list[bool]] = {}
    for seed in range(repeats):
        for name, outcome in outcomes(setting, seed, far, frr):
            counts.setdefault(name, []).append(outcome)
    shares = {name: f"{np.mean(seen):.3f} ({_binomial(seen)})" for name, seen in counts.items()}
    return {"true FAR, FRR": f"{far:.4g}, {frr:.4g}", **shares}


def population(setting: Setting) -> tuple[float, float]:
    """FAR and FRR of the population, from 6 times 1500 classes of two images."""
    rng = np.random.default_rng(10**6)
    far, frr = [], []
    for _ in range(6):
        rows, _ = _draw(rng, setting, 1500, 2)
        scores = rows[::2] @ rows[1::2].T
        frr.append(float((np.diag(scores) < setting.threshold).mean()))
        np.fill_diagonal(scores, -9)
        far.append(float((scores >= setting.threshold).sum() / (1500 * 1499)))
    return float(np.mean(far)), float(np.mean(frr))


def outcomes(setting: Setting, seed: int, far: float, frr: float) -> Iterator[tuple[str, bool]]:
    """What happened in one data set: each interval covered or not, each test wrong or not."""
    rng = np.random.default_rng(seed)
    rows, labels = _draw(rng, setting, setting.n_classes, setting.n_images)
    images = np.arange(len(labels))
    places = images // setting.n_images if setting.groups == "of classes" else images
    groups = [str(place % setting.n_groups) for place in places]
    comparison = compare_groups(labelled(rows, labels), groups, setting.threshold, rng=rng)
    for rates in comparison.groups:
        for name, truth, rate, interval, pairs in (
            ("FAR", far, rates.far, rates.far_interval, rates.negatives),
            ("FRR", frr, rates.frr, rates.frr_interval, rates.positives),
        ):
            if rate is not None:
                yield f"{name} covered by the interval (95 %)", truth in interval
                yield f"{name} covered by Wilson's over pairs", truth in wilson_interval(round(rate * pairs), pairs)
    for name, differential in (("FAR", comparison.far), ("FRR", comparison.frr)):
        if differential is not None and differential.p_equal is not None:
            yield f"{name}: all groups wrongly called unequal (5 %)", differential.p_equal < comparison.level
            yield f"{name}: any group wrongly flagged (5 %)", any(test.differs for test in differential.tests)


def _draw(rng: np.random.Generator, setting: Setting, n_classes: int, n_images: int) -> tuple[np.ndarray, list[str]]:
    return draw_family(
        rng, n_classes=n_classes, n_images=n_images, dimension=DIMENSION, spread=SPREAD, crowding=setting.crowding
    )


def _binomial(seen: list[bool]) -> Interval:
    return wilson_interval(sum(seen), len(seen))


if __name__ == "__main__":
    main()
