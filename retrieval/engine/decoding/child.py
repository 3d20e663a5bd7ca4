"""The program of a process that decodes images for another one: it may crash, or be killed, at no other image's cost.

It answers `open` with what the image costs or why it is refused, then `decode` with the model's input. The kernel ends
it if an image takes more CPU time than allowed. It ends itself when the process that it works for is gone.
"""

import contextlib
import os
import resource
import select
import signal
import threading
from pathlib import Path
from typing import Any

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import OpenedImage, Preprocessing, open_image, to_array
from retrieval.engine.decoding.frames import receive, send
from retrieval.errors import InvalidInput

_SPARE_BYTES = 256 * 1024 * 1024  # beside the pixels: the file, copies of it, tables and threads of a decoder


def main() -> None:
    """Answer until the other process closes the pipe."""
    questions, answers = 0, os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get into an answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    base_bytes = _restrict()
    opened: OpenedImage | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            fields, content = receive(questions)
            # the default action of the signal ends this process, also inside of a library
            signal.setitimer(signal.ITIMER_PROF, fields["cpu_s"])
            try:
                if "limits" in fields:
                    opened = None
                    _limit_memory(base_bytes + len(content))
                    opened = open_image(bytes(content), ImageLimits(**fields["limits"]))
                    answer: tuple[dict[str, Any], bytes] = (
                        {"peak_bytes": opened.peak_bytes, "is_small": opened.is_small(ImageLimits(**fields["limits"]))},
                        b"",
                    )
                elif opened is not None:
                    _limit_memory(base_bytes + len(opened.data) + opened.peak_bytes)
                    answer = _decoded(opened, _preprocessing(fields["preprocessing"]))
                    opened = None
                else:
                    answer = {"defect": "decode without open"}, b""
            except InvalidInput as error:
                answer = {"error": type(error).__name__, "message": str(error)}, b""
            except Exception as error:  # noqa: BLE001  # the other process reports it
                answer = {"defect": f"{type(error).__name__}: {error}"}, b""
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(answers, *answer)


def _decoded(opened: OpenedImage, preprocessing: Preprocessing) -> tuple[dict[str, Any], bytes]:
    pixels = to_array(opened.decode(preprocessing.background), preprocessing)
    return {"shape": pixels.shape}, pixels.tobytes()


def _preprocessing(fields: dict[str, Any]) -> Preprocessing:
    triples = {name: tuple(fields[name]) for name in ("mean", "std", "background")}  # lists, in JSON
    return Preprocessing(**{**fields, **triples})


def _restrict() -> int:
    """Write no file and no core; be the first to end if memory runs out. Return the bytes of data of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return 1024 * int(line.split()[1])
    return 0


def _limit_memory(n_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = n_bytes + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _end_with_parent() -> None:
    """End this process, in the middle of an image too, when the other one has gone."""
    poll = select.poll()
    poll.register(0, 0)  # reports only that the other end is closed
    poll.poll()
    os._exit(0)
