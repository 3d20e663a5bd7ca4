"""Several processes find the value and the gradient of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.losses.processes import CASES, N, run_alone, run_together
from training.losses import gather


# Two new interpreters import torch: seconds on idle cores, more beside other work.
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Value, active shares, margins, and after data-parallel averaging the gradient of model and proxies.

    The processes have unequal numbers of rows, and so of active pairs; one may have no row at all.
    """
    splits = [[7, 6], [N, 0]]
    alone = run_alone()
    for split, found in zip(splits, run_together(splits, tmp_path), strict=True):
        for name in CASES:
            for by_process in found:
                place = f"{name}, {split}: {{}}".format
                torch.testing.assert_close(by_process[name], alone[name], atol=1e-6, rtol=1e-6, msg=place)
        # What is drawn at random has no one-process value; that processes agree on it is what keeps proxies alike.
        first, second = (by_process["random"] for by_process in found)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_one_process_keeps_what_it_has() -> None:
    rows, labels = torch.eye(3, requires_grad=True), torch.arange(3)
    batch = gather(rows, labels)
    assert batch.embeddings is rows
    assert batch.labels is labels
    assert batch.own == slice(0, 3)
