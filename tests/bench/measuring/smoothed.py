"""Galleries of any size that are distributed as real embeddings are: drawings, embedded, then a smoothed bootstrap.

The drawings are icon sets from npm, rendered as `training emoji` does, and embedded with a bundle (for example that of
`make demo`). A drawn vector is a real one that is pushed by random parts of the differences to its 12 nearest
neighbours: the similarities, their upper tail and the spectrum stay as they were. Gaussian clusters do not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import fit_whitening
from retrieval.contract.bundle import open_bundle
from retrieval.contract.score import Score, cohort_score
from retrieval.engine.encoder import Encoder
from training.emoji.dataset import PACKAGES, render_drawings
from training.emoji.drawings import fetch_packages, join_drawings, read_icon_set

Vectors = NDArray[np.float32]

FOLDER = Path(".bench/icons")
BUNDLE = Path("demo/bundle")
_SIDE, _MIN_MAKERS = 96, 2
_BATCH, _TILE = 64, 20_000
_NEIGHBOURS, _SPREAD = 12, 0.8
_COHORT, _K, _WEIGHT = 4000, 20, 0.5


def drawings(bundle: Path, *, n: int | None = None, folder: Path = FOLDER) -> Vectors:
    """Return the embeddings of n drawings (None: of all), without duplicates: [m, d] unit rows; made once and kept."""
    opened = open_bundle(bundle)
    kept = folder / f"{opened.digest.replace(':', '-')}-{n or 'all'}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    archives = fetch_packages(folder / PACKAGES)
    found = join_drawings([read_icon_set(maker, path) for maker, path in archives.items()], min_makers=_MIN_MAKERS)
    if n is not None:
        found = [found[i] for i in np.sort(np.random.default_rng(0).permutation(len(found))[:n])]
    render_drawings(found, folder, size=_SIDE, progress=lambda done, total: None)
    paths = [folder / f"images-{_SIDE}px/{drawing.label}/{drawing.maker}.png" for drawing in found]
    encoder = Encoder.open(opened, threads=1)
    parts = [
        encoder.embed_images([path.read_bytes() for path in paths[start : start + _BATCH]])
        for start in range(0, len(paths), _BATCH)
    ]
    vectors = without_duplicates(np.concatenate(parts))
    np.save(kept, vectors)
    return vectors


def made_up(n: int, d: int = 128) -> Vectors:
    """Return unit vectors around centres that lie around centres: a stand-in if there is no bundle to embed with."""
    rng = np.random.default_rng(0)
    rows = np.zeros((n, d), np.float32)
    for n_centres, spread in ((n // 200, 1.0), (n // 8, 0.5), (n, 0.25)):
        centres = rng.normal(size=(max(1, n_centres), d)).astype(np.float32)
        rows += spread * centres[np.arange(n) % len(centres)]
    return _unit(rows * np.exp(-np.arange(d, dtype=np.float32) / 24))


def without_duplicates(rows: Vectors) -> Vectors:
    """Return the rows that differ from all others in the first three decimals."""
    _, first = np.unique(np.round(rows, 3), axis=0, return_index=True)
    return rows[np.sort(first)]


def smoothed(base: Vectors, n: int, *, seed: int) -> Vectors:
    """Return n unit vectors [n, d] that are distributed as the base is."""
    rng = np.random.default_rng(seed)
    neighbours = np.concatenate(
        [
            np.argpartition(-(base[start : start + _BATCH] @ base.T), _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]
            for start in range(0, len(base), _BATCH)
        ]
    )
    out = np.empty((n, base.shape[1]), np.float32)
    for start in range(0, n, _TILE):
        rows = rng.integers(0, len(base), min(_TILE, n - start))
        pushes = (rng.normal(size=(len(rows), _NEIGHBOURS + 1)) * _SPREAD / np.sqrt(_NEIGHBOURS)).astype(np.float32)
        vectors = base[rows] * (1 - pushes.sum(axis=1, keepdims=True))
        for j in range(_NEIGHBOURS + 1):
            vectors += pushes[:, j : j + 1] * base[neighbours[rows, j]]
        out[start : start + len(rows)] = _unit(vectors)
    return out


def whitened_cohort(base: Vectors) -> Score:
    """Return a whitened cohort score whose cohort is a sample of the base."""
    rng = np.random.default_rng(1)
    sample = base[rng.permutation(len(base))[:_COHORT]]
    return cohort_score(sample[: _COHORT // 4], k=_K, weight=_WEIGHT, whitening=fit_whitening(sample))


def _unit(rows: Vectors) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
