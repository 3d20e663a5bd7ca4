"""The demonstration: what its reader types, which targets it uses and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from retrieval.consistency import parse_target
from retrieval.edge.cli import demo
from retrieval.edge.cli.demo_figures import print_figures
from retrieval.edge.settings import load_settings


def test_a_shell_gets_the_settings_of_the_demonstration(tmp_path: Path) -> None:
    """The lines can be pasted, also if the folder has a space or a quote in its name."""
    folder = tmp_path / "my 'demo'"
    settings = load_settings(state_dir=folder / "state", store_url=str(folder / "store"), address="127.0.0.1:50123")
    program = "; ".join([*demo.exports(settings), "env"])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RETRIEVAL_")}
    shown = subprocess.run(["sh", "-c", program], env=clean, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("RETRIEVAL_"))
    names = {"RETRIEVAL_STATE_DIR": "state_dir", "RETRIEVAL_STORE_URL": "store_url", "RETRIEVAL_ADDRESS": "address"}
    again = load_settings(**{names[name]: value for name, value in found.items()})
    assert (again.store, again.state_dir, again.address) == (settings.store, settings.state_dir, settings.address)


def test_a_query_may_have_one_false_match_in_its_gallery(tmp_path: Path) -> None:
    """The target in use counts the images of the catalogue; calibration can parse it."""
    table = tmp_path / "catalog.csv"
    table.write_text("id,uri,label\n" + "".join(f"{n},{n}.png,class {n % 5}\n" for n in range(37)))
    target = demo.one_false_match(table)
    assert (target, parse_target(target).far) == ("false-matches=1@37", 1 / 37)
    assert parse_target(target).describe() == "at most 1 false match per query in a gallery of 37"


def commands(target_of_report: dict[str, float]) -> Any:
    """Return a stand-in for `Demo.run` that answers each command, and the list of the commands it got."""
    ran: list[tuple[str, ...]] = []

    def run(self: demo.Demo, step: str, why: str, *command: str, accept: Any = (0,)) -> str:
        ran.append(command)
        self.seconds[step] = 1.0
        if command[1] == "calibrate":
            target = command[command.index("--target") + 1]
            return json.dumps({"id": target, "choice": {"threshold_interval": {"low": 0.1, "high": 0.3}}})
        if command[1] == "search":
            return json.dumps({"summary": {"n_queries": 4, "n_without_match": 1, "matches_right": 0.75,
                                           "first_match_right": 1.0}})  # fmt: skip
        if command[1] == "reindex":
            details = {"complete": True, "expected_microseconds": 40.5}
            return json.dumps({"snapshot": {"index_spec": "Exact", "index_details": details}})
        if command[1] == "audit":
            active = next(past[3] for past in reversed(ran) if past[1:3] == ("operating-points", "activate"))
            folder = Path(command[command.index("--report") + 1])
            folder.mkdir()
            (folder / "report.json").write_text(json.dumps(report(target_of_report[active])))
        return "{}"

    return run, ran


def report(far: float) -> dict[str, Any]:
    """What the demonstration reads of a report."""
    opis = {"value": 0.02, "floor": 0.01, "debiased": 0.01, "axis": "log_far", "far_low": 0.01, "far_high": 0.1}
    promised = {"low": far / 2, "high": far * 2}
    return {
        "recall_at_1": 0.8, "opis": opis | {"debiased_interval": None}, "opis_target": None, "score_kind": "cosine",
        "threshold": 0.2, "far_target": far, "far": far, "far_promised": promised, "tar": 0.5,
        "tar_promised": {"low": 0.4, "high": 0.6}, "n_classes": 9, "n_images": 40, "verdict": "passed",
    }  # fmt: skip


def test_both_targets_are_tried_and_shown_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that a shop would choose is active at the end; the loose one has its own sheet, report and column."""
    line = demo.Demo(tmp_path, load_settings(state_dir=tmp_path / "state"))
    shop = "false-matches=1@400"
    run, ran = commands({"far=0.01": 0.01, shop: 0.0025})
    monkeypatch.setattr(demo.Demo, "run", run)
    found = [demo._try(line, trial) for trial in demo._trials(line, 0, shop)]
    assert [tried["target"] for tried in found] == ["far=0.01", shop]
    assert [tried["far_target"] for tried in found] == [0.01, 0.0025]
    assert len({tried["contact_sheet"] for tried in found}) == len({tried["report"] for tried in found}) == 2
    activated = [command[3] for command in ran if command[1:3] == ("operating-points", "activate")]
    assert activated == ["far=0.01", shop]
    assert found[1]["index"] == {"spec": "Exact", "complete": True, "expected_microseconds": 40.5}
    print_figures({**found[1], "loose": found[0], "seconds": line.seconds})
    shown = " ".join(capsys.readouterr().out.split())
    for expected in (shop, "far=0.01", "0.0025, target 0.0025", "75.0%", "passed", "Exact, complete"):
        assert expected in shown
