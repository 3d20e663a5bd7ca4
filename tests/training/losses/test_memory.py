"""What the cross-batch memory holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InvalidInput
from training.losses import CrossBatchMemory


def numbered(first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(first, first + n)
    return torch.stack([numbers, -numbers], dim=1).float(), numbers


@given(sizes=st.lists(st.integers(0, 9), max_size=6), size=st.integers(1, 7))
def test_holds_the_last_rows(sizes: list[int], size: int) -> None:
    """Whatever the sizes of the batches, also larger than the memory."""
    memory, total = CrossBatchMemory(size, 2), 0
    for n in sizes:
        memory.add(*numbered(total, n))
        total += n
    held = memory.remembered
    assert sorted(held.labels.tolist()) == [*range(max(total - size, 0), total)]
    assert torch.equal(held.embeddings[:, 0], held.labels.float())


def test_is_restored_from_its_state() -> None:
    """Including where the next row goes."""
    memory, other = CrossBatchMemory(5, 2), CrossBatchMemory(5, 2)
    memory.add(*numbered(0, 7))
    other.load_state_dict(memory.state_dict())
    for one in (memory, other):
        one.add(*numbered(7, 2))
    assert torch.equal(memory.remembered.labels, other.remembered.labels)
    assert torch.equal(memory.remembered.embeddings, other.remembered.embeddings)


def test_keeps_no_gradient_and_gives_copies() -> None:
    memory = CrossBatchMemory(3, 2)
    embeddings, labels = numbered(0, 2)
    memory.add(embeddings.requires_grad_(), labels)
    held = memory.remembered
    memory.add(*numbered(2, 3))
    assert not held.embeddings.requires_grad
    assert held.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("embeddings", "labels"),
    [
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 2), torch.zeros(2)),
    ],
)
def test_what_does_not_fit_is_refused(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match=r"cross-batch memory: expected embeddings \[n, 2\]"):
        CrossBatchMemory(4, 2).add(embeddings, labels)
