from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import SearchRound, crossed, divide, in_rounds, labelled, map_at_r, ranking, recall_at_k
from retrieval.errors import InvalidInput, NotEnoughEvidence

whole = st.integers(-3, 3).map(np.float32)
drawn = st.tuples(
    arrays(np.float32, (9, 2), elements=whole),
    st.lists(st.sampled_from("abcd"), min_size=9, max_size=9).filter(lambda labels: len(set(labels)) > 1),
)


def ranked_relevance(query: np.ndarray, gallery: np.ndarray, labels: list[str]) -> list[list[bool]]:
    """Right or wrong, best first, for each query that has a right answer."""
    answers = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        others.sort(key=lambda j: (-float(query[i] @ gallery[j]), j))
        answers.append([labels[j] == labels[i] for j in others])
    return [answer for answer in answers if any(answer)]


@settings(deadline=None)
@given(data=drawn, chunk=st.sampled_from([1, 20, 1000]))
def test_ranking_agrees_with_sorting_every_answer(data: tuple[np.ndarray, list[str]], chunk: int) -> None:
    """Full of ties; those go to the lower index, however the queries are cut into chunks."""
    base, labels = data
    size = (base**2).sum(axis=1, keepdims=True)
    query, gallery = np.hstack([2 * base, -np.ones_like(size), -size]), np.hstack([base, size, np.ones_like(size)])
    answers = ranked_relevance(query, gallery, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_MAX_SCORES", chunk)
        recall = recall_at_k(labelled(query, labels, gallery=gallery), k=(1, 3, 50))
        precision = map_at_r(labelled(query, labels, gallery=gallery))
    for k, value in recall.items():
        assert value == pytest.approx(np.mean([any(answer[:k]) for answer in answers]))
    expected = []
    for answer in answers:
        r = sum(answer)
        expected.append(sum(sum(answer[: k + 1]) / (k + 1) for k in range(r) if answer[k]) / r)
    assert precision == pytest.approx(np.mean(expected))


def test_impossible_k_and_lonely_classes_are_refused() -> None:
    rows = np.eye(3, dtype=np.float32)
    for k in ((), (0,)):
        with pytest.raises(InvalidInput, match="k must hold"):
            recall_at_k(labelled(rows, ["a", "a", "b"]), k=k)
    for measure in (recall_at_k, map_at_r):
        with pytest.raises(NotEnoughEvidence, match="no class has two images"):
            measure(labelled(rows, ["a", "b", "c"]))
        with pytest.raises(InvalidInput, match="one set of images"):
            measure(crossed(rows, ["a", "a", "b"], rows, ["a", "a", "b"]))
        with pytest.raises(InvalidInput, match="without excluded pairs"):
            measure(labelled(rows, ["a", "a", "b"], exclude=(["x", "x", ""],)))


@settings(deadline=None, max_examples=50)
@given(data=drawn, chunk=st.sampled_from([1, 20, 1000]), seed=st.integers(0, 100))
def test_ranking_in_rounds_agrees_with_sorting_every_answer(
    data: tuple[np.ndarray, list[str]], chunk: int, seed: int
) -> None:
    """The queries of each round query its gallery; ties go to the lower index among all images."""
    rows, labels = data
    rounds = [
        SearchRound(division, rows[division.queries], rows[division.items][:, ::-1].copy())
        for division in divide(labels, 3, rng=np.random.default_rng(seed))
    ]
    vectors, answers = in_rounds(labels, rounds), []
    for one in rounds:
        for query, row in zip(one.query, one.division.queries, strict=True):
            ranked = sorted(
                zip(one.gallery, one.division.items, strict=True), key=lambda item: (-float(query @ item[0]), item[1])
            )
            answers.append([labels[item] == labels[row] for _, item in ranked])
    answers = [answer for answer in answers if any(answer)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_MAX_SCORES", chunk)
        recall, precision = recall_at_k(vectors, k=(1, 3, 50)), map_at_r(vectors)
    for k, value in recall.items():
        assert value == pytest.approx(np.mean([any(answer[:k]) for answer in answers]))
    expected = []
    for answer in answers:
        r = sum(answer)
        expected.append(sum(sum(answer[: k + 1]) / (k + 1) for k in range(r) if answer[k]) / r)
    assert precision == pytest.approx(np.mean(expected))


def test_rounds_without_a_query_have_no_ranking() -> None:
    rows = np.eye(3, dtype=np.float32)
    (division,) = divide(["a", "b", "c"], 1, rng=np.random.default_rng(0))
    vectors = in_rounds(["a", "b", "c"], [SearchRound(division, rows[:0], rows)])
    for measure in (recall_at_k, map_at_r):
        with pytest.raises(NotEnoughEvidence, match="no class has two images"):
            measure(vectors)
