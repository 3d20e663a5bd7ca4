"""State how much data a refused target would need: in classes and images, and in the unit of the target."""

from __future__ import annotations

import math

import numpy as np

from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.thresholds.targets import Target


def enough_data(vectors: LabelledVectors, n_pairs: float, *, positive: bool = False) -> str:
    """Return how many classes and images of the same sizes would make n_pairs negative (or positive) pairs, in words.

    n_pairs: of images; if the vectors are in rounds, each counts several times, see `LabelledVectors.repeats`.

    >>> from retrieval.consistency import labelled
    >>> rows = np.eye(4, dtype=np.float32)
    >>> enough_data(labelled(rows, ["a", "a", "b", "b"]), 40)
    'about 5 classes of 2 images (10 images), found 2 classes and 4 images'
    """
    n_pairs *= vectors.positive_repeats if positive else vectors.repeats
    n_classes, n_images = len(vectors.classes), int(vectors.n_images.sum())
    size = n_images / n_classes
    if positive:
        wanted = math.ceil(n_classes * n_pairs / max(vectors.n_positives, 1))
    else:  # size**2 * c * (c - 1) / 2 pairs of c classes; scaled by the pairs that are here, because sizes differ
        between = vectors.n_negatives / max(n_classes * (n_classes - 1) / 2, 1)
        wanted = math.ceil((1 + math.sqrt(1 + 8 * n_pairs / max(between, 1e-9))) / 2)
    each = np.format_float_positional(size, precision=1, fractional=False, trim="-") if size < 10 else f"{size:.0f}"
    return (
        f"about {wanted:,} classes of {each} images ({math.ceil(wanted * size):,} images), "
        f"found {n_classes:,} classes and {n_images:,} images"
    )


def least_target(target: Target, share: float) -> str:
    """Return the target of the same kind and unit that asks for a rate of `share`, as text.

    >>> least_target(Target("false-matches", 1, 1_000_000), 9.789e-06), least_target(Target("far", 1e-6), 9.789e-06)
    ('false-matches=9.8@1000000', 'far=9.8e-06')
    """
    scale = 1.0 if target.kind != "false-matches" or target.at is None else target.at
    value = share * scale
    digits = 1 - math.floor(math.log10(value))
    rounded = math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits  # two digits, upwards: less would be refused
    kind = target.kind if target.kind in {"class-far", "frr", "false-matches"} else "far"
    return f"{kind}={rounded:.15g}" + (f"@{target.at:.15g}" if kind == "false-matches" and target.at else "")
