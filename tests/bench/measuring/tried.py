"""Settings that were tried: the front of R@1 against OPIS, and what OPIS is beside what accuracy alone explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tests.bench.measuring.short_runs import Setting

WITHOUT_TERM = ("base", "strength")
_MARKS = {"base": "o", "strength": "o", "tcm": "^", "contrastive": "s", "adaptive": "D"}


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting with the names of its base loss and arm, and what it measured, by quantity, for each seed."""

    base: str
    arm: str
    setting: Setting
    found: tuple[Mapping[str, float], ...]

    def mean(self, quantity: str) -> float:
        """The mean over the seeds."""
        return float(np.mean([values[quantity] for values in self.found]))


def beside_accuracy(tried: Sequence[Tried], *, predictor: str = "tar0.01", opis: str = "log_far") -> str:
    """How OPIS of each arm stands to that of base losses alone at the same accuracy.

    The logarithm of OPIS is fitted to TAR at FAR 1e-2, with a level for each seed, over all settings without a term.
    Shown for each base and arm: OPIS over its prediction, as geometric mean over settings and seeds, and per seed.
    """
    alone = [entry for entry in tried if entry.arm in WITHOUT_TERM]
    if len(alone) < 3:
        return "too few settings without a term to say what accuracy explains"
    line = _fit([_points(entry, predictor, opis) for entry in alone])
    heading = (
        f"\nOPIS over that of base losses alone at the same {predictor} (slope of log OPIS {line[0]:.2f} a unit, "
        f"from {len(alone)} settings)"
    )
    lines = [heading]
    for base, arm in dict.fromkeys((entry.base, entry.arm) for entry in tried):
        points = [_points(entry, predictor, opis) for entry in tried if (entry.base, entry.arm) == (base, arm)]
        apart = np.array([logarithms - line[0] * values - line[1:] for values, logarithms in points])
        by_seed = " ".join(f"{value:.2f}" for value in np.exp(apart.mean(axis=0)))
        lines.append(f"{base + ', ' + arm:44} {np.exp(apart.mean()):.2f}   by seed {by_seed}")
    return "\n".join(lines)


def draw(tried: Sequence[Tried], path: Path) -> None:
    """Write a figure: R@1, and TAR at FAR 1e-2, against debiased OPIS; the settings that no other one beats joined."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    bases = list(dict.fromkeys(entry.base for entry in tried))
    for axes, (quantity, name) in zip(
        figure.subplots(1, 2), (("r1", "R@1"), ("tar0.01", "TAR at FAR 1e-2")), strict=True
    ):
        for entry in tried:
            axes.plot(
                entry.mean("log_far"),
                entry.mean(quantity),
                _MARKS.get(entry.arm, "x"),
                color=f"C{bases.index(entry.base)}",
                markerfacecolor="none" if entry.arm in WITHOUT_TERM else None,
            )
        front = _front(tried, quantity)
        axes.plot([entry.mean("log_far") for entry in front], [entry.mean(quantity) for entry in front], ":k", zorder=0)
        axes.set(xscale="log", xlabel="debiased OPIS, log FAR 1e-2 to 1e-1 (lower: classes more alike)", ylabel=name)
    for base in bases:
        axes.plot([], [], "s", color=f"C{bases.index(base)}", label=base)
    for arm, mark in (("base loss alone", "o"), ("TCM", "^"), ("contrastive", "s"), ("adaptive", "D"), ("other", "x")):
        axes.plot([], [], mark, color="grey", markerfacecolor="none" if mark == "o" else None, label=arm)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _front(tried: Sequence[Tried], quantity: str) -> list[Tried]:
    """The settings that none beats in both, from low OPIS to high."""
    front: list[Tried] = []
    for entry in sorted(tried, key=lambda entry: entry.mean("log_far")):
        if not front or entry.mean(quantity) > front[-1].mean(quantity):
            front.append(entry)
    return front


def _points(entry: Tried, predictor: str, opis: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The predictor and the logarithm of OPIS, by seed."""
    return (
        np.array([values[predictor] for values in entry.found]),
        np.log([max(values[opis], 1e-6) for values in entry.found]),
    )


def _fit(points: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Least squares: the common slope, then a level for each seed."""
    n_seeds = len(points[0][0])
    rows = [[values[seed], *np.eye(n_seeds)[seed]] for values, _ in points for seed in range(n_seeds)]
    wanted = [logarithms[seed] for _, logarithms in points for seed in range(n_seeds)]
    return np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
