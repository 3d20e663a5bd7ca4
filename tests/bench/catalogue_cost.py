"""What does a query cost with a catalogue score, beside the score without labels in the same number of dimensions?

Classes of a few items each, and new items of some classes as queries. Every score accepts the same share of the pairs.
From the embedding of a query to its matches with their numbers, one query at a time; CPU time of the process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import PlattCalibrator
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.manifest import Item
from retrieval.contract.score import Score, cohort_score
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.engine.matches import LiveQuery, find_matches
from tests.bench.measuring.rounds import cpu_of, in_turns, option_parser, show

Vectors = NDArray[np.float32]
_SIZE, _D = 8, 128  # items of a class, columns of an embedding
_COHORT, _K = 4000, 20
_CLASSES_OF_A_FAMILY = 25
_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Data:
    """Embeddings of the gallery [n, d] with their labels, of queries [q, d] of the same classes, and of a cohort."""

    gallery: Vectors
    labels: list[str]
    queries: Vectors
    cohort: Vectors


def main() -> None:
    """Measure each score in turns; the last line is one JSON object with the ratios of CPU time."""
    parser = option_parser(__doc__)
    parser.add_argument("--n", type=int, help="items (default 100000, quick 8000)")
    parser.add_argument("--share", type=float, nargs="+", default=[1e-4, 1e-3], help="of the pairs that match")
    parser.add_argument("--queries", type=int, help="queries a run (default 1000, quick 200)")
    options = parser.parse_args()
    small = options.quick
    with threadpool_limits(1):
        data = made(options.n or (8000 if small else 100_000), options.queries or (200 if small else 1000))
        groups = [in_turns(f"share {share:g}", cases(data, share), n_rounds=options.rounds) for share in options.share]
    facts = {"items": len(data.gallery), "dimensions": _D, "queries": len(data.queries)}
    show(__doc__, options, groups, facts)
    if not options.json:
        ratios = {f"{group.title}, {row.case}": row.ratio for group in groups for row in group.rows[1:]}
        print(json.dumps({**facts, **ratios}))


def made(n: int, n_queries: int) -> Data:
    """Classes in families: two items of a class have a cosine of about 0.6, of a family 0.35."""
    rng = np.random.default_rng(0)
    n_classes = n // _SIZE
    families = rng.normal(size=(n_classes // _CLASSES_OF_A_FAMILY + 1, _D))
    classes = families[np.arange(n_classes) % len(families)] + 0.85 * rng.normal(size=(n_classes, _D))

    def items(codes: NDArray[np.int64]) -> Vectors:
        rows = (classes[codes] + 1.1 * rng.normal(size=(len(codes), _D))) * np.exp(-np.arange(_D) / 48)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    codes = np.arange(n_classes * _SIZE) % n_classes
    of_cohort = rng.integers(0, n_classes, _COHORT)
    return Data(items(codes), [f"class {code}" for code in codes], items(codes[:n_queries]), items(of_cohort))


def cases(data: Data, share: float) -> dict[str, Any]:
    """Each score, as a function that answers all queries; the score without labels first."""
    plain = cohort_score(data.cohort, k=_K)
    scores = {"cohort": plain}
    for pull in (0.7, 1.0):
        scores[f"catalogue cohort, pull {pull}"] = replace(plain, classes=ClassTerms(pull=pull))
    return {
        name: cpu_of(partial(answer, live(score, data, share), data.queries), n_parts=len(data.queries))
        for name, score in scores.items()
    }


def answer(opened: Any, queries: Vectors) -> None:
    for row in queries:
        find_matches([LiveQuery(opened, row, _LIMIT)])


def live(score: Score, data: Data, share: float) -> Any:
    """What answers queries, with the threshold that accepts this share of the pairs."""
    gallery = score.gallery(data.gallery, data.labels)
    scores = score.query_vectors(data.queries[:64]) @ gallery.vectors.T
    threshold = float(np.quantile(scores, 1 - share))
    index = build_index(gallery.vectors, IndexSpec(), threshold=threshold)
    items = ItemTable.join(
        [ItemRows.of(_items(data.labels))], gallery.densities, None if gallery.classes is None else gallery.offsets
    )
    return SimpleNamespace(
        score=score,
        snapshot=SimpleNamespace(index=index, items=items),
        point=SimpleNamespace(threshold=threshold, calibrator=PlattCalibrator(2.0, -1.0, 0.5, 10, 10)),
    )


def _items(labels: Sequence[str]) -> list[Item]:
    return [
        Item(id=f"item-{number}", uri=f"file:///images/{number}.jpg", label=label, attributes={"maker": "north"})
        for number, label in enumerate(labels)
    ]


if __name__ == "__main__":
    main()
