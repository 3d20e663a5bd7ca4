"""Commands about catalogues of which one cannot be served, or waits for a reindex: on a server of their own."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest

from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.cli import main
from retrieval.edge.settings import Settings, load_settings
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.edge.conftest import Serving
from tests.pictures import write_class_folders
from tests.stores import activate, reindex

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path / "state", address="127.0.0.1:0", refresh_s=0.1)


@pytest.fixture
def filled(
    settings: Settings, tiny_bundle: Bundle, tiny_encoder: Encoder, cosine_point: OperatingPoint, pool: Executor,
    tmp_path: Path,
) -> Store:  # fmt: skip
    """A store with the catalogues cups, hats and shoes."""
    store = Store(settings.store)
    store.add_bundle(tiny_bundle.directory)
    activate(store, cosine_point, Score())
    for number, catalog in enumerate(("cups", "hats", "shoes")):
        folder = write_class_folders(tmp_path / catalog, n_classes=2, n_images=2, first_class=10 * number)
        reindex(store, tiny_encoder, pool, ReindexRequest(catalog=catalog, manifest_uri=str(folder)))
    return store


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a command; stdout without the log of the server, which runs in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["retrieval", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            main()
        captured = capsys.readouterr()
        lines = [
            line
            for line in captured.out.splitlines(keepends=True)
            if '"event"' not in line and not re.match(r"\d{4}-", line)
        ]
        return int(str(left.value.code)), "".join(lines), captured.err

    return run


def test_health_shows_every_catalogue(settings: Settings, filled: Store, retrieval: Command) -> None:
    """A damaged manifest stops neither the start nor the other catalogues, and the exit code is 3."""
    root = Path(filled.url.removeprefix("file://"))
    path = root / "catalogs" / "hats" / "snapshots" / filled.current("hats") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"index_spec": 5}))
    with Serving(settings) as port:
        code, out, err = retrieval("health", "--address", f"127.0.0.1:{port}")
        assert code == 3
        assert out.startswith("serving\ncups: serving\nhats: NOT serving: ")
        assert "index_spec: Input should be a valid string, found 5" in out
        assert out.endswith("shoes: serving\n")
        assert err == "error: 1 of 3 catalogues are not served: hats\n"


@pytest.mark.slow
def test_activating_another_score_names_the_catalogues(
    settings: Settings,
    filled: Store,
    retrieval: Command,
    cosine_point: OperatingPoint,
    cohort_point: OperatingPoint,
    cohort_score: Score,
) -> None:
    """Before it is done and when it is done; a restart serves the old pair, and health says so."""
    filled.put_score(cohort_point.bundle_digest, cohort_score)
    filled.put_operating_point(cohort_point)
    with Serving(settings) as port:
        address = ("--address", f"127.0.0.1:{port}")
        for options, verb in (((), "would wait"), ((), "would wait"), (("now",), "wait")):
            dry = () if options else ("--dry-run",)
            code, out, _ = retrieval("operating-points", "activate", cohort_point.id[:8], *dry, *address)
            assert code == 0
            assert "the live snapshot of cups, hats, shoes has another score: until `retrieval reindex`" in out
            assert f"catalogues {verb} and answer" in out
        code, out, _ = retrieval("operating-points", "activate", cosine_point.id, "--dry-run", "--json", *address)
        assert json.loads(out)["needs_reindex"] == []
    with Serving(settings) as port:
        assert retrieval("health", "--address", f"127.0.0.1:{port}")[:2] == (
            0,
            "serving\ncups: serving\nhats: serving\nshoes: serving\n",
        )
    assert filled.active_id(cosine_point.bundle_digest) == cohort_point.id


@pytest.mark.slow
def test_a_dry_run_of_a_rollback_checks_what_the_rollback_checks(
    settings: Settings, filled: Store, retrieval: Command, tiny_encoder: Encoder, pool: Executor, tmp_path: Path
) -> None:
    """The target's id, a damaged target, and nothing changes."""
    first = filled.current("cups")
    folder = write_class_folders(tmp_path / "more", n_classes=3, n_images=2)
    request = ReindexRequest(catalog="cups", manifest_uri=str(folder))
    second = reindex(filled, tiny_encoder, pool, request, created_at="2027-01-01T00:00:00+00:00")
    with Serving(settings) as port:
        address = ("--address", f"127.0.0.1:{port}")
        for target in ("", first[:6]):
            code, out, _ = retrieval("snapshots", "rollback", "cups", target, "--dry-run", *address)
            assert (code, out) == (0, f"would make snapshot {first} of cups live\n")
        code, out, _ = retrieval("snapshots", "rollback", "cups", second, "--dry-run", *address)
        assert (code, out) == (0, f"would make snapshot {second} of cups live\n")
        (index,) = filled.objects.local(f"catalogs/cups/snapshots/{first}").glob("*.index.bin")
        shutil.copyfile(folder / next(folder.rglob("*.png")), index)
        for options in (("--dry-run",), ()):
            code, out, err = retrieval("snapshots", "rollback", "cups", *options, *address)
            assert (code, out) == (3, "")
            assert "does not have the checksum of its manifest" in err
    assert filled.current("cups") == second


