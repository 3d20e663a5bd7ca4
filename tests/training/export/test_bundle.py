"""The exported bundle gives what the trained embedder gives, or is not written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import training
from retrieval.contract.bundle import open_bundle
from retrieval.contract.manifest import Item
from retrieval.engine.encoder import Encoder
from retrieval.errors import InvalidInput, NotEnoughEvidence, ValidationFailed
from training.config import DataConfig, to_json
from training.export import ExportOptions, ExportProgress, conversion, export_run, parity, shift_of
from training.export.parity import PARITY_TOLERANCE, parity_batches
from training.loop import FinishedRun, embedding_function
from training.provenance import describe_items

pytestmark = pytest.mark.slow  # each exports a network


def test_production_gives_what_training_gives(exported: Path, finished: FinishedRun) -> None:
    """At the batch sizes of the check and at others."""
    encoder = Encoder.open(open_bundle(exported))
    pixels = np.random.default_rng(0).normal(size=(21, 3, 32, 32)).astype(np.float32)
    expected = embedding_function(finished.embedder)(pixels)
    for n in (*parity_batches(encoder), 5, 21):
        rows = encoder.embed(pixels[:n])
        assert_allclose(rows, expected[:n], atol=PARITY_TOLERANCE)
        assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_one_image_two_and_the_servers_largest_batch_are_compared(exported: Path) -> None:
    assert open_bundle(exported).evaluation["export"]["parity_batches"] == [1, 2, 16]


def test_the_bundle_says_how_it_came_about(
    exported: Path, finished: FinishedRun, training_items: list[Item], held_out_items: list[Item]
) -> None:
    bundle = open_bundle(exported)
    assert bundle.preprocessing == finished.preprocessing
    assert bundle.dimension == 16
    assert bundle.evaluation["training"] == to_json(finished.config)
    assert bundle.evaluation["held_out"]["n_classes"] == 14
    assert bundle.evaluation["data"]["training"] == describe_items(training_items).to_json()
    assert bundle.evaluation["data"]["validation"] == describe_items(held_out_items).to_json()
    inputs, embeddings = bundle.probe()
    assert_allclose(embedding_function(finished.embedder)(inputs), embeddings, atol=1e-6)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["fp32"]


def test_float32_moves_similarities_by_rounding_only(exported: Path) -> None:
    """Against the trained embedder, on the same images."""
    shift = shift_of(open_bundle(exported))
    assert shift is not None
    assert shift.n_images == 70
    assert shift.n_band > 0
    assert shift.shift_p99 < 1e-5


def test_the_bundle_names_no_path_of_this_machine(exported: Path, folders: tuple[Path, Path]) -> None:
    """Otherwise the digest would depend on where software and images lie."""
    for path in exported.iterdir():
        content = path.read_bytes()
        for secret in (b"container.py", str(Path(training.__file__).parent).encode(), str(folders[0].parent).encode()):
            assert secret not in content, path.name


def test_exported_again_it_has_the_same_digest(
    run: Path, exported: Path, held_out_items: list[Item], tmp_path: Path
) -> None:
    """Nothing in it depends on the time or on where it was written."""
    again = export_run(run, tmp_path / "again", ExportOptions(images=held_out_items, far_target=0.05))
    assert again.digest == open_bundle(exported).digest


def test_without_images_nothing_is_said_about_flips(run: Path, exporting: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "plain")
    assert shift_of(bundle) is None
    assert bundle.model_card is not None
    assert "Decisions that flip" not in bundle.model_card


def test_a_model_that_differs_is_not_written(
    run: Path, exporting: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance of zero stands for an export that went wrong."""
    monkeypatch.setattr(parity, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(ValidationFailed, match="nothing was written"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_flips_too_much_is_not_written(
    run: Path, held_out_items: list[Item], exporting: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No flip at all is more than half precision can keep."""
    options = ExportOptions(precision="fp16", images=held_out_items, far_target=0.05, max_flips=0.0)
    with pytest.raises(ValidationFailed, match=r"fp16 flips .* nothing was written"):
        export_run(run, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused_before_any_work(exported: Path, run: Path) -> None:
    with pytest.raises(InvalidInput, match="not empty"):
        export_run(run, exported)
    with pytest.raises(InvalidInput, match="not a folder"):
        export_run(run, exported / "model.onnx")


def test_lower_precision_needs_images(run: Path, held_out_items: list[Item], tmp_path: Path) -> None:
    """What is missing is said before any work; images without labels do not count."""
    unlabelled = [replace(item, label="") for item in held_out_items]
    for options, expected in (
        (ExportOptions(precision="fp16"), "--images"),
        (ExportOptions(precision="int8", images=held_out_items), "--calibration-images"),
        (ExportOptions(precision="fp16", images=unlabelled), "need labels"),
    ):
        with pytest.raises(InvalidInput, match=expected):
            export_run(run, tmp_path / "out", options)


def test_too_few_calibration_images_are_refused(
    run: Path, held_out_items: list[Item], exporting: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ExportOptions(precision="int8", images=held_out_items, calibration_images=held_out_items[:31])
    with pytest.raises(NotEnoughEvidence, match="at least 32 readable images, found 31"):
        export_run(run, tmp_path / "out", options)


def test_calibration_images_that_cannot_be_read_do_not_count(
    run: Path, held_out_items: list[Item], exporting: pytest.MonkeyPatch, tmp_path: Path, finished: FinishedRun
) -> None:
    lost = [replace(item, uri=f"{item.uri}.lost") for item in held_out_items[:1]]
    finished = replace(finished, config=replace(finished.config, data=DataConfig(max_unreadable=0.1)))
    options = ExportOptions(precision="int8", images=held_out_items, calibration_images=[*held_out_items[:31], *lost])
    with pytest.raises(NotEnoughEvidence, match="readable images, found 31"):
        conversion.convert(finished, options, tmp_path, ExportProgress())


def test_images_of_classes_trained_on_are_told(
    run: Path, training_items: list[Item], held_out_items: list[Item], exporting: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [*held_out_items, *training_items[:5]]
    bundle = export_run(run, tmp_path / "out", ExportOptions(images=images, far_target=0.05))
    assert bundle.evaluation["export"]["shift_trained_classes"] == [training_items[0].label]
