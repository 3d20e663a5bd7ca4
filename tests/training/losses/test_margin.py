"""TCM against hand, against a slow definition, against pytorch-metric-learning; its gradient; what must not matter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, ThresholdConsistentMarginLoss
from torch import Tensor, nn

from tests.training.losses.batches import WORKED, WORKED_LABELS, random_batch, random_memory, slow_tcm
from training.losses import Remembered, blocks, threshold_consistent_margin

VARIANTS = [
    {"average": average, "balance": balance, "chunk": chunk}
    for average, balance, chunk in itertools.product(("active", "all"), ("pairs", "classes"), (7, 4096))
]


@pytest.mark.parametrize(("negative_margin", "expected"), [(0.4, 0.48658), (0.5, 0.51788)])
def test_worked_values(negative_margin: float, expected: float) -> None:
    """Positive pair (2, 3) and negative pairs (1, 2), (1, 3), and with the smaller margin no others."""
    found = threshold_consistent_margin(WORKED, WORKED_LABELS, negative_margin=negative_margin)
    reference = ThresholdConsistentMarginLoss(margin_minus=negative_margin)(WORKED, WORKED_LABELS)
    assert found.value.item() == pytest.approx(expected, abs=5e-6)
    assert reference.item() == pytest.approx(expected, abs=5e-6)


def test_classes_count_alike_when_balanced() -> None:
    """By hand: similarities 0.8 in one class; 0 in the other, twice, and 1; 0.6 or 0 between them.

    Positives: class 0 has one pair, short by 0.1; class 1 has two active ones, short by 0.9. Negatives above 0.5: rows
    (1, 2), (1, 4), which both belong to both classes, by 0.1.
    """
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = threshold_consistent_margin(rows, torch.tensor([0, 0, 1, 1, 1]), balance="classes")
    assert found.value.item() == pytest.approx((0.1 + 0.9) / 2 + 0.1, abs=1e-6)
    pooled = threshold_consistent_margin(rows, torch.tensor([0, 0, 1, 1, 1]))
    assert pooled.value.item() == pytest.approx((0.1 + 0.9 + 0.9) / 3 + 0.1, abs=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("margins", [(0.9, 0.5), (0.3, -0.2), (1.0, -1.0)], ids=str)
@pytest.mark.parametrize("remembers", [False, True])
def test_equals_the_definition(options: dict[str, Any], margins: tuple[float, float], remembers: bool) -> None:
    for seed in range(3):
        embeddings, labels = random_batch(seed)
        settings: dict[str, Any] = {
            "positive_margin": margins[0],
            "negative_margin": margins[1],
            "memory": random_memory(seed) if remembers else None,
        }
        found = threshold_consistent_margin(embeddings, labels, **settings, **options).value.item()
        settings |= {name: value for name, value in options.items() if name != "chunk"}
        assert found == pytest.approx(slow_tcm(embeddings, labels, **settings), abs=2e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margins", [(0.9, 0.5), (0.3, -0.2)])
def test_equals_the_library_in_value_and_gradient(seed: int, margins: tuple[float, float]) -> None:
    """The library's similarity normalises, so that its gradient has no part along the row."""
    embeddings, labels = random_batch(seed)
    library = ThresholdConsistentMarginLoss(margin_plus=margins[0], margin_minus=margins[1])

    def ours(rows: Tensor) -> Tensor:
        rows = nn.functional.normalize(rows, dim=1)
        return threshold_consistent_margin(rows, labels, positive_margin=margins[0], negative_margin=margins[1]).value

    found, expected = (_value_and_gradient(f, embeddings) for f in (ours, lambda rows: library(rows, labels)))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_with_weights_of_one_it_is_contrastive_loss_over_active_pairs() -> None:
    """A two-margin cosine contrastive loss averaged over non-zero pairs: the honest control of an experiment."""
    embeddings, labels = random_batch(3)
    control = ContrastiveLoss(pos_margin=0.9, neg_margin=0.5, distance=CosineSimilarity())
    found = threshold_consistent_margin(embeddings, labels).value.item()
    assert found == pytest.approx(control(embeddings, labels).item(), abs=1e-5)


def test_weights_scale_their_side() -> None:
    embeddings, labels = random_batch(1)
    positive = threshold_consistent_margin(embeddings, labels, negative_weight=0).value
    negative = threshold_consistent_margin(embeddings, labels, positive_weight=0).value
    both = threshold_consistent_margin(embeddings, labels).value
    weighted = threshold_consistent_margin(embeddings, labels, positive_weight=3, negative_weight=2).value
    torch.testing.assert_close(both, positive + negative)
    torch.testing.assert_close(weighted, 3 * positive + 2 * negative)


