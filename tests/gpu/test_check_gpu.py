"""The script for machines with a GPU runs here on the CPU, line by line, and is skipped without one."""

from __future__ import annotations

import json

import pytest

from tests.gpu import check_gpu


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left out, missed or wrong."""
    assert check_gpu.main(["--cpu", "--small"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    parts = {name: part for name, part in result.items() if isinstance(part, dict)}
    assert len(parts) == 6
    assert not [name for name, part in parts.items() if "left_out" in part]
    for name in ("search 1M x 128", "search 10M x 128"):
        assert parts[name]["missed"] == parts[name]["wrong"] == 0
        assert parts[name]["matches"] > 100


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if not check_gpu.missing_gpu():
        pytest.skip("this machine has a GPU")
    assert check_gpu.main([]) == 0
    assert "CUDA" in json.loads(capsys.readouterr().out)["skipped"]


def test_a_missed_match_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And a part that cannot run, while the others do."""

    def broken(run: check_gpu.Run) -> dict[str, int]:
        raise ValueError("out of order")

    for name in ("inverted_lists", "encoder", "training", "processes"):
        monkeypatch.setattr(check_gpu, name, lambda run: {})
    monkeypatch.setattr(check_gpu, "search", lambda run, n: {"missed": n == 5000})
    assert check_gpu.main(["--cpu", "--small"]) == 1
    monkeypatch.setattr(check_gpu, "search", lambda run, n: {"missed": 0})
    assert check_gpu.main(["--cpu", "--small"]) == 0
    monkeypatch.setattr(check_gpu, "training", broken)
    assert check_gpu.main(["--cpu", "--small"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["training in bf16"]["error"].startswith("ValueError")
