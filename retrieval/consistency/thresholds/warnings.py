"""State what pooled rates rest on: one large class, few pairs of classes, or groups of look-alikes.

The intervals allow for both. A reader should know all the same that the rates are those of few classes.
"""

from __future__ import annotations

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.subgroups.counts import Counts, accepted_class_pairs
from retrieval.consistency.thresholds.look_alike import find_look_alikes

LARGE_SHARE = 0.1
FEW_PAIRS = 10


@checked
def warnings_at(vectors: LabelledVectors, curves: OperatingCurves) -> tuple[str, ...]:
    """Return `rate_warnings` for the one threshold of the curves, after the groups of look-alikes if there are any.

    Groups are looked for if no families are named, see `find_look_alikes`. Cost: that, and one pass over the pairs.
    """
    accepted = accepted_class_pairs(vectors, float(curves.thresholds[0]))[2]
    groups = find_look_alikes(vectors) if vectors.families is None else None
    warnings = rate_warnings(curves, accepted, families=vectors.families is not None)
    return warnings if groups is None else (str(groups), *warnings)


def rate_warnings(curves: OperatingCurves, accepted: Counts, *, families: bool) -> tuple[str, ...]:
    """Return a sentence for a class with more than a tenth of the pairs, and one for false accepts of few pairs.

    accepted: [e], false accepts of each pair of classes that has any; families: whether families of classes are named.
    Few pairs: at most 10 pairs of classes hold half of the false accepts, and others hold the rest.
    """
    found = []
    for kind, pairs in (("true", curves.positives), ("false", curves.negatives)):
        largest = int(pairs.argmax())
        share = float(pairs[largest]) / max(float(pairs.sum()), 1.0)  # of false pairs, the share of their ends
        if share <= LARGE_SHARE:
            continue
        name, rates = ("TAR", curves.mean_tar[0]) if kind == "true" else ("FAR", curves.mean_far[0])
        pooled = curves.pooled_tar[0] if kind == "true" else curves.pooled_far[0]
        found.append(
            f"class {curves.classes[largest]!r} ({curves.n_images[largest]} images) holds {share:.0%} of the {kind} "
            f"pairs: pooled {name} {pooled:.4g}, mean over classes {rates:.4g}"
        )
    held = np.cumsum(np.sort(accepted)[::-1])
    half = 1 + int(np.searchsorted(2 * held, held[-1])) if len(held) else 0
    if 0 < half <= FEW_PAIRS and half < len(held):
        n_pairs = len(curves.classes) * (len(curves.classes) - 1) // 2
        advice = "" if families else "; if such classes are drawn together, name their families"
        found.append(f"{half} of {n_pairs} pairs of classes hold half of the false accepts{advice}")
    return tuple(found)
