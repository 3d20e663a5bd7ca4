"""The production encoder: a model bundle's ONNX graph on one device.

This file chooses providers and threads, and verifies that this machine computes the embeddings that the bundle expects.
Only this file imports ONNX Runtime; `contract/preprocessing.py` decodes the images.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import check_unit_rows
from retrieval.contract.bundle import Bundle
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.preprocessing import preprocess
from retrieval.errors import BundleMismatch, CorruptArtifact, DeviceUnavailable, InvalidEmbeddings, InvalidInput

# Read when it is loaded: otherwise it leaves a file in the temporary folder, and sends events to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

DEVICES = ("cpu", "cuda", "auto")
_PROBE_TOLERANCE = 1e-3  # cosine distance: processors differ by about 1e-6, a wrong model by 1e-1


class Encoder:
    """An opened model. `embed` is safe from several threads, because ONNX Runtime sessions are."""

    def __init__(self, bundle: Bundle, session: onnxruntime.InferenceSession, *, max_batch: int) -> None:
        self.bundle = bundle
        self.max_batch = max_batch
        self._session = session

    @classmethod
    def open(cls, bundle: Bundle, *, device: str = "cpu", threads: int = 0, max_batch: int = 16) -> "Encoder":
        """Load the model and check it against the bundle's probe.

        `device`: cpu, cuda, or auto (cuda if present). `threads`: 0 lets ONNX Runtime choose. Raises DeviceUnavailable
        if cuda is requested and missing (ONNX Runtime itself would fall back silently), BundleMismatch if the
        embeddings of this machine differ from the exported ones, CorruptArtifact if the file is no model or lacks the
        declared input or output.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # operators run one after another
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle servers must not burn cores
        providers = providers_of(device)
        try:
            session = onnxruntime.InferenceSession(str(bundle.model_path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions have no common public base
            raise CorruptArtifact(f"{bundle.model_path} cannot be opened as an ONNX model: {error}") from error
        _check_names(bundle, session)
        if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise DeviceUnavailable("device=cuda was requested, but ONNX Runtime could not start its CUDA provider")
        encoder = cls(bundle, session, max_batch=max_batch)
        encoder._verify_probe()
        return encoder

    @property
    def device(self) -> str:
        """The device that the model runs on: cpu or cuda."""
        return "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed `pixels` [n, 3, h, w] float32 into unit rows [n, d] float32; [0, d] for no pixels.

        Raises InvalidEmbeddings if the model returns NaN or rows that are not of unit norm.
        """
        bundle = self.bundle
        batches = [pixels[i : i + self.max_batch] for i in range(0, len(pixels), self.max_batch)]
        parts = [self._session.run([bundle.output_name], {bundle.input_name: batch})[0] for batch in batches]
        if not parts:
            return np.empty((0, bundle.dimension), dtype=np.float32)
        embeddings = np.concatenate(parts).astype(np.float32, copy=False)
        if embeddings.shape != (len(pixels), bundle.dimension):
            raise InvalidEmbeddings(
                f"bundle {bundle.digest}: expected embeddings {(len(pixels), bundle.dimension)}, "
                f"found {embeddings.shape}"
            )
        check_unit_rows(embeddings, f"embeddings of bundle {bundle.digest}")
        return embeddings

    def embed_images(
        self, images: Sequence[bytes], *, limits: ImageLimits = DEFAULT_LIMITS, pool: Executor | None = None
    ) -> NDArray[np.float32]:
        """Embed encoded images, decoded on `pool` if given. Raises as `preprocess` does."""
        run = pool.map if pool else map
        arrays = list(run(lambda data: preprocess(data, self.bundle.preprocessing, limits=limits), images))
        side = self.bundle.preprocessing.crop
        return self.embed(np.stack(arrays) if arrays else np.empty((0, 3, side, side), dtype=np.float32))

    def _verify_probe(self) -> None:
        inputs, expected = self.bundle.probe()
        distance = float((1 - np.sum(self.embed(inputs) * expected, axis=1)).max(initial=0.0))
        if not distance <= _PROBE_TOLERANCE:
            raise BundleMismatch(
                f"bundle {self.bundle.digest}: embeddings of its probe differ by {distance:.2g} (cosine distance) from "
                f"the exported ones, at most {_PROBE_TOLERANCE} is allowed: this machine does not run the model "
                "faithfully"
            )


def _check_names(bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    if inputs != [bundle.input_name] or bundle.output_name not in outputs:
        raise CorruptArtifact(
            f"{bundle.model_path}: expected the input {bundle.input_name} and the output {bundle.output_name}, "
            f"found {', '.join(inputs)} and {', '.join(outputs)}"
        )


def providers_of(device: str) -> list[str]:
    """Return the providers of ONNX Runtime for `cpu`, `cuda` or `auto`, best first.

    Raises InvalidInput for another device, DeviceUnavailable if cuda is requested and this build cannot run it.
    """
    if device not in DEVICES:
        raise InvalidInput(f"device: expected one of {', '.join(DEVICES)}, found {device!r}")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise DeviceUnavailable(
            "device=cuda was requested, but this ONNX Runtime has no CUDA provider: install the `gpu` extra "
            "in place of `cpu`, or set RETRIEVAL_DEVICE=cpu"
        )
    return (
        ["CUDAExecutionProvider", "CPUExecutionProvider"] if has_cuda and device != "cpu" else ["CPUExecutionProvider"]
    )
