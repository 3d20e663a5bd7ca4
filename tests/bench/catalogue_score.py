"""What do the labels of a catalogue bring to one threshold for all classes, and when do they do harm?

    scores   four scores on halves of the images: cosine, cohort, and both with the labels of the gallery; how often
             strangers are accepted, and what the threshold does on other classes
    sizes    1, 2, 3 and 8 items a class, uneven classes, and made-up galleries of 1 to 200 items a class
    wrong    0, 5, 10 and 20 % of the gallery's labels are those of another item

Pull and offset weight are chosen, as calibration does, on a third of the classes; the others judge. Ratios are of
debiased OPIS (log FAR) to the cosine's on the same galleries, of the first network if several embed them. The cohort
of icons are rarer names, of others the classes that the network was trained on. Each seed trains another network. The
last line is one JSON object with everything.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.consistency import Target
from retrieval.contract.score import Score
from retrieval.engine.class_choice import with_catalog_scores
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.score_choice import candidate_scores
from tests.bench.measuring.catalogue_galleries import (
    MIN_QUERIES,
    Searches,
    Sizes,
    exactly,
    grown,
    half,
    searches,
    uneven,
)
from tests.bench.measuring.catalogue_icons import Embedded, icons, keep_icons, kept_icons, photographs
from tests.bench.measuring.catalogue_rates import (
    BANDS,
    FARS,
    Measured,
    far_over_target,
    measure,
    ratio,
    strangers_over_target,
)
from tests.bench.measuring.shown import Shown

Vectors = NDArray[np.float32]
Row = dict[str, object]
FOLDER = Path(".bench/catalogue")
# Of the first network whose classes were searched in a way: what the others are compared with.
References = dict[tuple[str, tuple[str, ...]], list[Measured]]
_SCORES = ("cosine", "cohort", "cosine, class means", "catalogue")
_TARGET = Target("far", 0.01)
_SIZES, _SHARES, _LARGEST = (1, 2, 3, 8), (0.0, 0.05, 0.1, 0.2), 200
_N_ROUNDS = 2
_LEAST_CLASSES = 40
_QUICK_TABLES = ("scores", "wrong")


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """Images of classes that took no part in the training, and the cohort."""

    embeddings: Vectors
    labels: tuple[str, ...]
    cohort: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The classes that judge, the others, and the scores by name, those with labels chosen on the others."""

    judging: LabelledEmbeddings
    choosing: LabelledEmbeddings
    scores: dict[str, Score]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=tuple(_DOMAINS), default=tuple(_DOMAINS))
    parser.add_argument("--tables", nargs="+", choices=tuple(_TABLES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="networks, from seed 0")
    parser.add_argument("--cache", type=Path, default=FOLDER, help=f"what is made once is kept here (default {FOLDER})")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the sample of icons that is part of the sources, without the table of sizes",
    )
    parser.add_argument("--keep-sample", action="store_true", help="write that sample")
    options = parser.parse_args()
    shown = Shown()
    if options.keep_sample:
        keep_icons(icons(0, options.cache, shown))
    made = {"sample of icons": iter([_of_sample()])} if options.quick else _collections(options, shown)
    found: dict[str, dict[str, list[Row]]] = {}
    references: References = {}
    with threadpool_limits(1):
        for domain, collections in made.items():
            chosen = [_choose(collection) for collection in collections]
            found[domain] = {}
            for table in options.tables or (_QUICK_TABLES if options.quick else _TABLES):
                shown.line(f"{domain}: {table}")
                found[domain][table] = _TABLES[table](chosen, references)
                print(f"\n{domain}, {table}\n\n{_markdown(found[domain][table])}", flush=True)
    print(json.dumps(found))


