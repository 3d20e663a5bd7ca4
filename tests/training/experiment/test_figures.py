"""The figures of one run, compared with those computed directly by `retrieval.consistency`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import OpisOptions, class_rates, consistency_report, divide, labelled, thresholds_at_far
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.score import Score, cohort_score
from retrieval.contract.typical_class import TypicalClass
from tests.consistency.conftest import draw_family
from training.embeddings import Embedded
from training.experiment import ScoreConfig, compared, measure


def embedded(seed: int, **options: float) -> Embedded:
    rows, labels = draw_family(np.random.default_rng(seed), **{"n_classes": 30, "n_images": 5, "spread": 0.6} | options)
    names = np.array([f"{seed} {label}" for label in labels])
    return Embedded(rows, names, np.arange(len(rows)).astype(np.str_))


@pytest.fixture(scope="module")
def parts() -> dict[str, Embedded]:
    return {"cohort": embedded(0), "calibration": embedded(1), "test": embedded(2)}


def test_figures_of_the_cosine(parts: dict[str, Embedded]) -> None:
    found = measure(parts, ScoreConfig(), far_target=0.02, training_s=3.0)
    rows, labels = parts["test"].embeddings, parts["test"].labels.tolist()
    for name, options in (
        ("opis_distance", {"axis": "distance"}),
        ("opis_log_far", {"axis": "log_far"}),
        ("opis_deployed", {"axis": "log_far", "far_low": 0.02 / 10**0.5, "far_high": 0.02 * 10**0.5}),
    ):
        expected = consistency_report(
            (rows, labels), OpisOptions(n_bootstrap=10, **options), rng=np.random.default_rng(5)
        )
        assert getattr(found.figures, name) == pytest.approx(expected.debiased)
    fixed_on = labelled(parts["calibration"].embeddings, parts["calibration"].labels.tolist())
    (threshold,) = thresholds_at_far(fixed_on, [0.02])
    rates = class_rates(labelled(rows, labels), threshold)
    assert found.figures.transfer_far == pytest.approx(
        sum(rate.far * rate.negatives for rate in rates) / sum(rate.negatives for rate in rates)
    )
    assert found.figures.transfer_worst_tar == pytest.approx(np.mean(sorted(1 - rate.frr for rate in rates)[:3]))
    assert found.figures.training_s == 3.0
    assert found.figures.tar_at_1e_4 is None
    assert found.missing["tar_at_1e_4"] == "10875 negative pairs give fewer than 10 false accepts"
    assert set(found.shares) == {"opis_log_far", "opis_deployed"}
    assert found.shares["opis_log_far"].mean == found.figures.opis_log_far


def test_a_score_without_distances(parts: dict[str, Embedded]) -> None:
    found = measure(parts, ScoreConfig(kind="cohort", k=5), far_target=0.02, training_s=None)
    assert found.figures.opis_distance is None
    assert found.figures.opis_log_far is not None
    assert set(found.missing) == {"opis_distance", "tar_at_1e_4", "strangers_far", "training_s"}


def test_few_images_leave_figures_out(parts: dict[str, Embedded]) -> None:
    """A FAR with too few pairs is not measured, and debiased OPIS is not measured from classes of two images."""
    few = {"cohort": parts["cohort"], "calibration": embedded(3, n_classes=4), "test": embedded(4, n_images=2)}
    found = measure(few, ScoreConfig(), far_target=1e-3, training_s=1.0)
    assert found.figures.r_at_1 is not None
    for name in ("transfer_far", "transfer_tar", "transfer_worst_tar", "opis_log_far", "opis_deployed", "tar_at_1e_3"):
        assert getattr(found.figures, name) is None
        assert found.missing[name]


@pytest.fixture(scope="module")
def searched() -> dict[str, Embedded]:
    """Parts of wide classes of several sizes, so that class means and offsets have an effect."""
    return {
        name: embedded(number, n_classes=40, n_images=8, spread=0.9, crowding=0.6)
        for number, name in enumerate(("train", "cohort", "calibration", "test"))
    }


CATALOGUE = ScoreConfig(kind="catalogue", k=5, fitted_on="train")


def scores_of_rounds(score: Score, part: Embedded) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return scores and matches of each round, from the embeddings."""
    labels = part.labels
    found = []
    for division in divide(labels.tolist(), 5, rng=np.random.default_rng(0)):
        gallery = score.gallery(part.embeddings[division.items], labels[division.items].tolist())
        scores = score.query_vectors(part.embeddings[division.queries]) @ gallery.vectors.T
        matches = labels[division.queries][:, None] == labels[division.items]
        found.append((scores, matches))
    return found


