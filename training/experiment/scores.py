"""The scores that an arm may use instead of the cosine, fitted on classes other than those it is measured on.

Decides how each kind is fitted and expressed as an inner product, so that all statistics work unchanged.
`retrieval.contract.score` computes the cohort scores, `searches.py` fits catalogue scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from scipy.special import logit
from sklearn.cluster import KMeans

from retrieval.consistency import Calibrator, fit_scores, fit_whitening, labelled, thresholds_at_far
from retrieval.consistency.classes import number_classes
from retrieval.contract.score import Score, cohort_score
from retrieval.errors import InvalidInput, NotEnoughEvidence

Vectors: TypeAlias = NDArray[np.float32]
Factors: TypeAlias = tuple[Vectors, Vectors]
FittedScore: TypeAlias = Callable[[Vectors], Factors]

# A score that is not an inner product of a few columns needs n columns for n images: time grows with n^3.
MAX_PAIRWISE_IMAGES = 6000
_MIN_PAIRS = 200  # a cluster with fewer positive or negative pairs uses the map fitted on all pairs
_TIE_BREAK = 0.1  # small against log odds of up to about 10; float32 still separates cosines 1e-5 apart


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """The score to which the threshold is applied.

    kind: "cosine"; "cohort", with the k nearest and weight of `retrieval.contract.score`, `whitened` or not;
    "catalogue", with the labels of the gallery over `base`, whose options are those of "cosine" or "cohort";
    "isotonic", one increasing map from cosine to match probability; "cluster_offsets", the cosine minus an offset for
    each of `clusters` that gives all of them the same FAR; "cluster_isotonic", an increasing map for each of
    `clusters`. fitted_on: the part of the data; "train" only for a cohort, which uses no labels, because the scores of
    training classes are not representative. The class terms of "catalogue" are always chosen on the part "cohort".
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["cosine", "cohort", "catalogue", "isotonic", "cluster_offsets", "cluster_isotonic"] = "cosine"
    base: Literal["cosine", "cohort"] = "cohort"
    k: Annotated[int, Field(ge=1)] = 20
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    whitened: bool = False
    fitted_on: Literal["cohort", "train"] = "cohort"
    clusters: Annotated[int, Field(ge=2)] = 10


def fit_score(config: ScoreConfig, embeddings: Vectors, labels: Sequence[str], *, far_target: float) -> FittedScore:
    """Fit a function from embeddings [n, d] to the factors (query, gallery) whose products are the scores.

    It is fitted on embeddings [m, d] float32, unit rows, with m labels, of classes that the score is not measured on;
    cohort scores do not use the labels. "isotonic" and "cluster_isotonic" give factors [n, n] and accept at most 6,000
    images.

    Raises NotEnoughEvidence if there are too few images, or too many for the kind; InvalidInput for "catalogue", which
    compares queries with a gallery, not one set with itself.

    Source: "cluster_isotonic": Salvador et al., "FairCal: Fairness Calibration for Face Verification", ICLR 2022, but
    with isotonic regression instead of beta calibration, and log odds instead of probabilities.
    """
    if config.kind == "catalogue":
        raise InvalidInput("a catalogue score compares queries with a labelled gallery, not one set with itself")
    if config.kind in ("cosine", "cohort"):
        return score_without_labels(config, embeddings).vectors
    if config.kind == "isotonic":
        calibrator = _fit_isotonic(*_pairs(embeddings, labels))
        return lambda rows: _as_factors(_rising(calibrator, _cosines(rows)))
    clusters = _Clusters.fit(embeddings, config.clusters)
    if config.kind == "cluster_offsets":
        return _fit_offsets(clusters, embeddings, labels, far_target)
    return _fit_cluster_isotonic(clusters, embeddings, labels)


def score_without_labels(config: ScoreConfig, embeddings: Vectors) -> Score:
    """Return the cosine, or the cohort score whose cohort is embeddings [m, d] float32, unit rows.

    Of a catalogue score it is the base. Raises NotEnoughEvidence if there are too few images for the whitening.
    """
    if (config.base if config.kind == "catalogue" else config.kind) == "cosine":
        return Score()
    whitening = fit_whitening(embeddings) if config.whitened else None
    return cohort_score(embeddings, k=min(config.k, len(embeddings)), weight=config.weight, whitening=whitening)


