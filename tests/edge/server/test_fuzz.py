"""Whatever bytes a request has, its answer is one of the declared statuses, and the server goes on."""

from __future__ import annotations

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
    assert len(methods) >= 12
    statuses: Counter[grpc.StatusCode] = Counter()
    seen = [b"\x0a\x06places"]
    with grpc.insecure_channel(running.address) as channel:
        for rng in rounds(600):
            method, request_type = methods[rng.integers(0, len(methods))]
            content = sample(request_type, rng).SerializeToString()
            if rng.random() < 0.7:
                content = mutated(content, rng, seen)
            seen = [*seen[-50:], content]
            call = channel.unary_unary(method).future(content, timeout=30)
            assert call.code() in DECLARED, f"{method} {content[:200]!r}: {call.code()} {call.details()}"
            statuses[call.code()] += 1
    assert statuses[grpc.StatusCode.INVALID_ARGUMENT] > 0
    assert search(running, image=pictures.encoded(shot(3, 0))).matches[0].label == "place 3"
