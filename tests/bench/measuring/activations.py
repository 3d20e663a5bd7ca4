"""Emoji behind the frozen part of the network, kept, so that what follows it trains in seconds.

A recipe that freezes the first blocks computes the same activations again and again. Here they are computed once: of
each image as production sees it, and of a number of changed copies, which stand for the augmentation of a real run.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing
from tests.bench.measuring.emoji import FILES, PARTS
from tests.bench.measuring.emoji import FOLDER as EMOJI
from training.config import load_config
from training.data import normalise, read_items
from training.data.augmentation import apply_change, draw_changes
from training.model import create_embedder

FOLDER = Path(".bench/tcm")
HELD_BACK = ("calibration", "audit")  # parts of the demonstration's split 0 whose classes only the last look sees
N_TRAIN = 543  # as many as the demonstration trains on, half of all
_BATCH = 128


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """values: [n, h, w, c] float16, of the images as production sees them; labels: [n] int64.

    changed: [m, views, h, w, c] float16, on disk, of the first m images, which are those not held back.
    classes: names by label; held_back: [n_classes] bool, those for the last look only.
    """

    values: NDArray[np.float16]
    changed: NDArray[np.float16]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    held_back: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of the images of disjoint classes: [.] int64 each. test: the same for every seed."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split(activations: Activations, *, seed: int) -> Split:
    """The classes held back are the test; of the others a draw of N_TRAIN is trained on, the rest validated on."""
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~activations.held_back))
    chosen = (others[:N_TRAIN], others[N_TRAIN:], np.flatnonzero(activations.held_back))
    return Split(*(np.flatnonzero(np.isin(activations.labels, classes)) for classes in chosen))


def activations(*, side: int = 80, n_frozen: int = 11, n_views: int = 12) -> Activations:
    """Of all emoji at `side` px behind block n_frozen - 1; the first call computes them, for minutes."""
    items, held_back = pool()
    names = sorted({item.label for item in items})
    is_held_back = np.isin(names, sorted(held_back))
    labels = np.searchsorted(names, [item.label for item in items])
    paths = [FOLDER / f"{side}px-{n_frozen}-{part}.npy" for part in ("plain", f"changed-{n_views}")]
    if not all(path.exists() for path in paths):
        n_changed = int(np.count_nonzero(~is_held_back[labels]))
        _compute(items, *paths, side=side, n_frozen=n_frozen, n_views=n_views, n_changed=n_changed)
    plain, changed = (np.load(path, mmap_mode="r") for path in paths)
    return Activations(plain, changed, labels, tuple(names), is_held_back)


def pool() -> tuple[list[Item], set[str]]:
    """All emoji of the demonstration's split 0, and the labels that are held back, whose items come last."""
    data = EMOJI / "data-0"
    if not data.exists():
        command = [str(Path(sys.executable).with_name("training")), "emoji", str(data), "--seed", "0"]
        subprocess.run(command, check=True)
    parts = {part: read_manifest(f"{data}/{FILES[part]}.csv") for part in PARTS}
    return [item for part in PARTS for item in parts[part]], {item.label for p in HELD_BACK for item in parts[p]}


def _compute(
    items: list[Item], plain: Path, changed: Path, *, side: int, n_frozen: int, n_views: int, n_changed: int
) -> None:
    plain.parent.mkdir(parents=True, exist_ok=True)
    config = load_config("emoji")
    embedder, fitted = create_embedder(config.model, config.input)
    preprocessing = Preprocessing(resize=side, crop=side, mean=fitted.mean, std=fitted.std)
    squares = _squares(items, side)
    network = torch.nn.Sequential(embedder.backbone.stem, *embedder.backbone.blocks[:n_frozen]).eval()

    def forward(pixels: Tensor) -> NDArray[np.float16]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            values: NDArray[np.float16] = network(pixels).permute(0, 2, 3, 1).half().numpy()
        return values

    batches = [slice(start, start + _BATCH) for start in range(0, len(items), _BATCH)]
    values = [forward(normalise(torch.from_numpy(squares[rows]), preprocessing)) for rows in batches]
    np.save(plain, np.concatenate(values))
    shape = (n_changed, n_views, *values[0].shape[1:])
    staging = changed.with_suffix(".part")
    views = np.lib.format.open_memmap(staging, mode="w+", dtype=np.float16, shape=shape)
    for rows in (slice(start, min(start + _BATCH, n_changed)) for start in range(0, n_changed, _BATCH)):
        for view in range(n_views):
            drawn = draw_changes(config.augmentation, len(squares[rows]), np.random.default_rng((rows.start, view)))
            pairs = zip(squares[rows], drawn, strict=True)
            pixels = torch.stack([apply_change(square, change, preprocessing) for square, change in pairs])
            views[rows, view] = forward(pixels.contiguous(memory_format=torch.channels_last))
    staging.replace(changed)


def _squares(items: list[Item], side: int) -> NDArray[np.uint8]:
    """The decoded images, [n, side, side, 3]."""
    whole = Preprocessing(resize=side, crop=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batches = read_items(items, whole, max_unreadable=0, progress=lambda done, total: None)
    return np.concatenate([batch.pixels.transpose(0, 2, 3, 1).astype(np.uint8) for batch in batches])
