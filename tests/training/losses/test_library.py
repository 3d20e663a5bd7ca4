"""Every base loss and miner by name; what is wrong with other names and options."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from retrieval.errors import InvalidSettings
from tests.training.losses.batches import random_batch
from training.config import BaseLossConfig
from training.losses import create_base_loss, create_miner
from training.losses.library import LOSSES, MINERS, WITHOUT_MINER

REQUIRED: dict[str, dict[str, float]] = {"RankedListLoss": {"margin": 0.4, "Tn": 1}}
OWN_PARAMETERS = {
    "ArcFaceLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "P2SGradLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
}

# The library itself uses what torch and NumPy have deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence:UserWarning", "ignore:__array_wrap__ must accept:DeprecationWarning"
)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_can_be_named_and_stepped(name: str) -> None:
    """A step of gradient descent on the rows and on what the loss owns changes it; a miner chooses for it or not."""
    embeddings, labels = random_batch(0, dimension=8)
    torch.manual_seed(0)
    config = BaseLossConfig(name=name, options=REQUIRED.get(name, {}))
    loss = create_base_loss(config, n_classes=6, dimension=8)
    parameters = list(loss.parameters())
    rows = embeddings.requires_grad_()
    value = loss(rows, labels)
    value.backward()
    assert value.isfinite()
    assert rows.grad is not None
    assert rows.grad.any()
    assert (len(parameters) > 0) == (name in OWN_PARAMETERS)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)

    miner = create_miner(BaseLossConfig(miner="MultiSimilarityMiner"))
    assert miner is not None
    if name not in WITHOUT_MINER:
        assert loss(rows, labels, miner(rows, labels)).isfinite()
    else:
        with pytest.raises(InvalidSettings, match=rf"{name} compares all rows"):
            create_base_loss(
                BaseLossConfig(name=name, options=config.options, miner="HDCMiner"), n_classes=6, dimension=8
            )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_goes_on_from_its_state(name: str) -> None:
    """Step after step, and after its state was taken over by a new one: whatever it remembers is in the state."""
    config = BaseLossConfig(name=name, options=REQUIRED.get(name, {}))
    torch.manual_seed(0)
    loss, resumed = (create_base_loss(config, n_classes=6, dimension=8) for _ in range(2))
    for step in range(2):
        loss(*_differentiable(step)).backward()
    resumed.load_state_dict(loss.state_dict())
    for step in (2, 3):
        values = []
        for one in (loss, resumed):
            torch.manual_seed(step)
            values.append(one(*_differentiable(step)).item())
        assert values[0] == values[1]


def test_the_dynamic_soft_margin_is_the_library_s_with_constant_weights() -> None:
    """The first step of both, whose weights are known: the share of triplets that are no harder."""
    rows, labels = _differentiable(0)
    own = create_base_loss(BaseLossConfig(name="DynamicSoftMarginLoss"), n_classes=6, dimension=8)
    library = losses.DynamicSoftMarginLoss()
    assert own(rows, labels).item() == library(rows, labels).item()
    (found,) = torch.autograd.grad(own(rows, labels), rows)
    anchor, positive, negative = lmu.get_all_triplets_indices(labels)
    unit = torch.nn.functional.normalize(rows, dim=1)
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    values = distances[anchor, positive] - distances[anchor, negative]
    bins = ((values + 2) / 0.4).floor().long()
    weights = own.hist_.cumsum(0)[bins]
    (expected,) = torch.autograd.grad((weights * values).mean(), rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def _differentiable(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, labels = random_batch(seed, dimension=8)
    return rows.requires_grad_(), labels


def test_nothing_of_the_library_is_missing() -> None:
    """A class of a new version is either usable or said not to be, and why."""
    assert len(LOSSES) == 34
    assert len(MINERS) == 9
    for name in ("CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss", "VICRegLoss", "ManifoldLoss"):
        with pytest.raises(InvalidSettings, match=rf"loss\.base\.name: {name} cannot be used: it (wraps|takes)"):
            create_base_loss(BaseLossConfig(name=name), n_classes=2, dimension=2)
    with pytest.raises(InvalidSettings, match="instead of labels"):
        create_miner(BaseLossConfig(miner="EmbeddingsAlreadyPackagedAsTriplets"))


@pytest.mark.parametrize("name", sorted(MINERS))
def test_every_miner_can_be_named(name: str) -> None:
    embeddings, labels = random_batch(0)
    torch.manual_seed(0)
    miner = create_miner(BaseLossConfig(miner=name))
    loss = create_base_loss(BaseLossConfig(name="TripletMarginLoss"), n_classes=6, dimension=4)
    assert miner is not None
    assert loss(embeddings, labels, miner(embeddings, labels)).isfinite()


def test_options_reach_the_loss_and_the_miner() -> None:
    loss = create_base_loss(
        BaseLossConfig(name="CosFaceLoss", options={"margin": 0.2, "scale": 10}), n_classes=3, dimension=5
    )
    assert (loss.margin, loss.scale) == (0.2, 10)
    assert {tuple(parameter.shape) for parameter in loss.parameters()} == {(5, 3)}
    miner = create_miner(BaseLossConfig(miner="TripletMarginMiner", miner_options={"type_of_triplets": "hard"}))
    assert miner is not None
    assert miner.type_of_triplets == "hard"


def test_an_unknown_loss_or_miner_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidSettings, match=r"'MultiSimilarity'; did you mean MultiSimilarityLoss"):
        create_base_loss(BaseLossConfig(name="MultiSimilarity"), n_classes=2, dimension=2)
    with pytest.raises(InvalidSettings, match=r"'TripletMiner'; did you mean TripletMarginMiner"):
        create_miner(BaseLossConfig(miner="TripletMiner"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SupConLoss", {"temprature": 0.1}, "unknown argument 'temprature', accepted: temperature; did you mean temp"),
        ("CosFaceLoss", {"m": 1}, "unknown argument 'm', accepted: margin, scale"),
        ("NPairsLoss", {"margin": 1}, "unknown argument 'margin', accepted: none"),
        ("RankedListLoss", {"margin": 1.0}, "Tn is missing, it has no default"),
        ("ArcFaceLoss", {"num_classes": 3}, "num_classes is known from the data"),
        ("TripletMarginLoss", {"distance": "cosine"}, "distance takes an object"),
        ("TripletMarginLoss", {"margin": "wide"}, "margin takes a number, found 'wide'"),
        ("TripletMarginLoss", {"margin": True}, "margin takes a number, found True"),
        ("TripletMarginLoss", {"swap": 1}, "swap takes true or false, found 1"),
        ("TripletMarginLoss", {"triplets_per_anchor": "some"}, 'triplets_per_anchor takes a count or "all"'),
        ("SoftTripleLoss", {"centers_per_class": 2.5}, "centers_per_class takes a count, found 2.5"),
        ("PNPLoss", {"variant": 3}, "variant takes a string, found 3"),
        ("PNPLoss", {"variant": "Z"}, "variant=Z but must be one of"),
        ("RankedListLoss", {"margin": 1.0, "Tn": 1, "imbalance": 2}, "Imbalance must be between 0 and 1"),
        ("RecallAtKSurrogateLoss", {"k": "1,x"}, "expected k as positive integers"),
        ("SmoothAPLoss", {"temperature": 0}, "expected temperature above 0, found 0"),
    ],
)
def test_a_wrong_option_is_refused(name: str, options: Mapping[str, float | int | str | bool], message: str) -> None:
    with pytest.raises(InvalidSettings, match=re.escape(message)) as caught:
        create_base_loss(BaseLossConfig(name=name, options=options), n_classes=2, dimension=2)
    assert name in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidSettings, match=r"'a', .*; unknown argument 'b'.*; Tn is missing"):
        create_base_loss(
            BaseLossConfig(name="RankedListLoss", options={"a": 1, "b": 1, "margin": 1}), n_classes=2, dimension=2
        )


def test_wrong_miner_options_are_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"loss\.base\.miner_options of HDCMiner: unknown argument 'share'"):
        create_miner(BaseLossConfig(miner="HDCMiner", miner_options={"share": 0.5}))
    with pytest.raises(InvalidSettings, match="type_of_triplets takes one of all, hard, semihard, easy, found 'hrad'"):
        create_miner(BaseLossConfig(miner="TripletMarginMiner", miner_options={"type_of_triplets": "hrad"}))
    with pytest.raises(InvalidSettings, match="allowed_pos_range takes an object"):
        create_miner(BaseLossConfig(miner="BatchEasyHardMiner", miner_options={"allowed_pos_range": 0.5}))
    with pytest.raises(InvalidSettings, match="expected none without a miner"):
        create_miner(BaseLossConfig(miner_options={"margin": 0.5}))
