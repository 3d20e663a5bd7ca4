"""Labelled embeddings as a score sees them: as one set of images, or as searches in a labelled gallery."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Division, LabelledVectors, divide, labelled, strangers
from retrieval.contract.score import Score
from retrieval.contract.searches import search_rounds

N_ROUNDS = 5
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class LabelledEmbeddings:
    """Embeddings [n, d] float32, unit rows; n labels; the digest of the images and labels that they come from.

    `families`: n names of the units in which classes are drawn together, or None, see `labelled`; `family`: the name of
    the column that they come from. `n_rounds`: 0 to compare the images as one set, or the number of rounds in which
    half of the images of each class search the others, as in a labelled catalogue.
    """

    embeddings: NDArray[np.float32]
    labels: Sequence[str]
    data_digest: str
    families: Sequence[str] | None = None
    family: str = ""
    n_rounds: int = 0

    def scored(self, score: Score) -> LabelledVectors:
        """Return the labelled vectors whose inner products are the score.

        Raises InvalidInput: a catalogue score, and one set of images, in which no image is a gallery item only.
        """
        if self.n_rounds:
            return search_rounds(score, self.embeddings, self.labels, self._divisions(), families=self.families)
        queries, gallery = score.vectors(self.embeddings)
        return labelled(queries, self.labels, gallery=gallery, families=self.families)

    def strangers(self, score: Score) -> LabelledVectors:
        """Return searches by images whose class is absent, in the gallery of all images."""
        gallery = score.gallery(self.embeddings, self.labels)
        query = score.query_vectors(self.embeddings)
        return strangers(query, gallery.vectors, self.labels, families=self.families)

    def subset(self, rows: NDArray[np.int64]) -> "LabelledEmbeddings":
        """Return some of the images, in the given order, with the digest of all."""
        families = None if self.families is None else [self.families[row] for row in rows]
        return replace(
            self, embeddings=self.embeddings[rows], labels=[self.labels[row] for row in rows], families=families
        )

    def capped(self, max_images: int) -> "LabelledEmbeddings":
        """Return the images with at most max_images of each class, drawn with a fixed seed."""
        order = self._in_order()
        shuffled = order[np.random.default_rng(_SEED).permutation(len(order))]
        taken: dict[str, int] = {}
        rows = []
        for row in shuffled.tolist():
            label = self.labels[row]
            taken[label] = taken.get(label, 0) + 1
            if taken[label] <= max_images:
                rows.append(row)
        return self.subset(np.sort(np.array(rows, dtype=np.int64)))

    def _divisions(self) -> list[Division]:
        """Return the queries and items of each round."""
        order = self._in_order()
        drawn = divide([self.labels[row] for row in order], self.n_rounds, rng=np.random.default_rng(_SEED))
        return [Division(np.sort(order[one.queries]), np.sort(order[one.items])) for one in drawn]

    def _in_order(self) -> NDArray[np.int64]:
        """Return the rows in an order that depends on labels and embeddings only, so that draws do too: [n] int64."""
        texts = [row.tobytes() for row in self.embeddings]
        return np.array(sorted(range(len(texts)), key=lambda row: (self.labels[row], texts[row])), dtype=np.int64)
