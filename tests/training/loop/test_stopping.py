"""When a run ends early, and which weights it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from retrieval.errors import NotEnoughEvidence
from training.config import LoopConfig
from training.evaluation import Evaluation
from training.loop.stopping import Stopping

EVALUATION = Evaluation(
    n_images=70,
    n_classes=14,
    n_single=0,
    n_unreadable=0,
    r_at_1=0.5,
    far_target=1e-2,
    threshold=0.5,
    tar=0.5,
    opis=1e-2,
    opis_floor=1e-3,
    opis_debiased=None,
)


@pytest.mark.parametrize(
    ("metric", "values", "best", "over_after"),
    [
        ("r_at_1", [0.5, 0.6, 0.6, 0.55], 2, 4),  # as good is not better
        ("opis", [3e-2, 2e-2, 1e-2, 2e-2, 3e-2], 3, 5),  # lower is better
        ("tar", [0.5, 0.4, 0.6, 0.5, 0.7], 5, None),  # patience begins anew with each better one
    ],
)
def test_the_best_is_kept_and_patience_is_counted(
    metric: str, values: list[float], best: int, over_after: int | None
) -> None:
    config = LoopConfig(evaluate_every=1, stop_on=metric, patience=2)  # type: ignore[arg-type]
    network = nn.Linear(1, 1)
    stopping = Stopping()
    for step, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, step)
        stopping.consider(step, replace(EVALUATION, **{metric: value}), network, config)
        assert stopping.over == (step == over_after)
    assert stopping.step == best
    assert stopping.weights is not None
    assert stopping.weights["weight"].item() == best


def test_without_patience_it_never_ends() -> None:
    stopping = Stopping()
    for step in range(50):
        stopping.consider(step, EVALUATION, nn.Linear(1, 1), LoopConfig(evaluate_every=1))
    assert not stopping.over


def test_a_metric_that_is_not_there_is_named() -> None:
    without = LoopConfig(evaluate_every=1, stop_on="map_at_r")
    with pytest.raises(NotEnoughEvidence, match="map_at_r cannot be measured"):
        Stopping().consider(1, replace(EVALUATION, map_at_r=None), nn.Linear(1, 1), without)


def test_it_comes_back_as_it_was() -> None:
    stopping, copy = Stopping(), Stopping()
    config = LoopConfig(evaluate_every=1, patience=3)
    for step in (1, 2):
        stopping.consider(step, EVALUATION, nn.Linear(1, 1), config)
    copy.load_state_dict(stopping.state_dict())
    assert (copy.step, copy.n_since, copy.over, copy.evaluation) == (1, 1, False, EVALUATION)
    assert stopping.weights is not None
    assert copy.weights is not None
    assert torch.equal(copy.weights["bias"], stopping.weights["bias"])
