"""The plots of an audit as inline SVG.

Decides what is drawn and how; leaves words and tables to `report.py`. Names never enter a plot: classes are numbered,
and the page beside it explains the numbers, so that any script, length or markup in a name is the page's to handle.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from retrieval.consistency import GroupRates, OperatingCurves, ScoreHistograms

_Values = NDArray[np.float64]

# Each becomes a variable of the page's style sheet, which knows a light and a dark value for it.
_INK, _QUIET, _GRID, _PAPER = "#1c2128", "#5f6873", "#e2e5e9", "#fefefe"
_WITHIN, _BETWEEN = "#0072b2", "#c85200"  # colour-blind safe; also told apart by position, name and line style
_VARIABLES = {
    _INK: "--ink",
    _QUIET: "--quiet",
    _GRID: "--line",
    _PAPER: "--paper",
    _WITHIN: "--within",
    _BETWEEN: "--between",
}

_SIZE = (4.2, 3.1)  # inches; small, so that the text is still readable when a phone shrinks the plot
MAX_LINES = 60  # more classes than this become bands
_N_THRESHOLDS = 200  # a plot this wide shows no more
_DECILES = np.linspace(0, 1, 11)


def draw_histograms(histograms: ScoreHistograms, threshold: float, score_name: str) -> str:
    """Densities of the scores of pairs inside a class and across classes, with the threshold."""
    figure, axes = _figure(score_name, "density")
    for counts, colour, name, dash in (
        (histograms.between, _BETWEEN, "pairs of different classes", (0, (4, 1))),
        (histograms.within, _WITHIN, "pairs of one class", "-"),
    ):
        density, edges = _density(counts, histograms.edges)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(density, edges, color=colour, linewidth=1.4, linestyle=dash, label=name)
    axes.set_ylim(bottom=0)
    _mark_threshold(axes, threshold)
    _legend(axes)
    return _svg(figure, "histograms")


def draw_far_curves(curves: OperatingCurves, threshold: float, target_far: float, score_name: str) -> str:
    """FAR of each class against the threshold, on a logarithmic axis; a class without false accepts at the bottom."""
    curves = _thinned(curves, threshold)
    floor = _far_floor(curves.negatives)
    figure, axes = _figure(score_name, "false accept rate (FAR)")
    axes.set_yscale("log")
    axes.set_ylim(floor, 1)
    axes.axhline(target_far, color=_QUIET, linewidth=1, linestyle=":", label="FAR target")
    _class_lines(axes, curves.thresholds, np.maximum(curves.far, floor), _BETWEEN)
    axes.plot(curves.thresholds, np.maximum(curves.mean_far, floor), color=_BETWEEN, linewidth=2.4, label="class mean")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    _mark_threshold(axes, threshold)
    _legend(axes)
    return _svg(figure, "far")


def draw_tar_curves(curves: OperatingCurves, threshold: float, score_name: str) -> str:
    """TAR of each class that has a pair against the threshold."""
    curves = _thinned(curves, threshold)
    figure, axes = _figure(score_name, "true accept rate (TAR)")
    axes.set_ylim(0, 1)
    _class_lines(axes, curves.thresholds, curves.tar, _WITHIN)
    axes.plot(curves.thresholds, curves.mean_tar, color=_WITHIN, linewidth=2.4, label="class mean")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    _mark_threshold(axes, threshold)
    _legend(axes)
    return _svg(figure, "tar")


def draw_class_scatter(classes: Sequence[GroupRates], named: Sequence[GroupRates], target_far: float) -> str:
    """FAR against FRR of every class that has both, one dot each; `named` are numbered from 1 in their order.

    Where a class has no false accept, the left edge stands for 0.
    """
    figure, axes = _figure("false accept rate (FAR)", "false reject rate (FRR)")
    both = [(rates.far, rates.frr) for rates in classes if rates.far is not None and rates.frr is not None]
    floor = _far_floor(np.array([rates.negatives for rates in classes]))
    points = np.array(both, dtype=np.float64).reshape(-1, 2)
    axes.set_xscale("log")
    axes.axvline(target_far, color=_QUIET, linewidth=1, linestyle=":", label="FAR target")
    axes.plot(
        np.maximum(points[:, 0], floor),
        points[:, 1],
        "o",
        markersize=5,
        markeredgewidth=0,
        color=_WITHIN,
        alpha=0.45,
        label="one class",
        clip_on=False,
    )
    lowest = points[:, 0].min(initial=target_far)
    axes.set_xlim(_decade(lowest, 0) if lowest > 0 else floor, _decade(points[:, 0].max(initial=target_far), 1))
    axes.set_ylim(-0.02, 1.02)
    shown = [(number, rates) for number, rates in enumerate(named, start=1) if None not in (rates.far, rates.frr)]
    _number(axes, {number: (max(rates.far or 0.0, floor), rates.frr or 0.0) for number, rates in shown})
    axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    _legend(axes)
    return _svg(figure, "scatter")


def _figure(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    """A figure of its own: nothing is shared between threads."""
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(x_name, color=_INK, fontsize=9)
    axes.set_ylabel(y_name, color=_INK, fontsize=9)
    axes.tick_params(which="both", color=_GRID, labelcolor=_QUIET, labelsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(_GRID)
        spine.set_visible(side in {"left", "bottom"})
    return figure, axes


def _class_lines(axes: Axes, thresholds: _Values, rates: _Values, colour: str) -> None:
    """One thin line per class, or shaded bands between the deciles of many classes; rates: [classes, m]."""
    if len(rates) <= MAX_LINES:
        for number, line in enumerate(rates):
            axes.plot(thresholds, line, color=colour, linewidth=0.7, alpha=0.4, label=None if number else "one class")
        return
    deciles = np.quantile(rates, _DECILES, axis=0)
    for step in range(5):
        name = None if step else "shades: deciles of the classes"
        axes.fill_between(
            thresholds, deciles[step], deciles[-1 - step], color=colour, alpha=0.14, linewidth=0, label=name
        )


def _thinned(curves: OperatingCurves, threshold: float) -> OperatingCurves:
    """The curves at few enough thresholds to draw, from half of all negative pairs accepted to none."""
    last = len(curves.thresholds) - 1
    start = min(int(np.count_nonzero(curves.pooled_far > 0.5)), last)
    wanted = np.linspace(min(float(curves.thresholds[start]), threshold), curves.thresholds[last], _N_THRESHOLDS)
    columns = np.unique(np.minimum(np.searchsorted(curves.thresholds, wanted), last))
    return replace(
        curves,
        thresholds=curves.thresholds[columns],
        positives_accepted=curves.positives_accepted[:, columns],
        negatives_accepted=curves.negatives_accepted[:, columns],
    )


def _far_floor(negatives: NDArray[np.int64]) -> float:
    """Where a FAR of 0 stands on a logarithmic axis: half of the smallest FAR that any class can show."""
    return 0.5 / max(int(negatives.max(initial=1)), 5)


def _density(counts: NDArray[np.int64], edges: _Values) -> tuple[_Values, _Values]:
    """Density and edges, neighbouring bins joined where few pairs would draw a comb."""
    total = int(counts.sum())
    joined = math.ceil(len(counts) / max(4 * total ** (1 / 3), 1))
    starts = np.arange(0, len(counts), joined)
    wider = np.append(edges[:-1][starts], edges[-1])
    return np.add.reduceat(counts, starts) / (max(total, 1) * np.diff(wider)), wider


def _decade(rate: float, above: int) -> float:
    """The power of ten below a rate (above = 0), or above it (1); never more than 1."""
    return min(1.0, float(10.0 ** (math.floor(math.log10(rate)) + above)))


def _number(axes: Axes, points: Mapping[int, tuple[float, float]]) -> None:
    """Ring each point and put its number beside it, moved towards the middle until it hides no other number."""
    taken: list[tuple[float, float]] = []
    for number, (x, y) in points.items():
        axes.plot(x, y, "o", markersize=7, color=_BETWEEN, markerfacecolor="none", clip_on=False)
        at_x, at_y = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        at_x += 0.05
        while any(abs(at_x - other_x) < 0.05 and abs(at_y - other_y) < 0.07 for other_x, other_y in taken):
            at_y += 0.01 if y < 0.5 else -0.01
        taken.append((at_x, at_y))
        axes.annotate(
            str(number),
            (x, y),
            (at_x, at_y),
            textcoords="axes fraction",
            ha="center",
            va="center",
            fontsize=7,
            color=_PAPER,
            annotation_clip=False,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": _BETWEEN, "edgecolor": _PAPER, "linewidth": 0.7},
            arrowprops={"arrowstyle": "-", "color": _BETWEEN, "linewidth": 0.7, "shrinkB": 3},
        )


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle=(0, (5, 2)), label=f"threshold {threshold:.3f}")


def _legend(axes: Axes) -> None:
    """Above the plot, where it never hides data."""
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        handlelength=1.8,
        columnspacing=1.2,
    )


def _percent_tick(value: float, _position: int | None) -> str:
    return f"{100 * value:g}%"


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element whose ids are its own on the page and whose colours are the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids are random and glyphs are shared between plots: numbered afresh, a repeated report is the same byte for byte.
    ids = {found: f"{name}-{number}" for number, found in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    svg = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda found: found[1] + ids[found[2]], svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
