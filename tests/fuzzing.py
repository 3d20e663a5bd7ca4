"""Mutated bytes: a fixed number of them in the tests, as many as minutes allow with `python -m tests.bench.fuzz`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

MINUTES = "FUZZ_MINUTES"
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def rounds(n: int) -> Iterator[np.random.Generator]:
    """`n` fixed generators of random numbers, or new ones for the minutes that the environment grants."""
    minutes = float(os.environ.get(MINUTES, "0"))
    if not minutes:
        yield from (np.random.default_rng(seed) for seed in range(n))
        return
    end = time.monotonic() + 60 * minutes
    first = time.time_ns()
    while time.monotonic() < end:
        first += 1
        print(f"seed {first}", end="\r")  # noqa: T201  # pytest shows it with a failure
        yield np.random.default_rng(first)


def mutated(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """`data` with one to six changes of kinds that files and messages suffer from."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 7)):
        _change(content, rng, others)
    return bytes(content)


def _change(content: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:  # noqa: C901  # a list of cases
    size = len(content)
    # most structure is at the start of a file
    at = int(rng.integers(0, min(size, 64) + 1)) if rng.random() < 0.5 else int(rng.integers(0, size + 1))
    length = int(rng.integers(1, 17)) if rng.random() < 0.8 else int(rng.integers(1, size + 2))
    match rng.integers(0, 8):
        case 0:
            if at < size:
                content[at] ^= 1 << int(rng.integers(0, 8))
        case 1:
            content[at : at + 1] = bytes([int(rng.integers(0, 256))])
        case 2:
            number, width = _NUMBERS[rng.integers(0, len(_NUMBERS))], int(rng.choice([1, 2, 4]))
            order = "little" if rng.random() < 0.5 else "big"
            content[at : at + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]  # one of two
        case 3:
            del content[at : at + length]
        case 4:
            content[at:at] = content[at : at + length] * int(rng.integers(1, 20))
        case 5:
            content[at:at] = rng.bytes(length)
        case 6:
            other = others[rng.integers(0, len(others))]
            start = int(rng.integers(0, len(other) + 1))
            content[at : at + length] = other[start : start + length]
        case 7:
            if rng.random() < 0.3:
                del content[at:]
