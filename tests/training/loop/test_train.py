"""A run: it learns, it repeats, it survives being killed, and it refuses what it cannot continue."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.errors import DeviceUnavailable, FailedPrecondition, InvalidInput, TooManyFailures
from training.config import TrainingConfig
from training.loop import (
    CHECKPOINT,
    CONFIG,
    EVALUATION,
    EVENTS,
    Observers,
    StepReport,
    load_finished,
    read_evaluation,
    select_device,
    train,
)


class Killed(Exception):
    """What a test throws into the loop."""


def kill_at(step: int) -> Observers:
    def observe(report: StepReport) -> None:
        if report.step == step:
            raise Killed

    return Observers(step=observe)


def checkpoint(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    return {**saved["embedder"], **{f"loss.{key}": value for key, value in saved["loss"].items()}}


def assert_same_weights(first: Path, second: Path) -> None:
    left, right = checkpoint(first), checkpoint(second)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def test_training_beats_the_untrained_head_on_unseen_classes(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item], run: Path
) -> None:
    untouched = replace(
        tiny_config,
        schedule=replace(tiny_config.schedule, steps=1, head_steps=0, learning_rate=0, head_learning_rate=0),
    )
    before = train(untouched, training_items, held_out_items, tmp_path / "run")
    after = read_evaluation(run)
    assert after is not None
    assert after.r_at_1 > before.r_at_1
    assert (after.n_images, after.n_classes, after.n_unreadable) == (70, 14, 0)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path,
    step: int,
    tiny_config: TrainingConfig,
    training_items: list[Item],
    held_out_items: list[Item],
    run: Path,
) -> None:
    """Killed before, between and after checkpoints: bit for bit what the uninterrupted run gives."""
    with pytest.raises(Killed):
        train(tiny_config, training_items, held_out_items, tmp_path / "run", observers=kill_at(step))
    assert not (tmp_path / "run" / EVALUATION).exists()
    evaluation = train(tiny_config, training_items, held_out_items, tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", run)
    assert evaluation == read_evaluation(run)


def test_steps_are_reported(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    reports: list[StepReport] = []
    messages: list[str] = []
    train(
        tiny_config,
        training_items,
        held_out_items,
        tmp_path / "run",
        observers=Observers(step=reports.append, message=messages.append),
    )
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert all(report.steps == 4 and report.images_per_s > 0 for report in reports)
    assert all(report.loss >= report.base > 0 for report in reports)
    assert messages == ["40 images of 8 classes to train on"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [CHECKPOINT, CONFIG, EVALUATION, EVENTS]
    )


def test_classes_on_both_sides_are_pointed_out(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    messages: list[str] = []
    with pytest.raises(Killed):
        train(
            tiny_config,
            training_items,
            held_out_items + training_items[:1],
            tmp_path / "run",
            observers=replace(kill_at(1), message=messages.append),
        )
    assert messages[1].startswith("1 classes are trained on and validated on, for instance 'class_000'")


def test_a_run_that_failed_at_once_can_be_repeated(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    """Too many unreadable images; mended, the same command works."""
    lost = replace(training_items[0], uri="file:///nowhere/lost.png")
    with pytest.raises(TooManyFailures):
        train(tiny_config, [lost, *training_items[1:]], held_out_items, tmp_path / "run")
    with pytest.raises(Killed):
        train(tiny_config, training_items, held_out_items, tmp_path / "run", observers=kill_at(1))


def test_a_finished_run_is_left_as_it_is(
    run: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    before = (run / CHECKPOINT).stat().st_mtime_ns
    evaluation = train(tiny_config, training_items, held_out_items, run, resume=True)
    assert evaluation == read_evaluation(run)
    assert (run / CHECKPOINT).stat().st_mtime_ns == before


def test_a_used_folder_needs_resume(
    run: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    with pytest.raises(InvalidInput, match="--resume"):
        train(tiny_config, training_items, held_out_items, run)


def test_another_configuration_or_other_items_are_not_a_continuation(
    run: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    for config, items in ((replace(tiny_config, seed=1), training_items), (tiny_config, training_items[1:])):
        with pytest.raises(InvalidInput, match="another configuration or other items"):
            train(config, items, held_out_items, run, resume=True)


def test_an_unfinished_run_cannot_be_used(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item]
) -> None:
    with pytest.raises(Killed):
        train(tiny_config, training_items, held_out_items, tmp_path / "run", observers=kill_at(3))
    with pytest.raises(FailedPrecondition, match="stopped after step 2 of 4"):
        load_finished(tmp_path / "run")
    with pytest.raises(FailedPrecondition, match="holds no checkpoint"):
        load_finished(tmp_path / "elsewhere")


def test_devices() -> None:
    assert select_device("cpu").type == "cpu"
    with pytest.raises(InvalidInput, match="found 'tpu'"):
        select_device("tpu")
    if not torch.cuda.is_available():
        assert select_device("auto").type == "cpu"
        with pytest.raises(DeviceUnavailable, match="--device cpu or auto"):
            select_device("cuda")
