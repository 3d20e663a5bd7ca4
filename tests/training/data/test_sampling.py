"""Samplers: what a batch holds, and that seed and step alone decide it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pytorch_metric_learning.utils import common_functions

from tests.training.data.conftest import configured
from training.data import StepSampler

LABELS = np.repeat(np.arange(5), [5, 1, 3, 8, 40])


def sampler(*, kind: str = "classes", seed: int = 0, stream: int = 0, **schedule: int) -> StepSampler:
    return StepSampler(LABELS, configured(schedule=schedule).schedule, kind, seed=seed, stream=stream)  # type: ignore[arg-type]


def test_a_batch_holds_as_many_images_of_as_many_classes_as_asked() -> None:
    """An image is repeated only where its class has too few."""
    seen = set()
    for step in range(30):
        groups = sampler(classes=3, images=3).rows(step).reshape(3, 3)
        labels = [LABELS[group] for group in groups]
        assert len({int(label[0]) for label in labels}) == 3
        for group, label in zip(groups, labels, strict=True):
            assert len(set(label)) == 1
            assert len(set(group)) == min(3, np.count_nonzero(label[0] == LABELS))
            seen.add(int(label[0]))
    assert seen == set(range(5))


def test_a_batch_takes_all_classes_where_there_are_too_few() -> None:
    drawn = sampler(classes=32, images=2)
    assert drawn.batch_size == 10
    assert np.bincount(LABELS[drawn.rows(0)]).tolist() == [2, 2, 2, 2, 2]


def test_balanced_draws_every_class_as_often() -> None:
    """Of 6,000 images each class gets a fifth, to five standard deviations, though one has forty times the images."""
    drawn = sampler(kind="balanced", classes=4, images=3)
    labels = LABELS[np.concatenate([drawn.rows(step) for step in range(500)])]
    assert len(labels) == 500 * 12
    assert np.abs(np.bincount(labels) - 1200).max() < 5 * np.sqrt(6000 * 0.2 * 0.8)


@pytest.mark.parametrize("kind", ["classes", "balanced"])
def test_seed_and_step_decide_whatever_was_drawn_before(kind: str) -> None:
    fresh, used = sampler(kind=kind), sampler(kind=kind)
    in_order = [used.rows(step) for step in range(6)]
    assert_array_equal(fresh.rows(4), in_order[4])
    assert not np.array_equal(in_order[4], in_order[5])
    assert not np.array_equal(in_order[4], sampler(kind=kind, seed=1).rows(4))
    assert not np.array_equal(in_order[4], sampler(kind=kind, stream=1).rows(4))


def test_random_numbers_of_others_are_left_alone() -> None:
    before = common_functions.NUMPY_RANDOM
    sampler().rows(0)
    assert common_functions.NUMPY_RANDOM is before
