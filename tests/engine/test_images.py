"""Images are read one by one, and a bad one is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.manifest import read_manifest
from retrieval.engine.images import read_bytes
from retrieval.errors import ImageTooLarge, InvalidImage, SourceNotAllowed


@pytest.mark.parametrize(
    "name",
    [
        "plain.png",
        "a b.png",
        "100%.png",
        "what?.png",
        "a#1.png",
        "a[1].png",
        "all*.png",
        "ü~.png",
        "a::b.png",
        "100%25.png",
    ],
)
def test_any_file_name_can_be_read(name: str, tmp_path: Path) -> None:
    """A file name is a name, never a pattern or a chain of protocols."""
    (tmp_path / name).write_bytes(b"content")
    (tmp_path / "all of it.png").write_bytes(b"another")
    (item,) = [item for item in read_manifest(str(tmp_path)) if item.id == name]
    assert read_bytes(item.uri, DEFAULT_LIMITS) == b"content"
    assert read_bytes(str(tmp_path / name), DEFAULT_LIMITS) == b"content"
    assert read_bytes((tmp_path / name).as_uri(), DEFAULT_LIMITS) == b"content"


def test_the_name_on_the_disk_is_meant_before_the_decoded_one(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"decoded")
    (tmp_path / "a%20b.png").write_bytes(b"literal")
    assert read_bytes(f"file://{tmp_path}/a%20b.png", DEFAULT_LIMITS) == b"literal"


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Reading it would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.png")
    for uri in (str(tmp_path / "pipe.png"), "/dev/zero"):
        with pytest.raises(SourceNotAllowed, match="only regular files are read"):
            read_bytes(uri, DEFAULT_LIMITS)


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


def test_reading_loads_nothing_heavy() -> None:
    """Client commands read images too, and must start quickly."""
    code = "import sys, retrieval.engine.images; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )
    assert "retrieval.engine.images" in loaded
    assert loaded.isdisjoint({"numpy", "PIL", "pyarrow", "fsspec", "onnxruntime", "faiss"})
