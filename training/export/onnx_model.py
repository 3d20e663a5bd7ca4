"""Exports the embedder as an ONNX graph: any batch size, normalised output, no paths of this machine."""

import ast
import warnings
from dataclasses import dataclass

import onnx
import torch

from retrieval.contract.bundle import ModelFile
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import ValidationFailed
from training.model import Embedder

OPSET = 20
INPUT_NAME, OUTPUT_NAME = "pixels", "embeddings"

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SCOPES = "pkg.torch.onnx.name_scopes"  # key under which the exporter stores the names of the modules around a node


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An exported embedder. graph: opset 20, float32, weights inside.

    weighted: names of the convolutions and matrix products of the backbone, in order. tail: names of the nodes behind
    them, which pool, project and normalise. A small loss of precision in the tail changes every similarity.
    """

    graph: onnx.ModelProto
    weighted: tuple[str, ...]
    tail: tuple[str, ...]

    def content(self) -> bytes:
        """Serialise the model, deterministically."""
        return self.graph.SerializeToString(deterministic=True)


def model_file(content: bytes) -> ModelFile:
    """Return the bytes of an exported model as a bundle takes them."""
    return ModelFile(content=content, opset=OPSET, input_name=INPUT_NAME, output_name=OUTPUT_NAME)


def to_onnx(embedder: Embedder, preprocessing: Preprocessing) -> OnnxModel:
    """Export the embedder to ONNX. Raises ValidationFailed if torch cannot express the backbone in ONNX."""
    example = torch.zeros(2, 3, preprocessing.crop, preprocessing.crop)  # a batch of 1 would become a constant
    with warnings.catch_warnings():
        # torch's exporter uses functions that torch has deprecated; users cannot change that.
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
        raise ValidationFailed(
            "torch exported no program: this version of torch does not work with this version of onnx"
        )
    model = program.model_proto
    weighted, tail = _split(model.graph)
    # The exporter stores stack traces at every node; the digest would depend on the paths in them.
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
    return OnnxModel(graph=model, weighted=weighted, tail=tail)


def _split(graph: onnx.GraphProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the weighted nodes of the backbone, and of the nodes that no weighted node depends on."""
    needed: set[str] = set()
    weighted, tail = [], []
    for node in reversed(graph.node):
        is_weighted = node.op_type in _WEIGHTED and not _is_in_head(node)
        if is_weighted or not needed.isdisjoint(node.output):
            needed.update(node.input)
        else:
            tail.append(node.name)
        if is_weighted:
            weighted.append(node.name)
    return tuple(reversed(weighted)), tuple(reversed(tail))


def _is_in_head(node: onnx.NodeProto) -> bool:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:  # the outermost module has no name
            return "head" in ast.literal_eval(entry.value)[1:2]
    return False
