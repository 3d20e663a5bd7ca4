"""Numbers the classes of labels. NumPy's own arrays of text take the length of the longest label for every one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def number_classes(labels: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the classes, sorted, and the number of the class of each label: [n] int64.

    Example:
        >>> number_classes(["b", "a", "b"])
        (('a', 'b'), array([1, 0, 1]))
    """
    names = tuple(sorted(set(labels)))
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.fromiter((number_of[label] for label in labels), dtype=np.int64, count=len(labels))
