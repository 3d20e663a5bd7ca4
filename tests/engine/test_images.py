"""Images are read one by one, and a bad one is named."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import preprocess
from retrieval.engine.images import read_bytes, read_images
from retrieval.errors import ImageTooLarge, InvalidImage
from tests.pictures import class_picture, encoded, truncated_jpeg
from tests.tiny_bundle import PREPROCESSING


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
    with pytest.raises(ImageTooLarge, match="more than 100 bytes"):
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
    assert [(image.row, image.digest) for image in read] == [(n, digest_bytes(contents[str(n)])) for n in (0, 2)]
    np.testing.assert_array_equal(read[1].pixels, preprocess(contents["2"], PREPROCESSING))
    assert [failure.item_id for failure in failures] == ["1", "3", "missing"]
    assert ["damaged" in f.reason or "found 8 bytes" in f.reason or "cannot be read" in f.reason for f in failures]
