"""Are the promises about unseen classes kept: certificates, intervals of the threshold, predicted rates?

Over many random splits into calibration classes and new ones: of emoji that no model was trained on (without
repetition from a few hundred classes), and of a synthetic family drawn afresh each time. A certificate's promise is
over the draw of everything: for `certify` the share of new classes that keep alpha, for `certify_mean` the mean rate of
new classes. Pairs of a new class are those with the calibration classes (what `strict` promises exactly) and, beside,
those with the other new classes. Intervals of the threshold are held against the threshold of a whole population:
for emoji all classes, of which the calibration classes are a part, which makes it look a little better.

Then intervals and predictions (95 %) in settings that are hard for them, see `measuring/coverage.py`: a sample TAR
of 1, unequal classes, families drawn together, few classes, heavy tails, groups, and the ratio of two equal models.
These count as kept from 0.93. Last, the same in rounds of searches, see `measuring/coverage_in_rounds.py`: intervals,
predictions, certificates and the FAR of strangers with a score that pulls the items of a gallery to their class.

Each figure has the interval of its mean over splits (95 %, Student); emoji splits share classes, so that theirs is
about this collection of classes only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import (
    certify,
    certify_mean,
    choose_threshold,
    labelled,
    operating_curves,
    parse_target,
    wilson_interval,
)
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring import coverage_in_rounds
from tests.bench.measuring.coverage import table
from tests.bench.measuring.coverage_in_rounds import ALPHA, DELTA, SEARCHES
from tests.bench.measuring.real import real_data
from tests.bench.measuring.settings import FRESH, SETTINGS
from tests.bench.measuring.splits import Population, Split

Rows = NDArray[np.float32]
_N_POPULATION = 1500
_KEPT = 0.93  # coverage that counts as kept where 0.95 is stated
_ULPS = 1e-6  # products of other shapes differ in the last digits


@dataclass(frozen=True, slots=True)
class Line:
    """One promise: what was promised, what was found on average over splits, and its interval."""

    data: str
    promise: str
    promised: str
    found: float
    low: float
    high: float
    kept: bool
    width: float | None = None  # mean width of the intervals of a coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base+tcm", help="emoji embeddings: frozen, base, base+tcm; none: leave out")
    parser.add_argument("--splits", type=int, help="for certificates and the FAR target (default 1000, quick 8)")
    parser.add_argument("--other-splits", type=int, help="for the other targets (default 200, quick 4)")
    parser.add_argument("--classes", type=int, nargs="+", default=[25, 100], help="calibration classes of certificates")
    parser.add_argument("--interval-classes", type=int, default=60, help="calibration classes of intervals")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument(
        "--targets", nargs="*", default=["class-far=0.02", "frr=0.3", "precision=0.3@0.01", "f1@0.01", "utility"]
    )
    parser.add_argument("--coverage-draws", type=int, help="collections of each hard setting (default 400, quick 5)")
    parser.add_argument("--round-draws", type=int, help="collections of each setting in rounds (default 200, quick 4)")
    parser.add_argument(
        "--only",
        default="all",
        choices=["all", "coverage", "rounds"],
        help="coverage: the hard settings alone; rounds: those in rounds of searches alone",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few splits: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true", help="only the JSON object, without the table")
    options = parser.parse_args()
    options.splits = options.splits or (8 if options.quick else 1000)
    options.other_splits = options.other_splits or (4 if options.quick else 200)
    options.coverage_draws = options.coverage_draws or (5 if options.quick else 400)
    options.round_draws = options.round_draws or (4 if options.quick else 200)
    lines, started = [], time.monotonic()
    names = ["synthetic", *([] if options.model == "none" else [f"emoji {options.model}"])]
    with threadpool_limits(1):
        for name in names if options.only == "all" else []:
            data = Population.make(name, seed=options.seed, n_classes=_N_POPULATION // (10 if options.quick else 1))
            for n_classes in options.classes:
                lines += certificates(data, n_classes, options)
            lines += intervals(data, "far=0.02", options.splits, options)
            for target in options.targets:
                lines += intervals(data, target, options.other_splits, options)
        lines += coverages(options) if options.only != "rounds" else []
        lines += in_rounds(options) if options.only != "coverage" else []
    show(options, lines, time.monotonic() - started)


def certificates(data: Population, n_classes: int, options: argparse.Namespace) -> list[Line]:
    """Both certificates, plain and strict, for FAR and FRR, by a computation of their own beside `certify`."""
    alpha, delta = options.alpha, options.delta
    found: dict[tuple[str, str], list[float]] = {}
    for number, split in enumerate(data.splits(n_classes, options.splits, options.seed)):
        scores = split.rows @ split.rows.T
        thresholds = certified(scores, split, alpha, delta)
        if number < 3:
            check(split, thresholds, alpha, delta)
        for name, threshold in thresholds.items():
            for opponents, rates in new_rates(scores, split, threshold, name).items():
                kept = float(np.mean(rates <= alpha)) if name.startswith("quantile") else float(rates.mean())
                found.setdefault((name, opponents), []).append(kept)
    return [
        _line(
            f"{data.name}, n = {n_classes}",
            f"{name} vs {opponents}",
            f">= {1 - delta:g}" if name.startswith("quantile") else f"<= {alpha:g}",
            values,
        )
        for (name, opponents), values in found.items()
    ]


def certified(scores: Rows, split: Split, alpha: float, delta: float) -> dict[str, float]:
    """The certified thresholds of a split, class by class from sorted scores."""
    n, codes = split.n_calibration, split.codes
    inside = codes < n
    block, own = scores[np.ix_(inside, inside)], codes[inside]
    sizes = np.bincount(own)
    rank = int(np.ceil((n + 1) * (1 - delta) - 1e-9))
    ends = np.cumsum(sizes)
    plain, strict, frr = np.empty(n), np.empty(n), np.empty(n)
    for code, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        rows = block[end - size : end]
        negatives = np.sort(np.concatenate([rows[:, : end - size].ravel(), rows[:, end:].ravel()]))[::-1]
        of_new = size * sizes.max()
        plain[code] = _above(negatives, int(np.floor(alpha * len(negatives) + 1e-9)))
        strict[code] = _above(negatives, int(np.floor(alpha * (len(negatives) + of_new) - of_new + 1e-9)))
        positives = np.sort(rows[:, end - size : end][np.triu_indices(size, 1)])
        frr[code] = positives[int(np.floor(alpha * len(positives) + 1e-9))]
    first, second = np.triu_indices(len(own), 1)
    differs = own[first] != own[second]
    first, second = first[differs], second[differs]
    pair_scores = block[first, second]
    order = np.argsort(-pair_scores, kind="stable")
    pairs = sizes * (len(own) - sizes)
    found = {"quantile FAR": np.sort(plain)[rank - 1], "quantile FRR": np.sort(frr)[::-1][rank - 1]}
    if np.isfinite(np.sort(strict)[rank - 1]):
        found["quantile FAR, strict"] = np.sort(strict)[rank - 1]
    # For equal sizes strict has a bound of its own: the best of a proof in steps and of counting all pairs.
    steps = [(alpha * (n + 1) - 1 - (k + 1) * (k + 2) / (6 * n)) / (n - 1) / (1 + 1 / (2 * k)) for k in range(1, n + 1)]
    highest = max(*steps, (alpha * (n + 1) - 2) / (n - 1))
    of_equal = ("mean FAR, strict", np.zeros(n), 0.0, n, highest)
    of_unequal = ("mean FAR, strict", sizes * sizes.max(), 1 / (n + 1), n + 1, alpha)
    rules = [("mean FAR", np.zeros(n), 1 / (n + 1), n + 1, alpha), of_equal if len(set(sizes)) == 1 else of_unequal]
    for name, of_new, start, n_means, level in rules:
        weights = 1 / (pairs + of_new) / n_means
        start += (of_new * weights).sum()
        risk = start + np.cumsum((weights[own[first]] + weights[own[second]])[order])
        if start <= level:
            n_accepted = int(np.searchsorted(risk, level + 1e-12, side="right"))
            found[name] = float(np.nextafter(pair_scores[order][n_accepted], np.float32(9)))
    return {name: float(value) for name, value in found.items()}


def _above(descending: NDArray[np.float32], n_allowed: int) -> float:
    """The lowest threshold that accepts at most n_allowed of the scores."""
    return float(np.nextafter(descending[n_allowed], np.float32(9))) if n_allowed >= 0 else np.inf


def check(split: Split, thresholds: dict[str, float], alpha: float, delta: float) -> None:
    """Raise unless the library certifies the same thresholds."""
    rows, labels = split.calibration
    for name, threshold in thresholds.items():
        rate, strict = ("frr" if "FRR" in name else "far"), name.endswith("strict")
        if name.startswith("quantile"):
            given = certify(labelled(rows, labels), alpha=alpha, delta=delta, rate=rate, strict=strict).threshold
        else:
            given = certify_mean(labelled(rows, labels), alpha=alpha, rate=rate, strict=strict).threshold
        if abs(given - threshold) > _ULPS:
            raise SystemExit(f"{name}: the library gives {given!r}, the bench {threshold!r}")


def new_rates(scores: Rows, split: Split, threshold: float, name: str) -> dict[str, NDArray[np.float64]]:
    """Rates of each new class, by whom its pairs are with."""
    n, codes = split.n_calibration, split.codes
    is_new = codes >= n
    own = codes[is_new] - n
    sizes = np.bincount(own).astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    accepted = scores[is_new] >= np.float32(threshold)
    with_calibration = np.add.reduceat(accepted[:, ~is_new].sum(axis=1), starts)
    ends = np.cumsum(sizes).astype(np.int64)
    among = accepted[:, is_new]
    inside = np.array([among[a:b, a:b].sum() for a, b in zip(starts, ends, strict=True)])
    if "FRR" in name:
        return {"itself": 1 - (inside - sizes) / (sizes * (sizes - 1))}
    with_new = np.add.reduceat(among.sum(axis=1), starts) - inside
    return {
        "calibration classes": with_calibration / (sizes * np.count_nonzero(~is_new)),
        "other new classes": with_new / (sizes * (np.count_nonzero(is_new) - sizes)),
    }


def intervals(data: Population, text: str, n_splits: int, options: argparse.Namespace) -> list[Line]:
    """Count how often the intervals of the threshold and the rates, and the predictions for new classes, hold."""
    target = parse_target(text)
    true_threshold, grid, curves = data.threshold(target), data.curves.thresholds, data.curves
    true_rates = {"FAR": curves.pooled_far, "class-mean FAR": curves.mean_far, "TAR": curves.pooled_tar}
    inside: dict[str, list[float]] = {}
    n_refused = 0
    for split in data.splits(options.interval_classes, n_splits, options.seed):
        try:
            choice = choose_threshold(labelled(*split.calibration), target=target, confidence=options.confidence)
        except NotEnoughEvidence:
            n_refused += 1
            continue
        true = {name: float(np.interp(choice.threshold, grid, rates)) for name, rates in true_rates.items()}
        met = operating_curves(split.new, thresholds=[choice.threshold])
        for name, hit in {
            "threshold": true_threshold in choice.threshold_interval,
            "FAR": true["FAR"] in choice.far_interval,
            "class-mean FAR": true["class-mean FAR"] in choice.class_far_interval,
            "TAR": true["TAR"] in choice.tar_interval,
            "predicted FAR": met.pooled_far[0] in choice.predicted_far(len(met.classes)),
            "predicted TAR": met.pooled_tar[0] in choice.predicted_tar(len(met.classes)),
        }.items():
            inside.setdefault(name, []).append(float(hit))
    where = f"{data.name}, n = {options.interval_classes}, {text}"
    lines = [_line(where, f"covers: {name}", f"{options.confidence:g}", hits) for name, hits in inside.items()]
    return [*lines, Line(where, "splits refused", "", n_refused, n_refused, n_refused, True)]


def coverages(options: argparse.Namespace) -> list[Line]:
    """Count how often the 95 % intervals hold in the hard settings."""
    settings = (*SETTINGS[2::4], FRESH[1]) if options.quick else (*SETTINGS, *FRESH)
    lines = []
    for where, promise, found in table(
        options.coverage_draws, options.seed, settings, [] if options.quick else real_data(options.model)
    ):
        sure = wilson_interval(found.hits, found.draws)
        kept = sure.high >= _KEPT or promise.endswith("classes alone")  # what was promised without looking for groups
        lines.append(Line(where, f"covers: {promise}", "0.95", found.share, sure.low, sure.high, kept, found.width))
    return lines


def in_rounds(options: argparse.Namespace) -> list[Line]:
    """Count how often the promises hold in rounds of searches, and compare the widths of intervals with one set."""
    lines = []
    searches = (SEARCHES[2], SEARCHES[4], SEARCHES[14]) if options.quick else SEARCHES
    for where, found in coverage_in_rounds.table(options.round_draws, options.seed, searches):
        name = f"rounds, {where}"
        for promise, covered in found.covered.items():
            sure = wilson_interval(covered.hits, covered.draws)
            kept = sure.high >= _KEPT
            lines.append(
                Line(name, f"covers: {promise}", "0.95", covered.share, sure.low, sure.high, kept, covered.width)
            )
        for promise, values in found.kept.items():
            promised = f"<= {ALPHA:g}" if promise.startswith("mean") else f">= {1 - DELTA:g}"
            lines.append(_line(name, promise, promised, values))
        for promise, ratios in found.ratios.items():
            low, middle, high = np.quantile(ratios, [0.025, 0.5, 0.975]).tolist()
            lines.append(Line(name, f"width of {promise} over that of one set", "", middle, low, high, True))
    return lines


def _line(data: str, promise: str, promised: str, values: Sequence[float]) -> Line:
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)) * stdtrit(len(values) - 1, 0.975))
    level = float(promised.split()[-1])
    kept = mean - error <= level if promised.startswith("<=") else mean + error >= level
    return Line(data, promise, promised, mean, mean - error, mean + error, bool(kept))


def show(options: argparse.Namespace, lines: Sequence[Line], seconds: float) -> None:
    """Print a table unless --json is given, and one JSON object on the last line."""
    title = __doc__.splitlines()[0]  # type: ignore[union-attr]  # this module has a docstring
    if not options.json:
        print(title, f"({seconds:.0f} s)")
        for line in lines:
            verdict = "kept" if line.kept else "BROKEN"
            width = "" if line.width is None else f" width {line.width:.3g}"
            print(
                f"{line.data:42} {line.promise:44} {line.promised:>7}  {line.found:.4f} "
                f"({line.low:.4f} to {line.high:.4f}) {verdict if line.promised else ''}{width}"
            )
    settings = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps({"question": title, "options": settings, "lines": [asdict(line) for line in lines]}))


if __name__ == "__main__":
    main()
