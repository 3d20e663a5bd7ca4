"""What each of two processes does in the tests: train, agree on failures, and notice that the other one is gone."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from retrieval.contract.manifest import read_manifest
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import InvalidInput, RetrievalError, TooManyFailures
from training import cli
from training.config import DataConfig
from training.data import open_images_together
from training.loop.divergence import Guard, TakenStep
from training.loop.processes import Processes
from training.loop.values import StepValues


def main(folder: Path, second_port: str, *arguments: str) -> None:
    """Run the command line with the arguments; then write down, a file for each process, what it saw."""
    sys.argv = ["training", *arguments]
    try:
        cli.main()
    except SystemExit as left:
        if left.code:
            raise
    os.environ["MASTER_PORT"] = second_port
    processes = Processes("cpu", "no")
    found = {
        "world": [processes.rank, processes.world, processes.is_main],
        "gathered": processes.gather(torch.tensor([[float(processes.rank)]])).flatten().tolist(),
        "collected": processes.collect([f"of {processes.rank}"]),
        "told": processes.on_main(lambda: f"by {processes.rank}"),
        "mean": averaged(processes),
        "images": opened(processes, folder),
    }

    def refuse() -> None:
        raise InvalidInput(f"refused by {processes.rank}")

    def fail() -> None:
        raise ValueError("a bug")

    everywhere, main = processes.on_each_machine, processes.on_main
    for name, on, work in (("refusal", main, refuse), ("failure", main, fail), ("machine", everywhere, refuse)):
        try:
            on(work)
        except (RetrievalError, ValueError) as error:
            found[name] = [type(error).__name__, str(error)]
    found["divergence"] = diverge(processes, folder)
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))
    if processes.rank == 1:
        os._exit(7)  # without a word, as one that the system ends for want of memory
    with processes.together():
        processes.gather(torch.zeros(1, 1))


def opened(processes: Processes, folder: Path) -> dict[str, Any]:
    """What each sees of the images that both train on, and how often it decoded; both meet more damage than allowed."""
    items = read_manifest(str(folder / "train"))
    preprocessing = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    read: list[int] = []
    options: dict[str, Any] = {"cache": folder, "progress": lambda done, total: read.append(done)}
    together = processes.on_each_machine
    images = open_images_together(items, preprocessing, DataConfig(), on_each_machine=together, **options)
    assert images.pixels is not None
    found = {"n_read": len(read), "sum": int(images.pixels.sum()), "digest": images.digest}
    lost = [replace(items[0], uri="file:///nowhere/lost.png"), *items[1:]]
    try:
        open_images_together(lost, preprocessing, DataConfig(), on_each_machine=together, **options)
    except TooManyFailures as error:
        found["failure"] = str(error)[:30]
    return found


def averaged(processes: Processes) -> list[float]:
    module = torch.nn.Linear(1, 1)
    if processes.is_main:
        module.weight.grad = torch.full((1, 1), 3.0)
        module.bias.grad = torch.tensor([1.0])
    else:
        module.weight.grad = torch.full((1, 1), 5.0)
    processes.average_gradients(module)
    return [p.grad.item() for p in module.parameters() if p.grad is not None]


def diverge(processes: Processes, folder: Path) -> str:
    """Only the second process meets a loss that is no number."""
    guard = Guard(processes, folder, gradient_may_overflow=False)
    values = {f.name: torch.tensor(1.0) for f in fields(StepValues)}
    if processes.rank == 1:
        values["loss"] = torch.tensor(float("nan"))
    try:
        guard.check(
            TakenStep(step=9, learning_rates={}, ids=[f"item of {processes.rank}"]), StepValues(**values), now=True
        )
    except RetrievalError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
