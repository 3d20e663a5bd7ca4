"""An experiment as a user runs it, whose processes train on real pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.pictures import write_class_folders
from training.cli import main
from training.embeddings import read_embeddings

EXPERIMENT = """
seeds = [0]
far_target = 0.05
[data]
train = "train"
validation = "cohort"
cohort = "cohort"
calibration = "calibration"
test = "test"
[common]
input = { resize = 32, crop = 32 }
model = { backbone = "timm/test_resnet", weights = "random", dimension = 16 }
schedule = { steps = 2, head_steps = 2, classes = 4, images = 2, warmup_steps = 1 }
[[arms]]
name = "tcm"
config.loss.tcm = { positive_weight = 0.5 }
[[arms]]
name = "tcm+cohort"
model = "tcm"
score = { kind = "cohort", k = 5, fitted_on = "train" }
"""


@pytest.mark.slow
def test_training_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number, part in enumerate(("train", "cohort", "calibration", "test")):
        write_class_folders(tmp_path / part, n_classes=12, n_images=4, first_class=100 * number)
    (tmp_path / "test" / "note.txt").write_text("no image")
    (tmp_path / "tried.toml").write_text(EXPERIMENT)
    out = tmp_path / "out"
    arguments = ("experiment", tmp_path / "tried.toml", "--out", out, "--data", tmp_path, "--device", "cpu", "--json")
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as `main` would set it for all that comes after
    with pytest.raises(SystemExit, match=r"^(\d+|None)?$") as left:
        main()
    captured = capsys.readouterr()
    assert left.value.code in (0, None), captured.err
    result = json.loads(captured.out)
    assert [arm["name"] for arm in result["arms"]] == ["tcm", "tcm+cohort"]
    for arm in result["arms"]:
        assert 0 < arm["figures"]["r_at_1"]["mean"] <= 1
        assert arm["figures"]["training_s"]["mean"] > 0
    assert result["passed_over"] == ["1 passed over (no images): note.txt"]
    assert "1 passed over (no images): note.txt" in captured.err
    kept = read_embeddings(out / "tcm" / "0" / "embeddings.npz")
    assert {name: part.embeddings.shape for name, part in kept.items()} == dict.fromkeys(
        ("train", "cohort", "calibration", "test"), (48, 16)
    )
    trained = json.loads((out / "tcm" / "0" / "run" / "config.json").read_text())
    assert trained["loss"]["tcm"]["positive_weight"] == 0.5
