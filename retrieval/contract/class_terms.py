"""What the labels of a catalogue add to a score: items are pulled towards their class, and each class has an offset.

A query's picture of a class is compared with what all pictures of the class have in common, not with each one alone. A
class whose pictures are much alike accepts more easily than one whose pictures differ; the offset evens this out. Both
depend on the items of one class only, so that a change of one class leaves the vectors of all others as they are.
`score.py` puts the two into the vectors of an index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InvalidEmbeddings

Rows: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]
# The density of rows [n, D], see `score.py`: [n] float32, zeros for the cosine.
Density: TypeAlias = Callable[[Rows], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTerms:
    """How far items are pulled to their class, and how much of the class's own tightness is subtracted.

    pull: in [0, 1]; 0 leaves the items as they are, 1 puts the mean of the class in their place. offset_weight: 0 or
    more, factor of the tightness. coefficients: of the model that predicts the tightness of a class, see `tightness`;
    none if offset_weight is 0.
    """

    pull: float
    offset_weight: float = 0.0
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.pull <= 1 or not self.offset_weight >= 0:
            raise InvalidEmbeddings(
                f"expected a pull in [0, 1] and an offset weight of at least 0, found {self.pull} and "
                f"{self.offset_weight}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class PulledItems:
    """Items after the pull.

    rows: [n, D] float32, unit; offsets: [n] float32, subtracted from the score of the item; far: [n] bool, items that
    are far from the others of their class, as items with a wrong label are.
    """

    rows: Rows
    offsets: NDArray[np.float32]
    far: NDArray[np.bool_]


def pull_items(terms: ClassTerms, rows: Rows, codes: Codes, *, density: Density, weight: float) -> PulledItems:
    """Pull items to their classes. An item without a class, or alone in it, stays as it is.

    rows: [n, D] float32, unit; codes: [n] int64, the class of each, -1 for none; density, weight: of the score.
    """
    pulled = rows.copy()
    order = np.argsort(codes, kind="stable")
    bounds = np.flatnonzero(np.diff(codes[order], prepend=-2))
    for start, stop in zip(bounds, np.append(bounds[1:], len(order)), strict=True):
        members = order[start:stop]
        if codes[members[0]] < 0 or len(members) < 2:
            continue
        mixed = (1 - terms.pull) * rows[members] + terms.pull * rows[members].mean(axis=0)
        pulled[members] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return PulledItems(pulled, np.zeros(len(rows), np.float32), np.zeros(len(rows), np.bool_))


def class_codes(labels: Sequence[str]) -> tuple[tuple[str, ...], Codes]:
    """Return the sorted names of the classes, and the class of each item, -1 for an empty label: [n] int64."""
    names = tuple(sorted({label for label in labels if label}))
    code_of = {name: code for code, name in enumerate(names)}
    return names, np.array([code_of.get(label, -1) for label in labels], dtype=np.int64)


def candidate_terms(rows: Rows, codes: Codes, *, density: Density, weight: float) -> tuple[ClassTerms, ...]:
    """Return the terms that calibration compares for one score, fitted on the classes that choose."""
    return tuple(ClassTerms(pull=pull) for pull in (0.7, 0.9))