@pytest.mark.slow
def test_lists_name_what_is_damaged_and_show_the_rest(
    settings: Settings, filled: Store, retrieval: Command, tiny_encoder: Encoder, pool: Executor, tmp_path: Path
) -> None:
    """Snapshots, operating points, audits, bundles, catalogues; a rollback passes over it, or away from it."""
    ids = [filled.current("cups")]
    for number in range(1, 3):
        folder = write_class_folders(tmp_path / f"more{number}", n_classes=2 + number, n_images=2)
        request = ReindexRequest(catalog="cups", manifest_uri=str(folder))
        at = f"2027-01-0{number}T00:00:00+00:00"
        ids.append(reindex(filled, tiny_encoder, pool, request, job_id=f"more{number}", created_at=at))
    bundle = filled.only_bundle()
    filled.objects.put(f"catalogs/cups/snapshots/{ids[1]}/manifest.json", b"{")
    filled.objects.put(f"bundles/{bundle}/operating_points/damaged.json", b"{}")
    filled.put_audit("cups", "damaged", {"report.json": b"{}"})
    with Serving(settings) as port:
        address = ("--address", f"127.0.0.1:{port}")
        for command in (("snapshots", "list", "cups"), ("operating-points", "list"), ("audits", "list", "cups")):
            code, out, _ = retrieval(*command, *address, "--json")
            found = {row["id"]: row["problem"] for row in json.loads(out)}
            damaged = ids[1] if command[0] == "snapshots" else "damaged"
            assert code == 0
            assert damaged[:8] in found.pop(damaged)[:200], "the reason names it"
            assert set(found.values()) <= {""}
            assert len(found) == {"snapshots": 2, "operating-points": 1, "audits": 0}[command[0]]
            code, out, _ = retrieval(*command, *address)
            assert code == 0
            assert "damaged" in out
        code, out, err = retrieval("snapshots", "rollback", "cups", "--dry-run", *address)
        assert (code, out) == (0, f"would make snapshot {ids[0]} of cups live\n")
        assert f"passed over the damaged snapshot {ids[1]}: " in err
        filled.objects.put(f"catalogs/cups/snapshots/{ids[2]}/manifest.json", b"{")
        code, out, _ = retrieval("catalogs", "list", "--json", *address)
        assert {row["name"]: bool(row["problem"]) for row in json.loads(out)} == {
            "cups": True, "hats": False, "shoes": False,
        }  # fmt: skip
        code, out, _ = retrieval("snapshots", "rollback", "cups", *address)
        assert (code, out) == (0, f"snapshot {ids[0]} of cups is live\n"), "away from a damaged live one"
    filled.objects.put("bundles/broken/contract.json", b"{")
    code, out, _ = retrieval("bundles", "list", "--store", filled.url, "--json")
    assert code == 0
    assert {row["id"]: "contract.json cannot be read" in row["problem"] for row in json.loads(out)} == {
        bundle: False, "broken": True,
    }  # fmt: skip
