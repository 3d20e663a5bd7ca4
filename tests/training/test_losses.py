"""TCM against hand, against a slow definition and against pytorch-metric-learning; base losses by name."""

import itertools

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, ThresholdConsistentMarginLoss
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import BaseLossConfig, LossConfig
from training.losses import TrainingLoss, create_base_loss, threshold_consistent_margin

# Four vectors of pytorch-metric-learning's own test of TCM.
WORKED = nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.43, 0.9], [1.0, 0.0], [0.5, 0.5]]))
WORKED_LABELS = torch.tensor([0, 0, 1, 1])


def random_batch(
    seed: int, *, n: int = 24, classes: int = 6, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 4, generator=generator, dtype=dtype)
    return nn.functional.normalize(rows, dim=1), torch.randint(classes, (n,), generator=generator)


def slow_tcm(embeddings: Tensor, labels: Tensor, positive_margin: float, negative_margin: float) -> float:
    """The definition, pair by pair."""
    too_far, too_close = [], []
    for a, b in itertools.combinations(range(len(labels)), 2):
        s = float(embeddings[a] @ embeddings[b])
        if labels[a] == labels[b] and s <= positive_margin:
            too_far.append(positive_margin - s)
        if labels[a] != labels[b] and s >= negative_margin:
            too_close.append(s - negative_margin)
    return sum(sum(side) / len(side) for side in (too_far, too_close) if side)


@pytest.mark.parametrize(("negative_margin", "expected"), [(0.4, 0.48658), (0.5, 0.51788)])
def test_worked_values(negative_margin: float, expected: float) -> None:
    """Positive pair (2, 3) and negative pairs (1, 2), (1, 3), and with the smaller margin no others."""
    found = threshold_consistent_margin(WORKED, WORKED_LABELS, negative_margin=negative_margin)
    reference = ThresholdConsistentMarginLoss(margin_minus=negative_margin)(WORKED, WORKED_LABELS)
    assert found.value.item() == pytest.approx(expected, abs=5e-6)
    assert reference.item() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("margins", [(0.9, 0.5), (0.3, -0.2), (1.0, -1.0)])
def test_equals_the_definition_and_the_library(seed: int, margins: tuple[float, float]) -> None:
    embeddings, labels = random_batch(seed)
    positive, negative = margins
    found = threshold_consistent_margin(
        embeddings, labels, positive_margin=positive, negative_margin=negative
    ).value.item()
    library = ThresholdConsistentMarginLoss(margin_plus=positive, margin_minus=negative)(embeddings, labels).item()
    assert found == pytest.approx(slow_tcm(embeddings, labels, positive, negative), abs=1e-5)
    assert found == pytest.approx(library, abs=1e-5)


def test_with_weights_of_one_it_is_contrastive_loss_over_active_pairs() -> None:
    """A two-margin cosine contrastive loss averaged over non-zero pairs: the honest control of an experiment."""
    embeddings, labels = random_batch(3)
    control = ContrastiveLoss(pos_margin=0.9, neg_margin=0.5, distance=CosineSimilarity())
    found = threshold_consistent_margin(embeddings, labels).value.item()
    assert found == pytest.approx(control(embeddings, labels).item(), abs=1e-5)


def test_weights_scale_their_side() -> None:
    embeddings, labels = random_batch(1)
    both = threshold_consistent_margin(embeddings, labels).value
    positive = threshold_consistent_margin(embeddings, labels, negative_weight=0).value
    negative = threshold_consistent_margin(embeddings, labels, positive_weight=0).value
    weighted = threshold_consistent_margin(embeddings, labels, positive_weight=3, negative_weight=2).value
    torch.testing.assert_close(both, positive + negative)
    torch.testing.assert_close(weighted, 3 * positive + 2 * negative)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 1]])
def test_a_side_without_active_pairs_contributes_nothing(labels: list[int]) -> None:
    """Also to the gradient, which stays finite."""
    rows = torch.eye(4).requires_grad_()
    found = threshold_consistent_margin(rows, torch.tensor(labels), positive_margin=-0.5, negative_margin=0.5)
    found.value.backward()
    assert found.value.item() == 0
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.zeros(4, 4))
    assert (found.active_positives, found.active_negatives) == (0, 0)


def test_active_shares_are_of_their_own_pairs() -> None:
    """In the worked example one of two positive and two of four negative pairs are on the wrong side."""
    found = threshold_consistent_margin(WORKED, WORKED_LABELS)
    assert (found.active_positives, found.active_negatives) == (0.5, 0.5)


def test_gradient_is_that_of_finite_differences() -> None:
    embeddings, labels = random_batch(2, n=8, classes=3, dtype=torch.float64)

    def loss(rows: Tensor) -> Tensor:
        return threshold_consistent_margin(nn.functional.normalize(rows, dim=1), labels).value

    assert torch.autograd.gradcheck(loss, (embeddings.clone().requires_grad_(),))


def test_half_precision_is_raised() -> None:
    """Under autocast the similarities are float32 all the same: margins differ by less than bfloat16 resolves."""
    embeddings, labels = random_batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = threshold_consistent_margin(embeddings, labels).value
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_tcm(embeddings, labels, 0.9, 0.5), abs=1e-5)


@pytest.mark.parametrize("name", ["NormalizedSoftmaxLoss", "ProxyAnchorLoss", "MultiSimilarityLoss", "SupConLoss"])
def test_base_losses_are_found_by_name_and_told_the_sizes(name: str) -> None:
    embeddings, labels = random_batch(0)
    loss = TrainingLoss(LossConfig(base=(BaseLossConfig(name=name),)), n_classes=6, dimension=4)
    step = loss(embeddings, labels)
    assert step.total.item() == pytest.approx(step.base + step.margin.value.item(), rel=1e-5)


def test_an_unknown_loss_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidSettings, match=r"'MultiSimilarity'; did you mean MultiSimilarityLoss"):
        create_base_loss(BaseLossConfig(name="MultiSimilarity"), n_classes=2, dimension=2)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"loss\.base\.options of SupConLoss: .*temprature"):
        create_base_loss(BaseLossConfig(name="SupConLoss", options={"temprature": 0.1}), n_classes=2, dimension=2)
