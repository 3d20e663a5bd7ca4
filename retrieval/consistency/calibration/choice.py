"""Choose the kind of calibrator: each is fitted on some classes and judged on others that took no part.

Folds are made of classes. Folds of pairs would put images of one class on both sides, and favour the most flexible
kind. Pairs inside and among the training classes fit, pairs inside and among the held-out classes judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.calibration.fits import fit_scores
from retrieval.consistency.calibration.kinds import CALIBRATOR_KINDS, Calibrator
from retrieval.consistency.calibration.reliability import Reliability, mean_reliability, reliability
from retrieval.consistency.pairs.batches import scored_pairs
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.errors import InvalidInput, NotEnoughEvidence

_N_FOLDS, _N_BINS = 5, 10
_MAX_PAIRS = 2_000_000


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPairs:
    """scores: [n] float32; first, second: [n] int64, class codes of both ends."""

    scores: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @property
    def matches(self) -> NDArray[np.bool_]:
        """Whether both ends are of one class: [n] bool."""
        return np.equal(self.first, self.second)

    def among(self, chosen: NDArray[np.bool_]) -> DrawnPairs:
        """Return the pairs with both ends in the chosen classes, [T] bool."""
        rows = np.flatnonzero(chosen[self.first] & chosen[self.second])
        return DrawnPairs(self.scores[rows], self.first[rows], self.second[rows])

    def weights(self, prevalence: float) -> NDArray[np.float64]:
        """Return weights that sum to 1 and give matches the stated share: [n] float64.

        Raises:
            NotEnoughEvidence: no positive or no negative pair.
        """
        matches = self.matches
        n_positives = np.count_nonzero(matches)
        n_negatives = len(matches) - n_positives
        if n_positives == 0 or n_negatives == 0:
            raise NotEnoughEvidence(
                f"a prevalence needs pairs of both kinds, found {n_positives} matches, {n_negatives} others; add "
                "images per class, or draw more pairs"
            )
        return np.where(matches, prevalence / n_positives, (1 - prevalence) / n_negatives)


@checked
def draw_pairs(vectors: LabelledVectors, *, rng: np.random.Generator, max_pairs: int) -> DrawnPairs:
    """Return all pairs up to max_pairs of each kind, else an independent random draw of about that many.

    Raises:
        InvalidInput: max_pairs below 1.
    """
    if max_pairs < 1:
        raise InvalidInput(f"max_pairs must be at least 1, found {max_pairs}")
    share_positive = min(1.0, max_pairs / max(vectors.n_positives, 1))
    share_negative = min(1.0, max_pairs / max(vectors.n_negatives, 1))
    scores, first, second = [], [], []
    for batch in scored_pairs(vectors):
        drawn = rng.random(len(batch.scores)) < np.where(batch.matches, share_positive, share_negative)
        scores.append(batch.scores[drawn])
        first.append(batch.first[drawn])
        second.append(batch.second[drawn])
    return DrawnPairs(np.concatenate(scores), np.concatenate(first), np.concatenate(second))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibratorScore:
    """How one kind of calibrator forecasts pairs of classes that it was not fitted on; lower is better.

    Figures are means over folds; ..._error: their standard errors, approximate because folds share training classes.
    """

    kind: str
    log_loss: float
    log_loss_error: float
    brier: float
    brier_error: float
    ece: float
    ece_error: float
    excess: float  # log loss less that of the best kind in the same fold, 0 for the best
    excess_error: float
    reliability: Reliability  # forecasts of all folds together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibratorComparison:
    """Kinds of calibrators, best first by mean log loss, which unlike ECE is lowest for the true probability."""

    scores: tuple[CalibratorScore, ...]
    prevalence: float
    n_folds: int
    n_classes: int

    @property
    def best(self) -> str:
        """The kind with the lowest log loss."""
        return self.scores[0].kind


@checked
def cross_validate_calibrators(
    vectors: LabelledVectors,
    *,
    prevalence: float,
    rng: np.random.Generator,
    kinds: Sequence[str] = CALIBRATOR_KINDS,
    n_folds: int = _N_FOLDS,
    max_pairs: int = _MAX_PAIRS,
    n_bins: int = _N_BINS,
) -> CalibratorComparison:
    """Compare how the kinds forecast classes that they were not fitted on, best first.

    kinds: words of CALIBRATOR_KINDS; max_pairs: pairs of each kind drawn, once for all folds. Classes are dealt into
    n_folds at random, those with two images and the others separately, so that every fold has about as many of both.

    Cost: one pass over the pairs; memory: a few max_pairs, and a tile.

    Raises:
        NotEnoughEvidence: fewer classes with two images than n_folds, or fewer than two classes in a fold.
        InvalidInput: prevalence outside (0, 1), n_folds below 2, no kind or an unknown one, max_pairs below 1.

    Source: Kull, Silva Filho, Flach, AISTATS 2017, compare by log loss and Brier score on held-out folds in this way.

    >>> from retrieval.consistency import labelled
    >>> rng = np.random.default_rng(0)
    >>> rows = np.repeat(rng.normal(size=(40, 8)), 4, axis=0) + 0.6 * rng.normal(size=(160, 8))
    >>> rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    >>> vectors = labelled(rows, [str(row // 4) for row in range(160)])
    >>> comparison = cross_validate_calibrators(vectors, prevalence=0.1, rng=rng)
    >>> sorted(score.kind for score in comparison.scores), comparison.scores[0].excess
    (['beta', 'isotonic', 'platt', 'venn-abers'], 0.0)
    """
    folds = _deal(vectors, n_folds, rng)
    pairs = draw_pairs(vectors, rng=rng, max_pairs=max_pairs)
    return _compare(pairs, folds, prevalence, kinds, n_bins)


@checked
def fit_best_calibrator(
    vectors: LabelledVectors, *, prevalence: float, rng: np.random.Generator, max_pairs: int = _MAX_PAIRS
) -> Calibrator:
    """Fit the kind that forecasts held-out classes best, on the drawn pairs of all classes.

    Cost, memory, Raises: as `cross_validate_calibrators`, whose five folds use the same pairs.
    """
    folds = _deal(vectors, _N_FOLDS, rng)
    pairs = draw_pairs(vectors, rng=rng, max_pairs=max_pairs)
    comparison = _compare(pairs, folds, prevalence, CALIBRATOR_KINDS, _N_BINS)
    return fit_scores(pairs.scores, pairs.matches, kind=comparison.best, prevalence=prevalence)


def _compare(
    pairs: DrawnPairs, fold_of_class: NDArray[np.int64], prevalence: float, kinds: Sequence[str], n_bins: int
) -> CalibratorComparison:
    if not kinds or not 0 < prevalence < 1:
        raise InvalidInput(f"expected at least one kind and prevalence in (0, 1), found {len(kinds)} and {prevalence}")
    n_folds = int(fold_of_class.max()) + 1
    judged: dict[str, list[Reliability]] = {kind: [] for kind in kinds}
    for fold in range(n_folds):
        train, test = pairs.among(fold_of_class != fold), pairs.among(fold_of_class == fold)
        weights = test.weights(prevalence)
        for kind, reports in judged.items():
            fitted = fit_scores(train.scores, train.matches, kind=kind, prevalence=prevalence)
            probabilities = fitted.probability(test.scores)
            reports.append(reliability(probabilities, test.matches, weights=weights, n_bins=n_bins))
    best = min(judged.values(), key=lambda reports: math.fsum(report.log_loss for report in reports))
    scores = sorted((_score(kind, reports, best) for kind, reports in judged.items()), key=lambda s: s.log_loss)
    return CalibratorComparison(
        scores=tuple(scores), prevalence=prevalence, n_folds=n_folds, n_classes=len(fold_of_class)
    )


def _deal(vectors: LabelledVectors, n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal the classes into folds: [T] int64, the fold of each."""
    if n_folds < 2:
        raise InvalidInput(f"n_folds must be at least 2, found {n_folds}")
    with_pair = vectors.n_images >= 2
    n_with_pair, n_classes = int(np.count_nonzero(with_pair)), len(with_pair)
    if n_with_pair < n_folds or n_classes < 2 * n_folds:
        raise NotEnoughEvidence(
            f"{n_folds} folds of classes need at least {n_folds} classes with two images or more and {2 * n_folds} "
            f"classes in all, found {n_with_pair} and {n_classes}; add classes or use fewer folds"
        )
    order = np.concatenate([rng.permutation(np.flatnonzero(with_pair)), rng.permutation(np.flatnonzero(~with_pair))])
    folds = np.empty(n_classes, dtype=np.int64)
    folds[order] = np.arange(n_classes) % n_folds
    return folds


def _score(kind: str, reports: Sequence[Reliability], best: Sequence[Reliability]) -> CalibratorScore:
    pairs = zip(reports, best, strict=True)
    figures = {
        "log_loss": [report.log_loss for report in reports],
        "brier": [report.brier for report in reports],
        "ece": [report.ece for report in reports],
        "excess": [report.log_loss - other.log_loss for report, other in pairs],
    }
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    errors = {f"{n}_error": float(np.std(values, ddof=1) / math.sqrt(len(values))) for n, values in figures.items()}
    return CalibratorScore(kind=kind, reliability=mean_reliability(reports), **means, **errors)
