"""Scores in float32: the matrix product, on one thread each, and which scores reach a threshold.

Threads share tiles, not products: a library's own threads wait for each other in busy loops at every small product,
which on busy cores costs many times the product itself, and their number would change the last bit of the scores.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from retrieval.consistency.arguments import checked
from retrieval.errors import InvalidEmbeddings


class OneThreadAProduct:
    """Limits the matrix library to one thread inside `with`; the setting is that of the whole process.

    Thread rule: every field is read and written under the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._controller: Any = None
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._controller = self._controller or ThreadpoolController()  # slow: it reads the process's maps
                self._limits = self._controller.limit(limits=1, user_api="blas")
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._limits.restore_original_limits()


one_thread_a_product = OneThreadAProduct()


@checked
def scores_of(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores of rows [p, D] with rows [q, D]: [p, q] float32. Raises InvalidEmbeddings on other shapes."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise InvalidEmbeddings(f"expected rows of one length on both sides, found {query.shape} and {gallery.shape}")
    with one_thread_a_product:
        scores: NDArray[np.float32] = query @ gallery.T
    return scores


@checked
def float32_at_least(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the smallest float32 not below each threshold: a float32 score reaches both or neither."""
    with np.errstate(over="ignore"):  # no float32 score reaches such a threshold, or every one does
        nearest = thresholds.astype(np.float32)
    return np.where(nearest < thresholds, np.nextafter(nearest, np.float32(np.inf)), nearest).astype(np.float32)
