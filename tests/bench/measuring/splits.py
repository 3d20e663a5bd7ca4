"""Populations of classes, emoji or synthetic, and their random splits into calibration classes and new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import OperatingCurves, Target, operating_curves
from tests.bench.measuring.emoji import emoji
from tests.consistency.conftest import draw_family

Rows = NDArray[np.float32]
_FAMILY = {"n_images": 4, "dimension": 16, "spread": 0.3, "crowding": 0.8}
_N_NEW = 100  # new classes of a split, or as many as calibration classes


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows sorted by class, those of calibration classes first: scores [n, n]; codes [n]; n_calibration classes."""

    rows: Rows
    codes: NDArray[np.int64]
    n_calibration: int

    @property
    def calibration(self) -> tuple[Rows, list[str]]:
        kept = self.codes < self.n_calibration
        return self.rows[kept], [f"{code:05d}" for code in self.codes[kept]]

    @property
    def new(self) -> tuple[Rows, list[str]]:
        kept = self.codes >= self.n_calibration
        return self.rows[kept], [f"{code:05d}" for code in self.codes[kept]]


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All classes there are, or a large draw of them, sorted by class, and their curves on a fine grid."""

    name: str
    rows: Rows
    by_class: list[NDArray[np.int64]]
    curves: OperatingCurves

    @classmethod
    def make(cls, name: str, *, seed: int, n_classes: int) -> Population:
        if name == "synthetic":
            rng = np.random.default_rng([seed, 1])
            rows, named = draw_family(rng, n_classes=n_classes, **_FAMILY)
            labels = np.array(named)
        else:
            parts = [emoji(name.split()[1])[part] for part in ("cohort", "calibration", "audit")]
            rows = np.concatenate([part.embeddings for part in parts])
            labels = np.concatenate([part.labels for part in parts])
        by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        grid = np.linspace(-1, 1.001, 2001)
        return cls(name, rows, by_class, operating_curves((rows, [str(label) for label in labels]), thresholds=grid))

    def threshold(self, target: Target) -> float:
        """The threshold that the target asks for here, between two of the grid linearly."""
        grid, achieved = self.curves.thresholds, target.achieved(self.curves)
        if target.choice == "best":
            return float(grid[achieved.argmax()])
        reached = np.flatnonzero(achieved >= target.level)
        inside = reached[0] if target.choice == "lowest" else reached[-1]
        outside = inside - 1 if target.choice == "lowest" else inside + 1
        share = (achieved[inside] - target.level) / (achieved[inside] - achieved[outside])
        return float(grid[inside] + share * (grid[outside] - grid[inside]))

    def splits(self, n_calibration: int, n_splits: int, seed: int) -> Iterator[Split]:
        """Draw splits one after another: afresh from the family, without repetition from the emoji."""
        rng = np.random.default_rng(seed)
        n_classes = n_calibration + max(_N_NEW, n_calibration)
        for _ in range(n_splits):
            if self.name == "synthetic":
                rows, _ = draw_family(rng, n_classes=n_classes, **_FAMILY)
                yield Split(rows, np.repeat(np.arange(n_classes), _FAMILY["n_images"]), n_calibration)
                continue
            drawn = [self.by_class[code] for code in rng.permutation(len(self.by_class))[:n_classes]]
            codes = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
            yield Split(self.rows[np.concatenate(drawn)], codes, n_calibration)
