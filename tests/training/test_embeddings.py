"""Embeddings of a finished run in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.contract.manifest import read_manifest
from retrieval.errors import CorruptArtifact, FailedPrecondition, InvalidInput
from training.embeddings import embed_parts, parse_parts, read_embeddings


def test_parts_are_embedded_and_read_back(run: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    seen = []
    out = tmp_path / "embeddings.npz"
    parts = {"train": str(folders[0]), "new": str(folders[1])}
    counts = embed_parts(run, parts, out, device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert counts == {"train": 40, "new": 70}
    assert seen[-1][1] == 110
    found = read_embeddings(out)
    assert {name: part.embeddings.shape for name, part in found.items()} == {"train": (40, 16), "new": (70, 16)}
    assert np.linalg.norm(found["new"].embeddings, axis=1) == pytest.approx(1, abs=1e-5)
    assert (found["new"].labels[0], found["new"].ids[0]) == ("class_100", "class_100/0.png")
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.npz"]


def test_one_long_label_does_not_multiply_the_file(run: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Its size grows with the texts, not with the items times the longest text; any text comes back."""
    items = read_manifest(str(folders[1]))
    labels = ["L" * 100_000, "tür\n🚪", "", *(item.label for item in items[3:])]
    rows = [{"id": item.id, "uri": item.uri, "label": label} for item, label in zip(items, labels, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "e.npz"
    embed_parts(run, {"new": str(tmp_path / "t.jsonl")}, out, device="cpu", progress=lambda done, total: None)
    found = read_embeddings(out)["new"]
    assert (found.labels.tolist(), found.ids.tolist()) == (labels, [item.id for item in items])
    assert out.stat().st_size < 200_000


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    """Their texts are arrays of the width of the longest."""
    labels, ids = np.array(["cup", "vase of glass"]), np.array(["1", "2"])
    np.savez(tmp_path / "e.npz", **{"a.embeddings": np.eye(2, dtype=np.float32), "a.labels": labels, "a.ids": ids})
    found = read_embeddings(tmp_path / "e.npz")["a"]
    assert (found.labels.tolist(), found.ids.tolist()) == (["cup", "vase of glass"], ["1", "2"])


def test_what_cannot_be_done_is_said(folders: tuple[Path, Path], tmp_path: Path) -> None:
    nothing = {"device": "cpu", "progress": lambda done, total: None}
    with pytest.raises(FailedPrecondition, match="holds no checkpoint"):
        embed_parts(tmp_path, {"new": str(folders[1])}, tmp_path / "e.npz", **nothing)
    for out in (tmp_path, tmp_path / "absent" / "e.npz"):
        with pytest.raises(InvalidInput, match="expected a file in an existing folder"):
            embed_parts(tmp_path, {"new": str(folders[1])}, out, **nothing)
    (tmp_path / "e.npz").write_bytes(b"PK cut off")
    with pytest.raises(CorruptArtifact, match="delete it"):
        read_embeddings(tmp_path / "e.npz")
    for arguments in (["a"], ["a="], ["a=1", "a=2"], ["a b=1"]):
        with pytest.raises(InvalidInput, match="expected NAME=FOLDER"):
            parse_parts(arguments)
