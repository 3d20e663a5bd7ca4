"""Which score makes classes most alike at one threshold, without retraining, and what does it cost a query?

Emoji by three models. `audit`: its classes took part in nothing, not in training, cohort, choosing or tuning of any
default; ratios are of debiased OPIS (log FAR, 1e-2 to 1e-1) to the cosine's on the same classes, with 95 % intervals
over classes. `sizes`: the same with cohorts of fewer classes. `splits`: the untouched classes dealt in halves, one to
choose the score on, one to measure; mean and range over the seeds (defaults were tuned on some of these classes).
`catalogue`: four images of each audit class are measured, the others are an unlabelled cohort, so that own-class images
are in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.consistency import (
    Interval,
    LabelledVectors,
    OpisOptions,
    compare_consistency,
    consistency_report,
    fit_whitening,
    labelled,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
)
from retrieval.contract.score import Score, cohort_score
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from tests.bench.measuring.emoji import MODELS, Embedded, emoji
from tests.bench.measuring.rounds import Group, cpu_of, in_turns, option_parser, show

Range = tuple[float, float, float]
_STRICT = (1e-4, 1e-3, 1e-2)
_EVALUATED = 4  # images of a class beside its images in the catalogue: enough for the debiased estimate
_N_FEW = 10  # bootstraps where the spread comes from the seeds
_SIZES = (68, 136, 271)  # classes
_TAR_MARGIN = 0.02  # as in flows/calibrate


@dataclass(frozen=True, slots=True)
class Rates:
    """tars: at _STRICT; worst_tenth: mean TAR of the worst tenth of the classes at the last of them."""

    recall_at_1: float
    tars: tuple[float, ...]
    worst_tenth: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method beside the cosine; ratio and debiased with low and high end; the others as differences to cosine."""

    part: str
    model: str
    method: str
    ratio: Range
    debiased: Range
    values: dict[str, float]


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="splits and deals, 0 to this, exclusive")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    options = parser.parse_args()
    seeds, models = (1, ("base+tcm",)) if options.quick else (options.seeds, options.models)
    rows: list[Row] = []
    with threadpool_limits(1):
        for model in models:
            parts = emoji(model)
            rows += [*on_audit(model, parts), *on_sizes(model, parts, seeds)]
            rows += [*on_splits(model, parts, seeds), *with_catalogue(model, parts, seeds)]
        costs = [cost_of_density(batch, options) for batch in (1, 64)]
    facts: dict[str, object] = {"seeds": seeds}
    if options.json:
        facts["rows"] = [asdict(row) for row in rows]
    else:
        print_rows(rows)
    show(__doc__, options, costs, facts)


def methods(cohort: Embedded, *, small: Embedded | None = None) -> dict[str, Score]:
    """Every score that is compared, by name; `small`: a cohort as the demonstration has it."""
    rows, names = cohort.embeddings, [str(label) for label in cohort.labels]
    free, within = fit_whitening(rows), fit_whitening(rows, names)
    scores = {"cosine": Score()}
    if small is not None:
        scores[f"cohort of {len(small.labels)} others"] = cohort_score(small.embeddings, k=20)
    return scores | {
        "cohort k 20": cohort_score(rows, k=20),
        "cohort k 100, w 0.3": cohort_score(rows, k=100, weight=0.3),
        "whitened k 20": cohort_score(rows, k=20, whitening=free),
        "whitened k 100, w 0.3": cohort_score(rows, k=100, weight=0.3, whitening=free),
        "whitened by class k 20": cohort_score(rows, k=20, whitening=within),
        "whitened by class k 100, w 0.3": cohort_score(rows, k=100, weight=0.3, whitening=within),
    }


def on_audit(model: str, parts: Mapping[str, Embedded]) -> list[Row]:
    scores = methods(parts["train"], small=parts["cohort"])
    rows = {name: compared("audit", model, name, score, parts["audit"]) for name, score in scores.items()}
    chosen = choices(scores, parts["calibration"])
    return [*rows.values(), *(replace(rows[name], method=f"chosen {how}: {name}") for how, name in chosen.items())]


def on_sizes(model: str, parts: Mapping[str, Embedded], seeds: int) -> list[Row]:
    """Cohorts of fewer classes, whitened without labels; more of the same would be the row of all in `audit`."""
    train, runs = parts["train"], dict[str, list[Row]]()
    for n_classes in _SIZES:
        for seed in range(seeds):
            classes = np.random.default_rng(seed).permutation(np.unique(train.labels))[:n_classes]
            rows = train.of_classes(classes).embeddings
            score = cohort_score(rows, k=20, whitening=fit_whitening(rows))
            found = compared("sizes", model, f"whitened k 20, {n_classes} classes", score, parts["audit"])
            runs.setdefault(found.method, []).append(found)
    return [over_seeds(rows) for rows in runs.values()]


