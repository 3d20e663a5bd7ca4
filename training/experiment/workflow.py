"""The workflow of an experiment: trains the missing runs, then computes figures, tables and plots of all runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.errors import RetrievalError
from training.embeddings import Embedded, read_embeddings
from training.experiment.figures import Measured, measure
from training.experiment.plan import Experiment
from training.experiment.plots import write_plots
from training.experiment.report import ExperimentResult, write_report
from training.experiment.running import PROGRAM, RunNews, TrialFailure, only_user, run_trials
from training.experiment.summary import summarise
from training.experiment.trials import EMBEDDINGS, plan_trials, training_seconds


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    n_processes: int = 1,
    device: str = "auto",
    observe: Callable[[RunNews], None] = lambda news: None,
    measured: Callable[[int, int], None] = lambda done, total: None,
    program: Sequence[str] = PROGRAM,
) -> ExperimentResult:
    """Train the missing runs, measure every arm, write tables and plots into `out`.

    A run that fails is reported in the result, and the others continue. Raises FailedPrecondition if another experiment
    is running in `out`, OutOfSpace if there is no room, and as `plan_trials` if the data or the content of `out` does
    not fit.
    """
    with only_user(out):
        trials = plan_trials(experiment, out)
        failures = run_trials(trials, n_processes=n_processes, device=device, observe=observe, program=program)
        result = _measure_all(experiment, out, failures, measured)
        passed_over = dict.fromkeys(sentence for trial in trials for sentence in trial.passed_over)
        result = replace(result, passed_over=tuple(passed_over))
        write_report(result, out)
        write_plots(result.arms, out)
    return result


def _measure_all(
    experiment: Experiment, out: Path, failures: list[TrialFailure], progress: Callable[[int, int], None]
) -> ExperimentResult:
    failed = {(failure.arm, failure.seed) for failure in failures}
    results: dict[str, dict[int, Measured]] = {arm.name: {} for arm in experiment.arms}
    found = list(failures)
    done, total = 0, len(experiment.seeds) * len(experiment.arms)
    for seed in experiment.seeds:
        kept: dict[str, Mapping[str, Embedded]] = {}
        for arm in experiment.arms:
            folder = out / arm.trained_by / str(seed)
            if (arm.trained_by, seed) not in failed:
                try:
                    if arm.trained_by not in kept:
                        kept[arm.trained_by] = read_embeddings(folder / EMBEDDINGS)
                    results[arm.name][seed] = measure(
                        kept[arm.trained_by],
                        arm.score,
                        far_target=experiment.far_target,
                        training_s=training_seconds(folder),
                        compare=experiment.compare,
                    )
                except RetrievalError as error:
                    found.append(TrialFailure(arm=arm.name, seed=seed, what="measuring", reason=str(error), log=None))
            done += 1
            progress(done, total)
    return ExperimentResult(
        experiment=experiment, arms=tuple(summarise(experiment.arms, results)), failures=tuple(found)
    )
