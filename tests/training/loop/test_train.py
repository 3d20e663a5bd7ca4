"""A run: it learns, it repeats, it survives being killed, and it refuses what it cannot continue."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.errors import (
    FailedPrecondition,
    InvalidInput,
    InvalidSettings,
    NotEnoughEvidence,
    TooManyFailures,
    TrainingDiverged,
)
from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import Killed, assert_same_weights, kill_at, weights
from training.config import TrainingConfig
from training.evaluation import Evaluation
from training.loop import (
    CHECKPOINT,
    CONFIG,
    EVALUATION,
    EVENTS,
    Observers,
    StepReport,
    load_finished,
    read_evaluation,
    train_embedder,
)
from training.provenance import DATA


@pytest.mark.slow
def test_training_beats_the_untrained_head_on_unseen_classes(
    tmp_path: Path, tiny_config: TrainingConfig, training_items: list[Item], held_out_items: list[Item], run: Path
) -> None:
    untouched = replace(
        tiny_config,
        schedule=replace(tiny_config.schedule, steps=1, head_steps=0, learning_rate=0, head_learning_rate=0),
    )
    before = train_embedder(untouched, training_items, held_out_items, tmp_path / "run")
    after = read_evaluation(run)
    assert after is not None
    assert after.r_at_1 > before.r_at_1
    assert (after.n_images, after.n_classes, after.n_unreadable) == (70, 14, 0)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, step: int, small_config: TrainingConfig, train_small: TrainSmall, small_run: Path
) -> None:
    """Killed before, between and after checkpoints: bit for bit what the uninterrupted run gives."""
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path / "run", observers=kill_at(step))
    assert not (tmp_path / "run" / EVALUATION).exists()
    evaluation = train_small(small_config, tmp_path / "run", resume=True)
    assert_same_weights(tmp_path / "run", small_run)
    assert evaluation == read_evaluation(small_run)


@pytest.mark.slow
def test_resuming_is_exact_with_everything_the_loop_can_do(
    tmp_path: Path, everything_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """Running mean, best weights, bfloat16, chunks, accumulation and clipping come back as they were."""
    whole = train_small(everything_config, tmp_path / "whole")
    with pytest.raises(Killed, match="killed at step"):
        train_small(everything_config, tmp_path / "run", observers=kill_at(4))
    assert train_small(everything_config, tmp_path / "run", resume=True) == whole
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_steps_are_reported(tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    reports: list[StepReport] = []
    messages: list[str] = []
    train_small(small_config, tmp_path / "run", observers=Observers(step=reports.append, message=messages.append))
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert all(report.steps == 4 and report.images_per_s > 0 and 0 < report.waited < 1 for report in reports)
    assert all(report.loss == pytest.approx(report.base + report.margin) for report in reports)
    assert all(report.gradient_norm > 0 for report in reports)
    assert reports[0].learning_rates == pytest.approx({"backbone": 1e-3, "head": 5e-3, "loss": 2e-2})
    assert messages == ["40 images of 8 classes to train on"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [CHECKPOINT, CONFIG, DATA, EVALUATION, EVENTS]
    )


@pytest.mark.slow
def test_the_seed_decides(tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    short = replace(small_config, schedule=replace(small_config.schedule, steps=1, head_steps=1))
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train_small(replace(short, seed=seed), tmp_path / name)
    assert_same_weights(tmp_path / "first", tmp_path / "again")
    first, other = weights(tmp_path / "first"), weights(tmp_path / "other")
    assert not torch.equal(first[".embedder.head.weight"], other[".embedder.head.weight"])


@pytest.mark.slow
def test_the_best_weights_are_kept_and_patience_ends_the_run(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """A learning rate of 0 learns nothing: the first evaluation stays the best, two more end the run."""
    still = replace(
        small_config,
        schedule=replace(
            small_config.schedule, steps=9, learning_rate=0, head_learning_rate=0, loss_learning_rate=0, weight_decay=0
        ),
        loop=replace(small_config.loop, evaluate_every=2, patience=2, checkpoint_every=100),
    )
    seen: list[tuple[int, Evaluation]] = []
    observers = Observers(evaluation=lambda step, evaluation: seen.append((step, evaluation)))
    evaluation = train_small(still, tmp_path / "run", observers=observers)
    assert [step for step, _ in seen] == [2, 4, 6]
    assert evaluation == read_evaluation(tmp_path / "run")
    assert (evaluation.r_at_1, evaluation.threshold, evaluation.opis) == (
        seen[0][1].r_at_1,
        seen[0][1].threshold,
        seen[0][1].opis,
    )
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert (saved["step"], saved["stopping"]["step"], saved["stopping"]["over"]) == (6, 2, True)
    (tmp_path / "run" / EVALUATION).unlink()
    assert train_small(still, tmp_path / "run", resume=True) == evaluation


@pytest.mark.slow
def test_the_running_mean_is_what_is_evaluated_and_loaded(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    averaged = replace(small_config, loop=replace(small_config.loop, ema_decay=0.9))
    evaluation = train_small(averaged, tmp_path / "run")
    finished = load_finished(tmp_path / "run")
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    mean, last = saved["average"]["module.head.weight"], saved["embedder"]["head.weight"]
    assert torch.equal(finished.embedder.head.weight, mean)
    assert not torch.equal(mean, last)
    assert finished.evaluation == evaluation


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """The message names step, values, rates and items; the checkpoint from before is whole."""
    wild = replace(
        small_config,
        schedule=replace(small_config.schedule, warmup_steps=0, learning_rate=1e30, decay="constant"),
        loop=replace(small_config.loop, checkpoint_every=1),
    )
    with pytest.raises(TrainingDiverged, match=r"of step 2 is not finite \(loss nan, base nan.*clip_norm") as caught:
        train_small(wild, tmp_path / "run")
    assert "backbone 1e+30, head 0.005, loss 0.02" in str(caught.value)
    items = json.loads((tmp_path / "run" / "items_of_step_2.json").read_bytes())
    assert len(items) == 8
    assert f"Its items are {', '.join(items[:5])} and 3 more" in str(caught.value)
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert saved["step"] == 1


def test_classes_on_both_sides_are_pointed_out(
    tmp_path: Path,
    small_config: TrainingConfig,
    train_small: TrainSmall,
    training_items: list[Item],
    held_out_items: list[Item],
) -> None:
    messages: list[str] = []
    observers = replace(kill_at(1), message=messages.append)
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path / "run", held_out=held_out_items + training_items[:1], observers=observers)
    assert messages[1].startswith("1 classes are used for training and for validation, for instance 'class_000'")


def test_images_to_validate_on_that_say_too_little_are_refused_at_once(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, held_out_items: list[Item]
) -> None:
    """Not at the end, and nothing is left behind."""
    with pytest.raises(NotEnoughEvidence, match=r"the images to validate on: .* add images or classes"):
        train_small(small_config, tmp_path / "run", held_out=held_out_items[:20])
    unlabelled = [replace(held_out_items[0], label=""), *held_out_items[1:]]
    with pytest.raises(InvalidInput, match=r"to validate on needs a label, 1 have none, for instance 'class_100/0"):
        train_small(small_config, tmp_path / "run", held_out=unlabelled)
    assert not (tmp_path / "run").exists()


def test_a_memory_of_less_than_a_batch_is_refused(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    loss = replace(small_config.loss, tcm=replace(small_config.loss.tcm, memory=7))
    with pytest.raises(InvalidSettings, match=r"loss\.tcm\.memory: expected room for a batch of 8 .* found 7"):
        train_small(replace(small_config, loss=loss), tmp_path / "run")


def test_a_warm_up_that_never_ends_is_pointed_out(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    messages: list[str] = []
    long = replace(small_config, schedule=replace(small_config.schedule, warmup_steps=5, head_steps=0))
    with pytest.raises(Killed, match="killed at step"):
        train_small(long, tmp_path / "run", observers=replace(kill_at(1), message=messages.append))
    assert messages[1].startswith("schedule.warmup_steps: 5 of 4 steps: the learning rates never reach")


@pytest.mark.parametrize(("cohort", "is_pointed_out"), [(128, False), (129, True)])
def test_a_cohort_that_the_steps_never_fill_is_pointed_out(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, cohort: int, is_pointed_out: bool
) -> None:
    """Four steps of eight images."""
    messages: list[str] = []
    tcm = replace(small_config.loss.tcm, score="cohort", margins="quantiles", cohort=cohort)
    schedule = replace(small_config.schedule, head_steps=0)
    config = replace(small_config, schedule=schedule, loss=replace(small_config.loss, tcm=tcm))
    with pytest.raises(Killed, match="killed at step"):
        train_small(config, tmp_path / "run", observers=replace(kill_at(1), message=messages.append))
    expected = "loss.tcm.cohort: 129 embeddings, but all steps together give 32, less than a quarter: TCM stays off"
    assert any(message.startswith(expected) for message in messages) is is_pointed_out


def test_images_that_cannot_be_read_are_reported_once_and_counted(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, training_items: list[Item]
) -> None:
    """Decoded when drawn: the head's start does not learn from them either."""
    data = replace(small_config.data, cache="none", max_unreadable=0.05)
    lost = [replace(item, uri=f"file:///nowhere/{item.id}") for item in training_items[:2]]
    messages: list[str] = []
    config = replace(small_config, data=data, schedule=replace(small_config.schedule, classes=8))
    train_small(config, tmp_path / "run", items=lost + training_items[2:], observers=Observers(message=messages.append))
    skipped = [message for message in messages if message.startswith("skipped file:///nowhere/")]
    assert len(skipped) == len(set(skipped)) > 0


