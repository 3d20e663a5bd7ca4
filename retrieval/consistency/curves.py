"""Operating curves: how many pairs of each class are accepted at each threshold.

They hold counts, not rates, so that shards of one set of images merge by addition. `opis` and `thresholds` decide what
the curves mean for consistency and for a threshold.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs import tiles
from retrieval.consistency.pairs.counting import count_tiles, total_of_tiles
from retrieval.consistency.pairs.selection import one_pass_grid
from retrieval.consistency.pairs.vectors import LabelledVectors, Progress, VectorsOrPair, as_labelled, check_positives
from retrieval.errors import InvalidInput

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OperatingCurves:
    """Accepted pairs per class and threshold, for T classes and m thresholds.

    Positives of a class are the unordered pairs inside it, negatives the pairs with exactly one end in it. Two classes
    count a negative pair, but the pooled rates are those of unordered pairs.
    """

    classes: tuple[str, ...]  # sorted names
    n_images: Counts  # [T]
    thresholds: Rates  # [m], strictly ascending
    positives_accepted: Counts  # [T, m]
    negatives_accepted: Counts  # [T, m]
    positives: Counts  # [T], pairs in all
    negatives: Counts  # [T]
    cosine: bool  # scores are cosines of unit vectors, so that a distance exists
    tile: int | None = None  # of a shard, rows and columns of the tiles that its pairs were cut into

    @property
    def with_positives(self) -> NDArray[np.bool_]:
        """Which classes have a positive pair: [T] bool; the other classes are left out of every TAR."""
        return self.positives > 0

    @property
    def n_excluded(self) -> int:
        """Number of classes without a positive pair."""
        return int(np.count_nonzero(~self.with_positives))

    @property
    def tar(self) -> Rates:
        """Share of positives accepted: [classes with a positive pair, m] float64, in the order of `classes`."""
        rows = self.with_positives
        return _share(self.positives_accepted[rows], self.positives[rows, None])

    @property
    def far(self) -> Rates:
        """Share of negatives accepted: [T, m] float64."""
        return _share(self.negatives_accepted, self.negatives[:, None])

    @property
    def pooled_tar(self) -> Rates:
        """Share of all positive pairs accepted: [m] float64."""
        return _share(self.positives_accepted.sum(axis=0), self.positives.sum())

    @property
    def pooled_far(self) -> Rates:
        """Share of all negative pairs accepted: [m] float64."""
        return _share(self.negatives_accepted.sum(axis=0), self.negatives.sum())

    @property
    def mean_tar(self) -> Rates:
        """Class mean of TAR: [m] float64."""
        return np.asarray(self.tar.mean(axis=0), dtype=np.float64)

    @property
    def mean_far(self) -> Rates:
        """Class mean of FAR: [m] float64."""
        return np.asarray(self.far.mean(axis=0), dtype=np.float64)

    @property
    def n_negative_pairs(self) -> int:
        """Number of unordered negative pairs."""
        return int(self.negatives.sum()) // 2

    @property
    def repeats(self) -> float:
        """How often a negative pair of two images counts on average, at least 1: more only in rounds of searches.

        There two classes of one image never meet and do not count.
        """
        n, counted = self.n_images, int(self.negatives.sum())
        once = int(n.sum() ** 2 - (n**2).sum())
        if counted == once:
            return 1.0
        n_single = int(np.count_nonzero(n == 1))
        return max(counted / max(once - n_single * (n_single - 1), 1), 1.0)

    def __add__(self, other: OperatingCurves) -> OperatingCurves:
        """Return the curves of two shards of the same images, see `operating_curves`.

        Raises:
            InvalidInput: the two do not share classes, images, thresholds and kind of score, or their pairs were cut
                into tiles of another size, so that some would count twice and others never.
        """
        if self.tile != other.tile:
            raise InvalidInput(
                f"shards add up only if all were cut into tiles of one size, found {self.tile} and {other.tile}; "
                "compute all of them with one version of this package"
            )
        same = (
            self.classes == other.classes
            and self.cosine == other.cosine
            and np.array_equal(self.n_images, other.n_images)
            and np.array_equal(self.thresholds, other.thresholds)
        )
        if not same:
            raise InvalidInput(
                "curves merge only when classes, images, thresholds and score are the same; these differ"
            )
        return replace(
            self,
            positives_accepted=self.positives_accepted + other.positives_accepted,
            negatives_accepted=self.negatives_accepted + other.negatives_accepted,
            positives=self.positives + other.positives,
            negatives=self.negatives + other.negatives,
        )

    @checked
    def at(self, threshold: float) -> OperatingCurves:
        """Return the curves at one threshold of the grid (m = 1).

        Raises:
            InvalidInput: the threshold is not one of the grid; there is no guessing between two thresholds.
        """
        column = int(np.searchsorted(self.thresholds, threshold))
        if column == len(self.thresholds) or self.thresholds[column] != threshold:
            raise InvalidInput(
                f"threshold {threshold!r} is not among the {len(self.thresholds)} thresholds of these curves; "
                "compute the curves with it included"
            )
        one = slice(column, column + 1)
        return replace(
            self,
            thresholds=self.thresholds[one],
            positives_accepted=self.positives_accepted[:, one],
            negatives_accepted=self.negatives_accepted[:, one],
        )

    def to_table(self) -> dict[str, NDArray[np.generic]]:
        """Return long columns of T * m rows, class by class, thresholds ascending.

        class_name: str; n_images, positives, negatives, positives_accepted, negatives_accepted: int64;
        threshold: float64; cosine: bool; of a shard also tile: int64.
        """
        m = len(self.thresholds)
        return {
            "class_name": np.repeat(np.array(self.classes, dtype=object), m),
            "n_images": np.repeat(self.n_images, m),
            "positives": np.repeat(self.positives, m),
            "negatives": np.repeat(self.negatives, m),
            "threshold": np.tile(self.thresholds, len(self.classes)),
            "positives_accepted": self.positives_accepted.ravel(),
            "negatives_accepted": self.negatives_accepted.ravel(),
            "cosine": np.full(m * len(self.classes), self.cosine),
        } | ({} if self.tile is None else {"tile": np.full(m * len(self.classes), self.tile)})

    def to_parquet(self) -> bytes:
        """Return a Parquet file of `to_table`, for keeping or for merging on another machine."""
        import pyarrow as pa
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = {name: pa.array(column) for name, column in self.to_table().items()}
        pyarrow.parquet.write_table(pa.table(table), buffer)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> OperatingCurves:
        """Undo `to_parquet`.

        Raises:
            InvalidInput: the bytes are no Parquet file, or not of curves.
        """
        import pyarrow as pa
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(io.BytesIO(data))
            return cls.from_table({name: table[name].to_numpy() for name in table.column_names})
        except (pa.ArrowException, KeyError) as error:
            raise InvalidInput(f"expected a Parquet file of operating curves: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, NDArray[np.generic]]) -> OperatingCurves:
        """Undo `to_table`.

        Raises:
            InvalidInput: the rows are not every class with every threshold in the order `to_table` writes.
        """
        thresholds = np.unique(table["threshold"].astype(np.float64))
        m = len(thresholds)
        names = table["class_name"][::m] if m else table["class_name"]
        if not np.array_equal(table["threshold"], np.tile(thresholds, len(names))):
            raise InvalidInput(
                "the table does not hold every class at every threshold, in order; it was cut or re-sorted"
            )

        def column(name: str) -> Counts:
            return table[name].astype(np.int64).reshape(len(names), m)

        return cls(
            classes=tuple(str(name) for name in names),
            n_images=column("n_images")[:, 0],
            thresholds=thresholds,
            positives_accepted=column("positives_accepted"),
            negatives_accepted=column("negatives_accepted"),
            positives=column("positives")[:, 0],
            negatives=column("negatives")[:, 0],
            cosine=bool(table["cosine"][0]),
            tile=int(table["tile"][0]) if "tile" in table else None,
        )


@checked
def operating_curves(
    vectors: VectorsOrPair,
    *,
    thresholds: Rates | Sequence[float] | None = None,
    include: Sequence[float] = (),
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    progress: Progress | None = None,
) -> OperatingCurves:
    """Return exact counts of accepted pairs (score >= threshold, float32 products) per class and threshold.

    vectors: labelled vectors, or a plain (embeddings, labels); thresholds: any order, duplicates dropped; if omitted,
    they are chosen to cover the band of OPIS and everything above it, from all pairs of up to 6,000 images, otherwise
    from a sample; the counts are those of all pairs in either case. include: further thresholds to count. shard (index,
    count) visits a part of the pairs: the sum over all indices equals the whole bit for bit, and shards of versions
    that cut the pairs otherwise are refused when they are added. threads: None for all
    cores.

    Cost: n^2 / 2 products of D (n * g for two sets); memory: a [T, m] of counts and a few tiles for each thread.

    Raises:
        InvalidInput: thresholds empty or not finite, or a shard without explicit thresholds.
        NotEnoughEvidence: fewer than two classes, or no pair inside a class.
        InvalidEmbeddings: see `labelled`.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> curves = operating_curves((rows, ["a", "a", "b"]), thresholds=[0.5, 0.7])
    >>> curves.pooled_tar, curves.pooled_far  # one positive at 0.8, negatives at 0 and 0.6
    (array([1., 1.]), array([0.5, 0. ]))
    """
    vectors = as_labelled(vectors)
    check_positives(vectors)
    if thresholds is not None:
        grid = checked_grid(thresholds)
    elif shard == (0, 1):
        grid = one_pass_grid(vectors, far_low=1e-2, far_high=1e-1, n_band=1000, threads=threads)
    else:
        raise InvalidInput("shards must share thresholds; compute them once with threshold_grid and pass them")
    if len(include):
        grid = checked_grid(np.append(grid, include))
    return count_accepted(vectors, grid, shard=shard, threads=threads, progress=progress)


def checked_grid(thresholds: Rates | Sequence[float]) -> Rates:
    """Return thresholds sorted, without duplicates; raise InvalidInput if there is none or one is not finite."""
    grid = np.unique(np.asarray(thresholds, dtype=np.float64))
    if grid.size == 0 or not np.isfinite(grid).all():
        raise InvalidInput("expected at least one threshold, all finite")
    return grid


def count_accepted(
    vectors: LabelledVectors,
    thresholds: Rates,
    *,
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    progress: Progress | None = None,
) -> OperatingCurves:
    """Return the curves at strictly ascending thresholds; unlike `operating_curves` also without any positive pair."""
    visited = tiles.tiles_of(vectors, shard)
    accepted = count_tiles(vectors, thresholds, visited, threads=threads, progress=progress)
    whole = shard == (0, 1)
    positives, negatives = (vectors.positives, vectors.negatives) if whole else total_of_tiles(vectors, visited)
    return OperatingCurves(
        classes=vectors.classes,
        n_images=vectors.n_images,
        thresholds=thresholds,
        positives_accepted=accepted[0],
        negatives_accepted=accepted[1],
        positives=positives,
        negatives=negatives,
        cosine=vectors.cosine,
        tile=None if whole else tiles.TILE,
    )


def _share(accepted: Counts, total: Counts) -> Rates:
    """Return accepted / total, 0 if there are no pairs."""
    return np.asarray(accepted / np.maximum(total, 1), dtype=np.float64)
