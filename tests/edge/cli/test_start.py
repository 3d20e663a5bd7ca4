"""What a command imports before it can answer: the modules, not the time, which depends on the machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.cli.imported import HEAVY, imported_by

MANIFEST = "id,uri,label\nfirst,image.jpg,cup\n"


@pytest.fixture
def closed_address() -> Iterator[str]:
    """A port that is taken and does not listen."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_help_needs_neither_numbers_nor_a_network() -> None:
    """Help of every command answers at once: not even NumPy, gRPC or the settings are imported for it."""
    names = ["", "calibrate", "reindex", "search", "audit", "serve", "worker", "beat", "health", "demo"]
    names += ["snapshots list", "snapshots rollback", "bundles list", "bundles name", "catalogs list"]
    names += ["jobs list", "jobs show", "audits list", "audits show"]
    names += [f"operating-points {verb}" for verb in ("list", "show", "activate")]
    codes, modules = imported_by("retrieval.edge.cli", ["--version"], *([*name.split(), "--help"] for name in names))
    assert codes == {0}
    assert not modules & (HEAVY | {"numpy", "grpc", "google", "pydantic_settings", "fsspec", "PIL"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("health",),
        ("snapshots", "list", "shoes"),
        ("snapshots", "rollback", "shoes"),
        ("catalogs", "list"),
        ("jobs", "list"),
        ("jobs", "show", "abcd"),
        ("audits", "list", "shoes"),
        ("audits", "show", "shoes"),
        ("operating-points", "list"),
        ("operating-points", "show"),
        ("operating-points", "activate", "abcd"),
        ("reindex", "shoes", "images.csv"),
        ("audit", "shoes", "images.csv"),
    ],
)
def test_a_client_command_imports_the_client_only(
    command: tuple[str, ...], closed_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mathematics, no Arrow, no queue, not even NumPy: the server has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.csv").write_text(MANIFEST)
    codes, modules = imported_by("retrieval.edge.cli", [*command, "--address", closed_address])
    assert codes == {3}
    assert "grpc" in modules, "it must have tried to connect"
    assert not modules & (HEAVY | {"numpy", "PIL", "fsspec"})


@pytest.mark.parametrize("what", ["image", "manifest"])
def test_a_search_reads_images_without_the_engine(what: str, tmp_path: Path, closed_address: str) -> None:
    """Looking up an image, or the images of a CSV file, needs no Arrow and no model."""
    (tmp_path / "image.jpg").write_bytes(b"an image")
    (tmp_path / "manifest.csv").write_text(MANIFEST)
    named = tmp_path / ("image.jpg" if what == "image" else "manifest.csv")
    options = ("--catalog", "shoes", f"--{what}", str(named), "--address", closed_address)
    codes, modules = imported_by("retrieval.edge.cli", ["search", *options])
    assert codes == {3}
    assert "grpc" in modules
    assert not modules & HEAVY


def test_the_client_is_light() -> None:
    """`import retrieval.client` brings gRPC and the messages, and nothing to compute or print with."""
    program = "import sys, retrieval.client; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"grpc", "google"} <= modules
    assert not modules & (HEAVY | {"numpy", "PIL", "fsspec", "pydantic", "typer", "rich"})


@pytest.mark.slow
def test_the_check_sees_what_a_command_imports(tmp_path: Path) -> None:
    """A command that needs the engine is found to import it: the checks above are not blind."""
    options = ("--bundle", "abcd", "--data", str(tmp_path), "--store", str(tmp_path), "--state-dir", str(tmp_path))
    codes, modules = imported_by("retrieval.edge.cli", ["calibrate", *options])
    assert codes == {3}
    assert {"numpy", "pyarrow", "onnxruntime"} <= modules
