"""Certify a threshold that bounds an error rate of an unseen class, for scores of any distribution.

There are two promises: the rate is at most alpha *with a stated probability* (`certify`), or *on average*
(`certify_mean`). Both hold over the draw of all classes, calibration classes included.

The promises need exchangeable rates. FRR of a class depends on its own pairs only, so exchangeable classes have
exchangeable FRRs. FAR of a calibration class is over pairs with the *other calibration classes*, but the new class
meets all of them. The textbook rule ignores this; its error is a share of about 1 / n of each FAR, and breaks a promise
of 0.9 by half a percent in simulations (`tests/bench/promises_kept.py`). `strict`, the default, closes the gap: it
counts every pair of a calibration class with the new one as a false accept. So the true FARs, which are exchangeable,
are never above the ones used, and the promise holds exactly, for any n, for the FAR of the new class over pairs with
the calibration classes. Among *other new* classes the FAR has the same mean but another spread; no rule here promises
that exactly.

If classes are drawn together in families (`labelled(..., families=...)`), the families must be exchangeable, and the
new class comes with a new family. Every family then counts once: a class of a family of m counts 1 / m (Lee, Barber,
Willett, "Distribution-free inference with hierarchical data", arXiv 2306.06342, 2023), and `strict` counts the pairs
with a whole new family. `room` computes what the sizes of the classes leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.pairs.vectors import LabelledVectors, VectorsOrPair, as_labelled, check_one_population
from retrieval.consistency.thresholds.reaching import Achieved, Wanted, find_threshold
from retrieval.consistency.thresholds.room import MeanRoom, ShareRoom, Units, advice, highest_mean_far, why_refused
from retrieval.errors import InvalidInput, NotEnoughEvidence

Rate: TypeAlias = Literal["far", "frr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certified:
    """What the two certificates share."""

    threshold: float
    rate: Rate
    alpha: float
    strict: bool  # see the module
    n_classes: int  # calibration classes used
    far: float  # pooled rates on the calibration pairs
    tar: float
    max_images: int | None = None  # of larger classes, so many images were drawn with the seed; None: all were used
    seed: int = 0
    n_families: int | None = None  # that were drawn, if they were named

    def _evidence(self) -> str:
        return (
            f"(from {self.n_classes} classes{self._families()}{self._drawn()}{', strict' if self.strict else ''}); "
            f"there TAR is {self.tar:.4g} and FAR {self.far:.4g} on the calibration pairs"
        )

    def _families(self) -> str:
        return "" if self.n_families is None else f" in {self.n_families} families"

    def _drawn(self) -> str:
        if self.max_images is None:
            return ""
        return f", at most {self.max_images} images of each drawn with seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(_Certified):
    """At `threshold`, a new class has a rate (FAR or FRR) of at most alpha with probability at least 1 - delta."""

    delta: float

    def __str__(self) -> str:
        return (
            f"at threshold {self.threshold:.4f} a new class has {self.rate.upper()} <= {self.alpha:g} with probability "
            f">= {1 - self.delta:g} {self._evidence()}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanCertificate(_Certified):
    """At `threshold`, the rate (FAR or FRR) of a new class is expected to be at most alpha."""

    def __str__(self) -> str:
        return (
            f"at threshold {self.threshold:.4f} the {self.rate.upper()} of a new class is <= {self.alpha:g} on average "
            f"{self._evidence()}"
        )


@checked
def certify(
    vectors: VectorsOrPair,
    *,
    alpha: float,
    delta: float,
    rate: Rate = "far",
    strict: bool = True,
    max_images: int | None = None,
    seed: int = 0,
) -> Certificate:
    """Return the lowest threshold with the certificate (for FRR the highest), exact to the float32 score.

    vectors: see `labelled` and `in_rounds`, or a tuple (embeddings, labels). Each class has a smallest threshold at
    which its FAR is at most alpha (for FRR a largest). The ceil((n + 1)(1 - delta))-th smallest of these n (for FRR
    largest) holds for a new class: it is the first threshold at which that many classes keep alpha. Classes with one
    image have a FAR, but no FRR. strict needs a new class of at most as many images as the largest here.

    max_images: of a class with more images, so many are drawn at random with the seed, and the others are not used.
    With strict one large class decides alone: a new class as large as it would fill a large share of the pairs of the
    small ones. The promise is then about a new class of at most max_images images, or as many drawn from it.

    Cost: some four passes over the pairs; memory bounded, see `reach`.

    Raises:
        InvalidInput: alpha or delta outside (0, 1), another rate, max_images below 2, two sets of images or excluded
            pairs.
        NotEnoughEvidence: fewer than 1 / delta - 1 classes (or families), or too many of them cannot keep alpha.

    Source: split conformal prediction, Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005).

    >>> rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]  # four classes, one image of b equals that of a
    >>> labels = ["a", "b", "c", "d", "b"]  # at thresholds between 0 and 1, a has FAR 1/4, b 1/6, c and d none
    >>> certified = [certify((rows, labels), alpha=alpha, delta=0.2, strict=False) for alpha in (0.25, 0.2)]
    >>> [0 < found.threshold < 1 for found in certified], round(certified[0].far, 3)  # 1 of 9 pairs
    ([True, False], 0.111)
    """
    _check(rate, alpha=alpha, delta=delta)
    vectors = as_labelled(vectors)
    check_one_population(vectors)
    _check_pairs(vectors, rate)
    vectors = _drawn_from(vectors, max_images, seed)
    units = Units.of(vectors, with_positives=rate == "frr")
    strict = strict and rate == "far"
    level = _level(units, delta)

    def kept(curves: OperatingCurves) -> Rates:
        return units.sum_of_means(_rates(curves, rate, units.pairs_with_new if strict else None) <= alpha)

    found = _find(vectors, kept, rate, level)
    if found is None:
        raise NotEnoughEvidence(
            f"at no threshold do {_many(units, level)} keep {rate.upper()} <= {alpha:g}"
            + (why_refused(vectors, ShareRoom(alpha, level)) if strict else "")
        )
    return Certificate(
        **_at(found, units), rate=rate, alpha=alpha, delta=delta, strict=strict, max_images=max_images, seed=seed
    )


@checked
def certify_mean(
    vectors: VectorsOrPair,
    *,
    alpha: float,
    rate: Rate = "far",
    strict: bool = True,
    max_images: int | None = None,
    seed: int = 0,
) -> MeanCertificate:
    """Return the lowest threshold (for FRR the highest) at which (n * mean rate + 1) / (n + 1) is at most alpha.

    The 1 is the highest possible rate of the new class. With strict, classes of equal size need
    mean FAR <= `highest_mean_far`, which is the most that holds for scores of any distribution. For unequal sizes every
    pair with the new class counts as a false accept, which is stricter: up to several times where alpha is near 2 / n.
    Cost, sizes, max_images and seed as `certify`. max_images of the smallest class makes the sizes equal, see
    `cap_advice`. If families are named, the mean over the classes of each takes the place of the rate of a class.

    Raises:
        InvalidInput: alpha outside (0, 1), another rate, max_images below 2, two sets of images or excluded pairs.
        NotEnoughEvidence: fewer than 1 / alpha - 1 classes (strict: 1 / alpha; for unequal sizes 2 / alpha - 1), or
            none keeps alpha.

    Source: Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control" (arXiv 2208.02814, 2022; ICLR 2024),
    with bound B = 1; strict in the manner of its extension to U-statistics.
    """
    _check(rate, alpha=alpha)
    vectors = as_labelled(vectors)
    check_one_population(vectors)
    _check_pairs(vectors, rate)
    vectors = _drawn_from(vectors, max_images, seed)
    units = Units.of(vectors, with_positives=rate == "frr")
    strict = strict and rate == "far"
    n, equal = units.n, strict and units.equal

    def kept(curves: OperatingCurves) -> Rates:
        if equal:
            return -curves.mean_far
        return -(units.sum_of_means(_rates(curves, rate, units.pairs_with_new if strict else None)) + 1) / (n + 1)

    needed = math.ceil(1 / alpha - 1e-9) if equal else math.ceil((2 if strict else 1) / alpha - 1 - 1e-9)
    if n < needed and (equal or not (strict and units.named)):  # large families share their pairs: they need fewer
        raise NotEnoughEvidence(
            f"a mean {rate.upper()} of {alpha:g} is certified by at least {needed} {units.noun}, found {n}; add "
            f"{units.noun} or raise alpha"
        )
    # A mean of exactly alpha may come out a rounding error above it.
    level = -(highest_mean_far(alpha, n) if equal else alpha) * (1 + 1e-12)
    found = _find(vectors, kept, rate, level)
    if found is None:
        raise NotEnoughEvidence(
            f"at no threshold is a mean {rate.upper()} of {alpha:g} certified by {n} {units.noun}"
            + (why_refused(vectors, MeanRoom(alpha)) if strict else "")
        )
    return MeanCertificate(**_at(found, units), rate=rate, alpha=alpha, strict=strict, max_images=max_images, seed=seed)


@checked
def cap_advice(vectors: LabelledVectors, certificate: Certificate | MeanCertificate) -> str:
    """Return a sentence if a cap on the images of a class would make a strict certificate much less strict, or "".

    vectors: those of the certificate. It looks at the sizes of the classes only, so that the certificate with the cap
    holds as well.
    """
    if not certificate.strict or certificate.max_images is not None:
        return ""
    units = Units.of(vectors)
    if isinstance(certificate, MeanCertificate):
        return advice(vectors, MeanRoom(certificate.alpha))
    return advice(vectors, ShareRoom(certificate.alpha, _level(units, certificate.delta)))


def least_kept(curves: OperatingCurves, *, alpha: float, delta: float, strict: bool) -> tuple[Rates, int, int]:
    """Return how many classes keep a FAR of alpha at each threshold, [m], how many must, and how many could at best.

    Raises as `certify`.
    """
    _check("far", alpha=alpha, delta=delta)
    units = Units.of_sizes(curves.n_images)
    level, of_new = _level(units, delta), units.pairs_with_new if strict else None
    nothing = replace(
        curves.at(float(curves.thresholds[-1])), negatives_accepted=np.zeros((units.n, 1), dtype=np.int64)
    )
    most = units.sum_of_means(_rates(nothing, "far", of_new) <= alpha)
    return units.sum_of_means(_rates(curves, "far", of_new) <= alpha), round(level), round(float(most[0]))


def _level(units: Units, delta: float) -> float:
    """Return the sum over the units, of the share of the classes of each that keep the rate, that must be reached.

    If the units are classes, it is the smallest whole number of them.
    """
    # Products such as 20 * (1 - 0.05) may round just above a whole number.
    level = (units.n + 1) * (1 - delta) - 1e-9
    if level > units.n:
        raise NotEnoughEvidence(
            f"a certificate with delta {delta:g} needs at least {math.ceil(1 / delta - 1 - 1e-9)} {units.noun}, found "
            f"{units.n}; add {units.noun} or raise delta"
        )
    return level if units.named else math.ceil(level)


def _many(units: Units, level: float) -> str:
    if units.named:
        return f"the classes of {units.n} families, each of which counts once, to a share of {level / units.n:.3g}"
    return f"{level:.0f} of {units.n} classes"


def _drawn_from(vectors: LabelledVectors, max_images: int | None, seed: int) -> LabelledVectors:
    """Return the vectors with at most max_images of each class, drawn with the seed, for any order of the rows."""
    if max_images is None:
        return vectors
    if vectors.rounds:
        raise InvalidInput("max_images does not apply to rounds: draw the images before they are split into rounds")
    if max_images < 2 or seed < 0:
        raise InvalidInput(f"expected max_images of at least 2 and a seed of at least 0, found {max_images} and {seed}")
    rng = np.random.default_rng(seed)
    starts = np.cumsum(vectors.n_images) - vectors.n_images
    rows = [
        start + (np.sort(rng.permutation(size)[:max_images]) if size > max_images else np.arange(size))
        for start, size in zip(starts.tolist(), vectors.n_images.tolist(), strict=True)
    ]
    return vectors.subset(np.concatenate(rows).astype(np.int64))


def _find(vectors: LabelledVectors, achieved: Achieved, rate: Rate, level: float) -> OperatingCurves | None:
    """Return the curves at the certified threshold."""
    wanted = Wanted(achieved, "lowest" if rate == "far" else "highest", level)
    threshold = find_threshold(vectors, wanted)
    return None if threshold is None else count_accepted(vectors, np.array([threshold]))


def _at(found: OperatingCurves, units: Units) -> dict[str, Any]:
    """Return the certified threshold, its pooled rates, and how many classes and families there are."""
    threshold, far, tar = found.thresholds[0], found.pooled_far[0], found.pooled_tar[0]
    return {
        "threshold": float(threshold),
        "far": float(far),
        "tar": float(tar),
        "n_classes": units.n_classes,
        "n_families": units.n if units.named else None,
    }


def _rates(curves: OperatingCurves, rate: Rate, of_new: Rates | None) -> Rates:
    """Return the rate of each class that counts: [n, m]; of_new: its pairs with a new unit, all accepted, [n]."""
    if rate == "frr":
        rows = curves.with_positives  # from counts: 1 - TAR would miss alpha by a rounding error
        positives = curves.positives[rows, None]
        return np.asarray((positives - curves.positives_accepted[rows]) / positives, dtype=np.float64)
    if of_new is None:
        return curves.far
    new = of_new[:, None]
    return np.asarray((curves.negatives_accepted + new) / (curves.negatives[:, None] + new), dtype=np.float64)


def _check_pairs(vectors: LabelledVectors, rate: Rate) -> None:
    """Raise NotEnoughEvidence if a FAR has no pairs: in rounds, if no class has a query."""
    if rate == "far" and vectors.n_negatives == 0:
        raise NotEnoughEvidence("no query meets an item of another class; add classes of 2 images or more")


def _check(rate: Rate, **levels: float) -> None:
    if rate not in {"far", "frr"}:
        raise InvalidInput(f"rate must be 'far' or 'frr', found {rate!r}")
    if not all(0 < level < 1 for level in levels.values()):
        raise InvalidInput(f"{' and '.join(levels)} must lie strictly between 0 and 1, found {[*levels.values()]}")
