"""Margins against NumPy's quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.losses.batches import random_batch
from training.config import MarginConfig
from training.losses import AdaptiveMargins

POSITIVE, NEGATIVE = 0.3, 0.95


def numpy_quantiles(embeddings: Tensor, labels: Tensor) -> tuple[float, float]:
    rows, names = embeddings.double().numpy(), labels.numpy()
    first, second = np.triu_indices(len(names), k=1)
    similarities, same = (rows @ rows.T)[first, second], names[first] == names[second]
    return float(np.quantile(similarities[same], POSITIVE)), float(np.quantile(similarities[~same], NEGATIVE))


def margins(kind: str, *, steps: int = 10, momentum: float = 0.8) -> AdaptiveMargins:
    config = MarginConfig(
        margins=kind,  # type: ignore[arg-type]
        positive_quantile=POSITIVE,
        negative_quantile=NEGATIVE,
        momentum=momentum,
    )
    return AdaptiveMargins(config, steps=steps)


def at(margin: AdaptiveMargins, seed: int, step: int) -> list[float]:
    return [value.item() for value in margin(*random_batch(seed), step=step)]


def test_fixed_margins_are_those_of_the_configuration() -> None:
    assert at(margins("fixed"), 0, 5) == pytest.approx([0.9, 0.5])


def test_running_quantiles_follow_each_batch() -> None:
    """The first batch alone, then a running mean."""
    margin, expected = margins("quantiles"), np.zeros(2)
    for step in range(4):
        found = at(margin, step, step)
        new = np.array(numpy_quantiles(*random_batch(step)))
        expected = new if step == 0 else 0.8 * expected + 0.2 * new
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_schedule_leads_from_the_first_quantiles_to_the_target() -> None:
    margin = margins("schedule", steps=5)
    start = numpy_quantiles(*random_batch(0))
    for step in range(5):
        share = step / 4
        expected = [(1 - share) * s + share * target for s, target in zip(start, (0.9, 0.5), strict=True)]
        assert at(margin, step, step) == pytest.approx(expected, abs=1e-6)
    assert at(margin, 5, 9) == pytest.approx([0.9, 0.5])


def test_the_first_step_starts_a_schedule_anew() -> None:
    """What came before it, a head being trained alone for instance, was another model."""
    margin = margins("schedule")
    at(margin, 0, 0)
    assert at(margin, 1, 0) == pytest.approx(numpy_quantiles(*random_batch(1)), abs=1e-6)


@pytest.mark.parametrize("kind", ["quantiles", "schedule"])
def test_a_side_without_pairs_keeps_what_it_had(kind: str) -> None:
    margin = margins(kind)
    rows = random_batch(0)[0]
    found = [value.item() for value in margin(rows, torch.arange(len(rows)), step=0)]
    assert found[0] == pytest.approx(0.9)
    assert found[1] < 0.9
    before = margin.quantiles.clone()
    margin(rows[:1], torch.zeros(1, dtype=torch.int64), step=1)
    assert torch.equal(margin.quantiles, before)


def test_evaluation_changes_nothing() -> None:
    margin = margins("quantiles").eval()
    at(margin, 0, 0)
    assert margin.quantiles.isinf().all()


def test_large_batches_are_judged_by_their_first_rows() -> None:
    embeddings, labels = random_batch(0, n=600, classes=100)
    found = [value.item() for value in margins("quantiles")(embeddings, labels, step=0)]
    assert found == pytest.approx(numpy_quantiles(embeddings[:512], labels[:512]), abs=1e-6)
