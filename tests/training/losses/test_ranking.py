"""Smooth AP and the recall surrogate against slow definitions, the library, and the hard measures they approximate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import SmoothAPLoss as LibrarySmoothAPLoss
from torch import Tensor, nn

from tests.training.losses.batches import random_batch
from training.losses import RecallAtKSurrogateLoss, SmoothAPLoss, ranking


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def slow_rank(similarities: Tensor, query: int, item: int, among: list[int], temperature: float) -> float:
    s = similarities[query]
    return 1 + sum(sigmoid(float(s[z] - s[item]) / temperature) for z in among if z != item)


def slow_smooth_ap(embeddings: Tensor, labels: Tensor, temperature: float) -> float:
    similarities, names = embeddings.double() @ embeddings.double().T, labels.tolist()
    losses = []
    for q, label in enumerate(names):
        positives = [x for x, other in enumerate(names) if other == label]
        precisions = [
            slow_rank(similarities, q, x, positives, temperature)
            / slow_rank(similarities, q, x, [*range(len(names))], temperature)
            for x in positives
        ]
        losses.append(1 - sum(precisions) / len(precisions))
    return sum(losses) / len(losses)


def slow_recall(embeddings: Tensor, labels: Tensor, ks: list[int], rank_temperature: float, cut: float) -> float:
    similarities, names = embeddings.double() @ embeddings.double().T, labels.tolist()
    losses = []
    for q, label in enumerate(names):
        others = [z for z in range(len(names)) if z != q]
        positives = [x for x in others if names[x] == label]
        if positives:
            ranks = [slow_rank(similarities, q, x, others, rank_temperature) for x in positives]
            recalls = [min(sum(sigmoid((k - r) / cut) for r in ranks), k) / min(k, len(positives)) for k in ks]
            losses.append(1 - sum(recalls) / len(recalls))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_smooth_ap_equals_its_definition(seed: int, temperature: float) -> None:
    """Classes of any size in any order."""
    embeddings, labels = random_batch(seed, n=11, classes=4, dtype=torch.float64)
    found = SmoothAPLoss(temperature)(embeddings, labels).item()
    assert found == pytest.approx(slow_smooth_ap(embeddings, labels, temperature), abs=1e-9)


def test_smooth_ap_equals_the_library_where_that_is_defined() -> None:
    """As many classes as images of each, in order: it takes the one number for the other."""
    embeddings, _ = random_batch(0, n=16)
    labels = torch.arange(16) // 4
    found, expected = (_with_gradient(loss, embeddings, labels) for loss in (SmoothAPLoss(), LibrarySmoothAPLoss()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # 1 / temperature magnifies float32 rounding


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rank_temperature", "cut_temperature"), [(0.01, 1.0), (0.2, 0.5)])
def test_recall_surrogate_equals_its_definition(seed: int, rank_temperature: float, cut_temperature: float) -> None:
    embeddings, labels = random_batch(seed, n=11, classes=4, dtype=torch.float64)
    loss = RecallAtKSurrogateLoss("1, 2 4", rank_temperature, cut_temperature)
    expected = slow_recall(embeddings, labels, [1, 2, 4], rank_temperature, cut_temperature)
    assert loss(embeddings, labels).item() == pytest.approx(expected, abs=1e-9)


def test_recall_surrogate_approaches_recall() -> None:
    """With steep sigmoids and k between ranks it is 1 - recall: here two of four queries find their match first."""
    angles = torch.tensor([0.0, 0.1, 0.4, 1.5, 2.0, 2.6], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    loss = RecallAtKSurrogateLoss("1", rank_temperature=1e-4, cut_temperature=1e-3)
    # At k = rank the second sigmoid is one half, by the source's own definition.
    assert loss(rows, labels).item() == pytest.approx(1 - 0.5 * 2 / 4, abs=1e-6)


@pytest.mark.parametrize("loss", [SmoothAPLoss(0.2), RecallAtKSurrogateLoss("1,2", 0.2)], ids=["ap", "recall"])
def test_gradient_in_one_piece_and_in_parts(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = random_batch(1, n=9, classes=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: loss(rows, labels), (embeddings.clone().requires_grad_(),))
    whole = _with_gradient(loss, embeddings, labels)
    monkeypatch.setattr(ranking, "_COMPARISONS", 40)
    torch.testing.assert_close(_with_gradient(loss, embeddings, labels), whole)


@pytest.mark.parametrize("labels", [[0, 1, 2], []])
def test_recall_surrogate_without_positives_is_0(labels: list[int]) -> None:
    rows = torch.eye(3)[: len(labels)].requires_grad_()
    value = RecallAtKSurrogateLoss()(rows, torch.tensor(labels, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def _with_gradient(loss: nn.Module, embeddings: Tensor, labels: Tensor) -> Any:
    rows = embeddings.clone().requires_grad_()
    value = loss(rows, labels)
    return value.detach(), torch.autograd.grad(value, rows)[0]
