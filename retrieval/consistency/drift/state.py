"""The state that one look for drift leaves to the next, its verdict and its plain JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.documents import Document, FloatRows, Floats, Ints
from retrieval.errors import InvalidInput

# One bettor for each resolution and each memory; what it learnt fades by this factor at every later look.
MEMORIES = (1.0, 0.9, 0.5)


def resolutions(n_bins: int) -> list[int]:
    """Return the resolutions of the bettors: powers of two from 2 to n_bins, itself a power of two."""
    return [1 << level for level in range(1, n_bins.bit_length())]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState(Document):
    """What the next look needs to know of the reference and of the earlier looks, in K bins; plain numbers.

    Raises:
        InvalidInput: at construction, when lengths or values do not fit.
    """

    noun: ClassVar[str] = "drift state"
    kind: ClassVar[str] = "drift"
    edges: Floats  # [K - 1], upper ends of all bins but the last
    tie_breaks: Floats  # [K - 1], the random numbers that order scores equal to an edge
    gaps: Ints  # [K], spaces between neighbouring reference scores in each bin
    counts: Ints  # [K], new scores in each bin
    memories: FloatRows  # [3][K], counts faded at three speeds
    log_wealth: Floats  # of each bettor, the idle one's first
    n_looks: int = 0
    log_e: float = 0.0  # logarithm of the e-value now
    log_peak: float = 0.0  # and of its highest so far

    def __post_init__(self) -> None:
        k = len(self.gaps)
        lengths = [len(self.edges) + 1, len(self.tie_breaks) + 1, len(self.counts), *map(len, self.memories)]
        fits = (
            k >= 2
            and k & (k - 1) == 0
            and set(lengths) == {k}
            and len(self.memories) == len(MEMORIES)
            and len(self.log_wealth) == 1 + len(MEMORIES) * len(resolutions(k))
        )
        numbers = np.array([*self.edges, *self.log_wealth, self.log_e, self.log_peak, *sum(self.memories, ())])
        if not fits or not np.isfinite(numbers).all() or min(self.gaps) < 1 or min(self.counts) < 0:
            raise InvalidInput(
                f"a drift state needs 2, 4, 8 ... bins of at least one gap and finite numbers of matching lengths, "
                f"found {k} bins, {len(self.edges)} edges and {len(self.log_wealth)} bettors; start a new one"
            )

    @property
    def n_reference(self) -> int:
        """Scores of the reference."""
        return sum(self.gaps) - 1

    @property
    def n_scores(self) -> int:
        """Scores of all looks together."""
        return sum(self.counts)

    @property
    def p_value(self) -> float:
        """Anytime-valid: without drift it ever falls to alpha or below with probability at most alpha."""
        return math.exp(-max(self.log_peak, 0.0))

    @checked
    def drifted(self, alpha: float = 0.05) -> bool:
        """Whether any look so far found drift; a false alarm ever has probability at most alpha.

        Raises:
            InvalidInput: alpha outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha is the probability of a false alarm and lies in (0, 1), found {alpha}")
        return self.p_value <= alpha

    def __str__(self) -> str:
        return (
            f"{'drift' if self.drifted() else 'no drift'} found after {self.n_looks} looks at {self.n_scores} scores "
            f"against a reference of {self.n_reference}: anytime-valid p {self.p_value:.3g}, e-value now "
            f"{math.exp(min(self.log_e, 700.0)):.3g}"
        )


def checked_scores(name: str, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores as float64. Raises InvalidInput unless they are [n] and finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidInput(
            f"{name} must be one finite number per query, found shape {values.shape} with "
            f"{np.count_nonzero(~np.isfinite(values))} that are NaN or infinite"
        )
    return values
