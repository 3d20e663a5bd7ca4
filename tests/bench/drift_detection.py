"""How often does each detector of score drift cry wolf over 200 looks, and how much drift does it find how soon?

    bets on the urn       retrieval.consistency.drift.watch
    growing conformal     ranks among reference and all earlier scores, Simple Jumper on them (Vovk et al. 2022, ch. 8)
    growing Mann-Whitney  a look's rank sum among reference and earlier looks, bets on its p-value
    KS, alpha / looks     each look against the reference, Bonferroni over the looks
    MW, alpha / looks     the same with Mann-Whitney
    naive conformal       ranks in the fixed reference as if independent, Simple Jumper: what not to do

Scores are drawn from a normal distribution; only ranks matter to any of them. Power is given at the nominal level, and
at equal false alarm rates: with the limit at which a detector cries wolf in exactly alpha of the runs without drift.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import kolmogorov, ndtr

from retrieval.consistency import look_for_drift, start_drift, wilson_interval

Reals = NDArray[np.float64]
_JUMP = 0.01  # of Simple Jumper, as in its paper


@dataclass(frozen=True, slots=True)
class Drift:
    """New scores are `shift` and `scale` times a normal one, or `far` (2.5 deviations lower) for a share of them."""

    name: str
    first_look: int = 0
    shift: float = 0.0
    scale: float = 1.0
    far: float = 0.0
    gradual: bool = False

    def draw(self, look: int, size: int, n_looks: int, rng: np.random.Generator) -> Reals:
        scores = rng.normal(size=size)
        if look < self.first_look:
            return scores
        part = (look - self.first_look + 1) / (n_looks - self.first_look) if self.gradual else 1.0
        return scores * self.scale + part * self.shift - 2.5 * (rng.random(size) < self.far)


DRIFTS = (
    Drift("mean 0.1, from the first look", shift=0.1),
    Drift("mean 0.2, from the first look", shift=0.2),
    Drift("mean 0.2, from look 50", 50, shift=0.2),
    Drift("mean 0.5, from look 50", 50, shift=0.5),
    Drift("mean 0 to 0.5, gradually", shift=0.5, gradual=True),
    Drift("spread x 1.3, from look 20", 20, scale=1.3),
    Drift("5 % foreign, from look 20", 20, far=0.05),
    Drift("15 % foreign, from look 20", 20, far=0.15),
)

# Evidence after each look, [runs, looks]; exceeds log(1 / alpha) with probability at most alpha where it is valid.
Detector = Callable[[Reals, Reals, int], Reals]


def bets_on_urn(reference: Reals, looks: Reals, seed: int) -> Reals:
    rng = np.random.default_rng(seed)
    evidence = np.empty(looks.shape[:2])
    for run in range(len(looks)):
        state = start_drift(reference[run], rng=rng)
        for number, scores in enumerate(looks[run]):
            state = look_for_drift(state, scores, rng=rng)
            evidence[run, number] = state.log_e
    return evidence


def growing_conformal(reference: Reals, looks: Reals, seed: int) -> Reals:
    rng = np.random.default_rng(seed)
    p_values = np.empty(looks.shape)
    for run, scores in enumerate(looks):
        pool = np.sort(reference[run])
        for number, look in enumerate(scores):
            earlier = np.tril(look[None, :] < look[:, None], -1).sum(axis=1)
            below = np.searchsorted(pool, look) + earlier
            p_values[run, number] = (below + rng.random(len(look))) / (len(pool) + np.arange(len(look)) + 1)
            pool = np.sort(np.concatenate([pool, look]))
    return _simple_jumper(p_values)


def naive_conformal(reference: Reals, looks: Reals, seed: int) -> Reals:
    rng = np.random.default_rng(seed)
    m = reference.shape[1]
    below = np.stack([np.searchsorted(np.sort(row), scores) for row, scores in zip(reference, looks, strict=True)])
    return _simple_jumper((below + rng.random(looks.shape)) / (m + 1))


def _simple_jumper(p_values: Reals) -> Reals:
    """Log of the martingale after each look; p_values: [runs, looks, n]."""
    runs, n_looks, n = p_values.shape
    bets = np.array([-1.0, 0.0, 1.0])
    shares, log_total = np.full((runs, 3), 1 / 3), np.zeros(runs)
    evidence = np.empty((runs, n_looks))
    for number in range(n_looks):
        for which in range(n):
            shares = (1 - _JUMP) * shares + _JUMP / 3
            shares *= 1 + bets * (p_values[:, number, which, None] - 0.5)
            total = shares.sum(axis=1, keepdims=True)
            log_total += np.log(total[:, 0])
            shares /= total
        evidence[:, number] = log_total
    return evidence


def growing_mann_whitney(reference: Reals, looks: Reals, seed: int) -> Reals:
    """Bets of density e p^(e - 1), e = 0.1 ... 0.9, dealt anew for 2 % a look, on two-sided p-values."""
    powers = np.arange(1, 10) / 10
    wealth = np.full((len(looks), len(powers) + 1), 0.5 / len(powers))
    wealth[:, 0] = 0.5
    prior, log_total = wealth[0].copy(), np.zeros(len(looks))
    evidence = np.empty(looks.shape[:2])
    pool = reference
    for number in range(looks.shape[1]):
        p = 2 * ndtr(-np.abs(_rank_sum_z(pool, looks[:, number])))[:, None]
        wealth[:, 1:] *= powers * np.maximum(p, 1e-300) ** (powers - 1)
        total = wealth.sum(axis=1, keepdims=True)
        log_total += np.log(total[:, 0])
        evidence[:, number] = log_total
        wealth = 0.98 * wealth / total + 0.02 * prior
        pool = np.concatenate([pool, looks[:, number]], axis=1)
    return evidence


def each_mann_whitney(reference: Reals, looks: Reals, seed: int) -> Reals:
    z = np.stack([_rank_sum_z(reference, looks[:, number]) for number in range(looks.shape[1])], axis=1)
    return -np.log(np.maximum(2 * ndtr(-np.abs(z)), 1e-300)) - np.log(looks.shape[1])


def each_kolmogorov(reference: Reals, looks: Reals, seed: int) -> Reals:
    m, n = reference.shape[1], looks.shape[2]
    scale = np.sqrt(m * n / (m + n))
    evidence = np.empty(looks.shape[:2])
    above = np.arange(1, n + 1) / n
    for run, scores in enumerate(looks):
        shares = np.searchsorted(np.sort(reference[run]), np.sort(scores, axis=1)) / m
        gap = np.maximum(np.abs(above - shares), np.abs(above - 1 / n - shares)).max(axis=1)
        # Stephens' correction of the asymptotic distribution.
        evidence[run] = -np.log(np.maximum(kolmogorov((scale + 0.12 + 0.11 / scale) * gap), 1e-300))
    return evidence - np.log(looks.shape[1])


def _rank_sum_z(pool: Reals, scores: Reals) -> Reals:
    m, n = pool.shape[1], scores.shape[1]
    wins = np.stack([np.searchsorted(np.sort(row), new).sum() for row, new in zip(pool, scores, strict=True)])
    return (wins - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12)


DETECTORS: dict[str, Detector] = {
    "bets on the urn": bets_on_urn,
    "growing conformal": growing_conformal,
    "growing Mann-Whitney": growing_mann_whitney,
    "KS, alpha / looks": each_kolmogorov,
    "MW, alpha / looks": each_mann_whitney,
    "naive conformal": naive_conformal,
}


def evidence_of(drift: Drift, m: int, n: int, runs: int, options: argparse.Namespace) -> dict[str, Reals]:
    rng = np.random.default_rng([options.seed, m, n])
    reference = rng.normal(size=(runs, m))
    looks = np.empty((runs, options.looks, n))
    for number in range(options.looks):
        looks[:, number] = drift.draw(number, runs * n, options.looks, rng).reshape(runs, n)
    return {name: detector(reference, looks, options.seed) for name, detector in DETECTORS.items()}


def judged(evidence: Reals, limit: float, drift: Drift) -> dict[str, float]:
    """Share of runs found after the drift began and not before, and the median number of looks that took."""
    reached = evidence >= limit
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), reached.shape[1])
    found = (first >= drift.first_look) & (first < reached.shape[1])
    delays = np.where(found, first - drift.first_look + 1.0, np.inf)
    delay = float(np.median(delays))
    return {"found": float(found.mean()), "median_looks": delay if np.isfinite(delay) else -1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--looks", type=int, default=200)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--runs", type=int, help="without drift (default 1000, quick 20)")
    parser.add_argument("--runs-drift", type=int, help="for each drift (default 100, quick 5)")
    options = parser.parse_args()
    runs = options.runs or (20 if options.quick else 1000)
    runs_drift = options.runs_drift or (5 if options.quick else 100)
    results = []
    for m, n in ((200, 50), (2000, 50)):
        none = evidence_of(Drift("none"), m, n, runs, options)
        limits = {name: float(np.quantile(found.max(axis=1), 1 - options.alpha)) for name, found in none.items()}
        nominal = float(-np.log(options.alpha))
        alarms = {name: int((found.max(axis=1) >= nominal).sum()) for name, found in none.items()}
        result = {
            "reference": m,
            "scores_a_look": n,
            "runs": runs,
            "false_alarms": {
                name: [count / runs, *_ends(count, runs)] for name, count in alarms.items()
            },
            "drifts": {},
        }  # fmt: skip
        for drift in DRIFTS:
            found = evidence_of(drift, m, n, runs_drift, options)
            result["drifts"][drift.name] = {
                name: {
                    "nominal": judged(values, nominal, drift),
                    "equal": judged(values, limits[name], drift),
                }
                for name, values in found.items()
            }
        results.append(result)
        if not options.json:
            _show(result, options)
    if options.json:
        print(json.dumps({"options": vars(options), "results": results}))


def _ends(count: int, runs: int) -> tuple[float, float]:
    interval = wilson_interval(count, runs)
    return interval.low, interval.high


def _show(result: dict, options: argparse.Namespace) -> None:  # type: ignore[type-arg]
    print(
        f"\nreference {result['reference']}, {options.looks} looks of {result['scores_a_look']}, alpha {options.alpha}"
    )
    print(f"false alarms in {result['runs']} runs (95 % interval)")
    for name, (rate, low, high) in result["false_alarms"].items():
        print(f"  {name:22}{rate:7.3f} ({low:.3f} to {high:.3f})")
    print("found (median looks, - where fewer than half are found) at the nominal level | at equal false alarm rates")
    for drift, by_name in result["drifts"].items():
        print(f"  {drift}")
        for name, both in by_name.items():
            cells = [f"{one['found']:5.2f} ({one['median_looks']:3.0f})" for one in both.values()]
            print(f"    {name:22}" + " | ".join(cells).replace("( -1)", "(  -)"))


if __name__ == "__main__":
    main()
