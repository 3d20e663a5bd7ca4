"""Temporary folders: one for each block, none left, not even by a killed process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retrieval.engine.workspace import clear_workspaces, workspace

KILLED = """
import sys, tempfile
from retrieval.engine.workspace import workspace
with workspace() as folder:
    (folder / "index").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_folder_is_removed_with_its_block(tmp_path: Path) -> None:
    """Two at a time are two folders; an error removes them too."""

    def work() -> None:
        with workspace() as first, workspace() as second:
            assert first != second
            (first / "file").write_text("x")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        work()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    """The one of a process that lives is left alone."""
    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with workspace():
            assert (left / "index").exists()
        other.kill()
        other.wait()
        assert (left / "index").exists()
        with workspace():
            assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Every user may write to the folder for temporary files."""
    (tmp_path / "precious").mkdir()
    (tmp_path / f"retrieval-{os.getuid()}-work-link").symlink_to(tmp_path / "precious")
    clear_workspaces()
    assert (tmp_path / "precious").is_dir()
