"""Fewer bits in the backbone only, real images behind the ranges, and the same answer in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper, numpy_helper

from retrieval.contract.bundle import open_bundle
from retrieval.contract.manifest import Item
from retrieval.engine.encoder import Encoder
from training.data import read_items
from training.export import shift_of
from training.export.onnx_model import OPSET, OnnxModel
from training.export.parity import PARITY_TOLERANCE
from training.export.precision import to_half, to_int8
from training.loop import FinishedRun, embedding_function

pytestmark = pytest.mark.slow  # each exports a network


def _pixels(items: list[Item], finished: FinishedRun) -> np.ndarray:
    parts = read_items(items, finished.preprocessing, max_unreadable=0, progress=lambda done, total: None)
    return np.concatenate([part.pixels for part in parts])


def _graph(bundle: Path) -> onnx.ModelProto:
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def _types(model: onnx.ModelProto) -> dict[str, int]:
    return {initializer.name: initializer.data_type for initializer in model.graph.initializer}


def test_the_tail_is_what_follows_the_backbones_last_layer(model: OnnxModel) -> None:
    """Pooling, the head's matrix product, and the norm: nothing of them is among the backbone's weighted nodes."""
    nodes = {node.name: node.op_type for node in model.graph.graph.node}
    assert {nodes[name] for name in model.weighted} == {"Conv"}
    assert len(model.weighted) == 49
    assert {"Gemm", "ReduceL2", "Div", "ReduceMean"} <= {nodes[name] for name in model.tail}
    assert "Conv" not in {nodes[name] for name in model.tail}


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.01), ("int8", 0.2)])
def test_embeddings_stay_close_in_every_batch(
    lower: dict[str, Path], finished: FinishedRun, held_out_items: list[Item], precision: str, most: float
) -> None:
    """Of real images; most: of the distance between unit vectors, from what was seen with some room."""
    encoder = Encoder.open(open_bundle(lower[precision]))
    pixels = _pixels(held_out_items[:20], finished)
    rows = encoder.embed(pixels)
    distances = np.linalg.norm(rows - embedding_function(finished.embedder)(pixels), axis=1)
    assert 0 < distances.max() < most
    for n in (1, 2, 16):
        assert_allclose(encoder.embed(pixels[:n]), rows[:n], atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_input_output_and_head_stay_in_float32(lower: dict[str, Path], precision: str) -> None:
    model = _graph(lower[precision])
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    types = _types(model)
    assert types["head.weight"] == types["head.bias"] == TensorProto.FLOAT


def test_half_precision_halves_the_file(lower: dict[str, Path], exported: Path) -> None:
    before, after = (len((folder / "model.onnx").read_bytes()) for folder in (exported, lower["fp16"]))
    assert after < 0.55 * before
    types = _types(_graph(lower["fp16"]))
    assert types["backbone.stem.0.weight"] == TensorProto.FLOAT16


def test_integers_are_per_channel_behind_a_first_eighth_in_float(lower: dict[str, Path], model: OnnxModel) -> None:
    graph = _graph(lower["int8"]).graph
    types = _types(_graph(lower["int8"]))
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    are_float = [types.get(node.input[1]) == TensorProto.FLOAT for node in convolutions]
    assert are_float == [True] * 6 + [False] * 43
    scales = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    sizes = {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    last = convolutions[-1]
    assert sizes[scales[last.input[1]]] == [1280]


@pytest.fixture
def two_layers() -> OnnxModel:
    """pixels -> twice the pixels -> three times that -> their mean over each channel: ranges are known beforehand."""
    weights = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) * by, f"by_{by}") for by in (2, 3)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "by_2"], ["doubled"], name="first"),
            helper.make_node("Conv", ["doubled", "by_3"], ["tripled"], name="second"),
            helper.make_node("GlobalAveragePool", ["tripled"], ["embeddings"], name="pool"),
        ],
        "two layers",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 3, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return OnnxModel(graph=model, weighted=("first", "second"), tail=("pool",))


def test_the_range_of_an_activation_is_that_of_all_batches(two_layers: OnnxModel) -> None:
    """Pixels of 0 to 0.5 and of 0 to 1: doubled, 0 to 2 in 255 steps."""
    rising = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2)
    quantised = onnx.load_from_string(to_int8(two_layers, [rising / 2, rising]))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    assert values["doubled_scale"] == pytest.approx(2 / 255)
    assert values["doubled_zero_point"] == 0
    assert values["by_3_quantized"].dtype == np.int8


@pytest.mark.parametrize(("share", "n_float"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_the_share_of_first_layers_in_float(two_layers: OnnxModel, share: float, n_float: int) -> None:
    pixels = np.ones((2, 3, 2, 2), dtype=np.float32)
    quantised = onnx.load_from_string(to_int8(two_layers, [pixels], float_layers=share))
    weights = [node.input[1] for node in quantised.graph.node if node.op_type == "Conv"]
    assert [name in ("by_2", "by_3") for name in weights] == [True] * n_float + [False] * (2 - n_float)


def test_converting_leaves_the_float32_model_as_it_was(model: OnnxModel) -> None:
    before = model.content()
    to_half(model)
    assert model.content() == before


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_shift_is_in_the_bundle(lower: dict[str, Path], precision: str) -> None:
    bundle = open_bundle(lower[precision])
    shift = shift_of(bundle)
    assert shift is not None
    assert shift.shift_p99 > 0
    assert bundle.evaluation["export"]["shift"]["flips"] == shift.flips
    assert bundle.evaluation["export"]["precision"] == precision
    assert ("calibration_images" in bundle.evaluation["export"]) == (precision == "int8")
