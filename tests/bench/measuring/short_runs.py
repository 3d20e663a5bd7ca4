"""Short training runs on kept activations, in seconds instead of minutes.

head    a linear head on the features of the unchanged network, of changed views
tail    the demonstration's recipe: first the head on unchanged features, then blocks 11 and later too, on changed
        views; what differs from the real one is that blocks 5 to 10 stay frozen and views come from a stock
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tests.bench.measuring.activations import FOLDER, Activations
from tests.bench.measuring.extra_terms import Extra, ExtraTerm
from tests.bench.measuring.tail import Tail
from training.config import BaseLossConfig, ModelConfig, ScheduleConfig, load_config
from training.loop.schedule import learning_rate_factor
from training.losses import create_base_loss
from training.model import create_embedder

N_FROZEN = 11
_CHUNK = 256
_FEATURE_VIEWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A recipe; base, options: see LossConfig; the rest: see ScheduleConfig and ModelConfig.

    head_steps are those before the tail is trained; in the regime "head" there are only `steps`.
    """

    base: str = "NormalizedSoftmaxLoss"
    options: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.07})
    extra: Extra = field(default_factory=Extra)
    regime: Literal["head", "tail"] = "head"
    steps: int = 300
    head_steps: int = 150
    classes: int = 32
    images: int = 4
    learning_rate: float = 1e-3
    head_learning_rate: float = 5e-3
    loss_learning_rate: float = 2e-2
    weight_decay: float = 1e-2
    dimension: int = 128


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Embeddings of every image of the pool, [n, d] float32, unit rows; shares of pairs that the term moved last."""

    embeddings: NDArray[np.float32]
    active: tuple[float, float]


def run(setting: Setting, kept: Activations, rows: NDArray[np.int64], *, seed: int) -> Trained:
    """Train on the images in `rows` and embed all, as production sees them."""
    torch.manual_seed(seed)
    embedder, _ = create_embedder(ModelConfig(dimension=setting.dimension), load_config("emoji").input)
    tail = Tail(embedder, n_frozen=N_FROZEN)
    _, labels = np.unique(kept.labels[rows], return_inverse=True)
    n_classes = int(labels.max()) + 1
    base = BaseLossConfig(name=setting.base, options=setting.options)
    loss = create_base_loss(base, n_classes=n_classes, dimension=setting.dimension)
    members = [np.flatnonzero(labels == label) for label in range(n_classes)]
    fitting = _Fitting(setting, loss, members, torch.from_numpy(labels), np.random.default_rng(seed))
    plain, changed = features(kept)
    if setting.regime == "head":
        centre, scale = plain[rows].mean(axis=0), plain[rows].std(axis=0).mean()

        def standardised(values: NDArray[np.floating[Any]]) -> Tensor:
            return torch.from_numpy(((values - centre) / scale).astype(np.float32))

        fitting.descend(tail.head, lambda chosen, views: standardised(changed[rows[chosen], views]), changed.shape[1])
        with torch.inference_mode():
            embeddings = functional.normalize(tail.head(standardised(plain)), dim=1).numpy()
        return Trained(embeddings, fitting.active)
    fitting.descend(tail.head, lambda chosen, _: torch.from_numpy(plain[rows[chosen]]), 1, before=True)
    fitting.descend(
        tail,
        lambda chosen, views: torch.from_numpy(kept.changed[rows[chosen], views].astype(np.float32)),
        kept.changed.shape[1],
    )
    with torch.inference_mode():
        chunks = [torch.from_numpy(kept.values[part].astype(np.float32)) for part in _chunks(len(kept.values))]
        return Trained(np.concatenate([tail(chunk).numpy() for chunk in chunks]), fitting.active)


def features(kept: Activations) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Features of the unchanged network: of all images [n, 1280], of changed views [m, views, 1280]; kept on disk."""
    paths = [FOLDER / f"features-{part}.npy" for part in ("plain", "changed")]
    if not all(path.exists() for path in paths):
        tail = Tail(create_embedder(ModelConfig(), load_config("emoji").input)[0], n_frozen=N_FROZEN)

        def of(values: NDArray[np.float16]) -> NDArray[np.float32]:
            with torch.inference_mode():
                parts = [torch.from_numpy(values[part].astype(np.float32)) for part in _chunks(len(values))]
                return np.concatenate([tail.features(part).numpy() for part in parts])

        np.save(paths[0], of(kept.values))
        views = [of(kept.changed[:, view]).astype(np.float16) for view in range(_FEATURE_VIEWS)]
        np.save(paths[1], np.stack(views, axis=1))
    plain, changed = (np.load(path, mmap_mode="r") for path in paths)
    return plain, changed


class _Fitting:
    """A loss with its extra term, fitted on batches that a run draws."""

    def __init__(
        self,
        setting: Setting,
        loss: nn.Module,
        members: list[NDArray[np.int64]],
        labels: Tensor,
        rng: np.random.Generator,
    ) -> None:
        self._setting, self._loss, self._members, self._labels, self._rng = setting, loss, members, labels, rng
        self._term = ExtraTerm(setting.extra)
        self.active = (0.0, 0.0)

    def descend(self, network: nn.Module, inputs: Any, n_views: int, *, before: bool = False) -> None:
        """Take the steps; inputs: from chosen rows and their views to what the network takes."""
        setting = self._setting
        steps = setting.head_steps if before else setting.steps
        optimizer = self._optimizer(network)
        schedule = ScheduleConfig(steps=steps, warmup_steps=10)
        active: list[tuple[float, float]] = []
        for step in range(steps):
            chosen = self._draw()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (1.0 if before else learning_rate_factor(step, schedule))
            outputs = network(inputs(chosen, self._rng.integers(n_views, size=len(chosen))))
            embeddings, labels = functional.normalize(outputs, dim=1), self._labels[chosen]
            done = 0.0 if before else step / steps
            total = self._loss(embeddings, labels) + self._term(embeddings, labels, done=done)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            active.append(self._term.active)
        lately = np.mean(active[-max(1, steps // 10) :], axis=0)
        self.active = (float(lately[0]), float(lately[1]))

    def _draw(self) -> NDArray[np.int64]:
        """Rows of a batch; a class with fewer images gives some of them more than once."""
        members, n, rng = self._members, self._setting.images, self._rng
        classes = rng.choice(len(members), size=min(self._setting.classes, len(members)), replace=False)
        return np.concatenate([rng.choice(members[row], size=n, replace=len(members[row]) < n) for row in classes])

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        setting = self._setting
        head = network.head if isinstance(network, Tail) else network
        of_head = list(head.parameters())
        inside = {id(parameter) for parameter in of_head}
        groups = [
            {"params": [p for p in network.parameters() if id(p) not in inside], "peak": setting.learning_rate},
            {"params": of_head, "peak": setting.head_learning_rate},
            {"params": list(self._loss.parameters()), "peak": setting.loss_learning_rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=setting.weight_decay)


def _chunks(n: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(n), -(-n // _CHUNK))
