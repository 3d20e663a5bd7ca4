"""The plots of an audit as inline SVG.

Text and tables are in `audit_page.py`. Plots contain no names: classes are numbered and the page explains the numbers,
so that only the page has to handle names of any script, length or markup.
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
from retrieval.plotting import (
    BETWEEN,
    GRID,
    INK,
    QUIET,
    WITHIN,
    add_legend,
    draw_class_lines,
    mark_threshold,
    name_axes,
    new_figure,
)

_Values = NDArray[np.float64]

_PAPER = "#fefefe"
# Each colour becomes a variable of the page's style sheet, which has a light and a dark value for it.
_VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--line",
    _PAPER: "--paper",
    WITHIN: "--within",
    BETWEEN: "--between",
}

_WIDTH, _HEIGHT = 4.2, 3.1  # inches; small, so that the text stays readable if a phone shrinks the plot
_N_THRESHOLDS = 200  # a plot of this width shows no more


def draw_histograms(histograms: ScoreHistograms, threshold: float, score_name: str) -> str:
    """Draw the densities of the scores of pairs of one class and of two, with the threshold."""
    figure, axes = _figure(score_name, "density")
    for counts, colour, name, dash in (
        (histograms.between, BETWEEN, "pairs of different classes", (0, (4, 1))),
        (histograms.within, WITHIN, "pairs of one class", "-"),
    ):
        density, edges = _density(counts, histograms.edges)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(density, edges, color=colour, linewidth=1.4, linestyle=dash, label=name)
    axes.set_ylim(bottom=0)
    mark_threshold(axes, threshold)
    add_legend(axes, n_columns=2)
    return _svg(figure, "histograms")


def draw_far_curves(curves: OperatingCurves, threshold: float, target_far: float, score_name: str) -> str:
    """Draw the FAR of each class against the threshold, on a logarithmic axis with a FAR of 0 at the bottom."""
    curves = _thinned(curves, threshold)
    floor = _far_floor(curves.negatives)
    figure, axes = _figure(score_name, "false accept rate (FAR)")
    axes.set_yscale("log")
    axes.set_ylim(floor, 1)
    axes.axhline(target_far, color=QUIET, linewidth=1, linestyle=":", label="FAR target")
    draw_class_lines(axes, curves.thresholds, np.maximum(curves.far, floor), BETWEEN)
    axes.plot(curves.thresholds, np.maximum(curves.mean_far, floor), color=BETWEEN, linewidth=2.4, label="class mean")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    mark_threshold(axes, threshold)
    add_legend(axes, n_columns=2)
    return _svg(figure, "far")


def draw_tar_curves(curves: OperatingCurves, threshold: float, score_name: str) -> str:
    """Draw the TAR of each class that has a pair against the threshold."""
    curves = _thinned(curves, threshold)
    figure, axes = _figure(score_name, "true accept rate (TAR)")
    axes.set_ylim(0, 1)
    draw_class_lines(axes, curves.thresholds, curves.tar, WITHIN)
    axes.plot(curves.thresholds, curves.mean_tar, color=WITHIN, linewidth=2.4, label="class mean")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    mark_threshold(axes, threshold)
    add_legend(axes, n_columns=2)
    return _svg(figure, "tar")


def draw_class_scatter(classes: Sequence[GroupRates], named: Sequence[GroupRates], target_far: float) -> str:
    """Draw FAR against FRR of every class that has both, one dot each; `named` are numbered from 1 in their order.

    A class without a false accept is at the left edge.
    """
    figure, axes = _figure("false accept rate (FAR)", "false reject rate (FRR)")
    both = [(rates.far, rates.frr) for rates in classes if rates.far is not None and rates.frr is not None]
    floor = _far_floor(np.array([rates.negatives for rates in classes]))
    points = np.array(both, dtype=np.float64).reshape(-1, 2)
    axes.set_xscale("log")
    axes.axvline(target_far, color=QUIET, linewidth=1, linestyle=":", label="FAR target")
    axes.plot(
        np.maximum(points[:, 0], floor),
        points[:, 1],
        "o",
        markersize=5,
        markeredgewidth=0,
        color=WITHIN,
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
    add_legend(axes, n_columns=2)
    return _svg(figure, "scatter")


def _figure(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    """Make a figure with one panel and a transparent background."""
    figure, (axes,) = new_figure(width=_WIDTH, height=_HEIGHT, background="none")
    name_axes(axes, x_name, y_name)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    return figure, axes


def _thinned(curves: OperatingCurves, threshold: float) -> OperatingCurves:
    """Return the curves at few enough thresholds to draw, from half of all negative pairs accepted to none."""
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
    """Place a FAR of 0 on a logarithmic axis: at half of the smallest FAR that any class can show."""
    return 0.5 / max(int(negatives.max(initial=1)), 5)


def _density(counts: NDArray[np.int64], edges: _Values) -> tuple[_Values, _Values]:
    """Return density and edges. With few pairs, bins are joined, because single ones would look like a comb."""
    total = int(counts.sum())
    joined = math.ceil(len(counts) / max(4 * total ** (1 / 3), 1))
    starts = np.arange(0, len(counts), joined)
    wider = np.append(edges[:-1][starts], edges[-1])
    return np.add.reduceat(counts, starts) / (max(total, 1) * np.diff(wider)), wider


def _decade(rate: float, above: int) -> float:
    """Return the power of ten below a rate (above = 0), or above it (1); never more than 1."""
    return min(1.0, float(10.0 ** (math.floor(math.log10(rate)) + above)))


def _number(axes: Axes, points: Mapping[int, tuple[float, float]]) -> None:
    """Ring each point and put its number next to it, moved towards the middle until it hides no other number."""
    taken: list[tuple[float, float]] = []
    for number, (x, y) in points.items():
        axes.plot(x, y, "o", markersize=7, color=BETWEEN, markerfacecolor="none", clip_on=False)
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
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": BETWEEN, "edgecolor": _PAPER, "linewidth": 0.7},
            arrowprops={"arrowstyle": "-", "color": BETWEEN, "linewidth": 0.7, "shrinkB": 3},
        )


def _percent_tick(value: float, _position: int | None) -> str:
    return f"{100 * value:g}%"


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an <svg> element, with ids that are unique on the page and with the colours of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids are random and glyphs are shared between plots. With new numbers, equal reports are equal byte for byte.
    ids = {found: f"{name}-{number}" for number, found in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    svg = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda found: found[1] + ids[found[2]], svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
