"""Converts a trained embedder to a model of the requested precision, and checks it with the production encoder.

Decides what is compared, and on which images. `precision.py` converts a graph, `shift.py` measures a shift.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import write_bundle
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.encoder import Encoder
from retrieval.errors import NotEnoughEvidence
from training.data import read_items
from training.evaluation import Embed, embed_images
from training.export.onnx_model import OPSET, OnnxModel, model_file, to_onnx
from training.export.options import ExportOptions, ExportProgress
from training.export.parity import check_batches, check_parity, parity_batches, probe_pixels
from training.export.precision import to_half, to_int8
from training.export.shift import check_flips, measure_shift
from training.loop import FinishedRun, embedding_function
from training.provenance import describe_items

_N_CALIBRATION, _MIN_CALIBRATION = 256, 32  # images; measured: 64, 256 and 512 images flip equally few decisions
_CALIBRATION_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A converted model. content: its bytes; embed: computes the expected embeddings; evidence: results of checks."""

    content: bytes
    embed: Embed
    evidence: Mapping[str, Any]


def convert(finished: FinishedRun, options: ExportOptions, staging: Path, progress: ExportProgress) -> Converted:
    """Convert the embedder to the precision of `options`. Raises as `export_run`.

    float32 is compared with the trained embedder, in batches of one, two and the largest size of the encoder; a lower
    precision is compared with float32, on images.
    """
    model = to_onnx(finished.embedder, finished.preprocessing)
    trained = embedding_function(finished.embedder)
    dimension = trained(probe_pixels(finished.preprocessing, 1)).shape[1]
    exact = try_out(model.content(), finished.preprocessing, dimension, staging / "fp32")
    pixels = probe_pixels(finished.preprocessing, max(parity_batches(exact)))
    evidence: dict[str, Any] = {
        "precision": options.precision,
        "opset": OPSET,
        "parity": check_parity(exact, trained, pixels),
        "parity_batches": list(parity_batches(exact)),
        "fp32_bytes": len(model.content()),
    }
    if options.precision == "fp32":
        content, embed = model.content(), trained
        evidence |= _measure(trained, exact.embed, finished, options, progress)
    else:
        content, n_used = _lower(model, finished, options, progress)
        if n_used:
            calibration = describe_items(options.calibration_images or ()).to_json()
            evidence["calibration_images"] = calibration | {"n_used": n_used}
        lower = try_out(content, finished.preprocessing, dimension, staging / options.precision)
        embed = lower.embed
        evidence["batch_difference"] = check_batches(lower, pixels)
        evidence |= _measure(exact.embed, lower.embed, finished, options, progress)
    return Converted(content=content, embed=embed, evidence=evidence | {"model_bytes": len(content)})


def try_out(content: bytes, preprocessing: Preprocessing, dimension: int, folder: Path) -> Encoder:
    """Open a model in the production encoder before anything is known about it: the probe of its bundle is empty."""
    side = preprocessing.crop
    bundle = write_bundle(
        folder,
        model_file(content),
        preprocessing=preprocessing,
        dimension=dimension,
        evaluation={},
        probe=(np.empty((0, 3, side, side), dtype=np.float32), np.empty((0, dimension), dtype=np.float32)),
    )
    return Encoder.open(bundle)


def _lower(
    model: OnnxModel, finished: FinishedRun, options: ExportOptions, progress: ExportProgress
) -> tuple[bytes, int]:
    """Convert the model to fewer bits; return it with the number of images used for the ranges of its activations."""
    if options.precision == "fp16":
        return to_half(model), 0
    items = options.calibration_images or ()
    _require_calibration(len(items))
    rng = np.random.default_rng(_CALIBRATION_SEED)
    rows = np.sort(rng.choice(len(items), size=min(len(items), _N_CALIBRATION), replace=False))
    sizes: list[int] = []
    content = to_int8(model, _pixels([items[row] for row in rows], finished, progress, sizes))
    return content, sum(sizes)


def _pixels(
    items: Sequence[Item], finished: FinishedRun, progress: ExportProgress, sizes: list[int]
) -> Iterator[NDArray[np.float32]]:
    """Read images, a chunk at a time; append the number of images in each chunk to `sizes`."""
    for part in read_items(
        items,
        finished.preprocessing,
        max_unreadable=finished.config.data.max_unreadable,
        progress=progress.calibrating,
    ):
        sizes.append(len(part.items))
        if part.items:
            yield part.pixels
    _require_calibration(sum(sizes))


def _require_calibration(n: int) -> None:
    if n < _MIN_CALIBRATION:
        raise NotEnoughEvidence(
            f"int8 is calibrated on at least {_MIN_CALIBRATION} readable images, found {n}: add images "
            "(--calibration-images)"
        )


def _measure(
    before: Embed, after: Embed, finished: FinishedRun, options: ExportOptions, progress: ExportProgress
) -> dict[str, Any]:
    """Measure and check the shift on the images; return an empty result without images. Raises as `check_flips`."""
    if options.images is None:
        return {}
    found = embed_images(
        options.images,
        lambda pixels: np.hstack([before(pixels), after(pixels)]),
        finished.preprocessing,
        max_unreadable=finished.config.data.max_unreadable,
        progress=progress.measuring,
    )
    far_target = options.far_target or finished.evaluation.far_target
    rows_before, rows_after = np.hsplit(found.embeddings, 2)
    shift = measure_shift(rows_before, rows_after, found.labels, far_target=far_target)
    check_flips(shift, options.max_flips, precision=options.precision)
    images = describe_items(options.images).to_json()
    return {"shift": shift.to_json(), "max_flips": options.max_flips, "shift_images": images}
