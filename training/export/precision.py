"""A float32 model in fewer bits: half precision, or 8-bit integers calibrated on real images.

Input, output and everything behind the backbone (pooling, head, unit norm) stay in float32. Decides how a graph is
converted; whether the result is good enough is measured in `shift.py`. Hides ONNX Runtime's tools.
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

# The error of an early layer passes through all later ones. On emoji the first eighth in float lets 5.7 % of the
# accepted pairs flip in place of 9.6 %, for 0.56 in place of 0.50 of the time (tests/bench/export_precision.py).
FLOAT_LAYERS = 1 / 8


# All that ONNX Runtime can compute in integers but softmax and norms, which are cheap and need the range of floats.
_INTEGER_OPERATORS = [
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"),
    *("Clip", "Relu", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Flatten", "Gather", "Pad", "Reshape", "Resize", "Split", "Squeeze", "Transpose", "Unsqueeze"),
]


def to_half(model: OnnxModel) -> bytes:
    """The model with the backbone in float16: half the size, and on CPUs without its instructions slower."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    converted = convert_float_to_float16(graph, keep_io_types=True, node_block_list=list(model.tail))
    # The converter appends the cast of the input at the end and keeps types of tensors that are others now.
    converted.graph.ClearField("value_info")
    sortable = SortableModel(converted)
    sortable.topological_sort()
    return bytes(sortable.model.SerializeToString(deterministic=True))


def to_int8(
    model: OnnxModel, batches: Iterable[NDArray[np.float32]], *, float_layers: float = FLOAT_LAYERS, **options: Any
) -> bytes:
    """The model with the backbone in 8-bit integers: weights per channel, activations in the range `batches` show.

    batches: pixels [n, 3, h, w] float32 of real images, normalised. float_layers: share of the backbone's weighted
    layers, the first ones, that stay in float. options: for `quantize_static`, in place of what is chosen here.
    """
    with tempfile.TemporaryDirectory() as folder:
        exact, prepared, converted = (Path(folder) / f"{name}.onnx" for name in ("exact", "prepared", "converted"))
        exact.write_bytes(model.content())
        # torch's exporter has folded what can be folded; only the shapes of tensors are wanted here.
        quant_pre_process(exact, prepared, skip_optimization=True, skip_symbolic_shape=True)
        chosen: dict[str, Any] = {
            "quant_format": QuantFormat.QDQ,
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            # Percentile and entropy flip as many decisions (5.6 and 5.7 %), and hold all activations in memory.
            "calibrate_method": CalibrationMethod.MinMax,
            "op_types_to_quantize": _INTEGER_OPERATORS,
            "nodes_to_exclude": [*_first(model, float_layers), *model.tail],
        }
        quantize_static(prepared, converted, _Reader(batches), **chosen | options)
        return converted.read_bytes()


def _first(model: OnnxModel, share: float) -> list[str]:
    """Names of the nodes in front of the first weighted layer that is not among the share of first ones."""
    n_float = round(share * len(model.weighted))
    if n_float == len(model.weighted):
        return [node.name for node in model.graph.graph.node]
    names = [node.name for node in model.graph.graph.node]
    return names[: names.index(model.weighted[n_float])]


class _Reader:
    """The batches in the form in which ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[NDArray[np.float32]]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}
