"""Coverage of intervals and predictions over many collections, in settings that are hard for them.

A `Setting` describes how a synthetic collection is drawn. Every collection is drawn afresh from the same population;
the new classes of a prediction are another collection. The true rates are those of a large draw. Of a real collection,
classes are drawn without repetition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.consistency import (
    Interval,
    LabelledVectors,
    OpisOptions,
    Target,
    ThresholdChoice,
    choose_threshold,
    compare_consistency,
    compare_groups,
    labelled,
    operating_curves,
)
from retrieval.consistency.curves import OperatingCurves
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.settings import SETTINGS, Rows, Setting, draw

_N_POPULATION = 3000
_GROUP_THRESHOLD = 0.45
_CHUNK = 25  # draws of one task of a process


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

    def join(self, other: Coverage) -> None:
        self.hits += other.hits
        self.draws += other.draws
        self.widths += other.widths

    @property
    def share(self) -> float:
        return self.hits / self.draws

    @property
    def width(self) -> float:
        return float(np.mean(self.widths))


@dataclass(frozen=True, slots=True, eq=False)
class RealData:
    """A real collection, and how many of its classes a threshold for a FAR is chosen on."""

    name: str
    embeddings: Rows
    labels: NDArray[np.str_]
    n_classes: int
    far: float


@cache
def population(setting: Setting) -> OperatingCurves:
    """Return the curves of a large draw of classes of two images, on a fine grid."""
    rows, labels, _ = draw(
        np.random.default_rng(10**6), setting, _N_POPULATION, np.full(_N_POPULATION, 2, dtype=np.int64)
    )
    return operating_curves((rows, labels), thresholds=np.linspace(-0.5, 1.001, 601))


def promises(
    setting: Setting, n_draws: int, seed: int | tuple[int, int] = 0, *, families: bool = False
) -> dict[str, Coverage]:
    """Count how often intervals and predictions of `choose_threshold` hold in a setting.

    families: they are named. Without, also what classes would predict that are named as drawn alone.
    """
    parts = [seed] if isinstance(seed, int) else seed
    rng = np.random.default_rng([*parts, setting.n_classes, setting.sizes[1]])
    found: dict[str, Coverage] = {}
    curves = population(setting) if setting.alone else None
    for _ in range(n_draws):
        rows, labels, units = draw(rng, setting)
        new_rows, new_labels, _ = draw(rng, setting)
        new = labelled(new_rows, new_labels)
        choice = count(found, "", labelled(rows, labels, families=units if families else None), new, setting.far)
        if not families:
            count(found, ", classes alone", labelled(rows, labels, families=labels), new, setting.far)
        if choice is None or curves is None:
            continue
        far, tar = (np.interp(choice.threshold, curves.thresholds, r) for r in (curves.pooled_far, curves.pooled_tar))
        found.setdefault("FAR", Coverage()).add(choice.far_interval, float(far))
        found.setdefault("TAR", Coverage()).add(choice.tar_interval, float(tar))
    return found


def count(
    found: dict[str, Coverage], suffix: str, vectors: LabelledVectors, new: LabelledVectors, far: float
) -> ThresholdChoice | None:
    """Add whether the predictions hold for the new classes; None if the target is refused."""
    try:
        choice = choose_threshold(vectors, target=Target("far", far))
    except NotEnoughEvidence:
        return None
    met = operating_curves(new, thresholds=[choice.threshold])
    n_new = len(met.classes)
    for name, interval, value in (
        ("predicted FAR", choice.predicted_far(n_new), met.pooled_far[0]),
        ("predicted TAR", choice.predicted_tar(n_new), met.pooled_tar[0]),
    ):
        found.setdefault(name + suffix, Coverage()).add(interval, float(value))
    return choice


def group_intervals(sizes: tuple[int, int], n_draws: int, seed: int | tuple[int, int] = 0) -> dict[str, Coverage]:
    """Count how often the intervals of groups of 15 classes hold; every class is in one of four groups."""
    setting = Setting("groups", 60, sizes, 1e-2, spread=0.5, crowding=0.5)
    parts = [seed] if isinstance(seed, int) else seed
    rng, found = np.random.default_rng([*parts, sizes[1]]), {"group FAR": Coverage(), "group FRR": Coverage()}
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


def ratio_intervals(n_draws: int, seed: int | tuple[int, int] = 0, *, n_classes: int = 40) -> dict[str, Coverage]:
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
    centres = of_classes.normal(size=(n, setting.dimension))
    places = np.random.default_rng(99).normal(size=(6, setting.dimension))
    centres += 2 * setting.crowding * places[of_classes.integers(6, size=n)] * of_classes.random((n, 1))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.exp(setting.spread * of_classes.normal(size=n)) / np.sqrt(setting.dimension)
    code = np.repeat(np.arange(n), size)
    rows = centres[code] + noise[code, None] * of_images.normal(size=(len(code), setting.dimension))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"{c:05d}" for c in code]


def real_promises(data: RealData, n_draws: int, seed: int | tuple[int, int] = 0) -> dict[str, Coverage]:
    """Count how often predictions hold for as many other classes of a real collection, drawn without repetition."""
    parts = [seed] if isinstance(seed, int) else seed
    rng = np.random.default_rng([*parts, data.n_classes])
    by_class = [np.flatnonzero(data.labels == label) for label in np.unique(data.labels)]
    found: dict[str, Coverage] = {}
    for _ in range(n_draws):
        order = rng.permutation(len(by_class))[: 2 * data.n_classes]
        rows = [np.concatenate([by_class[c] for c in half]) for half in np.split(order, 2)]
        first, second = ((data.embeddings[half], [str(label) for label in data.labels[half]]) for half in rows)
        new = labelled(*second)
        count(found, "", labelled(*first), new, data.far)
        count(found, ", classes alone", labelled(*first, families=first[1]), new, data.far)
    return found


Task = Callable[[int, int | tuple[int, int]], dict[str, Coverage]]


def table(
    n_draws: int, seed: int = 0, settings: Sequence[Setting] = SETTINGS, real: Sequence[RealData] = ()
) -> Iterator[tuple[str, str, Coverage]]:
    """Yield setting, promise and coverage of everything above; the draws are shared out to the processors."""
    tasks: list[tuple[str, Task, int]] = []
    for setting in settings:
        n = max(n_draws // setting.cost, 4)
        tasks.append((setting.name, partial(promises, setting), n))
        if not setting.alone:
            tasks.append((f"{setting.name}, named", partial(promises, setting, families=True), n))
    tasks += [(data.name, partial(real_promises, data), n_draws) for data in real]
    for sizes in ((8, 8), (4, 4), (3, 100)):
        name = f"4 groups of 15 classes of {sizes[0]} to {sizes[1]}"
        tasks.append((name, partial(group_intervals, sizes), max(n_draws // (10 if sizes[1] > 50 else 2), 5)))
    tasks.append(("two equal models, 40 of 6", ratio_intervals, max(n_draws // 2, 3)))
    with ProcessPoolExecutor(os.cpu_count(), initializer=one_thread) as processes:
        parts = [
            [processes.submit(task, min(_CHUNK, n - start), (seed, start)) for start in range(0, n, _CHUNK)]
            for _, task, n in tasks
        ]
        for (where, _, _), futures in zip(tasks, parts, strict=True):
            found: dict[str, Coverage] = {}
            for future in futures:
                for name, coverage in future.result().items():
                    found.setdefault(name, Coverage()).join(coverage)
            for name, coverage in found.items():
                yield where, name, coverage


def one_thread() -> None:
    """Leave one thread to the libraries of this process."""
    threadpool_limits(1)
