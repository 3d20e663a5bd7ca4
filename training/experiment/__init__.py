"""Experiments: trains arms times seeds on the same data, measures them equally, and compares them with tests."""

from training.experiment.figures import Figures, Measured, measure
from training.experiment.plan import EXPERIMENTS, Arm, Experiment, load_experiment, parse_experiment
from training.experiment.report import ExperimentResult, to_json
from training.experiment.running import RunNews, TrialFailure
from training.experiment.scores import ScoreConfig, fit_score
from training.experiment.summary import ArmSummary, Difference, Estimate, summarise
from training.experiment.workflow import run_experiment

__all__ = [
    "EXPERIMENTS",
    "Arm",
    "ArmSummary",
    "Difference",
    "Estimate",
    "Experiment",
    "ExperimentResult",
    "Figures",
    "Measured",
    "RunNews",
    "ScoreConfig",
    "TrialFailure",
    "fit_score",
    "load_experiment",
    "measure",
    "parse_experiment",
    "run_experiment",
    "summarise",
    "to_json",
]
