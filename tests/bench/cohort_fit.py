"""Does `cohort_fit` predict whether a cohort helps or harms, and how often does it reject a good one?

Each cohort (emoji, brand logos, food photographs) is tried on each catalogue (also Fashion-MNIST), all embedded by the
model that was trained on emoji; where both are of one set its classes are halved. What a cohort does is the change of
TAR at FAR 1e-2 and 1e-3 from the cosine to the cohort score.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import cohort_fit, labelled, wilson_interval
from retrieval.contract.score import Score
from tests.bench.measuring.domains import domain
from tests.bench.measuring.emoji import Embedded, emoji

_K, _SKIP, _ALPHA = 20, 5, 0.05
_FARS = (1e-2, 1e-3)


def tar_gains(catalogue: Embedded, cohort: Embedded) -> list[float]:
    """TAR with the cohort score less TAR with the cosine, at each FAR."""
    rates = []
    for score in (Score(), Score(cohort=cohort.embeddings, k=_K)):
        scores = score.query_vectors(catalogue.embeddings) @ score.gallery_vectors(catalogue.embeddings).T
        first, second = np.triu_indices(len(scores), k=1)
        matches = catalogue.labels[first] == catalogue.labels[second]
        rates.append([_tar(scores[first, second], matches, far) for far in _FARS])
    return [after - before for before, after in zip(*rates, strict=True)]


def _tar(scores: NDArray[np.float32], matches: NDArray[np.bool_], far: float) -> float:
    negatives = scores[~matches]
    rank = len(negatives) - 1 - int(far * len(negatives))
    return float((scores[matches] > np.partition(negatives, rank)[rank]).mean())


def halves(images: Embedded, rng: np.random.Generator) -> tuple[Embedded, Embedded]:
    first, second = np.array_split(rng.permutation(np.unique(images.labels)), 2)
    return images.of_classes(first), images.of_classes(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, help="halvings of classes and of cohorts (default 200, quick 5)")
    options = parser.parse_args()
    draws = options.draws or (5 if options.quick else 200)
    sets = {"emoji": emoji("base+tcm")["audit"]} | {name: domain(name) for name in ("logos", "photos", "fashion")}
    rows = []
    for cohort_name in ("emoji", "logos", "photos"):
        for catalogue_name in sets:
            fits = []
            gains: list[float] = []
            for draw in range(draws):
                rng = np.random.default_rng([options.seed, draw])
                cohort, catalogue = halves(sets[cohort_name], rng)
                if catalogue_name != cohort_name:
                    catalogue = sets[catalogue_name]
                    if draw == draws // 4:
                        break  # only chance of the cohort's half is left: fewer draws tell it
                fits.append(
                    cohort_fit(
                        labelled(cohort.embeddings, cohort.labels.tolist()),
                        labelled(catalogue.embeddings, catalogue.labels.tolist()),
                        k=_K,
                        rng=rng,
                        skip=_SKIP,
                    )
                )
                if draw == 0:
                    gains = tar_gains(catalogue, cohort)
            turned_down = sum(not fit.fits(_ALPHA) for fit in fits)
            interval = wilson_interval(turned_down, len(fits))
            rows.append(
                {
                    "cohort": cohort_name,
                    "catalogue": catalogue_name,
                    "draws": len(fits),
                    "turned_down": turned_down / len(fits),
                    "turned_down_interval": [interval.low, interval.high],
                    "crowding": float(np.median([fit.crowding for fit in fits])),
                    "agreement": float(np.median([fit.agreement for fit in fits])),
                    "tar_gain": dict(zip(map(str, _FARS), gains, strict=True)),
                }
            )
    if options.json:
        print(json.dumps({"options": vars(options), "rows": rows}))
        return
    print(f"turned down at alpha {_ALPHA} (95 % interval), medians over the draws; TAR gains of the first draw")
    columns = f"{'turned down':>22}{'crowding':>10}{'agreement':>11}{'TAR 1e-2':>10}{'TAR 1e-3':>10}"
    print(f"{'cohort':8}{'catalogue':10}{columns}")
    for row in rows:
        low, high = row["turned_down_interval"]  # type: ignore[misc]
        down = f"{row['turned_down']:.3f} ({low:.3f} to {high:.3f})"
        cells = f"{down:>22}{row['crowding']:10.3f}{row['agreement']:11.2f}"
        cells += "".join(f"{gain:+10.3f}" for gain in row["tar_gain"].values())  # type: ignore[attr-defined]
        print(f"{row['cohort']:8}{row['catalogue']:10}{cells}")


if __name__ == "__main__":
    main()
