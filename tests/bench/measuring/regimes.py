"""The three galleries that the exact index is measured on, and the thresholds that shares of their pairs reach.

trained   128 columns of a trained model, cosine
cohort    the same vectors, whitened, with the offset of the cohort score: 130 columns
head      512 columns of a trained head on a frozen network, cosine
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InvalidInput
from tests.bench.measuring.kept_sample import BUNDLE, FOLDER, HEAD, TRAINED, kept_path, kept_sample
from tests.bench.measuring.shown import Shown
from tests.bench.measuring.smoothed import smoothed, whitened_cohort, without_duplicates

Vectors = NDArray[np.float32]

REGIMES = ("trained", "cohort", "head")
_PAIRS, _ASKED = 20_000_000, 200  # whose scores set the thresholds
_NORMS = (0.999, 1.001)
_FEWEST = 100  # rows that a gallery can be drawn from


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the embeddings are from: the user's files, the icons of a folder, or the sample that is kept.

    folder: None for the sample. may_make: fetch, render and embed the icons if the folder has no embeddings.
    """

    embeddings: Path | None = None
    head_embeddings: Path | None = None
    folder: Path | None = FOLDER
    bundle: Path = BUNDLE
    may_make: bool = True

    def find(self, regime: str, shown: Shown) -> tuple[Vectors, str]:
        """Return embeddings for a regime, and what they are in a few words. Raises InvalidInput for a bad file."""
        given, name = (self.head_embeddings, HEAD) if regime == "head" else (self.embeddings, TRAINED)
        if given is not None:
            return _read(given), str(given)
        if self.folder is not None and self.may_make and not kept_path(name, self.folder).exists():
            _make(name, self.folder, self.bundle, shown)
        if self.folder is not None and kept_path(name, self.folder).exists():
            rows = np.asarray(np.load(kept_path(name, self.folder)), np.float32)
            return rows, f"{len(rows)} embedded icons ({name}) in {self.folder}"
        rows = kept_sample(name)
        return rows, f"the kept sample of {len(rows)} embedded icons ({name})"


def _make(name: str, folder: Path, bundle: Path, shown: Shown) -> None:
    """Embed the icons, or report why that is not possible here.

    In a process of its own: a library of training replaces methods of FAISS, which would slow the comparison.
    """
    module = ["-m", "tests.bench.measuring.embedded_icons", "--models", name]
    made = subprocess.run([sys.executable, *module, "--folder", str(folder), "--bundle", str(bundle)], check=False)
    if made.returncode:
        shown.line("the icons cannot be made here (see above), so the kept sample is used")


@dataclass(frozen=True, slots=True, eq=False)
class Regime:
    """gallery: [n, d], queries: [q, d], float32; data: what they are."""

    gallery: Vectors
    queries: Vectors
    data: str


def make_regime(name: str, base: Vectors, data: str, *, n: int, n_queries: int, shown: Shown) -> Regime:
    """Return a gallery and queries: rows of the base if it has enough, or a smoothed bootstrap of them."""
    if len(base) >= n + n_queries:
        rows = base[np.random.default_rng(7).permutation(len(base))[: n + n_queries]]
        data += ", as they are"
    else:
        rows = smoothed(base, n + n_queries, seed=7, progress=shown.watch(f"{name}: draw the gallery"))
        data += f", {n + n_queries} drawn from them (smoothed bootstrap)"
    gallery, queries = rows[:n], rows[n:]
    if name == "cohort":
        score = whitened_cohort(base)
        gallery, queries = score.gallery_vectors(gallery), score.query_vectors(queries)
    return Regime(np.ascontiguousarray(gallery), np.ascontiguousarray(queries), data)


def thresholds_of(gallery: Vectors, queries: Vectors, fars: Iterable[float]) -> dict[float, float]:
    """Return the threshold of each FAR: the score that this share of the pairs (query, vector) reaches."""
    asked = queries[:_ASKED]
    rows = gallery[np.random.default_rng(0).permutation(len(gallery))[: _PAIRS // len(asked)]]
    scores = (asked @ rows.T).ravel()
    order = {far: len(scores) - max(1, round(far * len(scores))) for far in fars}
    ranked = np.partition(scores, sorted(set(order.values())))
    return {far: float(ranked[position]) for far, position in order.items()}


def _read(path: Path) -> Vectors:
    """Return the embeddings in a file, without duplicates, scaled to length 1 if they are not."""
    rows = np.load(path, allow_pickle=False)
    if rows.ndim != 2 or rows.dtype.kind != "f" or len(rows) < _FEWEST or not np.isfinite(rows).all():
        raise InvalidInput(
            f"{path}: expected finite float embeddings [n, d] of at least {_FEWEST} rows, as np.save writes them, "
            f"found {rows.dtype} {rows.shape}"
        )
    rows = rows.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not _NORMS[0] <= norms.min() <= norms.max() <= _NORMS[1]:
        rows = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    return without_duplicates(rows)
