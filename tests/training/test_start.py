"""What a command of training imports before it can answer."""

from __future__ import annotations

from pathlib import Path

from tests.edge.cli.imported import HEAVY, imported_by


def test_help_needs_no_numbers() -> None:
    """Help of every command answers at once: neither torch nor NumPy is imported for it."""
    names = ["", "emoji", "split", "duplicates", "train", "evaluate", "export", "embed", "experiment"]
    codes, modules = imported_by("training.cli", ["--version"], *([*name.split(), "--help"] for name in names))
    assert codes == {0}
    assert not modules & (HEAVY | {"numpy", "fsspec", "PIL", "timm", "accelerate", "pytorch_metric_learning"})


def test_a_split_of_a_missing_folder_needs_no_torch(tmp_path: Path) -> None:
    """A wrong path is reported without the libraries that train."""
    codes, modules = imported_by("training.cli", ["split", str(tmp_path / "none"), "--out", str(tmp_path / "my")])
    assert codes == {2}
    assert not modules & (HEAVY | {"timm", "accelerate", "pytorch_metric_learning"})


def test_a_split_needs_no_torch(tmp_path: Path) -> None:
    """Nor does a split that is made."""
    for number in range(10):
        folder = tmp_path / "images" / f"class {number}"
        folder.mkdir(parents=True)
        (folder / "image.jpg").write_bytes(b"not read here")
    codes, modules = imported_by("training.cli", ["split", str(tmp_path / "images"), "--out", str(tmp_path / "my")])
    assert codes == {0}
    assert not modules & HEAVY
