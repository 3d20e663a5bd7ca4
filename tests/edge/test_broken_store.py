"""What a damaged or unusable store, an overload and a late build lead to: errors of the family, nothing undone."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path

import pytest

from retrieval.edge.settings import load_settings
from retrieval.edge.wiring import make_searcher
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, InvalidSettings, Overloaded, Unavailable, ValidationFailed
from retrieval.flows import reindex
from retrieval.flows.search import SearchResult
from tests import pictures
from tests.edge.conftest import CATALOG, Running, index
from tests.photos import shot, write_shots
from tests.stores import CREATED_AT, embedder_of


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere", b"two words"])
def test_damaged_pointer_is_data_loss(calibrated: Store, content: bytes) -> None:
    """Whatever a pointer holds, it is named as the damage it is, and activating mends it."""
    digest = calibrated.only_bundle()
    active = calibrated.active_operating_point(digest)
    calibrated.objects.put(f"bundles/{digest}/operating_points/ACTIVE", content)
    calibrated.objects.put(f"catalogs/{CATALOG}/CURRENT", content)
    with pytest.raises(CorruptArtifact, match="ACTIVE"):
        calibrated.active_operating_point(digest)
    with pytest.raises(CorruptArtifact, match="CURRENT"):
        calibrated.current(CATALOG)
    calibrated.activate(digest, active.id)
    assert calibrated.active_id(digest) == active.id


def test_store_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    """A wrong path is an error with the path in it, not a trace."""
    (tmp_path / "store").touch()
    store = Store((tmp_path / "store").as_uri())
    for ask in (lambda: store.current(CATALOG), store.catalogs):
        with pytest.raises(Unavailable, match="store"):
            ask()


def test_store_of_unknown_protocol_is_a_wrong_setting() -> None:
    """A mistyped URL stops the start."""
    with pytest.raises(InvalidSettings, match="nowhere://"):
        Store("nowhere://bucket")


def test_late_build_does_not_undo_what_was_published_since(
    calibrated: Store, tmp_path: Path, tiny_encoder: Encoder, pool: Executor
) -> None:
    """A build that was delivered twice and ends after another job publishes nothing."""
    settings = load_settings()
    first = str(write_shots(tmp_path / "old", places=range(2), n_shots=2))
    old = index(calibrated, first, tiny_encoder, settings, pool)
    request = reindex.ReindexRequest(catalog=CATALOG, manifest_uri=first)
    planned = reindex.plan(calibrated, "late", request)
    reindex.embed_planned_shard(calibrated, "late", planned, 0, embedder=embedder_of(tiny_encoder, pool))
    calibrated.objects.delete("staging/late/plan.json")  # what the first delivery does when it is done
    second = str(write_shots(tmp_path / "new", places=range(3), n_shots=2))
    new = index(calibrated, second, tiny_encoder, settings, pool)
    with pytest.raises(ValidationFailed, match="nothing was published"):
        reindex.build_and_publish(calibrated, "late", planned, created_at=CREATED_AT)
    assert calibrated.current(CATALOG) == new != old


def test_image_names_may_hold_what_means_something_to_fsspec(
    calibrated: Store, tmp_path: Path, tiny_encoder: Encoder, pool: Executor
) -> None:
    """A file is found by its name, whatever is in it."""
    folder = tmp_path / "class [1]"
    folder.mkdir()
    for number, name in enumerate(["a::b.png", "100% *.png", "q?#.png", "new\nline.png", "ü.png"]):
        shot(number, 0).save(folder / name)
    snapshot = index(calibrated, str(tmp_path), tiny_encoder, load_settings(), pool)
    manifest = calibrated.snapshot_manifest(CATALOG, calibrated.current(CATALOG))
    assert (manifest.id, manifest.n_items, manifest.n_failed) == (snapshot, 5, 0)


def test_too_many_queries_are_refused_before_they_are_decoded(running: Running) -> None:
    """The limit on waiting queries also counts those whose image is still to be decoded."""
    settings = running.settings.model_copy(update={"max_waiting": 3, "threads": 1})
    searcher = make_searcher(settings)
    searcher.refresh()
    image = pictures.encoded(shot(3, 0))

    async def bursts() -> list[list[SearchResult | BaseException]]:
        return [
            await asyncio.gather(*(searcher.search(CATALOG, image) for _ in range(10)), return_exceptions=True)
            for _ in range(2)  # the count goes down again
        ]

    for answers in asyncio.run(bursts()):
        assert sum(isinstance(answer, SearchResult) for answer in answers) == 3
        assert sum(isinstance(answer, Overloaded) for answer in answers) == 7
