"""Separation of classes in rounds of searches, against loops over every meeting of a query and an item."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from retrieval.consistency import class_confusions, label_margins, most_confused, score_histograms
from retrieval.consistency.pairs import tiles
from retrieval.consistency.separation.mislabelled import LINKAGES
from retrieval.errors import NotEnoughEvidence
from tests.consistency.searches import Meeting, meetings, searches

THRESHOLD = 0.4


@pytest.fixture
def drawn(family):
    """Rounds of classes of 1 to 6 images in mixed order, their labels, and all meetings."""
    rng = np.random.default_rng(0)
    rows, labels = family(rng, n_classes=7, n_images=6, dimension=6, crowding=0.5)
    kept = rng.permutation([row for row in range(len(rows)) if row % 6 <= row // 6])
    names = [labels[row] for row in kept]
    vectors = searches(rows[kept], names, n_rounds=3)
    return vectors, names, list(meetings(vectors))


@pytest.fixture(params=[3, 8, 1024])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles smaller than a class as well."""
    monkeypatch.setattr(tiles, "TILE", request.param)
    return int(request.param)


def between(labels: list[str], met: list[Meeting]) -> dict[tuple[str, str], list[tuple[float, int, int]]]:
    """Scores of the meetings of every two classes, with the rows of the image of the first and of the second."""
    found = defaultdict(list)
    for one in met:
        ends = sorted(((labels[one.query], one.query), (labels[one.item], one.item)))
        if ends[0][0] != ends[1][0]:
            found[ends[0][0], ends[1][0]].append((one.score, ends[0][1], ends[1][1]))
    return found


@pytest.mark.usefixtures("tile")
def test_every_pair_of_classes_agrees_with_its_definition(drawn) -> None:
    """The examples are different pairs of images, each with its highest score."""
    vectors, labels, met = drawn
    expected = between(labels, met)
    result = most_confused(vectors, THRESHOLD, n_listed=100)
    assert {(pair.first, pair.second) for pair in result.pairs} == set(expected)
    for pair in result.pairs:
        scored = expected[pair.first, pair.second]
        scores = [score for score, _, _ in scored]
        accepted = sum(score >= THRESHOLD for score in scores)
        assert (pair.n_pairs, pair.n_accepted) == (len(scores), accepted)
        assert (pair.mean, pair.highest) == pytest.approx((np.mean(scores), max(scores)), abs=1e-6)
        assert pair.share in pair.share_interval
        best = defaultdict(lambda: -1.0)
        for score, first, second in scored:
            best[first, second] = max(best[first, second], score)
        found = [(example.first_row, example.second_row) for example in pair.examples]
        assert len(set(found)) == len(found) == min(3, len(best))
        for example, score in zip(pair.examples, sorted(best.values(), reverse=True), strict=False):
            assert example.score == pytest.approx(score, abs=1e-6)
            assert example.score == pytest.approx(best[example.first_row, example.second_row], abs=1e-6)
    assert result.n_false_accepts == sum(sum(s >= THRESHOLD for s, _, _ in pairs) for pairs in expected.values())


