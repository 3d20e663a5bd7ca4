"""OPIS and eps-OPIS: how far apart the classes are at one threshold for all, with noise floor and interval.

`debiased` subtracts the noise; `comparison` compares two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.intervals import Interval, percentile_interval
from retrieval.consistency.opis.debiased import DebiasedMethod, DebiasedShares, debiased_shares
from retrieval.consistency.opis.extremes import extreme_gap, extreme_gap_floor
from retrieval.consistency.opis.noise import (
    SharedCurve,
    TarNoise,
    independent_pairs,
    measure_agreement,
    noise_floor,
    pair_noise,
)
from retrieval.consistency.opis.noise import pair_correlation as measured_correlation
from retrieval.consistency.opis.options import OpisOptions
from retrieval.consistency.opis.query_noise import query_noise
from retrieval.consistency.opis.utility import Axis, Band, class_utilities, rates_at_nodes, threshold_limits
from retrieval.consistency.opis.weighting import mean_over_classes, resampled_weights
from retrieval.consistency.pairs.selection import one_pass_grid
from retrieval.consistency.pairs.vectors import LabelledVectors, VectorsOrPair, as_labelled, check_one_population
from retrieval.errors import InvalidInput, NotEnoughEvidence

_BAND_THRESHOLDS = 1000
# Nodes for what varies smoothly over the band: noise, its floor, and the shift of the mean in a bootstrap replicate.
_THIN_NODES = 65
# Around a target: a decade on either side, as far as the pairs show it.
_DECADE = 10.0
_LOOSEST = 0.5
_SHOWN_FALSE_ACCEPTS = 10.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OpisResult:
    """OPIS with what is needed to read it; the intervals have the stated confidence."""

    value: float  # plain OPIS
    floor: float  # the OPIS expected of as many classes and images if all classes shared one curve
    interval: Interval  # bootstrap over classes of the plain value
    debiased: float | None  # the estimate of OPIS without the part by chance; it may be slightly below 0
    debiased_interval: Interval | None  # from 0 to the most that the data allow if the method is "bound"
    # "pairs": estimated from classes of four images or more; "bound": all classes are smaller, so no estimate exists;
    # None: nothing was measured.
    debiased_method: DebiasedMethod | None
    eps_opis: float  # the gap between the worst and the best classes
    eps_floor: float
    eps_interval: Interval
    far_low: float  # pooled FAR at the ends of the band
    far_high: float
    axis: Axis
    weighting: str  # "equal", "images" or "given"
    n_classes: int  # counted
    n_excluded: int  # left out because they have no positive pair
    pair_correlation: float  # of positive pairs that share an image, in rounds a query, as the floors take it
    confidence: float
    shares: DebiasedShares | None = field(default=None, repr=False, compare=False)  # behind the debiased estimate

    def to_json(self) -> dict[str, Any]:
        """Return all fields except shares, which are arrays."""
        document = asdict(replace(self, shares=None))
        del document["shares"]
        return document

    def __str__(self) -> str:
        parts = [f"{100 * self.confidence:g} % interval {self.interval}", f"noise floor {self.floor:.3g}"]
        if self.debiased is not None:
            parts.append(f"debiased {self.debiased:.3g}, {self.debiased_interval}")
        elif self.debiased_interval is not None:
            parts.append(f"debiased at most {self.debiased_interval.high:.3g}; an estimate needs more images per class")
        parts.append(f"eps-OPIS {self.eps_opis:.3g}, {self.eps_interval}, noise floor {self.eps_floor:.3g}")
        weighted = "" if self.weighting == "equal" else f" weighted by {self.weighting}"
        text = (
            f"OPIS {self.value:.3g} ({'; '.join(parts)}) over {self.n_classes} classes{weighted}, "
            f"pooled FAR {self.far_low:.3g} to {self.far_high:.3g}, {self.axis} axis"
        )
        return text + (f", {self.n_excluded} classes without a positive pair left out" if self.n_excluded else "")


@checked
def measure_opis(
    curves: OperatingCurves,
    options: OpisOptions = OpisOptions(),
    *,
    pair_correlation: float = 0.0,
    rng: np.random.Generator,
) -> OpisResult:
    """Return the mean over classes and band of the squared deviation of a class's utility from the mean utility.

    eps-OPIS is the mean squared gap between the mean utilities of the worst and the best eps percent of the classes,
    ranked once by mean over the band. Curves hold no images: debiased is None, and with pair_correlation 0 the floors
    take positive pairs as independent, which is too low for classes of more than two images (half at five).
    `consistency_report` measures both.

    Cost: linear in classes times thresholds, about 0.1 s per million.

    Raises:
        InvalidInput: impossible options or pair_correlation, curves that do not cover the band, or axis "distance" for
            scores that are not cosine.
        NotEnoughEvidence: fewer than two classes with positives, or fewer than 10 false accepts expected at far_low.

    Source: Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024
    (arXiv 2307.04047), definitions of OPIS and eps-OPIS.

    >>> curves = OperatingCurves(  # TAR 1 and 0.5 at FAR 0.5: utilities 2/3 and 1/2, each 1/12 from their mean
    ...     classes=("a", "b"), n_images=np.array([5, 5]), thresholds=np.array([0.0, 0.5, 0.9]),
    ...     positives_accepted=np.array([[10] * 3, [5] * 3]), negatives_accepted=np.full((2, 3), 10),
    ...     positives=np.array([10, 10]), negatives=np.array([20, 20]), cosine=True)
    >>> result = measure_opis(curves, OpisOptions(distance_range=(0.6, 1.2)), rng=np.random.default_rng(0))
    >>> round(result.value * 144, 6), round(result.eps_opis * 36, 6)
    (1.0, 1.0)
    """
    if not 0 < options.eps <= 50 or not 0 <= pair_correlation <= 1:
        raise InvalidInput(
            f"eps is a percentage in (0, 50], pair_correlation lies in [0, 1]; found {options.eps} and "
            f"{pair_correlation}"
        )
    independent = independent_pairs(curves.n_images[curves.with_positives], pair_correlation)
    return _measured(curves, options, (pair_correlation, independent), rng)


def _measured(
    curves: OperatingCurves, options: OpisOptions, known: tuple[float, Rates], rng: np.random.Generator
) -> OpisResult:
    """Return the result of curves; known: the correlation of positive pairs, and independent pairs of each class."""
    n_classes = len(curves.classes) - curves.n_excluded
    if n_classes < 2:
        raise NotEnoughEvidence(f"OPIS compares classes with positive pairs: at least 2 are needed, found {n_classes}")
    band = options.band_of(curves)
    weights = options.weights_of(curves)
    utilities = class_utilities(curves, band, options.c)
    utilities -= weights @ utilities  # only differences count, and small numbers do not cancel
    shares = np.einsum("tp,tp,p->t", utilities, utilities, band.weights)
    thin = band.thinned(_THIN_NODES)
    columns = np.searchsorted(band.nodes, thin.nodes)
    interval, eps_interval = _intervals(shares, utilities[:, columns], thin, weights, options, rng)
    mean_tar = weights @ rates_at_nodes(curves, thin)[0]
    null = SharedCurve(thin, mean_tar, known[1], weights, options.c)
    return OpisResult(
        value=float(weights @ shares),
        floor=noise_floor(null),
        interval=interval,
        debiased=None,
        debiased_interval=None,
        debiased_method=None,
        eps_opis=float(extreme_gap(utilities, band, weights, options.eps)),
        eps_floor=extreme_gap_floor(null, options.eps, rng),
        eps_interval=eps_interval,
        far_low=float(band.pooled_far[-1]),
        far_high=float(band.pooled_far[0]),
        axis=options.axis,
        weighting=options.weighting if isinstance(options.weighting, str) else "given",
        n_classes=n_classes,
        n_excluded=curves.n_excluded,
        pair_correlation=known[0],
        confidence=options.confidence,
    )


def _intervals(
    shares: Rates, utilities: Rates, thin: Band, weights: Rates, options: OpisOptions, rng: np.random.Generator
) -> tuple[Interval, Interval]:
    """Return the intervals of OPIS and eps-OPIS; utilities: [T', nodes of thin], deviations from the mean."""
    plain, extreme = [], []
    for drawn in resampled_weights(weights, options.n_bootstrap, rng):
        plain.append(drawn @ shares - thin.mean((drawn @ utilities) ** 2))
        extreme.append(extreme_gap(utilities, thin, drawn, options.eps))
    intervals = (percentile_interval(np.concatenate(parts), options.confidence) for parts in (plain, extreme))
    return next(intervals), next(intervals)


@checked
def consistency_around(
    vectors: VectorsOrPair,
    target_far: float,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
) -> OpisResult:
    """Return `consistency_report` over log FAR, from a tenth of the target to ten times it: where the threshold works.

    The band of the paper, FAR 1 to 10 %, lies far from a threshold for one false match in a thousand. The strict end is
    the FAR that these pairs can show with 10 false accepts if that is higher than a tenth of the target, the loose end
    at most 0.5; the result states both.

    Raises:
        InvalidInput, InvalidEmbeddings: see `consistency_report`; also target_far outside (0, 0.5).
        NotEnoughEvidence: fewer than 10 false accepts expected at the target; or see `consistency_report`.
    """
    if not 0 < target_far < _LOOSEST:
        raise InvalidInput(f"target_far: expected a number between 0 and {_LOOSEST}, found {target_far}")
    vectors = as_labelled(vectors)
    # The pilot of the grid and the band itself round a count up or down by one.
    n_pairs = vectors.n_negatives // max(len(vectors.rounds), 1)  # of one round, which is measured by itself
    shown = _SHOWN_FALSE_ACCEPTS / max(n_pairs, 1)
    if shown >= target_far:
        raise NotEnoughEvidence(
            f"OPIS around a FAR of {target_far:g} needs about {_SHOWN_FALSE_ACCEPTS / target_far:.2g} negative pairs, "
            f"found {n_pairs}; add images or classes"
        )
    low, high = max(target_far / _DECADE, shown), min(target_far * _DECADE, _LOOSEST)
    options = OpisOptions(far_low=low, far_high=high, axis="log_far", confidence=confidence, n_bootstrap=n_bootstrap)
    return consistency_report(vectors, options, rng=rng)


@checked
def consistency_report(
    vectors: VectorsOrPair, options: OpisOptions = OpisOptions(), *, rng: np.random.Generator
) -> OpisResult:
    """Return what `measure_opis` returns, with the debiased estimate and the floors measured on the images themselves.

    vectors: one set of images without excluded pairs, as labelled vectors or as a plain (embeddings, labels); or
    rounds of one, see `in_rounds`. In rounds every figure is the mean over the rounds, and the noise is that of the
    draw of queries given the gallery, which takes classes of two queries.

    The variance of a class's TAR is measured without bias on its pairs without a common image, which takes four images,
    and subtracted; smaller classes are left out of the estimate. With a true OPIS of 0.037 it reads 0.037 and 0.038
    with 4 and 5 images a class, while the covariance of halves of the images reads 0.057 and 0.053; with 0.0019, about
    0.0022 with half of their standard deviation. FAR is taken as measured: its noise is a hundredth of TAR's.

    With fewer than 10 classes of four images only a bound exists, see `OpisResult` and `noise_of_tar`. With fewer than
    10 classes nothing is measured.

    Cost: about 3 times that of `operating_curves` with given thresholds; the debiased estimate adds only the pairs
    inside classes.

    Raises:
        InvalidInput, NotEnoughEvidence: see `measure_opis`; also two sets of images, or excluded pairs.
        InvalidEmbeddings: see `labelled`.
    """
    vectors = as_labelled(vectors)
    check_one_population(vectors)
    if vectors.rounds:
        rounds = (vectors.one_round(number) for number in range(len(vectors.rounds)))
        return _over_rounds([_report(one, options, rng) for one in rounds], options, rng)
    return _report(vectors, options, rng)


def _report(vectors: LabelledVectors, options: OpisOptions, rng: np.random.Generator) -> OpisResult:
    """Return the result of one set of images, or of one round, with the debiased estimate."""
    grid = one_pass_grid(vectors, far_low=options.far_low, far_high=options.far_high, n_band=_BAND_THRESHOLDS)
    if options.distance_range is not None:
        grid = np.union1d(grid, np.linspace(*threshold_limits(options.distance_range), _BAND_THRESHOLDS))
    curves = count_accepted(vectors, grid)
    thin = options.band_of(curves).thinned(_THIN_NODES)
    weights = options.weights_of(curves)
    noise, known = _noise_of(vectors, thin.nodes, weights)
    plain = _measured(curves, options, known, rng)
    shares = debiased_shares(curves, noise, thin, weights=weights, c=options.c)
    return plain if shares is None else _with_shares(plain, shares, options, rng)


def _noise_of(vectors: LabelledVectors, levels: Rates, weights: Rates) -> tuple[TarNoise, tuple[float, Rates]]:
    """Return the noise of TAR at the levels, and what `_measured` takes as known."""
    if not vectors.one_set:
        noise, correlation, independent = query_noise(vectors, levels, weights)
        return noise, (correlation, independent)
    agreement = measure_agreement(vectors, levels)
    correlation = measured_correlation(agreement, weights)
    return pair_noise(agreement, weights), (correlation, independent_pairs(agreement.n_images, correlation))


def _with_shares(
    plain: OpisResult, shares: DebiasedShares, options: OpisOptions, rng: np.random.Generator
) -> OpisResult:
    """Return the result with the debiased estimate, or its bound, that the shares of the classes make."""
    found = mean_over_classes(
        shares.shares, shares.weights, n_bootstrap=options.n_bootstrap, confidence=options.confidence, rng=rng
    )
    estimated = shares.method == "pairs"
    return replace(
        plain,
        debiased=found.value if estimated else None,
        debiased_interval=found.interval if estimated else Interval(0.0, max(0.0, found.interval.high)),
        debiased_method=shares.method,
        shares=shares,
    )


def _over_rounds(results: Sequence[OpisResult], options: OpisOptions, rng: np.random.Generator) -> OpisResult:
    """Return the means over rounds; the same classes count in each, so the shares of a class have a mean, too."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(result, name) for result in results]))

    def mean_interval(name: str) -> Interval:
        ends = [getattr(result, name) for result in results]
        return Interval(float(np.mean([end.low for end in ends])), float(np.mean([end.high for end in ends])))

    plain = replace(
        results[0],
        value=mean("value"),
        floor=mean("floor"),
        interval=mean_interval("interval"),
        eps_opis=mean("eps_opis"),
        eps_floor=mean("eps_floor"),
        eps_interval=mean_interval("eps_interval"),
        far_low=mean("far_low"),
        far_high=mean("far_high"),
        pair_correlation=mean("pair_correlation"),
    )
    parts = [result.shares for result in results if result.shares is not None]
    if len(parts) < len(results):
        return plain
    shares = replace(parts[0], shares=np.mean([part.shares for part in parts], axis=0))
    return _with_shares(plain, shares, options, rng)
