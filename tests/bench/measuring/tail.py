"""The part of EfficientNet-Lite0 that is trained, computed on kept activations two to three times faster on a CPU.

The same function and parameters as the embedder's own modules, with batch norms folded into the convolutions they
follow: pointwise ones as matrix products in bfloat16, depthwise ones in a compiled loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.model import Embedder


class Tail(nn.Module):
    """Activations behind block n_frozen - 1, [n, h, w, c] float32 -> embeddings [n, d] float32, unit rows."""

    def __init__(self, embedder: Embedder, *, n_frozen: int) -> None:
        super().__init__()
        network: Any = embedder.backbone
        self.blocks = network.blocks[n_frozen:]
        self.top = network.top
        self.head = embedder.head
        self.requires_grad_()
        self.eval()  # batch norms keep their pretrained statistics, as the embedder's do

    def features(self, values: Tensor) -> Tensor:
        """[n, h, w, c] -> [n, 1280]."""
        for block in self.blocks:
            values = _block(values, block)
        return _clamp(_pointwise(values, self.top[0], self.top[1])).mean(dim=(1, 2))

    def forward(self, values: Tensor) -> Tensor:
        return functional.normalize(self.head(self.features(values)), dim=1)


def _block(values: Tensor, block: Any) -> Tensor:
    inner = values
    if hasattr(block, "_expand_conv"):
        inner = _clamp(_pointwise(inner, block._expand_conv, block._bn0))
    inner = _clamp(_depthwise(inner, block._depthwise_conv, block._bn1))
    inner = _pointwise(inner, block._project_conv, block._bn2)
    return inner + values if inner.shape == values.shape else inner


def _clamp(values: Tensor) -> Tensor:
    return functional.hardtanh(values, 0.0, 6.0)


def _pointwise(values: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    scale, shift = _folded(norm)
    product: Tensor = _LowPrecisionProduct.apply(values, convolution.weight.flatten(1) * scale[:, None])
    return product + shift


def _depthwise(values: Tensor, convolution: Any, norm: nn.BatchNorm2d) -> Tensor:
    scale, shift = _folded(norm)
    stride = convolution.stride if isinstance(convolution.stride, int) else convolution.stride[0]
    before, after = getattr(convolution.static_padding, "padding", convolution.padding)[:2]
    taps, side = _taps(values.shape[1], convolution.kernel_size[0], stride, (before, after))
    product: Tensor = _DepthwiseProduct.apply(values, (convolution.weight.flatten(1) * scale[:, None]).T, taps, side)
    return product + shift


def _folded(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class _LowPrecisionProduct(torch.autograd.Function):
    """values [..., c] times weight [o, c] transposed, in bfloat16, given and returned in float32."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor) -> Tensor:
        values, weight = values.bfloat16(), weight.bfloat16()
        context.save_for_backward(values, weight)
        return (values @ weight.T).float()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        values, weight = context.saved_tensors
        gradient = gradient.bfloat16()
        return (gradient @ weight).float(), (gradient.flatten(0, -2).T @ values.flatten(0, -2)).float()


class _DepthwiseProduct(torch.autograd.Function):
    """A depthwise convolution of [n, h, w, c] with weight [taps, c]."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, taps: NDArray[np.int64], side: int) -> Tensor:
        n, height, width, channels = values.shape
        rows = np.ascontiguousarray(values.numpy().reshape(n, height * width, channels))
        weights = np.ascontiguousarray(weight.numpy())
        result = np.zeros((n, side * side, channels), dtype=np.float32)
        _convolve(rows, weights, taps, result)
        context.kept = rows, weights, taps, values.shape
        return torch.from_numpy(result).view(n, side, side, channels)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weights, taps, shape = context.kept
        of_rows, of_weights = np.zeros_like(rows), np.zeros_like(weights)
        _convolve_backward(
            rows, weights, np.ascontiguousarray(gradient.flatten(1, 2).numpy()), taps, of_rows, of_weights
        )
        return torch.from_numpy(of_rows).view(shape), torch.from_numpy(of_weights), None, None


@lru_cache
def _taps(side: int, kernel: int, stride: int, edges: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
    """Which output place takes which input place by which weight, [.., 3], padding left out; and the output's side."""
    out = (side + sum(edges) - kernel) // stride + 1
    taps = [
        (y * out + x, row * side + column, ky * kernel + kx)
        for y, x, ky, kx in np.ndindex(out, out, kernel, kernel)
        for row, column in [(y * stride - edges[0] + ky, x * stride - edges[0] + kx)]
        if 0 <= row < side and 0 <= column < side
    ]
    return np.array(taps, dtype=np.int64), out


@njit(fastmath=True, cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _convolve(rows, weights, taps, result):  # type: ignore[no-untyped-def]
    for n in range(rows.shape[0]):
        for t in range(taps.shape[0]):
            to, at, tap = taps[t]
            for c in range(rows.shape[2]):
                result[n, to, c] += rows[n, at, c] * weights[tap, c]


@njit(fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _convolve_backward(rows, weights, gradient, taps, of_rows, of_weights):  # type: ignore[no-untyped-def]
    for n in range(rows.shape[0]):
        for t in range(taps.shape[0]):
            to, at, tap = taps[t]
            for c in range(rows.shape[2]):
                of_rows[n, at, c] += gradient[n, to, c] * weights[tap, c]
                of_weights[tap, c] += gradient[n, to, c] * rows[n, at, c]
