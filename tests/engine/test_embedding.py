"""Images are embedded once for each content; a few bad ones are named, many stop the job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import preprocess
from retrieval.engine.embedding import SHARD_ITEMS, EmbeddedItems, check_failures, embed_items, embed_shard, read_images
from retrieval.engine.encoder import Encoder
from retrieval.engine.images import Failure
from retrieval.engine.store import Store
from retrieval.errors import TooManyFailures
from tests.hostile import many_scans
from tests.pictures import class_picture, encoded, truncated_jpeg, write_class_folders
from tests.stores import embedder_of
from tests.tiny_bundle import PREPROCESSING

Embed = Callable[..., EmbeddedItems]


class CountingEncoder(Encoder):
    """An encoder that counts the images it is given."""

    n_embedded = 0

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.n_embedded += len(pixels)
        return super().embed(pixels)


@pytest.fixture
def encoder(tiny_encoder: Encoder) -> CountingEncoder:
    return CountingEncoder(tiny_encoder.bundle, tiny_encoder._session, max_batch=16)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Ten pictures."""
    return read_manifest(str(write_class_folders(tmp_path / "images", n_classes=5, n_images=2)))


@pytest.fixture
def embed(store: Store, encoder: CountingEncoder, pool: Executor) -> Embed:
    def run(items: list[Item], *, max_failed_share: float = 0.01) -> EmbeddedItems:
        return embed_items(
            store,
            embedder_of(encoder, pool),
            encoder.bundle.digest,
            items,
            max_failed_share=max_failed_share,
            progress=lambda done, total: None,
        )

    return run


def path_of(item: Item) -> Path:
    return Path(item.uri.removeprefix("file://"))


def test_embeddings_are_those_of_the_encoder(embed: Embed, items: list[Item], tiny_encoder: Encoder) -> None:
    embedded = embed(items)
    expected = tiny_encoder.embed_images([path_of(item).read_bytes() for item in items])
    assert embedded.items == tuple(items)
    assert embedded.failures == ()
    np.testing.assert_allclose(embedded.embeddings, expected, atol=2e-6)


