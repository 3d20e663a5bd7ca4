"""`retrieval bundles`, on a store without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from retrieval.edge.cli import main
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, UnknownBundle


@pytest.fixture
def run(calibrated: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command on the store: exit code, stdout, stderr."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        where = ("--store", calibrated.url, "--state-dir", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["retrieval", "bundles", *arguments, *where])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            main()
        captured = capsys.readouterr()
        return int(str(left.value.code)), captured.out, captured.err

    return run_command


def test_bundles_are_listed_with_threshold_and_name(run, calibrated: Store) -> None:
    digest = calibrated.only_bundle()
    point = calibrated.active_operating_point(digest)
    (row,) = json.loads(run("list", "--json")[1])
    assert (row["id"], row["name"], row["threshold"], row["catalogs"]) == (digest, "", point.threshold, [])
    code, out, _ = run("name", digest[:6], "shoes-v2")
    assert (code, out) == (0, f"bundle {digest} has the name shoes-v2\n")
    code, out, _ = run("list")
    assert code == 0
    for expected in (digest, "shoes-v2", f"{point.threshold:.4f}"):
        assert expected in out
    assert calibrated.find_bundle("shoes-v2") == digest
    assert run("name", "shoes-v2", "shoes")[0] == 0
    with pytest.raises(UnknownBundle, match="no bundle is or starts with 'shoes-v2'"):
        calibrated.find_bundle("shoes-v2")


def test_a_name_that_cannot_be_typed_is_refused(run, calibrated: Store) -> None:
    digest = calibrated.only_bundle()
    assert run("name", digest, "my shoes")[0] == 2
    assert run("name", "nothere", "shoes")[0] == 3
    with pytest.raises(InvalidInput, match="name of a bundle"):
        calibrated.name_bundle(digest, "../x")


def test_a_damaged_operating_point_does_not_hide_the_bundle(run, calibrated: Store) -> None:
    (stored,) = Path(calibrated.url.removeprefix("file://")).rglob("operating_points/*.json")
    stored.write_bytes(b"damaged")
    (row,) = json.loads(run("list", "--json")[1])
    assert row["threshold"] is None
    assert "operating point" in row["problem"]
    assert run("list")[0] == 0
