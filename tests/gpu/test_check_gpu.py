"""The script for machines with a GPU runs here on the CPU, line by line, and is skipped without one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.gpu import check_gpu
from tests.gpu.run import Run


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left out, missed or wrong."""
    assert check_gpu.main(["--cpu", "--small"]) == 0
    result = json.loads(capsys.readouterr().out)
    parts = {name: part for name, part in result.items() if isinstance(part, dict)}
    assert list(parts) == list(check_gpu.PARTS)
    assert not [name for name, part in parts.items() if "left_out" in part]
    for name in ("search 1M x 128", "search 10M x 128"):
        assert parts[name]["missed"] == parts[name]["wrong"] == 0
        assert parts[name]["matches"] > 100
        assert set(parts[name]["filter_cost"]) == {"0.5", "0.01", "0.0001"}
    for name in ("IVF built on the device", "CAGRA built on the device"):
        assert parts[name]["wrong"] == 0
        assert parts[name]["measured_recall"]["value"] > 0.9


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if not check_gpu.missing_gpu():
        pytest.skip("this machine has a GPU")
    assert check_gpu.main([]) == 0
    assert "CUDA" in json.loads(capsys.readouterr().out)["skipped"]


def broken(run: Run) -> dict[str, int]:
    raise ValueError("out of order")


@pytest.mark.parametrize(
    ("part", "code"),
    [(lambda run: {"missed": 0}, 0), (lambda run: {"missed": 1}, 1), (lambda run: {"wrong": 1}, 1), (broken, 1)],
)
def test_a_missed_match_fails(part: check_gpu.Part, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """And a part that cannot run, while the others do."""
    assert check_gpu.main(["--cpu", "--small"], {"first": part, "second": lambda run: {"missed": 0}}) == code
    result = json.loads(capsys.readouterr().out)
    assert result["second"]["missed"] == 0
    assert result["first"].get("error", "ValueError").startswith("ValueError")


def test_no_part_begins_late(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check_gpu, "_LATEST_START_S", -1.0)
    assert check_gpu.main(["--cpu", "--small"], {"late": broken}) == 1
    assert json.loads(capsys.readouterr().out)["late"] == {"error": "no time was left"}


_HANGING = """
import time
from tests.gpu import check_gpu
from tests.gpu.run import Run
check_gpu._LATEST_END_S = 1.0
check_gpu.main(["--cpu", "--small"], {"quick": lambda run: {"missed": 0}, "hangs": lambda run: time.sleep(600)})
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_a_part_that_hangs_does_not_keep_the_others() -> None:
    """The script ends in time, and prints what it has."""
    run = subprocess.run([sys.executable, "-c", _HANGING], check=False, capture_output=True, text=True, timeout=120)
    result = json.loads(run.stdout)
    assert (run.returncode, result["at_work"], result["error"]) == (1, "hangs", "stopped after 1 s")
    assert result["quick"]["missed"] == 0
