"""The ONNX graph that finds the scores of a tile of vectors that reach their limits, on any device.

    tile [n, d] float16, queries [d, q] float16 -> MatMul -> GreaterOrEqual limits [q] float16
        -> And allowed [n, 1] bool -> NonZero -> found [2, m] int64: rows and queries

The graph is a message of Protocol Buffers. It is encoded here, because serving does not need the package `onnx`.
"""

from __future__ import annotations

from collections.abc import Sequence

_IR_VERSION, _OPSET = 8, 17
_BOOL, _FLOAT16, _INT64 = 9, 10, 7  # TensorProto.DataType


def graph() -> bytes:
    """Return the model."""
    nodes = [
        _node("MatMul", ["tile", "queries"], "scores"),
        _node("GreaterOrEqual", ["scores", "limits"], "reached"),
        _node("And", ["reached", "allowed"], "accepted"),
        _node("NonZero", ["accepted"], "found"),
    ]
    inputs = [
        _tensor("tile", _FLOAT16, ["n", "d"]),
        _tensor("queries", _FLOAT16, ["d", "q"]),
        _tensor("limits", _FLOAT16, ["q"]),
        _tensor("allowed", _BOOL, ["n", 1]),
    ]
    outputs = [_tensor("found", _INT64, [2, "m"])]
    body = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"threshold search"),
            *(_bytes(11, tensor) for tensor in inputs),
            *(_bytes(12, tensor) for tensor in outputs),
        ]
    )
    return _integer(1, _IR_VERSION) + _bytes(7, body) + _bytes(8, _bytes(1, b"") + _integer(2, _OPSET))


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    """Return a NodeProto."""
    names = b"".join(_bytes(1, name.encode()) for name in inputs)
    return names + _bytes(2, output.encode()) + _bytes(4, operator.encode())


def _tensor(name: str, element: int, shape: Sequence[str | int]) -> bytes:
    """Return a ValueInfoProto; a size that is a name may be any."""
    sizes = [_bytes(2, size.encode()) if isinstance(size, str) else _integer(1, size) for size in shape]
    tensor = _integer(1, element) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _integer(field: int, value: int) -> bytes:
    """Return a field that holds a whole number."""
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    """Return a field that holds text or a message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Return a whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