def _collections(options: argparse.Namespace, shown: Shown) -> dict[str, Iterator[Collection]]:
    """Return the collections of each domain, made when they are asked for."""

    def of_seeds(make: Callable[[int, Path, Shown], Collection]) -> Iterator[Collection]:
        return (make(seed, options.cache, shown) for seed in range(options.seeds))

    return {name: of_seeds(_DOMAINS[name]) for name in options.domains}


def _of_sample() -> Collection:
    found = kept_icons()
    return Collection(found.embeddings, tuple(found.names.tolist()), found.cohort)


def _fetched(source: Callable[[int, Path, Shown], Embedded]) -> Callable[[int, Path, Shown], Collection]:
    """Return how pictures that are fetched and embedded become a collection."""

    def made(seed: int, folder: Path, shown: Shown) -> Collection:
        folder.mkdir(parents=True, exist_ok=True)
        found = source(seed, folder, shown)
        return Collection(found.embeddings, tuple(found.names.tolist()), found.cohort)

    return made


def _emoji(kind: str) -> Callable[[int, Path, Shown], Collection]:
    """Return how the held-back emoji are embedded by short runs with a term, see `extra_terms.py`."""

    def embedded(seed: int, folder: Path, shown: Shown) -> Collection:
        # Training needs packages that measuring does not.
        from tests.bench.measuring.activations import activations, split
        from tests.bench.measuring.extra_terms import Extra
        from tests.bench.measuring.short_runs import Setting, run

        kept, activated = folder / f"emoji-{kind}-{seed}.npy", activations(n_views=6)
        parts = split(activated, seed=seed)
        if not kept.exists():
            shown.line(f"train {kind}, seed {seed}")
            folder.mkdir(parents=True, exist_ok=True)
            extra = Extra(kind=kind, positive_weight=10, negative_weight=10)  # type: ignore[arg-type]  # a Literal
            setting = Setting(extra=extra, regime="tail", steps=120, loss_learning_rate=0.1)
            staging = kept.with_suffix(".part.npy")
            np.save(staging, run(setting, activated, parts.train, seed=seed).embeddings)
            staging.replace(kept)
        rows = np.load(kept)
        labels = tuple(activated.classes[activated.labels[row]] for row in parts.test)
        return Collection(rows[parts.test], labels, rows[parts.train])

    return embedded


_DOMAINS: dict[str, Callable[[int, Path, Shown], Collection]] = {
    "emoji, base": _emoji("none"),
    "emoji, TCM on the cohort score": _emoji("cohort"),
    "icons": _fetched(icons),
    "photographs": _fetched(photographs),
}


def _choose(collection: Collection) -> Chosen:
    """Return the scores that calibration would compare, with the classes that judge them."""
    cosine, *_, whitened, _broad = candidate_scores(collection.cohort)
    data = LabelledEmbeddings(collection.embeddings, collection.labels, "", n_rounds=_N_ROUNDS)
    choice = with_catalog_scores(data, (cosine, whitened), _TARGET)
    judging = set(choice.judging.labels)
    others = np.array([row for row, label in enumerate(collection.labels) if label not in judging], dtype=np.int64)
    return Chosen(choice.judging, data.subset(others), dict(zip(_SCORES, choice.scores, strict=True)))


def scores_table(chosen: Sequence[Chosen], references: References) -> list[Row]:
    """Compare the scores on halves of the images."""
    galleries = [_drawn(one, seed, half) for seed, one in enumerate(chosen)]
    rows = _compared(galleries, chosen, references, {})
    for row in rows:
        scores = [one.scores[str(row["score"])] for one in chosen]
        found = [measure(gallery, score) for gallery, score in zip(galleries, scores, strict=True)]
        strangers = [strangers_over_target(*of) for of in zip([c.judging for c in chosen], scores, found, strict=True)]
        moved = [far_over_target(c.choosing.scored(s), at) for c, s, at in zip(chosen, scores, found, strict=True)]
        for number, far in enumerate(FARS[:2]):
            row[f"strangers' FAR over {far:g}"] = [round(float(one[number]), 3) for one in strangers]
            row[f"FAR of other classes over {far:g}"] = [round(float(one[number]), 3) for one in moved]
        terms = [score.classes for score in scores]
        row["pull, offset weight"] = [(of.pull, of.offset_weight) for of in terms if of is not None]
    return rows


