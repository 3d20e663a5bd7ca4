"""The client commands against a real server: what people and machines get, and the exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from retrieval.edge.cli import main
from tests.edge.conftest import CATALOG, Running
from tests.photos import shot, write_shots

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def retrieval(running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command against the server: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        given = [*map(str, arguments), "--address", running.address]
        monkeypatch.setattr(sys, "argv", ["retrieval", *given])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            main()
        captured = capsys.readouterr()
        return int(str(left.value.code)), captured.out, captured.err

    return run


def test_health(retrieval: Command) -> None:
    assert retrieval("health") == (0, f"serving\n{CATALOG}: serving\n", "")
    listed = json.loads(retrieval("health", "--json")[1])
    assert listed == {"catalogs": [{"name": CATALOG, "serving": True, "reason": ""}]}


def test_health_names_what_to_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing listens."""
    monkeypatch.setattr(sys, "argv", ["retrieval", "health", "--address", "127.0.0.1:1"])
    with pytest.raises(SystemExit, match="3"):
        main()
    assert "start one with `retrieval serve`" in capsys.readouterr().err


def test_search_finds_the_place_of_a_new_shot(retrieval: Command, tmp_path: Path) -> None:
    """A name with characters that mean something to URLs and globs is read as it is."""
    image = tmp_path / "shot [1] #2.jpg"
    shot(3, 9).save(image)
    code, out, _ = retrieval("search", "--catalog", CATALOG, "--image", image, "--json")
    assert code == 0
    (query,) = json.loads(out)["queries"]
    assert query["id"] == image.name
    assert query["matches"][0]["label"] == "place 3"


def test_search_lists_every_match_of_an_image_with_what_decided(
    retrieval: Command, running: Running, tmp_path: Path
) -> None:
    """Score, threshold and probability of each, not only of the best."""
    shot(3, 9).save(tmp_path / "new.png")
    options = ("search", "--catalog", CATALOG, "--image", tmp_path / "new.png")
    reply = json.loads(retrieval(*options, "--json")[1])["queries"][0]
    assert len(reply["matches"]) > 1
    code, out, _ = retrieval(*options)
    assert code == 0
    point = running.store.active_operating_point(running.store.only_bundle())
    assert f"{reply['total_matches']} matches of new.png in {CATALOG}" in out
    assert f"cosine score of at least {point.threshold:.4f}" in out
    for match in reply["matches"]:
        for shown in (match["item_id"], f"{match['score']:.4f}", f"{match['match_probability']:.2f}"):
            assert shown in out
    out = retrieval(*options, "--limit", "1")[1]
    assert f"... and {reply['total_matches'] - 1} more: raise --limit" in out


def test_search_leaves_out_the_file_of_the_query(retrieval: Command, running: Running, tmp_path: Path) -> None:
    """By its path; or by its name and picture, where a worker saw it in another folder. Not by its name alone."""
    own = running.folder / "images" / "3-1.jpg"
    options = ("search", "--catalog", CATALOG, "--json", "--image")
    everything = json.loads(retrieval(*options, own)[1])["queries"][0]
    for path, others in ((own, 1), (tmp_path / own.name, 1), (tmp_path / "renamed.jpg", 0)):
        if path != own:
            path.write_bytes(own.read_bytes())
        found = json.loads(retrieval(*options, path, "--exclude-self")[1])["queries"][0]
        assert found["total_matches"] == everything["total_matches"] - others
        assert any(match["uri"].endswith("/3-1.jpg") for match in found["matches"]) == (not others)
        assert not found["truncated"]
    shot(3, 9).save(tmp_path / own.name)
    found = json.loads(retrieval(*options, tmp_path / own.name, "--exclude-self")[1])["queries"][0]
    assert any(match["uri"].endswith("/3-1.jpg") for match in found["matches"])


