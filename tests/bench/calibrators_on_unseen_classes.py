"""Which calibrator forecasts pairs of unseen classes best, and does the choice by class carry over to other classes?

For each model: folds of the emoji calibration classes, then a fit on all of them judged on the audit classes. Excess is
log loss above the best kind of the same table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from retrieval.consistency import (
    CALIBRATOR_KINDS,
    VennAbersCalibrator,
    cross_validate_calibrators,
    draw_pairs,
    fit_scores,
    labelled,
    reliability,
)
from tests.bench.measuring.emoji import MODELS, Embedded, emoji

_FIGURES = ("log_loss", "excess", "brier", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--prevalences", type=float, nargs="+", default=[0.5, 0.01, 0.0001])
    parser.add_argument("--seed", type=int, default=0, help="of folds and drawn pairs")
    parser.add_argument("--quick", action="store_true", help="one model, one prevalence")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    options = parser.parse_args()
    if options.quick:
        options.models, options.prevalences = options.models[:1], [0.01]
    results = []
    for model in options.models:
        parts = emoji(model)
        for prevalence in options.prevalences:
            result = measure(parts["calibration"], parts["audit"], prevalence, options.seed)
            results.append({"model": model, "prevalence": prevalence, **result})
            if not options.json:
                print(f"\n{model}, prevalence {prevalence:g}: mean over folds of classes, +- standard error")
                for kind, row in result["folds"].items():
                    cells = (f"  {name} {row[name]:.4g} +- {row[f'{name}_error']:.2g}" for name in _FIGURES)
                    print(f"{kind:<12} on held-out folds:" + "".join(cells))
                for kind, row in result["audit"].items():
                    print(f"{kind:<12} on audit classes:" + "".join(f"  {k} {v:.5g}" for k, v in row.items()))
    if options.json:
        print(json.dumps({"question": __doc__.splitlines()[0], "options": vars(options), "results": results}))


def measure(calibration: Embedded, audit: Embedded, prevalence: float, seed: int) -> dict[str, Any]:
    """The comparison by folds, and log loss, Brier and ECE of each kind on the audit classes."""
    rng = np.random.default_rng(seed)
    vectors = labelled(calibration.embeddings, calibration.labels.tolist())
    comparison = cross_validate_calibrators(vectors, prevalence=prevalence, rng=rng)
    pairs = draw_pairs(labelled(audit.embeddings, audit.labels.tolist()), rng=rng, max_pairs=10**7)
    judged: dict[str, dict[str, float]] = {}
    for kind in CALIBRATOR_KINDS:
        drawn = draw_pairs(vectors, rng=rng, max_pairs=2_000_000)
        calibrator = fit_scores(drawn.scores, drawn.matches, kind=kind, prevalence=prevalence)
        report = reliability(calibrator.probability(pairs.scores), pairs.matches, weights=pairs.weights(prevalence))
        judged[kind] = {"log_loss": report.log_loss, "brier": report.brier, "ece": report.ece}
        if isinstance(calibrator, VennAbersCalibrator):
            widths = calibrator.width(pairs.scores[pairs.matches])
            judged[kind] |= {"median width of matches": float(np.median(widths)), "widest": float(widths.max())}
    lowest = min(row["log_loss"] for row in judged.values())
    for row in judged.values():
        row["excess"] = row["log_loss"] - lowest
    folds = {score.kind: {k: v for k, v in asdict(score).items() if k != "reliability"} for score in comparison.scores}
    return {"folds": folds, "audit": judged}


if __name__ == "__main__":
    main()
