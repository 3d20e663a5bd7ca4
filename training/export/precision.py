"""Converts a float32 model to fewer bits: half precision, or 8-bit integers calibrated on real images.

Input, output and everything behind the backbone (pooling, head, unit norm) stay in float32. `shift.py` measures whether
the result is good enough. Only this module uses ONNX Runtime's conversion tools.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel as SortableModel

from training.export.onnx_model import INPUT_NAME, OnnxModel

Precision = Literal["fp32", "fp16", "int8"]

# The error of an early layer passes through all later layers. On emoji, the first eighth of the layers in float reduces
# the flipped pairs from 9.6 % to 5.7 % of the accepted ones, and raises the time from 0.50 to 0.56 of that of float32
# (tests/bench/export_precision.py).
FLOAT_LAYERS = 1 / 8


# All operators that ONNX Runtime computes in integers, except softmax and norms: they are cheap and need floats.
_INTEGER_OPERATORS = [
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"),
    *("Clip", "Relu", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Flatten", "Gather", "Pad", "Reshape", "Resize", "Split", "Squeeze", "Transpose", "Unsqueeze"),
]


def to_half(model: OnnxModel) -> bytes:
    """Convert the backbone to float16: half the size, but slower on CPUs without float16 instructions."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    converted = convert_float_to_float16(graph, keep_io_types=True, node_block_list=list(model.tail))
    # The converter appends the cast of the input at the end, and keeps old types of tensors.
    converted.graph.ClearField("value_info")
    sortable = SortableModel(converted)
    sortable.topological_sort()
    return bytes(sortable.model.SerializeToString(deterministic=True))


def to_int8(
    model: OnnxModel, batches: Iterable[NDArray[np.float32]], *, float_layers: float = FLOAT_LAYERS, **options: Any
) -> bytes:
    """Convert the backbone to 8-bit integers: weights per channel, activations in the range that occurs in `batches`.

    batches: pixels [n, 3, h, w] float32 of real images, normalised. float_layers: share of the backbone's weighted
    layers, from the first on, that stay in float. options: for `quantize_static`, instead of the values chosen here.
    """
    with tempfile.TemporaryDirectory() as folder:
        exact, prepared, converted = (Path(folder) / f"{name}.onnx" for name in ("exact", "prepared", "converted"))
        exact.write_bytes(model.content())
        # torch's exporter has already folded constants; only the shapes of tensors are needed here.
        quant_pre_process(exact, prepared, skip_optimization=True, skip_symbolic_shape=True)
        chosen: dict[str, Any] = {
            "quant_format": QuantFormat.QDQ,
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            # Percentile and entropy flip as many decisions (5.6 and 5.7 %), and store all activations in memory.
            "calibrate_method": CalibrationMethod.MinMax,
            "op_types_to_quantize": _INTEGER_OPERATORS,
            "nodes_to_exclude": [*_first(model, float_layers), *model.tail],
        }
        quantize_static(prepared, converted, _Reader(batches), **chosen | options)
        return converted.read_bytes()


def _first(model: OnnxModel, share: float) -> list[str]:
    """Return the names of the nodes before the first weighted layer that is not in the first `share` of layers."""
    n_float = round(share * len(model.weighted))
    if n_float == len(model.weighted):
        return [node.name for node in model.graph.graph.node]
    names = [node.name for node in model.graph.graph.node]
    return names[: names.index(model.weighted[n_float])]


class _Reader:
    """The batches as a data reader of ONNX Runtime."""

    def __init__(self, batches: Iterable[NDArray[np.float32]]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}