def test_without_weights_there_is_no_gradient_but_the_shares_are_counted() -> None:
    embeddings, labels = random_batch(1)
    found = threshold_consistent_margin(embeddings.requires_grad_(), labels, positive_weight=0, negative_weight=0)
    assert not found.value.requires_grad
    assert found.value.item() == 0
    assert found.active_positives > 0


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 1]])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_side_without_active_pairs_contributes_nothing(labels: list[int], options: dict[str, Any]) -> None:
    """Also to the gradient, which stays finite."""
    rows = torch.eye(4).requires_grad_()
    found = threshold_consistent_margin(
        rows, torch.tensor(labels), positive_margin=-0.5, negative_margin=0.5, **options
    )
    found.value.backward()
    assert found.value.item() == 0
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.zeros(4, 4))
    assert (found.active_positives, found.active_negatives) == (0, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_pairs_is_worth_nothing(n: int) -> None:
    rows = torch.eye(1, 4)[:n].requires_grad_()
    found = threshold_consistent_margin(rows, torch.zeros(n, dtype=torch.int64))
    found.value.backward()
    assert found.value.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_pairs_at_their_margin_are_active() -> None:
    """They count in the average, as in the library."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = threshold_consistent_margin(rows, torch.tensor([0, 0, 1]), positive_margin=1.0, negative_margin=0.0)
    assert (found.active_positives, found.active_negatives) == (1, 1)


def test_active_shares_are_of_their_own_pairs() -> None:
    """In the worked example one of two positive and two of four negative pairs are on the wrong side."""
    found = threshold_consistent_margin(WORKED, WORKED_LABELS)
    assert (found.active_positives, found.active_negatives) == (0.5, 0.5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("remembers", [False, True])
def test_gradient_is_that_of_finite_differences(options: dict[str, Any], remembers: bool) -> None:
    embeddings, labels = random_batch(2, n=8, classes=3, dtype=torch.float64)
    memory = random_memory(2, n=5, dtype=torch.float64) if remembers else None
    options = options | {"chunk": min(options["chunk"], 3)} if options["chunk"] < 10 else options

    def loss(rows: Tensor) -> Tensor:
        rows = nn.functional.normalize(rows, dim=1)
        return threshold_consistent_margin(
            rows, labels, positive_weight=0.7, negative_weight=1.3, negative_margin=0.2, memory=memory, **options
        ).value

    assert torch.autograd.gradcheck(loss, (embeddings.clone().requires_grad_(),))


@pytest.mark.parametrize("negative_margin", [-1.0, 0.5])
@pytest.mark.parametrize("balance", ["pairs", "classes"])
def test_large_batches_have_the_gradient_of_small_blocks(
    monkeypatch: pytest.MonkeyPatch, negative_margin: float, balance: Any
) -> None:
    """Several blocks, few active pairs or many: the sparse and the dense way agree, whatever is kept."""
    embeddings, labels = random_batch(5, n=1300, classes=300, dimension=16)
    memory = Remembered(*random_batch(6, n=200, classes=300, dimension=16))

    def loss(chunk: int) -> tuple[Tensor, Tensor]:
        return _value_and_gradient(
            lambda rows: (
                threshold_consistent_margin(
                    rows, labels, negative_margin=negative_margin, balance=balance, memory=memory, chunk=chunk
                ).value
            ),
            embeddings,
        )

    whole, parts = loss(4096), loss(400)
    monkeypatch.setattr(blocks, "_SPARSE_BELOW", 0)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss(4096), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype: torch.dtype) -> None:
    """Also under autocast the similarities are float32: margins differ by less than bfloat16 resolves."""
    embeddings, labels = random_batch(4)
    rows = embeddings.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = threshold_consistent_margin(embeddings, labels).value
        lowered = threshold_consistent_margin(rows, labels).value
    lowered.backward()
    assert found.dtype == lowered.dtype == torch.float32
    assert found.item() == pytest.approx(slow_tcm(embeddings, labels), abs=2e-6)
    assert lowered.item() == pytest.approx(slow_tcm(rows.detach(), labels), abs=2e-6)
    assert rows.grad is not None
    assert rows.grad.dtype == dtype


def test_nan_stays_nan() -> None:
    """A comparison with NaN is false, so the row would otherwise be quietly left out."""
    embeddings, labels = random_batch(0)
    embeddings[3, 1] = torch.nan
    assert threshold_consistent_margin(embeddings, labels).value.isnan()


def test_margins_may_be_tensors() -> None:
    embeddings, labels = random_batch(0)
    margins = {"positive_margin": 0.7, "negative_margin": 0.1}
    expected = threshold_consistent_margin(embeddings, labels, **margins).value
    found = threshold_consistent_margin(
        embeddings, labels, positive_margin=torch.tensor(0.7), negative_margin=torch.tensor(0.1)
    ).value
    torch.testing.assert_close(found, expected)


@given(seed=st.integers(0, 2**20), balance=st.sampled_from(["pairs", "classes"]), chunk=st.sampled_from([5, 4096]))
def test_order_and_names_of_classes_do_not_matter(seed: int, balance: Any, chunk: int) -> None:
    embeddings, labels = random_batch(seed, n=13, classes=4)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(13, generator=generator)
    renamed = torch.randperm(50, generator=generator)[labels]
    first = threshold_consistent_margin(embeddings, labels, balance=balance, chunk=chunk).value
    second = threshold_consistent_margin(embeddings[order], renamed[order], balance=balance, chunk=chunk).value
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@given(
    seed=st.integers(0, 2**20),
    margins=st.lists(st.floats(-1, 1), min_size=2, max_size=2, unique=True).map(sorted),
    balance=st.sampled_from(["pairs", "classes"]),
)
def test_stricter_margins_cost_more_and_move_more(seed: int, margins: list[float], balance: Any) -> None:
    """Averaged over all pairs; over active ones a stricter margin may lower the average by pairs that just miss it."""
    embeddings, labels = random_batch(seed, n=9, classes=3)

    def loss(positive_margin: float, negative_margin: float) -> tuple[float, float, float]:
        found = threshold_consistent_margin(
            embeddings,
            labels,
            positive_margin=positive_margin,
            negative_margin=negative_margin,
            average="all",
            balance=balance,
        )
        return found.value.item(), found.active_positives.item(), found.active_negatives.item()

    low, high = margins
    lenient, strict = loss(low, high), loss(high, low)
    assert lenient[0] <= strict[0] + 1e-6
    assert lenient[1] <= strict[1]
    assert lenient[2] <= strict[2]


def _value_and_gradient(function: Any, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    rows = embeddings.clone().requires_grad_()
    value = function(rows)
    (gradient,) = torch.autograd.grad(value, rows)
    return value.detach(), gradient
