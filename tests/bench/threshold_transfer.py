"""What FAR and TAR does a threshold have in another domain, by how it was carried over and how much is labelled there?

Source: emoji, calibration classes, embedded by the model that was trained on other emoji. Targets: new emoji, no shift;
brand logos, food photographs, Fashion-MNIST (ten classes), all embedded by the same model. The classes of a target are
split in halves at random: one half is the images at hand, k of its classes labelled; on the other the FAR and TAR are
measured.

    source threshold      kept as it is
    aligned scores        moved and scaled as the 50 % and 10 % levels of all pairs are
    all pairs = target    the score that a share of all unlabelled pairs equal to the target reaches
    transfer, k = 0       measuring/transfer.py without labels
    classes alone         pairs among the images of the k labelled classes
    classes against all   pairs of those images with all others at hand
    transfer              measuring/transfer.py with k labelled classes

The stated prevalence is wrong by up to a factor of 1.5 and given as an interval of a factor of 2 either way; the stated
TAR is the source's, plus and minus 1.1 in its logit.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from retrieval.consistency import Interval
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.domains import domain
from tests.bench.measuring.emoji import Embedded, emoji
from tests.bench.measuring.transfer import DomainPrior, transfer_threshold

Scores = NDArray[np.float32]
_N_LABELLED = (2, 5, 10, 20)
_TARGETS = (1e-2, 1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Ascending scores of unordered pairs."""

    positives: Scores
    negatives: Scores

    @classmethod
    def of(cls, images: Embedded) -> Pairs:
        first, second = np.triu_indices(len(images.labels), k=1)
        scores = (images.embeddings @ images.embeddings.T)[first, second]
        matches = images.labels[first] == images.labels[second]
        return cls(np.sort(scores[matches]), np.sort(scores[~matches]))

    @property
    def prevalence(self) -> float:
        return len(self.positives) / (len(self.positives) + len(self.negatives))

    def threshold(self, far: float) -> float:
        return _quantile(self.negatives, far)

    def rates(self, threshold: float) -> tuple[float, float]:
        return tuple(  # type: ignore[return-value]
            1 - np.searchsorted(scores, np.float32(threshold)) / len(scores)
            for scores in (self.negatives, self.positives)
        )


