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
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.pairs.vectors import LabelledVectors, VectorsOrPair, as_labelled, check_one_set
from retrieval.consistency.thresholds.reaching import Wanted, find_threshold
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

    def _evidence(self) -> str:
        return (
            f"(from {self.n_classes} classes{self._drawn()}{', strict' if self.strict else ''}); there TAR is "
            f"{self.tar:.4g} and FAR {self.far:.4g} on the calibration pairs"
        )

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

    vectors: see `labelled`, or a tuple (embeddings, labels). Each class has a smallest threshold at which its FAR is at
    most alpha (for FRR a largest). The ceil((n + 1)(1 - delta))-th smallest of these n (for FRR largest) holds for a
    new class: it is the first threshold at which that many classes keep alpha. Classes with one image have a FAR, but
    no FRR. strict needs a new class of at most as many images as the largest here.

    max_images: of a class with more images, so many are drawn at random with the seed, and the others are not used.
    With strict one large class decides alone: a new class as large as it would fill a large share of the pairs of the
    small ones. The promise is then about a new class of at most max_images images, or as many drawn from it.

    Cost: some four passes over the pairs; memory bounded, see `reach`.

    Raises:
        InvalidInput: alpha or delta outside (0, 1), another rate, max_images below 2, two sets of images or excluded
            pairs.
        NotEnoughEvidence: fewer than 1 / delta - 1 classes, or too many of them cannot keep alpha.

    Source: split conformal prediction, Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005).

    >>> rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]  # four classes, one image of b equals that of a
    >>> labels = ["a", "b", "c", "d", "b"]  # at thresholds between 0 and 1, a has FAR 1/4, b 1/6, c and d none
    >>> certified = [certify((rows, labels), alpha=alpha, delta=0.2, strict=False) for alpha in (0.25, 0.2)]
    >>> [0 < found.threshold < 1 for found in certified], round(certified[0].far, 3)  # 1 of 9 pairs
    ([True, False], 0.111)
    """
    _check(rate, alpha=alpha, delta=delta)
    vectors = as_labelled(vectors)
    check_one_set(vectors, all_pairs=True)
    vectors = _drawn_from(vectors, max_images, seed)
    n = _n_classes(vectors, rate)
    rank = _rank(n, delta)

    def n_keeping(curves: OperatingCurves) -> Rates:
        return np.asarray((_rates(curves, rate, strict) <= alpha).sum(axis=0), dtype=np.float64)

    found = _find(vectors, n_keeping, rate, rank)
    if found is None:
        raise NotEnoughEvidence(
            f"at no threshold do {rank} of {n} classes keep {rate.upper()} <= {alpha:g}"
            + _why(vectors, lambda sizes: np.count_nonzero(_least_rates(sizes) <= alpha) >= rank, alpha)
        )
    strict = strict and rate == "far"
    return Certificate(
        **_at(found), rate=rate, alpha=alpha, delta=delta, strict=strict, n_classes=n, max_images=max_images, seed=seed
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
    Cost, sizes, max_images and seed as `certify`; max_images of the smallest class makes the sizes equal.

    Raises:
        InvalidInput: alpha outside (0, 1), another rate, max_images below 2, two sets of images or excluded pairs.
        NotEnoughEvidence: fewer than 1 / alpha - 1 classes (strict: 1 / alpha; for unequal sizes 2 / alpha - 1), or
            none keeps alpha.

    Source: Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control" (arXiv 2208.02814, 2022; ICLR 2024),
    with bound B = 1; strict in the manner of its extension to U-statistics.
    """
    _check(rate, alpha=alpha)
    vectors = as_labelled(vectors)
    check_one_set(vectors, all_pairs=True)
    vectors = _drawn_from(vectors, max_images, seed)
    n, strict = _n_classes(vectors, rate), strict and rate == "far"
    equal = strict and bool((vectors.n_images == vectors.n_images[0]).all())

    def kept(curves: OperatingCurves) -> Rates:
        if equal:
            return -curves.mean_far
        return np.asarray(-(_rates(curves, rate, strict).sum(axis=0) + 1) / (n + 1), dtype=np.float64)

    needed = math.ceil(1 / alpha - 1e-9) if equal else math.ceil((2 if strict else 1) / alpha - 1 - 1e-9)
    # A mean of exactly alpha may come out a rounding error above it.
    level = -(highest_mean_far(alpha, n) if equal else alpha) * (1 + 1e-12)
    found = None if n < needed else _find(vectors, kept, rate, level)
    if found is None and n < needed:
        raise NotEnoughEvidence(
            f"a mean {rate.upper()} of {alpha:g} is certified by at least {needed} classes, found {n}; add classes or "
            "raise alpha"
        )
    if found is None:
        raise NotEnoughEvidence(
            f"at no threshold is a mean {rate.upper()} of {alpha:g} certified by {n} classes"
            + _why(vectors, lambda sizes: _least_rates(sizes).sum() + 1 <= alpha * (n + 1), alpha)
        )
    return MeanCertificate(
        **_at(found), rate=rate, alpha=alpha, strict=strict, n_classes=n, max_images=max_images, seed=seed
    )


