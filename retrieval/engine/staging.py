"""The working files of a job that embeds many images in shards: a plan, and the items and the result of each shard.

    staging/<job>/<number>.items.parquet    written by the plan
    staging/<job>/plan.json                 marker: the items of all shards are there
    staging/<job>/<number>.result.json      marker: the embeddings of the shard are in the store

Every file is written whole. A repeated step finds the marker of its earlier work and does nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from retrieval.contract.canonical import json_bytes
from retrieval.contract.documents import parse, read_json, read_object
from retrieval.engine.embedding import EmbeddedShard
from retrieval.engine.images import Failure
from retrieval.engine.items import ItemRows
from retrieval.engine.store.objects import Objects
from retrieval.errors import CorruptArtifact, ValidationFailed


class Staging:
    """The working files of one job. It holds no state of its own; safe for threads and processes."""

    def __init__(self, objects: Objects, job_id: str) -> None:
        self._objects = objects
        self._folder = f"staging/{job_id}"

    def plan(self) -> Any | None:
        """Return the plan as plain JSON; None if there is none yet. Raises CorruptArtifact if it is no JSON object."""
        data = self._objects.get(self._plan_key)
        return None if data is None else read_object(data, self.plan_url)

    @property
    def plan_url(self) -> str:
        """The URL of the plan, for messages about it."""
        return f"{self._objects.url}/{self._plan_key}"

    def put_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan, after the items of all shards."""
        self._objects.put(self._plan_key, json_bytes(plan))

    def put_items(self, number: int, items: ItemRows) -> None:
        """Write the items of a shard."""
        self._objects.put(self._items_key(number), items.to_parquet())

    def items(self, number: int) -> ItemRows:
        """Return the items of a shard. Raises ValidationFailed if they are missing, CorruptArtifact if damaged."""
        key = self._items_key(number)
        return ItemRows.from_parquet(self._read(key), f"{self._objects.url}/{key}")

    def has_result(self, number: int) -> bool:
        """Return True if the shard is embedded."""
        return self._objects.exists(self._result_key(number))

    def put_result(self, number: int, items: ItemRows, shard: EmbeddedShard) -> None:
        """Write the result of a shard, after its embeddings, with the digest of the items it was made from."""
        self._objects.put(self._result_key(number), json_bytes({"items": items.digest, **asdict(shard)}))

    def result(self, number: int) -> tuple[ItemRows, EmbeddedShard]:
        """Return the usable items of a shard and its result.

        Raises ValidationFailed if a file is missing or the result was made from other items, CorruptArtifact if one is
        damaged.
        """
        key = self._result_key(number)
        where = f"{self._objects.url}/{key}"
        result = parse(_ResultDocument, read_json(self._read(key), where), where)
        items = self.items(number)
        if result.items != items.digest:  # two planners read a manifest that changed between them
            raise ValidationFailed(
                f"{self._objects.url}/{self._result_key(number)} was made from other items than those planned: the "
                "manifest changed while the job was planned; start it again"
            )
        rows = result.rows
        if list(rows) != sorted({row for row in rows if 0 <= row < len(items)}) or len(rows) != len(
            result.image_digests
        ):
            raise CorruptArtifact(
                f"{where}: its rows do not fit the {len(items)} items of the shard: start the job again"
            )
        shard = EmbeddedShard(key=result.key, rows=rows, image_digests=result.image_digests, failures=result.failures)
        return items.take(shard.rows), shard

    def missing(self, n_shards: int) -> list[int]:
        """Return the numbers of the shards that have no result yet."""
        done = set(self._objects.names(self._folder))
        return [number for number in range(n_shards) if f"{number:06d}.result.json" not in done]

    def clear(self) -> None:
        """Remove all files, the plan first, so that a kill leaves no plan without its shards."""
        self._objects.delete(self._plan_key)
        self._objects.delete(self._folder)

    @property
    def _plan_key(self) -> str:
        return f"{self._folder}/plan.json"

    def _items_key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.items.parquet"

    def _result_key(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.result.json"

    def _read(self, key: str) -> bytes:
        data = self._objects.get(key)
        if data is None:
            raise ValidationFailed(
                f"{self._objects.url}/{key} is missing: the job's working files were removed, or another version of "
                "the program wrote them; start it again"
            )
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class _ResultDocument:
    """The schema of the result of a shard: an `EmbeddedShard` and the digest of the items it was made from."""

    items: str
    key: str
    rows: tuple[int, ...]
    image_digests: tuple[str, ...]
    failures: tuple[Failure, ...]