def sizes_table(chosen: Sequence[Chosen], references: References) -> list[Row]:
    """Compare the scores with a number of items a class, where enough classes leave two queries."""
    plans: dict[str, Callable[[Chosen, int], Searches]] = {
        str(size): partial(_drawn, sizes=exactly(size))
        for size in _SIZES
        if all(_n_classes(one, size + MIN_QUERIES) >= _LEAST_CLASSES for one in chosen)
    }
    plans["uneven, 1 to half"] = partial(_drawn, sizes=uneven)
    plans[f"uneven, 1 to {_LARGEST}, made up"] = _grown
    rows = []
    for name, plan in plans.items():
        galleries = [plan(one, seed) for seed, one in enumerate(chosen)]
        rows += _compared(galleries, chosen, references, {"items a class": name})
    return rows


def wrong_table(chosen: Sequence[Chosen], references: References) -> list[Row]:
    """Compare the scores on halves of the images, with wrong labels in the gallery."""
    rows = []
    for share in _SHARES:
        galleries = [_drawn(one, seed, half, share) for seed, one in enumerate(chosen)]
        of_share = _compared(galleries, chosen, references, {"wrong labels": f"{share:.0%}"})
        for row in of_share:
            scores = [one.scores[str(row["score"])] for one in chosen]
            if scores[0].classes is not None:
                far = [gallery.far_items(score) for gallery, score in zip(galleries, scores, strict=True)]
                row["far of right, of wrong"] = np.mean(far, axis=0).round(3).tolist()
        rows += of_share
    return rows


_TABLES: dict[str, Callable[[Sequence[Chosen], References], list[Row]]] = {
    "scores": scores_table,
    "sizes": sizes_table,
    "wrong": wrong_table,
}


def _n_classes(one: Chosen, n_images: int) -> int:
    """Return how many of the judging classes have so many images."""
    return sum(count >= n_images for count in Counter(one.judging.labels).values())


def _drawn(one: Chosen, seed: int, sizes: Sizes, wrong: float = 0.0) -> Searches:
    return searches(one.judging.embeddings, one.judging.labels, sizes, wrong=wrong, n_rounds=_N_ROUNDS, seed=seed)


def _grown(one: Chosen, seed: int) -> Searches:
    return grown(one.judging.embeddings, one.judging.labels, _LARGEST, seed=seed)


def _compared(galleries: Sequence[Searches], chosen: Sequence[Chosen], references: References, named: Row) -> list[Row]:
    """Return a row for each score: means over the seeds, and the ratios of OPIS to the cosine's."""
    found = {
        name: [measure(gallery, one.scores[name]) for gallery, one in zip(galleries, chosen, strict=True)]
        for name in _SCORES
    }
    classes = found["cosine"][0].classes
    to = references.setdefault((str(named), classes), found["cosine"])
    return [named | {"score": name, "classes": len(classes)} | _means(of, to) for name, of in found.items()]


def _means(of: Sequence[Measured], to: Sequence[Measured]) -> Row:
    row: Row = {"R@1": round(float(np.mean([one.recall_at_1 for one in of])), 4)}
    for number, far in enumerate(FARS):
        row[f"TAR at {far:g}"] = round(float(np.mean([one.tars[number] for one in of])), 4)
    for band in BANDS:
        row[f"OPIS {band}"] = [round(value, 3) for value in ratio(of, to, band)]
    return row


def _markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table; of three numbers, the first and in brackets the others."""
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(column: str, value: object) -> str:
        if column.startswith("OPIS") and isinstance(value, list):
            return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"
        if isinstance(value, list):
            return ", ".join(str(part) for part in value)
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell(column, row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
