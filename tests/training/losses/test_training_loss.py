"""The sum that a step minimises: weights, warm-up, memory, margins, and exact resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from retrieval.errors import InvalidInput
from tests.training.losses.batches import random_batch
from training.config import BaseLossConfig, LossConfig, MarginConfig
from training.losses import StepLoss, TrainingLoss, threshold_consistent_margin

PROXY = BaseLossConfig(name="ProxyAnchorLoss")
PAIRS = BaseLossConfig(name="MultiSimilarityLoss", weight=0.5, miner="MultiSimilarityMiner")


def training_loss(*base: BaseLossConfig, **tcm: Any) -> TrainingLoss:
    torch.manual_seed(0)
    config = LossConfig(base=base or (PROXY,), tcm=MarginConfig(**tcm))
    return TrainingLoss(config, n_classes=6, dimension=4, steps=10)


def test_is_the_weighted_sum_of_its_parts() -> None:
    batch = random_batch(0)
    alone = [training_loss(base)(*batch, step=0).base.item() for base in (PROXY, PAIRS)]
    both = training_loss(PROXY, PAIRS)(*batch, step=0)
    assert both.base.item() == pytest.approx(sum(alone), rel=1e-6)
    assert both.total.item() == pytest.approx(sum(alone) + both.margin.value.item(), rel=1e-6)
    margin = threshold_consistent_margin(*batch)
    assert both.margin.value.item() == pytest.approx(margin.value.item(), abs=1e-6)
    assert [both.positive_margin.item(), both.negative_margin.item()] == pytest.approx([0.9, 0.5])


def test_only_the_total_carries_gradient() -> None:
    rows, labels = random_batch(0)
    found = training_loss(PROXY)(rows.requires_grad_(), labels, step=0)
    assert found.total.requires_grad
    assert not found.base.requires_grad
    assert not found.margin.active_positives.requires_grad


def test_margin_alone() -> None:
    config = LossConfig(base=(), tcm=MarginConfig())
    found = TrainingLoss(config, n_classes=6, dimension=4, steps=1)(*random_batch(0), step=0)
    assert found.base.item() == 0
    assert found.total.item() == found.margin.value.item() > 0


def test_the_margin_warms_up() -> None:
    loss, batch = training_loss(warmup_steps=4), random_batch(0)
    full = training_loss()(*batch, step=0).margin.value.item()
    found = [loss(*batch, step=step).margin.value.item() for step in range(6)]
    assert found == pytest.approx([share * full for share in (0, 0.25, 0.5, 0.75, 1, 1)], abs=1e-6)


def test_earlier_batches_are_paired_with_the_present_one() -> None:
    """Not with itself, not while evaluating, and without gradient."""
    loss = training_loss(memory=30, average="all", balance="classes")
    for seed in range(3):
        held = loss.memory.remembered if loss.memory is not None else None
        expected = threshold_consistent_margin(
            *random_batch(seed), average="all", balance="classes", memory=held
        ).value.item()
        evaluated = loss.eval()(*random_batch(seed), step=seed).margin.value.item()
        trained = loss.train()(*random_batch(seed), step=seed).margin.value.item()
        assert evaluated == pytest.approx(expected, abs=1e-6)
        assert trained == pytest.approx(expected, abs=1e-6)
    assert loss.memory is not None
    assert len(loss.memory.remembered.labels) == 30


@pytest.mark.parametrize(
    ("margins", "score"), [("quantiles", "cosine"), ("quantiles", "cohort"), ("schedule", "cosine")]
)
def test_a_resumed_run_goes_on_exactly(margins: str, score: str) -> None:
    """State dictionaries hold the memory, the cohort, the running quantiles and the proxies."""
    settings: dict[str, Any] = {"margins": margins, "score": score, "memory": 30, "warmup_steps": 3}
    settings |= {"cohort": 150, "cohort_k": 3}
    loss = training_loss(PROXY, PAIRS, **settings)
    _descend(loss, range(4))
    resumed = training_loss(PROXY, PAIRS, **settings)
    resumed.load_state_dict(loss.state_dict())
    for found, expected in zip(_descend(resumed, range(4, 8)), _descend(loss, range(4, 8)), strict=True):
        assert found.total.item() == expected.total.item()
        assert found.positive_margin.item() == expected.positive_margin.item()
        assert found.negative_margin.item() == expected.negative_margin.item()
    for found_state, state in zip(resumed.state_dict().values(), loss.state_dict().values(), strict=True):
        assert torch.equal(found_state, state) if isinstance(state, torch.Tensor) else found_state == state


def test_half_precision_is_raised_for_all_losses() -> None:
    rows, labels = random_batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = training_loss(PROXY, PAIRS)(rows.bfloat16(), labels, step=0)
    expected = training_loss(PROXY, PAIRS)(rows.bfloat16().float(), labels, step=0)
    assert found.total.dtype == torch.float32
    assert found.total.item() == expected.total.item()


def test_nan_reaches_the_total() -> None:
    rows, labels = random_batch(0)
    rows[0, 0] = torch.nan
    assert training_loss(PAIRS)(rows, labels, step=0).total.isnan()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 6], "expected labels from 0 to 5, found 0 to 6"),
        ([-1, 0], "expected labels from 0 to 5, found -1 to 0"),
        ([0], r"expected embeddings \[n, d\] and labels \[n\] int64, found \[2, 4\] and \[1\]"),
        ([0.0, 1.0], r"found \[2, 4\] and \[2\] torch.float32"),
    ],
)
def test_wrong_labels_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        training_loss()(torch.eye(2, 4), torch.tensor(labels), step=0)


def _descend(loss: TrainingLoss, steps: range) -> list[StepLoss]:
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    found = []
    for step in steps:
        optimizer.zero_grad()
        embeddings, labels = random_batch(step)
        found.append(loss(nn.functional.normalize(embeddings, dim=1), labels, step=step))
        found[-1].total.backward()
        optimizer.step()
    return found
