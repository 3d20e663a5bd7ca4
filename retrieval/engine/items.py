"""The items of a catalogue: reading their images, and the table that turns index positions back into items.

Decides what counts as unreadable; leaves manifests to `contract/manifest.py` and vectors to `index.py`. Hides pyarrow.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import ImageLimits
from retrieval.engine.images import read_bytes
from retrieval.errors import CorruptArtifact, InvalidInput

_COLUMNS = ("id", "uri", "label", "attributes", "density")


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One item's image: its prepared pixels [3, h, w] float32 and the digest of its bytes."""

    item: Item
    digest: str
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Failure:
    """An item whose image cannot be used, and why."""

    item_id: str
    reason: str


def read_images(
    items: Sequence[Item],
    prepare: Callable[[bytes], NDArray[np.float32]],
    *,
    limits: ImageLimits,
    pool: Executor,
) -> tuple[list[ReadImage], list[Failure]]:
    """What could be read and prepared, and what could not, both in the items' order."""

    def read(item: Item) -> ReadImage | Failure:
        try:
            data = read_bytes(item.uri, limits)
            return ReadImage(item, digest_bytes(data), prepare(data))
        except InvalidInput as error:
            return Failure(item.id, str(error))

    results = list(pool.map(read, items))
    return [r for r in results if isinstance(r, ReadImage)], [r for r in results if isinstance(r, Failure)]


class ItemTable:
    """Items by index position, columnar in memory: about 100 bytes an item besides its text."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.densities: NDArray[np.float32] = table.column("density").to_numpy().astype(np.float32)

    @classmethod
    def build(cls, items: Iterable[Item], densities: NDArray[np.float32]) -> "ItemTable":
        """A table whose row i is the item at position i; `densities` [n] float32 as `Score.density` gives them."""
        rows = list(items)
        columns: Mapping[str, pa.Array] = {
            "id": pa.array([item.id for item in rows], pa.string()),
            "uri": pa.array([item.uri for item in rows], pa.string()),
            "label": pa.array([item.label for item in rows], pa.string()),
            "attributes": pa.array([json.dumps(dict(item.attributes), sort_keys=True) for item in rows], pa.string()),
            "density": pa.array(densities, pa.float32()),
        }
        return cls(pa.table(columns))

    @classmethod
    def load(cls, path: Path) -> "ItemTable":
        """The table in a Parquet file. Raises CorruptArtifact where it is damaged."""
        try:
            return cls(pyarrow.parquet.read_table(path, columns=list(_COLUMNS)))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise CorruptArtifact(f"items {path} cannot be read: {error}") from error

    def save(self, path: Path) -> None:
        """Write the table as Parquet; row order is vector order."""
        pyarrow.parquet.write_table(self._table, path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def take(self, positions: NDArray[np.int64]) -> list[Item]:
        """The items at some positions, in that order."""
        rows = self._table.take(pa.array(positions)).to_pylist()
        return [Item(id=r["id"], uri=r["uri"], label=r["label"], attributes=json.loads(r["attributes"])) for r in rows]
