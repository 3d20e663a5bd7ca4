"""What strict certificates leave: how high the FAR of calibration classes may be, given their sizes alone.

`strict` counts all pairs with a new class, as large as the largest, as false accepts. So one large class takes the room
of all others. A cap on the images of each class gives it back; this module finds the cap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import Rates
from retrieval.consistency.pairs.sizes import PairSizes
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors
from retrieval.errors import InvalidInput

_NEARLY = 0.9  # of the most room: a cap that leaves so much is good enough, and a higher one keeps more images
_MUCH = 2.0  # times as much room with a cap: worth a sentence


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What is drawn: n classes, or the families that n_classes classes come in."""

    numbers: Codes  # [n_classes], the unit of each class that counts
    n_images: NDArray[np.int64]  # [n_classes]
    named: bool  # whether families are given
    sizes: PairSizes  # of the classes that count
    in_rounds: bool = False  # whether an image is a query in some rounds and a gallery item in others

    @classmethod
    def of(cls, vectors: LabelledVectors, *, with_positives: bool = False) -> Units:
        """Return the units of the classes, or of those with a positive pair."""
        counts = vectors.positives > 0 if with_positives else np.ones(len(vectors.classes), dtype=np.bool_)
        every, families = vectors.sizes, vectors.families
        units = np.arange(len(counts)) if families is None else families
        return cls(
            numbers=np.unique(units[counts], return_inverse=True)[1].astype(np.int64),
            n_images=vectors.n_images[counts],
            named=families is not None,
            sizes=PairSizes(every.queries[counts], every.items[counts], every.factor),
            in_rounds=bool(vectors.rounds),
        )

    @classmethod
    def of_sizes(cls, n_images: NDArray[np.int64]) -> Units:
        """Return the units if every class of one set of images, of these sizes, is drawn by itself."""
        n = n_images.astype(np.float64)
        return cls(np.arange(len(n)), n_images, named=False, sizes=PairSizes(n, n, 0.5))

    @property
    def n(self) -> int:
        """Number of units."""
        return int(self.numbers.max(initial=-1)) + 1

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.numbers)

    @property
    def noun(self) -> str:
        """What the units are."""
        return "families" if self.named else "classes"

    @property
    def totals(self) -> NDArray[np.int64]:
        """Images of each unit: [n] int64."""
        return np.bincount(self.numbers, self.n_images).astype(np.int64)

    @property
    def largest(self) -> int:
        """Images of the largest unit."""
        return int(self.totals.max())

    @property
    def pairs_with_new(self) -> Rates:
        """Pairs of each class with a new unit as large as the largest: [n_classes] float64."""
        of_units = (np.bincount(self.numbers, side) for side in (self.sizes.queries, self.sizes.items))
        queries, items = (float(side.max()) for side in of_units)
        return self.sizes.with_new(queries, items)

    @property
    def equal(self) -> bool:
        """Whether the units are classes of one size."""
        sides = self.sizes.queries, self.sizes.items
        return self.n == self.n_classes and all(bool((side == side[0]).all()) for side in sides)

    @property
    def shares(self) -> Rates:
        """What each class counts: 1 over the classes of its unit, [n_classes] float64."""
        return np.asarray(1 / np.bincount(self.numbers)[self.numbers], dtype=np.float64)

    def sum_of_means(self, values: NDArray[np.bool_] | Rates) -> Rates:
        """Return the sum over the units of the means of their classes: values [n_classes, m] -> [m] float64."""
        return np.asarray(self.shares @ values if self.named else values.sum(axis=0), dtype=np.float64)

    def capped(self, max_images: int) -> Units:
        """Return the units of one set of images with at most max_images of each class."""
        kept = np.minimum(self.n_images, max_images)
        n = kept.astype(np.float64)
        return Units(self.numbers, kept, self.named, PairSizes(n, n, 0.5))


