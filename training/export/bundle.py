"""Writes a finished run as a model bundle that is equal to the trained embedder, or within the allowed difference.

Decides which requests are rejected and the content of the bundle. The bundle appears only after every check has passed.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrieval.contract.bundle import Bundle, check_new_folder, open_bundle, write_bundle
from retrieval.engine.encoder import Encoder
from retrieval.errors import InvalidInput
from training.config import TrainingConfig, to_json
from training.export.card import backbone_licence, render_card
from training.export.conversion import Converted, convert
from training.export.onnx_model import model_file
from training.export.options import FLOAT32, SILENT, ExportOptions, ExportProgress
from training.export.parity import probe_pixels
from training.loop import FinishedRun, load_finished
from training.provenance import recorded_data
from training.writing import make_folder

_N_PROBE = 8


def export_run(run: Path, out: Path, options: ExportOptions = FLOAT32, *, progress: ExportProgress = SILENT) -> Bundle:
    """Export the embedder of a finished run to the bundle `out`, a new folder, with its model card.

    Raises InvalidInput if `out` is not empty or images are missing, FailedPrecondition if the run is not finished,
    NotEnoughEvidence and TooManyFailures if there are too few or too many unreadable images, ValidationFailed if the
    production encoder does not reproduce the trained embedder, or flips more decisions than allowed.
    """
    _check_request(out, options)
    finished = load_finished(run)
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        converted = convert(finished, options, Path(staging), progress)
        evaluation = _evaluation(run, finished, options, converted)
        bundle = _write(Path(staging) / "bundle", finished, converted, evaluation)
        Encoder.open(bundle)
        bundle.directory.replace(out)
    return open_bundle(out)


def _check_request(out: Path, options: ExportOptions) -> None:
    check_new_folder(out)
    if options.precision != "fp32" and options.images is None:
        raise InvalidInput(
            f"{options.precision} changes similarities: name labelled images of classes that were not used for "
            "training, for instance the validation images, to measure the change (--images)"
        )
    if options.precision == "int8" and options.calibration_images is None:
        raise InvalidInput(
            "int8 needs the range of every activation: name images of the kind that the model is used for, for "
            "instance the training images (--calibration-images)"
        )
    if options.images is not None and not all(item.label for item in options.images):
        raise InvalidInput("images to measure the shift of similarity need labels, some have none (--images)")


def _evaluation(run: Path, finished: FinishedRun, options: ExportOptions, converted: Converted) -> dict[str, Any]:
    """Collect the content of evaluation.json; the model card presents it to people."""
    data = recorded_data(run)
    export = dict(converted.evidence)
    if data is not None and options.images is not None:
        measured = {item.label for item in options.images}
        export["shift_trained_classes"] = sorted(measured.intersection(data.training.classes))
    return {
        "training": to_json(_without_paths(finished.config)),
        "held_out": finished.evaluation.to_json(),
        "data": None if data is None else data.to_json(),
        "export": export,
        "licence": {"model": options.licence, "backbone": backbone_licence(finished.config.model)},
    }


def _without_paths(config: TrainingConfig) -> TrainingConfig:
    """Return the configuration with the name of its file of weights instead of the path."""
    return replace(config, model=replace(config.model, weights=Path(config.model.weights).name))


def _write(directory: Path, finished: FinishedRun, converted: Converted, evaluation: Mapping[str, Any]) -> Bundle:
    pixels = probe_pixels(finished.preprocessing, _N_PROBE)
    expected = converted.embed(pixels)
    return write_bundle(
        directory,
        model_file(converted.content),
        preprocessing=finished.preprocessing,
        dimension=expected.shape[1],
        evaluation=evaluation,
        probe=(pixels, expected),
        model_card=render_card(evaluation, preprocessing=finished.preprocessing, dimension=expected.shape[1]),
    )
