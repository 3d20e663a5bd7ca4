"""Starts, asks, kills and replaces the processes that decode. `child.py` is their program, `lanes.py` decides when.

A process costs some 25 MB and a quarter of a second of a core, once; an image costs a tenth of a millisecond more than
in a thread.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.preprocessing import Preprocessing
from retrieval.engine.decoding.frames import receive, send
from retrieval.errors import ImageTooLarge, InvalidImage, Unavailable

# A busy machine grants a process at least a sixth of a core, and starts it in so many seconds.
_PATIENCE, _START_S = 6, 20.0
_PIPE_BYTES = 1024 * 1024  # an answer in one step
_START = (
    "import json, os, sys; os.environ.setdefault('OPENBLAS_NUM_THREADS', '1'); sys.path[:] = json.loads(sys.argv[1]); "
    "from retrieval.engine.decoding.child import main; main()"
)
_REFUSALS = {"InvalidImage": InvalidImage, "ImageTooLarge": ImageTooLarge}


@dataclass(frozen=True, slots=True)
class Cost:
    """What decoding an image takes: bytes of memory, and whether that and its work are little."""

    peak_bytes: int
    is_small: bool


class Request:
    """The image of one caller, who may give up at any time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: DecoderProcess | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """End the work on this image: the process that does it is killed."""
        with self._lock:
            self.is_cancelled = True
            if self._process is not None:
                self._process.kill()

    def hold(self, process: "DecoderProcess | None") -> None:
        """Note which process works on this image, None for none. Raises Cancelled if nobody waits for it any more."""
        with self._lock:
            self._process = process
            if process is not None and self.is_cancelled:
                raise Cancelled("the caller went away")


class TooSlow(InvalidImage):
    """Decoding took more than the time that was allowed."""


class Cancelled(Exception):
    """Nobody waits for the image any more. Not of the family, because nobody gets it."""


class DecoderProcess:
    """One process that decodes images, one at a time. It is used up after an error that is not the image's."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                process_group=0,  # Ctrl-C is for this process, which then closes the pipe
            )
        except OSError as error:
            raise Unavailable(f"no process to decode images can be started: {error}") from error
        # the fallback is for the type checker: both are pipes
        self._questions, self._answers = (
            file.fileno() if file is not None else -1 for file in (self._process.stdin, self._process.stdout)
        )
        for descriptor in (self._questions, self._answers):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):  # the limit of this user is smaller: more steps
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.close = weakref.finalize(self, _end, self._process, os.getpid())
        self.is_usable = True

    def open(self, data: bytes, limits: ImageLimits) -> Cost:
        """Check an image and return its cost. Raises as `open_image` does, and InvalidImage if it ends the process."""
        fields = {name: value for name, value in asdict(limits).items() if name != "roots"}
        answer, _ = self._ask({"limits": fields}, data, limits)
        return Cost(answer["peak_bytes"], answer["is_small"])

    def decode(self, preprocessing: Preprocessing, limits: ImageLimits) -> NDArray[np.float32]:
        """Return the model's input for the image that was opened. Raises as `open` does."""
        answer, content = self._ask({"preprocessing": asdict(preprocessing)}, b"", limits)
        return np.frombuffer(content, dtype=np.float32).reshape(answer["shape"])

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process at once; the thread that waits for its answer finds out."""
        self._process.kill()

    def _ask(self, fields: dict[str, Any], content: bytes, limits: ImageLimits) -> tuple[dict[str, Any], bytearray]:
        self.is_usable = False
        allowed_s = _PATIENCE * limits.cpu_s + _START_S
        deadline = time.monotonic() + allowed_s
        try:
            send(self._questions, {**fields, "cpu_s": limits.cpu_s}, content, deadline=deadline)
            answer, pixels = receive(self._answers, deadline=deadline)
        except TimeoutError:
            self.close()
            raise TooSlow(f"the image was not decoded within {allowed_s:.0f} s") from None
        except (EOFError, OSError):
            raise _cause(self._process.wait(), limits) from None
        if "defect" in answer:
            raise RuntimeError(f"in a process that decodes: {answer['defect']}")
        self.is_usable = True
        if "error" in answer:
            raise _REFUSALS.get(answer["error"], InvalidImage)(answer["message"])
        return answer, pixels


class DecoderProcesses:
    """Processes that are started when they are needed and kept for the next image. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []

    @contextlib.contextmanager
    def borrowed(self, request: Request) -> Iterator[DecoderProcess]:
        """Lend a process for one image. Raises Cancelled if its caller has gone, Unavailable if none can be started."""
        process = self._take()
        try:
            request.hold(process)
            yield process
        finally:
            request.hold(None)
            if process.is_usable:
                with self._lock:
                    self._idle.append(process)
            else:
                process.close()

    def warm(self) -> None:
        """Start a process for the first image, and wait until it can decode."""
        with self.borrowed(Request()) as process, contextlib.suppress(InvalidImage):
            process.open(b"", DEFAULT_LIMITS)

    def forget(self) -> None:
        """Start again without any process: in a fork, they belong to the original."""
        self._lock, self._idle = threading.Lock(), []

    def _take(self) -> DecoderProcess:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return DecoderProcess()
            if process.is_alive:
                return process
            process.close()


def _cause(code: int, limits: ImageLimits) -> InvalidImage:
    """Return the error for a process that ended in the middle of an image."""
    if code == -signal.SIGPROF:
        return TooSlow(
            f"the image needs more than {limits.cpu_s:g} CPU seconds to decode: save it again, or send a smaller one"
        )
    if code == -signal.SIGKILL:
        return InvalidImage(
            "the process that decoded the image was killed, often for lack of memory: send a smaller one"
        )
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return InvalidImage(f"the image makes its decoder crash ({name}): save it again with another program")


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        process.kill()
        process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            file.close()


PROCESSES = DecoderProcesses()  # of this process
os.register_at_fork(after_in_child=PROCESSES.forget)
