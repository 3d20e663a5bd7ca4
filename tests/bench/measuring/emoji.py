"""Real embeddings to measure on: emoji by three models, made once and kept.

    frozen     EfficientNet-Lite0 as pretrained, its 1280 features as they come
    base       the demonstration's recipe with a softmax over class proxies
    base+tcm   the same plus TCM

Made with the public commands. `train` classes were trained on; `cohort`, `calibration` and `audit` ones never.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing
from training.config import BaseLossConfig, LossConfig, MarginConfig, ModelConfig, TrainingConfig, load_config, to_json
from training.data import read_items
from training.evaluation import Embed
from training.loop import embedding_function, load_finished
from training.model import create_embedder

MODELS = ("frozen", "base", "base+tcm")
PARTS = ("train", "cohort", "calibration", "audit")
FILES = {part: part for part in PARTS} | {"cohort": "validation"}  # the manifest of each part
FOLDER = Path(".bench/emoji")


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """embeddings: [n, d] float32, unit rows; labels, makers, ids: [n] str."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.str_]
    makers: NDArray[np.str_]
    ids: NDArray[np.str_]

    def of_classes(self, labels: NDArray[np.str_]) -> Embedded:
        """The rows of these classes."""
        rows = np.flatnonzero(np.isin(self.labels, labels))
        return Embedded(self.embeddings[rows], self.labels[rows], self.makers[rows], self.ids[rows])


def emoji(model: str, *, seed: int = 0, folder: Path = FOLDER) -> dict[str, Embedded]:
    """Embeddings of each part by one of MODELS; the first call trains, for minutes. `seed`: split, training."""
    kept = folder / f"{model}-{seed}.npz"
    if not kept.exists():
        _make(model, seed, folder, kept)
    with np.load(kept) as arrays:
        return {part: Embedded(*(arrays[f"{part}.{name}"] for name in Embedded.__slots__)) for part in PARTS}


def emoji_data(*, seed: int = 0, folder: Path = FOLDER) -> Path:
    """The folder with the manifest of each part; the first call renders them."""
    data = folder / f"data-{seed}"
    _training("emoji", str(data), "--seed", str(seed))
    return data


def emoji_run(model: str, *, seed: int = 0, folder: Path = FOLDER) -> Path:
    """The folder of a finished run of "base" or "base+tcm"; the first call trains, for minutes."""
    data, run, config = emoji_data(seed=seed, folder=folder), folder / f"run-{model}-{seed}", folder / f"{model}.json"
    config.write_text(json.dumps(to_json(_config(model))))
    _training(
        *("train", "--config", str(config), "--data", f"{data}/train.csv", "--resume"),
        *("--validation", f"{data}/validation.csv", "--out", str(run), "--seed", str(seed)),
    )
    return run


def _make(model: str, seed: int, folder: Path, kept: Path) -> None:
    data = emoji_data(seed=seed, folder=folder)
    if model == "frozen":
        embed, preprocessing = frozen_features()
    else:
        finished = load_finished(emoji_run(model, seed=seed, folder=folder))
        embed, preprocessing = embedding_function(finished.embedder), finished.preprocessing
    arrays: dict[str, NDArray[np.generic]] = {}
    for part in PARTS:
        batches = read_items(
            read_manifest(f"{data}/{FILES[part]}.csv"),
            preprocessing,
            max_unreadable=0,
            progress=lambda done, total: None,
        )
        rows: list[NDArray[np.float32]] = []
        items: list[Item] = []
        for batch in batches:
            rows.append(embed(batch.pixels))
            items += batch.items
        arrays |= {
            f"{part}.embeddings": np.concatenate(rows),
            f"{part}.labels": np.array([item.label for item in items]),
            f"{part}.makers": np.array([item.attributes["maker"] for item in items]),
            f"{part}.ids": np.array([item.id for item in items]),
        }
    staging = kept.with_suffix(".part.npz")
    np.savez(staging, **arrays)  # type: ignore[arg-type]  # the stubs take the keywords for its options
    staging.replace(kept)


def _config(model: str) -> TrainingConfig:
    """As the demonstration's recipe was when the tables of docs/consistency.md were made."""
    recipe = load_config("emoji")
    return replace(recipe, loss=_LOSSES[model], schedule=replace(recipe.schedule, loss_learning_rate=0.02))


_SOFTMAX = BaseLossConfig(name="NormalizedSoftmaxLoss", options={"temperature": 0.07})
_LOSSES = {
    "base": LossConfig(base=(_SOFTMAX,), tcm=MarginConfig(positive_weight=0, negative_weight=0)),
    "base+tcm": LossConfig(base=(_SOFTMAX,)),
}


def frozen_features() -> tuple[Embed, Preprocessing]:
    """The pretrained backbone as it comes, and what it wants of an image."""
    config = replace(load_config("emoji"), model=ModelConfig(dimension=1))
    embedder, preprocessing = create_embedder(config.model, config.input)
    return _features_of(embedder.eval().backbone), preprocessing


def _features_of(backbone: torch.nn.Module) -> Embed:
    def embed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = backbone(torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last))
            rows: NDArray[np.float32] = torch.nn.functional.normalize(features, dim=1).numpy()
        return rows

    return embed


def _training(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("training")), *arguments], check=True, env=os.environ)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="0 to this, exclusive")
    for seed in range(parser.parse_args().seeds):
        for model in MODELS:
            parts = emoji(model, seed=seed)
            print(model, seed, {part: embedded.embeddings.shape for part, embedded in parts.items()})
