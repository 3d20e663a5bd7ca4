"""Tables of items, stored as Parquet: of a shard of a job, and of a snapshot, whose row order is its vector order.

pyarrow is used here and in `class_table.py` only, apart from reading manifests.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.manifest import Item
from retrieval.errors import CorruptArtifact

_COLUMNS = ("id", "uri", "label", "attributes")
_DENSITY, _OFFSET = "density", "offset"


class ItemRows:
    """Items in order, columnar in memory; the attributes of an item are one JSON text."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, items: Sequence[Item]) -> "ItemRows":
        """Return the rows of some items. Raises UnicodeEncodeError if a text cannot be written as UTF-8."""
        attributes = [json.dumps(dict(item.attributes), sort_keys=True, ensure_ascii=False) for item in items]
        columns = {
            "id": [item.id for item in items],
            "uri": [item.uri for item in items],
            "label": [item.label for item in items],
            "attributes": attributes,
        }
        return cls(pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()}))

    @classmethod
    def from_parquet(cls, data: bytes, where: str) -> "ItemRows":
        """Return the rows in a Parquet file. Raises CorruptArtifact naming `where` if it is damaged."""
        try:
            return cls(_checked(pyarrow.parquet.read_table(io.BytesIO(data), columns=list(_COLUMNS))))
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise CorruptArtifact(f"items {where} cannot be read: {error}") from error

    def to_parquet(self) -> bytes:
        """Return the rows as the bytes of a Parquet file."""
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(self.table, buffer)
        return buffer.getvalue()

    @property
    def digest(self) -> str:
        """The digest of the texts, which does not depend on how Parquet stores them."""
        parts = [str(len(self)).encode()]
        for name in _COLUMNS:
            texts = [text.encode() for text in self.table.column(name).to_pylist()]
            parts.append(np.array([len(text) for text in texts], dtype="<i8").tobytes())
            parts.extend(texts)
        return digest_bytes(b"".join(parts))

    @property
    def labels(self) -> list[str]:
        """The label of each row, "" for none."""
        return [str(label) for label in self.table.column("label").to_pylist()]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def take(self, rows: Sequence[int]) -> "ItemRows":
        """Return some of the rows, in the given order."""
        return ItemRows(self.table.take(pa.array(rows, pa.int64())))

    def items(self) -> list[Item]:
        """Return the rows as items."""
        return _items(self.table)


class ItemTable:
    """The items of a snapshot by index position, columnar in memory: about 100 bytes an item plus its text.

    densities: [n] float32. offsets: [n] float32, only if the score of the snapshot uses the labels of the items.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.densities = _numbers(table, _DENSITY)
        self.offsets = _numbers(table, _OFFSET) if _OFFSET in table.column_names else None

    @classmethod
    def join(
        cls, parts: Sequence[ItemRows], densities: NDArray[np.float32], offsets: NDArray[np.float32] | None = None
    ) -> "ItemTable":
        """Return the table of all parts in order; `densities` and `offsets` [n] float32 as a score gives them."""
        table = pa.concat_tables([part.table for part in parts]).combine_chunks()
        table = table.append_column(_DENSITY, pa.array(densities, pa.float32()))
        return cls(table if offsets is None else table.append_column(_OFFSET, pa.array(offsets, pa.float32())))

    @classmethod
    def load(cls, path: Path, *, with_offsets: bool = False) -> "ItemTable":
        """Return the table in a Parquet file, with the offsets or without. Raises CorruptArtifact if it is damaged."""
        numbers = (_DENSITY, _OFFSET) if with_offsets else (_DENSITY,)
        try:
            return cls(_checked(pyarrow.parquet.read_table(path, columns=[*_COLUMNS, *numbers]), *numbers))
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise CorruptArtifact(f"items {path} cannot be read: {error}") from error

    def save(self, path: Path) -> None:
        """Write the table as Parquet; row order is vector order."""
        pyarrow.parquet.write_table(self._table, path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def take(self, positions: NDArray[np.int64]) -> list[Item]:
        """Return the items at some positions, in that order."""
        return _items(self._table.take(pa.array(positions)))


def _checked(table: pa.Table, *numbers: str) -> pa.Table:
    """Return the table. Raises ValueError unless its columns hold text, those in `numbers` float32, and no nulls."""
    for name in (*_COLUMNS, *numbers):
        column = table.column(name)
        wanted = pa.float32() if name in numbers else pa.string()
        if column.type != wanted or column.null_count:
            raise ValueError(f"column {name}: expected {wanted} without nulls, found {column.type}")
    return table


def _numbers(table: pa.Table, name: str) -> NDArray[np.float32]:
    return np.asarray(table.column(name).to_numpy(), dtype=np.float32)


def _items(table: pa.Table) -> list[Item]:
    rows = table.to_pylist()
    return [Item(id=r["id"], uri=r["uri"], label=r["label"], attributes=json.loads(r["attributes"])) for r in rows]