@dataclass(frozen=True, slots=True, eq=False)
class _Clusters:
    """Clusters of embeddings. centres: [c, d] float32, unit rows; a row belongs to the nearest centre."""

    centres: Vectors

    @classmethod
    def fit(cls, embeddings: Vectors, n_clusters: int) -> "_Clusters":
        if len(embeddings) < 10 * n_clusters:
            raise NotEnoughEvidence(
                f"{n_clusters} clusters need at least {10 * n_clusters} images, found {len(embeddings)}: add images "
                "or lower clusters"
            )
        means = KMeans(n_clusters, n_init=4, random_state=0).fit(embeddings).cluster_centers_
        return cls((means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32))

    def of(self, embeddings: Vectors) -> NDArray[np.int64]:
        return np.asarray((embeddings @ self.centres.T).argmax(axis=1), dtype=np.int64)


def _fit_offsets(clusters: _Clusters, embeddings: Vectors, labels: Sequence[str], far_target: float) -> FittedScore:
    """Fit the cosine minus (o(a) + o(b)) / 2; o: threshold with the target FAR for pairs with an end in a cluster."""
    (overall,) = thresholds_at_far(labelled(embeddings, labels), [far_target])
    scores, matches, first, second = _pairs_with_ends(embeddings, labels, clusters)
    offsets = np.full(len(clusters.centres), overall)
    for cluster in range(len(offsets)):
        negatives = scores[~matches & ((first == cluster) | (second == cluster))]
        if far_target * len(negatives) >= 10:
            offsets[cluster] = np.quantile(negatives, 1 - far_target)

    def factors(rows: Vectors) -> Factors:
        offset = (-0.5 * offsets[clusters.of(rows)]).astype(np.float32)[:, None]
        ones = np.ones_like(offset)
        return np.hstack([rows, offset, ones]), np.hstack([rows, ones, offset])

    return factors


def _fit_cluster_isotonic(clusters: _Clusters, embeddings: Vectors, labels: Sequence[str]) -> FittedScore:
    """Fit the mean log odds by the maps of both ends, each weighted by the number of pairs that it was fitted on."""
    scores, matches, first, second = _pairs_with_ends(embeddings, labels, clusters)
    overall = _fit_isotonic(scores, matches)
    maps, sizes = [], np.zeros(len(clusters.centres))
    for cluster in range(len(clusters.centres)):
        inside = (first == cluster) | (second == cluster)
        n_pairs, n_matches = int(inside.sum()), int(matches[inside].sum())
        sizes[cluster] = n_pairs
        enough = min(n_matches, n_pairs - n_matches) >= _MIN_PAIRS
        maps.append(_fit_isotonic(scores[inside], matches[inside]) if enough else overall)

    def factors(rows: Vectors) -> Factors:
        cosines, cluster_of = _cosines(rows), clusters.of(rows)
        mapped = np.empty(cosines.shape)  # [i, j]: by the map of row i's cluster
        for cluster in np.unique(cluster_of):
            inside = cluster_of == cluster
            mapped[inside] = _rising(maps[cluster], cosines[inside])
        weights = np.maximum(sizes[cluster_of], 1)
        shares = weights[:, None] / (weights[:, None] + weights)
        return _as_factors(shares * mapped + shares.T * mapped.T)

    return factors


def _fit_isotonic(scores: NDArray[np.float32], matches: NDArray[np.bool_]) -> Calibrator:
    # With even prior odds, the probabilities of all clusters are comparable.
    return fit_scores(scores, matches, kind="isotonic", prevalence=0.5)


def _rising(calibrator: Calibrator, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log odds of cosines, any shape; they also increase in flat parts of the map, to avoid ties."""
    log_odds = logit(calibrator.probability(cosines.ravel()).reshape(cosines.shape))
    return np.asarray(log_odds + _TIE_BREAK * cosines, dtype=np.float64)


def _pairs(embeddings: Vectors, labels: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rows, columns = np.triu_indices(len(embeddings), 1)
    _, codes = number_classes(labels)
    return _cosines(embeddings)[rows, columns], codes[rows] == codes[columns]


def _pairs_with_ends(
    embeddings: Vectors, labels: Sequence[str], clusters: _Clusters
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.triu_indices(len(embeddings), 1)
    cluster_of = clusters.of(embeddings)
    return *_pairs(embeddings, labels), cluster_of[rows], cluster_of[columns]


def _cosines(embeddings: Vectors) -> NDArray[np.float32]:
    if len(embeddings) > MAX_PAIRWISE_IMAGES:
        raise NotEnoughEvidence(
            f"this score is computed pair by pair, for at most {MAX_PAIRWISE_IMAGES} images, found {len(embeddings)}: "
            "use fewer images, or a cohort score"
        )
    return np.asarray(embeddings @ embeddings.T)


def _as_factors(scores: NDArray[np.float64]) -> Factors:
    """Express a matrix of scores as an inner product: its rows times the rows of the identity, without rounding."""
    query = scores.astype(np.float32)
    return query, np.eye(len(query), dtype=np.float32)
