"""Does the production encoder give what the trained embedder gives, whatever the size of the batch?"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.encoder import Encoder
from retrieval.errors import ValidationFailed

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Largest difference of a coordinate of a unit vector. Two correct programs differ by about 1e-6; a layer that was
# exported wrongly, or statistics frozen at the wrong time, by 1e-2 and more.
PARITY_TOLERANCE = 1e-4
_PROBE_SEED = 0


def parity_batches(encoder: Encoder) -> tuple[int, ...]:
    """The batches that are compared: one image, two, and the most that the encoder runs at once."""
    return tuple(sorted({1, 2, encoder.max_batch}))


def check_parity(encoder: Encoder, embed: Embed, pixels: NDArray[np.float32]) -> float:
    """The largest difference of a coordinate between encoder and `embed`, over the batches of `parity_batches`.

    pixels: [n, 3, crop, crop] float32, n at least the largest of them. Raises ValidationFailed where the difference
    exceeds the tolerance.
    """
    difference = max(_difference(encoder.embed(pixels[:n]), embed(pixels[:n])) for n in parity_batches(encoder))
    if not difference <= PARITY_TOLERANCE:
        raise ValidationFailed(
            f"the exported model differs from the trained one by {difference:.2g} in a coordinate, at most "
            f"{PARITY_TOLERANCE:g} is allowed: nothing was written; try another backbone, or other versions of torch"
        )
    return difference


def check_batches(encoder: Encoder, pixels: NDArray[np.float32]) -> float:
    """The largest difference of a coordinate between images embedded together and in smaller batches.

    For a model of lower precision, which differs from the trained one by intent but from itself never. pixels and
    Raises: as in `check_parity`.
    """
    together = encoder.embed(pixels)
    difference = max(_difference(encoder.embed(pixels[:n]), together[:n]) for n in parity_batches(encoder))
    if not difference <= PARITY_TOLERANCE:
        raise ValidationFailed(
            f"the model of lower precision gives an image another embedding in another batch: {difference:.2g} in a "
            f"coordinate, at most {PARITY_TOLERANCE:g} is allowed: nothing was written; use --precision fp32"
        )
    return difference


def probe_pixels(preprocessing: Preprocessing, n: int) -> NDArray[np.float32]:
    """Normalised noise of several grain sizes, [n, 3, crop, crop]: needs no data and moves every layer."""
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
