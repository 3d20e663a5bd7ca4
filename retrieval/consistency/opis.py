"""How far apart the classes are when one threshold serves them all: OPIS and eps-OPIS with noise floor and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.intervals import Interval, class_weights, percentile_interval
from retrieval.consistency.noise import debiased_shares, measure_pair_correlation, noise_floor
from retrieval.consistency.pairs import Vectors, labelled_vectors
from retrieval.consistency.selection import build_grid
from retrieval.consistency.utility import Axis, Band, class_utilities, find_band, threshold_limits
from retrieval.errors import InvalidInput, NotEnoughEvidence

_BAND_THRESHOLDS = 1000


@dataclass(frozen=True, slots=True)
class OpisResult:
    """OPIS with what is needed to read it.

    value: plain OPIS; floor: the OPIS expected of as many classes and images if all classes shared one curve;
    interval: bootstrap over classes of the plain value; debiased, debiased_interval: the estimate from halves, without
    noise, may fall slightly below 0, None where it was not measured; eps_opis: see `opis`; far_low, far_high: pooled
    FAR at the ends of the band; n_classes: classes counted; n_excluded: classes left out for want of a positive pair;
    pair_correlation: of positive pairs that share an image, as the floor takes it; confidence: of both intervals.
    """

    value: float
    floor: float
    interval: Interval
    debiased: float | None
    debiased_interval: Interval | None
    eps_opis: float
    far_low: float
    far_high: float
    axis: Axis
    n_classes: int
    n_excluded: int
    pair_correlation: float
    confidence: float

    def __str__(self) -> str:
        parts = [f"{100 * self.confidence:g} % interval {self.interval}", f"noise floor {self.floor:.3g}"]
        if self.debiased is not None:
            parts.append(f"debiased {self.debiased:.3g}, {self.debiased_interval}")
        parts.append(f"eps-OPIS {self.eps_opis:.3g}")
        text = (
            f"OPIS {self.value:.3g} ({'; '.join(parts)}) over {self.n_classes} classes, "
            f"pooled FAR {self.far_low:.3g} to {self.far_high:.3g}, {self.axis} axis"
        )
        return text + (f", {self.n_excluded} classes without a positive pair left out" if self.n_excluded else "")


def opis(
    curves: OperatingCurves,
    *,
    far_low: float = 1e-2,
    far_high: float = 1e-1,
    axis: Axis = "distance",
    distance_range: tuple[float, float] | None = None,
    c: float = 1.0,
    eps: float = 10.0,
    pair_correlation: float = 0.0,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
) -> OpisResult:
    """Return the mean over classes and band of the squared deviation of a class's utility from the mean utility.

    The band holds the thresholds at which the pooled FAR lies between far_low and far_high, or the distances between
    distance_range = (d_min, d_max). axis "distance" integrates over d = sqrt(2 - 2 s) and needs cosine scores;
    "log_far" integrates over the logarithm of the pooled FAR and so compares scores and models. eps-OPIS is the mean
    squared gap between the mean utilities of the worst and the best eps percent of the classes, ranked once by mean
    over the band.
    Curves hold no images: debiased is None, and with pair_correlation 0 the floor takes positive pairs as independent,
    which is too low for classes of more than two images (half at five). `consistency_report` measures both.

    Raises:
        InvalidInput: limits, axis, c, eps or pair_correlation are impossible, the curves do not cover the band, or axis
            "distance" is asked of scores that are not cosine.
        NotEnoughEvidence: fewer than two classes with positives, or fewer than 10 false accepts expected at far_low.

    Source: Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024
    (arXiv 2307.04047), definitions of OPIS and eps-OPIS.
    """
    if not 0 < eps <= 50 or not 0 <= pair_correlation <= 1:
        raise InvalidInput(
            f"eps is a percentage in (0, 50], pair_correlation lies in [0, 1]; found {eps} and {pair_correlation}"
        )
    n_classes = len(curves.classes) - curves.n_excluded
    if n_classes < 2:
        raise NotEnoughEvidence(f"OPIS compares classes with positive pairs: at least 2 are needed, found {n_classes}")
    band = find_band(curves, far_low=far_low, far_high=far_high, axis=axis, distance_range=distance_range)
    utilities = class_utilities(curves, band, c)
    return OpisResult(
        value=float(band.mean(utilities.var(axis=0))),
        floor=noise_floor(curves, band, c=c, pair_correlation=pair_correlation, rng=rng),
        interval=_interval(utilities, band, rng, n_bootstrap, confidence),
        debiased=None,
        debiased_interval=None,
        eps_opis=_extreme_gap(utilities, band, eps),
        far_low=float(band.pooled_far[-1]),
        far_high=float(band.pooled_far[0]),
        axis=axis,
        n_classes=n_classes,
        n_excluded=curves.n_excluded,
        pair_correlation=pair_correlation,
        confidence=confidence,
    )


def consistency_report(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    far_low: float = 1e-2,
    far_high: float = 1e-1,
    axis: Axis = "distance",
    distance_range: tuple[float, float] | None = None,
    c: float = 1.0,
    eps: float = 10.0,
    rng: np.random.Generator,
    n_splits: int = 8,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    tile: int = 1024,
) -> OpisResult:
    """Return what `opis` returns, with the debiased estimate and the floor measured on the images themselves.

    Each split deals the images of every class that has at least four into two halves. Noise of the halves is
    independent, so the covariance over classes of their utilities holds only spread between classes; it is averaged
    over n_splits. Halves of two or three images exaggerate that spread, because utility bends at low TAR: in a
    synthetic family a true 0.024 is read as 0.025 from 20 images a class, 0.027 from 10 and 0.041 from 5. Below about
    10 images, value - floor (0.024, 0.025, 0.029) is nearer. With fewer than 10 such classes debiased stays None.

    Cost: about 3 + n_splits / 2 times that of `operating_curves` with given thresholds.

    Raises:
        InvalidInput, NotEnoughEvidence: see `opis`; n_splits below 1.
        InvalidEmbeddings: see `labelled_vectors`.
    """
    if n_splits < 1:
        raise InvalidInput(f"n_splits must be at least 1, found {n_splits}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    grid = build_grid(vectors, far_low=far_low, far_high=far_high, n_band=_BAND_THRESHOLDS, tile=tile)
    if distance_range is not None:
        grid = np.union1d(grid, np.linspace(*threshold_limits(distance_range), _BAND_THRESHOLDS))
    curves = count_accepted(vectors, grid, tile=tile)
    band = find_band(curves, far_low=far_low, far_high=far_high, axis=axis, distance_range=distance_range)
    plain = opis(
        curves,
        far_low=far_low,
        far_high=far_high,
        axis=axis,
        distance_range=distance_range,
        c=c,
        eps=eps,
        pair_correlation=measure_pair_correlation(vectors, band),
        rng=rng,
        n_bootstrap=n_bootstrap,
        confidence=confidence,
    )
    shares = debiased_shares(vectors, band, c=c, n_splits=n_splits, rng=rng, tile=tile)
    if len(shares) == 0:
        return plain
    replicates = class_weights(len(shares), n_bootstrap, rng) @ shares / len(shares)
    return replace(
        plain,
        debiased=float(shares.mean()),
        debiased_interval=percentile_interval(replicates, confidence),
    )


def _interval(utilities: Rates, band: Band, rng: np.random.Generator, n_bootstrap: int, confidence: float) -> Interval:
    weights = class_weights(len(utilities), n_bootstrap, rng) / len(utilities)
    centred = utilities - utilities.mean(axis=0)  # keeps the difference of squares below from cancelling
    variances = weights @ centred**2 - (weights @ centred) ** 2
    return percentile_interval(band.mean(variances), confidence)


def _extreme_gap(utilities: Rates, band: Band, eps: float) -> float:
    n_extreme = max(1, int(len(utilities) * eps / 100))
    ranked = utilities[np.argsort(band.mean(utilities), kind="stable")]
    gap = ranked[:n_extreme].mean(axis=0) - ranked[-n_extreme:].mean(axis=0)
    return float(band.mean(gap**2))