def test_an_interval_counts_a_pair_of_images_once(family) -> None:
    """More rounds repeat the same images, and are not more evidence."""
    rows, labels = family(np.random.default_rng(1), n_classes=2, n_images=20, dimension=6)
    widths = []
    for n_rounds in (10, 40):
        (pair,) = most_confused(searches(rows, labels, n_rounds=n_rounds), 0.0).pairs
        assert pair.n_pairs == n_rounds * 200
        widths.append(pair.share_interval.high - pair.share_interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


@pytest.mark.usefixtures("tile")
def test_the_classes_that_a_class_is_confused_with_are_those_of_loops(drawn) -> None:
    vectors, labels, met = drawn
    expected = between(labels, met)
    for name, listed in class_confusions(vectors, THRESHOLD, n_listed=2).items():
        counts = {}
        for ends, pairs in expected.items():
            if name in ends and (accepted := sum(score >= THRESHOLD for score, _, _ in pairs)):
                counts[ends[ends[0] == name]] = (accepted, len(pairs))
        worst = sorted(counts.items(), key=lambda entry: (-entry[1][0], entry[0]))[:2]
        assert [(c.name, c.n_accepted, c.n_pairs) for c in listed] == [(other, *found) for other, found in worst]


@pytest.mark.usefixtures("tile")
def test_histograms_and_d_prime_agree_with_one_pair_at_a_time(drawn) -> None:
    vectors, labels, met = drawn
    scores = {same: [one.score for one in met if (labels[one.query] == labels[one.item]) == same] for same in (1, 0)}
    result = score_histograms(vectors, n_bins=20)
    assert (result.within.sum(), result.between.sum()) == (len(scores[1]), len(scores[0]))
    # A score on an edge may fall to either side: its last bit depends on how the product was computed.
    assert np.abs(result.within - np.histogram(scores[1], result.edges)[0]).sum() <= 2
    assert np.abs(result.between - np.histogram(scores[0], result.edges)[0]).sum() <= 2
    spread = np.sqrt((np.var(scores[1]) + np.var(scores[0])) / 2)
    assert result.d_prime == pytest.approx((np.mean(scores[1]) - np.mean(scores[0])) / spread, rel=1e-5)
    above = np.subtract.outer(scores[1], scores[0])
    assert result.auc == pytest.approx((np.sign(above).mean() + 1) / 2, abs=result.auc_error + 1e-4)


@pytest.mark.slow
def test_intervals_of_separation_cover_the_population(family) -> None:
    shape = {"dimension": 16, "spread": 0.3, "crowding": 0.5, "n_images": 4}
    rows, labels = family(np.random.default_rng(0), n_classes=500, **shape)
    truth = score_histograms(searches(rows, labels))
    covered = np.zeros(2)
    for seed in range(1, 61):
        rows, labels = family(np.random.default_rng(seed), n_classes=40, **shape)
        found = score_histograms(searches(rows, labels, n_rounds=5, seed=seed))
        covered += [truth.auc in found.auc_interval, truth.d_prime in found.d_prime_interval]
    assert (covered / 60 > 0.86).all()  # 95 % promised; three standard errors below


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.usefixtures("tile")
def test_margins_are_means_over_the_rounds_in_which_an_image_is_a_query(drawn, linkage: str) -> None:
    vectors, labels, met = drawn
    result = label_margins(vectors, THRESHOLD, linkage=linkage)
    scored = defaultdict(list)
    for one in met:
        scored[one.query, labels[one.item], one.number].append(one.score)
    for row, label in enumerate(labels):
        to_class = defaultdict(list)
        for (query, name, _), scores in scored.items():
            if query == row:
                to_class[name].append(np.mean(scores) if linkage == "mean" else max(scores))
        assert result.known[row] == bool(to_class)
        assert result.labels[row] == label
        if not to_class:
            assert (result.own[row], result.other[row], result.margins[row]) == (0, 0, 0)
            continue
        similarity = {name: float(np.mean(values)) for name, values in to_class.items()}
        likely = max((name for name in similarity if name != label), key=lambda name: similarity[name])
        assert result.classes[result.likely[row]] == likely
        assert (result.own[row], result.other[row]) == pytest.approx((similarity[label], similarity[likely]), abs=1e-6)
    assert not all(result.known)


def test_a_wrong_label_is_the_first_suspect(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=8, n_images=7)
    wrong = [*labels]
    wrong[12] = "class 0005"
    suspects = label_margins(searches(rows, wrong, n_rounds=6), 0.4).suspects
    assert (suspects[0].row, suspects[0].label, suspects[0].likely) == (12, "class 0005", labels[12])


@pytest.mark.parametrize("measure", [score_histograms, lambda vectors: label_margins(vectors, 0.4)])
def test_classes_of_one_image_are_not_enough(family, measure) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=5, n_images=1)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        measure(searches(rows, labels))
