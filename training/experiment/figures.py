"""Measures the embeddings of one run under one score: the figures that an experiment compares.

Decides which figures there are, and on which classes a threshold is chosen and a figure measured. `compared.py` fits
the score, `summary.py` combines seeds and arms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from retrieval.consistency import (
    Axis,
    DebiasedShares,
    LabelledVectors,
    OpisOptions,
    OpisResult,
    consistency_report,
    map_at_r,
    operating_curves,
    percentile_interval,
    recall_at_k,
    resampled_weights,
    stranger_rate,
    thresholds_at_far,
)
from retrieval.errors import NotEnoughEvidence
from training.embeddings import Embedded
from training.experiment.compared import Compare, Compared, in_pairs, in_searches
from training.experiment.scores import ScoreConfig
from training.limits import HALF_A_DECADE, MIN_FALSE_ACCEPTS, PAPER_BAND

TAR_FARS = (1e-2, 1e-3, 1e-4)
_N_BOOTSTRAP = 200  # only the values are used, intervals are computed over seeds
_N_DRAWS = 1000  # draws of classes, to test whether a value is above 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run under one score, on the test classes. A figure is None if the images do not allow it, see `missing`.

    r_at_1, map_at_r: of the ranking. opis_*: debiased OPIS, over the pooled FARs 1e-2 to 1e-1 on the axes of distance
    (cosine only) and of log FAR, and over the decade around the deployed FAR on the axis of log FAR. tar_at_*: pooled
    TAR at a pooled FAR of 1e-2 and so on. transfer_*: at the threshold for the deployed FAR on the calibration classes:
    pooled FAR, pooled TAR, and the mean TAR of the tenth of the classes with the lowest TAR. strangers_far: the pooled
    FAR of queries whose class is absent at that threshold, in units of the deployed FAR; in searches only. training_s:
    seconds that the training process took, including its start and its own evaluation.
    """

    r_at_1: float | None
    map_at_r: float | None
    opis_distance: float | None
    opis_log_far: float | None
    opis_deployed: float | None
    tar_at_1e_2: float | None
    tar_at_1e_3: float | None
    tar_at_1e_4: float | None
    transfer_far: float | None
    transfer_tar: float | None
    transfer_worst_tar: float | None
    strangers_far: float | None
    training_s: float | None


