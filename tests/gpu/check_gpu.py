"""Checks on one GPU what the other tests check on the CPU, and measures it. Ends within 8 minutes.

    python -m tests.gpu.check_gpu                    a machine with a GPU and the extras gpu, train and dev
    python -m tests.gpu.check_gpu --cpu --small      runs every line on the CPU; its figures mean nothing

The complete search is compared with brute force in float64. The last line is one JSON object. The exit code is 1 if a
match is missed or a part fails; a part whose library is not installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_LATEST_START_S = 360.0  # no part begins later; each takes less than a minute and a half
_DIMENSION = 128
_PER_CLUSTER = 20
_CHUNK = 1 << 18
_MATCHES = 100  # a query: FAR 1e-4 among a million vectors, 1e-5 among ten millions


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how much is measured."""

    device: str
    small: bool

    def size(self, whole: int, small: int) -> int:
        """Return the size of something."""
        return small if self.small else whole


class NotInstalled(Exception):
    """A part needs what this machine does not have."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    parser.add_argument("--small", action="store_true", help="little data, for a test of this script")
    options = parser.parse_args(arguments)
    run = Run("cpu" if options.cpu else "cuda", options.small)
    if run.device == "cuda" and (reason := missing_gpu()):
        print(json.dumps({"skipped": reason}))
        return 0
    parts: dict[str, Callable[[Run], dict[str, Any]]] = {
        "search 1M x 128": lambda run: search(run, run.size(1_000_000, 3000)),
        "search 10M x 128": lambda run: search(run, run.size(10_000_000, 5000)),
        "IVF built on the device": inverted_lists,
        "encoder": encoder,
        "training in bf16": training,
        "processes": processes,
    }
    began, results = time.monotonic(), dict[str, Any](device=run.device, small=run.small, gpu=name_of_gpu(run))
    for name, part in parts.items():
        results[name] = outcome(part, run, began)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    results["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(results))
    bad = [
        name for name in parts if "error" in results[name] or results[name].get("missed") or results[name].get("wrong")
    ]
    return 1 if bad else 0


def outcome(part: Callable[[Run], dict[str, Any]], run: Run, began: float) -> dict[str, Any]:
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
    import torch

    return "" if torch.cuda.is_available() else "torch finds no GPU"


def name_of_gpu(run: Run) -> str:
    if run.device == "cpu":
        return ""
    import torch

    return torch.cuda.get_device_name(0)


def search(run: Run, n: int) -> dict[str, Any]:
    """The complete threshold search against brute force: missed and wrong pairs, and queries a second."""
    from retrieval.engine.index.exact_scores import hits_of
    from retrieval.engine.index.gpu_index import GpuSearch, devices_of

    vectors = clustered(n)
    queries = vectors[np.random.default_rng(1).integers(n, size=run.size(256, 24))]
    threshold = threshold_for(vectors, queries)
    start = time.monotonic()
    on_device = GpuSearch(vectors, devices_of(run.device))
    loaded = time.monotonic() - start
    checked = queries[: run.size(64, 24)]
    numbers, rows, scores = on_device.pairs(checked, threshold)
    kept = scores >= np.float32(threshold)
    found = np.unique(numbers[kept] * n + rows[kept])
    wanted = brute_force(vectors, checked, threshold)

    if not len(wanted):
        raise ValueError("no pair reaches the threshold, so this would prove nothing")

    def answered(batch: int) -> float:
        began, n_done = time.monotonic(), 0
        while time.monotonic() - began < run.size(5, 0) or not n_done:
            part = queries[n_done % len(queries) :][:batch]
            hits_of(len(part), *on_device.pairs(part, threshold), threshold)
            n_done += len(part)
        return n_done / (time.monotonic() - began)

    return {
        "matches": len(wanted),
        "missed": len(np.setdiff1d(wanted, found)),
        "wrong": len(np.setdiff1d(found, wanted)),
        "candidates_over_matches": round(len(rows) / max(1, len(wanted)), 3),
        "queries_per_s_single": round(answered(1), 1),
        "queries_per_s_batches_of_64": round(answered(64), 1),
        "seconds_to_load": round(loaded, 1),
        "threshold": round(threshold, 4),
    }


def clustered(n: int) -> Vectors:
    """Return unit vectors [n, 128] around many centres."""
    centres = np.random.default_rng(0).standard_normal((max(1, n // _PER_CLUSTER), _DIMENSION), dtype=np.float32)
    vectors = np.empty((n, _DIMENSION), np.float32)

    def fill(start: int) -> None:
        rng, part = np.random.default_rng([2, start]), vectors[start : start + _CHUNK]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= 0.7
        part += centres[rng.integers(len(centres), size=len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, range(0, n, _CHUNK)))
    return vectors


def threshold_for(vectors: Vectors, queries: Vectors) -> float:
    """Return a score that occurs and that about _MATCHES vectors a query reach, as a sample of the vectors has it."""
    step = max(1, len(vectors) // 200_000)
    sample = np.sort((queries @ vectors[::step].T).ravel())
    return float(sample[-max(1, len(sample) * _MATCHES // len(vectors))])


def brute_force(vectors: Vectors, queries: Vectors, threshold: float) -> NDArray[np.int64]:
    """Return the number of each pair that reaches the threshold, query * n + row, from products in float64."""
    exact, parts = queries.astype(np.float64), []
    for start in range(0, len(vectors), _CHUNK):
        scores = (exact @ vectors[start : start + _CHUNK].astype(np.float64).T).astype(np.float32)
        numbers, rows = np.nonzero(scores >= np.float32(threshold))
        parts.append(numbers * len(vectors) + rows + start)
    return np.unique(np.concatenate(parts))


def inverted_lists(run: Run) -> dict[str, Any]:
    """An IVF index whose lists were trained on the device, saved and opened: the CPU finds the same in it."""
    from retrieval.engine.index.open import build_index, load_index
    from retrieval.engine.index.spec import IndexSpec

    n = run.size(1_000_000, 2000)
    vectors, spec = clustered(n), IndexSpec.parse(f"IVF{run.size(4096, 16)},nprobe=16")
    start = time.monotonic()
    index = build_index(vectors, spec, device=run.device)
    built = time.monotonic() - start
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        opened = load_index(Path(folder) / "index", spec, dimension=_DIMENSION, n_items=n)
        pairs = zip(index.above(vectors[:16], 0.7), opened.above(vectors[:16], 0.7), strict=True)
        wrong = sum(first.positions.tolist() != second.positions.tolist() for first, second in pairs)
    return {"seconds_to_build": round(built, 1), "wrong": wrong}


def small_or_whole_embedder(run: Run) -> Any:
    """Return an embedder with random weights, and its preprocessing."""
    from training.config import InputConfig, ModelConfig
    from training.model import create_embedder

    side = run.size(224, 32)
    backbone = "torchvision/mobilenet_v3_small" if run.small else "torchvision/resnet50"
    model = ModelConfig(backbone=backbone, weights="random", batch_norm="trained")
    return create_embedder(model, InputConfig(resize=side, crop=side))


def encoder(run: Run) -> dict[str, Any]:
    """Images a second of an exported model, with each provider that this machine has."""
    import onnxruntime

    from training.export.onnx_model import INPUT_NAME, to_onnx

    embedder, preprocessing = small_or_whole_embedder(run)
    model = to_onnx(embedder, preprocessing).content()
    side, batch = preprocessing.crop, run.size(64, 2)
    pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
    kinds = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "TensorrtExecutionProvider"]}
    result: dict[str, Any] = {"model": "mobilenet_v3_small" if run.small else "resnet50", "batch": batch}
    for provider in kinds[run.device]:
        if provider not in onnxruntime.get_available_providers():
            result[provider] = "absent"
            continue
        options = {"trt_fp16_enable": "True"} if provider.startswith("Tensorrt") else {}
        session = onnxruntime.InferenceSession(model, providers=[(provider, options)])
        if session.get_providers()[0] != provider:
            result[provider] = "did not start"
            continue
        call = lambda: session.run(None, {INPUT_NAME: pixels})  # noqa: B023, E731  # called within this round only
        result[provider] = round(batch * per_second(call, run.size(5, 0)), 1)
    return result


def training(run: Run) -> dict[str, Any]:
    """Images a second of a training step in bf16, forward and backward, on pixels that are on the device."""
    import torch

    from training.config import LossConfig
    from training.loop.processes import Processes
    from training.losses import TrainingLoss

    processes = Processes(run.device, "bf16")
    embedder, preprocessing = small_or_whole_embedder(run)
    embedder = embedder.to(processes.device)
    batch, side = run.size(128, 8), preprocessing.crop
    layout = torch.channels_last
    pixels = torch.randn(batch, 3, side, side, device=processes.device).to(memory_format=layout)
    labels = torch.arange(batch, device=processes.device) // 4
    loss = TrainingLoss(LossConfig(), n_classes=batch, dimension=embedder.dimension, steps=10_000).to(processes.device)
    optimiser = torch.optim.SGD([*embedder.parameters(), *loss.parameters()], lr=1e-3)

    def step() -> None:
        optimiser.zero_grad()
        with processes.accelerator.autocast():
            embeddings = embedder(pixels)
        loss(embeddings, labels, step=0).total.backward()
        optimiser.step()
        if run.device == "cuda":
            torch.cuda.synchronize()

    return {"images_per_s": round(batch * per_second(step, run.size(8, 0)), 1), "batch": batch}


def processes(run: Run) -> dict[str, Any]:
    """The path of several processes, NCCL on a GPU, with one: gradients that are averaged are those without."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    backend = "nccl" if run.device == "cuda" else "gloo"
    if not (distributed.is_nccl_available() if backend == "nccl" else distributed.is_gloo_available()):
        raise NotInstalled(f"torch without {backend}")
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", world_size=1, rank=0)
        try:
            torch.manual_seed(0)
            module = torch.nn.Linear(64, 64).to(run.device)
            rows = torch.randn(32, 64, device=run.device)
            module(rows).square().mean().backward()
            alone = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
            module.zero_grad()
            DistributedDataParallel(module)(rows).square().mean().backward()
            together = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            wrong = sum(not torch.allclose(a, b) for a, b in zip(alone, together, strict=True))
            total = torch.ones(1 << 20, device=run.device)
            calls = per_second(lambda: distributed.all_reduce(total), run.size(1, 0))
        finally:
            distributed.destroy_process_group()
    return {"backend": backend, "wrong": wrong + int((total != 1).sum()), "all_reduce_4_MiB_per_s": round(calls, 1)}


def per_second(call: Callable[[], object], seconds: float) -> float:
    """Return how often a call can be made in a second, after two that do not count."""
    call()
    call()
    began, n_calls = time.monotonic(), 0
    while time.monotonic() - began < seconds or not n_calls:
        call()
        n_calls += 1
    return n_calls / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