def test_a_run_that_failed_at_once_can_be_repeated(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, training_items: list[Item]
) -> None:
    """Too many unreadable images; mended, the same command works."""
    lost = replace(training_items[0], uri="file:///nowhere/lost.png")
    with pytest.raises(TooManyFailures, match="1 images cannot be read so far"):
        train_small(small_config, tmp_path / "run", items=[lost, *training_items[1:]])
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path / "run", observers=kill_at(1))


def test_a_finished_run_is_left_as_it_is(
    small_run: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    before = (small_run / CHECKPOINT).stat().st_mtime_ns
    evaluation = train_small(small_config, small_run, resume=True)
    assert evaluation == read_evaluation(small_run)
    assert (small_run / CHECKPOINT).stat().st_mtime_ns == before


def test_an_unfinished_run_cannot_be_used(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path / "run", observers=kill_at(3))
    with pytest.raises(FailedPrecondition, match="stopped after step 2 of 4"):
        load_finished(tmp_path / "run")
    with pytest.raises(FailedPrecondition, match="holds no checkpoint"):
        load_finished(tmp_path / "elsewhere")


def test_what_does_not_fit_the_device_is_refused(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    half = replace(small_config, loop=replace(small_config.loop, precision="fp16"))
    with pytest.raises(InvalidSettings, match=r"fp16 needs a GPU, found the device cpu"):
        train_small(half, tmp_path / "run")


def test_a_used_folder_needs_resume(small_run: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    with pytest.raises(InvalidInput, match="--resume"):
        train_small(small_config, small_run)
