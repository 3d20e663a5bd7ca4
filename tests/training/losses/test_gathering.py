"""Several processes find the value and the gradient of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.losses.processes import CASES, N, run_alone, run_together
from training.losses import gather


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[torch.Tensor]]]:
    return run_alone()


@pytest.mark.parametrize("shares", [[7, 6], [3, 10, 0]], ids=str)
def test_several_processes_equal_one(
    shares: list[int], alone: dict[str, list[list[torch.Tensor]]], tmp_path: Path
) -> None:
    """Value, active shares, margins, and after data-parallel averaging the gradient of model and proxies.

    The shares of rows are unequal, and so are the numbers of active pairs; one process may have no row at all.
    """
    assert sum(shares) == N
    found = run_together(shares, tmp_path)
    for name in CASES:
        for by_process in found:
            torch.testing.assert_close(by_process[name], alone[name], atol=1e-6, rtol=1e-6, msg=f"{name}: {{}}".format)
    # What is drawn at random has no one-process value; that processes agree on it is what keeps proxies alike.
    for by_process in found[1:]:
        for step, first in zip(by_process["random"], found[0]["random"], strict=True):
            assert torch.equal(step[0], first[0])


def test_one_process_keeps_what_it_has() -> None:
    rows, labels = torch.eye(3, requires_grad=True), torch.arange(3)
    batch = gather(rows, labels)
    assert batch.embeddings is rows
    assert batch.labels is labels
    assert batch.own == slice(0, 3)
