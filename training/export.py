"""From a finished run to a model bundle: ONNX that normalises its own output, proven equal to the trained embedder."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.contract.bundle import Bundle, open_bundle, write_bundle
from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.encoder import Encoder
from retrieval.errors import InvalidInput, ValidationFailed
from training.config import to_json
from training.loop import embedding_function, load_finished
from training.model import Embedder

OPSET = 20
INPUT_NAME, OUTPUT_NAME = "pixels", "embeddings"
# Largest difference of a coordinate of a unit vector. Two correct programs differ by about 1e-6; a layer that was
# exported wrongly, or statistics frozen at the wrong time, by 1e-2 and more.
PARITY_TOLERANCE = 1e-4
PARITY_BATCHES = (1, 2, 8)
_PROBE_SEED = 0


def export_run(run: Path, out: Path) -> Bundle:
    """Export the embedder of a finished run to the bundle `out`, a new folder.

    Raises FailedPrecondition where the run is not finished, InvalidInput where `out` holds something already,
    ValidationFailed where the production encoder does not give what the trained embedder gives.
    """
    if out.exists() and any(out.iterdir()):
        raise InvalidInput(f"{out} is not empty: name a new folder for the bundle")
    finished = load_finished(run)
    evaluation = {"training": to_json(finished.config), "held_out": asdict(finished.evaluation)}
    return export_embedder(finished.embedder, finished.preprocessing, out, evaluation=evaluation)


def export_embedder(
    embedder: Embedder, preprocessing: Preprocessing, out: Path, *, evaluation: Mapping[str, Any]
) -> Bundle:
    """Write `embedder`, on the CPU, as the bundle `out` once it has passed the parity check. Raises as `export_run`."""
    pixels = _probe_pixels(preprocessing, max(PARITY_BATCHES))
    embed = embedding_function(embedder)
    model = to_onnx(embedder, preprocessing)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        candidate = Path(staging) / "bundle"
        bundle = write_bundle(
            candidate,
            onnx_model=model,
            preprocessing=preprocessing,
            dimension=embedder.dimension,
            opset=OPSET,
            input_name=INPUT_NAME,
            output_name=OUTPUT_NAME,
            evaluation=evaluation,
            probe_inputs=pixels,
            probe_embeddings=embed(pixels),
        )
        check_parity(Encoder.open(bundle), embed, pixels)
        candidate.replace(out)
    return open_bundle(out)


def to_onnx(embedder: Embedder, preprocessing: Preprocessing) -> bytes:
    """The embedder as an ONNX model with a free batch size, its weights inside.

    Raises ValidationFailed where torch cannot express the backbone in ONNX.
    """
    example = torch.zeros(2, 3, preprocessing.crop, preprocessing.crop)  # a batch of 1 would be taken for a constant
    with warnings.catch_warnings():
        # torch's exporter still calls what torch has deprecated; no user can do anything about it.
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        try:
            program = torch.onnx.export(
                embedder.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValidationFailed(f"torch cannot export this backbone to ONNX, choose another: {error}") from error
    if program is None:
        raise ValidationFailed("torch exported no program: this version of torch and onnx do not fit together")
    model = program.model_proto
    # The exporter notes stack traces at every node: paths of this machine, on which the digest would depend.
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
    return model.SerializeToString(deterministic=True)


def check_parity(encoder: Encoder, embed: Any, pixels: NDArray[np.float32]) -> float:
    """The largest difference of a coordinate between encoder and `embed`, over batches of 1, 2 and 8 of the pixels.

    Raises ValidationFailed where it exceeds the tolerance.
    """
    difference = max(float(np.abs(encoder.embed(pixels[:n]) - embed(pixels[:n])).max()) for n in PARITY_BATCHES)
    if not difference <= PARITY_TOLERANCE:
        raise ValidationFailed(
            f"the exported model differs from the trained one by {difference:.2g} in a coordinate, at most "
            f"{PARITY_TOLERANCE:g} is allowed: nothing was written; try another backbone, or other versions of torch"
        )
    return difference


def _probe_pixels(preprocessing: Preprocessing, n: int) -> NDArray[np.float32]:
    """Normalised noise of several grain sizes, [n, 3, crop, crop]: needs no data and moves every layer."""
    rng = np.random.default_rng(_PROBE_SEED)
    side = preprocessing.crop
    images = np.empty((n, 3, side, side), dtype=np.float32)
    for row in range(n):
        cells = min(side, 2 ** (row + 1))
        grain = -(-side // cells)
        coarse = rng.uniform(0, 255, size=(3, cells, cells))
        images[row] = coarse.repeat(grain, axis=1).repeat(grain, axis=2)[:, :side, :side]
    mean, std = (np.asarray(c, dtype=np.float32).reshape(3, 1, 1) for c in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std