def test_searches_of_a_catalogue(searched: dict[str, Embedded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds and R@1 take the same scores; strangers search the whole gallery."""
    terms = ClassTerms(
        pull=0.7, offset_weight=0.5, typical=TypicalClass(within=0.4, between=0, variance=0.05, density=0.3)
    )
    score = replace(cohort_score(searched["train"].embeddings, k=5), classes=terms)
    monkeypatch.setattr(compared, "best_catalogue_score", lambda *_, **__: score)
    found = measure(searched, CATALOGUE, far_target=0.02, training_s=1.0, compare="searches").figures
    rounds = scores_of_rounds(score, searched["test"])
    hits = [matches[np.arange(len(scores)), scores.argmax(axis=1)] for scores, matches in rounds]
    assert found.r_at_1 == pytest.approx(np.mean(np.concatenate(hits)))
    scores, matches = (np.concatenate([one[number].ravel() for one in rounds]) for number in (0, 1))
    threshold = np.sort(scores[~matches])[-int(0.01 * np.count_nonzero(~matches))]
    assert found.tar_at_1e_2 == pytest.approx(np.mean(scores[matches] >= threshold), abs=1e-3)
    on = scores_of_rounds(score, searched["calibration"])
    scores_on, matches_on = (np.concatenate([one[number].ravel() for one in on]) for number in (0, 1))
    threshold = np.sort(scores_on[~matches_on])[-int(0.02 * np.count_nonzero(~matches_on))]
    assert found.transfer_far == pytest.approx(np.mean(scores[~matches] >= threshold), abs=1e-3)
    test = searched["test"]
    gallery = score.gallery(test.embeddings, test.labels.tolist()).vectors
    absent = (score.query_vectors(test.embeddings) @ gallery.T)[test.labels[:, None] != test.labels]
    assert found.strangers_far == pytest.approx(np.mean(absent >= threshold) / 0.02, abs=0.03)
    assert found.opis_log_far is not None


def test_labels_of_the_gallery_help(searched: dict[str, Embedded]) -> None:
    """With the class terms chosen on the part cohort; the cosine of searches needs no fit and has no distance."""
    cosine, catalogue = (
        measure(searched, score, far_target=0.02, training_s=1.0, compare="searches")
        for score in (ScoreConfig(), ScoreConfig(kind="catalogue", base="cosine"))
    )
    assert cosine.missing["opis_distance"] == "searches are compared on the log-FAR axis"
    assert cosine.figures.tar_at_1e_2 is not None
    assert catalogue.figures.tar_at_1e_2 is not None
    assert catalogue.figures.tar_at_1e_2 > cosine.figures.tar_at_1e_2 + 0.05
    assert catalogue.classes == cosine.classes
    assert np.array_equal(catalogue.shares["opis_log_far"].rows, cosine.shares["opis_log_far"].rows)


def test_searches_choose_class_terms_on_the_part_cohort_only(searched: dict[str, Embedded]) -> None:
    """Other calibration and test classes get the same score."""
    others = searched | {"calibration": searched["test"], "test": searched["calibration"]}
    config = ScoreConfig(kind="catalogue", base="cosine")
    assert compared.fit(searched, config, 0.02).digest == compared.fit(others, config, 0.02).digest
