"""What is on disk: a checkpoint of something else is refused with what differs, a damaged one is named."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.errors import CorruptArtifact, InvalidInput
from tests.pictures import encoded, noise
from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import Killed, kill_at
from training.config import TrainingConfig
from training.loop import CHECKPOINT, EVALUATION, load_finished, read_evaluation


def test_another_configuration_or_other_items_are_not_a_continuation(
    small_run: Path, small_config: TrainingConfig, train_small: TrainSmall, training_items: list[Item]
) -> None:
    another = replace(small_config, seed=1, model=replace(small_config.model, dimension=16))
    with pytest.raises(InvalidInput, match=r"model\.dimension is 8 there and 16 here; seed is 0 there and 1 here\."):
        train_small(another, small_run, resume=True)
    with pytest.raises(InvalidInput, match="the training items differ"):
        train_small(small_config, small_run, items=training_items[1:], resume=True)


@pytest.mark.slow
def test_items_to_validate_on_may_change_until_they_have_chosen_weights(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, held_out_items: list[Item]
) -> None:
    choosing = replace(small_config, loop=replace(small_config.loop, evaluate_every=2))
    for name, config in (("last", small_config), ("best", choosing)):
        with pytest.raises(Killed, match="killed at step"):
            train_small(config, tmp_path / name, observers=kill_at(3))
    fewer = held_out_items[:-1]
    assert train_small(small_config, tmp_path / "last", held_out=fewer, resume=True).n_images == len(fewer)
    with pytest.raises(InvalidInput, match="the validation items differ, which decide the weights"):
        train_small(choosing, tmp_path / "best", held_out=fewer, resume=True)


@pytest.mark.slow
def test_images_that_changed_are_not_a_continuation(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, training_items: list[Item]
) -> None:
    """The same ids and labels in another folder are; another picture is not, nor one that can no longer be read."""
    for item in training_items:
        path = tmp_path / "pictures" / item.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(item.uri.removeprefix("file://")).read_bytes())
    moved = [replace(item, uri=f"file://{tmp_path / 'pictures' / item.id}") for item in training_items]
    tolerant = replace(small_config, data=replace(small_config.data, max_unreadable=0.5))
    with pytest.raises(Killed, match="killed at step"):
        train_small(tolerant, tmp_path / "run", observers=kill_at(3))
    with pytest.raises(Killed, match="killed at step"):
        train_small(tolerant, tmp_path / "run", items=moved, resume=True, observers=kill_at(4))
    changed = tmp_path / "pictures" / training_items[0].id
    for content in (encoded(noise(32)), b"no image"):
        changed.write_bytes(content)
        with pytest.raises(InvalidInput, match="the training images have changed, or other images of them can be read"):
            train_small(tolerant, tmp_path / "run", items=moved, resume=True)


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(InvalidInput, match=r"holds 'model\.safetensors' and no checkpoint\.pt, so it is not a run"):
        train_small(small_config, tmp_path, resume=True)
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_kill_leaves_before_the_first_checkpoint_is_no_obstacle(
    tmp_path: Path, resume: bool, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    for name in (".config.json", "config.json", ".checkpoint.pt"):
        (tmp_path / name).write_text("half")
    with pytest.raises(Killed, match="killed at step"):
        train_small(small_config, tmp_path, resume=resume, observers=kill_at(1))
    assert not list(tmp_path.glob(".c*"))


@pytest.fixture
def unfinished(small_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that may be changed, as if its process had been killed before the evaluation."""
    folder = Path(copytree(small_run, tmp_path / "run"))
    (folder / EVALUATION).unlink()
    return folder


def test_weights_of_another_architecture_are_refused_with_what_differs(
    unfinished: Path, small_run: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """The configuration is the same, the network that a library makes of it is not."""
    saved = torch.load(unfinished / CHECKPOINT, weights_only=True)
    embedder = saved["embedder"]
    embedder["head.weight"] = embedder["head.weight"][:, :50]
    embedder["backbone.stem.weight"] = embedder.pop("head.bias")
    torch.save(saved, unfinished / CHECKPOINT)
    with pytest.raises(InvalidInput, match="of another architecture") as caught:
        train_small(small_config, unfinished, resume=True)
    assert "head.bias is missing; backbone.stem.weight is unknown; head.weight has the shape [8, 50]" in str(
        caught.value
    )
    (unfinished / EVALUATION).write_bytes((small_run / EVALUATION).read_bytes())
    saved["final"] = embedder
    torch.save(saved, unfinished / CHECKPOINT)
    with pytest.raises(CorruptArtifact, match="do not fit the saved configuration of timm/test_resnet"):
        load_finished(unfinished)


def test_another_format_is_refused(unfinished: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    saved = torch.load(unfinished / CHECKPOINT, weights_only=True)
    del saved["format"]
    torch.save(saved, unfinished / CHECKPOINT)
    with pytest.raises(InvalidInput, match="expected a checkpoint of format 2, found None"):
        train_small(small_config, unfinished, resume=True)


def test_a_file_of_another_program_is_refused(
    unfinished: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    torch.save(torch.zeros(1), unfinished / CHECKPOINT)
    with pytest.raises(InvalidInput, match="expected a checkpoint of format 2, found None"):
        train_small(small_config, unfinished, resume=True)


def test_a_damaged_evaluation_is_named_and_made_again(
    unfinished: Path, small_run: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    (unfinished / EVALUATION).write_bytes((small_run / EVALUATION).read_bytes()[:20])
    with pytest.raises(CorruptArtifact, match=r"evaluation\.json cannot be read .*: delete it, --resume evaluates"):
        train_small(small_config, unfinished, resume=True)
    (unfinished / EVALUATION).unlink()
    assert train_small(small_config, unfinished, resume=True) == read_evaluation(small_run)


def test_a_damaged_checkpoint_is_named(unfinished: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    content = (unfinished / CHECKPOINT).read_bytes()
    (unfinished / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.pt cannot be read"):
        train_small(small_config, unfinished, resume=True)
