"""TensorBoard's own reader gets every value once, also from a run that was killed and resumed."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import Killed, kill_at
from training.config import TrainingConfig
from training.loop import EVENTS, Observers, StepReport, read_evaluation


@pytest.mark.slow
def test_a_resumed_run_shows_every_step_once(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """Killed after step 3, resumed from step 2: step 3 was written twice and counts once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(small_config, loop=replace(small_config.loop, evaluate_every=2))
    with pytest.raises(Killed, match="killed at step"):
        train_small(config, tmp_path / "run", observers=kill_at(3))
    reports: list[StepReport] = []
    evaluation = train_small(config, tmp_path / "run", resume=True, observers=Observers(step=reports.append))
    assert [report.step for report in reports] == [3, 4]

    found = EventAccumulator(str(tmp_path / "run" / EVENTS)).Reload()
    loss = {event.step: event.value for event in found.Scalars("loss/total")}
    assert [event.step for event in found.Scalars("loss/total")] == [1, 2, 3, 4]
    assert [loss[3], loss[4]] == pytest.approx([report.loss for report in reports])
    for name in (
        "loss/base",
        "loss/margin",
        "active/positives",
        "active/negatives",
        "margin/positive",
        "margin/negative",
        "gradient_norm",
        "speed/images_per_s",
        "speed/waited_for_data",
        "learning_rate/backbone",
        "learning_rate/head",
        "learning_rate/loss",
    ):
        assert [event.step for event in found.Scalars(name)] == [1, 2, 3, 4], name
    recalls = {event.step: event.value for event in found.Scalars("validation/r_at_1")}
    assert list(recalls) == [2, 4]
    assert max(recalls.values()) == pytest.approx(evaluation.r_at_1)
    assert evaluation == read_evaluation(tmp_path / "run")


@pytest.mark.slow
def test_events_that_cannot_be_written_do_not_end_a_run(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    messages: list[str] = []
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path / "run", observers=kill_at(3))
    for path in (tmp_path / "run" / EVENTS).iterdir():
        path.unlink()
    (tmp_path / "run" / EVENTS).rmdir()
    (tmp_path / "run" / EVENTS).write_text("in the way")
    train_small(small_config, tmp_path / "run", resume=True, observers=Observers(message=messages.append))
    assert any(message.startswith("no events for TensorBoard") for message in messages)
