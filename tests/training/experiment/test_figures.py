"""The figures of one run, compared with those computed directly by `retrieval.consistency`."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import OpisOptions, class_rates, consistency_report, labelled, thresholds_at_far
from tests.consistency.conftest import draw_family
from training.embeddings import Embedded
from training.experiment import ScoreConfig, measure


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
    assert set(found.missing) == {"opis_distance", "tar_at_1e_4", "training_s"}


def test_few_images_leave_figures_out(parts: dict[str, Embedded]) -> None:
    """A FAR with too few pairs is not measured, and debiased OPIS is not measured from classes of two images."""
    few = {"cohort": parts["cohort"], "calibration": embedded(3, n_classes=4), "test": embedded(4, n_images=2)}
    found = measure(few, ScoreConfig(), far_target=1e-3, training_s=1.0)
    assert found.figures.r_at_1 is not None
    for name in ("transfer_far", "transfer_tar", "transfer_worst_tar", "opis_log_far", "opis_deployed", "tar_at_1e_3"):
        assert getattr(found.figures, name) is None
        assert found.missing[name]
