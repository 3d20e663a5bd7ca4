"""Embeds the images of items and stores the embeddings, once for each content.

An embedding is reused if the bundle and the bytes of the images are the same; ids, labels and uris may differ.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import digest_bytes, digest_json
from retrieval.contract.limits import ImageLimits
from retrieval.contract.manifest import Item
from retrieval.engine.decoding.lanes import Decoders
from retrieval.engine.encoder import Encoder
from retrieval.engine.images import Failure, read_bytes
from retrieval.engine.store import Store
from retrieval.engine.store.bundles import embeddings_key
from retrieval.errors import CorruptArtifact, InvalidInput, TooManyFailures

MAX_FAILED_SHARE = 0.01  # share of the images of a job that may be unreadable, unless the caller sets another limit
SHARD_ITEMS = 128  # the prepared pixels of a shard are in memory at once: 77 MB at 224 x 224


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEmbedder:
    """The parts that embed images: the encoder of each bundle, the largest image, threads that read, decoders."""

    encoder_of: Callable[[BundleDigest], Encoder]
    limits: ImageLimits
    pool: Executor
    decoders: Decoders = field(default_factory=Decoders)


@dataclass(frozen=True, slots=True)
class ReadImage:
    """A usable image: the row of its item, the digest of its bytes, its prepared pixels [3, h, w] float32."""

    row: int
    digest: str
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedShard:
    """The result of a shard: the key of its embeddings, the rows of its usable items, their images' digests, failures.

    `rows` are positions among the items of the shard, ascending; embedding i belongs to item rows[i].
    """

    key: str
    rows: tuple[int, ...]
    image_digests: tuple[str, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedItems:
    """Usable items with their embeddings [n, d] float32, the failures, and a digest of labels and images."""

    items: tuple[Item, ...]
    embeddings: NDArray[np.float32]
    failures: tuple[Failure, ...]
    content_digest: str


def read_images(
    items: Sequence[Item],
    prepare: Callable[[bytes], NDArray[np.float32]],
    *,
    limits: ImageLimits,
    pool: Executor,
) -> tuple[list[ReadImage], list[Failure]]:
    """Read and prepare the images of all items; return the usable ones and the failures, in the order of the items."""

    def read(row: int, item: Item) -> ReadImage | Failure:
        try:
            data = read_bytes(item.uri, limits)
            return ReadImage(row, digest_bytes(data), prepare(data))
        except InvalidInput as error:
            return Failure(item.id, str(error))

    results = list(pool.map(read, range(len(items)), items))
    return [r for r in results if isinstance(r, ReadImage)], [r for r in results if isinstance(r, Failure)]


def embed_shard(store: Store, embedder: ImageEmbedder, bundle: BundleDigest, items: Sequence[Item]) -> EmbeddedShard:
    """Embed the images of some items and store the embeddings, unless the store already has them intact."""
    encoder, limits = embedder.encoder_of(bundle), embedder.limits
    preprocessing = encoder.bundle.preprocessing
    read, failures = read_images(
        items, lambda data: embedder.decoders.prepare(data, preprocessing, limits), limits=limits, pool=embedder.pool
    )
    digests = tuple(image.digest for image in read)
    key = embeddings_key(bundle, digest_json(digests))
    if not _is_intact(store, key):
        side = preprocessing.crop
        pixels = np.stack([i.pixels for i in read]) if read else np.empty((0, 3, side, side), dtype=np.float32)
        store.put_embeddings(bundle, digest_json(digests), encoder.embed(pixels))
    rows = tuple(image.row for image in read)
    return EmbeddedShard(key=key, rows=rows, image_digests=digests, failures=tuple(failures))


def embed_items(
    store: Store,
    embedder: ImageEmbedder,
    bundle: BundleDigest,
    items: Sequence[Item],
    *,
    progress: Callable[[int, int], None],
    max_failed_share: float = MAX_FAILED_SHARE,
) -> EmbeddedItems:
    """Embed all items, shard by shard, and call `progress(done, total)` after each shard.

    Raises TooManyFailures as `check_failures` does.
    """
    shards: list[EmbeddedShard] = []
    parts: list[NDArray[np.float32]] = []
    usable: list[Item] = []
    for start in range(0, len(items), SHARD_ITEMS):
        part = items[start : start + SHARD_ITEMS]
        shard = embed_shard(store, embedder, bundle, part)
        try:
            parts.append(store.embeddings(shard.key))
        except CorruptArtifact:  # pruned meanwhile: no snapshot uses them
            shard = embed_shard(store, embedder, bundle, part)
            parts.append(store.embeddings(shard.key))
        shards.append(shard)
        usable.extend(part[row] for row in shards[-1].rows)
        progress(min(start + SHARD_ITEMS, len(items)), len(items))
    failures = tuple(failure for shard in shards for failure in shard.failures)
    check_failures(failures, len(items), max_failed_share)
    digests = [digest for shard in shards for digest in shard.image_digests]
    return EmbeddedItems(
        items=tuple(usable),
        embeddings=np.concatenate(parts),
        failures=failures,
        content_digest=digest_json([(item.label, digest) for item, digest in zip(usable, digests, strict=True)]),
    )


def check_failures(failures: Sequence[Failure], n_items: int, max_failed_share: float) -> None:
    """Raise TooManyFailures if too many items failed: more than one and more than `max_failed_share`, or all."""
    allowed = max(1, int(max_failed_share * n_items + 1e-9))  # 0.29 * 100 is 28.999...
    if len(failures) <= allowed and len(failures) < n_items:
        return
    named = "; ".join(f"{f.item_id}: {f.reason}" for f in failures[:5])
    raise TooManyFailures(
        f"{len(failures)} of {n_items} items cannot be read, at most {allowed} are allowed. The first: {named}"
    )


def _is_intact(store: Store, key: str) -> bool:
    try:
        store.embeddings(key)
    except CorruptArtifact:  # missing or damaged
        return False
    return True
