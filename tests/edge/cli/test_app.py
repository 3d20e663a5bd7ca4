"""The command itself: version, completion, defaults that must not import what states them."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from retrieval.edge.cli.calibrate import calibrate
from retrieval.edge.cli.reindex import reindex
from retrieval.edge.cli.search import search
from retrieval.engine.score_choice import COHORT_K
from retrieval.flows.calibrate import CalibrationRequest, CalibrationTarget
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import DEFAULT_LIMIT

COMMANDS = {"retrieval": "retrieval.edge.cli", "training": "training.cli"}


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its entry point does."""
    program = f"import sys; from {COMMANDS[name]} import main; sys.argv = [{name!r}, *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_version_is_that_of_the_distribution(name: str) -> None:
    done = run(name, "--version")
    assert (done.returncode, done.stdout) == (0, version("threshold-retrieval") + "\n")


@pytest.mark.parametrize(
    ("name", "typed", "completed"),
    [
        ("retrieval", "retrieval sna", "snapshots"),
        ("retrieval", "retrieval operating-points act", "activate"),
        ("training", "training dup", "duplicates"),
    ],
)
def test_a_command_name_is_completed(name: str, typed: str, completed: str) -> None:
    """What bash asks for after `--install-completion`."""
    asked = {f"_{name.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = run(name, **asked)
    assert (done.returncode, done.stdout.split()) == (0, [completed])


@pytest.mark.parametrize("name", COMMANDS)
def test_completion_can_be_installed(name: str) -> None:
    """The script that a shell reads calls the command itself."""
    shown = run(name, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    assert f"_{name.upper()}_COMPLETE=complete_bash" in shown
    assert "--install-completion" in run(name, "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_2(name: str) -> None:
    for arguments in (("no-such-command",), ("--no-such-option",)):
        done = run(name, *arguments)
        assert done.returncode == 2
        assert arguments[0] in done.stderr
        assert done.stdout == ""


def test_defaults_are_those_of_the_flows() -> None:
    """They are written out in the commands, so that help imports no flow."""
    calibration, reindexing = _defaults(calibrate), _defaults(reindex)
    assert calibration["k"] == COHORT_K
    target = CalibrationTarget()
    for name in (
        *("prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far", "certified_strict"),
    ):
        assert calibration[name] == getattr(target, name), name
    fields = CalibrationRequest.__dataclass_fields__
    for name in ("cohort", "k", "seed", "activate"):
        assert calibration[name] == fields[name].default, name
    assert str(target.target) == "far=0.01"
    request = ReindexRequest(catalog="shoes", manifest_uri="images")
    assert reindexing["index"] == request.index_spec
    assert reindexing["max_failed_share"] == request.max_failed_share
    assert _defaults(search)["limit"] == DEFAULT_LIMIT


def _defaults(command: object) -> dict[str, object]:
    return {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}  # type: ignore[arg-type]  # a function


@pytest.mark.parametrize("module", ["retrieval.edge.cli.app", "training.cli.app"])
def test_help_at_80_columns_has_every_name_whole(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No option, argument or command is cut, and no line is longer than the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    app = importlib.import_module(module).app

    def check(path: list[str], group: Any) -> int:
        shown = CliRunner().invoke(app, [*path, "--help"], catch_exceptions=False).output
        assert "…" not in shown
        assert max(len(line) for line in shown.splitlines()) <= 80, path
        for parameter in group.params:
            for name in [*parameter.opts, *parameter.secondary_opts]:
                assert name in shown or not name.startswith("-"), path
        inner = getattr(group, "commands", {})
        return 1 + sum(check([*path, name], found) for name, found in inner.items())

    assert check([], typer.main.get_command(app)) > 8
