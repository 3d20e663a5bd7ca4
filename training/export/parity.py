"""Checks that the production encoder reproduces the trained embedder, for all sizes of a batch."""

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.encoder import Encoder
from retrieval.errors import ValidationFailed
from training.evaluation import Embed

# Largest difference of a coordinate of a unit vector. Two correct programs differ by about 1e-6; a wrongly exported
# layer, or statistics frozen at the wrong time, differ by 1e-2 or more.
PARITY_TOLERANCE = 1e-4
_PROBE_SEED = 0


def parity_batches(encoder: Encoder) -> tuple[int, ...]:
    """Return the batch sizes that are compared: one, two, and the largest of the encoder."""
    return tuple(sorted({1, 2, encoder.max_batch}))


def check_parity(encoder: Encoder, embed: Embed, pixels: NDArray[np.float32]) -> float:
    """Return the largest difference of a coordinate between encoder and `embed`, over the batches of `parity_batches`.

    pixels: [n, 3, crop, crop] float32, n at least the largest batch. Raises ValidationFailed if the difference exceeds
    the tolerance.
    """
    difference = max(_difference(encoder.embed(pixels[:n]), embed(pixels[:n])) for n in parity_batches(encoder))
    if not difference <= PARITY_TOLERANCE:
        raise ValidationFailed(
            f"the exported model differs from the trained one by {difference:.2g} in a coordinate, at most "
            f"{PARITY_TOLERANCE:g} is allowed: nothing was written; try another backbone, or other versions of torch"
        )
    return difference


def check_batches(encoder: Encoder, pixels: NDArray[np.float32]) -> float:
    """Return the largest difference of a coordinate between images embedded together and in smaller batches.

    For a model of lower precision, which may differ from the trained one, but not between batches. pixels and Raises:
    as in `check_parity`.
    """
    together = encoder.embed(pixels)
    difference = max(_difference(encoder.embed(pixels[:n]), together[:n]) for n in parity_batches(encoder))
    if not difference <= PARITY_TOLERANCE:
        raise ValidationFailed(
            f"the model of lower precision gives an image other embeddings in another batch: {difference:.2g} in "
            f"a coordinate, at most {PARITY_TOLERANCE:g} is allowed: nothing was written; use --precision fp32"
        )
    return difference


def probe_pixels(preprocessing: Preprocessing, n: int) -> NDArray[np.float32]:
    """Make normalised noise of several grain sizes, [n, 3, crop, crop]: needs no data and excites every layer."""
    rng = np.random.default_rng(_PROBE_SEED)
    side = preprocessing.crop
    images = np.empty((n, 3, side, side), dtype=np.float32)
    for row in range(n):
        cells = min(side, 2 ** (row + 1))
        grain = -(-side // cells)
        coarse = rng.uniform(0, 255, size=(3, cells, cells))
        images[row] = coarse.repeat(grain, axis=1).repeat(grain, axis=2)[:, :side, :side]
    mean, std = (np.asarray(c, dtype=np.float32).reshape(3, 1, 1) for c in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max())