@pytest.mark.slow
def test_search_counts_what_is_right_and_goes_on_after_a_bad_image(retrieval: Command, tmp_path: Path) -> None:
    """One unreadable image of a manifest is one failed answer; labels judge the others; the sheet is a PNG."""
    manifest = write_shots(tmp_path / "queries", places=range(3), n_shots=2)
    (tmp_path / "queries" / "1-1.jpg").write_bytes(b"no picture")
    options = ("--catalog", CATALOG, "--manifest", manifest, "--sheet", tmp_path / "made" / "sheet.png")
    code, out, err = retrieval("search", *options, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["summary"]["n_queries"], found["summary"]["n_failed"]) == (6, 1)
    assert found["summary"]["first_match_right"] == 1.0
    failed = next(query for query in found["queries"] if query["id"] == "1-1")
    assert "expected one of JPEG" in failed["error"]
    assert (tmp_path / "made" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = retrieval("search", *options[:4])
    assert "6 queries, 1 failed" in out
    assert "first match right 100.0%" in out


def test_a_single_bad_image_is_an_error(retrieval: Command, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(b"no picture")
    code, out, err = retrieval("search", "--catalog", CATALOG, "--image", tmp_path / "image.jpg")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert retrieval("search", "--catalog", CATALOG)[0] == 2


def test_snapshots_are_listed_and_gone_back_to(retrieval: Command, running: Running) -> None:
    """The whole id is shown, its start is enough, and a dry run changes nothing."""
    live = running.store.current(CATALOG)
    code, out, _ = retrieval("snapshots", "list", CATALOG)
    assert code == 0
    assert live in out
    (snapshot,) = json.loads(retrieval("snapshots", "list", CATALOG, "--json")[1])
    assert (snapshot["id"], snapshot["live"]) == (live, True)
    code, out, _ = retrieval("snapshots", "rollback", CATALOG, live[:4], "--dry-run")
    assert (code, out) == (0, f"would make snapshot {live} of {CATALOG} live\n")
    assert retrieval("snapshots", "rollback", CATALOG, live[:4])[:2] == (0, f"snapshot {live} of {CATALOG} is live\n")


@pytest.mark.parametrize(
    ("catalog", "snapshot", "message"),
    [(CATALOG, "zzzz", "no snapshot"), (CATALOG, "", "no snapshot older"), ("nowhere", "", "'nowhere' has no")],
)
def test_a_dry_run_of_what_cannot_be_done_fails(retrieval: Command, catalog: str, snapshot: str, message: str) -> None:
    """It must not promise what the rollback itself refuses."""
    for option in (["--dry-run"], []):
        code, out, err = retrieval("snapshots", "rollback", catalog, snapshot, *option)
        assert (code, out) == (3, "")
        assert message in err


@pytest.mark.slow
def test_operating_points_are_listed_shown_and_activated(retrieval: Command, running: Running) -> None:
    active = running.store.active_id(running.store.only_bundle())
    assert active is not None
    (listed,) = json.loads(retrieval("operating-points", "list", "--json")[1])
    assert (listed["id"], listed["active"]) == (active, True)
    assert active in retrieval("operating-points", "list")[1]
    assert json.loads(retrieval("operating-points", "show", "--json")[1]) == listed
    threshold = f"threshold {listed['threshold']:.4f}"
    shown = retrieval("operating-points", "show")[1]
    for expected in (f"operating point {active} of bundle", ": active", threshold, "promise for", "certificate", "TAR"):
        assert expected in shown
    code, out, _ = retrieval("operating-points", "activate", active[:6], "--dry-run")
    assert (code, out) == (0, f"would activate operating point {active}: {threshold}\n")
    code, out, _ = retrieval("operating-points", "activate", active[:6])
    assert code == 0
    assert out.endswith(f"operating point {active} is active: {threshold}\n")  # the server of this process logs too


@pytest.mark.slow
def test_errors_of_the_server_have_their_exit_codes(retrieval: Command, running: Running) -> None:
    """2 if the command must change, 3 if the state must; one line on stderr, nothing on stdout."""
    images = running.folder / "images" / "manifest.csv"
    for code, *arguments in (
        (3, "snapshots", "list", "nowhere"),
        (2, "snapshots", "list", "no such name"),
        (3, "snapshots", "rollback", CATALOG, "0000"),
        (3, "operating-points", "activate", "abc"),
        (3, "reindex", CATALOG, images),
        (2, "reindex", CATALOG, images, "--index", "HNSW"),
        (3, "audit", CATALOG, images),
        (3, "jobs", "list"),
        (3, "jobs", "show", "abcd"),
        (3, "audits", "list", "nowhere"),
        (3, "audits", "show", "nowhere"),
    ):
        found, out, err = retrieval(*arguments)
        assert (found, out) == (code, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_what_can_only_fail_is_refused_before_the_job(retrieval: Command, running: Running, tmp_path: Path) -> None:
    """Exit code 2, although no queue is there: a group that is no column, a missing manifest, too few items."""
    images, lines = running.folder / "images" / "manifest.csv", running.folder / "lines.jsonl"
    lines.write_text('{"id": "1", "uri": "1.png", "label": "a"}\n{"id": "2", "uri": "2.png", "shelf": 3}\n')
    for message, *arguments in (
        ("expected a column 'nosuch' to group by", "audit", CATALOG, images, "--group-by", "nosuch"),
        ("expected a column 'label' to group by", "audit", CATALOG, images, "--group-by", "label"),
        ("a folder has no columns", "audit", CATALOG, tmp_path, "--group-by", "camera"),
        ("column 'maker' of families, found camera", "audit", CATALOG, images, "--family", "maker"),
        ("column 'maker' of families, found shelf", "audit", CATALOG, lines, "--family", "maker"),
        ("a folder has no columns", "audit", CATALOG, tmp_path, "--family", "maker"),
        ("found nothing there", "audit", CATALOG, tmp_path / "no.csv"),
        ("found nothing there", "reindex", CATALOG, tmp_path / "no.csv"),
        ("use Exact or at most 2 lists", "reindex", CATALOG, images, "--index", "IVF9,nprobe=1"),
        ("use Exact", "reindex", CATALOG, tmp_path, "--index", "IVF1,nprobe=1"),
    ):
        code, out, err = retrieval(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_is_checked_as_the_worker_reads_it(retrieval: Command, tmp_path: Path, suffix: str) -> None:
    """A column is one if the reader makes it an attribute; and only items count, in every format."""
    path = tmp_path / f"items{suffix}"
    if suffix == ".csv":
        rows = "".join(f'{i},{i}.png,cup,"two\n\n\n\nlines"\n' for i in range(50))
        path.write_text(f"id,uri,label,maker\n{rows}")
    elif suffix == ".jsonl":
        path.write_text('{"id": 1, "uri": "1.png", "label": "cup", "maker": "north"}\n' + "\n" * 200)
    else:
        columns = {"id": ["1"], "uri": ["1.png"], "label": ["cup"], "maker": [b"\xff"]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    wrong = "label" if suffix == ".csv" else "nosuch" if suffix == ".jsonl" else "maker"
    code, out, err = retrieval("audit", CATALOG, path, "--group-by", wrong)
    assert (code, out) == (2, "")
    assert f"expected a column '{wrong}' to group by, found {'none' if suffix == '.parquet' else 'maker'}" in err
    code, out, err = retrieval("reindex", CATALOG, path, "--index", "IVF4,nprobe=1")
    assert (code, out) == (2, "")
    assert f"found {50 if suffix == '.csv' else 1}: use Exact" in err


def test_hidden_files_do_not_fill_an_index(retrieval: Command, tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f".{number}.png").touch()
    (tmp_path / "1.png").touch()
    code, _, err = retrieval("reindex", CATALOG, tmp_path, "--index", "IVF1,nprobe=1")
    assert (code, "found 1: use Exact" in err) == (2, True)


def test_a_path_that_only_workers_have_is_not_checked(retrieval: Command) -> None:
    """Written as a URL, it goes to the server as it is."""
    assert retrieval("audit", CATALOG, "file:///nowhere/images.csv", "--group-by", "camera")[0] == 3


def test_catalogues_and_audits_are_listed(retrieval: Command, running: Running) -> None:
    """What a newcomer asks a server first: what is there."""
    live = running.store.current(CATALOG)
    (catalog,) = json.loads(retrieval("catalogs", "list", "--json")[1])
    assert (catalog["name"], catalog["live"]["id"], catalog["live"]["n_items"]) == (CATALOG, live, 80)
    code, out, _ = retrieval("catalogs", "list")
    assert code == 0
    assert live in out
    listed = json.loads(retrieval("audits", "list", CATALOG, "--json")[1])  # other tests of this server add some
    assert {audit["id"] for audit in listed} == set(running.store.audits(CATALOG))
    assert retrieval("audits", "list", CATALOG)[0] == 0
    assert "no audit of catalogue" in retrieval("audits", "show", CATALOG, "0000zzzz")[2]


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "99999999999"])
def test_a_limit_out_of_range_is_wrong_usage(retrieval: Command, tmp_path: Path, limit: str) -> None:
    """Also one beyond 32 bits, which is no number for the protocol."""
    code, out, err = retrieval("search", "--catalog", CATALOG, "--image", tmp_path / "any.png", "--limit", limit)
    assert (code, out) == (2, "")
    assert "--limit" in err


def test_an_empty_manifest_argument_is_not_the_present_folder(retrieval: Command) -> None:
    """A script's empty variable."""
    code, _, err = retrieval("audit", CATALOG, "")
    assert (code, err) == (2, "error: manifest_uri: expected a path or URL, found nothing\n")


def test_a_search_reports_what_its_folder_holds_beside_images(retrieval: Command, tmp_path: Path) -> None:
    (tmp_path / "queries").mkdir()
    shot(3, 9).save(tmp_path / "queries" / "shot.jpg")
    (tmp_path / "queries" / "note.txt").write_text("no image")
    code, out, err = retrieval("search", "--catalog", CATALOG, "--manifest", tmp_path / "queries", "--json")
    assert code == 0
    assert json.loads(out)["passed_over"] == ["1 passed over (no images): note.txt"]
    assert "1 passed over (no images): note.txt" in err
