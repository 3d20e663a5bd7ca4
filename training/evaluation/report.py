"""Writes an evaluation as files.

FOLDER/evaluation.json      every figure
FOLDER/evaluation.md        the same as text and tables
FOLDER/classes.csv          one row for each class, at the evaluation's threshold
FOLDER/histograms.png       scores of pairs inside and across classes
FOLDER/classes.png          TAR and FAR of each class against the threshold
FOLDER/identification.png   FPIR and FNIR against the size of the gallery, if they were measured
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Interval, class_confusions, class_rates, labelled
from retrieval.contract.canonical import json_bytes
from training.evaluation.plots import draw_classes, draw_histograms, draw_identification
from training.evaluation.results import Evaluation
from training.writing import make_folder

_COLUMNS = (
    "class",
    "n_images",
    "tar",
    "tar_low",
    "tar_high",
    "far",
    "far_low",
    "far_high",
    "positives",
    "negatives",
    "confused_with",
)


def write_report(
    evaluation: Evaluation, embeddings: NDArray[np.float32], labels: Sequence[str], folder: Path
) -> list[Path]:
    """Write the evaluation of these embeddings [n, d] into `folder`, which is created; return the paths of the files.

    Raises InvalidInput if `folder` is a file.
    """
    make_folder(folder)
    contents = {
        "evaluation.json": json_bytes(evaluation.to_json()),
        "evaluation.md": to_markdown(evaluation).encode(),
        "classes.csv": class_table(embeddings, labels, evaluation.threshold).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    plots = [
        draw_histograms(embeddings, labels, evaluation.threshold, folder / "histograms.png"),
        draw_classes(embeddings, labels, evaluation, folder / "classes.png"),
    ]
    if evaluation.identification:
        plots.append(draw_identification(evaluation.identification, folder / "identification.png"))
    return [*(folder / name for name in contents), *plots]


def class_table(embeddings: NDArray[np.float32], labels: Sequence[str], threshold: float) -> str:
    """Return a CSV table of all classes at the threshold, by falling FAR: TAR, FAR, and the classes confused with it.

    TAR is empty for a class of one image; low and high are ends of 95 % intervals; confused_with names up to three
    classes, each with the accepted pairs and all pairs with that class.
    """
    vectors = labelled(embeddings, labels)
    confusions = class_confusions(vectors, threshold)
    rates = sorted(class_rates(vectors, threshold), key=lambda rate: (-(rate.far or 0.0), rate.name))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rate in rates:
        tar = (
            ("", "", "") if rate.frr is None else (1 - rate.frr, 1 - rate.frr_interval.high, 1 - rate.frr_interval.low)
        )
        with_whom = "; ".join(f"{c.name} {c.n_accepted}/{c.n_pairs}" for c in confusions[rate.name])
        far = (rate.far, rate.far_interval.low, rate.far_interval.high)
        writer.writerow([rate.name, rate.n_images, *tar, *far, rate.positives, rate.negatives, with_whom])
    return buffer.getvalue()


def to_markdown(evaluation: Evaluation) -> str:
    """Return all figures in tables, and the missing figures with their reasons."""
    blocks = [
        str(evaluation),
        _table(("ranking", ""), _ranking(evaluation)),
        _table(("OPIS", "value", "noise floor", "debiased", "eps-OPIS", "its floor"), _consistency(evaluation)),
        _table(("TAR at FAR", "threshold", "TAR"), _tar_at_far(evaluation)),
        _other_classes(evaluation),
        _table(
            ("gallery", "FPIR", "FNIR", "FNIR at a fixed FPIR", "searches with and without a mate"),
            _identification(evaluation),
        ),
    ]
    if evaluation.warnings:
        blocks.append("\n".join(["Notes:", *(f"- {warning}" for warning in evaluation.warnings)]))
    if evaluation.missing:
        blocks.append("\n".join(["Not measured:", *(f"- {name}: {why}" for name, why in evaluation.missing.items())]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _ranking(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    for title, value in (
        ("R@1", evaluation.r_at_1),
        ("R@2", evaluation.r_at_2),
        ("R@4", evaluation.r_at_4),
        ("R@8", evaluation.r_at_8),
        ("mAP@R", evaluation.map_at_r),
    ):
        if value is not None:
            yield title, f"{value:.4f}"


def _consistency(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    for found in evaluation.consistency:
        axis = "distance" if found.axis == "distance" else "log FAR"
        debiased = "" if found.debiased is None else f"{found.debiased:.2e}{_interval(found.debiased_interval)}"
        yield (
            f"FAR {found.far_low:.3g} to {found.far_high:.3g}, axis of {axis}",
            f"{found.opis:.2e}{_interval(found.interval)}",
            f"{found.floor:.2e}",
            debiased,
            f"{found.eps_opis:.2e}{_interval(found.eps_interval)}",
            f"{found.eps_floor:.2e}",
        )


def _tar_at_far(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    for found in evaluation.tar_at_far:
        yield f"{found.far:g}", f"{found.threshold:.4f}", f"{found.tar:.4f}"


def _other_classes(evaluation: Evaluation) -> str:
    found = evaluation.other_classes
    if found is None:
        return ""
    return (
        f"At a threshold for FAR {evaluation.far_target:g} that was chosen on other classes ({found.n_splits} splits "
        f"into halves), FAR is {found.far:.4g} (halves {found.far_range}) and TAR is {found.tar:.4f}. The tenth of the "
        f"classes with the lowest TAR has TAR {found.worst_tar:.4f}; the tenth with the highest FAR has FAR "
        f"{found.worst_far:.4g}."
    )


def _identification(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    for found in evaluation.identification:
        at_fpir = found.at_fpir
        yield (
            f"{found.gallery_size} images",
            f"{found.at_far.fpir:.4f} ({found.at_far.fpir_range})",
            f"{found.at_far.fnir:.4f} ({found.at_far.fnir_range})",
            ""
            if at_fpir is None
            else f"{at_fpir.fnir:.4f} ({at_fpir.fnir_range}) at {at_fpir.fpir:.3f}, target {found.target_fpir:g}",
            f"{found.n_mated:.0f} and {found.n_strangers:.0f}, {found.n_repeats} times",
        )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:.2e} to {interval.high:.2e})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    listed = [list(row) for row in rows]
    if not listed:
        return ""
    lines = [list(head), ["---"] * len(head), *listed]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