@checked
def highest_mean_far(alpha: float, n_classes: int) -> float:
    """Return the highest mean FAR of n calibration classes of equal size that certifies a mean of alpha; below 0: none.

    Let b be this FAR, and L_ij(t), which falls with t, the FAR of two of n + 1 exchangeable classes. Leave out each
    class k in turn: t_k is the lowest threshold at which the mean of L over the pairs of the others is at most b. The
    expected FAR of the new class is the expectation of the sum over i < j of L_ij(t_i) + L_ij(t_j), over n (n + 1).
    That sum is at most the optimum of a linear program in the steps of the L_ij, with one constraint for each t_k. For
    k = 1, 2, ... its dual has the solution (1 + 1 / k, then k times 1 / k) over the ascending t_k, which bounds it by

        b n (n - 1) (1 + 1 / (2 k)) + n + (k + 1) (k + 2) / 6

    and the solution (2), which counts all pairs with the new class, bounds it by b n (n - 1) + 2 n. The best of these
    was the optimum where the program was solved (n up to 60), so there no higher FAR holds for all scores.

    Raises:
        InvalidInput: alpha outside (0, 1), or fewer than two classes.

    >>> round(highest_mean_far(0.05, 60), 4), round((61 * 0.05 - 2) / 59, 4)  # the second: all pairs with the new class
    (0.0298, 0.0178)
    """
    if not 0 < alpha < 1 or n_classes < 2:
        raise InvalidInput(f"expected alpha in (0, 1) and at least 2 classes, found {alpha} and {n_classes}")
    n, k = n_classes, np.arange(1, n_classes + 1)
    most = (n + 1) * alpha
    stepwise = (most - 1 - (k + 1) * (k + 2) / (6 * n)) / ((n - 1) * (1 + 1 / (2 * k)))
    return float(max(stepwise.max(), (most - 2) / (n - 1)))


def least_kept(curves: OperatingCurves, *, alpha: float, delta: float, strict: bool) -> tuple[Rates, int]:
    """Return how many classes keep a FAR of alpha at each threshold, [m], and how many must. Raises as `certify`."""
    _check("far", alpha=alpha, delta=delta)
    rank = _rank(len(curves.classes), delta)
    return np.asarray((_rates(curves, "far", strict) <= alpha).sum(axis=0), dtype=np.float64), rank


def _rank(n: int, delta: float) -> int:
    """Return how many of n classes must keep the rate."""
    # Products such as 20 * (1 - 0.05) may round just above a whole number.
    rank = math.ceil((n + 1) * (1 - delta) - 1e-9)
    if rank > n:
        raise NotEnoughEvidence(
            f"a certificate with delta {delta:g} needs at least {math.ceil(1 / delta - 1 - 1e-9)} classes, found {n}; "
            "add classes or raise delta"
        )
    return rank


