"""One ONNX export, which takes seconds, for all tests of what is done with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from training.export import ExportOptions, conversion, export_run
from training.export.onnx_model import OnnxModel, to_onnx
from training.loop import FinishedRun
from training.model import Embedder


@pytest.fixture(scope="session")
def model(finished: FinishedRun) -> OnnxModel:
    return to_onnx(finished.embedder, finished.preprocessing)


@pytest.fixture(scope="session")
def exporting(model: OnnxModel, finished: FinishedRun) -> Iterator[pytest.MonkeyPatch]:
    """Exports of the finished run take its ONNX graph from above; those of any other run make their own."""
    weights = finished.embedder.state_dict()

    def convert_once(embedder: Embedder, preprocessing: Preprocessing) -> OnnxModel:
        others = embedder.state_dict()
        same = others.keys() == weights.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
        return model if same else to_onnx(embedder, preprocessing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "to_onnx", convert_once)
        yield patch


@pytest.fixture(scope="session")
def exported(
    run: Path, held_out_items: list[Item], exporting: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    export_run(run, out, ExportOptions(images=held_out_items, far_target=0.05))
    return out


@pytest.fixture(scope="session")
def lower(
    run: Path,
    training_items: list[Item],
    held_out_items: list[Item],
    exporting: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Bundles in float16 and in 8-bit integers."""
    folder = tmp_path_factory.mktemp("lower")
    for precision in ("fp16", "int8"):
        options = ExportOptions(
            precision=precision,
            images=held_out_items,
            calibration_images=training_items,
            far_target=0.05,
            max_flips=100.0,  # four steps leave all similarities close to 1: any change flips many
            licence="ours | to keep",
        )
        export_run(run, folder / precision, options)
    return {precision: folder / precision for precision in ("fp16", "int8")}
