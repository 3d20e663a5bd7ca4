"""Embeds images through the production preprocessing, and evaluates them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import TooManyFailures
from training.data import Progress, Unreadable, read_items
from training.evaluation.measuring import evaluate
from training.evaluation.results import Evaluation

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbeddings:
    """Embedded items. embeddings: [n, d] float32, unit rows, of the readable items; unreadable: the others."""

    embeddings: NDArray[np.float32]
    items: tuple[Item, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def labels(self) -> list[str]:
        """Return the label of each item."""
        return [item.label for item in self.items]


def evaluate_items(
    items: Sequence[Item],
    embed: Embed,
    preprocessing: Preprocessing,
    *,
    max_unreadable: float = 0.01,
    progress: Progress,
    in_full: bool = True,
) -> Evaluation:
    """Embed the items and evaluate them, see `evaluate`.

    Raises TooManyFailures if too many are unreadable, NotEnoughEvidence if there are too few to measure anything.
    """
    found = embed_images(items, embed, preprocessing, max_unreadable=max_unreadable, progress=progress)
    return evaluate(found.embeddings, found.labels, n_unreadable=len(found.unreadable), in_full=in_full)


def embed_images(
    items: Sequence[Item],
    embed: Embed,
    preprocessing: Preprocessing,
    *,
    max_unreadable: float,
    progress: Progress,
) -> ImageEmbeddings:
    """Embed the items that can be read, in their order.

    Raises TooManyFailures as `read_items` does, and if none can be read.
    """
    parts: list[NDArray[np.float32]] = []
    kept: list[Item] = []
    unreadable: list[Unreadable] = []
    for batch in read_items(items, preprocessing, max_unreadable=max_unreadable, progress=progress):
        if batch.items:
            parts.append(embed(batch.pixels))
        kept += batch.items
        unreadable += batch.unreadable
    if not parts:
        reason = f": {unreadable[0].item.uri}: {unreadable[0].reason}" if unreadable else ""
        raise TooManyFailures(f"none of {len(items)} images can be read, at least one is needed{reason}")
    return ImageEmbeddings(np.concatenate(parts), tuple(kept), tuple(unreadable))
