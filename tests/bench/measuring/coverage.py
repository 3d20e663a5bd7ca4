"""Coverage of intervals and predictions over many synthetic collections, in settings that are hard for them.

A `Setting` describes how a collection is drawn. Every collection is drawn afresh from the same population; the new
classes of a prediction are another collection. The true rates are those of a large draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Interval,
    OpisOptions,
    Target,
    choose_threshold,
    compare_consistency,
    compare_groups,
    labelled,
    operating_curves,
)
from retrieval.consistency.curves import OperatingCurves
from retrieval.errors import NotEnoughEvidence

Rows = NDArray[np.float32]
Sizes = NDArray[np.int64]
_DIMENSION = 16
_N_POPULATION = 3000
_GROUP_THRESHOLD = 0.45


@dataclass(frozen=True, slots=True)
class Setting:
    """How the classes of a collection are drawn; sizes: images of a class, (low, high) is log-uniform between them."""

    name: str
    n_classes: int
    sizes: tuple[int, int]
    far: float
    noise: float = 1.0  # length of the noise of an image; a centre has length 1
    spread: float = 0.3  # standard deviation of the log of the noise of a class
    crowding: float = 0.8  # pull of a class towards one of six fixed places, by a random amount
    family: int = 1  # classes that are drawn together
    alike: float = 0.0  # share of the direction of a family in the centre of its classes
    family_spread: float = 0.0  # standard deviation of the log of the noise of a family
    heavy: bool = False  # pull by a heavy-tailed amount
    large: int = 0  # images of one more class
    cost: int = 1  # how many times fewer collections are drawn

    @property
    def alone(self) -> bool:
        """Whether classes are independent, so that there is one true rate for any number of them."""
        return self.family == 1


SETTINGS = (
    Setting("100 classes of 5", 100, (5, 5), 1e-2),
    Setting("60 classes of 4", 60, (4, 4), 2e-2),
    Setting("40 of 2, TAR near 1", 40, (2, 2), 2e-2, noise=0.28, spread=0.4),
    Setting("100 of 4, TAR near 1", 100, (4, 4), 1e-2, noise=0.3, spread=0.4),
    Setting("60 of 2 to 30", 60, (2, 30), 1e-2, spread=0.5),
    Setting("60 of 2 to 500", 60, (2, 500), 1e-2, spread=0.5, cost=20),
    Setting("99 of 5, one of 400", 99, (5, 5), 1e-2, spread=0.5, large=400, cost=2),
    Setting("10 families of 12", 120, (4, 4), 1e-2, family=12, alike=0.7, family_spread=0.4),
    Setting("20 families of 6", 120, (4, 4), 1e-2, family=6, alike=0.7, family_spread=0.3),
    Setting("look-alike triples, FAR 1e-3", 150, (4, 4), 1e-3, family=3, alike=0.85, crowding=0.0),
    Setting("look-alike pairs, FAR 1e-3", 150, (4, 4), 1e-3, family=2, alike=0.8, crowding=0.4),
    Setting("30 of 2", 30, (2, 2), 2e-2, crowding=1.0),
    Setting("30 of 4", 30, (4, 4), 1e-2),
    Setting("30 of 4, heavy tails", 30, (4, 4), 1e-2, heavy=True),
    Setting("100 of 4, heavy tails, FAR 1e-3", 100, (4, 4), 1e-3, heavy=True),
    Setting("100 of 4, FAR 1e-3", 100, (4, 4), 1e-3),
)


@dataclass(slots=True)
class Coverage:
    """How often one promise held in one setting, and how wide it was on average."""

    hits: int = 0
    draws: int = 0
    widths: list[float] = field(default_factory=list)

    def add(self, interval: Interval, value: float) -> None:
        self.hits += value in interval
        self.draws += 1
        self.widths.append(interval.high - interval.low)

    @property
    def share(self) -> float:
        return self.hits / self.draws

    @property
    def width(self) -> float:
        return float(np.mean(self.widths))


def draw(
    rng: np.random.Generator, setting: Setting, n_classes: int | None = None, sizes: Sizes | None = None
) -> tuple[Rows, list[str], list[str]]:
    """Draw rows, labels and families of one collection."""
    given = sizes is not None
    n = n_classes or setting.n_classes
    if sizes is None:
        low, high = setting.sizes
        sizes = np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1), size=n))).astype(np.int64)
    if setting.large and not given:
        sizes, n = np.append(sizes, setting.large), n + 1
    family = np.arange(n) // setting.family
    centres = rng.normal(size=(n, _DIMENSION))
    if setting.family > 1:
        shared = rng.normal(size=(family[-1] + 1, _DIMENSION))[family]
        centres = np.sqrt(setting.alike) * shared + np.sqrt(1 - setting.alike) * centres
    if setting.heavy:
        places = np.random.default_rng(99).normal(size=(6, _DIMENSION))
        amount = np.minimum(rng.pareto(1.5, size=(n, 1)), 20)
        centres += 0.6 * places[rng.integers(6, size=n)] * amount
    elif setting.crowding:
        places = np.random.default_rng(99).normal(size=(6, _DIMENSION))
        centres += 2 * setting.crowding * places[rng.integers(6, size=n)] * rng.random((n, 1))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    spread = np.exp(
        setting.spread * rng.normal(size=n) + setting.family_spread * rng.normal(size=family[-1] + 1)[family]
    )
    code = np.repeat(np.arange(n), sizes)
    noise = setting.noise * spread[code, None] / np.sqrt(_DIMENSION)
    rows = centres[code] + noise * rng.normal(size=(len(code), _DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"{c:05d}" for c in code], [f"{f:05d}" for f in family[code]]


@cache
def population(setting: Setting) -> OperatingCurves:
    """Return the curves of a large draw of classes of two images, on a fine grid."""
    rows, labels, _ = draw(
        np.random.default_rng(10**6), setting, _N_POPULATION, np.full(_N_POPULATION, 2, dtype=np.int64)
    )
    return operating_curves((rows, labels), thresholds=np.linspace(-0.5, 1.001, 601))


def promises(setting: Setting, n_draws: int, seed: int = 0, *, families: bool = False) -> dict[str, Coverage]:
    """Count how often intervals and predictions of `choose_threshold` hold in a setting."""
    rng = np.random.default_rng([seed, setting.n_classes, setting.sizes[1]])
    found: dict[str, Coverage] = {}
    curves = population(setting) if setting.alone else None
    for _ in range(max(n_draws // setting.cost, 4)):
        rows, labels, units = draw(rng, setting)
        try:
            vectors = labelled(rows, labels, families=units) if families else labelled(rows, labels)
            choice = choose_threshold(vectors, target=Target("far", setting.far))
        except NotEnoughEvidence:
            continue
        new_rows, new_labels, _ = draw(rng, setting)
        new = operating_curves((new_rows, new_labels), thresholds=[choice.threshold])
        n_new = len(new.classes)
        for name, interval, value in (
            ("predicted FAR", choice.predicted_far(n_new), new.pooled_far[0]),
            ("predicted TAR", choice.predicted_tar(n_new), new.pooled_tar[0]),
        ):
            found.setdefault(name, Coverage()).add(interval, float(value))
        if curves is None:
            continue
        far, tar = (np.interp(choice.threshold, curves.thresholds, r) for r in (curves.pooled_far, curves.pooled_tar))
        found.setdefault("FAR", Coverage()).add(choice.far_interval, float(far))
        found.setdefault("TAR", Coverage()).add(choice.tar_interval, float(tar))
    return found


def group_intervals(sizes: tuple[int, int], n_draws: int, seed: int = 0) -> dict[str, Coverage]:
    """Count how often the intervals of groups of 15 classes hold; every class is in one of four groups."""
    setting = Setting("groups", 60, sizes, 1e-2, spread=0.5, crowding=0.5)
    rng, found = np.random.default_rng([seed, sizes[1]]), {"group FAR": Coverage(), "group FRR": Coverage()}
    curves = population(setting)
    true_far, true_tar = (
        float(np.interp(_GROUP_THRESHOLD, curves.thresholds, r)) for r in (curves.pooled_far, curves.pooled_tar)
    )
    for _ in range(n_draws):
        rows, labels, _ = draw(rng, setting)
        comparison = compare_groups(
            labelled(rows, labels), [str(int(label) % 4) for label in labels], _GROUP_THRESHOLD, rng=rng
        )
        for rates in comparison.groups:
            found["group FAR"].add(rates.far_interval, true_far)
            found["group FRR"].add(rates.frr_interval, 1 - true_tar)
    return found


def ratio_intervals(n_draws: int, seed: int = 0, *, n_classes: int = 40) -> dict[str, Coverage]:
    """Count how often the ratio of two equally consistent models is in its interval: true value 1."""
    setting = Setting("ratio", n_classes, (6, 6), 1e-2, spread=0.5, crowding=0.8)
    rng, found = np.random.default_rng(seed), {"ratio": Coverage(), "difference": Coverage()}
    options = OpisOptions(axis="log_far", n_bootstrap=500)
    for _ in range(n_draws):
        classes = int(rng.integers(1 << 40))  # both models see the same classes, with other noise of each image
        models = [labelled(*_same_classes(np.random.default_rng(classes), rng, setting)) for _ in range(2)]
        compared = compare_consistency(models[0], models[1], options, rng=rng)
        found["difference"].add(compared.difference_interval, 0.0)
        if compared.ratio_interval is not None:
            found["ratio"].add(compared.ratio_interval, 1.0)
    return found


def _same_classes(
    of_classes: np.random.Generator, of_images: np.random.Generator, setting: Setting
) -> tuple[Rows, list[str]]:
    """Draw images of the classes that the first generator fixes; their noise comes from the second."""
    n, size = setting.n_classes, setting.sizes[0]
    centres = of_classes.normal(size=(n, _DIMENSION))
    places = np.random.default_rng(99).normal(size=(6, _DIMENSION))
    centres += 2 * setting.crowding * places[of_classes.integers(6, size=n)] * of_classes.random((n, 1))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.exp(setting.spread * of_classes.normal(size=n)) / np.sqrt(_DIMENSION)
    code = np.repeat(np.arange(n), size)
    rows = centres[code] + noise[code, None] * of_images.normal(size=(len(code), _DIMENSION))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"{c:05d}" for c in code]


def table(n_draws: int, seed: int = 0, settings: Sequence[Setting] = SETTINGS) -> Iterator[tuple[str, str, Coverage]]:
    """Yield setting, promise and coverage of everything above."""
    for setting in settings:
        for name, coverage in promises(setting, n_draws, seed).items():
            yield setting.name, name, coverage
        if not setting.alone:
            for name, coverage in promises(setting, n_draws, seed, families=True).items():
                yield f"{setting.name}, named", name, coverage
    for sizes in ((8, 8), (4, 4), (3, 100)):
        for name, coverage in group_intervals(sizes, max(n_draws // (10 if sizes[1] > 50 else 2), 5), seed).items():
            yield f"4 groups of 15 classes of {sizes[0]} to {sizes[1]}", name, coverage
    for name, coverage in ratio_intervals(max(n_draws // 2, 3), seed).items():
        yield "two equal models, 40 of 6", name, coverage
