"""Labelled embeddings as a score sees them: as one set of images, or as searches in a labelled gallery."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Division, LabelledVectors, SearchRound, divide, in_rounds, labelled, strangers
from retrieval.contract.score import Score

N_ROUNDS = 5
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class LabelledEmbeddings:
    """Embeddings [n, d] float32, unit rows; n labels; the digest of the images and labels that they come from.

    `families`: n names of the units in which classes are drawn together, or None, see `labelled`; `family`: the name of
    the column that they come from.
    """

    embeddings: NDArray[np.float32]
    labels: Sequence[str]
    data_digest: str
    families: Sequence[str] | None = None
    family: str = ""

    def scored(self, score: Score) -> LabelledVectors:
        """Return the labelled vectors whose inner products are the score. Raises InvalidInput: a catalogue score."""
        queries, gallery = score.vectors(self.embeddings)
        return labelled(queries, self.labels, gallery=gallery, families=self.families)

    def in_rounds(self, score: Score, *, n_rounds: int = N_ROUNDS) -> LabelledVectors:
        """Return searches in a labelled gallery: in each round, half of the images of each class are queries.

        The densities of the queries are computed once. Raises as `consistency.in_rounds`.
        """
        query = score.query_vectors(self.embeddings)
        rounds = []
        for division in self._divisions(n_rounds):
            items = division.items
            gallery = score.gallery(self.embeddings[items], [self.labels[row] for row in items])
            rounds.append(SearchRound(division, query[division.queries], gallery.vectors))
        return in_rounds(self.labels, rounds, families=self.families)

    def strangers(self, score: Score) -> LabelledVectors:
        """Return searches by images whose class is absent, in the gallery of all images."""
        gallery = score.gallery(self.embeddings, self.labels)
        query = score.query_vectors(self.embeddings)
        return strangers(query, gallery.vectors, self.labels, families=self.families)

    def _divisions(self, n_rounds: int) -> list[Division]:
        """Return the queries and items of each round, which do not depend on the order of the images."""
        texts = [row.tobytes() for row in self.embeddings]
        order = np.array(sorted(range(len(texts)), key=lambda row: (self.labels[row], texts[row])), dtype=np.int64)
        drawn = divide([self.labels[row] for row in order], n_rounds, rng=np.random.default_rng(_SEED))
        return [Division(np.sort(order[one.queries]), np.sort(order[one.items])) for one in drawn]

    def subset(self, rows: NDArray[np.int64]) -> "LabelledEmbeddings":
        """Return some of the images, in the given order, with the digest of all."""
        families = None if self.families is None else [self.families[row] for row in rows]
        return LabelledEmbeddings(
            self.embeddings[rows], [self.labels[row] for row in rows], self.data_digest, families, self.family
        )