@dataclass(frozen=True, slots=True)
class ShareRoom:
    """How high the FAR of the classes that must keep alpha may be for `certify`; below 0 there is no certificate."""

    alpha: float
    level: float  # how many must

    def needed(self, units: Units) -> int:
        """Return with how many units of equal size some room is left."""
        return math.floor(1 / self.alpha + 1e-9)

    def __call__(self, units: Units) -> float:
        """Return the highest FAR that the last of them may have."""
        least = _least_rates(units)
        order = np.argsort(least, kind="stable")
        held = np.cumsum(units.shares[order])
        last = order[min(int(np.searchsorted(held, self.level - 1e-9)), units.n_classes - 1)]
        return float((self.alpha - least[last]) / (1 - least[last]))


@dataclass(frozen=True, slots=True)
class MeanRoom:
    """How high the mean FAR may be for `certify_mean`; below 0 there is no certificate."""

    alpha: float

    def needed(self, units: Units) -> int:
        """Return with how many units of equal size some room is left; families count all pairs with a new one."""
        return math.floor((2 if units.named else 1) / self.alpha + 1e-9)

    def __call__(self, units: Units) -> float:
        """Return the mean over the units of the FAR."""
        if units.equal:
            return highest_mean_far(self.alpha, units.n)
        least = _least_rates(units)
        taken = float(units.shares @ least)
        return (self.alpha * (units.n + 1) - 1 - taken) / (units.n - taken)  # a FAR of 1 takes 1 - least more


Room: TypeAlias = ShareRoom | MeanRoom


def _least_rates(units: Units) -> Rates:
    """Return the strict FAR of each class if nothing is accepted: the share of its pairs with the new unit."""
    negatives, of_new = units.sizes.weighted(np.ones(units.n_classes)), units.pairs_with_new
    return np.asarray(of_new / (negatives + of_new), dtype=np.float64)


def best_cap(units: Units, room: Room) -> int | None:
    """Return the highest cap on the images of a class that leaves nearly the most room; None if none leaves any.

    In rounds None: a cap changes what is split into queries and gallery, so it is applied before.
    """
    if units.in_rounds:
        return None
    caps = np.unique(units.n_images[units.n_images >= 2])[::-1]
    rooms = [room(units.capped(int(cap))) for cap in caps]
    most = max(rooms, default=0.0)
    if most <= 0:
        return None
    return next(int(cap) for cap, left in zip(caps, rooms, strict=True) if left >= _NEARLY * most)


def why_refused(vectors: LabelledVectors, room: Room) -> str:
    """Return why strict is refused: the class that decides and the cap that helps, or how many classes it takes."""
    units = Units.of(vectors)
    cap = best_cap(units, room)
    if cap is None and units.n < (needed := room.needed(units)):
        enough = f"about {needed} {units.noun} of equal size or more"
        return f": with strict, that takes {enough}; add {units.noun} or raise alpha"
    if cap is None:
        largest = int(units.totals.argmax())
        return (
            f": with strict, a new one may be as large as the largest of the {units.noun}, that of class "
            f"{vectors.classes[int((units.numbers == largest).argmax())]!r} with {units.largest} of "
            f"{units.n_images.sum()} images, and its pairs all count as false accepts; add {units.noun}, or use "
            "strict=False"
        )
    fewer = "; fewer leave more room" if cap > 2 else ""
    return (
        f": with strict, a new class may be as large as the largest, {_largest(vectors)}, and its pairs all count as "
        f"false accepts; use at most {cap} images a class (max_images={cap}{fewer}), or strict=False"
    )


def advice(vectors: LabelledVectors, room: Room) -> str:
    """Return a sentence if a cap leaves at least twice the room, or ""."""
    units = Units.of(vectors)
    cap = best_cap(units, room)
    if cap is None or room(units.capped(cap)) < _MUCH * max(now := room(units), 0.0):
        return ""
    return (
        f"it allows the calibration classes a FAR of {now:.2g} only, because a new class may be as large as the "
        f"largest, {_largest(vectors)}; at most {cap} images a class (max_images={cap}) allow "
        f"{room(units.capped(cap)):.2g}"
    )


def _largest(vectors: LabelledVectors) -> str:
    sizes = vectors.n_images
    largest = int(sizes.argmax())
    return f"{vectors.classes[largest]!r} with {sizes[largest]} of {sizes.sum()} images"


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
