"""A real but tiny model bundle: average colours of 4 x 4 cells, a fixed random projection, unit rows.

Good enough that pictures of one `pictures.class_picture` class lie close together; it opens in milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retrieval.contract.bundle import Bundle, ModelFile, write_bundle
from retrieval.contract.preprocessing import Preprocessing

SIDE, DIMENSION, OPSET = 32, 32, 17
PREPROCESSING = Preprocessing(resize=SIDE, crop=SIDE, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))


def weights(seed: int, dimension: int = DIMENSION) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The projection [48, d] and its offset [d], which keeps light and dark pictures of one hue apart."""
    rng = np.random.default_rng(seed)
    projection = rng.normal(size=(48, dimension)).astype(np.float32)
    return projection, rng.normal(size=dimension).astype(np.float32)


def onnx_model(seed: int = 0, dimension: int = DIMENSION) -> bytes:
    """The graph: pixels [n, 3, 32, 32] float32 -> embedding [n, d] float32."""
    projection, offset = weights(seed, dimension)
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["pixels"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["cells"], ["features"]),
            helper.make_node("Gemm", ["features", "projection", "offset"], ["projected"]),
            helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimension])],
        [numpy_helper.from_array(projection, "projection"), numpy_helper.from_array(offset, "offset")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def embed(pixels: NDArray[np.float32], seed: int = 0, dimension: int = DIMENSION) -> NDArray[np.float32]:
    """What the model computes, in NumPy: the independent reference."""
    projection, offset = weights(seed, dimension)
    cells = pixels.reshape(-1, 3, 4, 8, 4, 8).mean(axis=(3, 5)).reshape(-1, 48)
    projected = cells @ projection + offset
    embeddings: NDArray[np.float32] = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    return embeddings


def write_tiny_bundle(directory: Path, *, seed: int = 0, dimension: int = DIMENSION) -> Bundle:
    """Write the bundle into a new folder; another seed is another model."""
    probe = np.random.default_rng(1).uniform(-1, 1, (4, 3, SIDE, SIDE)).astype(np.float32)
    return write_bundle(
        directory,
        ModelFile(content=onnx_model(seed, dimension), opset=OPSET, input_name="pixels", output_name="embedding"),
        preprocessing=PREPROCESSING,
        dimension=dimension,
        evaluation={"model": "tiny", "seed": seed},
        probe=(probe, embed(probe, seed, dimension)),
    )
