"""A sample of embedded icons that is part of the sources, and where all of them are kept once they are made.

The sample is stored on the axes of its own energy, rounded to whole multiples of one step (0.6 % of the largest
coordinate): similarities stay within 0.01. A gallery drawn from it mixes its rows, so no multiple is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

TRAINED, HEAD = "trained 128-d", "head 512-d"
FOLDER = Path(".bench/icons")
BUNDLE = Path("demo/bundle")  # the model of the demonstration
_SAMPLE = Path(__file__).with_name("embedded_icons.npz")
_ROWS = 1200


def kept_path(name: str, folder: Path) -> Path:
    """Return the file of the embeddings of all icons by one of the models."""
    return folder / f"{name.replace(' ', '-')}.npy"


def kept_sample(name: str) -> Vectors:
    """Return the sample [n, d] of the embeddings by one of the models, unit rows."""
    with np.load(_SAMPLE) as arrays:
        rows = arrays[name].astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def keep_sample(embeddings: Mapping[str, Vectors]) -> None:
    """Write the sample."""
    codes = {}
    for name, vectors in embeddings.items():
        rows = vectors[np.random.default_rng(0).permutation(len(vectors))[:_ROWS]].astype(np.float64)
        _, axes = np.linalg.eigh(rows.T @ rows)
        turned = rows @ axes[:, ::-1]
        codes[name] = np.rint(turned / np.abs(turned).max() * 127).astype(np.int8)
    np.savez_compressed(_SAMPLE, **codes)  # type: ignore[arg-type]  # the stubs take the keywords for its options
