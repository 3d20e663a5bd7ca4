"""What do half precision and 8-bit integers cost and gain?

A finished run (emoji, a softmax plus TCM, if none is named), exported in float32, in float16 and in several kinds of
8-bit integers; labelled images of classes that it was not trained on, through the production encoder on one thread: by
how much similarities move near the threshold, which decisions flip, R@1 and TAR, size of the file, and CPU time beside
float32 in the same rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType

from retrieval.contract.manifest import read_manifest
from retrieval.engine.encoder import Encoder
from tests.bench.measuring.emoji import emoji_data, emoji_run
from tests.bench.measuring.rounds import Group, cpu_of, in_turns, option_parser, show
from training.data import read_items
from training.export.conversion import try_out
from training.export.onnx_model import OnnxModel, to_onnx
from training.export.precision import to_half, to_int8
from training.export.shift import PrecisionShift, measure_shift
from training.loop import FinishedRun, load_finished

Pixels = NDArray[np.float32]
_BATCHES = (1, 16)
_TIMED_IMAGES = 64


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of `training train`; given with both kinds of images")
    parser.add_argument("--images", help="labelled images, folder or table, not used for training")
    parser.add_argument("--calibration-images", help="images that show the ranges of activations")
    parser.add_argument("--n-calibration", type=int, default=256, help="how many of them")
    parser.add_argument("--far", type=float, nargs="+", default=[1e-2], help="targets of the threshold")
    options = parser.parse_args()
    if options.run is None:
        data, options.run = emoji_data(), emoji_run("base+tcm")
        options.images, options.calibration_images = f"{data}/cohort.csv", f"{data}/train.csv"
    finished = load_finished(options.run)
    pixels, labels = _read(options.images, finished)
    shown, _ = _read(options.calibration_images, finished, 32 if options.quick else options.n_calibration)
    kinds = _kinds(to_onnx(finished.embedder, finished.preprocessing), shown)
    if options.quick:
        kinds = {name: kinds[name] for name in ("fp32", "fp16", "int8")}
    with tempfile.TemporaryDirectory() as folder:
        encoders, sizes = {}, {}
        for number, (name, convert) in enumerate(kinds.items()):
            encoders[name] = _open(convert(), finished, Path(folder) / str(number))
            sizes[name] = encoders[name].bundle.model_path.stat().st_size
        facts = _facts(encoders, sizes, pixels, labels, options.far)
        groups = [_speed(encoders, pixels, batch, options.rounds) for batch in _BATCHES]
    show(__doc__, options, groups, facts)


def _kinds(model: OnnxModel, shown: Pixels) -> dict[str, Callable[[], bytes]]:
    """How each kind of model is made."""

    def int8(**options: object) -> Callable[[], bytes]:
        batches = [shown[start : start + 16] for start in range(0, len(shown), 16)]
        return partial(to_int8, model, batches, **options)

    return {
        "fp32": model.content,
        "fp16": partial(to_half, model),
        "int8": int8(),
        "int8, every layer": int8(float_layers=0.0),
        "int8, a quarter in float": int8(float_layers=0.25),
        "int8, half in float": int8(float_layers=0.5),
        "int8, percentile": int8(calibrate_method=CalibrationMethod.Percentile),
        "int8, entropy": int8(calibrate_method=CalibrationMethod.Entropy),
        "int8, weights of 7 bits": int8(reduce_range=True),
        "int8, one scale a layer": int8(per_channel=False),
        "int8, signed activations": int8(activation_type=QuantType.QInt8),
        "int8, last layer in float": int8(nodes_to_exclude=[*_first_eighth(model), model.weighted[-1], *model.tail]),
    }


def _first_eighth(model: OnnxModel) -> list[str]:
    names = [node.name for node in model.graph.graph.node]
    return names[: names.index(model.weighted[round(len(model.weighted) / 8)])]


def _read(source: str, finished: FinishedRun, most: int | None = None) -> tuple[Pixels, list[str]]:
    items = read_manifest(source)
    if most is not None and most < len(items):
        rows = np.sort(np.random.default_rng(0).choice(len(items), size=most, replace=False))
        items = [items[row] for row in rows]
    parts = [*read_items(items, finished.preprocessing, max_unreadable=0.01, progress=lambda done, total: None)]
    return np.concatenate([part.pixels for part in parts]), [item.label for part in parts for item in part.items]


def _open(content: bytes, finished: FinishedRun, folder: Path) -> Encoder:
    onnx.checker.check_model(content, full_check=True)
    dimension = finished.config.model.dimension
    return Encoder.open(try_out(content, finished.preprocessing, dimension, folder).bundle, threads=1)


def _facts(
    encoders: dict[str, Encoder], sizes: dict[str, int], pixels: Pixels, labels: list[str], fars: list[float]
) -> dict[str, object]:
    embeddings = {name: encoder.embed(pixels) for name, encoder in encoders.items()}
    facts: dict[str, object] = {"images": len(labels), "classes": len(set(labels))}
    for far in fars:
        for name, rows in embeddings.items():
            shift = measure_shift(embeddings["fp32"], rows, labels, far_target=far)
            facts[f"{name} at FAR {far:g}"] = _line(shift, sizes[name])
    return facts


def _line(shift: PrecisionShift, size: int) -> str:
    return (
        f"{size / 1e6:.1f} MB, flips {100 * shift.flips:.2f} % of {shift.n_accepted} accepted pairs, "
        f"shift {shift.shift_mean:+.4f} +- {shift.shift_std:.4f} (99 % within {shift.shift_p99:.4f}), "
        f"TAR {shift.tar_before:.4f} -> {shift.tar_after:.4f} ({shift.tar_own:.4f} at the same FAR), "
        f"FAR {shift.far_before:.5f} -> {shift.far_after:.5f}, "
        f"R@1 {shift.r_at_1_before:.4f} -> {shift.r_at_1_after:.4f}"
    )


def _speed(encoders: dict[str, Encoder], pixels: Pixels, batch: int, n_rounds: int) -> Group:
    timed = pixels[:_TIMED_IMAGES]

    def embed(encoder: Encoder) -> None:
        for start in range(0, len(timed), batch):
            encoder.embed(timed[start : start + batch])

    cases = {name: cpu_of(partial(embed, encoder), n_parts=len(timed)) for name, encoder in encoders.items()}
    return in_turns(f"CPU time of one image in batches of {batch}", cases, n_rounds=n_rounds)


if __name__ == "__main__":
    main()
