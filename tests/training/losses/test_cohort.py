"""The density of training images against hand and a slow loop; when the queue is used; TCM on the normalised score."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retrieval.contract.score import cohort_score
from tests.training.losses.batches import random_batch, random_memory, slow_autograd_tcm, slow_density, slow_tcm
from training.config import BaseLossConfig, LossConfig, MarginConfig
from training.losses import DensityQueue, Remembered, TrainingLoss, blocks, density, threshold_consistent_margin

VARIANTS = [
    {"average": average, "balance": balance, "chunk": chunk}
    for average, balance, chunk in itertools.product(("active", "all"), ("pairs", "classes"), (3, 4096))
]
K = 3


def queue_of(reference: Remembered, *, size: int = 40, k: int = K, chunk: int = 4096) -> DensityQueue:
    queue = DensityQueue(size, reference.embeddings.shape[1], k=k, chunk=chunk)
    queue.add(reference.embeddings, reference.labels)
    return queue


def test_density_by_hand() -> None:
    """Of similarities 1, 0.8 and 0, the label of the row takes away the first; of fewer than k it is the mean."""
    reference = Remembered(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([0, 1, 2]))
    rows = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    found = [density(rows, torch.tensor([0, 1, 3]), reference, k=k).tolist() for k in (1, 2, 3)]
    assert found[0] == pytest.approx([0.8, 1.0, 1.0])
    assert found[1] == pytest.approx([0.4, 0.5, 0.9])
    assert found[2] == pytest.approx([0.4, 0.5, 0.6])


def test_offsets_are_half_the_density() -> None:
    reference = Remembered(torch.eye(2), torch.tensor([0, 1]))
    found = queue_of(reference, k=1).offsets(torch.tensor([[0.6, 0.8]]), torch.tensor([1]))
    assert found.tolist() == pytest.approx([0.3])


@given(seed=st.integers(0, 2**20), k=st.integers(1, 12), n=st.integers(0, 9), chunk=st.sampled_from([2, 4096]))
def test_density_equals_a_slow_loop(seed: int, k: int, n: int, chunk: int) -> None:
    """Also where some rows, or all, of the queue have the label of the image."""
    rows, labels = random_batch(seed, n=n, classes=3)
    reference = Remembered(*random_batch(seed + 1, n=10, classes=3))
    found = queue_of(reference, k=k, chunk=chunk).offsets(rows, labels)
    expected = 0.5 * slow_density(rows, labels, reference, k=k)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_a_row_without_another_class_in_the_queue_has_no_density() -> None:
    rows, _ = random_batch(0, n=4)
    same = torch.zeros(4, dtype=torch.int64)
    assert not density(rows, same, Remembered(rows, same), k=2).any()
    assert not density(rows, same, Remembered(rows[:0], same[:0]), k=2).any()


def test_without_own_class_it_is_the_density_of_the_score() -> None:
    """Training and calibration mean the same by it."""
    rows, labels = random_batch(0, n=20)
    reference, _ = random_batch(1, n=30)
    score = cohort_score(reference.numpy(), k=5)
    found = queue_of(Remembered(reference, torch.full((30,), 99)), k=5).offsets(rows, labels)
    np.testing.assert_allclose(found.numpy(), score.weight * score.density(rows.numpy()), atol=1e-6)


def test_nan_stays_nan_in_its_row() -> None:
    rows, labels = random_batch(0, n=3)
    rows[1, 0] = torch.nan
    found = density(rows, labels, random_memory(0), k=2)
    assert found.isnan().tolist() == [False, True, False]


def test_the_queue_is_ready_from_a_quarter_on() -> None:
    queue = DensityQueue(10, 2, k=1)
    for n_added, expected in ((2, False), (1, True), (20, True)):
        queue.add(torch.ones(n_added, 2), torch.zeros(n_added, dtype=torch.int64))
        assert queue.is_ready is expected


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("remembers", [False, True])
def test_value_and_gradient_equal_the_definition(options: dict[str, Any], remembers: bool) -> None:
    """Pair by pair, differentiated by autograd, with the densities as constants."""
    for seed in range(3):
        batch = random_batch(seed, n=12, classes=4, dtype=torch.float64)
        memory = random_memory(seed, n=5, dtype=torch.float64) if remembers else None
        offsets = torch.rand(12 + 5 * remembers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2
        settings: dict[str, Any] = {"positive_margin": 0.2, "negative_margin": -0.3, "memory": memory}
        rows = batch[0].clone().requires_grad_()
        found = threshold_consistent_margin(rows, batch[1], offsets=offsets, **settings, **options).value
        (gradient,) = torch.autograd.grad(found, rows)
        settings |= {name: value for name, value in options.items() if name != "chunk"}
        expected = slow_autograd_tcm(rows, batch[1], offsets=offsets, **settings)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, rows)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("negative_margin", [-1.0, 0.3])
def test_few_and_many_active_pairs_have_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch, negative_margin: float
) -> None:
    """The list of active pairs and the masks, kept or compared again."""
    embeddings, labels = random_batch(5, n=700, classes=150, dimension=16)
    offsets = torch.rand(700, generator=torch.Generator().manual_seed(0)) / 4

    def found(chunk: int) -> tuple[Tensor, Tensor]:
        rows = embeddings.clone().requires_grad_()
        value = threshold_consistent_margin(
            rows, labels, positive_margin=0.3, negative_margin=negative_margin, offsets=offsets, chunk=chunk
        ).value
        return value.detach(), torch.autograd.grad(value, rows)[0]

    whole, parts = found(4096), found(300)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(blocks, "_SPARSE_BELOW", 0)
    torch.testing.assert_close(found(4096), whole, atol=1e-6, rtol=1e-5)


def test_equal_offsets_shift_the_margins() -> None:
    embeddings, labels = random_batch(0)
    shifted = threshold_consistent_margin(
        embeddings, labels, positive_margin=0.5, negative_margin=0.1, offsets=torch.full((24,), 0.2)
    )
    plain = threshold_consistent_margin(embeddings, labels, positive_margin=0.9, negative_margin=0.5)
    torch.testing.assert_close(shifted.value, plain.value, atol=1e-6, rtol=0)


def cohort_loss(*base: BaseLossConfig, **tcm: Any) -> TrainingLoss:
    torch.manual_seed(0)
    options: dict[str, Any] = {"score": "cohort", "margins": "quantiles", "cohort": 100, "cohort_k": K} | tcm
    return TrainingLoss(LossConfig(base=base, tcm=MarginConfig(**options)), n_classes=6, dimension=4, steps=20)


def test_tcm_is_off_until_the_queue_is_ready() -> None:
    """25 of 100 rows: two batches of 24. Off, it has no value, no gradient and no running quantiles."""
    loss = cohort_loss(BaseLossConfig(name="ProxyAnchorLoss"))
    for step in range(4):
        rows, labels = random_batch(step)
        found = loss(rows.requires_grad_(), labels, step=step)
        assert found.total.requires_grad
        assert found.margin.value.requires_grad is (step >= 2)
        assert (found.margin.value.item() > 0) is (step >= 2)
        assert bool(loss.margins.quantiles.isfinite().all()) is (step >= 2)
        assert found.total.item() == pytest.approx(found.base.item() + found.margin.value.item())


@pytest.mark.parametrize("memory", [0, 30])
def test_every_step_equals_its_definition(memory: int) -> None:
    """Densities among the batches before, running quantiles of the normalised score, then TCM with these margins."""
    loss, earlier, margins = cohort_loss(memory=memory, momentum=0.8), [random_batch(0), random_batch(1)], None
    for step, batch in enumerate(earlier):
        loss(*batch, step=step)
    for step in range(2, 7):
        batch = random_batch(step)
        queue = Remembered(*(torch.cat(parts)[-100:] for parts in zip(*earlier, strict=True)))
        offsets = 0.5 * slow_density(*batch, queue, k=K)
        margins = _running(margins, _quantiles(*batch, offsets))
        kept = Remembered(queue.embeddings[-memory:], queue.labels[-memory:]) if memory else None
        if kept is not None:
            offsets = torch.cat([offsets, 0.5 * slow_density(kept.embeddings, kept.labels, queue, k=K)])
        found = loss(*batch, step=step)
        expected = slow_tcm(
            *batch, positive_margin=margins[0], negative_margin=margins[1], memory=kept, offsets=offsets
        )
        assert [found.positive_margin.item(), found.negative_margin.item()] == pytest.approx(margins, abs=1e-6)
        assert found.margin.value.item() == pytest.approx(expected, abs=5e-6)
        earlier.append(batch)


def test_evaluation_adds_nothing_to_the_queue() -> None:
    loss = cohort_loss().eval()
    loss(*random_batch(0), step=0)
    assert loss.cohort is not None
    assert loss.cohort.queue.n_remembered == 0


def test_the_cosine_keeps_no_queue() -> None:
    """A checkpoint of a run without it has the same names as before."""
    assert not [name for name in cohort_loss(score="cosine").state_dict() if name.startswith("cohort")]


def test_densities_are_constants() -> None:
    """The gradient moves rows only along rows that they are paired with, never along the queue."""
    loss = cohort_loss()
    rows = torch.zeros(4, 4)
    rows[:, 0] = 1.0
    queue = torch.zeros(40, 4)
    queue[:, 1], queue[:, 0] = 0.8, 0.6
    loss.cohort.add(queue, torch.full((40,), 5))  # type: ignore[union-attr]  # there is one with this score
    found = loss(rows.requires_grad_(), torch.tensor([0, 0, 1, 1]), step=0)
    (gradient,) = torch.autograd.grad(found.total, rows)
    assert found.margin.active_positives > 0
    assert not gradient[:, 1:].any()


def _quantiles(rows: Tensor, labels: Tensor, offsets: Tensor) -> list[float]:
    first, second = np.triu_indices(len(labels), k=1)
    scores = (rows.double() @ rows.double().T - offsets[:, None] - offsets).numpy()[first, second]
    same = labels.numpy()[first] == labels.numpy()[second]
    return [float(np.quantile(scores[same], 0.5)), float(np.quantile(scores[~same], 0.99))]


def _running(old: list[float] | None, new: list[float]) -> list[float]:
    return new if old is None else [0.8 * a + 0.2 * b for a, b in zip(old, new, strict=True)]
