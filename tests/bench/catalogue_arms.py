"""The arms of the experiment `emoji_catalogue` in short runs: minutes where the experiment takes hours.

The last blocks and the head are trained on kept activations, see `measuring/short_runs.py` (regime tail). Arms, scores
and figures are those of the experiment; the classes of calibration and test are the same for every seed. The last line
is one JSON object with everything.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.consistency import Interval
from retrieval.contract.manifest import read_manifest
from tests.bench.measuring.activations import Activations, activations, split
from tests.bench.measuring.emoji import FILES
from tests.bench.measuring.emoji import FOLDER as EMOJI
from tests.bench.measuring.extra_terms import Extra
from tests.bench.measuring.extra_terms import Kind as Term
from tests.bench.measuring.short_runs import Setting, run
from tests.bench.measuring.shown import Shown
from training.embeddings import Embedded
from training.experiment import ArmSummary, Measured, load_experiment, measure, summarise

FOLDER = Path(".bench/catalogue")
_TERMS: dict[str, Term] = {"softmax": "none", "softmax+tcm": "tcm", "softmax+tcm on cohort": "cohort"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="networks, from seed 0")
    parser.add_argument("--cache", type=Path, default=FOLDER, help=f"embeddings are kept here (default {FOLDER})")
    parser.add_argument("--quick", action="store_true", help="the base of seed 0, 20 steps: shows that it runs")
    options = parser.parse_args()
    seeds, steps = (1, 20) if options.quick else (options.seeds, 120)
    shown = Shown()
    kept = activations(n_views=6)
    experiment = load_experiment("emoji_catalogue", root=Path())
    trained_arms = experiment.trained_arms[: 1 if options.quick else None]
    arms = [arm for arm in experiment.arms if arm.trained_by in {trained.name for trained in trained_arms}]
    results: dict[str, dict[int, Measured]] = {arm.name: {} for arm in arms}
    for seed in range(seeds):
        for trained in trained_arms:
            parts = _parts(_embeddings(_TERMS[trained.name], kept, seed, options.cache, steps), kept, seed)
            for arm in arms:
                if arm.trained_by == trained.name:
                    shown.line(f"measure {arm.name}, seed {seed}")
                    results[arm.name][seed] = measure(
                        parts, arm.score, far_target=experiment.far_target, training_s=None, compare=experiment.compare
                    )
    summaries = summarise(arms, results)
    print("| arm | R@1 | TAR at FAR 1e-2, 1e-3, 1e-4 | OPIS, FAR 1e-2 to 1e-1 | around FAR 1e-3 | FAR, strangers |")
    print("| --- | --- | --- | --- | --- | --- |")
    for summary in summaries:
        print(_row(summary))
    print(json.dumps([asdict(summary) for summary in summaries]))


def _embeddings(term: Term, kept: Activations, seed: int, folder: Path, steps: int) -> NDArray[np.float32]:
    """Return the embeddings of all emoji by a short run, [n, d]; with 120 steps it is that of `catalogue_score`."""
    path = folder / f"emoji-{term}-{seed}{'' if steps == 120 else f'-{steps}'}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        extra = Extra(kind=term, positive_weight=10, negative_weight=10)
        setting = Setting(extra=extra, regime="tail", steps=steps, loss_learning_rate=0.1)
        staging = path.with_suffix(".part.npy")
        np.save(staging, run(setting, kept, split(kept, seed=seed).train, seed=seed).embeddings)
        staging.replace(path)
    rows: NDArray[np.float32] = np.load(path)
    return rows


def _parts(embeddings: NDArray[np.float32], kept: Activations, seed: int) -> dict[str, Embedded]:
    """Return the parts of the experiment; the classes held back are those that calibrate and those that test."""
    found = split(kept, seed=seed)
    names = np.array(kept.classes, dtype=np.object_)[kept.labels]
    rows = {"train": found.train, "cohort": found.validation}
    for part, manifest in (("calibration", "calibration"), ("test", "audit")):
        labels = {item.label for item in read_manifest(f"{EMOJI}/data-0/{FILES[manifest]}.csv")}
        rows[part] = np.flatnonzero([name in labels for name in names])
    return {
        part: Embedded(embeddings[of], names[of], of.astype(np.str_).astype(np.object_)) for part, of in rows.items()
    }


def _row(arm: ArmSummary) -> str:
    figures = {name: found.mean for name, found in arm.figures.items()}
    tars = " ".join(f"{figures[f'tar_at_1e_{power}']:.3f}" for power in (2, 3, 4))
    opis = " | ".join(_relative(arm, name) for name in ("opis_log_far", "opis_deployed"))
    return f"| {arm.name} | {figures['r_at_1']:.3f} | {tars} | {opis} | {figures['strangers_far']:.2f} |"


def _relative(arm: ArmSummary, name: str) -> str:
    """Return OPIS over that of the first arm, or of the first arm itself in 1e-3."""
    found = arm.differences.get(name)
    if found is None:
        return f"{1e3 * arm.figures[name].mean:.1f}e-3"
    if found.relative is None:
        return "may be 0"
    return f"{1 + found.relative:.2f}{_interval(found.relative_interval)}"


def _interval(found: Interval | None) -> str:
    return "" if found is None else f" ({1 + found.low:.2f} to {1 + found.high:.2f})"


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
