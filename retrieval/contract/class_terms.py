"""What the labels of a catalogue add to a score: items are pulled towards their class, and each class has an offset.

A query's picture of a class is compared with what all pictures of the class have in common, not with each one alone. A
class whose pictures are much alike accepts more easily than one whose pictures differ; the offset evens this out. Both
depend on the items of one class only, so that a change of one class leaves the vectors of all others as they are.
`score.py` puts the two into the vectors of an index.

Membership. A label may be wrong, so each item counts with the probability that it belongs to its class. Its evidence is
s, the mean similarity to the other items of the class. It is taken as normal, with one variance, around the level L of
the class if the label is right and around `between` if it is wrong; one label in ten is wrong:

    log odds = (L - between) (s - (L + between) / 2) / variance + log 9

If the items of a class are nearly as different as items of different classes are, as under a label such as "unknown",
none of them belongs to it: L is then below `between` + 0.1 (`within` - `between`), and every w is 0. L is the median of
s in the class, known the better the more items there are:

    k = (n - 1) / (n - 1 + 2)        L = k median(s) + (1 - k) within

Pull. With the probabilities w, m is the mean of the class weighted by w, and the item b becomes

    b* = ((1 - a w) b + a w m) / f,  with f the length of the numerator and a the `pull`

Offset. A query of the class has the expected score E = rho / f - 2 w' r(b*), with rho the mean similarity of two items
of the class, weighted by w, r the density and w' its weight. By the same k, with the sum of w for n, it is shrunk to
that of a typical class, whose rho is `within` and whose r is `density`:

    o = offset_weight w (k E + (1 - k) E_typical - E_lone) + (1 - w) o_lone      E_lone = within - 2 w' density

An item without a label, or alone in its class, stays as it is; its w is 0. Its offset o_lone is the difference between
the threshold that it needs and the one that pulled items need, so that one threshold accepts it as often as without
labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit

from retrieval.contract.typical_class import Codes, Rows, TypicalClass, fit_typical_class
from retrieval.errors import InvalidEmbeddings

Values: TypeAlias = NDArray[np.float32]
# The density of rows [n, D], see `score.py`: [n] float32, zeros for the cosine.
Density: TypeAlias = Callable[[Rows], Values]

# The mean score of queries regressed on E has a slope of (n - 1) / (n - 1 + 2), within 0.08, for classes of 2 to 12
# items, on emoji and on icons.
_PRIOR_ITEMS = 2
_LOG_ODDS_OF_RIGHT = np.log(9)
_FAR = 0.5
_LEAST_ALIKE = 0.1
_BLOCK = 16_384  # items at a time: bounds the memory of intermediate arrays
_NO_LENGTH = 1e-6  # a shorter row is the rounding of float32: it has no direction
_NO_WEIGHT = 1e-30
# Pull and offset weight, see docs/consistency.md. A pull of 1 is no better than 0.9, and would make all items of a
# class one vector: then a query could not tell which of them is most like it.
_CANDIDATES = ((0.7, 0.0), (0.7, 0.5), (0.9, 0.0), (0.9, 0.3), (0.9, 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTerms:
    """How far items are pulled to their class, and how much of the score expected in their class is subtracted.

    pull: in [0, 1]; 0 leaves the items as they are, 1 puts the mean of the class in their place. offset_weight: 0 or
    more, factor of the expected score. typical: None if every label counts as right and no offset is subtracted.
    lone_offset: o_lone, 0 or more.
    """

    pull: float
    offset_weight: float = 0.0
    typical: TypicalClass | None = None
    lone_offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.pull <= 1 or not 0 <= self.offset_weight < np.inf:
            raise InvalidEmbeddings(
                f"expected a pull in [0, 1] and an offset weight of at least 0, found {self.pull} and "
                f"{self.offset_weight}"
            )
        if self.offset_weight > 0 and self.typical is None:
            raise InvalidEmbeddings(
                f"expected a typical class with an offset weight of {self.offset_weight}, found none: fit one on "
                "labelled classes"
            )
        if not 0 <= self.lone_offset < np.inf:
            raise InvalidEmbeddings(f"expected a lone offset of at least 0, found {self.lone_offset}")

    @property
    def has_offsets(self) -> bool:
        """Whether items may have an offset."""
        return self.offset_weight > 0 or self.lone_offset > 0


@dataclass(frozen=True, slots=True, eq=False)
class PulledItems:
    """Items after the pull.

    rows: [n, D] float32, unit; densities: [n] float32, of these rows; offsets: [n] float32, subtracted from the score
    of the item; far: [n] bool, items that more likely than not have a wrong label.
    """

    rows: Rows
    densities: Values
    offsets: Values
    far: NDArray[np.bool_]


def pull_items(terms: ClassTerms, rows: Rows, codes: Codes, *, density: Density, weight: float) -> PulledItems:
    """Return the items pulled to their classes; an item without a class, or alone in it, stays as it is.

    rows: [n, D] float32, unit or, without a direction, zeros; codes: [n] int64, the class of each, -1 for none;
    density, weight: of the score. The result of an item depends on the items of its class only; their order changes no
    more than the rounding of sums. An item that the pull would leave without a direction stays as it is.
    Cost: a few passes over the rows and one of `density`; memory: a copy of the rows, and a few of the largest class.

    >>> rows = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    >>> pulled = pull_items(ClassTerms(pull=1.0), rows, np.array([5, 5, -1]), density=lambda x: 0 * x[:, 0], weight=0.5)
    >>> pulled.rows.round(2).tolist()
    [[0.71, 0.71], [0.71, 0.71], [0.0, 1.0]]
    """
    seen = _Seen.of_lone_items(len(rows))
    pulled = rows.copy()
    for members, bounds in _whole_classes(codes):
        pulled[members] = _pull(terms, rows[members], bounds, members, seen)
    densities = density(pulled)
    offsets = _offsets(terms, seen, densities, weight)
    return PulledItems(pulled, densities, offsets, seen.in_class & (seen.right < _FAR))


def candidate_terms(rows: Rows, codes: Codes, *, density: Density, weight: float) -> tuple[ClassTerms, ...]:
    """Return the terms that calibration compares for one score, fitted on the classes that choose.

    The arguments are those of `pull_items`. Raises as `fit_typical_class`.
    """
    typical = fit_typical_class(rows, codes, density(rows))
    return tuple(ClassTerms(pull=pull, offset_weight=offset, typical=typical) for pull, offset in _CANDIDATES)


def class_codes(labels: Sequence[str]) -> tuple[tuple[str, ...], Codes]:
    """Return the sorted names of the classes, and the class of each item, -1 for an empty label: [n] int64."""
    names = tuple(sorted({label for label in labels if label}))
    code_of = {name: code for code, name in enumerate(names)}
    return names, np.array([code_of.get(label, -1) for label in labels], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the class of each item shows, [n] each, filled class by class.

    in_class: with other items; right: w; similarity: rho; length: f; n_right: sum of w in the class.
    """

    in_class: NDArray[np.bool_]
    right: Values
    similarity: Values
    length: Values
    n_right: Values

    @classmethod
    def of_lone_items(cls, n: int) -> "_Seen":
        zeros = np.zeros((4, n), dtype=np.float32)
        return cls(np.zeros(n, dtype=np.bool_), zeros[0], zeros[1], zeros[2] + 1, zeros[3])


