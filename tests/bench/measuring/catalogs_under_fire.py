"""A store with a calibrated bundle and catalogues that change all the time, and what a search in them must answer.

The truth is computed here by brute force: the embeddings of all images, compared with each other in NumPy.
"""

from __future__ import annotations

import csv
import random
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from retrieval.client import Client, connect
from retrieval.contract.bundle import BundleDigest
from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import Overloaded, RetrievalError, Unavailable
from retrieval.v1 import search_pb2
from tests.photos import write_shots
from tests.processes import Deployment
from tests.tiny_bundle import write_tiny_bundle

CATALOGS = ("shoes", "bags")
_N_PLACES, _N_SHOTS = 60, 3
_MARGIN = 1e-4  # scores so close to the threshold may be rounded to either side
_LIMIT = 10_000


class Collection:
    """All images that a catalogue may hold, their embeddings, and the manifests that were written so far."""

    def __init__(self, deployment: Deployment, rng: random.Random) -> None:
        folder = deployment.folder
        self._folder, self._rng = folder / "catalog", rng
        bundle = write_tiny_bundle(folder / "bundle")
        self.labelled = write_shots(folder / "calibration", places=range(1000, 1030), n_shots=3)
        deployment.run("calibrate", "--bundle", str(folder / "bundle"), "--data", str(self.labelled), "--activate")
        shutil.rmtree(folder / "bundle")  # the store has its own
        self.bundle: BundleDigest = bundle.digest
        manifest = write_shots(self._folder, places=range(_N_PLACES), n_shots=_N_SHOTS)
        with manifest.open(newline="") as file:
            self._rows = list(csv.DictReader(file))
        self.store = Store(deployment.environment.get("RETRIEVAL_STORE_URL") or (folder / "state" / "store").as_uri())
        self.images = {row["id"]: (self._folder / row["uri"]).read_bytes() for row in self._rows}
        encoder = Encoder.open(self.store.bundle(bundle.digest), threads=1)
        self.embeddings = dict(zip(self.images, encoder.embed_images(list(self.images.values())), strict=True))
        self._written: set[frozenset[str]] = set()

    def new_manifest(self) -> Path:
        """Write a manifest of some of the images, chosen at random, and return its path."""
        rows = self._rng.sample(self._rows, self._rng.randint(100, len(self._rows) - 10))
        path = self._folder / f"manifest{len(self._written)}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self._rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        self._written.add(frozenset(row["id"] for row in rows))
        return path

    def new_labelled(self) -> Path:
        """Write a manifest of most of the labelled images, and return its path."""
        with self.labelled.open(newline="") as file:
            rows = list(csv.DictReader(file))
        dropped = self._rng.choice(rows)["label"]
        path = self.labelled.with_name(f"labelled{self._rng.randrange(10**9)}.csv")
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row in rows if row["label"] != dropped)
        return path

    def wrong_with(self, catalog: str, image: str, reply: search_pb2.SearchResponse) -> str:
        """What is wrong with the answer to a query with one of the images; "" if it is right."""
        provenance = reply.provenance
        items = self._items(catalog, provenance.snapshot_id)
        if frozenset(items) not in self._written:
            return f"snapshot {provenance.snapshot_id} of {catalog} holds items that no manifest lists together"
        threshold = self._threshold(provenance.operating_point_id)
        if threshold != provenance.threshold:
            return f"threshold {provenance.threshold}, operating point {provenance.operating_point_id}: {threshold}"
        scores = np.stack([self.embeddings[item] for item in items]) @ self.embeddings[image]
        sure = {item for item, score in zip(items, scores, strict=True) if score >= threshold + _MARGIN}
        possible = {item for item, score in zip(items, scores, strict=True) if score >= threshold - _MARGIN}
        found = {match.item_id for match in reply.matches}
        if sure <= found <= possible and len(found) == reply.total_matches == len(reply.matches):
            return ""
        return (
            f"{image} in snapshot {provenance.snapshot_id} of {catalog}: {len(sure - found)} matches are missing, "
            f"{len(found - possible)} are none, total {reply.total_matches}, listed {len(reply.matches)}"
        )

    @cache  # noqa: B019  # one collection for the whole run
    def _items(self, catalog: str, snapshot: str) -> Sequence[str]:
        items = self.store.open_snapshot(catalog, SnapshotId(snapshot)).items
        return [item.id for item in items.take(np.arange(len(items)))]

    @cache  # noqa: B019
    def _threshold(self, point: str) -> float:
        return self.store.operating_point(self.bundle, point).threshold


class Searching:
    """A caller that searches all the time, and notes every answer."""

    def __init__(self, collection: Collection, address: str, seed: int) -> None:
        self._collection, self._address, self._rng = collection, address, random.Random(seed)
        self._ended = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._thread = threading.Thread(target=self._run, name="searching", daemon=True)

    def __enter__(self) -> Searching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with connect(self._address, timeout_s=20) as client:
                    while not self._ended.wait(0.08):
                        self._ask(client)
            except (Unavailable, Overloaded) as error:
                self.outcomes[f"refused: {type(error).__name__}"] += 1
                self._ended.wait(0.1)
            except RetrievalError as error:
                self.violations.append(f"search: {type(error).__name__}: {error}")
                self._ended.wait(0.1)

    def _ask(self, client: Client) -> None:
        catalog = self._rng.choice(CATALOGS)
        names = self._rng.choices(list(self._collection.images), k=self._rng.choice([1, 1, 8]))
        queries = [self._query(name) for name in names]
        if len(queries) == 1:
            request = search_pb2.SearchRequest(catalog=catalog, query=queries[0], limit=_LIMIT)
            replies = [client.call(client.search.Search, request)]
        else:
            batch = search_pb2.BatchSearchRequest(catalog=catalog, queries=queries, limit=_LIMIT)
            results = client.call(client.search.BatchSearch, batch).results
            self.violations += [f"search: {result.error.message}" for result in results if result.HasField("error")]
            if any(result.HasField("error") for result in results):
                return
            replies = [result.response for result in results]
        for name, reply in zip(names, replies, strict=True):
            wrong = self._collection.wrong_with(catalog, name, reply)
            self.outcomes["wrong" if wrong else "right"] += 1
            if wrong:
                self.violations.append(wrong)

    def _query(self, name: str) -> search_pb2.Query:
        if self._rng.random() < 0.3:
            return search_pb2.Query(image=self._collection.images[name])
        values = self._collection.embeddings[name].tolist()
        return search_pb2.Query(embedding=search_pb2.Embedding(values=values, bundle_digest=self._collection.bundle))
