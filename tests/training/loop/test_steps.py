"""One step, against the same gradient written out: whole, in chunks, over several batches, clipped."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import LossConfig, MarginConfig, TrainingConfig, parse_config
from training.data import Batch
from training.loop.processes import Processes
from training.loop.state import TrainingState, average_weights
from training.loop.steps import Stepper, prepare_batch_norms
from training.loop.values import StepValues
from training.losses import TrainingLoss
from training.losses.adaptive import similarity_quantiles

N_CLASSES, DIMENSION = 3, 4


class Network(nn.Module):
    """pixels [n, 3, 4, 4] -> unit rows [n, 4]; with dropout, so that each pass makes random choices."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, DIMENSION)]
        self.layers = nn.Sequential(*layers, *([nn.BatchNorm1d(DIMENSION)] if norm else []))

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(pixels), dim=1)


def state(network: nn.Module, **tcm: Any) -> TrainingState:
    torch.manual_seed(1)
    loss = TrainingLoss(LossConfig(tcm=MarginConfig(**tcm)), n_classes=N_CLASSES, dimension=DIMENSION, steps=10)
    groups = [
        {"part": name, "params": list(module.parameters()), "peak": 0.1, "lr": 0.1}
        for name, module in (("network", network), ("loss", loss))
    ]
    return TrainingState(embedder=network, loss=loss, optimizer=torch.optim.SGD(groups))  # type: ignore[arg-type]


def config(**loop: Any) -> TrainingConfig:
    schedule = {"steps": 10, "warmup_steps": 0, "decay": "constant"}
    return parse_config({"seed": 5, "schedule": schedule, "loop": loop}, source="test")


