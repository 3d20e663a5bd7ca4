"""Models on the device: the exported encoder, training, and the path of several processes."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from tests.gpu.run import NotInstalled, Run, per_second

_TENSORRT = {"trt_fp16_enable": "True", "trt_builder_optimization_level": "2"}  # higher levels take minutes to build


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
        options = _TENSORRT if provider.startswith("Tensorrt") else {}
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
