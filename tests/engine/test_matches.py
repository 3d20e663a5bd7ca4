"""Queries that are answered together get, bit for bit, what each gets alone, and memory stays in bounds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import fit_whitening
from retrieval.contract.class_terms import ClassTerms, PulledItems, pull_items
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score, cohort_score
from retrieval.engine import matches
from retrieval.engine.batcher import Batcher
from retrieval.engine.encoder import Encoder
from retrieval.engine.index.index import Hits
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.live import Live, Opener
from retrieval.engine.matches import LiveQuery, SearchResult, find_matches, probe_query
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.pictures import class_picture, encoded, write_class_folders
from tests.stores import activate, reindex

Vectors = NDArray[np.float32]
N_QUERIES = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pictures of 20 classes; read only."""
    return write_class_folders(tmp_path_factory.mktemp("images"), n_classes=20, n_images=4)


@pytest.fixture
def opened(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, images: Path, cosine_point: OperatingPoint
) -> Callable[..., Live]:
    """Opens the pictures with a score and a threshold."""

    def run(score: Score, threshold: float) -> Live:
        choice = replace(cosine_point.choice, threshold=threshold)
        activate(calibrated, replace(cosine_point, score_digest=score.digest, choice=choice), score)
        snapshot = reindex(calibrated, tiny_encoder, pool, ReindexRequest(catalog="shop", manifest_uri=str(images)))
        model = Batcher[Vectors, Vectors](lambda pixels: [], name="model", max_batch=1)
        return Opener(calibrated, lambda bundle: model).live("shop", snapshot)

    return run


@pytest.fixture(scope="module")
def embeddings(tiny_encoder: Encoder) -> Vectors:
    """Embeddings of pictures of the same classes, and of others."""
    return tiny_encoder.embed_images([encoded(class_picture(number, 50)) for number in range(N_QUERIES)])


def plain(result: SearchResult) -> list[tuple[str, float, float, float]]:
    return [(match.item.id, match.similarity, match.score, match.probability) for match in result.matches]


KINDS = ["cosine", "cohort", "whitened cohort"]


def score_of(kind: str, labelled: LabelledEmbeddings) -> Score:
    base = kind.removeprefix("catalogue ")
    whitening = fit_whitening(labelled.embeddings) if base == "whitened cohort" else None
    score = Score() if base == "cosine" else cohort_score(labelled.embeddings, k=5, whitening=whitening)
    return score if base == kind else replace(score, classes=ClassTerms(pull=0.7))


@pytest.mark.parametrize("kind", [*KINDS, *(f"catalogue {kind}" for kind in KINDS)])
def test_a_batch_answers_as_single_queries(
    kind: str, opened: Callable[..., Live], embeddings: Vectors, labelled: LabelledEmbeddings
) -> None:
    """To the last bit, with the numbers that a score adds to a query; each query has its own limit."""
    score = score_of(kind, labelled)
    assert score.kind == kind
    live = opened(score, 0.5 if kind.endswith("cosine") else -0.2)
    queries = [LiveQuery(live, row, 1 + number % 7) for number, row in enumerate(embeddings)]
    together, alone = find_matches(queries), [find_matches([query])[0] for query in queries]
    assert [plain(result) for result in together] == [plain(result) for result in alone]
    assert [result.n_total for result in together] == [result.n_total for result in alone]
    assert sum(result.n_total for result in alone) > 2 * N_QUERIES
    assert [len(result.matches) for result in alone] == [
        min(result.n_total, query.limit) for result, query in zip(alone, queries, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_score_answers_with_the_cosine_of_the_pulled_item(
    kind: str,
    opened: Callable[..., Live],
    calibrated: Store,
    embeddings: Vectors,
    labelled: LabelledEmbeddings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every number of a match again from its definition, with an offset for each item; the best score first."""
    terms, offsets = ClassTerms(pull=0.7), np.linspace(-0.1, 0.2, 80, dtype=np.float32)

    def with_offsets(_: ClassTerms, *arguments: Any, **named: Any) -> PulledItems:
        return replace(pull_items(terms, *arguments, **named), offsets=offsets)

    monkeypatch.setattr("retrieval.contract.score.pull_items", with_offsets)
    base = score_of(kind, labelled)
    live = opened(replace(base, classes=replace(terms, offset_weight=0.5)), 0.3 if kind == "cosine" else -0.3)
    catalogue = np.concatenate([calibrated.embeddings(key) for key in live.snapshot.manifest.shards])
    ids = [item.id for item in live.snapshot.items.take(np.arange(80))]

    def whitened(rows: Vectors) -> Vectors:
        return rows if base.whitening is None else base.whitening.apply(rows)

    rows, asked = whitened(catalogue), whitened(embeddings)
    means = np.repeat([rows[start : start + 4].mean(axis=0) for start in range(0, 80, 4)], 4, axis=0)
    mixed = 0.3 * rows + 0.7 * means
    pulled = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    alone = replace(base, whitening=None) if base.cohort is not None else base  # densities of rows that are whitened
    cosines = asked.astype(float) @ pulled.T.astype(float)
    densities = base.weight * (alone.density(asked)[:, None] + alone.density(pulled)[None, :])
    scores = cosines - densities - offsets

    n_found = 0
    for number, result in enumerate(find_matches([LiveQuery(live, row, 80) for row in embeddings])):
        found = [ids.index(match.item.id) for match in result.matches]
        np.testing.assert_allclose([match.score for match in result.matches], scores[number, found], atol=1e-4)
        np.testing.assert_allclose([match.similarity for match in result.matches], cosines[number, found], atol=1e-4)
        assert [match.score for match in result.matches] == sorted(match.score for match in result.matches)[::-1]
        assert result.n_total == len(found)
        n_found += len(found)
    assert abs(n_found - int((scores >= live.point.threshold).sum())) <= 1  # of float32
    assert n_found > 2 * N_QUERIES


def test_the_query_of_the_probe_finds_at_most_one_match(opened: Callable[..., Live]) -> None:
    live = opened(Score(), -1.0)
    (result,) = find_matches([probe_query(live)])
    assert (len(result.matches), result.n_total) == (1, 80)


@pytest.mark.parametrize(
    ("hits_at_once", "sizes"),
    [
        (1 << 22, [40]),  # room for everything
        (80 * 40, [40]),
        (80 * 10, [10, 10, 10, 10]),  # each query finds all 80
        (100, [4, *[1] * 36]),  # the first four are asked in any case
    ],
)
def test_a_low_threshold_asks_for_less_at_once(
    hits_at_once: int,
    sizes: list[int],
    opened: Callable[..., Live],
    embeddings: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the index returns at once stays within a number of hits, however many callers wait."""
    live = opened(Score(), -1.0)
    asked = []
    above = type(live.snapshot.index).above

    def counted(self: Any, queries: Vectors, threshold: float) -> list[Hits]:
        asked.append(len(queries))
        return above(self, queries, threshold)

    monkeypatch.setattr(type(live.snapshot.index), "above", counted)
    monkeypatch.setattr(matches, "_HITS_AT_ONCE", hits_at_once)
    results = find_matches([LiveQuery(live, row, 3) for row in embeddings])
    assert asked == sizes
    assert [result.n_total for result in results] == [80] * N_QUERIES
