"""Which settings of TCM lower debiased OPIS on classes that were not trained on, and what else does?

Arms with equal tuning budgets on several base losses, trained for seconds on kept activations (tests/bench/measuring):

    base          the base loss alone
    tcm           and the threshold-consistent margin
    contrastive   and the two-margin contrastive loss: averaged over all pairs, where TCM averages over active ones
    adaptive      and TCM whose margins follow quantiles of the similarities

Every setting is judged on validation classes. Each arm's choice, the lowest debiased OPIS (over log FAR) among those
whose R@1 is at most 0.01 below the arm's highest, is then trained again and measured once on test classes that took no
part, with the cosine and with the whitened cohort score. What has been computed is kept in .bench/tcm.
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

from retrieval.consistency.opis.weighting import mean_over_classes
from retrieval.contract.canonical import digest_json
from retrieval.contract.score import Score
from tests.bench.measuring.activations import FOLDER, Activations, activations, split
from tests.bench.measuring.extra_terms import Extra
from tests.bench.measuring.short_runs import Setting, run
from tests.bench.measuring.tried import Tried, beside_accuracy, draw
from tests.bench.measuring.unseen import BANDS, cohort_score_of, measure

_R1_LOSS = 0.01

_BASES: dict[str, Setting] = {
    "softmax": Setting(base="NormalizedSoftmaxLoss", options={"temperature": 0.07}),
    "proxy-anchor": Setting(base="ProxyAnchorLoss", options={"margin": 0.1, "alpha": 32.0}),
    "multi-similarity": Setting(base="MultiSimilarityLoss", options={"alpha": 2.0, "beta": 50.0, "base": 0.5}),
}
_TUNED_BASES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "softmax": (
        {},
        {"options": {"temperature": 0.05}},
        {"options": {"temperature": 0.1}},
        {"loss_learning_rate": 1e-1},
    ),
    "proxy-anchor": (
        {},
        {"options": {"margin": 0.1, "alpha": 16.0}},
        {"options": {"margin": 0.1, "alpha": 64.0}},
        {"loss_learning_rate": 1e-1},
    ),
    "multi-similarity": (
        {},
        {"options": {"alpha": 2.0, "beta": 20.0, "base": 0.5}},
        {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.3}},
        {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.2}},
    ),
}


def _margins(kind: Any, positive: float, negative: float, upper: float, lower: float) -> Extra:
    return Extra(
        kind=kind, positive_weight=positive, negative_weight=negative, positive_margin=upper, negative_margin=lower
    )


def _quantiles(weight: float, positive: float, negative: float) -> Extra:
    return Extra(
        kind="adaptive",
        positive_weight=weight,
        negative_weight=weight,
        positive_quantile=positive,
        negative_quantile=negative,
    )


_TERMS: dict[str, tuple[Extra, ...]] = {
    "tcm": (
        _margins("tcm", 1, 1, 0.9, 0.5),
        _margins("tcm", 10, 10, 0.9, 0.5),
        _margins("tcm", 10, 10, 0.7, 0.3),
        _margins("tcm", 10, 10, 0.5, 0.3),
    ),
    # About one negative pair in a hundred is active: over all pairs its side weighs a hundredth of TCM's.
    "contrastive": (
        _margins("all-pairs", 1, 1, 0.9, 0.5),
        _margins("all-pairs", 10, 100, 0.9, 0.5),
        _margins("all-pairs", 10, 1000, 0.9, 0.5),
        _margins("all-pairs", 3, 30, 0.7, 0.3),
    ),
    "adaptive": (
        _quantiles(1, 0.5, 0.99),
        _quantiles(10, 0.5, 0.99),
        _quantiles(10, 0.2, 0.99),
        _quantiles(10, 0.8, 0.99),
    ),
}
_TCM = _margins("tcm", 10, 10, 0.9, 0.5)
# Beside the arms and their budgets. "strength": the base loss alone, from weak to strong, to tell how OPIS goes with
# accuracy when nothing else changes.
_OTHERS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    *(("softmax", "strength", {"steps": steps}) for steps in (50, 100, 200, 600)),
    ("softmax", "strength", {"loss_learning_rate": 0.3}),
    ("softmax", "strength", {"loss_learning_rate": 0.1, "steps": 600}),
    ("softmax", "negative side only", {"extra": replace(_TCM, positive_weight=0)}),
    ("softmax", "positive side only", {"extra": replace(_TCM, negative_weight=0)}),
    ("softmax", "mean over classes", {"extra": replace(_TCM, kind="class-mean")}),
    ("softmax", "scheduled margins", {"extra": replace(_TCM, kind="scheduled")}),
    ("softmax", "second half only", {"extra": replace(_TCM, start=0.5)}),
    ("softmax", "sides 3 and 10", {"loss_learning_rate": 0.1, "extra": _margins("tcm", 3, 10, 0.9, 0.5)}),
    ("softmax", "sides 10 and 30", {"loss_learning_rate": 0.1, "extra": _margins("tcm", 10, 30, 0.9, 0.5)}),
    ("softmax", "fast proxies, tcm", {"loss_learning_rate": 0.1, "extra": _TCM}),
    ("softmax", "fast proxies, tcm", {"loss_learning_rate": 0.1, "extra": _TCM, "steps": 600}),
    ("multi-similarity", "base 0.2, tcm", {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.2}, "extra": _TCM}),
)


def plan(regime: str) -> list[tuple[str, str, Setting]]:
    """Base, arm and setting of everything to try."""
    settings = []
    for base, default in _BASES.items():
        settings += [(base, "base", replace(default, **changes)) for changes in _TUNED_BASES[base]]
        settings += [(base, arm, replace(default, extra=extra)) for arm, terms in _TERMS.items() for extra in terms]
    settings += [(base, arm, replace(_BASES[base], **changes)) for base, arm, changes in _OTHERS]
    if regime == "tail":
        settings = [(b, a, replace(s, regime="tail", steps=120)) for b, a, s in settings]
    return settings


def main() -> None:
    options = _parser().parse_args()
    threadpool_limits(options.threads)
    kept = activations()
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
        for arm in ("base", *_TERMS):
            own = [entry for entry in tried if (entry.base, entry.arm) == (base, arm)]
            if own:
                least = max(entry.mean("r1") for entry in own) - _R1_LOSS
                fit = [entry for entry in own if entry.mean("r1") >= least]
                chosen[base, arm] = min(fit, key=lambda entry: entry.mean("log_far")).setting
        if (base, "tcm") in chosen:
            chosen[base, "default base"] = _BASES[base]
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
    parser.add_argument("--bases", nargs="+", choices=tuple(_BASES), default=list(_BASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three settings, 20 steps: shows that it runs")
    parser.add_argument("--plot", type=Path, help="an image file for R@1 and TAR against OPIS of all settings tried")
    parser.add_argument("--out", type=Path, help="a JSON file with everything measured")
    return parser


if __name__ == "__main__":
    main()
