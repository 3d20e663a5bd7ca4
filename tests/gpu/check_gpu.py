"""Checks on one GPU what the other tests check on the CPU, and measures it. Ends within 8 minutes.

    python -m tests.gpu.check_gpu                    a machine with a GPU and the extras gpu, train and dev
    python -m tests.gpu.check_gpu --cpu --small      runs every line on the CPU; its figures mean nothing

The complete search is compared with brute force in float64. The output is one JSON object; progress goes to stderr.
The exit code is 1 if a match is missed, a part fails, or time runs out. A part whose library is not installed is left
out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tests.gpu.building import graph, inverted_lists
from tests.gpu.models import encoder, processes, training
from tests.gpu.run import NotInstalled, Run
from tests.gpu.searching import search

_LATEST_START_S = 330.0  # no part begins later; each takes less than two minutes
_LATEST_END_S = 465.0  # what is measured by then is printed, and the script ends

Part = Callable[[Run], dict[str, Any]]
PARTS: Mapping[str, Part] = {
    "search 1M x 128": partial(search, n=1_000_000),
    "search 10M x 128": partial(search, n=10_000_000),
    "IVF built on the device": inverted_lists,
    "CAGRA built on the device": graph,
    "encoder": encoder,
    "training in bf16": training,
    "processes": processes,
}


def main(arguments: list[str] | None = None, parts: Mapping[str, Part] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    parser.add_argument("--small", action="store_true", help="little data, for a test of this script")
    options = parser.parse_args(arguments)
    run = Run("cpu" if options.cpu else "cuda", options.small)
    if run.device == "cuda" and (reason := missing_gpu()):
        print(json.dumps({"skipped": reason}))
        return 0
    results: dict[str, Any] = {"device": run.device, "small": run.small, "gpu": name_of_gpu(run)}
    watch = threading.Timer(_LATEST_END_S, stop, [results])
    watch.daemon = True
    watch.start()
    began = time.monotonic()
    for name, part in (parts or PARTS).items():
        results["at_work"] = name
        results[name] = outcome(part, run, began)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    watch.cancel()
    del results["at_work"]
    results["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(results))
    measured = [results[name] for name in parts or PARTS]
    return 1 if any("error" in each or each.get("missed") or each.get("wrong") for each in measured) else 0


def stop(results: Mapping[str, Any]) -> None:
    """Print what is measured, and end the process: the part at work takes too long, or hangs."""
    print(json.dumps({**results, "error": f"stopped after {_LATEST_END_S:.0f} s"}), flush=True)
    os._exit(1)


def outcome(part: Part, run: Run, began: float) -> dict[str, Any]:
    """Return what a part measured, or why it did not."""
    start = time.monotonic()
    if start - began > _LATEST_START_S:
        return {"error": "no time was left"}
    try:
        result = part(run)
    except (NotInstalled, ImportError) as error:
        return {"left_out": str(error)}
    except Exception as error:  # noqa: BLE001  # the other parts are measured in any case
        traceback.print_exc()
        return {"error": repr(error)}
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def missing_gpu() -> str:
    """Return why no GPU can be used, "" if one can."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: install the extra `gpu` in place of `cpu`"
    try:
        import torch
    except ImportError:  # the extra train is needed for some parts only
        return ""
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def name_of_gpu(run: Run) -> str:
    """Return the name of the GPU, "" on the CPU or without torch."""
    if run.device == "cpu":
        return ""
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name(0)


if __name__ == "__main__":
    sys.exit(main())