FIGURES = tuple(field.name for field in fields(Figures))
OPIS_FIGURES = ("opis_distance", "opis_log_far", "opis_deployed")


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The figures of one run, and the values that a comparison of runs needs.

    missing: why a figure is None, by its name; shares: contributions of the classes to an OPIS on the log-FAR axis, by
    its name; classes: names, to which the rows of the shares refer; above_zero: names of the OPIS figures that are
    above 0 in 97.5 % of the draws of classes, so that a ratio to them is meaningful.
    """

    figures: Figures
    missing: Mapping[str, str]
    shares: Mapping[str, DebiasedShares]
    classes: tuple[str, ...]
    above_zero: frozenset[str]


def measure(
    parts: Mapping[str, Embedded],
    score: ScoreConfig,
    *,
    far_target: float,
    training_s: float | None,
    compare: Compare = "pairs",
) -> Measured:
    """Fit the score, choose the threshold on the part `calibration`, and measure on `test`.

    Raises NotEnoughEvidence if there are too few images for the score, or test holds no two classes or no pair.
    """
    compared = (in_pairs if compare == "pairs" else in_searches)(parts, score, far_target=far_target)
    missing: dict[str, str] = {}
    opis, shares, above_zero = _consistency(compared.test, far_target, missing)
    figures = Figures(
        r_at_1=recall_at_k(compared.test)[1],
        map_at_r=map_at_r(compared.test),
        **opis,
        **_tars(compared.test, missing),
        **_transfer(compared, far_target, missing),
        training_s=training_s,
    )
    if training_s is None:
        missing["training_s"] = "training was interrupted"
    return Measured(figures, missing, shares, compared.test.classes, above_zero)


def _consistency(
    vectors: LabelledVectors, far_target: float, missing: dict[str, str]
) -> tuple[dict[str, float | None], dict[str, DebiasedShares], frozenset[str]]:
    around = (far_target / HALF_A_DECADE, far_target * HALF_A_DECADE)
    bands: tuple[tuple[str, tuple[float, float], Axis], ...] = (
        ("opis_distance", PAPER_BAND, "distance"),
        ("opis_log_far", PAPER_BAND, "log_far"),
        ("opis_deployed", around, "log_far"),
    )
    values: dict[str, float | None] = dict.fromkeys(OPIS_FIGURES)
    shares, above_zero = {}, set()
    for name, band, axis in bands:
        if axis == "distance" and not vectors.cosine:
            missing[name] = (
                "searches are compared on the log-FAR axis" if vectors.rounds else "only the cosine has a distance"
            )
            continue
        try:
            found = _opis(vectors, band, axis)
        except NotEnoughEvidence as error:
            missing[name] = str(error)
            continue
        values[name] = found.debiased
        of_classes = found.shares
        if found.debiased is None or of_classes is None:
            missing[name] = "debiased OPIS needs 10 classes of 4 images or more"
            continue
        if _is_above_zero(of_classes):
            above_zero.add(name)
        if axis == "log_far":
            shares[name] = of_classes
    return values, shares, frozenset(above_zero)


def _is_above_zero(of_classes: DebiasedShares) -> bool:
    """Return whether OPIS is above 0, by the rule by which `compare_consistency` computes a ratio."""
    draws = resampled_weights(of_classes.weights, _N_DRAWS, np.random.default_rng(0))
    replicates = np.concatenate([drawn @ of_classes.shares for drawn in draws])
    return percentile_interval(replicates, 0.95).low > 0


def _opis(vectors: LabelledVectors, band: tuple[float, float], axis: Axis) -> OpisResult:
    options = OpisOptions(far_low=band[0], far_high=band[1], axis=axis, n_bootstrap=_N_BOOTSTRAP)
    return consistency_report(vectors, options, rng=np.random.default_rng(0))


def _tars(vectors: LabelledVectors, missing: dict[str, str]) -> dict[str, float | None]:
    names = {far: f"tar_at_1e_{round(-np.log10(far))}" for far in TAR_FARS}
    values: dict[str, float | None] = dict.fromkeys(names.values())
    n_pairs = _n_negatives(vectors)
    measurable = [far for far in TAR_FARS if far * n_pairs >= MIN_FALSE_ACCEPTS]
    for far in set(TAR_FARS) - set(measurable):
        missing[names[far]] = f"{n_pairs} negative pairs give fewer than {MIN_FALSE_ACCEPTS} false accepts"
    if measurable:
        thresholds = thresholds_at_far(vectors, measurable)
        curves = operating_curves(vectors, thresholds=thresholds)
        for far, threshold in zip(measurable, thresholds, strict=True):
            values[names[far]] = float(curves.at(threshold).pooled_tar[0])
    return values


def _transfer(compared: Compared, far_target: float, missing: dict[str, str]) -> dict[str, float | None]:
    names = ("transfer_far", "transfer_tar", "transfer_worst_tar", "strangers_far")
    if compared.strangers is None:
        missing["strangers_far"] = "pairs of one set have no absent class"
    n_pairs = _n_negatives(compared.calibration)
    if far_target * n_pairs < MIN_FALSE_ACCEPTS:
        missing |= dict.fromkeys(names, f"{n_pairs} negative calibration pairs are too few for FAR {far_target:g}")
        return dict.fromkeys(names)
    (threshold,) = thresholds_at_far(compared.calibration, [far_target])
    curves = operating_curves(compared.test, thresholds=[threshold])
    lowest = np.sort(curves.tar[:, 0])[: max(1, round(len(curves.tar) / 10))]
    met = None if compared.strangers is None else stranger_rate(compared.strangers, float(threshold))
    return {
        "transfer_far": float(curves.pooled_far[0]),
        "transfer_tar": float(curves.pooled_tar[0]),
        "transfer_worst_tar": float(lowest.mean()),
        "strangers_far": None if met is None else met.far / far_target,
    }


def _n_negatives(vectors: LabelledVectors) -> int:
    """Return the number of negative pairs of images; in rounds, each is counted several times."""
    return round(vectors.n_negatives / vectors.repeats)
