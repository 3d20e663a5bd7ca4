"""The mathematics of thresholds: labelled vectors in, values with their uncertainty out.

Arrays only: no files, no clock, no environment; randomness is an argument.
"""

from retrieval.consistency.calibration import (
    IsotonicCalibrator,
    Reliability,
    fit_isotonic,
    fit_isotonic_scores,
    reliability,
)
from retrieval.consistency.certificate import Certificate, certify
from retrieval.consistency.curves import OperatingCurves, operating_curves, query_gallery_curves
from retrieval.consistency.intervals import Interval, wilson_interval
from retrieval.consistency.opis import OpisResult, consistency_report, opis
from retrieval.consistency.pair_samples import SampledCurves, judged_curves, sampled_curves
from retrieval.consistency.ranking import map_at_r, recall_at_k
from retrieval.consistency.selection import threshold_grid, thresholds_at_far
from retrieval.consistency.separation import ScoreHistograms, score_histograms
from retrieval.consistency.subgroups import GroupRates, class_rates, group_rates
from retrieval.consistency.thresholds import ThresholdChoice, choose_threshold_for_far

__all__ = [
    "Certificate",
    "GroupRates",
    "Interval",
    "IsotonicCalibrator",
    "OperatingCurves",
    "OpisResult",
    "Reliability",
    "SampledCurves",
    "ScoreHistograms",
    "ThresholdChoice",
    "certify",
    "choose_threshold_for_far",
    "class_rates",
    "consistency_report",
    "fit_isotonic",
    "fit_isotonic_scores",
    "group_rates",
    "judged_curves",
    "map_at_r",
    "operating_curves",
    "opis",
    "query_gallery_curves",
    "recall_at_k",
    "reliability",
    "sampled_curves",
    "score_histograms",
    "threshold_grid",
    "thresholds_at_far",
    "wilson_interval",
]
