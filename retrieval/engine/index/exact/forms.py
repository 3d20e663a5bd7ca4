"""Chooses the instructions: AVX-512 VNNI if this processor has it and its answers are right, or the portable form."""

from __future__ import annotations

import functools
import os

import numpy as np
import structlog

from retrieval.engine.index.exact.instructions import BLOCK, Form, Portable, Vnni, has_vnni
from retrieval.engine.index.exact.layout import directions, encode
from retrieval.engine.index.exact.lists import sort_into_lists
from retrieval.engine.index.exact.search import Encoded, find

log = structlog.get_logger()

PORTABLE = "RETRIEVAL_PORTABLE_KERNELS"  # set to 1: use no AVX-512
_ROWS, _COLUMNS, _THRESHOLD = 8 * BLOCK, 48, 0.6


@functools.cache
def best_form() -> Form:
    """Return the fastest form that works here. The first call compiles it, or reads it from the cache on the disk."""
    if os.environ.get(PORTABLE, "") not in ("", "0") or not has_vnni():
        return Portable()
    try:
        if _answers(Vnni()) == _answers(Portable()):
            return Vnni()
        reason = "its answers differ from those of the portable form"
    except Exception as error:  # noqa: BLE001  # a compiler that does not know the instruction may raise anything
        reason = str(error)
    log.warning("vnni_not_used", reason=reason)
    return Portable()


def _answers(form: Form) -> list[tuple[int, int]]:
    """Return what a form finds in a small gallery, for one query and for several."""
    vectors = np.random.default_rng(0).normal(size=(_ROWS, _COLUMNS)).astype(np.float32)
    vectors[:, 8:] *= np.float32(0.2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order, lists = sort_into_lists(vectors, vectors[:0, 0])
    encoded = Encoded(encode(vectors[order], directions(vectors), 16), lists, order)
    answers = []
    for queries in (vectors[:1], vectors[:6]):
        found = find(form, encoded, queries, _THRESHOLD)
        answers += sorted(zip(found.queries.tolist(), found.keys.tolist(), strict=True))
    return answers
