"""The classes of a snapshot come back equal, damaged tables are refused, and labels that look wrong are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from retrieval.contract.manifest import Item
from retrieval.contract.score import GalleryClasses, GalleryVectors
from retrieval.engine.class_table import label_summary, load_classes, save_classes
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.errors import CorruptArtifact


def classes() -> GalleryClasses:
    means = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    return GalleryClasses(("", "cup\n", "\U0001f600"), np.array([1, 2, 30]), means)


def test_round_trip(tmp_path: Path) -> None:
    """Any label, and every bit of the means."""
    save_classes(classes(), tmp_path / "classes.parquet")
    found = load_classes(tmp_path / "classes.parquet")
    assert found.names == classes().names
    assert found.sizes.tolist() == [1, 2, 30]
    assert found.means.tobytes() == classes().means.tobytes()
    assert (found.means.shape, found.means.dtype, found.sizes.dtype) == ((3, 5), np.float32, np.int64)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.parquet"
    save_classes(classes(), path)
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match=r"classes\.parquet cannot be read"):
            load_classes(path)


@pytest.mark.parametrize(
    "columns", [{"label": ["cup"]}, {"label": ["cup"], "n_items": [1], "mean": [1.0]}, {"label": [], "n_items": []}]
)
def test_other_columns_are_refused(columns: dict[str, list[object]], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "classes.parquet")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        load_classes(tmp_path / "classes.parquet")


def test_labels_that_look_wrong_are_counted_and_the_first_named() -> None:
    n = 130
    rows = [Item(id=f"item {number}", uri="a", label="cup" if number else "", attributes={}) for number in range(n)]
    far = np.arange(n) >= 10
    numbers = np.zeros(n, np.float32)
    means = np.zeros((1, 2), np.float32)
    gallery = GalleryVectors(
        np.zeros((n, 2), np.float32), numbers, numbers, far, GalleryClasses(("cup",), np.array([n - 1]), means)
    )
    items = ItemTable.join([ItemRows.of(rows)], numbers, numbers)
    found = label_summary(gallery, [item.label for item in rows], items)
    assert found is not None
    assert (found.n_classes, found.n_unlabelled, found.n_far) == (1, 1, 120)
    assert found.far_items == tuple(f"item {number}" for number in range(10, 110))


def test_nothing_is_recorded_of_labels_that_the_score_does_not_use() -> None:
    numbers = np.zeros(1, np.float32)
    gallery = GalleryVectors(np.zeros((1, 2), np.float32), numbers, numbers, numbers > 0)
    items = ItemTable.join([ItemRows.of([Item(id="1", uri="a", attributes={})])], numbers)
    assert label_summary(gallery, [""], items) is None
