"""Which score makes classes most alike at one threshold, without retraining, and what does it cost a query?

Emoji by three models. `audit`: its classes took part in nothing, not in training, cohort, choosing or tuning of any
default; ratios are of debiased OPIS (log FAR, 1e-2 to 1e-1) to the cosine's on the same classes and halves of images,
with 95 % intervals from 1,000 bootstraps over classes. `splits`: the untouched classes dealt in halves, one to choose
the score on, one to measure; mean and range over the seeds (defaults were tuned on some of these classes). `catalogue`:
four images of each audit class are measured, the others are an unlabelled cohort, so that own-class images are in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.consistency.curves import operating_curves
from retrieval.consistency.normalisation import fit_whitening
from retrieval.consistency.ranking import recall_at_k
from retrieval.consistency.selection import thresholds_at_far
from retrieval.contract.score import Score, cohort_score
from retrieval.engine.index import Index, IndexSpec
from tests.bench.measuring.emoji import MODELS, Embedded, emoji
from tests.bench.measuring.rounds import Group, cpu_of, in_turns, option_parser, show

Rates = NDArray[np.float64]
_NODES = np.geomspace(1e-2, 1e-1, 31)  # equally spaced on the log-FAR axis
_STRICT = (1e-4, 1e-3, 1e-2)
_EVALUATED = 4  # images of a class beside its images in the catalogue: two halves with a pair each
_N_BOOTSTRAP = 1000
_TAR_MARGIN = 0.02  # as in flows/calibrate
_SAME = 0.9999  # a picture meets itself at 1, up to rounding


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """shares: [T] debiased OPIS by class, its mean is the estimate; opis: plain; tars: at _STRICT."""

    shares: Rates
    opis: float
    recall_at_1: float
    tars: tuple[float, ...]
    worst_tenth: float


@dataclass(frozen=True, slots=True)
class Row:
    """One method beside the cosine; ratio and debiased with low and high end; the others as differences to cosine."""

    part: str
    model: str
    method: str
    ratio: tuple[float, float, float]
    debiased: tuple[float, float, float]
    values: dict[str, float]


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="splits and deals, 0 to this, exclusive")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    options = parser.parse_args()
    seeds, models = (1, ("base+tcm",)) if options.quick else (options.seeds, options.models)
    rows: list[Row] = []
    with threadpool_limits(1):
        for model in models:
            parts = emoji(model)
            rows += [*on_audit(model, parts), *on_splits(model, parts, seeds), *with_catalogue(model, parts, seeds)]
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
    tuned = {name: measure(score, parts["calibration"], n_splits=1) for name, score in scores.items()}
    measured = {name: measure(score, parts["audit"]) for name, score in scores.items()}
    measured |= {title: measured[name] for title, name in choices(tuned).items()}
    rng = np.random.default_rng(0)
    return [bootstrapped("audit", model, name, found, measured["cosine"], rng) for name, found in measured.items()]


def on_splits(model: str, parts: Mapping[str, Embedded], seeds: int) -> list[Row]:
    scores, pool = methods(parts["train"]), joined([parts["cohort"], parts["calibration"], parts["audit"]])
    runs: dict[str, list[tuple[Measured, Measured]]] = {}
    for seed in range(seeds):
        classes = np.random.default_rng(seed).permutation(np.unique(pool.labels))
        tuning, rest = (pool.of_classes(half) for half in np.array_split(classes, 2))
        tuned = {name: measure(score, tuning, n_splits=1) for name, score in scores.items()}
        measured = {name: measure(score, rest) for name, score in scores.items()}
        measured |= {title.split(":")[0]: measured[name] for title, name in choices(tuned).items()}
        for name, found in measured.items():
            runs.setdefault(name, []).append((found, measured["cosine"]))
    return [over_runs("splits", model, name, found) for name, found in runs.items()]


def with_catalogue(model: str, parts: Mapping[str, Embedded], seeds: int) -> list[Row]:
    """A cohort of other classes beside a cohort that holds further images of the measured classes."""
    train, audit = parts["train"], parts["audit"]
    whitening = fit_whitening(train.embeddings, [str(label) for label in train.labels])
    runs: dict[str, list[tuple[Measured, Measured]]] = {}
    for seed in range(seeds):
        evaluated, catalogue = dealt(audit, np.random.default_rng(seed))
        scores = {
            "cosine": Score(),
            "cohort of other classes, k 20": cohort_score(train.embeddings, k=20, whitening=whitening),
            "cohort from the catalogue, k 5": cohort_score(
                catalogue.embeddings, k=5, ignore_above=_SAME, whitening=whitening
            ),
        }
        measured = {name: measure(score, evaluated) for name, score in scores.items()}
        for name, found in measured.items():
            runs.setdefault(name, []).append((found, measured["cosine"]))
    return [over_runs("catalogue", model, name, found) for name, found in runs.items()]


def choices(tuned: Mapping[str, Measured]) -> dict[str, str]:
    """The method that calibration chooses, without and with labels of the cohort, by its rule."""
    same = [name for name in tuned if not name.endswith("others")]  # all with one cohort
    free = [name for name in same if "by class" not in name]
    return {
        f"chosen {how}: {name}": name
        for how, names in (("without labels", free), ("with labels", same))
        for name in [choose({name: tuned[name] for name in names})]
    }


def choose(tuned: Mapping[str, Measured]) -> str:
    """The most consistent among those that accept about as many true pairs as any, and no fewer than the cosine."""
    least = max(max(found.tars[-1] for found in tuned.values()) - _TAR_MARGIN, tuned["cosine"].tars[-1])
    return min((name for name in tuned if tuned[name].tars[-1] >= least), key=lambda name: tuned[name].opis)


def measure(score: Score, data: Embedded, *, n_splits: int = 8) -> Measured:
    query, gallery = score.query_vectors(data.embeddings), score.gallery_vectors(data.embeddings)
    names = [str(label) for label in data.labels]
    thresholds = thresholds_at_far(query, names, gallery_vectors=gallery, fars=[*_STRICT, *_NODES[1:]])
    order = np.argsort(thresholds)
    curves = operating_curves(query, names, gallery_vectors=gallery, thresholds=thresholds)
    at_far = curves.pooled_tar[np.searchsorted(curves.thresholds, thresholds)]
    nodes = thresholds[order][thresholds[order] <= thresholds[len(_STRICT) - 1]]
    inside = np.isin(curves.thresholds, nodes)
    tar = curves.tar
    worst = np.sort(tar[:, np.searchsorted(curves.thresholds, nodes[-1])])
    rng = np.random.default_rng(0)  # the same halves for every score
    total: Rates = np.zeros(len(curves.classes))
    for _ in range(n_splits):
        halves = [utilities(query, gallery, names, nodes, rows) for rows in deal_halves(data.labels, rng)]
        first, second = (half - half.mean(axis=0) for half in halves)
        total += over_band(first * second)
    return Measured(
        shares=total / n_splits * len(total) / (len(total) - 1),
        opis=float(over_band(f_measure(tar[:, inside], curves.far[:, inside]).var(axis=0))),
        recall_at_1=recall_at_k(query, names, gallery_vectors=gallery)[1],
        tars=tuple(float(rate) for rate in at_far[: len(_STRICT)]),
        worst_tenth=float(worst[: len(worst) // 10].mean()),
    )


def utilities(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    names: Sequence[str],
    nodes: Rates,
    rows: NDArray[np.int64],
) -> Rates:
    """Utility of each class among some of the images: [T, nodes]."""
    curves = operating_curves(
        query[rows], [names[row] for row in rows], gallery_vectors=gallery[rows], thresholds=nodes
    )
    return f_measure(curves.tar, curves.far)


def f_measure(tar: Rates, far: Rates) -> Rates:
    return 2 * tar * (1 - far) / np.maximum(tar + 1 - far, 1e-12)


def over_band(values: Rates) -> Rates:
    """Trapezoid rule over equally spaced nodes."""
    weights = np.ones(values.shape[-1])
    weights[[0, -1]] = 0.5
    return np.asarray(values @ weights / weights.sum(), dtype=np.float64)


def deal_halves(labels: NDArray[np.str_], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    place = places(labels, rng)
    sizes = np.unique(labels, return_counts=True)[1][np.unique(labels, return_inverse=True)[1]]
    return np.flatnonzero(place < sizes // 2), np.flatnonzero(place >= sizes // 2)


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


def bootstrapped(
    part: str, model: str, method: str, found: Measured, cosine: Measured, rng: np.random.Generator
) -> Row:
    n = len(found.shares)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=_N_BOOTSTRAP) / n
    debiased, ratio = weights @ found.shares, (weights @ found.shares) / (weights @ cosine.shares)
    mean = float(found.shares.mean())
    ratios = (mean / float(cosine.shares.mean()), *ends(ratio))
    return Row(part, model, method, ratios, (mean, *ends(debiased)), beside(found, cosine))


def ends(replicates: Rates) -> tuple[float, float]:
    low, high = np.quantile(replicates, [0.025, 0.975])
    return float(low), float(high)


def over_runs(part: str, model: str, method: str, runs: Sequence[tuple[Measured, Measured]]) -> Row:
    """Means over the seeds with lowest and highest; the ratio is one of means."""
    estimates = np.array([[found.shares.mean(), cosine.shares.mean()] for found, cosine in runs])
    ratios = estimates[:, 0] / estimates[:, 1]
    differences = [beside(found, cosine) for found, cosine in runs]
    values = {name: float(np.mean([run[name] for run in differences])) for name in differences[0]}
    mean, baseline = estimates.mean(axis=0)
    return Row(
        part,
        model,
        method,
        (float(mean / baseline), float(ratios.min()), float(ratios.max())),
        (float(mean), float(estimates[:, 0].min()), float(estimates[:, 0].max())),
        values,
    )


def beside(found: Measured, cosine: Measured) -> dict[str, float]:
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


def scaled(values: tuple[float, float, float]) -> tuple[float, float, float]:
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

    index, queries = Index.build(rows(n), IndexSpec()), rows(n_queries)
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
