"""The demonstration: what it tells its reader to type."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from retrieval.edge.cli.demo import exports
from retrieval.edge.settings import load_settings


def test_a_shell_gets_the_settings_of_the_demonstration(tmp_path: Path) -> None:
    """The lines can be pasted, also if the folder has a space or a quote in its name."""
    folder = tmp_path / "my 'demo'"
    settings = load_settings(state_dir=folder / "state", store_url=str(folder / "store"), address="127.0.0.1:50123")
    program = "; ".join([*exports(settings), "env"])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RETRIEVAL_")}
    shown = subprocess.run(["sh", "-c", program], env=clean, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("RETRIEVAL_"))
    names = {"RETRIEVAL_STATE_DIR": "state_dir", "RETRIEVAL_STORE_URL": "store_url", "RETRIEVAL_ADDRESS": "address"}
    again = load_settings(**{names[name]: value for name, value in found.items()})
    assert (again.store, again.state_dir, again.address) == (settings.store, settings.state_dir, settings.address)