def _pull(terms: ClassTerms, rows: Rows, bounds: Codes, members: Codes, seen: _Seen) -> Rows:
    """Return the rows of whole classes after the pull, and put what they show into `seen`.

    bounds: [classes + 1], where each class starts and ends in the rows; members: the places of the rows in `seen`.
    """
    own = np.vecdot(rows, rows)
    right = _probabilities(terms.typical, rows, own, bounds)
    sums, n_right, n_pairs, of_own = (
        _class_sums(of_items, bounds, right) for of_items in (rows, np.ones_like(own), right, right * own)
    )
    n_pairs = n_right**2 - n_pairs
    similarity = (np.vecdot(sums, sums) - of_own) / np.maximum(n_pairs, _NO_WEIGHT)
    group = np.repeat(np.arange(len(sums)), np.diff(bounds))
    moved = (np.float32(terms.pull) * right)[:, None]
    mixed = (1 - moved) * rows + moved * (sums / np.maximum(n_right, _NO_WEIGHT)[:, None])[group]
    length = np.sqrt(np.vecdot(mixed, mixed))
    stays = length < _NO_LENGTH
    mixed[stays], length[stays] = rows[stays], 1
    seen.in_class[members], seen.right[members], seen.length[members] = True, right, length
    seen.similarity[members], seen.n_right[members] = similarity[group], n_right[group]
    return np.asarray(mixed / length[:, None], dtype=np.float32)


