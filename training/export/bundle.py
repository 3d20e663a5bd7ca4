"""From a finished run to a model bundle, proven equal to the trained embedder, or not further from it than allowed.

Decides what is refused and what goes into the bundle; leaves converting and checking to the modules beside it. Nothing
appears where the bundle should be before every check has passed.
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
from training.export.onnx_model import INPUT_NAME, OPSET, OUTPUT_NAME
from training.export.options import FLOAT32, SILENT, ExportOptions, ExportProgress
from training.export.parity import probe_pixels
from training.loop import FinishedRun, load_finished
from training.provenance import recorded_data
from training.writing import make_folder

_N_PROBE = 8


def export_run(run: Path, out: Path, options: ExportOptions = FLOAT32, *, progress: ExportProgress = SILENT) -> Bundle:
    """Export the embedder of a finished run to the bundle `out`, a new folder, with its model card.

    Raises InvalidInput where `out` holds something already or images are missing, FailedPrecondition where the run is
    not finished, NotEnoughEvidence and TooManyFailures where the images are too few or unreadable, ValidationFailed
    where the production encoder does not give what the trained embedder gives, or flips more decisions than allowed.
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
            f"{options.precision} moves similarities: name labelled images of classes that were not trained on, for "
            "instance those validated on, to measure by how much (--images)"
        )
    if options.precision == "int8" and options.calibration_images is None:
        raise InvalidInput(
            "int8 needs to know the range of every activation: name images of the kind the model will meet, for "
            "instance those trained on (--calibration-images)"
        )
    if options.images is not None and not all(item.label for item in options.images):
        raise InvalidInput("images to measure the shift of similarity on need labels, some have none (--images)")


def _evaluation(run: Path, finished: FinishedRun, options: ExportOptions, converted: Converted) -> dict[str, Any]:
    """What the bundle says about itself to machines; the model card says the same to people."""
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
    """The configuration with a file of weights named, but not located."""
    return replace(config, model=replace(config.model, weights=Path(config.model.weights).name))


def _write(directory: Path, finished: FinishedRun, converted: Converted, evaluation: Mapping[str, Any]) -> Bundle:
    pixels = probe_pixels(finished.preprocessing, _N_PROBE)
    expected = converted.embed(pixels)
    return write_bundle(
        directory,
        onnx_model=converted.content,
        preprocessing=finished.preprocessing,
        dimension=expected.shape[1],
        opset=OPSET,
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        evaluation=evaluation,
        probe_inputs=pixels,
        probe_embeddings=expected,
        model_card=render_card(evaluation, preprocessing=finished.preprocessing, dimension=expected.shape[1]),
    )
