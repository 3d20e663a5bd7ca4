"""The mathematics of thresholds: labelled vectors in, values with their uncertainty out.

Arrays only: no files, no clock, no environment; randomness is an argument.
"""

from retrieval.consistency.calibration.calibration import CALIBRATOR_KINDS, fit_scores
from retrieval.consistency.calibration.calibrator import Calibrator
from retrieval.consistency.calibration.calibrators import calibrator_from_json
from retrieval.consistency.calibration.calibrators_parametric import BetaCalibrator, PlattCalibrator
from retrieval.consistency.calibration.choice import (
    CalibratorComparison,
    CalibratorScore,
    cross_validate_calibrators,
    fit_best_calibrator,
)
from retrieval.consistency.calibration.kinds import IsotonicCalibrator, VennAbersCalibrator
from retrieval.consistency.calibration.reliability import Reliability, reliability
from retrieval.consistency.curves.curves import OperatingCurves, operating_curves, query_gallery_curves
from retrieval.consistency.curves.pair_samples import SampledCurves, judged_curves, sampled_curves
from retrieval.consistency.drift.cohort_fit import CohortFit, cohort_fit
from retrieval.consistency.drift.size import DriftSize, drift_size
from retrieval.consistency.drift.state import DriftState
from retrieval.consistency.drift.transfer import TransferredThreshold, transfer_threshold
from retrieval.consistency.drift.watch import look_for_drift, start_drift
from retrieval.consistency.identification import IdentificationRates, identification_rates, largest_gallery
from retrieval.consistency.intervals import Interval, wilson_interval
from retrieval.consistency.normalisation import Whitening, fit_whitening
from retrieval.consistency.opis.comparison import OpisComparison, compare_consistency
from retrieval.consistency.opis.opis import OpisResult, consistency_report, opis
from retrieval.consistency.opis.weighting import Weighting
from retrieval.consistency.pairs.pairs import LabelledVectors, crossed_vectors, labelled_vectors
from retrieval.consistency.pairs.selection import threshold_grid, thresholds_at_far
from retrieval.consistency.ranking import map_at_r, recall_at_k
from retrieval.consistency.robustness import DecisionFlips, Flips, Share, decision_flips
from retrieval.consistency.separation.class_confusions import ConfusedWith, class_confusions
from retrieval.consistency.separation.confusion import ConfusedPair, Confusion, ScoredPair, most_confused
from retrieval.consistency.separation.histograms import ScoreHistograms, score_histograms
from retrieval.consistency.separation.mislabelled import LabelMargins, SuspectLabel, label_margins
from retrieval.consistency.subgroups.comparison import CrossRate, GroupComparison, compare_groups
from retrieval.consistency.subgroups.differentials import (
    GroupTest,
    RateDifferential,
    fairness_discrepancy_rate,
    garbe,
    gini,
    holm,
    max_geometric_mean,
    max_min_ratio,
)
from retrieval.consistency.subgroups.rates import GroupRates, class_rates, group_rates
from retrieval.consistency.thresholds.certificate import Certificate, MeanCertificate, certify, certify_mean
from retrieval.consistency.thresholds.choice import ThresholdChoice, choose_threshold
from retrieval.consistency.thresholds.comparison import (
    ClassDecisionChange,
    ThresholdComparison,
    compare_thresholds,
)
from retrieval.consistency.thresholds.cross_fitted import CrossFittedRates, cross_fitted_rates
from retrieval.consistency.thresholds.targets import Target, parse_target

__all__ = [
    "CALIBRATOR_KINDS",
    "BetaCalibrator",
    "Calibrator",
    "CalibratorComparison",
    "CalibratorScore",
    "Certificate",
    "ClassDecisionChange",
    "CohortFit",
    "ConfusedPair",
    "ConfusedWith",
    "Confusion",
    "CrossFittedRates",
    "CrossRate",
    "DecisionFlips",
    "DriftSize",
    "DriftState",
    "Flips",
    "GroupComparison",
    "GroupRates",
    "GroupTest",
    "IdentificationRates",
    "Interval",
    "IsotonicCalibrator",
    "LabelMargins",
    "LabelledVectors",
    "MeanCertificate",
    "OperatingCurves",
    "OpisComparison",
    "OpisResult",
    "PlattCalibrator",
    "RateDifferential",
    "Reliability",
    "SampledCurves",
    "ScoreHistograms",
    "ScoredPair",
    "Share",
    "SuspectLabel",
    "Target",
    "ThresholdChoice",
    "ThresholdComparison",
    "TransferredThreshold",
    "VennAbersCalibrator",
    "Weighting",
    "Whitening",
    "calibrator_from_json",
    "certify",
    "certify_mean",
    "choose_threshold",
    "class_confusions",
    "class_rates",
    "cohort_fit",
    "compare_consistency",
    "compare_groups",
    "compare_thresholds",
    "consistency_report",
    "cross_fitted_rates",
    "cross_validate_calibrators",
    "crossed_vectors",
    "decision_flips",
    "drift_size",
    "fairness_discrepancy_rate",
    "fit_best_calibrator",
    "fit_scores",
    "fit_whitening",
    "garbe",
    "gini",
    "group_rates",
    "holm",
    "identification_rates",
    "judged_curves",
    "label_margins",
    "labelled_vectors",
    "largest_gallery",
    "look_for_drift",
    "map_at_r",
    "max_geometric_mean",
    "max_min_ratio",
    "most_confused",
    "operating_curves",
    "opis",
    "parse_target",
    "query_gallery_curves",
    "recall_at_k",
    "reliability",
    "sampled_curves",
    "score_histograms",
    "start_drift",
    "threshold_grid",
    "thresholds_at_far",
    "transfer_threshold",
    "wilson_interval",
]
