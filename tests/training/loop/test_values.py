"""The values of a step: averaged over batches, read from all processes in one transfer, always under their names."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from training.loop.values import StepValues, mean_by_name, mean_over_processes, read_values

NAMES = [field.name for field in fields(StepValues)]


def numbered(first: float) -> StepValues[Tensor]:
    """Every value differs from every other, so that none can take the place of another."""
    return StepValues(**{name: torch.tensor(first + place) for place, name in enumerate(NAMES)})


def two_processes(gathered: list[Tensor]) -> SimpleNamespace:
    """The other process has values that are 100 higher; `gathered` keeps what was transferred."""

    def gather(rows: Tensor) -> Tensor:
        gathered.append(rows)
        return torch.cat([rows, rows + 100])

    return SimpleNamespace(gather=gather)


def test_batches_are_averaged_by_name_and_without_a_graph() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    means = mean_by_name([{"loss": weight * 1, "base": torch.tensor(4.0)}, {"loss": weight * 3, "base": weight}])
    assert {name: value.item() for name, value in means.items()} == {"loss": 4.0, "base": 3.0}
    assert not any(value.requires_grad for value in means.values())


def test_double_precision_is_lowered_to_float32() -> None:
    means = mean_by_name([{"loss": torch.tensor(0.1, dtype=torch.float64)}])
    assert means["loss"].dtype == torch.float32


def test_all_steps_of_all_processes_are_read_in_one_transfer() -> None:
    gathered: list[Tensor] = []
    table = read_values([numbered(0.0), numbered(10.0), numbered(20.0)], two_processes(gathered))  # type: ignore[arg-type]
    assert [rows.shape for rows in gathered] == [(1, 3, len(NAMES))]
    for place, name in enumerate(NAMES):
        own = [place, place + 10, place + 20]
        assert getattr(table, name).tolist() == [own, [value + 100 for value in own]]


def test_processes_are_averaged_step_by_step() -> None:
    table = read_values([numbered(0.0), numbered(10.0)], two_processes([]))  # type: ignore[arg-type]
    first, second = mean_over_processes(table)
    for place, name in enumerate(NAMES):
        assert getattr(first, name) == pytest.approx(place + 50)
        assert getattr(second, name) == pytest.approx(place + 60)
