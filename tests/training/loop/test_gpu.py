"""The same promises on a GPU, where values are asked for now and then, and float16 has a scaler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import Killed, assert_same_weights, kill_at
from training.config import TrainingConfig
from training.loop import Observers, StepReport


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, precision: str, everything_config: TrainingConfig, train_small: TrainSmall
) -> None:
    config = replace(everything_config, loop=replace(everything_config.loop, precision=precision))
    reports: list[StepReport] = []
    whole = train_small(config, tmp_path / "whole", device="cuda", observers=Observers(step=reports.append))
    assert [report.step for report in reports] == [1, 2, 3, 4]
    with pytest.raises(Killed, match="killed at step"):
        train_small(config, tmp_path / "run", device="cuda", observers=kill_at(4))
    assert train_small(config, tmp_path / "run", device="cuda", resume=True) == whole
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
