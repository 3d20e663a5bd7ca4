"""`retrieval prune`: what it prints, removes and keeps, in a store without a server."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pytest

from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.cli import main
from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest, roll_back
from tests.pictures import write_class_folders
from tests.stores import activate, reindex

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(
    tiny_bundle: Bundle, tiny_encoder: Encoder, cosine_point: OperatingPoint, pool: Executor, tmp_path: Path
) -> tuple[Store, list[SnapshotId]]:
    """A store with five snapshots of the catalogue shop, oldest first."""
    store = Store((tmp_path / "store").as_uri())
    store.add_bundle(tiny_bundle.directory)
    activate(store, cosine_point, Score())
    ids = []
    for number in range(5):
        folder = write_class_folders(tmp_path / f"images{number}", n_classes=2 + number, n_images=1)
        request = ReindexRequest(catalog="shop", manifest_uri=str(folder))
        at = f"2026-01-0{number + 1}T00:00:00+00:00"
        ids.append(reindex(store, tiny_encoder, pool, request, job_id=f"job{number}", created_at=at))
    return store, ids


@pytest.fixture
def prune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: tuple[Store, object]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["retrieval", "prune", "--store", made[0].url, *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            main()
        captured = capsys.readouterr()
        return int(str(left.value.code)), captured.out, captured.err

    return run


def test_a_dry_run_names_what_goes(made: tuple[Store, list[SnapshotId]], prune: Command) -> None:
    """As text and as JSON; the live, the next and the rolled-back-to snapshot survive a policy that keeps one."""
    store, ids = made
    roll_back(store, "shop", ids[1])
    store.publish("shop", ids[4])
    store.put_audit("shop", "audit", {"report.json": b"{}"})
    half = Path(store.url.removeprefix("file://")) / "catalogs/shop/snapshots/half"
    half.mkdir()
    (half / "index.bin").touch()
    os.utime(half / "index.bin", (time.time() - 2 * 86400,) * 2)

    code, text, err = prune("--keep", 1, "--dry-run")
    assert (code, err) == (0, "")
    assert text.splitlines() == [
        f"would remove snapshot {ids[2]} of shop",
        f"would remove snapshot {ids[0]} of shop",
        "would remove catalogs/shop/snapshots/half, which was never finished",
        "would remove 2 snapshots, 0 audits, 2 files of embeddings and 1 unfinished files or folders",
    ]
    would = json.loads(prune("shop", "--keep", 1, "--dry-run", "--json")[1])
    assert store.snapshot_ids("shop") == sorted(ids)
    done = json.loads(prune("shop", "--keep", 1, "--json")[1])
    assert would == {**done, "dry_run": True}
    assert store.snapshot_ids("shop") == sorted([ids[1], ids[3], ids[4]])
    assert not half.exists()
    for kept in (ids[1], ids[3], ids[4]):
        store.open_snapshot("shop", kept)
    assert prune("--keep", 1)[1].startswith("removed 0 snapshots, 0 audits, 0 files of embeddings and 0 unfinished")


def test_wrong_options_and_damage(made: tuple[Store, list[SnapshotId]], prune: Command) -> None:
    store, ids = made
    assert prune("--keep", -1)[0] == 2
    code, _, err = prune("nothing")
    assert code == 3
    assert "nothing" in err
    store.objects.put(f"catalogs/shop/snapshots/{ids[0]}/manifest.json", b"{")
    code, text, err = prune("--keep", 1)
    assert code == 0
    assert f"removed snapshot {ids[1]} of shop" in text
    assert f"snapshot shop/{ids[0]} is damaged, so all embeddings stay" in err
    assert len(store.embedding_keys(store.only_bundle())) == 5
