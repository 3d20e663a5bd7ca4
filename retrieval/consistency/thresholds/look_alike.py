"""Find groups of look-alike classes in one sample, if no families are named: classes that may have been drawn together.

Two signs are compared with what classes drawn one by one would show. *Groups*: the classes fall into groups more
clearly than points of a normal distribution with the same covariance. *Alike inside*: neighbouring classes have like
scores between their own images, as the classes of a family often do; places that are merely crowded do not show this.
No sample can prove that classes were drawn together. So the groups are a caution: `rate_variances` allows for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.vectors import Codes, LabelledVectors

Values = NDArray[np.float64]

# Levels in standard errors. Of classes drawn one by one, about 4 in 100 collections are found to be in groups.
_BOTH = 1.8  # of the two signs together,
_OF_GROUPS = 0.5  # where groups weigh half as much: without families, neighbours are known to be as random orders
_GROUPED = 4.0  # of the groups alone, if they also are
_CLEARER = 1.35  # so many times as clear as without groups
_ALIKE = 1.0  # of the neighbours, without which groups that are not clear may be crowded places
# Groups that are hard to see are not found whole, and their number is not known: then so many are taken.
_HIDDEN_GROUPS = 12
_MIN_CLASSES = 16
_NEIGHBOURS = 5
_N_SIMULATED = 20
_N_CUTS = 10
_MOST_CLASSES = 1000  # that are compared with one another; others join the nearest group


@dataclass(frozen=True, slots=True, eq=False)
class LookAlikes:
    """The group of each class, [T] int64, numbered from 0; a class that is like no other is a group of its own.

    clear: whether the groups are seen well, so that they are found nearly whole.
    """

    units: Codes
    clear: bool

    def __str__(self) -> str:
        sizes = np.bincount(self.units)
        return (
            f"{np.count_nonzero(sizes > 1)} groups of look-alike classes were found (the largest has {sizes.max()} of "
            f"{len(self.units)} classes): if classes are drawn in such groups, the rates of other classes differ more, "
            "and the intervals allow for it; name the families that your classes are drawn in, or name each class as "
            "its own family if it is drawn alone"
        )


def find_look_alikes(vectors: LabelledVectors) -> LookAlikes | None:
    """Return the groups if the classes of one set of images, of rounds or of strangers show them, else None.

    Of more than 1,000 classes, so many are drawn (always the same) and searched; each other class joins the group whose
    mean it is nearest to. Cost: some 20 products of [T, D] and [D, T], T at most 1,000 classes; memory T^2.

    Source: for the normal distribution of the same covariance, Liu, Hayes, Nobel, Marron, "Statistical significance of
    clustering for high-dimension, low-sample size data", JASA 103 (2008); Moran, "Notes on continuous stochastic
    phenomena", Biometrika 37 (1950); Stouffer's sum for the two signs together.
    """
    every, own = class_means(vectors)
    seen = np.flatnonzero(np.isfinite(every[:, 0]))
    found = _look_alikes_of(every[seen], own[seen])
    if found is None or len(seen) == len(every):
        return found
    units = found.units.max() + 1 + np.arange(len(every))  # a class without a query is like no other
    units[seen] = found.units
    return LookAlikes(np.unique(units, return_inverse=True)[1].astype(np.int64), found.clear)


def _look_alikes_of(every: Values, own: Values) -> LookAlikes | None:
    """Return the groups of classes with these means [T, D] and mean own scores [T], or None."""
    drawn = np.arange(len(every))
    if len(every) > _MOST_CLASSES:
        drawn = np.sort(np.random.default_rng(0).permutation(len(every))[:_MOST_CLASSES])
    means = every[drawn] - every[drawn].mean(axis=0)
    if len(drawn) < _MIN_CLASSES or not (cosines := _cosines(means)).any():
        return None
    clearness, n_groups = clearest_groups(cosines)
    expected, error = _without_groups(means)
    grouped = (clearness - expected) / error
    alike = moran(_neighbours(cosines), own[drawn])
    clearly = grouped > _GROUPED and clearness > _CLEARER * expected
    if not clearly:
        if alike <= _ALIKE or _OF_GROUPS * grouped + alike <= _BOTH * math.hypot(1, _OF_GROUPS):
            return None
        n_groups = min(_HIDDEN_GROUPS, len(drawn) // 2)
    (units,) = cuts(_tree(cosines), [n_groups])
    return LookAlikes(units if len(drawn) == len(every) else _nearest(every, drawn, units), clearly)


def class_means(vectors: LabelledVectors) -> tuple[Values, Values]:
    """Return the mean query vector of each class, [T, D]; and its mean score of two images, NaN without two: [T].

    Of a class without a query, which only rounds have, the mean is NaN. Of strangers, whose pairs inside a class do not
    count, they are taken all the same.
    """
    n_classes, scores = len(vectors.classes), np.zeros(len(vectors.classes))
    of_queries, n_queries = np.zeros((n_classes, vectors.query.shape[1])), np.zeros(n_classes)
    for queries, items in vectors.rounds or ((slice(None), slice(None)),):
        query, number = _class_sums(vectors.query[queries], vectors.codes[queries], n_classes)
        gallery, _ = _class_sums(vectors.gallery[items], vectors.gallery_codes[items], n_classes)
        of_queries, n_queries = of_queries + query, n_queries + number
        scores += (query * gallery).sum(axis=1)
    pairs = vectors.positives.astype(np.float64)
    asks_itself = vectors.n_positives == 0 and np.array_equal(vectors.order, vectors.gallery_order)  # strangers
    if vectors.one_set or (asks_itself and not vectors.rounds):
        with_itself = np.einsum("ij,ij->i", vectors.query, vectors.gallery, dtype=np.float64)
        scores -= np.bincount(vectors.codes, with_itself, n_classes)
        pairs = n_queries * (n_queries - 1)  # each in both directions
    own = np.divide(scores, pairs, out=np.full(n_classes, np.nan), where=pairs > 0)
    known = n_queries[:, None] > 0
    return np.divide(of_queries, n_queries[:, None], out=np.full(of_queries.shape, np.nan), where=known), own


def _class_sums(rows: NDArray[np.float32], codes: Codes, n_classes: int) -> tuple[Values, Values]:
    """Return the sums of rows of ascending codes by class, [n_classes, D], and their numbers, [n_classes]."""
    present, starts, counts = np.unique(codes, return_index=True, return_counts=True)
    sums, numbers = np.zeros((n_classes, rows.shape[1])), np.zeros(n_classes)
    if len(present):
        sums[present] = np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
        numbers[present] = counts
    return sums, numbers


def moran(neighbours: NDArray[np.int64], values: Values) -> float:
    """Return how far neighbours have like ranks of values, in standard errors of a random order of them.

    neighbours: [T, k], the nearest k of each; values: [T], NaN counts as the median. It is Moran's I of the ranks, with
    the mean and variance over all orders (Cliff, Ord, "Spatial Autocorrelation", 1973); 0 if all values are equal.
    """
    from scipy.stats import rankdata

    n, k = neighbours.shape
    median = np.nanmedian(values) if np.isfinite(values).any() else 0.0
    ranks = rankdata(np.where(np.isnan(values), median, values)) - (n + 1) / 2
    squares = float((ranks**2).sum())
    if squares == 0:
        return 0.0
    index = n * float((ranks * ranks[neighbours].sum(axis=1)).sum()) / (n * k * squares)
    own = np.repeat(np.arange(n), k)
    keys = own * n + neighbours.ravel()
    mutual = int(np.isin(neighbours.ravel() * n + own, keys).sum())  # a neighbour both ways
    s0, s1 = float(n * k), float(n * k + mutual)
    s2 = float(((k + np.bincount(neighbours.ravel(), minlength=n)) ** 2).sum())
    kurtosis = n * float((ranks**4).sum()) / squares**2
    variance = n * ((n * n - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
    variance -= kurtosis * ((n * n - n) * s1 - 2 * n * s2 + 6 * s0**2)
    variance = variance / ((n - 1) * (n - 2) * (n - 3) * s0**2) - 1 / (n - 1) ** 2
    return float((index + 1 / (n - 1)) / math.sqrt(variance))


def clearest_groups(cosines: Values) -> tuple[float, int]:
    """Return the largest mean silhouette over some cuts of the tree of average linkage, and the number of groups there.

    cosines: [T, T]; the distance is 1 - cosine. A class that is alone in its group has silhouette 0.

    Source: Rousseeuw, "Silhouettes", Journal of Computational and Applied Mathematics 20 (1987).
    """
    distances, n = _distances(cosines), len(cosines)
    tree = _tree(cosines)
    best = (-1.0, 1)
    for units in cuts(tree, np.unique(np.geomspace(4, n / 2, _N_CUTS).round().astype(int)).tolist()):
        best = max(best, (mean_silhouette(distances, units), int(units.max()) + 1))
    return best


def mean_silhouette(distances: Values, units: Codes) -> float:
    """Return the mean over classes of (other - own) / max(other, own): distances to other and own group.

    distances: [T, T] with zeros on the diagonal; units: [T], at least two groups.
    """
    sizes, order = np.bincount(units), np.argsort(units, kind="stable")
    sums = np.add.reduceat(distances[:, order], np.cumsum(sizes) - sizes, axis=1)
    rows = np.arange(len(units))
    own = sums[rows, units] / np.maximum(sizes[units] - 1, 1)
    sums /= sizes
    sums[rows, units] = np.inf
    other = sums.min(axis=1)
    found = np.where(sizes[units] > 1, (other - own) / np.maximum(np.maximum(other, own), 1e-12), 0.0)
    return float(found.mean())


def _without_groups(means: Values) -> tuple[float, float]:
    """Return mean and standard deviation of the clearness of normal points with the covariance of the means."""
    n, dimension = means.shape
    gram = means.T @ means if dimension < n else means @ means.T
    scales = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0) / n)
    rng, found = np.random.default_rng(0), []
    for _ in range(_N_SIMULATED):
        points = rng.normal(size=(n, len(scales))) * scales
        found.append(clearest_groups(_cosines(points - points.mean(axis=0)))[0])
    return float(np.mean(found)), max(float(np.std(found, ddof=1)), 1e-6)


def _cosines(rows: Values) -> Values:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(lengths, 1e-12)
    return np.asarray(unit @ unit.T, dtype=np.float64)


def _distances(cosines: Values) -> Values:
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    return np.asarray(distances, dtype=np.float64)


def _tree(cosines: Values) -> Values:
    from scipy.cluster.hierarchy import linkage  # slow to import
    from scipy.spatial.distance import squareform

    tree: Values = linkage(squareform(_distances(cosines), checks=False), "average")
    return tree


def cuts(tree: Values, numbers: Sequence[int]) -> Iterator[Codes]:
    """Yield the group of each class, [T], for each of the ascending numbers of groups, the largest first.

    tree: [T - 1, 4] of SciPy's `linkage`. `fcluster` gives the same groups, ten times slower for small trees.
    """
    n = len(tree) + 1
    units = np.arange(n, dtype=np.int64)  # each group has the number of the node that it is
    done = 0
    for n_groups in reversed(numbers):
        while done < n - n_groups:
            first, second = int(tree[done, 0]), int(tree[done, 1])
            units[(units == first) | (units == second)] = n + done
            done += 1
        yield np.unique(units, return_inverse=True)[1].astype(np.int64)


def _neighbours(cosines: Values) -> NDArray[np.int64]:
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :_NEIGHBOURS].astype(np.int64)


def _nearest(means: Values, drawn: NDArray[np.int64], units: Codes) -> Codes:
    """Return the group of every class: of those drawn as it is, else the one with the nearest mean."""
    centred = means - means[drawn].mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    centres = np.zeros((int(units.max()) + 1, means.shape[1]))
    np.add.at(centres, units, centred[drawn])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    found: Codes = np.argmax(centred @ centres.T, axis=1).astype(np.int64)
    found[drawn] = units
    return found
