"""Whatever bytes a request has, its answer is one of the declared statuses, and the server goes on."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import search
from tests.fuzzing import mutated, rounds
from tests.photos import shot

SERVICES = ("Search", "Catalog", "OperatingPoint", "Audit", "Job")
# UNAVAILABLE: there is no queue at hand. RESOURCE_EXHAUSTED: a message that gRPC itself takes as too large.
DECLARED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def sample(descriptor: Descriptor, rng: np.random.Generator) -> Message:
    """A message of this type with some of its fields set."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.2:
            continue
        values = [value(field, rng) for _ in range(rng.integers(1, 4) if field.is_repeated else 1)]
        if field.is_repeated:
            getattr(message, field.name).MergeFrom(values) if field.message_type else getattr(
                message, field.name
            ).extend(values)
        elif field.message_type:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message


def value(field: FieldDescriptor, rng: np.random.Generator) -> object:
    if field.message_type:
        return sample(field.message_type, rng)
    if field.type == field.TYPE_STRING:
        names = [
            CATALOG,
            CATALOG,
            "",
            "nowhere",
            "../../etc",
            "ü" * 70,
            "a" * 64,
            "file:///etc/passwd",
            "\x00",
            "faiss:Flat",
        ]
        return names[rng.integers(0, len(names))]
    if field.type == field.TYPE_BYTES:
        return [pictures.encoded(shot(1, 0)), b"", b"no image", pictures.truncated_jpeg()][rng.integers(0, 4)]
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return float(rng.choice([0.0, 0.5, -1.0, np.nan, np.inf, 1e30]))
    if field.type == field.TYPE_BOOL:
        return bool(rng.random() < 0.5)
    return int(rng.choice([0, 1, -1, 100, 2**31 - 1]))


@pytest.mark.slow
def test_mutated_requests_get_declared_statuses(running: Running) -> None:
    pool = descriptor_pool.Default()
    methods = [
        (f"/{service.full_name}/{method.name}", method.input_type)
        for service in (pool.FindServiceByName(f"retrieval.v1.{name}Service") for name in SERVICES)
        for method in service.methods
    ]
    assert len(methods) >= 15
    asked: set[str] = set()
    statuses: Counter[grpc.StatusCode] = Counter()
    seen = [b"\x0a\x06places"]
    with grpc.insecure_channel(running.address) as channel:
        for number, rng in enumerate(rounds(600)):
            method, request_type = methods[number % len(methods)]
            asked.add(method)
            content = sample(request_type, rng).SerializeToString()
            if rng.random() < 0.7:
                content = mutated(content, rng, seen)
            seen = [*seen[-50:], content]
            call = channel.unary_unary(method).future(content, timeout=30)
            assert call.code() in DECLARED, f"{method} {content[:200]!r}: {call.code()} {call.details()}"
            statuses[call.code()] += 1
    assert statuses[grpc.StatusCode.INVALID_ARGUMENT] > 0
    assert asked == {method for method, _ in methods}
    assert search(running, image=pictures.encoded(shot(3, 0))).matches[0].label == "place 3"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def headers_frame(path: bytes) -> bytes:
    """The headers of a call, uncompressed (HPACK literals without an index)."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers"}
    fields[b"content-type"] = b"application/grpc"
    block = b"".join(b"\0" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in fields.items())
    return struct.pack(">I", len(block))[1:] + b"\x01\x04" + struct.pack(">I", 1) + block


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "half a preface", "no headers", "half a message", "noise"])
def test_connections_that_go_nowhere_stop_nobody(running: Running, kind: str) -> None:
    """Half-open ones, and ones that send a byte at a time: others are answered meanwhile and afterwards."""
    call = headers_frame(b"/retrieval.v1.SearchService/Search")
    half = struct.pack(">I", 105)[1:] + b"\0\0" + struct.pack(">I", 1) + b"\0" + struct.pack(">I", 190_000) + bytes(100)
    sent = {
        "silent": b"", "half a preface": PREFACE[:10], "no headers": PREFACE + SETTINGS,
        "half a message": PREFACE + SETTINGS + call + half, "noise": np.random.default_rng(1).bytes(4000),
    }[kind]  # fmt: skip
    host, _, port = running.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(200)]
        for connection in opened:
            with contextlib.suppress(OSError):  # the server has closed it
                connection.sendall(sent[:-1])
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.sendall(sent[-1:])
        started = time.monotonic()
        for _ in range(5):
            assert search(running, image=pictures.encoded(shot(3, 0))).matches[0].label == "place 3"
        assert time.monotonic() - started < 10
    assert search(running, image=pictures.encoded(shot(3, 0))).matches[0].label == "place 3"
