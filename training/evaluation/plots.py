"""The plots of an evaluation. They contain no names of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from retrieval.consistency import IdentificationRates, labelled, operating_curves, score_histograms
from retrieval.plotting import (
    BETWEEN,
    INK,
    QUIET,
    WITHIN,
    add_legend,
    draw_class_lines,
    mark_threshold,
    name_axes,
    new_figure,
    save_png,
)
from training.evaluation.results import Evaluation

_N_THRESHOLDS = 200


def draw_histograms(embeddings: NDArray[np.float32], labels: Sequence[str], threshold: float, path: Path) -> Path:
    """Draw the densities of the cosine of pairs inside a class and across classes, with the threshold."""
    histograms = score_histograms(labelled(embeddings, labels), n_bins=80)
    figure, (axes,) = new_figure()
    for counts, colour, name in (
        (histograms.between, BETWEEN, "pairs of different classes"),
        (histograms.within, WITHIN, "pairs of one class"),
    ):
        density = counts / (max(int(counts.sum()), 1) * np.diff(histograms.edges))
        axes.stairs(density, histograms.edges, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(density, histograms.edges, color=colour, linewidth=1.4, label=name)
    axes.set_ylim(bottom=0)
    mark_threshold(axes, threshold)
    name_axes(axes, "cosine similarity", "density")
    add_legend(axes)
    return save_png(figure, path)


def draw_classes(embeddings: NDArray[np.float32], labels: Sequence[str], evaluation: Evaluation, path: Path) -> Path:
    """Draw TAR and FAR of each class against the threshold, to show how they differ at one threshold."""
    reach = np.array([found.threshold for found in evaluation.tar_at_far] or [evaluation.threshold])
    low, high = min(reach.min(), evaluation.threshold) - 0.1, max(reach.max(), evaluation.threshold) + 0.1
    grid = np.linspace(max(low, -1), min(high, 1), _N_THRESHOLDS)
    curves = operating_curves((embeddings, labels), thresholds=np.union1d(grid, [evaluation.threshold]))
    figure, (left, right) = new_figure(2, width=5.4)
    _draw_classes(left, curves.thresholds, curves.tar, WITHIN)
    left.set_ylim(0, 1)
    name_axes(left, "threshold", "TAR of a class")
    floor = 10.0 ** np.floor(np.log10(0.5 / curves.negatives.max()))
    _draw_classes(right, curves.thresholds, np.maximum(curves.far, floor), BETWEEN)
    right.set_yscale("log")
    right.set_ylim(floor, 1)
    right.axhline(evaluation.far_target, color=QUIET, linewidth=1, linestyle=":", label="FAR target")
    name_axes(right, "threshold", "FAR of a class (0 at the bottom)")
    for axes in (left, right):
        mark_threshold(axes, evaluation.threshold)
        add_legend(axes)
    return save_png(figure, path)


def draw_identification(rates: Sequence[IdentificationRates], path: Path) -> Path:
    """Draw FPIR and FNIR at the threshold for the pair FAR, and FNIR at a fixed FPIR, against the gallery size."""
    figure, (axes,) = new_figure()
    sizes = np.array([found.gallery_size for found in rates])
    target = rates[0]
    lines = [
        (
            f"FPIR at pair FAR {target.target_far:g}",
            BETWEEN,
            "o",
            [(r.at_far.fpir, r.at_far.fpir_range) for r in rates],
        ),
        (f"FNIR at pair FAR {target.target_far:g}", WITHIN, "s", [(r.at_far.fnir, r.at_far.fnir_range) for r in rates]),
    ]
    if all(found.at_fpir is not None for found in rates):
        at_fpir = [(r.at_fpir.fnir, r.at_fpir.fnir_range) for r in rates if r.at_fpir is not None]
        lines.append((f"FNIR at FPIR {target.target_fpir:g}", INK, "^", at_fpir))
    for name, colour, marker, values in lines:
        axes.plot(sizes, [value for value, _ in values], color=colour, marker=marker, linewidth=1.4, label=name)
        low, high = ([getattr(interval, end) for _, interval in values] for end in ("low", "high"))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1)
    name_axes(axes, "images in the gallery", "rate; shaded: central 95 % of repetitions")
    add_legend(axes)
    return save_png(figure, path)


def _draw_classes(axes: Axes, thresholds: NDArray[np.float64], rates: NDArray[np.float64], colour: str) -> None:
    """Draw the classes and their mean; rates: [classes, m]."""
    draw_class_lines(axes, thresholds, rates, colour)
    axes.plot(thresholds, rates.mean(axis=0), color=colour, linewidth=2.4, label="class mean")
