"""What is on disk: a checkpoint of something else is refused with what differs, a damaged one is named."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.errors import CorruptArtifact, InvalidInput
from tests.training.loop.conftest import TrainSmall
from training.config import TrainingConfig
from training.loop import CHECKPOINT, EVALUATION, load_finished


def test_another_configuration_or_other_items_are_not_a_continuation(
    small_run: Path, small_config: TrainingConfig, train_small: TrainSmall, training_items: list[Item]
) -> None:
    another = replace(small_config, seed=1, model=replace(small_config.model, dimension=16))
    with pytest.raises(InvalidInput, match=r"model\.dimension is 8 there and 16 here; seed is 0 there and 1 here\."):
        train_small(another, small_run, resume=True)
    with pytest.raises(InvalidInput, match="the items to train on differ"):
        train_small(small_config, small_run, items=training_items[1:], resume=True)


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
    assert "head.bias is missing; backbone.stem.weight is not known here; head.weight has the shape [8, 50]" in str(
        caught.value
    )
    (unfinished / EVALUATION).write_bytes((small_run / EVALUATION).read_bytes())
    saved["final"] = embedder
    torch.save(saved, unfinished / CHECKPOINT)
    with pytest.raises(CorruptArtifact, match="do not fit timm/test_resnet"):
        load_finished(unfinished)


def test_another_format_is_refused(unfinished: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    saved = torch.load(unfinished / CHECKPOINT, weights_only=True)
    del saved["format"]
    torch.save(saved, unfinished / CHECKPOINT)
    with pytest.raises(InvalidInput, match="expected a checkpoint of format 2, found None"):
        train_small(small_config, unfinished, resume=True)


def test_a_damaged_checkpoint_is_named(unfinished: Path, small_config: TrainingConfig, train_small: TrainSmall) -> None:
    content = (unfinished / CHECKPOINT).read_bytes()
    (unfinished / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptArtifact, match=r"checkpoint\.pt cannot be read"):
        train_small(small_config, unfinished, resume=True)
