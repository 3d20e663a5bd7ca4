"""Which settings of TCM lower debiased OPIS on classes that were not trained on, and what else does?

Arms with equal tuning budgets on several base losses, trained for seconds on kept activations (tests/bench/measuring):

    base          the base loss alone
    tcm           and the threshold-consistent margin
    contrastive   and the two-margin contrastive loss: averaged over all pairs, where TCM averages over active ones
    adaptive      and TCM whose margins follow quantiles of the similarities

Every setting is judged on validation classes. Each arm's choice, the lowest debiased OPIS (over log FAR) among those
whose R@1 is at most 0.01 below the arm's highest, is then trained again and measured once on test classes that took no
part, with the cosine and with the whitened cohort score. What has been computed is kept in .bench/tcm.

--compare asks instead which score TCM should be trained on, the cosine or the cohort score, with one setting each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import mean_over_classes
from retrieval.contract.canonical import digest_json
from retrieval.contract.score import Score
from tests.bench.measuring.activations import FOLDER, Activations, activations, split
from tests.bench.measuring.short_runs import Setting, run
from tests.bench.measuring.tcm_settings import BASES, TERMS, comparison, plan
from tests.bench.measuring.tried import Tried, beside_accuracy, draw
from tests.bench.measuring.unseen import BANDS, cohort_score_of, measure

_R1_LOSS = 0.01


def main() -> None:
    options = _parser().parse_args()
    threadpool_limits(options.threads)
    kept = activations()
    if options.compare:
        print(final_table(compared_scores(options, kept)))
        return
    settings = [entry for entry in plan(options.regime) if entry[0] in options.bases]
    if options.quick:
        settings = [(b, a, replace(s, steps=20)) for b, a, s in settings[:3]]
    tried = []
    for base, arm, setting in settings:
        found = tuple(validated(setting, kept, seed) for seed in options.seeds)
        tried.append(Tried(base, arm, setting, found))
        print(_line(tried[-1]), flush=True)
    chosen = chosen_settings(tried, options.bases)
    final = {key: tested(setting, kept, options.test_seeds) for key, setting in chosen.items()}
    print(final_table(final))
    print(beside_accuracy(tried))
    if options.plot:
        draw(tried, options.plot)
    if options.out:
        options.out.write_text(
            json.dumps(
                {
                    "tried": [asdict(entry) for entry in tried],
                    "test": [
                        {"base": b, "arm": a, "setting": asdict(chosen[b, a]), **f} for (b, a), f in final.items()
                    ],
                },
                default=float,
            )
        )


def compared_scores(options: argparse.Namespace, kept: Activations) -> dict[tuple[str, str], dict[str, Any]]:
    """TCM on the cosine and on the cohort score, with given settings, on the test classes."""
    settings = comparison(options.regime)
    if options.quick:
        settings = {key: replace(setting, steps=20) for key, setting in settings.items()}
    return {key: tested(setting, kept, options.test_seeds) for key, setting in settings.items()}


def validated(setting: Setting, kept: Activations, seed: int) -> dict[str, float]:
    """What a setting measures on the validation classes of a seed, with the cosine."""
    path = FOLDER / "validated" / f"{digest_json({**asdict(setting), 'seed': seed})}.json"
    if not path.exists():
        parts = split(kept, seed=seed)
        trained = run(setting, kept, parts.train, seed=seed)
        found, _ = measure(
            trained.embeddings[parts.validation], kept.labels[parts.validation], Score(), bands=("distance", "log_far")
        )
        _keep(path, {**found, "active positives": trained.active[0], "active negatives": trained.active[1]})
    values: dict[str, float] = json.loads(path.read_text())
    return values


def chosen_settings(tried: Sequence[Tried], bases: Sequence[str]) -> dict[tuple[str, str], Setting]:
    """The setting of each arm with the lowest OPIS, among those that rank about as well as the arm's best.

    Beside the arms: the base loss as its authors set it, and what TCM's term does to the base loss as its arm chose it.
    """
    chosen = {}
    for base in bases:
        for arm in ("base", *TERMS):
            own = [entry for entry in tried if (entry.base, entry.arm) == (base, arm)]
            if own:
                least = max(entry.mean("r1") for entry in own) - _R1_LOSS
                fit = [entry for entry in own if entry.mean("r1") >= least]
                chosen[base, arm] = min(fit, key=lambda entry: entry.mean("log_far")).setting
        if (base, "tcm") in chosen:
            chosen[base, "default base"] = BASES[base]
            chosen[base, "chosen base, tcm"] = replace(chosen[base, "base"], extra=chosen[base, "tcm"].extra)
    return chosen


def tested(setting: Setting, kept: Activations, seeds: Sequence[int]) -> dict[str, Any]:
    """On the test classes: quantities by score and seed, and shares of OPIS by score, band, seed and class."""
    runs = []
    for seed in seeds:
        path = FOLDER / "tested" / f"{digest_json({**asdict(setting), 'seed': seed})}.json"
        if not path.exists():
            parts = split(kept, seed=seed)
            embeddings = run(setting, kept, parts.train, seed=seed).embeddings
            scores = {"cosine": Score(), "cohort": cohort_score_of(embeddings[parts.train])}
            measured = {
                name: measure(embeddings[parts.test], kept.labels[parts.test], score) for name, score in scores.items()
            }
            _keep(
                path,
                {
                    name: {"found": found, "shares": {band: share.shares.tolist() for band, share in shares.items()}}
                    for name, (found, shares) in measured.items()
                },
            )
        runs.append(json.loads(path.read_text()))
    return {"runs": runs}


def compared(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], score: str, band: str, other_score: str
) -> dict[str, Any]:
    """OPIS of the first over that of the second, on the same classes and seeds: ratio, interval, p, seeds that fell.

    The interval and p are over the draw of classes, of each class's mean over the seeds.
    """
    one, two = (_shares(runs, name, band) for runs, name in ((first, score), (second, other_score)))
    weights = np.full(one.shape[1], 1 / one.shape[1])
    apart = mean_over_classes(
        (one - two).mean(axis=0), weights, n_bootstrap=2000, confidence=0.95, rng=np.random.default_rng(0)
    )
    denominator = two.mean()
    return {
        "ratio": one.mean() / denominator,
        "low": 1 + apart.interval.low / denominator,
        "high": 1 + apart.interval.high / denominator,
        "p": apart.p_value,
        "seeds": [float(a / b) for a, b in zip(one.mean(axis=1), two.mean(axis=1), strict=True)],
    }


def _shares(runs: Sequence[Mapping[str, Any]], score: str, band: str) -> NDArray[np.float64]:
    return np.array([run[score]["shares"][band] for run in runs])


def final_table(final: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """A line for each base, arm and score: means over seeds and OPIS relative to the base loss with the cosine."""
    lines = [
        "\ntest classes, means over seeds; ratio: OPIS over that of the base loss with the cosine (95 % interval)",
        f"{'':38}  R@1   TAR at 1e-2, 1e-3, 1e-4 " + "".join(f"{band:>40}" for band in BANDS),
    ]
    for (base, arm), entry in final.items():
        runs, reference = entry["runs"], final[base, "base"]["runs"]
        for score in ("cosine", "cohort"):
            means = {key: np.mean([run[score]["found"][key] for run in runs]) for key in runs[0][score]["found"]}
            cells = ""
            for band in BANDS:
                if band not in means:
                    cells += f"{'':>40}"
                    continue
                c = compared(runs, reference, score, band, "cosine")
                cells += f"{1e3 * means[band]:9.2f}e-3 {c['ratio']:6.2f} ({c['low']:5.2f} to {c['high']:5.2f})"
                cells += f" p{c['p']:6.3f}"
            rates = " ".join(f"{means[key]:.3f}" for key in ("r1", "tar0.01", "tar0.001", "tar0.0001"))
            lines.append(f"{base + ', ' + arm + ', ' + score:38}  {rates}  {cells}")
    return "\n".join(lines)


def _line(tried: Tried) -> str:
    setting, extra = tried.setting, tried.setting.extra
    term = "" if extra.kind == "none" else " ".join(str(value) for value in asdict(extra).values())
    return (
        f"{tried.base:16} {tried.arm:24} R@1 {tried.mean('r1'):.3f} TAR {tried.mean('tar0.01'):.3f} "
        f"{tried.mean('tar0.001'):.3f} OPIS d {1e3 * tried.mean('distance'):.1f}e-3 log FAR "
        f"{1e3 * tried.mean('log_far'):.1f}e-3 active {tried.mean('active positives'):.2f} "
        f"{tried.mean('active negatives'):.3f}  {dict(setting.options)} {setting.steps} {setting.head_learning_rate} "
        f"{setting.loss_learning_rate} {term}"
    )


def _keep(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".part")
    staging.write_text(json.dumps(value, default=float))
    staging.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regime", choices=("head", "tail"), default="head", help="what is trained (default: head)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs that are validated")
    parser.add_argument("--test-seeds", type=int, nargs="+", default=[0, 1, 2], help="of those that are tested")
    parser.add_argument("--bases", nargs="+", choices=tuple(BASES), default=list(BASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="no search: only base, TCM and TCM on the cohort score, on the test classes",
    )
    parser.add_argument("--quick", action="store_true", help="three settings, 20 steps: shows that it runs")
    parser.add_argument("--plot", type=Path, help="an image file for R@1 and TAR against OPIS of all settings tried")
    parser.add_argument("--out", type=Path, help="a JSON file with everything measured")
    return parser


if __name__ == "__main__":
    main()
