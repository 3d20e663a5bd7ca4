"""Reading items: the production pixels from any file system, damaged files skipped, named and counted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import preprocess
from retrieval.errors import TooManyFailures
from tests.training.data.conftest import PREPROCESSING, ignore
from training.data import read_items


def test_items_are_read_as_production_reads_them(training_items: list[Item]) -> None:
    calls: list[tuple[int, int]] = []
    batches = list(
        read_items(training_items, PREPROCESSING, max_unreadable=0, progress=lambda *call: calls.append(call))
    )
    expected = [preprocess(Path(i.uri.removeprefix("file://")).read_bytes(), PREPROCESSING) for i in training_items]
    assert_array_equal(np.concatenate([batch.pixels for batch in batches]), np.stack(expected))
    assert [item for batch in batches for item in batch.items] == training_items
    assert calls[-1] == (len(training_items), len(training_items))


@pytest.mark.parametrize("kind", ["memory", "zip"])
def test_images_come_from_any_file_system(folders: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    """A folder in memory and an archive give what the local folder gives."""
    local = read_manifest(str(folders[0]))
    if kind == "memory":
        source = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(folders[0]), source, recursive=True)
    else:
        with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
            for path in sorted(folders[0].rglob("*.png")):
                archive.write(path, path.relative_to(folders[0]))
        source = f"zip://::file://{tmp_path}/pictures.zip"
    remote = [Item(id=i.id, uri=_uri(source, kind, i.id), label=i.label, attributes={}) for i in local]
    (here,) = read_items(local, PREPROCESSING, max_unreadable=0, progress=ignore)
    (there,) = read_items(remote, PREPROCESSING, max_unreadable=0, progress=ignore)
    assert_array_equal(here.pixels, there.pixels)


def _uri(source: str, kind: str, name: str) -> str:
    return source.replace("zip://", f"zip://{name}") if kind == "zip" else f"{source}/{name}"


@pytest.mark.parametrize("uri", ["file:///nowhere/lost.png", "nonsense://lost.png", "zip://a.png::file:///nowhere.zip"])
def test_a_missing_file_is_unreadable(training_items: list[Item], uri: str) -> None:
    lost = Item(id="lost", uri=uri, label="x", attributes={})
    (batch,) = read_items([*training_items, lost], PREPROCESSING, max_unreadable=0.1, progress=ignore)
    assert [failure.item.id for failure in batch.unreadable] == ["lost"]
    assert len(batch.items) == len(batch.pixels) == len(training_items)


def test_too_many_unreadable_images_stop_the_run(items_with_damage: list[Item]) -> None:
    with pytest.raises(TooManyFailures, match=r"1 images cannot be read so far.*class_001/2\.png"):
        list(read_items(items_with_damage, PREPROCESSING, max_unreadable=0.05, progress=ignore))
