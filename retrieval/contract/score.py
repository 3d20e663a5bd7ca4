"""What the threshold is applied to: the cosine, or the cosine corrected for how crowded each picture's place is.

Decides the score of a pair as an inner product of two vectors, so that every index and every statistic works on it
unchanged; leaves choosing between scores to `flows/calibrate.py`.

    cosine   s = <a, b>
    cohort   s - (r(a) + r(b)) / 2 = <[a, -r(a)/2, 1], [b, 1, -r(b)/2]>

where the density r(x) is the mean of the k largest similarities of x to a fixed cohort of unlabelled reference
embeddings. A picture among many look-alikes has a high r and needs a higher similarity to be accepted.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_array, digest_json, json_bytes
from retrieval.errors import CorruptArtifact, InvalidEmbeddings

ScoreDigest = NewType("ScoreDigest", str)

SCORE, COHORT = "score.json", "cohort.npy"
_FORMAT = 1
_TILE = 4096  # rows at a time against the cohort: bounds the memory of `density`
_NORM_TOLERANCE = 1e-3  # float32 rows of a normalised model are off by about 1e-6, of a reduced-precision one by 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score: `cohort` [m, d] float32 unit rows and `k` for the cohort score, neither for the cosine."""

    cohort: NDArray[np.float32] | None = None
    k: int = 0

    def __post_init__(self) -> None:
        if self.cohort is None:
            return
        check_unit_rows(self.cohort, "the cohort")
        if not 1 <= self.k <= len(self.cohort):
            raise InvalidEmbeddings(f"expected 1 <= k <= {len(self.cohort)} cohort rows, found k = {self.k}")

    @property
    def kind(self) -> str:
        """`cosine` or `cohort`."""
        return "cosine" if self.cohort is None else "cohort"

    @property
    def digest(self) -> ScoreDigest:
        """Names this score; equal for equal cohort and k."""
        return ScoreDigest(digest_json(self._description()))

    def dimension(self, d: int) -> int:
        """Columns of the score vectors for embeddings of `d` columns."""
        return d if self.cohort is None else d + 2

    def density(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """r(x) of each row: [n] float32 in [-1, 1]; zeros for the cosine. `embeddings`: [n, d] float32, unit rows."""
        n = len(embeddings)
        if self.cohort is None:
            return np.zeros(n, dtype=np.float32)
        densities = np.empty(n, dtype=np.float32)
        cut = len(self.cohort) - self.k
        for start in range(0, n, _TILE):
            similarities = embeddings[start : start + _TILE] @ self.cohort.T
            densities[start : start + _TILE] = np.partition(similarities, cut, axis=1)[:, cut:].mean(axis=1)
        return densities

    def query_vectors(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The left factors of the score: [n, dimension(d)] float32."""
        if self.cohort is None:
            return embeddings
        half = -self.density(embeddings)[:, None] / 2
        return np.hstack([embeddings, half, np.ones_like(half)])

    def gallery_vectors(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """The right factors of the score: [n, dimension(d)] float32."""
        if self.cohort is None:
            return embeddings
        half = -self.density(embeddings)[:, None] / 2
        return np.hstack([embeddings, np.ones_like(half), half])

    def files(self) -> dict[str, bytes]:
        """The artefact's files by name."""
        files = {SCORE: json_bytes(self._description())}
        if self.cohort is not None:
            files[COHORT] = _npy(self.cohort)
        return files

    def _description(self) -> dict[str, object]:
        cohort = None if self.cohort is None else digest_array(self.cohort)
        return {"format": _FORMAT, "kind": self.kind, "k": self.k, "cohort": cohort}


def open_score(directory: Path, digest: ScoreDigest) -> Score:
    """The score stored in `directory`. Raises CorruptArtifact where its content does not have this digest."""
    try:
        description = json.loads((directory / SCORE).read_bytes())
        cohort = None
        if description["kind"] == "cohort":
            cohort = np.load(directory / COHORT, allow_pickle=False)
        score = Score(cohort=cohort, k=int(description["k"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, InvalidEmbeddings) as error:
        raise CorruptArtifact(f"score {directory}: cannot be read: {error}") from error
    if score.digest != digest:
        raise CorruptArtifact(f"score {directory}: expected digest {digest}, its content has {score.digest}")
    return score


def check_unit_rows(embeddings: NDArray[np.float32], what: str) -> None:
    """Raises InvalidEmbeddings unless `embeddings` is [n, d], finite and of unit norm; the message names `what`."""
    if embeddings.ndim != 2:
        raise InvalidEmbeddings(f"{what}: expected an array [n, d], found shape {embeddings.shape}")
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = ~(np.abs(norms - 1) <= _NORM_TOLERANCE)  # written so that NaN counts as wrong
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidEmbeddings(f"{what}: expected rows of norm 1, found {norms[row]:.6g} in row {row}")


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
