"""How good and how consistent are three models, each with the cosine and with the best normalised score?

Emoji classes that took no part: thresholds and certificates come from the part `calibration`, everything else is
measured on `audit`. The normalised score is the one that calibration chooses; its cohort and whitening come from the
part `train`, without labels. Each seed is a split of the classes and a training run; the table shows the mean over
seeds and, in brackets, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

import numpy as np

from retrieval.consistency import (
    OpisOptions,
    Target,
    certify,
    choose_threshold,
    consistency_report,
    labelled,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
)
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.score import Score
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.score_choice import candidate_scores
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from tests.bench.measuring.emoji import MODELS, Embedded, emoji

_FARS = (1e-2, 1e-3, 1e-4)
_ALPHA, _DELTA = 0.05, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model with one score on the audit classes of one seed; rates at the FAR of the audit's own pairs.

    certified: threshold from the calibration classes; kept: share of audit classes whose FAR it holds to _ALPHA.
    """

    recall_at_1: float
    opis: float
    floor: float
    debiased: float
    debiased_low: float
    debiased_high: float
    eps_opis: float
    tar_at_2: float
    tar_at_3: float
    tar_at_4: float
    threshold: float
    far_at_threshold: float
    certified: float
    kept: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="0 to this, exclusive; each trains once, for minutes")
    parser.add_argument("--quick", action="store_true", help="seed 0 only")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    results = {
        f"{model}, {kind}": [measure(model, kind, seed) for seed in seeds]
        for model in MODELS
        for kind in ("cosine", "normalised")
    }
    if options.json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in results.items()}))
        return
    print(
        __doc__.splitlines()[0], f"\n{len(seeds)} seeds; certificate: FAR <= {_ALPHA:g} with probability {1 - _DELTA:g}"
    )
    for name, rows in results.items():
        print(f"\n{name}")
        for field in Measured.__dataclass_fields__:
            values = [getattr(row, field) for row in rows]
            print(f"  {field:18}{np.mean(values):10.4g}  ({min(values):.4g} to {max(values):.4g})")


def measure(model: str, kind: str, seed: int) -> Measured:
    """Everything about one model with one score."""
    parts = emoji(model, seed=seed)
    train, calibration, audit = (parts[name] for name in ("train", "calibration", "audit"))
    score = Score() if kind == "cosine" else chosen_score(train, calibration, seed)

    known, known_gallery = score.vectors(calibration.embeddings)
    known_labels = calibration.labels.tolist()
    choice = choose_threshold(labelled(known, known_labels, gallery=known_gallery), target=Target("far", 1e-2))
    certificate = certify(labelled(known, known_labels, gallery=known_gallery), alpha=_ALPHA, delta=_DELTA)
    query, gallery = score.vectors(audit.embeddings)
    labels = audit.labels.tolist()
    rng = np.random.default_rng(seed)
    vectors = labelled(query, labels, gallery=gallery)
    report = consistency_report(vectors, OpisOptions(axis="log_far"), rng=rng)
    levels = thresholds_at_far(vectors, _FARS)
    marks = np.unique([*levels, choice.threshold, certificate.threshold])
    curves = operating_curves(vectors, thresholds=marks)
    tars = [float(curves.at(level).pooled_tar[0]) for level in levels]
    assert report.debiased is not None and report.debiased_interval is not None  # noqa: PT018
    return Measured(
        recall_at_1=recall_at_k(vectors)[1],
        opis=report.value,
        floor=report.floor,
        debiased=report.debiased,
        debiased_low=report.debiased_interval.low,
        debiased_high=report.debiased_interval.high,
        eps_opis=report.eps_opis,
        tar_at_2=tars[0],
        tar_at_3=tars[1],
        tar_at_4=tars[2],
        threshold=choice.threshold,
        far_at_threshold=float(curves.at(choice.threshold).pooled_far[0]),
        certified=certificate.threshold,
        kept=float((curves.at(certificate.threshold).far[:, 0] <= _ALPHA).mean()),
    )


def chosen_score(train: Embedded, calibration: Embedded, seed: int) -> Score:
    """The cohort score that calibration prefers among those it tries."""
    scores = candidate_scores(train.embeddings)[1:]  # without the cosine
    point = calibrate(
        LabelledEmbeddings(calibration.embeddings, calibration.labels.tolist(), "emoji"),
        bundle=BundleDigest("none"),
        scores=scores,
        target=CalibrationTarget(),
        rng=np.random.default_rng(seed),
        created_at="",
    )
    (score,) = (score for score in scores if score.digest == point.score_digest)
    return score


if __name__ == "__main__":
    main()
