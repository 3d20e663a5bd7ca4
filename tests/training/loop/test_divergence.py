"""What is no number is found at the right step, and only where it means the end."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from retrieval.errors import TrainingDiverged
from training.loop.divergence import Guard, TakenStep
from training.loop.processes import Processes
from training.loop.values import StepValues

FINE = {
    "loss": 3.0,
    "base": 2.0,
    "margin": 1.0,
    "active_positives": 0.5,
    "active_negatives": 0.25,
    "positive_margin": 0.9,
    "negative_margin": 0.5,
    "gradient_norm": 7.0,
}


def values(**changed: float) -> StepValues[torch.Tensor]:
    return StepValues(**{name: torch.tensor(value) for name, value in (FINE | changed).items()})


def taken(step: int) -> TakenStep:
    return TakenStep(step=step, learning_rates={"backbone": 1e-3}, ids=("a", "b"))


def guard(tmp_path: Path, *, gradient_may_overflow: bool = False) -> Guard:
    return Guard(Processes("cpu", "no"), tmp_path, gradient_may_overflow=gradient_may_overflow)


def test_values_come_back_by_name(tmp_path: Path) -> None:
    ((step, found),) = guard(tmp_path).check(taken(1), values(), now=False)
    assert step == taken(1)
    assert asdict(found) == pytest.approx(FINE, rel=1e-7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "what"), [("loss", "loss"), ("base", "loss"), ("margin", "loss"), ("gradient_norm", "gradient")]
)
def test_any_value_that_is_no_number_ends_the_run(tmp_path: Path, value: float, name: str, what: str) -> None:
    expected = rf"the {what} of step 3 is not finite .*backbone 0\.001.*items are a, b,"
    with pytest.raises(TrainingDiverged, match=expected):
        guard(tmp_path).check(taken(3), values(**{name: value}), now=False)
    assert json.loads((tmp_path / "items_of_step_3.json").read_bytes()) == ["a", "b"]


def test_a_scaled_gradient_may_overflow(tmp_path: Path) -> None:
    """float16: the scaler skips such a step and lowers its scale."""
    overflow = values(gradient_norm=float("inf"))
    assert guard(tmp_path, gradient_may_overflow=True).check(taken(1), overflow, now=False)


def test_a_scaled_gradient_that_always_overflows_ends_the_run(tmp_path: Path) -> None:
    """No smaller scale will help; a step without overflow resets the count."""
    overflow, fine = values(gradient_norm=float("nan")), values()
    patient = guard(tmp_path, gradient_may_overflow=True)
    for step, measured in enumerate([*[overflow] * 40, fine, *[overflow] * 40]):
        assert patient.check(taken(step), measured, now=False)
    with pytest.raises(TrainingDiverged, match="the gradient of step 99 is not finite"):
        patient.check(taken(99), overflow, now=False)


def test_several_steps_are_asked_for_at_once_and_each_is_known_by_its_number(tmp_path: Path) -> None:
    """As on a GPU, where each question makes it wait."""
    patient = guard(tmp_path)
    patient._at_once = 3
    assert patient.check(taken(1), values(), now=False) == []
    assert patient.check(taken(2), values(), now=False) == []
    assert [step.step for step, _ in patient.check(taken(3), values(), now=False)] == [1, 2, 3]
    assert patient.check(taken(4), values(loss=float("nan")), now=False) == []
    with pytest.raises(TrainingDiverged, match="of step 4 "):
        patient.check(taken(5), values(), now=True)
