"""Decides how large a request and its reply may be, on raw bytes, before anything is parsed or sent.

Parsing is what costs: 40 million empty queries fit in 80 MB. So sizes and counts are read from the wire format, which
takes a step for each field and stops at the first field too many. Values are checked by the servicers.
"""

import functools
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from retrieval.contract.limits import ImageLimits
from retrieval.errors import InvalidInput, Overloaded, ReplyTooLarge

MAX_BATCH_QUERIES = 256
MAX_REPLY_HEADER = "retrieval-max-reply-bytes"
_MIB = 1024 * 1024
_DEFAULT_REPLY_BYTES = 4 * _MIB  # what a gRPC client accepts unless its channel was created with another limit
_SMALL_REQUEST_BYTES = 64 * 1024  # every request without an image: names, paths, options
_EMBEDDING_BYTES = 4 * 65_536  # far above the dimension of any model
_MAX_FIELDS = 4096  # a full batch of embeddings has 1,026
_MAX_CALLS = 2048
_REPEATED = {"queries": MAX_BATCH_QUERIES}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SEARCH, _BATCH = "/retrieval.v1.SearchService/Search", "/retrieval.v1.SearchService/BatchSearch"


def largest_request(limits: ImageLimits) -> int:
    """Return the size of the largest request of any method, in bytes."""
    return max(4 * limits.image_bytes, 64 * _MIB)


def request_bytes(method: str, limits: ImageLimits) -> int:
    """Return the size of the largest request of this method, in bytes."""
    if method == _BATCH:
        return largest_request(limits)
    return limits.image_bytes + _MIB if method == _SEARCH else _SMALL_REQUEST_BYTES


def check_request(method: str, data: bytes, limits: ImageLimits) -> None:
    """Raise InvalidInput if the bytes of a request are too many, hold too many parts, or are no message."""
    allowed = request_bytes(method, limits)
    if len(data) > allowed:
        raise InvalidInput(f"request: expected at most {allowed:,} bytes for {method}, found {len(data):,}")
    descriptor = _request_type(method)
    if descriptor is not None:
        _Walk(data).message(descriptor, 0, len(data))


def reply_limit(context: "grpc.aio.ServicerContext[Any, Any]") -> int:
    """Return the size of the largest reply that the caller accepts: what it states, or the default of gRPC."""
    for key, value in context.invocation_metadata() or ():
        if key == MAX_REPLY_HEADER and str(value).isascii() and str(value).isdigit():
            return min(int(str(value)[:12]), 2**31 - 1)
    return _DEFAULT_REPLY_BYTES


def check_reply(n_bytes: int, allowed: int) -> None:
    """Raise ReplyTooLarge, with advice, if the caller cannot receive a reply of this size."""
    if n_bytes > allowed:
        raise ReplyTooLarge(
            f"the reply has {n_bytes:,} bytes or more, and this client accepts {allowed:,}: ask for less (a smaller "
            "`limit`, fewer queries in a batch), or create the channel with the option grpc.max_receive_message_length "
            f"and send the same number as the metadata {MAX_REPLY_HEADER}"
        )


class CallsInFlight:
    """Counts the calls that run and the bytes of their requests. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._n_calls = 0

    def enter(self, n_bytes: int) -> None:
        """Count a call. Raises Overloaded if too many run; one call is always admitted."""
        if self._n_calls >= _MAX_CALLS:
            raise Overloaded(f"{_MAX_CALLS:,} calls run already: try again later")
        if self._n_calls and self._n_bytes + n_bytes > self._max_bytes:
            raise Overloaded(f"the requests that run hold {self._n_bytes:,} bytes already: try again later")
        self._n_bytes += n_bytes
        self._n_calls += 1

    def leave(self, n_bytes: int) -> None:
        """Count the end of a call that was admitted."""
        self._n_bytes -= n_bytes
        self._n_calls -= 1


class _Walk:
    """Steps over the fields of one message, nested ones included, and counts them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._n_fields = 0

    def message(self, descriptor: Descriptor, start: int, end: int) -> None:
        """Check the message of this type in data[start:end]."""
        counts: dict[str, int] = {}
        for number, wire_type, low, high in self._fields(start, end):
            field = descriptor.fields_by_number.get(number)
            if field is None or wire_type != _BYTES:
                continue
            if field.name in _REPEATED:
                counts[field.name] = counts.get(field.name, 0) + 1
                if counts[field.name] > _REPEATED[field.name]:
                    most = _REPEATED[field.name]
                    raise InvalidInput(f"{field.name}: expected 1 to {most}, found more than {most}")
            if field.type == FieldDescriptor.TYPE_FLOAT and high - low > _EMBEDDING_BYTES:
                raise InvalidInput(
                    f"{field.name}: expected at most {_EMBEDDING_BYTES // 4:,} values, found {(high - low) // 4:,}"
                )
            if field.message_type is not None:
                self.message(field.message_type, low, high)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number, wire type and the place of the value of each field in data[start:end]."""
        position = start
        while position < end:
            self._n_fields += 1
            if self._n_fields > _MAX_FIELDS:
                raise InvalidInput(f"request: expected at most {_MAX_FIELDS:,} fields, found more")
            key, position = self._varint(position, end)
            wire_type, low = key & 7, position
            if wire_type == _VARINT:
                _, position = self._varint(position, end)
            elif wire_type == _BYTES:
                length, low = self._varint(position, end)
                position = low + length
            elif wire_type in (_FIXED64, _FIXED32):
                position += 8 if wire_type == _FIXED64 else 4
            else:
                raise InvalidInput(f"request: byte {low:,} starts no field of a protobuf message")
            if position > end:
                raise InvalidInput(f"request: a field ends at byte {position:,}, its message at byte {end:,}")
            yield key >> 3, wire_type, low, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise InvalidInput(f"request: the number at byte {position:,} of a protobuf message does not end")


@functools.cache
def _request_type(method: str) -> Descriptor | None:
    try:
        found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    except KeyError:
        return None
    return found.input_type