def on_splits(model: str, parts: Mapping[str, Embedded], seeds: int) -> list[Row]:
    scores, pool = methods(parts["train"]), joined([parts["cohort"], parts["calibration"], parts["audit"]])
    runs: dict[str, list[Row]] = {}
    for seed in range(seeds):
        classes = np.random.default_rng(seed).permutation(np.unique(pool.labels))
        tuning, rest = (pool.of_classes(half) for half in np.array_split(classes, 2))
        rows = {name: compared("splits", model, name, score, rest) for name, score in scores.items()}
        rows |= {how: replace(rows[name], method=f"chosen {how}") for how, name in choices(scores, tuning).items()}
        for name, row in rows.items():
            runs.setdefault(name, []).append(row)
    return [over_seeds(rows) for rows in runs.values()]


def with_catalogue(model: str, parts: Mapping[str, Embedded], seeds: int) -> list[Row]:
    """A cohort of other classes beside a cohort that holds further images of the measured classes."""
    train, audit = parts["train"], parts["audit"]
    whitening = fit_whitening(train.embeddings)
    narrow = {
        "cosine": Score(),
        "cohort of other classes, k 20": cohort_score(train.embeddings, k=20, whitening=whitening),
        "cohort of other classes, k 100, w 0.3": cohort_score(train.embeddings, k=100, weight=0.3, whitening=whitening),
    }
    runs: dict[str, list[Row]] = {}
    for seed in range(seeds):
        evaluated, catalogue = dealt(audit, np.random.default_rng(seed))
        rows = catalogue.embeddings
        scores = narrow | {
            "catalogue, k 5": cohort_score(rows, k=5, whitening=whitening),
            "catalogue, k 20, w 0.3": cohort_score(rows, k=20, weight=0.3, whitening=whitening),
        }
        for name, score in scores.items():
            runs.setdefault(name, []).append(compared("catalogue", model, name, score, evaluated))
    return [over_seeds(rows) for rows in runs.values()]


def choices(scores: Mapping[str, Score], data: Embedded) -> dict[str, str]:
    """The method that calibration on some data chooses by its rule, without and with labels of the cohort."""
    same = {name: score for name, score in scores.items() if not name.endswith("others")}  # all with one cohort
    tars = {name: rates(score, data).tars[-1] for name, score in same.items()}
    alike = {name: opis_of(score, data) for name, score in same.items()}

    def choose(names: Sequence[str]) -> str:
        least = max(max(tars[name] for name in names) - _TAR_MARGIN, tars["cosine"])
        return min((name for name in names if tars[name] >= least), key=lambda name: alike[name])

    return {
        "without labels": choose([name for name in same if "by class" not in name]),
        "with labels": choose(list(same)),
    }


def opis_of(score: Score, data: Embedded) -> float:
    options = OpisOptions(axis="log_far", n_bootstrap=_N_FEW)
    return consistency_report(vectors_of(score, data), options, rng=np.random.default_rng(0)).value


def vectors_of(score: Score, data: Embedded) -> LabelledVectors:
    query, gallery = score.vectors(data.embeddings)
    return labelled(query, names_of(data), gallery=gallery)


def compared(part: str, model: str, method: str, score: Score, data: Embedded) -> Row:
    """A score beside the cosine on the same images."""
    found = compare_consistency(
        vectors_of(score, data),
        vectors_of(Score(), data),
        OpisOptions(axis="log_far", n_bootstrap=_N_FEW if part != "audit" else 2000),
        rng=np.random.default_rng(0),
    )
    first, base = found.first, found.second.debiased
    assert first.debiased is not None
    assert first.debiased_interval is not None
    assert base is not None
    ratio = first.debiased / base
    around = found.ratio_interval or Interval(ratio, ratio)  # none where only the spread over seeds is shown
    cosine = rates(Score(), data)
    return Row(
        part,
        model,
        method,
        (ratio, around.low, around.high),
        (first.debiased, first.debiased_interval.low, first.debiased_interval.high),
        beside(cosine if method == "cosine" else rates(score, data), cosine),
    )


