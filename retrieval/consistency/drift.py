"""Have the scores of unlabelled queries drifted from a reference? A test that may be looked at as often as one likes.

Decides from counts alone, so that what an audit has to keep is small, and exactly, without any assumption on the shape
of the scores. How far they moved is said by `drift_size`, what that does to the rates by `unlabelled_rates`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from retrieval.errors import InvalidInput, NotEnoughEvidence

Reals = NDArray[np.float64]

MIN_REFERENCE = 63  # 64 gaps: four for each of 16 bins
_MAX_BINS = 32
_MIN_GAPS = 4  # of a bin, so that its share of the reference is known to within a half
# Bettors: for each resolution and each memory one. What a look teaches them fades by this factor with every later look.
_MEMORIES = (1.0, 0.9, 0.5)
_CONCENTRATION = 10.0  # scores' worth of the bettors' first belief that nothing drifted
_IDLE = 0.5  # of the wealth that is dealt out is not bet: it waits for drift that comes late
_SHARE = 0.02  # of the wealth is dealt out anew after each look


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """All that the next look needs to know of the reference and of the looks so far; plain numbers.

    edges, tie_breaks: [K - 1], upper ends of all bins but the last, and the random numbers that order equal scores;
    gaps: [K], spaces between neighbouring reference scores in each bin; counts: [K], new scores in it;
    memories: [3][K], counts faded at three speeds; log_wealth: the logarithm of each bettor's wealth, the idle one's
    first; n_looks: looks so far; log_e, log_peak: logarithm of the e-value now and of its highest so far.

    Raises:
        InvalidInput: at construction, when lengths or values break one of these rules.
    """

    edges: tuple[float, ...]
    tie_breaks: tuple[float, ...]
    gaps: tuple[int, ...]
    counts: tuple[int, ...]
    memories: tuple[tuple[float, ...], ...]
    log_wealth: tuple[float, ...]
    n_looks: int = 0
    log_e: float = 0.0
    log_peak: float = 0.0

    def __post_init__(self) -> None:
        k = len(self.gaps)
        lengths = [len(self.edges) + 1, len(self.tie_breaks) + 1, len(self.counts), *map(len, self.memories)]
        fits = (
            k >= 2
            and k & (k - 1) == 0
            and set(lengths) == {k}
            and len(self.memories) == len(_MEMORIES)
            and len(self.log_wealth) == 1 + len(_MEMORIES) * len(_resolutions(k))
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

    def drifted(self, alpha: float = 0.05) -> bool:
        """Whether drift was found at any look so far, with at most probability alpha of ever crying wolf.

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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal state."""
        document: dict[str, Any] = {"kind": "drift"}
        for field in fields(self):
            value = getattr(self, field.name)
            document[field.name] = list(value) if isinstance(value, tuple) else value
        document["memories"] = [list(memory) for memory in self.memories]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DriftState:
        """Undo `to_json`.

        Raises:
            InvalidInput: another kind, a missing field or values that are no state.
        """
        if document.get("kind") != "drift":
            raise InvalidInput(f"expected a document of kind 'drift', found {document.get('kind')!r}")
        try:
            return cls(
                edges=_floats(document["edges"]),
                tie_breaks=_floats(document["tie_breaks"]),
                gaps=tuple(int(value) for value in document["gaps"]),
                counts=tuple(int(value) for value in document["counts"]),
                memories=tuple(_floats(memory) for memory in document["memories"]),
                log_wealth=_floats(document["log_wealth"]),
                n_looks=int(document["n_looks"]),
                log_e=float(document["log_e"]),
                log_peak=float(document["log_peak"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"the drift state's document is incomplete or malformed: {error!r}") from error


def start_drift(reference: Reals, *, rng: np.random.Generator) -> DriftState:
    """Return the state before the first look, from reference scores: [m] float, m >= 63.

    One score per query, for instance the similarity to its nearest catalogue item; queries independent, drawn as those
    of the looks will be and asked of the same catalogue with the same model and score. Ten photographs of one thing
    count as one query; a catalogue that grows moves the scores by itself: start again from a new reference.
    rng: orders equal scores; without ties on a bin's edge nothing is random.

    Raises:
        NotEnoughEvidence: fewer than 63 scores.
        InvalidInput: not one-dimensional, NaN or infinity.

    >>> state = start_drift(np.linspace(0, 1, 99), rng=np.random.default_rng(0))
    >>> state.n_reference, len(state.gaps), sum(state.gaps)  # 99 scores leave 100 gaps
    (99, 16, 100)
    """
    values = _checked_scores("reference", reference)
    if len(values) < MIN_REFERENCE:
        raise NotEnoughEvidence(
            f"a reference needs at least {MIN_REFERENCE} scores, found {len(values)}; add queries from the time when "
            "the threshold was calibrated"
        )
    n_gaps = len(values) + 1
    n_bins = min(_MAX_BINS, 1 << int(math.log2(n_gaps // _MIN_GAPS)))
    upper = np.round(np.linspace(0, n_gaps, n_bins + 1)).astype(np.int64)
    random = rng.random(len(values))
    edges = np.lexsort((random, values))[upper[1:-1] - 1]
    prior = _prior_wealth(n_bins)
    return DriftState(
        edges=tuple(values[edges].tolist()),
        tie_breaks=tuple(random[edges].tolist()),
        gaps=tuple(np.diff(upper).tolist()),
        counts=(0,) * n_bins,
        memories=((0.0,) * n_bins,) * len(_MEMORIES),
        log_wealth=tuple(np.log(prior).tolist()),
    )


def look_for_drift(state: DriftState, scores: Reals, *, rng: np.random.Generator) -> DriftState:
    """Return the state after one more look, at new scores [n] float; no scores leave the state as it was.

    The evidence is a bet. Where a new score falls among the reference's is, without drift, Polya's urn: the bin with
    `gaps` gaps and `counts` new scores comes next with probability (gaps + counts) / (m + 1 + n), whatever the
    distribution and exactly for a finite reference, over the draw of the reference and of the scores together. Bettors
    who believe in other shares (at resolutions of 2 to 32 bins; learnt from all, the last ten or the last two looks)
    multiply their wealth by the ratio of their probability of the look to the urn's; some wealth waits and some is
    dealt out anew at each look, for drift that comes late. The total wealth, the e-value, is a martingale from 1:
    it ever reaches 1 / alpha with probability at most alpha (Ville), however many looks, of whatever size.

    Since new scores join the urn, the evidence from m reference scores is bounded: a shift of the mean by less than
    about 3.5 / sqrt(m) standard deviations is not found however long one looks, unless it comes after quiet looks.

    Raises:
        InvalidInput: not one-dimensional, NaN or infinity.

    Source: the urn: Wilks, "Statistical prediction with special reference to the problem of tolerance limits", Annals
    of Mathematical Statistics 13 (1942); wealth dealt out anew: Herbster, Warmuth, "Tracking the best expert", Machine
    Learning 32 (1998), Fixed Share; testing by betting on ranks: Vovk, Gammerman, Shafer, "Algorithmic Learning in a
    Random World" (2005), chapter 7.

    >>> rng = np.random.default_rng(0)
    >>> state = start_drift(rng.random(500), rng=rng)
    >>> look_for_drift(state, rng.random(100), rng=rng).drifted()
    False
    >>> look_for_drift(state, 0.7 * rng.random(100), rng=rng).drifted()
    True
    """
    values = _checked_scores("scores", scores)
    if len(values) == 0:
        return state
    new = np.bincount(_bins_of(state, values, rng), minlength=len(state.gaps)).astype(np.float64)
    gaps, counts, memories = np.array(state.gaps), np.array(state.counts), np.array(state.memories)
    log_wealth = np.array(state.log_wealth) + _log_gains(new, gaps, counts, memories)
    log_e = float(np.logaddexp.reduce(log_wealth))
    dealt = np.logaddexp(log_wealth + math.log1p(-_SHARE), log_e + np.log(_SHARE * _prior_wealth(len(gaps))))
    faded = np.array(_MEMORIES)[:, None] * (memories + new)
    return DriftState(
        edges=state.edges,
        tie_breaks=state.tie_breaks,
        gaps=state.gaps,
        counts=tuple((counts + new).astype(np.int64).tolist()),
        memories=tuple(tuple(row) for row in faded.tolist()),
        log_wealth=tuple(dealt.tolist()),
        n_looks=state.n_looks + 1,
        log_e=log_e,
        log_peak=max(state.log_peak, log_e),
    )


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _checked_scores(name: str, scores: Reals) -> Reals:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidInput(
            f"{name} must be one finite number per query, found shape {values.shape} with "
            f"{np.count_nonzero(~np.isfinite(values))} that are NaN or infinite"
        )
    return values


def _bins_of(state: DriftState, values: Reals, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how many edges lie below each score, equal ones ordered by their random numbers: [n] int64."""
    edges, tie_breaks = np.array(state.edges), np.array(state.tie_breaks)
    random = rng.random(len(values))
    below = np.searchsorted(edges, values, side="left")
    tied = np.flatnonzero(np.searchsorted(edges, values, side="right") > below)
    equal = (edges == values[tied, None]) & (tie_breaks < random[tied, None])
    below[tied] += np.count_nonzero(equal, axis=1)
    return below.astype(np.int64)


