"""The plots of an experiment: accuracy against consistency, and the change of OPIS by each arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from retrieval.plotting import COLOURS, INK, MARKERS, QUIET, name_axes, new_figure, save_png
from training.experiment.summary import ArmSummary

_PANELS = {"opis_log_far": "pooled FAR 1e-2 to 1e-1", "opis_deployed": "decade around the deployed FAR"}
_LEGEND_COLUMNS = 3


def write_plots(arms: Sequence[ArmSummary], out: Path) -> list[Path]:
    """Write front.png and, if arms are compared, opis.png into `out`; return their paths. Writes none without OPIS."""
    paths = []
    if any(name in arm.figures for arm in arms for name in _PANELS):
        paths.append(draw_front(arms, out / "front.png"))
    if any(arm.differences[name].relative is not None for arm in arms for name in _PANELS if name in arm.differences):
        paths.append(draw_changes(arms, out / "opis.png"))
    return paths


def draw_front(arms: Sequence[ArmSummary], path: Path) -> Path:
    """Draw R@1 against debiased OPIS: small marks for seeds, large ones for means, the Pareto front of the means."""
    n_rows = -(-(len(arms) + 1) // _LEGEND_COLUMNS)
    figure, panels = new_figure(len(_PANELS), width=5.4, height=4.0 + 0.2 * n_rows)
    for axes, (name, band) in zip(panels, _PANELS.items(), strict=True):
        points = {}
        for number, arm in enumerate(arms):
            if "r_at_1" not in arm.figures or name not in arm.figures:
                continue
            style: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                "linestyle": "none",
            }
            accuracy, opis = arm.figures["r_at_1"], arm.figures[name]
            seeds = sorted(accuracy.values.keys() & opis.values.keys())
            axes.plot(
                [accuracy.values[seed] for seed in seeds],
                [opis.values[seed] for seed in seeds],
                **style,
                markersize=4,
                alpha=0.45,
                markeredgewidth=0,
            )
            points[arm.name] = (accuracy.mean, opis.mean)
            axes.plot(accuracy.mean, opis.mean, **style, markersize=9, label=arm.name)
        _draw_staircase(axes, list(points.values()))
        name_axes(axes, "R@1 (right is better)", "debiased OPIS, log-FAR axis (low is better)")
        axes.set_title(band, fontsize=9, color=INK)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        named.values(),
        named.keys(),
        loc="outside lower center",
        ncols=_LEGEND_COLUMNS,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    return save_png(figure, path)


def draw_changes(arms: Sequence[ArmSummary], path: Path) -> Path:
    """Draw the change of debiased OPIS relative to the other arm: a bar with its interval for each arm."""
    shown = [arm for arm in arms if any(name in arm.differences for name in _PANELS)]
    figure, panels = new_figure(len(_PANELS), width=5.4, height=1.4 + 0.36 * len(shown))
    for axes, (name, band) in zip(panels, _PANELS.items(), strict=True):
        for row, arm in enumerate(shown):
            found = arm.differences.get(name)
            if found is None or found.relative is None:
                axes.text(0, row, " unknown ", color=QUIET, fontsize=8, ha="right", va="center")
                continue
            axes.barh(row, 100 * found.relative, color=COLOURS[0], alpha=0.75, height=0.6)
            if interval := found.relative_interval:
                axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=INK, linewidth=1.4)
        axes.axvline(0, color=QUIET, linewidth=1)
        axes.set_yticks(range(len(shown)), [f"{arm.name}  (against {arm.against})" for arm in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_title(band, fontsize=9, color=INK)
        name_axes(axes, "change of debiased OPIS, % (left is better)", "")
    panels[1].set_yticklabels([])
    return save_png(figure, path)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (higher is better, lower is better) that no other beats in both, by rising first coordinate.

    >>> pareto_front([(0.7, 0.02), (0.8, 0.03), (0.6, 0.03), (0.75, 0.02)])
    [(0.75, 0.02), (0.8, 0.03)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front[::-1]


def _draw_staircase(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    front = pareto_front(points)
    if len(front) > 1:
        # Points below and to the right of the steps are better than all arms.
        axes.step(*zip(*front, strict=True), where="pre", color=QUIET, linewidth=1, linestyle=":", label="Pareto front")