def rates(score: Score, data: Embedded) -> Rates:
    vectors = vectors_of(score, data)
    curves = operating_curves(vectors, thresholds=thresholds_at_far(vectors, _STRICT))
    worst = np.sort(curves.tar[:, 0])
    return Rates(
        recall_at_1=recall_at_k(vectors)[1],
        tars=tuple(float(rate) for rate in curves.pooled_tar[::-1]),
        worst_tenth=float(worst[: len(worst) // 10].mean()),
    )


def names_of(data: Embedded) -> list[str]:
    return [str(label) for label in data.labels]


def dealt(data: Embedded, rng: np.random.Generator) -> tuple[Embedded, Embedded]:
    """Four images of each class, and the others."""
    chosen = places(data.labels, rng) < _EVALUATED
    one, other = (
        Embedded(data.embeddings[rows], data.labels[rows], data.makers[rows], data.ids[rows])
        for rows in (chosen, ~chosen)
    )
    return one, other


def places(labels: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the images inside each class, from 0: [n]."""
    place = np.empty(len(labels), dtype=np.int64)
    for name in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == name))
        place[rows] = np.arange(len(rows))
    return place


def joined(parts: Sequence[Embedded]) -> Embedded:
    return Embedded(*(np.concatenate([getattr(part, name) for part in parts]) for name in Embedded.__slots__))


def over_seeds(rows: Sequence[Row]) -> Row:
    """Means over the seeds with lowest and highest; the ratio is one of means."""
    estimates = np.array([[row.debiased[0], row.debiased[0] / row.ratio[0]] for row in rows])
    ratios = estimates[:, 0] / estimates[:, 1]
    mean, cosine = estimates.mean(axis=0)
    return replace(
        rows[0],
        ratio=(float(mean / cosine), float(ratios.min()), float(ratios.max())),
        debiased=(float(mean), float(estimates[:, 0].min()), float(estimates[:, 0].max())),
        values={name: float(np.mean([row.values[name] for row in rows])) for name in rows[0].values},
    )


def beside(found: Rates, cosine: Rates) -> dict[str, float]:
    """Values of the cosine itself, and differences to it of all others."""
    values = {
        "R@1": (found.recall_at_1, cosine.recall_at_1),
        **{f"TAR {far:g}": pair for far, *pair in zip(_STRICT[::-1], found.tars[::-1], cosine.tars[::-1], strict=True)},
        "worst 10 %": (found.worst_tenth, cosine.worst_tenth),
    }
    return {name: mine if found is cosine else mine - base for name, (mine, base) in values.items()}


def print_rows(rows: Sequence[Row]) -> None:
    title = ""
    for row in rows:
        if title != (title := f"{row.part}, {row.model}"):
            columns = "".join(f"{name:>11}" for name in row.values)
            print(f"\n{title:48}{'ratio to cosine':>21}{'debiased OPIS, 1e-2':>22}{columns}")
        ratio, debiased = (f"{mid:.2f} ({low:.2f}-{high:.2f})" for mid, low, high in (row.ratio, scaled(row.debiased)))
        sign = "" if row.method == "cosine" else "+"
        print(f"{row.method:48}{ratio:>21}{debiased:>22}" + "".join(f"{v:>{sign}11.3f}" for v in row.values.values()))


def scaled(values: Range) -> Range:
    low, mid, high = (100 * value for value in values)
    return low, mid, high


def cost_of_density(batch: int, options: argparse.Namespace) -> Group:
    """CPU time a query of exact search, and of the densities that a cohort score adds to it."""
    rng = np.random.default_rng(0)
    n, d, n_queries = 10_000 if options.quick else 100_000, 128, 64

    def rows(count: int) -> NDArray[np.float32]:
        drawn = rng.normal(size=(count, d)).astype(np.float32)
        unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit

    index, queries = build_index(rows(n), IndexSpec(kind="Flat")), rows(n_queries)
    calls = [queries[start : start + batch] for start in range(0, n_queries, batch)]
    cases = {"exact search": cpu_of(lambda: [index.above(call, 0.9) for call in calls], n_parts=n_queries)}
    for size in (500, 2000, 10_000):
        plain = cohort_score(rows(size), k=20)
        whitened = cohort_score(rows(size), k=20, whitening=fit_whitening(rows(2000)))
        for name, score in (("", plain), (", whitened", whitened)):
            cases[f"cohort of {size}{name}"] = cpu_of(partial(all_vectors, score, calls), n_parts=n_queries)
    return in_turns(f"{n} x {d}, {batch} queries a call", cases, n_rounds=options.rounds)


def all_vectors(score: Score, calls: Sequence[NDArray[np.float32]]) -> None:
    for call in calls:
        score.query_vectors(call)


if __name__ == "__main__":
    main()
