"""What does TCM cost, forward and backward, compared with the similarity product and with pytorch-metric-learning?

CPU time on one thread. The product is of all B x B similarities, forward only, and beside it with its backward pass.
Rows are spread around class centres, four of a class, so that nearly all positive pairs are active and about one
negative in two hundred; "all active" has margins that every pair is on the wrong side of. "chunked" keeps no pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.losses import ThresholdConsistentMarginLoss
from torch import Tensor
from torch.nn import functional

from tests.bench.measuring.rounds import Case, Group, cpu_of, in_turns, option_parser, show
from training.losses import threshold_consistent_margin

_SIZES, _QUICK_SIZES = (128, 512, 4096), (64, 256)
_LIBRARY_SIZES, _QUICK_LIBRARY_SIZES = (128, 512), (64,)
_IMAGES = 4
# Centres lie in few dimensions around a common one, as those of real classes do; isotropic ones are never close.
_CENTRE_DIMENSIONS = 16
_COMMON, _WITHIN = 0.5, 0.75


@dataclass(frozen=True, slots=True)
class Data:
    """rows: [n, d] float32 leaf with gradient, unit norm; labels: [n] int64."""

    rows: Tensor
    labels: Tensor


def make_data(n: int, d: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // _IMAGES
    common = functional.normalize(torch.randn(d, generator=generator), dim=0)
    centres = torch.zeros(len(labels.unique()), d)
    centres[:, :_CENTRE_DIMENSIONS] = torch.randn(len(centres), _CENTRE_DIMENSIONS, generator=generator)
    centres = functional.normalize(centres, dim=1)
    within = functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    rows = functional.normalize(_COMMON * common + centres[labels] + _WITHIN * within, dim=1)
    return Data(rows.requires_grad_(), labels)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--d", type=int, default=512, help="dimension")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = _QUICK_SIZES if options.quick else _SIZES
    library_sizes = _QUICK_LIBRARY_SIZES if options.quick else _LIBRARY_SIZES
    data = {n: make_data(n, options.d) for n in {*sizes, *library_sizes}}
    groups = [beside_product(data[n], options) for n in sizes]
    groups += [beside_library(data[n], options) for n in library_sizes]
    facts: dict[str, object] = {}
    for n in sizes:
        found = threshold_consistent_margin(data[n].rows, data[n].labels)
        shares = (round(share.item(), 4) for share in (found.active_positives, found.active_negatives))
        facts[f"active shares of positives and negatives at {n}"] = tuple(shares)
    for n in library_sizes:
        ours = threshold_consistent_margin(data[n].rows, data[n].labels).value
        difference = abs(ours - ThresholdConsistentMarginLoss()(data[n].rows, data[n].labels)).item()
        facts[f"difference from pytorch-metric-learning's value at {n}"] = f"{difference:.1e}"
    show(__doc__, options, groups, facts)


def beside_product(data: Data, options: argparse.Namespace) -> Group:
    n = len(data.labels)
    plain = data.rows.detach()
    cases = {
        "product": _case(n, lambda: plain @ plain.T),
        "product, backward": _case(n, lambda: _descend(data, (data.rows @ data.rows.T).sum())),
        "TCM, forward only": _case(n, lambda: threshold_consistent_margin(plain, data.labels)),
        "TCM": _case(n, lambda: _step(data)),
        "TCM, chunked": _case(n, lambda: _step(data, chunk=n // 4)),
        "TCM, classes balanced": _case(n, lambda: _step(data, balance="classes")),
        "TCM, all active": _case(n, lambda: _step(data, positive_margin=1.0, negative_margin=-1.0)),
        "TCM, all active, chunked": _case(
            n, lambda: _step(data, positive_margin=1.0, negative_margin=-1.0, chunk=n // 4)
        ),
    }
    return in_turns(f"B = {n}, d = {options.d}", cases, n_rounds=options.rounds)


def beside_library(data: Data, options: argparse.Namespace) -> Group:
    n = len(data.labels)
    library = ThresholdConsistentMarginLoss()
    cases = {
        "TCM": _case(n, lambda: _step(data)),
        "pytorch-metric-learning": cpu_of(lambda: _descend(data, library(data.rows, data.labels))),
    }
    return in_turns(f"forward and backward, B = {n}, d = {options.d}", cases, n_rounds=options.rounds)


def _case(n: int, function: Callable[[], object]) -> Case:
    """One call of a large batch, many of a small one."""
    n_calls = max(2**14 // n, 1) if n < 1024 else 1
    return cpu_of(lambda: [function() for _ in range(n_calls)], n_parts=n_calls)


def _step(data: Data, **options: Any) -> None:
    _descend(data, threshold_consistent_margin(data.rows, data.labels, **options).value)


def _descend(data: Data, value: Tensor) -> None:
    data.rows.grad = None
    value.backward()


if __name__ == "__main__":
    main()
