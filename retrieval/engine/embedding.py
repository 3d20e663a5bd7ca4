"""Items to stored embeddings, once for each content.

Decides what makes an embedding reusable: the bundle and the bytes of the images, nothing else. Leaves reading to
`catalog.py` and the model to `encoder.py`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_json
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import ImageLimits, preprocess
from retrieval.engine.encoder import Encoder
from retrieval.engine.items import Failure, read_images
from retrieval.engine.store import Store
from retrieval.engine.store.bundles import embeddings_key
from retrieval.errors import CorruptArtifact, TooManyFailures

MAX_FAILED_SHARE = 0.01  # of the images of a job may be unreadable, unless the caller sets another limit
SHARD_ITEMS = 128  # prepared pixels of a shard are held at once: 77 MB at 224 x 224


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedShard:
    """The usable items of a shard in order, the digests of their images, the key of their embeddings, the failures."""

    key: str
    items: tuple[Item, ...]
    image_digests: tuple[str, ...]
    failures: tuple[Failure, ...]


def embed_shard(
    store: Store, encoder: Encoder, items: Sequence[Item], *, limits: ImageLimits, pool: Executor
) -> EmbeddedShard:
    """Embed and store the images of some items; embeddings that the store has intact are not made again."""
    preprocessing = encoder.bundle.preprocessing
    read, failures = read_images(
        items, lambda data: preprocess(data, preprocessing, limits=limits), limits=limits, pool=pool
    )
    digests = tuple(image.digest for image in read)
    bundle = encoder.bundle.digest
    key = embeddings_key(bundle, digest_json(digests))
    if not _is_intact(store, key):
        side = preprocessing.crop
        pixels = np.stack([i.pixels for i in read]) if read else np.empty((0, 3, side, side), dtype=np.float32)
        store.put_embeddings(bundle, digest_json(digests), encoder.embed(pixels))
    return EmbeddedShard(
        key=key, items=tuple(image.item for image in read), image_digests=digests, failures=tuple(failures)
    )


def _is_intact(store: Store, key: str) -> bool:
    try:
        store.embeddings(key)
    except CorruptArtifact:  # missing or damaged
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedItems:
    """Usable items with their embeddings [n, d] float32, and the failures."""

    items: tuple[Item, ...]
    embeddings: NDArray[np.float32]
    failures: tuple[Failure, ...]
    content_digest: str


def embed_items(
    store: Store,
    encoder: Encoder,
    items: Sequence[Item],
    *,
    limits: ImageLimits,
    pool: Executor,
    max_failed_share: float = MAX_FAILED_SHARE,
    progress: Callable[[int, int], None],
) -> EmbeddedItems:
    """The embeddings of all items, shard by shard; `progress(done, total)` is called after each.

    Raises TooManyFailures as `check_failures` does.
    """
    shards = []
    for start in range(0, len(items), SHARD_ITEMS):
        shards.append(embed_shard(store, encoder, items[start : start + SHARD_ITEMS], limits=limits, pool=pool))
        progress(min(start + SHARD_ITEMS, len(items)), len(items))
    failures = tuple(failure for shard in shards for failure in shard.failures)
    check_failures(failures, len(items), max_failed_share)
    usable = tuple(item for shard in shards for item in shard.items)
    labels_and_images = [
        (item.label, digest) for shard in shards for item, digest in zip(shard.items, shard.image_digests, strict=True)
    ]
    return EmbeddedItems(
        items=usable,
        embeddings=np.concatenate([store.embeddings(shard.key) for shard in shards]),
        failures=failures,
        content_digest=digest_json(labels_and_images),
    )


def check_failures(failures: Sequence[Failure], n_items: int, max_failed_share: float) -> None:
    """Raises TooManyFailures where more than `max_failed_share` of all items failed; one always may, all never."""
    allowed = max(1, int(max_failed_share * n_items + 1e-9))  # 0.29 * 100 is 28.999...
    if len(failures) <= allowed and len(failures) < n_items:
        return
    named = "; ".join(f"{f.item_id}: {f.reason}" for f in failures[:5])
    raise TooManyFailures(
        f"{len(failures)} of {n_items} items cannot be read, at most {allowed} are allowed. The first: {named}"
    )