def test_good_and_bad_images_keep_their_order(tmp_path: Path, pool: Executor) -> None:
    """What could be read, with the digest of its bytes, and what could not, with the reason."""
    contents = {
        "0": encoded(class_picture(0, 0)),
        "1": truncated_jpeg(),
        "2": encoded(class_picture(1, 0)),
        "3": b"no image",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    items = [Item(id=name, uri=str(tmp_path / name), attributes={}) for name in [*contents, "missing"]]
    read, failures = read_images(items, lambda data: preprocess(data, PREPROCESSING), limits=DEFAULT_LIMITS, pool=pool)
    assert [(image.row, image.digest) for image in read] == [(n, digest_bytes(contents[str(n)])) for n in (0, 2)]
    np.testing.assert_array_equal(read[1].pixels, preprocess(contents["2"], PREPROCESSING))
    assert [failure.item_id for failure in failures] == ["1", "3", "missing"]
    assert ["damaged" in f.reason or "found 8 bytes" in f.reason or "cannot be read" in f.reason for f in failures]


def test_nothing_is_embedded_twice(embed: Embed, items: list[Item], encoder: CountingEncoder) -> None:
    """Labels, ids and places may change: the same bytes have the same embedding."""
    first = embed(items)
    assert encoder.n_embedded == 10
    renamed = [Item(id=f"new {item.id}", uri=item.uri, label="other", attributes={}) for item in items]
    second = embed(renamed)
    assert encoder.n_embedded == 10
    np.testing.assert_array_equal(second.embeddings, first.embeddings)
    assert second.content_digest != first.content_digest, "other labels are other data"


def test_a_changed_image_is_embedded_again(embed: Embed, items: list[Item], encoder: CountingEncoder) -> None:
    first = embed(items)
    path_of(items[3]).write_bytes(encoded(class_picture(77, 0)))
    second = embed(items)
    changed = (first.embeddings != second.embeddings).any(axis=1)
    assert changed.tolist() == [number == 3 for number in range(10)]
    assert second.content_digest != first.content_digest


def test_damaged_embeddings_are_made_again(
    embed: Embed, items: list[Item], store: Store, encoder: CountingEncoder
) -> None:
    first = embed(items)
    (path,) = Path(store.url.removeprefix("file://")).glob("bundles/*/embeddings/*.npz")
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(embed(items).embeddings, first.embeddings)
    assert encoder.n_embedded == 20


def test_progress_counts_all_items_once(
    store: Store, encoder: CountingEncoder, pool: Executor, items: list[Item]
) -> None:
    """Reported after each shard, and the last report is the total."""
    many = [Item(id=f"{n}", uri=items[0].uri, attributes={}) for n in range(SHARD_ITEMS + 5)]
    seen: list[tuple[int, int]] = []
    embed_items(
        store,
        embedder_of(encoder, pool),
        encoder.bundle.digest,
        many,
        max_failed_share=0,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(SHARD_ITEMS, SHARD_ITEMS + 5), (SHARD_ITEMS + 5, SHARD_ITEMS + 5)]


def test_an_unreadable_item_is_named_and_the_rest_embedded(embed: Embed, items: list[Item]) -> None:
    path_of(items[4]).write_bytes(b"no image")
    embedded = embed(items)
    assert [failure.item_id for failure in embedded.failures] == [items[4].id]
    assert embedded.items == (*items[:4], *items[5:])
    assert len(embedded.embeddings) == 9


def test_a_shard_of_nothing_but_failures(store: Store, encoder: CountingEncoder, pool: Executor) -> None:
    """It has no embedding, and that is stored like any other result."""
    lost = [Item(id=f"{n}", uri="/no/such/file", attributes={}) for n in range(3)]
    shard = embed_shard(store, embedder_of(encoder, pool), encoder.bundle.digest, lost)
    assert (shard.rows, len(shard.failures)) == ((), 3)
    assert store.embeddings(shard.key).shape == (0, encoder.bundle.dimension)


def test_too_many_failures_name_the_first(embed: Embed, items: list[Item]) -> None:
    for item in items[:3]:
        path_of(item).unlink()
    with pytest.raises(TooManyFailures, match=rf"3 of 10 items .* at most 2 .* The first: {items[0].id}: .*"):
        embed(items, max_failed_share=0.2)
    assert len(embed(items, max_failed_share=0.3).failures) == 3


@example(n_items=100, percent=29, share_failed=0.29)  # in binary 0.29 * 100 is below 29
@given(n_items=st.integers(1, 2000), percent=st.integers(0, 100), share_failed=st.floats(0, 1))
def test_the_limit_on_failures(n_items: int, percent: int, share_failed: float) -> None:
    """One item may always fail, all never; between them the share decides, exactly."""
    n_failed = round(share_failed * n_items)
    failures = [Failure(str(n), "damaged") for n in range(n_failed)]
    within = n_failed < n_items and (n_failed <= 1 or 100 * n_failed <= percent * n_items)
    if within:
        check_failures(failures, n_items, percent / 100)
    else:
        with pytest.raises(TooManyFailures, match=f"{n_failed} of {n_items} items"):
            check_failures(failures, n_items, percent / 100)


@pytest.mark.slow
def test_an_image_that_takes_too_long_is_one_failed_item(
    items: list[Item], store: Store, encoder: CountingEncoder, pool: Executor, tmp_path: Path
) -> None:
    """The shard goes on, and the failure says why."""
    (tmp_path / "bomb.jpg").write_bytes(many_scans(3500, 75))
    bomb = Item(id="bomb", uri=str(tmp_path / "bomb.jpg"), attributes={})
    embedder = embedder_of(encoder, pool, replace(DEFAULT_LIMITS, cpu_s=0.2))
    shard = embed_shard(store, embedder, encoder.bundle.digest, [bomb, *items])
    assert shard.rows == tuple(range(1, 11))
    (failure,) = shard.failures
    assert failure.item_id == "bomb"
    assert "the image needs more than 0.2 CPU seconds to decode" in failure.reason
