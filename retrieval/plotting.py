"""The style of every plot: colours, axes, legends, and the drawings that audits and training share.

Matplotlib's shared state is not used, so threads may draw at the same time.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, QUIET, GRID = "#1c2128", "#5f6873", "#e2e5e9"
WITHIN, BETWEEN = "#0072b2", "#c85200"  # pairs of one class and of two; safe for colour-blind readers
# Okabe and Ito's colours, which colour-blind readers can distinguish; markers for more series than colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#1c2128")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_LINES = 60  # more classes than this become bands
_DECILES = np.linspace(0, 1, 11)
_DPI = 150


def new_figure(
    n_panels: int = 1, *, width: float = 6.4, height: float = 4.2, background: str = "white"
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side; width, height: inches of one panel."""
    figure = Figure(figsize=(width * n_panels, height), layout="constrained", facecolor=background)
    panels = [figure.add_subplot(1, n_panels, number + 1, facecolor=background) for number in range(n_panels)]
    for axes in panels:
        axes.tick_params(which="both", color=GRID, labelcolor=QUIET, labelsize=8)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_color(GRID)
            spine.set_visible(side in {"left", "bottom"})
    return figure, panels


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Label the axes."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def mark_threshold(axes: Axes, threshold: float) -> None:
    """Draw a dashed vertical line at the threshold, named in the legend."""
    axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (5, 2)), label=f"threshold {threshold:.3f}")


def draw_class_lines(axes: Axes, thresholds: NDArray[np.float64], rates: NDArray[np.float64], colour: str) -> None:
    """Draw one thin line per class, or shaded bands between the deciles of many classes; rates: [classes, m]."""
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


def add_legend(axes: Axes, *, n_columns: int = 4) -> None:
    """Add a legend above the plot, where it never hides data."""
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=n_columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.8,
        columnspacing=1.0,
    )


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` and return the path."""
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
    return path
