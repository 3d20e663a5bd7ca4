"""How plots of training look, and how they become PNG files. Hides matplotlib's state: every figure is its own."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET, GRID = "#1c2128", "#5f6873", "#e2e5e9"
WITHIN, BETWEEN = "#0072b2", "#c85200"  # pairs of one class and of two: colour-blind safe
# Okabe and Ito's colours, which stay apart for colour-blind readers, and markers for when they come round again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#1c2128")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DPI = 150


def new_figure(n_panels: int = 1, *, width: float = 6.4, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; width, height: inches of one panel."""
    figure = Figure(figsize=(width * n_panels, height), layout="constrained", facecolor="white")
    panels = [figure.add_subplot(1, n_panels, number + 1) for number in range(n_panels)]
    for axes in panels:
        axes.tick_params(which="both", color=GRID, labelcolor=QUIET, labelsize=8)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_color(GRID)
            spine.set_visible(side in {"left", "bottom"})
    return figure, panels


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Write what is on the axes."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def mark_threshold(axes: Axes, threshold: float) -> None:
    """A dashed vertical line, named in the legend."""
    axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (5, 2)), label=f"threshold {threshold:.3f}")


def add_legend(axes: Axes) -> None:
    """Above the plot, where it never hides data."""
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        columnspacing=1.0,
    )


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure; `path`."""
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
    return path
