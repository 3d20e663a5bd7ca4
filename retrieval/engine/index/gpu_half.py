"""A gallery in float16, and limits for its scores on a device that lose no match.

Rows and queries are multiplied by powers of two so that their norms are at most 1: no score overflows. Let x' be a row
x in float16, with its subnormal components set to 0 because a device may do so, and q' a query. Then
    <q, x> <= <q', x'> + |q - q'| |x| + |q'| |x - x'|,
where the gallery's largest |x|, |x'| and |x - x'| are measured when it is built. A device multiplies float16 numbers
exactly and adds d products in float32, in any order. That sum is wrong by at most d |q'| |x'| 2^-22, which is twice
what float32 needs if it cuts off instead of rounding. Last, the sum becomes a float16. Rounding keeps the order of
numbers, so a sum that is not below a float16 limit is not below it afterwards. So a row that reaches t has at least
    t - |q - q'| |x| - |q'| |x - x'| - d |q'| |x'| 2^-22
as its score on the device, or what this is rounded down to float16. What reaches the limit and not t is removed by its
exact score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Half = NDArray[np.float16]

_ADDING = 2.0**-22
_UP = 1 + 1e-9  # rounds a bound up: more than float64 arithmetic loses
_SMALLEST = np.float16(2.0**-14)  # the smallest float16 that is not subnormal


@dataclass(slots=True)
class HalfGallery:
    """What is known of the rows that became float16. `exponent`: rows were multiplied by 2 ** exponent."""

    exponent: int
    longest: float = 0.0
    longest_half: float = 0.0
    largest_loss: float = 0.0

    @classmethod
    def of(cls, largest_norm: float) -> HalfGallery:
        """Return the description of a gallery without rows; no row may have a larger norm."""
        return cls(-int(np.frexp(largest_norm)[1]))

    def convert(self, rows: NDArray[np.float32]) -> Half:
        """Return rows [n, d] in float16, and remember what they lose."""
        exact = np.ldexp(rows.astype(np.float64), self.exponent)
        half = to_half(exact)
        self.longest = max(self.longest, _largest_norm(exact))
        self.longest_half = max(self.longest_half, _largest_norm(half.astype(np.float64)))
        self.largest_loss = max(self.largest_loss, _largest_norm(exact - half))
        return half

    @property
    def slack(self) -> float:
        """How much a score may lose because the gallery is in float16, relative to |q| max |x|."""
        return self.largest_loss / self.longest if self.longest else 0.0

    def queries_and_limits(
        self, queries: NDArray[np.float32], lowest: float | NDArray[np.float64]
    ) -> tuple[Half, Half]:
        """Return queries [q, d] in float16, and the limits that every row with a score above `lowest` reaches.

        lowest: one for all queries, or [q].
        """
        values = queries.astype(np.float64)
        exponents = -np.frexp(np.linalg.norm(values, axis=1))[1]
        values = np.ldexp(values, exponents[:, None])
        half = to_half(values)
        used = half.astype(np.float64)
        norms = np.linalg.norm(used, axis=1)
        adding = queries.shape[1] * _ADDING * norms * self.longest_half
        slack = np.linalg.norm(values - used, axis=1) * self.longest + norms * self.largest_loss + adding
        with np.errstate(over="ignore", invalid="ignore"):  # a threshold that no score reaches, or every score
            scaled = np.ldexp(lowest, exponents + self.exponent)
            lowered = scaled - slack * _UP - 1e-9 * np.abs(scaled)
            return half, _down(np.where(np.isfinite(lowest), lowered, scaled))


def to_half(values: NDArray[np.float64]) -> Half:
    """Return the nearest float16 values, 0 in place of a subnormal one."""
    half = values.astype(np.float16)
    half[np.abs(half) < _SMALLEST] = 0
    return half


def largest_norm(rows: NDArray[np.float32], tile: int) -> float:
    """Return the largest norm of rows [n, d], `tile` rows at a time."""
    return max(_largest_norm(rows[start : start + tile].astype(np.float64)) for start in range(0, len(rows), tile))


def _largest_norm(rows: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max(initial=0.0))) * _UP


def _down(limits: NDArray[np.float64]) -> Half:
    """Return the largest float16 not above each limit that is 0 or not subnormal."""
    half = limits.astype(np.float16)
    half = np.where(half > limits, np.nextafter(half, np.float16(-np.inf)), half)
    return np.where(np.abs(half) < _SMALLEST, np.where(limits >= 0, np.float16(0), -_SMALLEST), half)
