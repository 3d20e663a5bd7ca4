"""Estimate the variance of the error rates at one threshold, over the draw of classes.

FAR averages over *pairs* of classes, so a class takes part in many terms. Treating the rates of classes as independent
would understate the variance up to four times. If classes are drawn together in families, the families are the units
in place of the classes; if no families are named, groups of look-alike classes are, see `look_alike`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.intervals import Interval, effective_number, student_quantile
from retrieval.consistency.pairs.sizes import PairSizes
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors
from retrieval.consistency.subgroups.clustered import clustered_interval, corrected_residuals
from retrieval.consistency.subgroups.counts import Counts, accepted_class_pairs
from retrieval.consistency.thresholds.look_alike import find_look_alikes
from retrieval.consistency.thresholds.warnings import rate_warnings

# Classes with an outcome (say, rejected pairs) below which their number decides: the design effect of TAR is then as
# much that of pairs that stand or fall together as the measured one.
_KNOWN_FROM = 3.0
_UPPER = 1.1  # see `log_interval`
# Groups of look-alikes hold many false accepts because look-alikes were sought: the variance of FAR over groups is so
# many times too large, or more. By groups that are hard to see it is less so, because they are not found whole.
_SOUGHT, _SOUGHT_HIDDEN = 1.7, 1.25
_LEAST_OF_GROUPS = 2.0  # times the variance of TAR over classes: what clear groups that were not found whole may hide


@dataclass(frozen=True, slots=True)
class TarEvidence:
    """TAR as if from `trials` independent pairs, known from `units` equal classes."""

    trials: float
    units: float
    variance: float  # of TAR
    measured: float  # inverse of the trials as measured
    known: float  # how far `measured` is trusted, from 0 to 1


@dataclass(frozen=True, slots=True)
class RateVariances:
    """Variances at one threshold, and the effective numbers of units (classes or families) that they are known from."""

    class_variance: float  # of log pooled FAR, the part that falls with 1 / n_classes
    pair_variance: float  # of log pooled FAR, the part that falls with 1 / n_classes^2
    mean_far: float  # of log class-mean FAR
    precision: float  # of logit precision, which is log TAR - log FAR and a constant
    tar: TarEvidence
    far_units: float
    mean_far_units: float
    warnings: tuple[str, ...] = ()  # see `rate_warnings` and `LookAlikes`


def rate_variances(vectors: LabelledVectors, curves: OperatingCurves) -> RateVariances:
    """Return the variances at the one threshold of the curves, which must accept some negative pair.

    FAR: the dyadic-robust variance; a bootstrap that weights the pair (i, j) by w_i * w_j would count the part of
    single pairs three times. TAR: that of a ratio of class totals. Residuals are divided by 1 - share, the share of the
    pairs that the unit takes part in: a unit that holds most pairs pulls the rate towards itself, and its residual
    would hide how much it differs from the others. The effective number of units of FAR is that of their
    contributions to the variance, so that few units that make most of it count as few.

    Cost: one pass; memory: the class pairs with false accepts.

    Source: Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 23 (2015);
    Bell, McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples", Survey
    Methodology 28 (2002), for residuals by 1 - share; Satterthwaite (1946) for the effective number.
    """
    pairs = accepted_class_pairs(vectors, float(curves.thresholds[0]))
    warnings = rate_warnings(curves, pairs[2], families=vectors.families is not None)
    if vectors.families is not None:
        return replace(_of_units(vectors.families, vectors, curves, pairs), warnings=warnings)
    alone = _of_units(np.arange(len(vectors.classes), dtype=np.int64), vectors, curves, pairs)
    if (groups := find_look_alikes(vectors)) is None:
        return replace(alone, warnings=warnings)
    wider = _wider(alone, _of_units(groups.units, vectors, curves, pairs), clear=groups.clear)
    return replace(wider, warnings=(str(groups), *warnings))


def far_variances(vectors: LabelledVectors, curves: OperatingCurves) -> tuple[float, float, float]:
    """Return class variance, pair variance and units of pooled FAR, as `RateVariances` has them.

    curves: at one threshold, which must accept some negative pair; positives are not looked at.
    """
    pairs = accepted_class_pairs(vectors, float(curves.thresholds[0]))
    if vectors.families is not None:
        return _of_far(vectors.families, vectors, curves, pairs)[:3]
    alone = _of_far(np.arange(len(vectors.classes), dtype=np.int64), vectors, curves, pairs)
    if (groups := find_look_alikes(vectors)) is None:
        return alone[:3]
    grouped, sought = _of_far(groups.units, vectors, curves, pairs), _sought(groups.clear)
    return max(alone[0], grouped[0] / sought), max(alone[1], grouped[1] / sought), alone[2]


def _of_far(
    units: Codes, vectors: LabelledVectors, curves: OperatingCurves, pairs: tuple[Counts, Counts, Counts]
) -> tuple[float, float, float, Rates]:
    """Return class and pair variance of log pooled FAR, its effective units, and the residuals of the units [U]."""
    far, n_classes = float(curves.pooled_far[0]), len(vectors.classes)
    # Pooled FAR gives every image pair the weight u_i + u_j = 1 / N, class-mean FAR (1 / N_i + 1 / N_j) / T.
    weights = np.full(n_classes, 1 / curves.negatives.sum())
    by_unit, by_pair, shares = _residuals(pairs, vectors.sizes, units, far, weights)
    class_variance = max(at_least_even(by_unit, shares) - 2 * by_pair, 0.0) / far**2
    return class_variance, by_pair / far**2, effective_number(by_unit**2), by_unit


def _of_units(
    units: Codes, vectors: LabelledVectors, curves: OperatingCurves, pairs: tuple[Counts, Counts, Counts]
) -> RateVariances:
    """Return the variances if the units of the classes, [T], are drawn one by one."""
    n_classes = len(vectors.classes)
    far, mean_far = float(curves.pooled_far[0]), float(curves.mean_far[0])
    class_variance, pair_variance, far_units, by_unit = _of_far(units, vectors, curves, pairs)
    weights = 1 / (n_classes * curves.negatives)
    of_mean, mean_by_pair, _ = _residuals(pairs, vectors.sizes, units, mean_far, weights)
    once = max(vectors.positive_repeats, 1.0)  # a pair of images is one piece of evidence, in however many rounds
    accepted, positives = (
        by_units(values / once, units) for values in (curves.positives_accepted[:, 0], curves.positives)
    )
    tar_residuals = corrected_residuals(accepted, positives) / max(float(accepted.sum()), 0.5)
    of_precision = float(((by_unit / far - tar_residuals) ** 2).sum()) - pair_variance
    return RateVariances(
        class_variance=class_variance,
        pair_variance=pair_variance,
        mean_far=max(float((of_mean**2).sum()) - mean_by_pair, mean_by_pair) / mean_far**2,
        precision=max(of_precision, pair_variance),
        tar=tar_evidence(accepted, positives),
        far_units=far_units,
        mean_far_units=effective_number(of_mean**2),
    )


def _wider(alone: RateVariances, grouped: RateVariances, *, clear: bool) -> RateVariances:
    """Return the larger of each variance: of classes alone, and of groups of look-alikes by their own evidence.

    FAR stays known from as many units as classes alone: groups are alike because they were sought, and Student's
    quantile of few would widen it once more.
    """
    sought = _sought(clear)
    return RateVariances(
        class_variance=max(alone.class_variance, grouped.class_variance / sought),
        pair_variance=max(alone.pair_variance, grouped.pair_variance / sought),
        mean_far=max(alone.mean_far, grouped.mean_far / sought),
        precision=max(alone.precision, grouped.precision / sought),
        tar=_wider_tar(alone.tar, grouped.tar, clear=clear),
        far_units=alone.far_units,
        mean_far_units=alone.mean_far_units,
    )


def _sought(clear: bool) -> float:
    return _SOUGHT if clear else _SOUGHT_HIDDEN


def _wider_tar(alone: TarEvidence, grouped: TarEvidence, *, clear: bool) -> TarEvidence:
    """Return the evidence if groups are the units: the measured variance of clear groups, the assumed of hidden ones.

    Clear groups are nearly whole, so what they show is trusted as far as the classes with the rarer outcome reach.
    Hidden ones are in pieces and show less than families would: then few groups with that outcome count as little
    evidence, as few families do.
    """
    inverse = 1 / grouped.trials
    if clear:
        measured = alone.known * grouped.measured + (1 - alone.known) / alone.units
        inverse = max(measured, _LEAST_OF_GROUPS / alone.trials)
    trials = min(alone.trials, 1 / inverse)
    variance = alone.variance * alone.trials / trials
    return replace(alone, trials=trials, units=min(alone.units, grouped.units), variance=variance)


def _residuals(
    pairs: tuple[Counts, Counts, Counts], sizes: PairSizes, units: Codes, rate: float, weights: Rates
) -> tuple[Rates, float, Rates]:
    """Return the residual of each unit, by 1 - its share: [U]; the sum of squares over pairs of units; the shares: [U].

    The residual of the class pair (i, j) is (u_i + u_j)(accepted_ij - rate * pairs_ij), weights: u, pairs_ij as
    `PairSizes` has them; that of a unit is the sum over the pairs with an end in it. Most pairs accept nothing and are
    summed by formula: those of two units f and g weigh factor * (one_f . other_g).
    """
    u, q, g, (i, j), accepted = weights, sizes.queries, sizes.items, pairs[:2], pairs[2].astype(np.float64)
    of_pair, first, second = (u[i] + u[j]) * accepted, units[i], units[j]
    one = np.stack([by_units(values, units) for values in (u * q, u * g, q, g)], axis=1)  # [U, 4]
    other = one[:, [3, 2, 1, 0]]
    n_units, inside = len(one), first == second
    # Weight of the pairs inside a unit, and of all its pairs: all sum to 2, for each pair has two ends.
    within = (one * other).sum(axis=1) / 2 - 2 * by_units(u * q * g, units)
    shares = sizes.factor * (within + (one * (other.sum(axis=0) - other)).sum(axis=1))
    by_unit = np.bincount(first, of_pair, n_units) + np.bincount(second[~inside], of_pair[~inside], n_units)
    by_unit = (by_unit - rate * shares) / np.maximum(1 - shares, 1e-9)
    low, high = np.minimum(first, second)[~inside], np.maximum(first, second)[~inside]
    keys, place = np.unique(low * n_units + high, return_inverse=True)
    of_units = np.bincount(place, of_pair[~inside], len(keys))
    low, high = keys // n_units, keys % n_units
    expected = sizes.factor * (one[low] * other[high]).sum(axis=1)
    every_product = ((one.T @ one) * (other.T @ other)).sum() - ((one * other).sum(axis=1) ** 2).sum()
    every_product *= sizes.factor**2 / 2
    by_pair = (of_units**2 - 2 * rate * of_units * expected).sum() + rate**2 * every_product
    return by_unit, float(by_pair), shares


def at_least_even(by_unit: Rates, shares: Rates) -> float:
    """Return the sum of squared residuals, or if it is larger what units as different as these would show at any share.

    Few large units make most of the sum, and by chance they may be alike. The squared differences of the rates of all
    units, weighted by the shares, are known better. With equal shares both are the same.
    """
    relative = np.divide(by_unit**2, shares, out=np.zeros_like(shares), where=shares > 0)
    even = float(relative.sum() / shares.sum() * (shares**2).sum())
    return max(float((by_unit**2).sum()), even)


def by_units(values: Counts | Rates, units: Codes) -> Rates:
    """Return the sums of values of classes [T] over the units: [U] float64."""
    return np.bincount(units, values.astype(np.float64)).astype(np.float64)


def tar_evidence(accepted: Rates, positives: Rates) -> TarEvidence:
    """Return what the positive pairs of the units know about TAR: accepted, positives: [U], 0 without any.

    The measured design effect is trusted as far as many units hold the rarer outcome: if few do, pairs of one unit are
    taken to stand or fall together, as they may in the population.
    """
    total = float(positives.sum())
    rate, units = float(accepted.sum()) / total, effective_number(positives)
    binomial = rate * (1 - rate)
    rarer = effective_number(accepted if rate < 0.5 else positives - accepted)
    known = rarer / (rarer + _KNOWN_FROM)
    measured = max(float((corrected_residuals(accepted, positives) ** 2).sum()) / total**2, binomial / total)
    relative = measured / binomial if binomial > 0 else 0.0
    inverse = known * relative + (1 - known) / units
    smooth = (accepted.sum() + 0.5) / (total + 1)
    variance = float(smooth * (1 - smooth) * inverse)
    return TarEvidence(trials=1 / inverse, units=units, variance=variance, measured=relative, known=known)


def tar_interval(rate: float, trials: float, units: float, confidence: float) -> Interval:
    """Return the interval of TAR from `TarEvidence`; see `clustered_interval`."""
    return clustered_interval(rate, trials, units, confidence)


def predicted_tar_interval(rate: float, known: tuple[float, float], new_trials: float, confidence: float) -> Interval:
    """Return where TAR of a new draw of new_trials effective pairs may lie; known: trials and units of `TarEvidence`.

    The variance of the difference is taken at the mean of both rates, as in a test of two shares, so that a new draw
    without any rejected pair is inside where it is likely; and at the new rate, as in `clustered_interval`. Both ranges
    are kept.

    >>> predicted_tar_interval(0.99, (100, 100), 20, 0.95).high
    1.0
    """
    trials, units = known
    both = 1 / trials + 1 / new_trials
    plain = tar_interval(rate, 1 / both, units, confidence)
    k = student_quantile(units, confidence) ** 2 * both
    own = trials / (trials + new_trials)
    new = 1 - own
    # (rate - new rate)^2 = k * mean * (1 - mean), mean = own * rate + new * new rate
    square, linear = 1 + k * new**2, 2 * rate + k * new * (1 - 2 * own * rate)
    constant = rate**2 - k * own * rate * (1 - own * rate)
    half_width = math.sqrt(max(linear**2 - 4 * square * constant, 0.0)) / (2 * square)
    low, high = linear / (2 * square) - half_width, linear / (2 * square) + half_width
    return Interval(max(min(low, plain.low), 0.0), min(max(high, plain.high), 1.0))


def log_interval(rate: float, variance: float, n_units: float, confidence: float) -> Interval:
    """Return the interval of a rate by the error of its logarithm, with Student's quantile; at most 1.

    The upper end is a tenth further away: a sample of a low rate also shows a low variance, so that the true rate is
    above the symmetric interval three times as often as below.

    >>> print(log_interval(0.01, 0.01, 1000, 0.95))
    0.008218 to 0.01241
    """
    half_width = student_quantile(n_units, confidence) * math.sqrt(variance)
    return Interval(rate * math.exp(-half_width), min(rate * math.exp(min(_UPPER * half_width, 700.0)), 1.0))


def rates_holding(rate: float, variance: float, n_units: float, confidence: float) -> Interval:
    """Return the measured rates whose `log_interval` holds this true rate; at most 1.

    >>> print(rates_holding(0.01, 0.01, 1000, 0.95))
    0.008059 to 0.01217
    """
    half_width = student_quantile(n_units, confidence) * math.sqrt(variance)
    high = min(rate * math.exp(min(half_width, 700.0)), 1.0)
    return Interval(rate * math.exp(-_UPPER * half_width), high)


def predicted_interval(rate: float, variances: tuple[float, float], n_units: float, confidence: float) -> Interval:
    """Return where the same rate of a new draw may lie: variances of its logarithm in the old and in the new draw.

    It is that of `log_interval`, with a lower end that reaches 0 where the new draw may hold no event at all: if a rate
    counts events, its variance falls with it, and the lower end is the smallest y with
    (1 - y)^2 <= quantile^2 * (new + old * y), y: the new rate over the old one.

    >>> predicted_interval(0.01, (1.0, 1.0), 1000, 0.95).low
    0.0
    """
    old, new = (variance * student_quantile(n_units, confidence) ** 2 for variance in variances)
    middle = 1 + old / 2
    low = middle - math.sqrt(middle**2 - 1 + new) if new < 1 else 0.0
    symmetric = log_interval(rate, sum(variances), n_units, confidence)
    return Interval(min(rate * max(low, 0.0), symmetric.low), symmetric.high)
