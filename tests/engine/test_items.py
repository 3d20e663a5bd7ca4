"""Items are read one by one, a bad one is named, and positions turn back into items."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import DEFAULT_LIMITS, ImageLimits, preprocess
from retrieval.engine.items import ItemTable, read_bytes, read_images
from retrieval.errors import CorruptArtifact, ImageTooLarge, InvalidImage
from tests.pictures import class_picture, encoded, truncated_jpeg
from tests.tiny_bundle import PREPROCESSING

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
ITEMS = st.lists(
    st.builds(Item, id=TEXT, uri=TEXT, label=TEXT, attributes=st.dictionaries(TEXT, TEXT, max_size=3)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    "name", ["plain.png", "a b.png", "100%.png", "what?.png", "a#1.png", "a[1].png", "all*.png", "ü~.png"]
)
def test_any_file_name_can_be_read(name: str, tmp_path: Path) -> None:
    """A file name is a name, never a pattern or a chain of protocols."""
    (tmp_path / name).write_bytes(b"content")
    (tmp_path / "all of it.png").write_bytes(b"another")
    (item,) = [item for item in read_manifest(str(tmp_path)) if item.id == name]
    assert read_bytes(item.uri, DEFAULT_LIMITS) == b"content"
    assert read_bytes(str(tmp_path / name), DEFAULT_LIMITS) == b"content"


@pytest.mark.parametrize(
    "uri", ["/no/such/file.png", "file:///no/such/file.png", "nowhere://bucket/a.png", "/", "bad\x00name"]
)
def test_what_cannot_be_read_is_named(uri: str) -> None:
    with pytest.raises(InvalidImage, match="cannot be read"):
        read_bytes(uri, DEFAULT_LIMITS)


def test_a_protocol_whose_package_is_missing_fails_its_item_only() -> None:
    """One odd row in a manifest does not stop a job."""
    with pytest.raises(InvalidImage, match="dropbox://a cannot be read"):
        read_bytes("dropbox://a", DEFAULT_LIMITS)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x" * 100)
    assert len(read_bytes(str(path), ImageLimits(image_bytes=100))) == 100
    with pytest.raises(ImageTooLarge, match="more than 99 bytes"):
        read_bytes(str(path), ImageLimits(image_bytes=99))
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing: reading it all would fail
    with pytest.raises(ImageTooLarge):
        read_bytes(str(path), ImageLimits(image_bytes=100))


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
    assert [(image.item.id, image.digest) for image in read] == [(n, digest_bytes(contents[n])) for n in ("0", "2")]
    np.testing.assert_array_equal(read[1].pixels, preprocess(contents["2"], PREPROCESSING))
    assert [failure.item_id for failure in failures] == ["1", "3", "missing"]
    assert ["damaged" in f.reason or "found 8 bytes" in f.reason or "cannot be read" in f.reason for f in failures]


@given(items=ITEMS, data=st.data())
def test_items_survive_the_table(
    items: list[Item], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any text comes back from disk, for any positions in any order."""
    path = tmp_path_factory.getbasetemp() / "items.parquet"
    densities = np.linspace(0, 1, len(items), dtype=np.float32)
    ItemTable.build(items, densities).save(path)
    table = ItemTable.load(path)
    positions = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=8))
    assert table.take(np.array(positions, dtype=np.int64)) == [items[position] for position in positions]
    assert len(table) == len(items)
    np.testing.assert_array_equal(table.densities, densities)


def test_every_truncation_of_the_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    ItemTable.build([Item(id="1", uri="a", attributes={})], np.zeros(1, np.float32)).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match=r"items\.parquet cannot be read"):
            ItemTable.load(path)


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"id": ["1"]}), tmp_path / "items.parquet")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        ItemTable.load(tmp_path / "items.parquet")
