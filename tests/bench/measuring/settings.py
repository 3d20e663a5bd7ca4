"""Synthetic collections that are hard for intervals: how their classes are drawn.

`SETTINGS` were looked at while the method was made. `FRESH` were written down later and are a check on it: other
dimensions, laws of sizes, tails, families and rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Sizes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """How the classes of a collection are drawn; sizes: images of a class, (low, high), by the law between them."""

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
    dimension: int = 16
    law: Literal["log-uniform", "geometric", "zipf"] = "log-uniform"  # of the sizes
    tails: float = 0.0  # degrees of freedom of Student's t in place of normal widths and noise; 0: normal
    uneven: bool = False  # families of geometric sizes with the mean `family`

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
    Setting("60 of 2 to 500", 60, (2, 500), 1e-2, spread=0.5, cost=4),
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

FRESH = (
    Setting("45 of 3, d 32, FAR 1e-1", 45, (3, 3), 1e-1, noise=1.2, spread=0.4, crowding=0.3, dimension=32),
    Setting("30 of 6, d 8, FAR 1e-1", 30, (6, 6), 1e-1, noise=0.7, crowding=0.0, dimension=8),
    Setting("80 of 3, d 48, TAR near 1", 80, (3, 3), 1e-2, noise=0.35, spread=0.4, crowding=0.6, dimension=48),
    Setting("80 of 3 to 100, d 24", 80, (3, 100), 1e-2, spread=0.4, crowding=0.5, dimension=24, cost=2),
    Setting("45 of 2 to 30, d 12, FAR 1e-1", 45, (2, 30), 1e-1, noise=0.8, crowding=0.2, dimension=12),
    Setting("150 of geometric sizes, d 24", 150, (2, 60), 1e-3, crowding=0.5, dimension=24, law="geometric"),
    Setting("100 of Zipf sizes to 200, d 24", 100, (2, 200), 1e-2, crowding=0.5, dimension=24, law="zipf", cost=2),
    Setting("80 of 4, Student's tails, d 24", 80, (4, 4), 1e-2, noise=0.8, tails=4.0, crowding=0.4, dimension=24),
    Setting("150 of 3, Student's tails, FAR 1e-3", 150, (3, 3), 1e-3, noise=0.8, tails=4.0, dimension=24),
    Setting("30 families of 4, d 24", 120, (5, 5), 1e-2, family=4, alike=0.75, family_spread=0.3, dimension=24),
    Setting("10 families of 8, d 32", 80, (4, 4), 1e-2, family=8, alike=0.6, crowding=0.5, dimension=32),
    Setting(
        "8 families of 25, FAR 1e-1", 200, (3, 3), 1e-1, family=25, alike=0.5, crowding=0.5, family_spread=0.3, cost=2
    ),
    Setting(
        "uneven families of 6, d 24", 120, (4, 4), 1e-2, family=6, alike=0.7, family_spread=0.3, crowding=0.4,
        dimension=24, uneven=True,
    ),
    Setting("45 families of 2, FAR 1e-2", 90, (3, 3), 1e-2, family=2, alike=0.9, crowding=0.3, dimension=32),
    # Written after the levels of `look_alike` were set with the settings above.
    Setting("15 families of 7, d 20", 105, (4, 4), 1e-2, family=7, alike=0.7, family_spread=0.3, dimension=20),
    Setting(
        "uneven families of 10, d 40, FAR 1e-3", 140, (3, 6), 1e-3, family=10, alike=0.6, crowding=0.3, dimension=40,
        uneven=True,
    ),
    Setting("70 of 4, d 40, crowded", 70, (4, 4), 1e-2, noise=0.7, crowding=0.7, dimension=40),
    Setting("50 of 2 to 60, d 20, FAR 3e-2", 50, (2, 60), 3e-2, spread=0.4, crowding=0.6, dimension=20),
)  # fmt: skip


def draw(
    rng: np.random.Generator, setting: Setting, n_classes: int | None = None, sizes: Sizes | None = None
) -> tuple[Rows, list[str], list[str]]:
    """Draw rows, labels and families of one collection."""
    n, dimension = n_classes or setting.n_classes, setting.dimension
    if sizes is None:
        sizes = _sizes(rng, setting, n)
        if setting.large:
            sizes, n = np.append(sizes, setting.large), n + 1
    family = np.arange(n) // setting.family
    if setting.uneven:
        family = np.repeat(np.arange(n), rng.geometric(1 / setting.family, size=n))[:n]
    centres = rng.normal(size=(n, dimension))
    if setting.family > 1:
        shared = rng.normal(size=(family[-1] + 1, dimension))[family]
        centres = np.sqrt(setting.alike) * shared + np.sqrt(1 - setting.alike) * centres
    places = np.random.default_rng(99).normal(size=(6, dimension))
    if setting.heavy:
        amount = np.minimum(rng.pareto(1.5, size=(n, 1)), 20)
        centres += 0.6 * places[rng.integers(6, size=n)] * amount
    elif setting.crowding:
        centres += 2 * setting.crowding * places[rng.integers(6, size=n)] * rng.random((n, 1))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    widths = rng.standard_t(setting.tails, size=n).clip(-4, 4) if setting.tails else rng.normal(size=n)
    spread = np.exp(setting.spread * widths + setting.family_spread * rng.normal(size=family[-1] + 1)[family])
    code = np.repeat(np.arange(n), sizes)
    noise = rng.normal(size=(len(code), dimension))
    if setting.tails:  # one divisor an image: some images are far off
        noise /= np.sqrt(rng.chisquare(setting.tails, size=(len(code), 1)) / setting.tails)
    rows = centres[code] + setting.noise * spread[code, None] / np.sqrt(dimension) * noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), [f"{c:05d}" for c in code], [f"{f:05d}" for f in family[code]]


def _sizes(rng: np.random.Generator, setting: Setting, n: int) -> Sizes:
    low, high = setting.sizes
    if setting.law == "geometric":
        drawn = low - 1 + rng.geometric(0.2, size=n)
    elif setting.law == "zipf":
        drawn = low - 1 + rng.zipf(1.8, size=n)
    else:
        drawn = np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1), size=n)))
    return np.minimum(drawn, high).astype(np.int64)
