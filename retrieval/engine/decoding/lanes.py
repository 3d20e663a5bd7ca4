"""Decides which image is decoded when: small ones never wait for large ones, and memory is shared out.

Each image is decoded in a process of its own for that time (`processes.py`), with a limit on its CPU time, so a hostile
one costs its caller an error and nobody else anything. A caller who goes away frees it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.limits import ImageLimits
from retrieval.contract.memory import image_memory
from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.decoding.processes import PROCESSES, Cost, DecoderProcess, Request, TooSlow
from retrieval.engine.decoding.turns import Turns

_MOST_PROCESSES = 16  # of a lane
_SMALL_CPU_S = 1.0  # a small image takes a quarter of it at most, on a slow core
_MOST_LARGE = 32  # large images under way; a second of a core each


@dataclass(frozen=True, slots=True)
class _Image:
    data: bytes
    preprocessing: Preprocessing
    limits: ImageLimits


class Decoders:
    """Decodes as many images at a time as there are threads, and in addition half as many large ones."""

    def __init__(self, threads: int = 1) -> None:
        n_small = min(threads, _MOST_PROCESSES)
        n_large = max(1, n_small // 2)
        self._small = ThreadPoolExecutor(n_small, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(n_large, thread_name_prefix="decode-large")
        self._turns = Turns(n_large, most=_MOST_LARGE)

    def warm(self) -> None:
        """Start the process for the first image, so that it does not wait for that."""
        PROCESSES.warm()

    def prepare(self, data: bytes, preprocessing: Preprocessing, limits: ImageLimits) -> NDArray[np.float32]:
        """Turn the bytes of an image into the model's input, on the thread that calls. Raises as `preprocess` does."""
        return self._decoded(_Image(data, preprocessing, limits), Request())

    async def prepare_for(
        self, caller: str, data: bytes, preprocessing: Preprocessing, limits: ImageLimits
    ) -> NDArray[np.float32]:
        """Turn the bytes of a caller's image into the model's input. Used from one loop.

        If this call is cancelled, its work ends. Raises as `preprocess` does, and Overloaded.
        """
        image, request = _Image(data, preprocessing, limits), Request()
        loop = asyncio.get_running_loop()
        try:
            small = await loop.run_in_executor(self._small, self._decoded_if_small, image, request)
            if small is not None:
                return small
            async with self._turns.taken(caller):
                return await loop.run_in_executor(self._large, self._decoded_as_large, image, request)
        except asyncio.CancelledError:
            request.cancel()
            raise

    def _decoded(self, image: _Image, request: Request) -> NDArray[np.float32]:
        with PROCESSES.borrowed(request) as process:
            return _finished(process, process.open(image.data, image.limits), image)

    def _decoded_as_large(self, image: _Image, request: Request) -> NDArray[np.float32]:
        with PROCESSES.borrowed(request) as process:
            cost = process.open(image.data, image.limits)
            return _finished(process, replace(cost, is_small=False), image)

    def _decoded_if_small(self, image: _Image, request: Request) -> NDArray[np.float32] | None:
        """Decode an image; return None if it is large, or takes the time of a large one whatever its header says."""
        short = replace(image.limits, cpu_s=min(image.limits.cpu_s, _SMALL_CPU_S))
        try:
            with PROCESSES.borrowed(request) as process:
                cost = process.open(image.data, short)
                return _finished(process, cost, replace(image, limits=short)) if cost.is_small else None
        except TooSlow:
            if short == image.limits:
                raise
            return None


def _finished(process: DecoderProcess, cost: Cost, image: _Image) -> NDArray[np.float32]:
    with image_memory(cost.peak_bytes, image.limits, is_small=cost.is_small):
        return process.decode(image.preprocessing, image.limits)
