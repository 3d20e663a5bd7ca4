"""What the labels of a catalogue add to a score: items are pulled towards their class, and each class has an offset.

A query's picture of a class is compared with what all pictures of the class have in common, not with each one alone. A
class whose pictures are much alike accepts more easily than one whose pictures differ; the offset evens this out. Both
depend on the items of one class only, so that a change of one class leaves the vectors of all others as they are.
`score.py` puts the two into the vectors of an index.

Membership. A label may be wrong, so each item counts with the probability that it belongs to its class. Its evidence is
s, the mean similarity to the other items of the class. It is normally distributed around the level L of the class if
the label is right and around `between` if it is wrong, with one variance; one label in 20 is wrong:

    log odds = (L - between) (s - (L + between) / 2) / variance + log 19

A class whose items differ as much as items of different classes do has L = `between`: nothing can be said of its items,
and all of them count. L is the median of s in the class, known the better the more items there are:

    k = (n - 1) / (n - 1 + 2)        L = k median(s) + (1 - k) within

Pull. With the memberships w, m is the mean of the class weighted by w, and the item b becomes

    b* = ((1 - a w) b + a w m) / f,  with f the length of the numerator and a the `pull`

Offset. A query of the class has the expected score E = rho / f - 2 w' r(b*), with rho the mean similarity of two items
of the class, w' the weight of the density and r the density. For a class of few items it is shrunk by the same k to
that of a typical class, whose rho is `within` and whose r is `density`:

    o = offset_weight w (k E + (1 - k) E_typical - E_lone)      E_lone = within - 2 w' density

An item without a label, or alone in its class, stays as it is and has the offset 0: E_lone is what is expected of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from retrieval.errors import InvalidEmbeddings, NotEnoughEvidence

Rows: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]
# The density of rows [n, D], see `score.py`: [n] float32, zeros for the cosine.
Density: TypeAlias = Callable[[Rows], NDArray[np.float32]]

# The slope of the score that queries reach against that seen inside their class is (n - 1) / (n - 1 + 2) within 0.08,
# for classes of 2 to 12 items, on emoji and on icons.
_PRIOR_ITEMS = 2
_LOG_ODDS_OF_RIGHT = np.log(19)
_FAR = 0.5
_BLOCK = 16_384  # items at a time: bounds the memory of what is in double precision
_MIN_CLASSES = 2
_NO_LENGTH = 1e-6  # a shorter row is the rounding of float32: it has no direction


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalClass:
    """What is known of a class before its items are seen: means over labelled classes, see `fit_typical_class`.

    within, between: mean similarity of two items of one class, and of two classes, after the whitening if there is one;
    variance: of the mean similarity of an item to the items of a class, above 0; density: mean of the items.
    """

    within: float
    between: float
    variance: float
    density: float

    def __post_init__(self) -> None:
        if not self.variance > 0 or not np.isfinite([self.within, self.between, self.variance, self.density]).all():
            raise InvalidEmbeddings(f"a typical class: expected finite numbers and a variance above 0, found {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTerms:
    """How far items are pulled to their class, and how much of the score expected in their class is subtracted.

    pull: in [0, 1]; 0 leaves the items as they are, 1 puts the mean of the class in their place. offset_weight: 0 or
    more, factor of the expected score. typical: None if every label counts as right and no offset is subtracted.
    """

    pull: float
    offset_weight: float = 0.0
    typical: TypicalClass | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.pull <= 1 or not 0 <= self.offset_weight < np.inf:
            raise InvalidEmbeddings(
                f"expected a pull in [0, 1] and an offset weight of at least 0, found {self.pull} and "
                f"{self.offset_weight}"
            )
        if self.offset_weight > 0 and self.typical is None:
            raise InvalidEmbeddings(
                f"an offset weight of {self.offset_weight} needs a typical class: fit one on labelled classes"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PulledItems:
    """Items after the pull.

    rows: [n, D] float32, unit; densities: [n] float32, of these rows; offsets: [n] float32, subtracted from the score
    of the item; far: [n] bool, items that more likely than not have a wrong label.
    """

    rows: Rows
    densities: NDArray[np.float32]
    offsets: NDArray[np.float32]
    far: NDArray[np.bool_]


def pull_items(terms: ClassTerms, rows: Rows, codes: Codes, *, density: Density, weight: float) -> PulledItems:
    """Return the items pulled to their classes; an item without a class, or alone in it, stays as it is.

    rows: [n, D] float32, unit or, without a direction, zeros; codes: [n] int64, the class of each, -1 for none;
    density, weight: of the score. The result of an item depends on the items of its class only; their order changes
    sums in the last bit at most. An item that ends without a direction stays as it is.
    Cost: a few passes over the rows and one over their densities; memory: a copy of the rows.

    >>> rows = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    >>> pulled = pull_items(ClassTerms(pull=1.0), rows, np.array([5, 5, -1]), density=lambda x: x[:, 0] * 0, weight=0.5)
    >>> pulled.rows.round(2).tolist()
    [[0.71, 0.71], [0.71, 0.71], [0.0, 1.0]]
    """
    fits = _Fits.of_lone_items(len(rows), terms.typical)
    pulled = rows.copy()
    for members, starts in _classes(codes):
        block = rows[members]
        fits.membership[members] = _memberships(terms.typical, block, starts)
        pulled[members] = _pull_block(terms.pull, block, starts, members, fits)
    densities = density(pulled)
    return PulledItems(
        pulled,
        densities,
        fits.offsets(terms, densities, weight),
        fits.is_labelled & (fits.membership < _FAR),
    )


def fit_typical_class(rows: Rows, codes: Codes, densities: NDArray[np.float32]) -> TypicalClass:
    """Return the means over the classes of two items or more; others and items without a class do not count.

    rows: [n, D] float32, unit, after the whitening if there is one; codes: [n] int64, -1 for none; densities: [n].
    The classes must not be those whose promises are judged. Wrong labels lower `within`, so few of them are harmless.
    Raises NotEnoughEvidence with fewer than two such classes, or if the items of each class are identical.

    >>> rows = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    >>> typical = fit_typical_class(rows, np.array([0, 0, 1, 1]), np.zeros(4, np.float32))
    >>> f"{typical.within:.2f} {typical.between:.2f}"  # (0.6 + 0) / 2, and (0 - 1 + 0.8 - 0.6) / 4
    '0.30 -0.20'
    """
    counts = np.bincount(codes[codes >= 0])
    kept = np.flatnonzero((codes >= 0) & (counts[np.maximum(codes, 0)] > 1)) if len(counts) else counts
    n_classes = len(np.unique(codes[kept]))
    if n_classes < _MIN_CLASSES:
        raise NotEnoughEvidence(
            f"a catalogue score learns from classes of two items or more: expected at least {_MIN_CLASSES} of them, "
            f"found {n_classes}; add labelled images, or use a score without labels"
        )
    order = kept[np.argsort(codes[kept], kind="stable")]
    rows, starts = rows[order].astype(np.float64), _starts(codes[order])
    sizes, group = _sizes(starts, len(rows))
    sums = np.add.reduceat(rows, starts, axis=0)
    inner = np.einsum("cd,cd->c", sums, sums)
    own = np.einsum("nd,nd->n", rows, rows)
    of_pairs = (inner - np.add.reduceat(own, starts)) / (sizes * (sizes - 1))
    total = sums.sum(axis=0)
    between = float((total @ total - inner.sum()) / (len(rows) ** 2 - (sizes**2).sum()))
    to_others = (np.einsum("nd,nd->n", rows, sums[group]) - own) / (sizes[group] - 1)
    right = ((to_others - of_pairs[group]) ** 2).sum() / (sizes - 1).sum()
    variance = float(right + _variance_of_strangers(rows, sums / sizes[:, None], group, between)) / 2
    if not variance > 0:
        raise NotEnoughEvidence("the items of each class are identical: expected different images of one class")
    return TypicalClass(
        within=float(of_pairs.mean()),
        between=between,
        variance=variance,
        density=float(densities[order].mean(dtype=np.float64)),
    )


def class_codes(labels: Sequence[str]) -> tuple[tuple[str, ...], Codes]:
    """Return the sorted names of the classes, and the class of each item, -1 for an empty label: [n] int64."""
    names = tuple(sorted({label for label in labels if label}))
    code_of = {name: code for code, name in enumerate(names)}
    return names, np.array([code_of.get(label, -1) for label in labels], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Fits:
    """What is known of each item in its class: [n] each; filled class by class.

    is_labelled: in a class of two items or more; membership: w; similarity: rho; length: f; n_members: sum of w.
    """

    is_labelled: NDArray[np.bool_]
    membership: Values
    similarity: Values
    length: Values
    n_members: Values

    @classmethod
    def of_lone_items(cls, n: int, typical: TypicalClass | None) -> "_Fits":
        within = typical.within if typical else 0.0
        return cls(np.zeros(n, np.bool_), np.zeros(n), np.full(n, within), np.ones(n), np.zeros(n))

    def offsets(self, terms: ClassTerms, densities: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
        """Return o of each item: [n] float32."""
        typical = terms.typical
        if typical is None or terms.offset_weight == 0:
            return np.zeros(len(self.length), dtype=np.float32)
        known = _shrinkage(self.n_members)
        similarity = known * self.similarity + (1 - known) * typical.within
        expected = similarity / self.length - 2 * weight * (known * densities + (1 - known) * typical.density)
        lone = typical.within - 2 * weight * typical.density
        return np.asarray(terms.offset_weight * self.membership * (expected - lone), dtype=np.float32)


def _memberships(typical: TypicalClass | None, rows: Rows, starts: Codes) -> Values:
    """Return the probability that each item of a block of whole classes belongs to its class: [n] float64."""
    if typical is None:
        return np.ones(len(rows))
    sizes, group = _sizes(starts, len(rows))
    sums = np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
    own = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    to_others = (np.einsum("nd,nd->n", rows, sums[group]) - own) / (sizes[group] - 1)
    known = _shrinkage(sizes)
    level = (known * _medians(to_others, starts, sizes) + (1 - known) * typical.within)[group]
    apart = np.maximum(level - typical.between, 0)
    evidence = apart * (to_others - (level + typical.between) / 2) / typical.variance
    return np.asarray(expit(evidence + _LOG_ODDS_OF_RIGHT), dtype=np.float64)


def _pull_block(pull: float, rows: Rows, starts: Codes, members: Codes, fits: _Fits) -> Rows:
    """Return the items of a block of whole classes after the pull, and put what was seen into `fits`."""
    _, group = _sizes(starts, len(rows))
    shares = fits.membership[members]
    weighted = shares[:, None] * rows
    sums = np.add.reduceat(weighted, starts, axis=0)
    n_members = np.add.reduceat(shares, starts)
    own = np.einsum("nd,nd->n", weighted, weighted)
    of_pairs = np.einsum("cd,cd->c", sums, sums) - np.add.reduceat(own, starts)
    n_pairs = n_members**2 - np.add.reduceat(shares**2, starts)
    means = sums / np.maximum(n_members, np.finfo(np.float64).tiny)[:, None]
    moved = (pull * shares)[:, None]
    mixed = (1 - moved) * rows + moved * means[group]
    lengths = np.linalg.norm(mixed, axis=1)
    stays = lengths < _NO_LENGTH
    mixed[stays], lengths[stays] = rows[stays], 1
    fits.is_labelled[members] = True
    fits.similarity[members] = np.divide(of_pairs, n_pairs, out=np.zeros_like(of_pairs), where=n_pairs > 0)[group]
    fits.length[members], fits.n_members[members] = lengths, n_members[group]
    return np.asarray(mixed / lengths[:, None], dtype=np.float32)


def _classes(codes: Codes) -> Iterator[tuple[Codes, Codes]]:
    """Yield the items of whole classes of two or more, class after class, and where each of the classes starts."""
    order = np.argsort(codes, kind="stable")
    bounds = np.append(_starts(codes[order]), len(order))
    sizes = np.diff(bounds)
    used = np.flatnonzero((sizes > 1) & (codes[order[bounds[:-1]]] >= 0))
    ends = np.cumsum(sizes[used])
    for part in np.split(used, np.flatnonzero(np.diff(ends // _BLOCK)) + 1):
        if len(part):
            starts = np.cumsum(sizes[part]) - sizes[part]
            yield order[np.repeat(bounds[part] - starts, sizes[part]) + np.arange(sizes[part].sum())], starts


def _starts(codes: Codes) -> Codes:
    """Return where each class starts in sorted codes."""
    return np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])


def _sizes(starts: Codes, n: int) -> tuple[Codes, Codes]:
    """Return the number of items of each class, and which of them each of the n items is in."""
    sizes = np.diff(np.append(starts, n))
    return sizes, np.repeat(np.arange(len(starts)), sizes)


def _medians(values: Values, starts: Codes, sizes: Codes) -> Values:
    """Return the median of the values of each class."""
    group = np.repeat(np.arange(len(starts)), sizes)
    ordered = values[np.lexsort((values, group))]
    return np.asarray((ordered[starts + (sizes - 1) // 2] + ordered[starts + sizes // 2]) / 2)


def _shrinkage(n_items: Codes | Values) -> Values:
    """Return k, how much of what is seen inside a class counts, from 0 for one item."""
    others = np.maximum(np.asarray(n_items, dtype=np.float64) - 1, 0)
    return np.asarray(others / (others + _PRIOR_ITEMS), dtype=np.float64)


def _variance_of_strangers(rows: Values, means: Values, group: Codes, between: float) -> float:
    """Return the mean square of what the similarity of an item to the mean of another class differs from `between`."""
    to_own = np.einsum("nd,nd->n", rows, means[group])
    squares = np.einsum("nd,nd->n", rows @ (means.T @ means), rows) - to_own**2
    firsts = rows @ means.sum(axis=0) - to_own
    n_others = len(means) - 1
    return float((squares / n_others - 2 * between * firsts / n_others + between**2).mean())
