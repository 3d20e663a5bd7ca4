"""Training steps on one batch, in one process or shared out among several that talk by gloo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training.losses.batches import random_batch
from training.config import BaseLossConfig, LossConfig, MarginConfig
from training.losses import TrainingLoss

N, CLASSES, DIMENSION, STEPS = 13, 4, 5, 3
_TRIPLETS = BaseLossConfig(name="TripletMarginLoss", options={"margin": 0.3}, miner="BatchHardMiner")
_PROXIES = BaseLossConfig(name="ProxyAnchorLoss", weight=0.5)
CASES: dict[str, LossConfig] = {
    "pairs": LossConfig(base=(), tcm=MarginConfig(negative_margin=0.2)),
    "chunked": LossConfig(base=(), tcm=MarginConfig(negative_margin=0.2, chunk=2)),
    "classes": LossConfig(base=(), tcm=MarginConfig(negative_margin=0.2, balance="classes", memory=20)),
    "all": LossConfig(base=(), tcm=MarginConfig(negative_margin=0.2, average="all", memory=20)),
    "base": LossConfig(base=(_TRIPLETS, _PROXIES), tcm=MarginConfig(margins="quantiles", warmup_steps=4)),
    "cohort": LossConfig(
        base=(), tcm=MarginConfig(score="cohort", margins="quantiles", cohort=40, cohort_k=3, memory=20, chunk=5)
    ),
    "recall": LossConfig(base=(BaseLossConfig(name="RecallAtKSurrogateLoss"),), tcm=MarginConfig(margins="schedule")),
}
RANDOM = LossConfig(base=(BaseLossConfig(name="MarginLoss", options={"triplets_per_anchor": 2}),))


# What every step of every case found: values, then gradients.
Found = dict[str, list[list[Tensor]]]


def run_alone() -> Found:
    return _run_all(slice(0, N))


def run_together(splits: list[list[int]], folder: Path) -> list[list[Found]]:
    """For each split of the rows among the processes, what each of them found; a split: how many rows each has.

    The case "random" is theirs only: processes draw as the step says, one process alone as it likes.
    """
    world = len(splits[0])
    multiprocessing.spawn(_work, args=(splits, folder), nprocs=world)
    return [*map(list, zip(*(torch.load(folder / f"{rank}.pt") for rank in range(world)), strict=True))]


def _work(rank: int, splits: list[list[int]], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(splits[0]))
    found = []
    for shares in splits:
        start = sum(shares[:rank])
        own = slice(start, start + shares[rank])
        found.append(_run_all(own) | {"random": _run(RANDOM, own, seed=rank)})
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _run_all(own: slice) -> Found:
    return {name: _run(config, own) for name, config in CASES.items()}


def _run(config: LossConfig, own: slice, *, seed: int = 0) -> list[list[Tensor]]:
    torch.manual_seed(0)
    loss = TrainingLoss(config, n_classes=CLASSES, dimension=DIMENSION, steps=STEPS)
    layer: Any = nn.Linear(DIMENSION, DIMENSION)
    if distributed.is_initialized():
        layer = DistributedDataParallel(layer)
    torch.manual_seed(seed)
    found = []
    for step in range(STEPS):
        pixels, labels = random_batch(step, n=N, classes=CLASSES, dimension=DIMENSION)
        layer.zero_grad()
        loss.zero_grad()
        result = loss(nn.functional.normalize(layer(pixels[own]), dim=1), labels[own], step=step)
        result.total.backward()
        margin = result.margin
        values = [result.total.detach(), result.base, margin.value.detach()]
        values += [margin.active_positives, margin.active_negatives, result.positive_margin, result.negative_margin]
        gradients = [p.grad.clone() for p in [*layer.parameters(), *loss.parameters()] if p.grad is not None]
        found.append(values + gradients)
    return found
