"""Embeddings of the icon sets by two models, made once and kept: what realistic galleries are drawn from.

    trained 128-d   the model of the demonstration, fine-tuned on emoji: a bundle, or the recipe run here
    head 512-d      a linear head on the features of the pretrained backbone, trained as the recipe trains it first

Drawings of the classes that either was trained on are left out. A sample of both, in whole numbers, lies beside this
module, for a machine that cannot fetch or has no minutes: `--keep-sample` writes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.contract.bundle import open_bundle
from retrieval.contract.preprocessing import preprocess
from retrieval.engine.encoder import Encoder
from retrieval.errors import RetrievalError
from tests.bench.measuring.emoji import emoji_run, frozen_features
from tests.bench.measuring.icon_sets import Picture, pictures
from tests.bench.measuring.kept_sample import BUNDLE, FOLDER, HEAD, TRAINED, keep_sample, kept_path
from tests.bench.measuring.shown import Shown
from tests.bench.measuring.smoothed import without_duplicates
from training.evaluation import Embed
from training.loop import embedding_function, load_finished

Vectors = NDArray[np.float32]

_BATCH = 64
_COLUMNS = 512
# Those of the recipe of the demonstration; with them, 32 directions hold half of the energy.
_STEPS, _ROWS, _TEMPERATURE, _LEARNING_RATE, _PROXY_LEARNING_RATE, _DECAY = 150, 512, 0.07, 0.005, 0.1, 0.01


def make_embeddings(name: str, folder: Path, bundle: Path, shown: Shown) -> None:
    """Write the embeddings [n, d] of all icons by TRAINED or HEAD, unit rows, into `folder`. Takes minutes.

    bundle: the model TRAINED; if there is none, the recipe of the demonstration is run. Raises Unavailable if the
    icons cannot be fetched or rendered.
    """
    drawn = pictures(folder, shown.watch("render icons"))
    made = _trained(drawn, folder, bundle, shown) if name == TRAINED else _with_head(drawn, shown)
    kept = kept_path(name, folder)
    staging = kept.with_suffix(".part.npy")
    np.save(staging, without_duplicates(made))
    staging.replace(kept)


def _trained(drawn: Sequence[Picture], folder: Path, bundle: Path, shown: Shown) -> Vectors:
    """Return the embeddings of the drawings of unseen classes by the model of the demonstration."""
    unseen = [picture for picture in drawn if not picture.label]
    progress = shown.watch("embed icons with the trained model")
    if bundle.exists():
        encoder = Encoder.open(open_bundle(bundle), threads=1)
        return _in_batches(unseen, encoder.embed_images, progress)
    shown.line("no bundle: run the recipe of the demonstration")
    finished = load_finished(emoji_run("base+tcm", folder=folder / "model"))
    embed = embedding_function(finished.embedder)
    return _in_batches(
        unseen, lambda images: embed(np.stack([preprocess(each, finished.preprocessing) for each in images])), progress
    )


def _with_head(drawn: Sequence[Picture], shown: Shown) -> Vectors:
    """Return the embeddings of the drawings of unseen classes by a linear head on the pretrained features."""
    embed, preprocessing = frozen_features()

    def of_images(images: list[bytes]) -> Vectors:
        return embed(np.stack([preprocess(each, preprocessing) for each in images]))

    features = _in_batches(drawn, of_images, shown.watch("features of the icons"))
    labels = np.array([picture.label for picture in drawn])
    known = labels != ""
    head = _train_head(features[known], np.unique(labels[known], return_inverse=True)[1], shown.watch("train the head"))
    return head(features[~known])


def _train_head(features: Vectors, classes: NDArray[np.int64], progress: Callable[[int, int], None]) -> Embed:
    """Return a linear head that a softmax over class proxies trained."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    head = torch.nn.Linear(features.shape[1], _COLUMNS, bias=False)
    proxies = torch.nn.Parameter(torch.randn(int(classes.max()) + 1, _COLUMNS))
    groups = [
        {"params": head.parameters(), "lr": _LEARNING_RATE},
        {"params": [proxies], "lr": _PROXY_LEARNING_RATE},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=_DECAY)
    unit = torch.nn.functional.normalize
    for step in range(_STEPS):
        rows = rng.permutation(len(features))[:_ROWS]
        similarities = unit(head(torch.from_numpy(features[rows]))) @ unit(proxies).T
        loss = torch.nn.functional.cross_entropy(similarities / _TEMPERATURE, torch.from_numpy(classes[rows]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not declare its types
        optimiser.step()
        progress(step + 1, _STEPS)

    def embed(given: Vectors) -> Vectors:
        with torch.inference_mode():
            made: Vectors = unit(head(torch.from_numpy(given))).numpy()
        return made

    return embed


def _in_batches(
    drawn: Sequence[Picture], embed: Callable[[list[bytes]], Vectors], progress: Callable[[int, int], None]
) -> Vectors:
    parts = []
    for start in range(0, len(drawn), _BATCH):
        parts.append(embed([picture.path.read_bytes() for picture in drawn[start : start + _BATCH]]))
        progress(min(start + _BATCH, len(drawn)), len(drawn))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where drawings and embeddings are kept")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the trained model (default demo/bundle)")
    parser.add_argument("--models", nargs="+", choices=(TRAINED, HEAD), default=(TRAINED, HEAD))
    parser.add_argument("--keep-sample", action="store_true", help="write the sample that is part of the sources")
    options = parser.parse_args()
    shown = Shown()
    try:
        for name in options.models:
            if not kept_path(name, options.folder).exists():
                make_embeddings(name, options.folder, options.bundle, shown)
    except RetrievalError as error:
        sys.exit(str(error))
    made = {name: np.load(kept_path(name, options.folder)) for name in options.models}
    if options.keep_sample:
        keep_sample(made)
    shown.line(", ".join(f"{name}: {vectors.shape}" for name, vectors in made.items()))


if __name__ == "__main__":
    main()
