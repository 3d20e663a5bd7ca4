"""What becomes of a calibrated threshold when the cohort behind the densities is another one for the new classes?

Emoji: a threshold chosen on the calibration part for a FAR of 1e-2 and of 1e-3, then asked of the classes of the part
`cohort`, as new ones. A score names its cohort by content, so that a changed cohort is another score that wants another
calibration; this shows why, and what a cohort with images of the calibrated or of the new classes does.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    LabelledVectors,
    Whitening,
    fit_whitening,
    labelled,
    operating_curves,
    thresholds_at_far,
)
from retrieval.contract.score import Score, cohort_score
from tests.bench.measuring.emoji import MODELS, Embedded, emoji

Vectors = NDArray[np.float32]
_TARGETS = (1e-2, 1e-3)
_SAME = 0.9999  # a picture that is in the cohort meets itself at 1, up to rounding


@dataclass(frozen=True, slots=True)
class Row:
    """far, tar: of the new classes at the calibrated threshold; own_tar: at a threshold chosen on themselves."""

    model: str
    case: str
    target: float
    far: float
    tar: float
    own_tar: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seed", type=int, default=0, help="which classes make the quarter of the cohort")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    rows = [row for model in options.models for row in of_model(model, options.seed)]
    if options.json:
        print(json.dumps({"question": __doc__.splitlines()[0], "rows": [*map(asdict, rows)]}))
        return
    print(__doc__.splitlines()[0])
    for row in rows:
        print(
            f"{row.model:9} {row.case:62} target {row.target:g}: FAR {row.far:.5f} ({row.far / row.target:4.2f}), "
            f"TAR {row.tar:.3f} (own threshold {row.own_tar:.3f})"
        )


def of_model(model: str, seed: int) -> list[Row]:
    parts = emoji(model)
    train, old, new = parts["train"], parts["calibration"], parts["cohort"]
    whitening = fit_whitening(train.embeddings)
    classes = np.random.default_rng(seed).permutation(np.unique(train.labels))
    quarter = train.of_classes(classes[: len(classes) // 4]).embeddings
    others, with_old = train.embeddings, np.vstack([train.embeddings, old.embeddings])
    with_new, with_both = (np.vstack([rows, new.embeddings]) for rows in (others, with_old))
    cases = {
        "other classes": (others, others),
        "other classes and those calibrated on": (with_old, with_old),
        "other classes and the new ones": (with_new, with_new),
        "other, calibrated and new classes": (with_both, with_both),
        "a quarter when calibrated, all when asked": (quarter, others),
        "all when calibrated, a quarter when asked": (others, quarter),
    }
    found = rows_of(model, "cosine", (Score(), old), (Score(), new))
    for case, cohorts in cases.items():
        before, after = (score_with(rows, whitening, model) for rows in cohorts)
        found += rows_of(model, f"cohort of {case}", (before, old), (after, new))
    return found


def score_with(cohort: Vectors, whitening: Whitening, model: str) -> Score:
    """The score that calibration chooses for the model."""
    k, weight = (100, 0.3) if model == "frozen" else (20, 0.5)
    return cohort_score(cohort, k=k, weight=weight, ignore_above=_SAME, whitening=whitening)


def rows_of(model: str, case: str, old: tuple[Score, Embedded], new: tuple[Score, Embedded]) -> list[Row]:
    thresholds, own = (thresholds_of(*side) for side in (old, new))
    vectors = vectors_of(*new)
    rows = []
    for target, threshold, best in zip(_TARGETS, thresholds, own, strict=True):
        at, at_own = (operating_curves(vectors, thresholds=[value]) for value in (threshold, best))
        rates = float(at.pooled_far[0]), float(at.pooled_tar[0]), float(at_own.pooled_tar[0])
        rows.append(Row(model, case, target, *rates))
    return rows


def thresholds_of(score: Score, data: Embedded) -> NDArray[np.float64]:
    return thresholds_at_far(vectors_of(score, data), _TARGETS)


def vectors_of(score: Score, data: Embedded) -> LabelledVectors:
    query, gallery = score.vectors(data.embeddings)
    return labelled(query, [str(label) for label in data.labels], gallery=gallery)


if __name__ == "__main__":
    main()