def _quantile(scores: Scores, share: float) -> float:
    """The lowest threshold that at most a share of the ascending scores reaches."""
    return float(np.nextafter(scores[len(scores) - 1 - math.floor(share * len(scores))], np.float32(np.inf)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One threshold in one split: rates on the other classes, and whether its interval held the domain's threshold."""

    domain: str
    target_far: float
    method: str
    n_labelled: int
    far: float | None = None
    tar: float | None = None
    covered: bool | None = None


def outcomes(name: str, images: Embedded, source: Pairs, options: argparse.Namespace) -> Iterator[Outcome]:
    whole = Pairs.of(images)
    classes = np.unique(images.labels)
    for split in range(options.splits):
        rng = np.random.default_rng([options.seed, split])
        order = rng.permutation(classes)
        here, elsewhere = (images.of_classes(part) for part in np.array_split(order, 2))
        held_out = Pairs.of(elsewhere)
        for target in _TARGETS:
            true = whole.threshold(target)
            for method, k, threshold, interval in thresholds_of(here, order, source, target, rng):
                if threshold is None:
                    yield Outcome(name, target, method, k)
                    continue
                covered = None if interval is None else true in interval
                yield Outcome(name, target, method, k, *map(float, held_out.rates(threshold)), covered)


def thresholds_of(
    here: Embedded, order: NDArray[np.str_], source: Pairs, target: float, rng: np.random.Generator
) -> Iterator[tuple[str, int, float | None, Interval | None]]:
    pool = Pairs.of(here)
    every = np.sort(np.concatenate([pool.positives, pool.negatives]))
    at_source = source.threshold(target)
    yield "source threshold", 0, at_source, None
    low, high = (source.threshold(level) for level in (0.5, 0.1))
    moved_low, moved_high = (_quantile(every, level) for level in (0.5, 0.1))
    yield "aligned scores", 0, moved_low + (at_source - low) * (moved_high - moved_low) / (high - low), None
    yield "all pairs = target", 0, _quantile(every, target), None
    centre = pool.prevalence * math.exp(rng.uniform(-1, 1) * math.log(1.5))
    stated = Interval(centre / 2, min(centre * 2, 0.99))
    tar_logit = float(logit(source.rates(at_source)[1]))
    tar = Interval(float(expit(tar_logit - 1.1)), float(expit(tar_logit + 1.1)))
    yield "transfer", 0, *_transferred(here, set(), target, stated, tar)
    n_here = len(np.unique(here.labels))
    for k in (k for k in _N_LABELLED if k <= n_here):
        labelled = here.of_classes(order[:k])
        alone = Pairs.of(labelled).negatives
        # A quantile of fewer than ten false accepts is refused by the library as well.
        yield "classes alone", k, _quantile(alone, target) if target * len(alone) >= 10 else None, None
        others = here.embeddings[~np.isin(here.labels, order[:k])]
        against = np.concatenate([(labelled.embeddings @ others.T).ravel(), alone])
        yield (
            "classes against all",
            k,
            _quantile(np.sort(against), target) if target * len(against) >= 10 else None,
            None,
        )
        yield "transfer", k, *_transferred(here, set(order[:k].tolist()), target, stated, tar)


def _transferred(
    here: Embedded, labelled: set[str], target: float, prevalence: Interval, tar: Interval
) -> tuple[float | None, Interval | None]:
    labels = [label if label in labelled else None for label in here.labels.tolist()]
    try:
        found = transfer_threshold(
            here.embeddings, labels, prior=DomainPrior(prevalence=prevalence, tar=tar), target_far=target
        )
    except NotEnoughEvidence:
        return None, None
    return found.threshold, found.interval


def summary(found: list[Outcome]) -> dict[str, float | int]:
    """Over splits: how often refused; FAR's median and 10 to 90 % range; share within a factor 2; TAR; coverage."""
    kept = [one for one in found if one.far is not None]
    result: dict[str, float | int] = {"splits": len(found), "refused": len(found) - len(kept)}
    if kept:
        fars = np.array([one.far for one in kept])
        low, middle, high = np.quantile(fars, [0.1, 0.5, 0.9])
        within = np.abs(np.log(np.maximum(fars, 1e-9) / kept[0].target_far)) <= math.log(2)
        result |= {"far": float(middle), "far_10": float(low), "far_90": float(high), "within_2": float(within.mean())}
        result["tar"] = float(np.median([one.tar for one in kept]))
        if kept[0].covered is not None:
            result["covered"] = float(np.mean([one.covered for one in kept]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 splits of logos: shows that it runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=int, help="halvings of the classes (default 40)")
    options = parser.parse_args()
    options.splits = options.splits or (3 if options.quick else 40)
    parts = emoji("base+tcm")
    source = Pairs.of(parts["calibration"])
    names = ["logos"] if options.quick else ["new emoji", "logos", "photos", "fashion"]
    results = []
    for name in names:
        images = parts["audit"] if name == "new emoji" else domain(name)
        by_case: defaultdict[tuple[float, int, str], list[Outcome]] = defaultdict(list)
        for one in outcomes(name, images, source, options):
            by_case[one.target_far, one.n_labelled, one.method].append(one)
        whole = Pairs.of(images)
        head = f"{name}: {len(images.labels)} images, {len(np.unique(images.labels))} classes"
        head += f", matches {whole.prevalence:.2%} of pairs"
        results += [{"case": asdict(runs[0]), **summary(runs)} for runs in by_case.values()]
        if not options.json:
            show(head, by_case)
    if options.json:
        print(json.dumps({"options": vars(options), "results": results}))


def show(head: str, by_case: dict[tuple[float, int, str], list[Outcome]]) -> None:
    columns = f"{'refused':>9}{'FAR, median (10 to 90 % of splits)':>38}{'in x2':>7}{'TAR':>7}{'covered':>9}"
    print(f"\n{head}\n{'target   k  method':33}{columns}")
    for (target, k, method), found in sorted(by_case.items(), key=lambda case: (-case[0][0], case[0][1])):
        line = summary(found)
        row = f"{target:<7g}{k:3}  {method:21}{line['refused']:6}/{line['splits']}"
        if "far" in line:
            far = f"{line['far']:.2e} ({line['far_10']:.1e} to {line['far_90']:.1e})"
            row += f"{far:>38}{line['within_2']:7.2f}{line['tar']:7.3f}"
            row += f"{line['covered']:9.2f}" if "covered" in line else ""
        print(row)


if __name__ == "__main__":
    main()