def _drawn_from(vectors: LabelledVectors, max_images: int | None, seed: int) -> LabelledVectors:
    """Return the vectors with at most max_images of each class, drawn with the seed whatever the order of the rows."""
    if max_images is None:
        return vectors
    if max_images < 2 or seed < 0:
        raise InvalidInput(f"expected max_images of at least 2 and a seed of at least 0, found {max_images} and {seed}")
    rng = np.random.default_rng(seed)
    starts = np.cumsum(vectors.n_images) - vectors.n_images
    rows = [
        start + (np.sort(rng.permutation(size)[:max_images]) if size > max_images else np.arange(size))
        for start, size in zip(starts.tolist(), vectors.n_images.tolist(), strict=True)
    ]
    return vectors.subset(np.concatenate(rows).astype(np.int64))


def _least_rates(n_images: NDArray[np.int64]) -> Rates:
    """Return the strict FAR of each class if nothing is accepted: the share of its pairs with the new class, [T]."""
    largest = n_images.max()
    return np.asarray(largest / (n_images.sum() - n_images + largest), dtype=np.float64)


def _why(vectors: LabelledVectors, possible: Callable[[NDArray[np.int64]], bool | np.bool_], alpha: float) -> str:
    """Return why strict is refused: the class that decides and the cap that helps, or how many classes are needed."""
    sizes = vectors.n_images
    caps = [cap for cap in np.unique(sizes[sizes >= 2]).tolist() if possible(np.minimum(sizes, cap))]
    if not caps:
        return f": with strict, that takes about {1 / alpha:.0f} classes or more; add classes, raise alpha or delta"
    largest = int(sizes.argmax())
    return (
        f": with strict, a new class may be as large as the largest, {vectors.classes[largest]!r} with "
        f"{sizes[largest]} of {sizes.sum()} images, and its pairs all count as false accepts; use at most {max(caps)} "
        f"images a class (max_images={max(caps)}; fewer leave more room), or strict=False"
    )


def _find(
    vectors: LabelledVectors, achieved: Callable[[OperatingCurves], Rates], rate: Rate, level: float
) -> OperatingCurves | None:
    """Return the curves at the certified threshold."""
    wanted = Wanted(achieved, "lowest" if rate == "far" else "highest", level)
    threshold = find_threshold(vectors, wanted)
    return None if threshold is None else count_accepted(vectors, np.array([threshold]))


def _at(found: OperatingCurves) -> dict[str, float]:
    """Return the certified threshold and its pooled rates."""
    threshold, far, tar = found.thresholds[0], found.pooled_far[0], found.pooled_tar[0]
    return {"threshold": float(threshold), "far": float(far), "tar": float(tar)}


def _rates(curves: OperatingCurves, rate: Rate, strict: bool) -> Rates:
    """Return the rate of each class that counts: [n, m]."""
    if rate == "frr":
        rows = curves.with_positives  # from counts: 1 - TAR would miss alpha by a rounding error
        positives = curves.positives[rows, None]
        return np.asarray((positives - curves.positives_accepted[rows]) / positives, dtype=np.float64)
    if not strict:
        return curves.far
    of_new = (curves.n_images * curves.n_images.max())[:, None]
    return np.asarray((curves.negatives_accepted + of_new) / (curves.negatives[:, None] + of_new), dtype=np.float64)


def _n_classes(vectors: LabelledVectors, rate: Rate) -> int:
    return len(vectors.classes) if rate == "far" else int(np.count_nonzero(vectors.n_images > 1))


def _check(rate: Rate, **levels: float) -> None:
    if rate not in {"far", "frr"}:
        raise InvalidInput(f"rate must be 'far' or 'frr', found {rate!r}")
    if not all(0 < level < 1 for level in levels.values()):
        raise InvalidInput(f"{' and '.join(levels)} must lie strictly between 0 and 1, found {[*levels.values()]}")
