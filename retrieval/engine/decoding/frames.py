"""Messages over a pipe: some fields as JSON, and bytes. Both ends wait for each other no longer than a deadline."""

import json
import os
import select
import struct
import time
from collections.abc import Mapping
from typing import Any

_HEAD = struct.Struct("<IQ")  # sizes of the JSON and of the bytes


def send(descriptor: int, fields: Mapping[str, Any], content: bytes = b"", *, deadline: float | None = None) -> None:
    """Write one message. Raises OSError if nobody reads any more, TimeoutError at the deadline (monotonic seconds)."""
    text = json.dumps(fields).encode()
    for part in (_HEAD.pack(len(text), len(content)) + text, content):
        rest = memoryview(part)
        while rest:
            _wait(descriptor, select.POLLOUT, deadline)
            rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int, *, deadline: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """Read one message. Raises EOFError if the writer is gone, TimeoutError at the deadline."""
    n_text, n_content = _HEAD.unpack(_read(descriptor, _HEAD.size, deadline))
    fields: dict[str, Any] = json.loads(_read(descriptor, n_text, deadline))
    return fields, _read(descriptor, n_content, deadline)


def _read(descriptor: int, size: int, deadline: float | None) -> bytearray:
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        _wait(descriptor, select.POLLIN, deadline)
        n_read = os.readv(descriptor, [rest])
        if n_read == 0:
            raise EOFError("the other end of a pipe is gone")
        rest = rest[n_read:]
    return content


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    """Wait until a descriptor that does not block is ready; one without a deadline blocks itself."""
    if deadline is None:
        return
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
        raise TimeoutError("the other end of a pipe did not answer in time")
