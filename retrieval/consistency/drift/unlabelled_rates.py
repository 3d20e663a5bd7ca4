"""FAR, TAR and precision of a threshold on new scores without labels: what can be said, and under which assumption.

Decides which assumption the scores allow, the weakest claim first, and refuses where neither does. Whether there is
drift at all is said by `drift`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import chi2

from retrieval.consistency.intervals import Interval, percentile_interval
from retrieval.errors import InvalidInput, NotEnoughEvidence

Reals = NDArray[np.float64]

_MIN_SCORES = 100  # of each of the three samples
_SCORES_A_BIN, _MAX_BINS = 50, 20
_MIN_BINS = 8  # three free parameters and some freedom to misfit
_N_RESAMPLES = 100
_MIN_SEPARATION = 0.75  # probability that a match outscores a non-match; below, the share of matches is guesswork

UNCHANGED = "scores of matches and of non-matches are distributed as in the reference, only their shares differ"
MOVED = "scores of matches and of non-matches moved and stretched alike, their shares differ, their shapes do not"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledRates:
    """Estimated rates at a threshold, true only under `assumption`, one of UNCHANGED and MOVED.

    match_share: share of matches among the new scores; far, tar: shares of the others and of the matches that are
    accepted; precision: share of matches among those accepted; each with its interval. moved_by, stretched_by: new
    score = moved_by + stretched_by * old score; fit_p_value: of the assumption's fit to the scores' distribution, which
    cannot prove it; fit_p_value_unchanged: that of UNCHANGED.
    """

    assumption: str
    threshold: float
    match_share: float
    match_share_interval: Interval
    far: float
    far_interval: Interval
    tar: float
    tar_interval: Interval
    precision: float
    precision_interval: Interval
    moved_by: float
    stretched_by: float
    fit_p_value: float
    fit_p_value_unchanged: float
    n_scores: int
    confidence: float

    def __str__(self) -> str:
        return (
            f"at {self.threshold:.4f}: FAR {self.far:.4g} ({self.far_interval}), TAR {self.tar:.4g} "
            f"({self.tar_interval}), precision {self.precision:.4g} ({self.precision_interval}), matches "
            f"{self.match_share:.4g} ({self.match_share_interval}) of {self.n_scores} scores; assumed, not known: "
            f"{self.assumption} (fit p {self.fit_p_value:.2g})"
        )


def estimate_rates(
    scores: Reals,
    within: Reals,
    between: Reals,
    threshold: float,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    min_fit: float = 0.01,
    allow_moved: bool = False,
) -> UnlabelledRates:
    """Return rates at a threshold on new scores [n], from reference scores of matches [m] and of non-matches [l].

    All of one kind and independent: for instance one score per query, that of its nearest item, the reference's split
    by whether that item matched. Pairs that share pictures are not independent, and make every fit look too bad.

    The new scores are fitted as a mixture of the two reference distributions, by minimum chi-square over bins that
    counts the noise of all three samples. Where that fits (p at least min_fit) FAR and TAR are the reference's, and the
    share of matches is new. Else the estimate is refused, or, with allow_moved, both distributions are moved and
    stretched by one common line; where that fits, FAR and TAR are those of the moved ones.

    Both are assumptions. Matches and non-matches may move differently and still add up to a mixture that fits: where
    matches alone moved by 0.8 of their deviation, 18 of 60 simulated samples of 1,000 passed as MOVED with a wrong FAR,
    and so did Fashion-MNIST against emoji (`tests/bench/unlabelled_rates.py`; FAR 0.003 for 0.276). Brand logos passed
    as UNCHANGED with TAR 0.84 for 0.69. Intervals are percentiles over 100 bootstrap draws of all three samples under
    the assumption; that it may be wrong is not in them. With a few hundred scores a true assumption is turned down up
    to twice as often as min_fit says.

    Raises:
        NotEnoughEvidence: fewer than 100 scores in a sample, no allowed assumption fits, or a match outscores a
            non-match with probability below 0.75, as is common among nearest items: label some pairs instead.
        InvalidInput: a sample that is not one-dimensional or not finite, or a level outside (0, 1).

    Source: mixture of unchanged class distributions: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a
    classifier to new a priori probabilities", Neural Computation 14 (2002); fit: Neyman, "Contribution to the theory of
    the chi-square test", Berkeley Symposium (1949).

    >>> rng = np.random.default_rng(0)
    >>> within, between = rng.normal(0.7, 0.1, 2000), rng.normal(0.2, 0.1, 2000)
    >>> new = np.concatenate([rng.normal(0.7, 0.1, 600), rng.normal(0.2, 0.1, 400)])
    >>> rates = estimate_rates(new, within, between, 0.45, rng=rng)
    >>> rates.assumption == UNCHANGED, 0.57 < rates.match_share < 0.63
    (True, True)
    """
    if not 0 < confidence < 1 or not 0 < min_fit < 1 or not np.isfinite(threshold):
        raise InvalidInput(
            f"expected confidence and min_fit in (0, 1) and a finite threshold, found {confidence}, {min_fit} and "
            f"{threshold}"
        )
    samples = [_checked(*named) for named in (("scores", scores), ("within", within), ("between", between))]
    _check_separation(samples[1], samples[2])
    start = np.array([_share_at_start(*samples), 0.0, 0.0])
    unchanged = _fitted(samples, start, moving=False)
    moving = unchanged.p_value < min_fit
    best = _fitted(samples, unchanged.parameters, moving=True) if moving else unchanged
    if best.p_value < min_fit or (moving and not allow_moved):
        raise NotEnoughEvidence(
            f"the new scores are no mixture of the reference's matches and non-matches (p {unchanged.p_value:.2g}); "
            f"that both moved alike fits with p {best.p_value:.2g} and is {'' if allow_moved else 'not '}allowed: no "
            "rates without labels; label some pairs and calibrate again"
        )
    rates = _rates(samples, best.parameters, threshold)
    again = np.empty((_N_RESAMPLES, 4))
    for draw in range(_N_RESAMPLES):
        drawn = [np.sort(rng.choice(sample, len(sample))) for sample in samples]
        again[draw] = _rates(drawn, _fitted(drawn, best.parameters, moving=moving).parameters, threshold)
    ends = [percentile_interval(column, confidence) for column in again.T]
    return UnlabelledRates(
        assumption=MOVED if moving else UNCHANGED,
        threshold=threshold,
        match_share=float(rates[0]),
        match_share_interval=ends[0],
        far=float(rates[1]),
        far_interval=ends[1],
        tar=float(rates[2]),
        tar_interval=ends[2],
        precision=float(rates[3]),
        precision_interval=ends[3],
        moved_by=float(best.parameters[1]),
        stretched_by=float(np.exp(best.parameters[2])),
        fit_p_value=best.p_value,
        fit_p_value_unchanged=unchanged.p_value,
        n_scores=len(samples[0]),
        confidence=confidence,
    )


def _checked(name: str, sample: Reals) -> Reals:
    """Return the sample in ascending order."""
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidInput(f"{name} must be one finite number each, found shape {values.shape} or NaN")
    if len(values) < _MIN_SCORES:
        raise NotEnoughEvidence(f"expected at least {_MIN_SCORES} scores in {name}, found {len(values)}; add scores")
    return np.sort(values)


def _check_separation(within: Reals, between: Reals) -> None:
    separation = float(np.searchsorted(between, within).mean() / len(between))
    if separation < _MIN_SEPARATION:
        raise NotEnoughEvidence(
            f"a match outscores a non-match with probability {separation:.2f} only, expected at least "
            f"{_MIN_SEPARATION}: their shares cannot be told from a mixture; label some pairs instead"
        )


def _share_at_start(scores: Reals, within: Reals, between: Reals) -> float:
    """Return the share of matches that explains the mean score."""
    gap = within.mean() - between.mean()
    return float(np.clip((scores.mean() - between.mean()) / gap, 0.02, 0.98)) if gap > 0 else 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """parameters: share of matches, moved by, logarithm of stretched by: [3] float64."""

    parameters: Reals
    p_value: float


def _fitted(samples: list[Reals], start: Reals, *, moving: bool) -> _Fit:
    scores, within, between = samples
    n_bins = int(np.clip(len(scores) // _SCORES_A_BIN, _MIN_BINS, _MAX_BINS))
    edges = np.unique(np.quantile(scores, np.arange(1, n_bins) / n_bins))
    found = _shares(scores, edges)
    n_free = 3 if moving else 1

    def misfit(free: Reals) -> float:
        share, moved_by, log_stretch = (*free, *start[n_free:])
        if not 0 <= share <= 1 or abs(log_stretch) > 2:
            return 1e12
        old_edges = (edges - moved_by) / np.exp(log_stretch)
        return _chi_square(found, len(scores), share, (within, between), old_edges)

    # Steps of the search: a tenth of a share, of the spread of scores, of the scale.
    steps = np.diag([0.1, 0.1 * float(np.std(scores)) + 1e-9, 0.1])[:n_free, :n_free]
    simplex = np.vstack([start[:n_free], np.clip(start[:n_free] + steps, None, [0.99, np.inf, 2.0][:n_free])])
    result = minimize(misfit, start[:n_free], method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-4})
    parameters = np.concatenate([result.x, start[n_free:]])
    freedom = len(edges) - n_free
    return _Fit(parameters, float(chi2.sf(result.fun, freedom)) if freedom > 0 else 0.0)


def _shares(sample: Reals, edges: Reals) -> Reals:
    """Return the share of an ascending sample in each bin, the last bin left out: [bins - 1] float64."""
    return np.diff(np.searchsorted(sample, edges, side="right"), prepend=0) / len(sample)


def _chi_square(found: Reals, n: int, share: float, references: tuple[Reals, Reals], edges: Reals) -> float:
    """Return the squared distance of the shares found from those of the mixture, in units of the noise of all three."""
    expected, covariance = np.zeros_like(found), np.zeros((len(found), len(found)))
    for weight, reference in ((share, references[0]), (1 - share, references[1])):
        # Half a score more in each bin: an empty bin of the reference is not known to be empty.
        p = (_shares(reference, edges) * len(reference) + 0.5) / (len(reference) + (len(found) + 1) / 2)
        expected += weight * p
        covariance += weight**2 * (np.diag(p) - np.outer(p, p)) / len(reference)
    covariance += (np.diag(expected) - np.outer(expected, expected)) / n
    gap = found - expected
    return float(gap @ np.linalg.solve(covariance, gap))


def _rates(samples: list[Reals], parameters: Reals, threshold: float) -> Reals:
    """Return share of matches, FAR, TAR and precision at the threshold: [4] float64."""
    share, moved_by, log_stretch = parameters
    old = (threshold - moved_by) / np.exp(log_stretch)
    tar, far = (1 - np.searchsorted(sample, old) / len(sample) for sample in samples[1:])
    accepted = share * tar + (1 - share) * far
    return np.array([share, far, tar, share * tar / accepted if accepted > 0 else 0.0])