def _probabilities(typical: TypicalClass | None, rows: Rows, own: Values, bounds: Codes) -> Values:
    """Return the probability that each item of whole classes belongs to its class: [n] float32."""
    if typical is None:
        return np.ones_like(own)
    sizes = np.diff(bounds)
    group = np.repeat(np.arange(len(sizes)), sizes)
    sums = _class_sums(rows, bounds, np.ones_like(own))
    to_others = (np.vecdot(rows, sums[group]) - own) / (sizes - 1)[group]
    ordered = to_others[np.lexsort((to_others, group))]
    medians = (ordered[bounds[:-1] + (sizes - 1) // 2] + ordered[bounds[:-1] + sizes // 2]) / 2
    known = _shrinkage(sizes)
    level = (known * medians + (1 - known) * typical.within)[group]
    apart = np.maximum(level - typical.between, 0)
    evidence = apart * (to_others - (level + typical.between) / 2) / typical.variance
    alike = apart > _LEAST_ALIKE * (typical.within - typical.between)
    return np.asarray(np.where(alike, expit(evidence + _LOG_ODDS_OF_RIGHT), 0), dtype=np.float32)


def _offsets(terms: ClassTerms, seen: _Seen, densities: Values, weight: float) -> Values:
    """Return o of each item: [n] float32."""
    typical, of_lone = terms.typical, (1 - seen.right) * np.float32(terms.lone_offset)
    if typical is None or terms.offset_weight == 0:
        return np.asarray(of_lone, dtype=np.float32)
    known = _shrinkage(seen.n_right)
    similarity = known * seen.similarity + (1 - known) * typical.within
    around = known * densities + (1 - known) * typical.density
    lone = typical.within - 2 * weight * typical.density
    expected = similarity / seen.length - 2 * weight * around
    return np.asarray(terms.offset_weight * seen.right * (expected - lone) + of_lone, dtype=np.float32)


def _shrinkage(n_items: Codes | Values) -> NDArray[np.float64]:
    """Return k, from 0 for one item towards 1 for many."""
    others = np.maximum(np.asarray(n_items, dtype=np.float64) - 1, 0)
    return np.asarray(others / (others + _PRIOR_ITEMS), dtype=np.float64)


def _class_sums(values: Values, bounds: Codes, weights: Values) -> Values:
    """Return the weighted sum of the values of each class: [n] or [n, D] -> [classes] or [classes, D]."""
    n = len(weights)
    by_class = csr_array((weights, np.arange(n), bounds), shape=(len(bounds) - 1, n))
    return np.asarray(by_class @ values, dtype=np.float32)


def _whole_classes(codes: Codes) -> Iterator[tuple[Codes, Codes]]:
    """Yield the items of some whole classes of two items or more, class after class, and the bounds of the classes."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    sizes = np.diff(np.append(starts, len(order)))
    kept = (sizes > 1) & (codes[order[starts]] >= 0)
    starts, sizes = starts[kept], sizes[kept]
    block = np.cumsum(sizes) // _BLOCK
    for part in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(block)) + 1):
        if len(part):
            bounds = np.append(0, np.cumsum(sizes[part]))
            places = np.repeat(starts[part] - bounds[:-1], sizes[part]) + np.arange(bounds[-1])
            yield order[places], bounds
