"""The working files of a job: markers come last, a missing file is named, and rows are never mixed up."""

from __future__ import annotations

import pytest

from retrieval.contract.manifest import Item
from retrieval.engine.embedding import EmbeddedShard
from retrieval.engine.images import Failure
from retrieval.engine.items import ItemRows
from retrieval.engine.staging import Staging
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, ValidationFailed

ITEMS = [Item(id=f"{n}", uri=f"{n}.png", label="cup", attributes={"ü": "'\"\n"}) for n in range(4)]
SHARD = EmbeddedShard(key="e1", rows=(0, 2), image_digests=("a", "b"), failures=(Failure("1", "bad"), Failure("3", "")))


@pytest.fixture
def staging(store: Store) -> Staging:
    return Staging(store.objects, "job")


def test_a_result_comes_back_with_its_usable_items(staging: Staging) -> None:
    """Rows, digests, failures and the items that the rows select."""
    rows = ItemRows.of(ITEMS)
    staging.put_items(7, rows)
    assert not staging.has_result(7)
    staging.put_result(7, rows, SHARD)
    assert staging.has_result(7)
    usable, shard = staging.result(7)
    assert usable.items() == [ITEMS[0], ITEMS[2]]
    assert shard == SHARD


def test_missing_counts_results_only(staging: Staging) -> None:
    rows = ItemRows.of(ITEMS)
    assert staging.missing(2) == [0, 1]
    staging.put_items(0, rows)
    staging.put_items(1, rows)
    staging.put_result(1, rows, SHARD)
    assert staging.missing(2) == [0]
    assert staging.missing(0) == []


def test_plan(staging: Staging, store: Store) -> None:
    assert staging.plan() is None
    staging.put_plan({"n_shards": 2})
    assert staging.plan() == {"n_shards": 2}
    assert Staging(store.objects, "another job").plan() is None


def test_a_missing_file_is_named(staging: Staging) -> None:
    """Whichever of the two it is, with the way out."""
    with pytest.raises(ValidationFailed, match=r"000000\.items\.parquet is missing.*another version.*start it again"):
        staging.items(0)
    with pytest.raises(ValidationFailed, match=r"000000\.result\.json is missing.*start it again"):
        staging.result(0)
    staging.put_result(0, ItemRows.of(ITEMS), SHARD)
    with pytest.raises(ValidationFailed, match=r"000000\.items\.parquet is missing.*start it again"):
        staging.result(0)


def test_damaged_items_are_named(staging: Staging, store: Store) -> None:
    staging.put_items(0, ItemRows.of(ITEMS))
    key = "staging/job/000000.items.parquet"
    data = store.objects.get(key)
    assert data is not None
    store.objects.put(key, data[:-9])
    with pytest.raises(CorruptArtifact, match=r"000000\.items\.parquet cannot be read"):
        staging.items(0)


def test_a_result_of_other_items_is_refused(staging: Staging) -> None:
    """Its rows would select the wrong items."""
    staging.put_items(0, ItemRows.of(ITEMS))
    staging.put_result(0, ItemRows.of(ITEMS), SHARD)
    staging.put_items(0, ItemRows.of(ITEMS[::-1]))
    with pytest.raises(ValidationFailed, match=r"000000\.result\.json was made from other items .* start it again"):
        staging.result(0)


def test_clearing_leaves_other_jobs(staging: Staging, store: Store) -> None:
    staging.put_plan({})
    staging.put_items(0, ItemRows.of(ITEMS))
    Staging(store.objects, "other").put_plan({"n_shards": 1})
    staging.clear()
    staging.clear()
    assert store.objects.names("staging/job") == []
    assert staging.plan() is None
    assert Staging(store.objects, "other").plan() == {"n_shards": 1}