def _resolutions(n_bins: int) -> list[int]:
    return [1 << level for level in range(1, n_bins.bit_length())]


def _prior_wealth(n_bins: int) -> Reals:
    """Return what each bettor is dealt, of 1 in all; the idle one first."""
    n_bettors = len(_MEMORIES) * len(_resolutions(n_bins))
    return np.concatenate([[_IDLE], np.full(n_bettors, (1 - _IDLE) / n_bettors)])


def _log_gains(new: Reals, gaps: NDArray[np.int64], counts: NDArray[np.int64], memories: Reals) -> Reals:
    """Return the logarithm of what each bettor's wealth is multiplied by; the idle one's, 0, first."""
    gains = [0.0]
    belief = _CONCENTRATION * gaps / gaps.sum() + memories
    for n_coarse in _resolutions(len(gaps)):
        look = _merged(new, n_coarse)
        of_urn = _log_probability(look, _merged(gaps + counts, n_coarse))
        gains += [_log_probability(look, _merged(row, n_coarse)) - of_urn for row in belief]
    return np.array(gains)


def _merged(per_bin: NDArray[Any], n_coarse: int) -> Reals:
    return np.asarray(per_bin.reshape(n_coarse, -1).sum(axis=1), dtype=np.float64)


def _log_probability(counts: Reals, urn: Reals) -> float:
    """Return the logarithm of the probability that an urn gives to one order of these counts."""
    total, drawn = urn.sum(), counts.sum()
    return float(gammaln(total) - gammaln(total + drawn) + (gammaln(urn + counts) - gammaln(urn)).sum())
