"""Rounds vectors to codes in one pass each: compiled loops."""

from __future__ import annotations

import numpy as np

from retrieval.compiled import compiled_loosely


@compiled_loosely
def round_rows(exact, step, codes):
    """Write the nearest whole steps of vectors [n, d] float64, plus 128, into codes [n, c] uint8.

    Returns the largest sums of squares over the vectors: of what is lost, of what is kept, of the vector.
    """
    most_lost, most_kept, longest = 0.0, 0.0, 0.0
    for i in range(exact.shape[0]):
        lost, kept, squares = 0.0, 0.0, 0.0
        for j in range(exact.shape[1]):
            value = exact[i, j]
            whole = min(max(np.rint(value / step), -127.0), 127.0)
            codes[i, j] = np.uint8(whole + 128.0)
            whole *= step
            lost += (whole - value) * (whole - value)
            kept += whole * whole
            squares += value * value
        most_lost, most_kept, longest = max(most_lost, lost), max(most_kept, kept), max(longest, squares)
    return most_lost, most_kept, longest
