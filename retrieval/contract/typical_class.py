"""What is known of a class before its items are seen: means over labelled classes that take no part in what is judged.

`class_terms.py` compares the items of each class with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InvalidEmbeddings, NotEnoughEvidence

Rows: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]

_DIGITS = 6  # the order of the images changes later ones, and with them the digest of a score
_MIN_CLASSES = 2
# Identical images differ by so much through the rounding of float32.
_NO_VARIANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalClass:
    """A class as labelled classes are on the mean, see `fit_typical_class`.

    within, between: mean similarity of two items of one class, and of two classes, after the whitening if there is one;
    variance: of a similarity around the mean of its class, and around `between`; above 0; density: mean of the items.
    """

    within: float
    between: float
    variance: float
    density: float

    def __post_init__(self) -> None:
        if not np.isfinite([self.within, self.between, self.variance, self.density]).all() or not self.variance > 0:
            raise InvalidEmbeddings(f"expected finite numbers and a variance above 0, found {self}")


def fit_typical_class(rows: Rows, codes: Codes, densities: NDArray[np.float32]) -> TypicalClass:
    """Return the means over the classes of two items or more; others, and items without a class, do not count.

    rows: [n, D] float32, unit, after the whitening if there is one; codes: [n] int64, -1 for none; densities: [n]
    float32. Of `within` it is the mean over classes; of the others, over pairs and items. Of `variance` it is the mean
    of both: inside classes, with one degree of freedom taken for the mean of each, if a class has three items; and
    between classes. Every pair counts, so that sizes of classes do not change what is estimated.
    Cost: n D^2; memory: D^2. Raises NotEnoughEvidence with fewer than two such classes, or if the items of all classes
    are identical.

    >>> rows = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    >>> typical = fit_typical_class(rows, np.array([0, 0, 1, 1]), np.zeros(4, np.float32))
    >>> f"{typical.within:.2f} {typical.between:.2f}"  # (0.6 + 0) / 2, and (0 - 1 + 0.8 - 0.6) / 4
    '0.30 -0.20'
    """
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    names = names[counts > 1]
    if len(names) < _MIN_CLASSES:
        raise NotEnoughEvidence(
            f"a catalogue score learns from classes of two items or more: expected at least {_MIN_CLASSES} of them, "
            f"found {len(names)}; add labelled images, or use a score without labels"
        )
    used = np.isin(codes, names)
    rows, densities = rows[used], densities[used]
    inside = np.array([_pairs(members) for members in _classes(rows, codes[used])])  # [classes, 3]
    n_pairs, levels = inside[:, 0], inside[:, 1] / inside[:, 0]
    between_pairs, between_sum, between_squares = _pairs(rows) - inside.sum(axis=0)
    between = between_sum / between_pairs
    variance = between_squares / between_pairs - between**2
    if (freedom := (n_pairs - 1).sum()) > 0:
        variance = (variance + (inside[:, 2] - n_pairs * levels**2).sum() / freedom) / 2
    if not variance > _NO_VARIANCE:
        raise NotEnoughEvidence("expected different images of one class, found that those of each class are identical")
    return TypicalClass(
        within=round(float(levels.mean()), _DIGITS),
        between=round(float(between), _DIGITS),
        variance=float(np.format_float_scientific(variance, _DIGITS)),
        density=round(float(densities.mean(dtype=np.float64)), _DIGITS),
    )


def _classes(rows: Rows, codes: Codes) -> Iterator[Rows]:
    """Yield the rows of each class."""
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        yield rows[members]


def _pairs(rows: Rows) -> NDArray[np.float64]:
    """Return the number of pairs of rows, the sum of their similarities, and that of the squares: [3] float64."""
    exact = rows.astype(np.float64)
    own = np.vecdot(exact, exact)
    total = exact.sum(axis=0)
    # The sums of squares of the entries of X X^T and of X^T X are equal.
    gram = exact @ exact.T if len(exact) < exact.shape[1] else exact.T @ exact
    n = len(exact)
    return np.array([n * (n - 1), total @ total - own.sum(), (gram**2).sum() - (own**2).sum()]) / 2
