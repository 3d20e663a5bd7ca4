"""Items become rows and come back equal, whatever their texts are; damaged tables are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.contract.manifest import Item
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.errors import CorruptArtifact

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
ITEMS = st.lists(
    st.builds(Item, id=TEXT, uri=TEXT, label=TEXT, attributes=st.dictionaries(TEXT, TEXT, max_size=3)),
    min_size=1,
    max_size=6,
)
ODD = Item(
    id='"quoted"\n\t',
    uri="file:///ü/\U0001f600.png",
    label="",
    attributes={"": "", "a:b": '{["\\]}', "null": "null", "zero": "\x00", "rtl": "\u202e"},
)


def table_of(items: list[Item]) -> ItemTable:
    return ItemTable.join([ItemRows.of(items)], np.zeros(len(items), np.float32))


@given(items=ITEMS, data=st.data())
def test_items_survive_the_table(
    items: list[Item], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any text comes back from disk, for any positions in any order and any division into parts."""
    path = tmp_path_factory.getbasetemp() / "items.parquet"
    densities = np.linspace(0, 1, len(items), dtype=np.float32)
    cut = data.draw(st.integers(0, len(items)))
    ItemTable.join([ItemRows.of(items[:cut]), ItemRows.of(items[cut:])], densities).save(path)
    table = ItemTable.load(path)
    positions = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=8))
    assert table.take(np.array(positions, dtype=np.int64)) == [items[position] for position in positions]
    assert len(table) == len(items)
    np.testing.assert_array_equal(table.densities, densities)


def test_offsets_are_kept_if_there_are_any(tmp_path: Path) -> None:
    """A table of an earlier version has none, and one that should have them and has none is refused."""
    rows = ItemRows.of([ODD, Item(id="1", uri="a", label="cup", attributes={})])
    densities, offsets = np.array([0.5, 0.25], np.float32), np.array([0, -0.125], np.float32)
    ItemTable.join([rows], densities, offsets).save(tmp_path / "new.parquet")
    ItemTable.join([rows], densities).save(tmp_path / "old.parquet")
    found = ItemTable.load(tmp_path / "new.parquet", with_offsets=True)
    np.testing.assert_array_equal(found.densities, densities)
    assert found.offsets is not None
    np.testing.assert_array_equal(found.offsets, offsets)
    assert found.take(np.array([1, 0])) == rows.items()[::-1]
    for name in ("old", "new"):
        assert ItemTable.load(tmp_path / f"{name}.parquet").offsets is None
    with pytest.raises(CorruptArtifact, match=r"old\.parquet cannot be read"):
        ItemTable.load(tmp_path / "old.parquet", with_offsets=True)


@given(items=ITEMS)
def test_labels_without_items(items: list[Item]) -> None:
    """The labels can be had without making the items."""
    assert ItemRows.of(items).labels == [item.label for item in items]


@given(items=ITEMS, data=st.data())
def test_rows_survive_parquet(items: list[Item], data: st.DataObject) -> None:
    """The items of a shard come back, all or some, and have the same digest."""
    rows = ItemRows.of(items)
    again = ItemRows.from_parquet(rows.to_parquet(), "here")
    assert again.items() == items
    assert (len(again), again.digest) == (len(items), rows.digest)
    chosen = data.draw(st.lists(st.integers(0, len(items) - 1), unique=True))
    assert again.take(chosen).items() == [items[row] for row in chosen]


def test_odd_characters_and_empty_attributes() -> None:
    """Quotes, line ends, zero bytes, an empty name and no attributes at all."""
    plain = Item(id="1", uri="a", attributes={})
    rows = ItemRows.from_parquet(ItemRows.of([ODD, plain]).to_parquet(), "here")
    assert rows.items() == [ODD, plain]
    assert table_of([ODD, plain]).take(np.array([1, 0])) == [plain, ODD]


def test_no_rows_at_all() -> None:
    """A shard whose images all failed adds nothing."""
    nothing = ItemRows.of([])
    assert nothing.items() == ItemRows.from_parquet(nothing.to_parquet(), "here").items() == []
    one = ItemRows.of([ODD])
    assert ItemTable.join([nothing, one.take([]), one], np.zeros(1, np.float32)).take(np.array([0])) == [ODD]


@pytest.mark.parametrize(
    "item",
    [
        Item(id="2", uri="a", label="c", attributes={"k": "v"}),
        Item(id="1", uri="b", label="c", attributes={"k": "v"}),
        Item(id="1", uri="a", label="d", attributes={"k": "v"}),
        Item(id="1", uri="a", label="c", attributes={"k": "w"}),
        Item(id="1a", uri="", label="c", attributes={"k": "v"}),
    ],
)
def test_the_digest_names_the_content(item: Item) -> None:
    """Every text counts, and so does its column; the order of attributes does not."""
    first = Item(id="1", uri="a", label="c", attributes={"k": "v"})
    assert ItemRows.of([first]).digest != ItemRows.of([item]).digest
    assert ItemRows.of([first, item]).digest != ItemRows.of([item, first]).digest
    one, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    assert (
        ItemRows.of([Item(id="1", uri="a", attributes=one)]).digest
        == ItemRows.of([Item(id="1", uri="a", attributes=other)]).digest
    )


@pytest.mark.parametrize(
    "item",
    [
        Item(id="\udcff", uri="a", attributes={}),
        Item(id="1", uri="a\udcff", attributes={}),
        Item(id="1", uri="a", label="\udcff", attributes={}),
        Item(id="1", uri="a", attributes={"k": "\udcff"}),
        Item(id="1", uri="a", attributes={"\udcff": ""}),
    ],
)
def test_what_is_no_utf8_text_is_refused(item: Item) -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        ItemRows.of([item])


def test_every_truncation_of_the_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    table_of([Item(id="1", uri="a", attributes={})]).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 41):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match=r"items\.parquet cannot be read"):
            ItemTable.load(path)


def test_every_truncation_of_rows_is_refused() -> None:
    content = ItemRows.of([ODD]).to_parquet()
    for length in range(0, len(content), 41):
        with pytest.raises(CorruptArtifact, match="items of shard 7 cannot be read"):
            ItemRows.from_parquet(content[:length], "of shard 7")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"id": ["1"]}), tmp_path / "items.parquet")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        ItemTable.load(tmp_path / "items.parquet")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        ItemRows.from_parquet((tmp_path / "items.parquet").read_bytes(), "here")
