"""What share of a training step waits for its images, and how much faster than the step are they made?

The demonstration's recipe (80 px, most of the backbone frozen) and the default one (224 px, all of it trained), on JPEG
files of 640 x 427 pixels, each a part of a photograph. A step is the forward and backward pass of the embedder. Images
are decoded once ("decoded") or each time ("none"), by threads of the process (0) or by worker processes.

    waits           share of the time of a loop of steps in which it waited for a batch
    images/s        of that loop
    step            images/s of steps on one batch that is there already
    loading         images/s of batches that nobody trains on

Ratios are of images/s, to the first case of a group.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing
from tests.bench.measuring.rounds import Case, Values, in_turns, option_parser, show
from training.config import TrainingConfig, load_config
from training.data import Batch, TrainingImages, batches, open_training_images
from training.model import create_embedder

N_CLASSES, N_IMAGES = 40, 8
RECIPES = {"emoji": (32, 8), "default": (8, 6)}  # classes of a batch, of 4 images each; steps of a measurement
QUICK = {"emoji": (8, 4), "default": (2, 4)}
LOADING = (("decoded", 0), ("decoded", 2), ("none", 0), ("none", 2))

Step = Callable[[Batch], None]


def main() -> None:
    options = option_parser(__doc__).parse_args()
    groups = []
    with tempfile.TemporaryDirectory() as folder:
        items = write_photographs(Path(folder) / "photographs")
        for name, (n_classes, n_steps) in (QUICK if options.quick else RECIPES).items():
            config = load_config(name)
            config = replace(config, schedule=replace(config.schedule, classes=n_classes, images=4, steps=n_steps))
            step, preprocessing = create_step(config)
            cases: dict[str, Case] = {}
            for cache, workers in LOADING:
                data = replace(config.data, cache=cache, workers=workers)  # type: ignore[arg-type]  # of LOADING
                images = open_training_images(
                    items, preprocessing, data, cache=Path(folder), progress=lambda done, total: None
                )
                cases[f"cache {cache}, workers {workers}"] = partial(
                    measure, images, replace(config, data=data), preprocessing, step
                )
            title = f"{name}: batches of {4 * n_classes} images, {preprocessing.crop} px"
            groups.append(in_turns(title, cases, n_rounds=options.rounds))
    show(__doc__, options, groups, {"images": len(items), "threads of torch": torch.get_num_threads()})


def measure(images: TrainingImages, config: TrainingConfig, preprocessing: Preprocessing, step: Step) -> Values:
    """Loading alone, then steps alone, then both; the first batch, which nothing can be done beside, counts nowhere."""
    with closing(batches(images, config, preprocessing, first=0)) as stream:
        first = next(stream)
        started, n_images = time.perf_counter(), sum(len(batch.ids) for batch in stream)
        loading = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(config.schedule.steps - 1):
        step(first)
    stepping = time.perf_counter() - started
    with closing(batches(images, config, preprocessing, first=0)) as stream:
        step(next(stream))
        waiting, total = 0.0, time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(stream, None)
            waiting += time.perf_counter() - asked
            if batch is None:
                break
            step(batch)
        total = time.perf_counter() - total
    return {
        "images/s": n_images / total,
        "waits": waiting / total,
        "step": n_images / stepping,
        "loading": n_images / loading,
    }


def create_step(config: TrainingConfig) -> tuple[Step, Preprocessing]:
    """The forward and backward pass of a recipe's embedder, and its preprocessing."""
    torch.manual_seed(0)
    embedder, preprocessing = create_embedder(config.model, config.input)
    embedder.train()

    def step(batch: Batch) -> None:
        embedder.zero_grad()
        embeddings: Tensor = embedder(batch.pixels)
        (embeddings @ embeddings.T).square().mean().backward()  # type: ignore[no-untyped-call]

    return step, preprocessing


def write_photographs(folder: Path) -> list[Item]:
    """JPEG files of the size that cameras' pictures have on the web, a folder per class."""
    photographs = load_sample_images().images
    for number in range(N_CLASSES):
        (folder / f"{number}").mkdir(parents=True)
        for variant in range(N_IMAGES):
            rng = np.random.default_rng((number, variant))
            left, top = rng.uniform(0, 0.3, 2)
            image = Image.fromarray(photographs[number % len(photographs)])
            width, height = image.size
            box = (left * width, top * height, (left + 0.7) * width, (top + 0.7) * height)
            image.resize((width, height), box=box).save(folder / f"{number}" / f"{variant}.jpg", quality=90)
    return read_manifest(str(folder))


if __name__ == "__main__":
    main()
