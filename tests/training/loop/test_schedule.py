"""Learning rates over the steps: each schedule by hand."""

import pytest

from training.config import ScheduleConfig
from training.loop.schedule import learning_rate_factor


def factors(**schedule: object) -> list[float]:
    config = ScheduleConfig(**schedule)  # type: ignore[arg-type]
    return [learning_rate_factor(step, config) for step in range(config.steps)]


def test_cosine_starts_at_the_peak_and_ends_near_nothing() -> None:
    found = factors(steps=4, warmup_steps=0)
    assert found == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


def test_steps_fall_at_the_shares_of_the_run_in_any_order() -> None:
    found = factors(steps=10, warmup_steps=2, decay="step", step_at=(0.8, 0.5), step_factor=0.5)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_constant_stays() -> None:
    assert factors(steps=5, warmup_steps=4, decay="constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_a_warm_up_longer_than_the_run_never_arrives() -> None:
    assert factors(steps=3, warmup_steps=6) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