def batch(number: int, n: int = 7) -> Batch:
    rng = np.random.default_rng(number)
    pixels = torch.from_numpy(rng.standard_normal((n, 3, 4, 4), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(N_CLASSES, size=n))
    return Batch(step=number, pixels=pixels, labels=labels, ids=tuple(map(str, range(n))), unreadable=())


def gradients(state: TrainingState) -> dict[str, Tensor]:
    modules = {"embedder": state.embedder, "loss": state.loss}
    return {
        f"{module}.{name}": p.grad.clone()
        for module, owner in modules.items()
        for name, p in owner.named_parameters()
        if p.grad is not None
    }


def measured(network: nn.Module, *batches: Batch, **loop: Any) -> tuple[dict[str, Tensor], StepValues[Tensor]]:
    made = state(copy.deepcopy(network))
    stepper = Stepper(made, Processes("cpu", "no"), config(**loop))
    values = stepper.measure(batches)
    return gradients(made), values


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys() != set()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_give_the_gradient_of_the_whole_batch(network: Network, chunk: int) -> None:
    """Chunks that divide the batch, that do not, and one chunk for all."""
    made = state(copy.deepcopy(network))
    one = batch(0)
    made.loss(made.embedder(one.pixels), one.labels, step=0).total.backward()
    found, values = measured(network, one, chunk_images=chunk)
    assert_close(found, gradients(made))
    norm = torch.cat([g.flatten() for g in gradients(made).values()]).norm()
    torch.testing.assert_close(values.gradient_norm, norm)


def test_chunks_meet_the_same_dropout_twice() -> None:
    """Against one graph through all chunks, each with its own seed: the reference that needs the memory."""
    torch.manual_seed(0)
    network = Network(dropout=0.5)
    made, one = state(copy.deepcopy(network)), batch(0)
    parts = []
    for row, part in enumerate(one.pixels.split(3)):
        torch.manual_seed(int(np.random.default_rng((5, 0, 0, row)).integers(2**63)))
        parts.append(made.embedder(part))
    made.loss(torch.cat(parts), one.labels, step=0).total.backward()
    found, _ = measured(network, one, chunk_images=3)
    assert_close(found, gradients(made))


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_loss_meets_each_batch_once(network: Network, chunk: int) -> None:
    """Chunks are embedded twice; memory and running quantiles move on by one batch, accumulated ones by each."""
    made = state(network, margins="quantiles", momentum=0.5, memory=50)
    parts = [batch(0), batch(1, n=5)]
    rows = [network(part.pixels).detach() for part in parts]
    Stepper(made, Processes("cpu", "no"), config(chunk_images=chunk)).measure(parts)
    remembered = made.loss.memory.remembered  # type: ignore[union-attr]
    torch.testing.assert_close(remembered.embeddings, torch.cat(rows))
    assert torch.equal(remembered.labels, torch.cat([part.labels for part in parts]))
    quantiles = [
        similarity_quantiles(own, part.labels, positive=0.5, negative=0.99)
        for own, part in zip(rows, parts, strict=True)
    ]
    torch.testing.assert_close(made.loss.margins.quantiles, (quantiles[0] + quantiles[1]) / 2)


@pytest.mark.parametrize("chunk", [0, 4])
def test_accumulated_batches_give_the_mean_of_their_gradients(network: Network, chunk: int) -> None:
    parts = [batch(0), batch(1, n=5)]
    together, values = measured(network, *parts, chunk_images=chunk)
    singly = [measured(network, part) for part in parts]
    assert_close(together, {key: (singly[0][0][key] + singly[1][0][key]) / 2 for key in together})
    for name in ("loss", "base", "margin", "active_positives", "active_negatives", "positive_margin"):
        mean = (getattr(singly[0][1], name) + getattr(singly[1][1], name)) / 2
        torch.testing.assert_close(getattr(values, name), mean)


def test_a_long_gradient_is_clipped_and_a_short_one_is_not(network: Network) -> None:
    for limit, is_clipped in ((1e-2, True), (1e3, False)):
        made = state(copy.deepcopy(network))
        before = [p.detach().clone() for p in made.embedder.parameters()]
        stepper = Stepper(made, Processes("cpu", "no"), config(clip_norm=limit))
        stepper.set_learning_rates()
        values = stepper.measure([batch(0)])
        stepper.descend(values.gradient_norm)
        assert values.gradient_norm > 0.1  # before clipping
        parts = [*gradients(made).values()]
        length = torch.cat([part.flatten() for part in parts]).norm().item()
        assert length == pytest.approx(limit if is_clipped else values.gradient_norm.item(), rel=1e-3)
        moved = [(b - p.detach()).norm().item() for b, p in zip(before, made.embedder.parameters(), strict=True)]
        assert moved == pytest.approx([0.1 * p.grad.norm().item() for p in made.embedder.parameters()], rel=1e-3)  # type: ignore[union-attr]


def test_bfloat16_is_near_float32_and_leaves_the_embedder_alone(network: Network) -> None:
    """Training computes in bfloat16; who calls the embedder himself gets float32 precision."""
    whole, _ = measured(network, batch(0))
    made = state(network)
    plain = network(batch(0).pixels)
    stepper = Stepper(made, Processes("cpu", "bf16"), config(precision="bf16"))
    stepper.measure([batch(0)])
    for key, value in gradients(made).items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, whole[key])
        torch.testing.assert_close(value, whole[key], rtol=0.1, atol=0.03)
    assert torch.equal(network(batch(0).pixels), plain)


def test_the_running_mean_follows_each_step(network: Network) -> None:
    made = state(network)
    made.average = average_weights(network, decay=0.5)  # type: ignore[arg-type]
    before = network.layers[1].weight.detach().clone()
    stepper = Stepper(made, Processes("cpu", "no"), config())
    stepper.set_learning_rates()
    stepper.descend(stepper.measure([batch(0)]).gradient_norm)
    after = network.layers[1].weight.detach()
    # At the first update the decay is 2 / 11.
    torch.testing.assert_close(made.average.module.layers[1].weight.detach(), before * 2 / 11 + after * 9 / 11)


def test_trained_batch_norms_refuse_chunks_and_cpu_processes() -> None:
    network = Network(norm=True)
    with pytest.raises(InvalidSettings, match=r"loop\.chunk_images: 1 batch norms are trained"):
        prepare_batch_norms(network.train(), Processes("cpu", "no"), chunk_images=2)
    two = SimpleNamespace(world=2, device=torch.device("cpu"))
    with pytest.raises(InvalidSettings, match="use one process"):
        prepare_batch_norms(network.train(), two, chunk_images=0)  # type: ignore[arg-type]
    prepare_batch_norms(network.eval(), two, chunk_images=2)  # type: ignore[arg-type]
