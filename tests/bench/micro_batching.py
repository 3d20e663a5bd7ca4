"""What does greedy micro-batching give many callers, and what does it cost a lone one?

Each caller sends its next image when the last is answered. The baseline runs one forward pass per image on the same
kind of single encoder thread; the plain loop has no event loop at all. Preprocessing is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import open_bundle
from retrieval.engine.batcher import Batcher
from retrieval.engine.encoder import Encoder
from tests.bench.measuring.callers import drive, summary
from tests.bench.measuring.rounds import Group, Values, in_turns, option_parser, show
from tests.tiny_bundle import write_tiny_bundle

Pixels = NDArray[np.float32]


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of a model bundle (default: the tests' tiny one)")
    parser.add_argument("--images", type=int, help="images a run (default 640, quick 160)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32], help="concurrent callers")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoder")
    parser.add_argument("--max-batch", type=int, default=16, help="most images in a forward pass")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(options.bundle) if options.bundle else write_tiny_bundle(Path(folder) / "bundle")
        encoder = Encoder.open(bundle, threads=options.threads, max_batch=options.max_batch)
        megabytes = bundle.model_path.stat().st_size / 1e6
    side = bundle.preprocessing.crop
    shape = (options.images or (160 if options.quick else 640), 3, side, side)
    images = np.random.default_rng(0).uniform(-1, 1, size=shape).astype(np.float32)
    groups = [measure(encoder, images, n_callers, options) for n_callers in options.callers]
    show(__doc__, options, groups, {"model": f"{megabytes:.3g} MB, {side} x {side} pixels"})


def measure(encoder: Encoder, images: Pixels, n_callers: int, options: argparse.Namespace) -> Group:
    cases = {
        "one by one": lambda: asyncio.run(one_by_one(encoder, images, n_callers)),
        "greedy batcher": lambda: asyncio.run(batched(encoder, images, n_callers)),
    }
    if n_callers == 1:
        cases["plain loop"] = lambda: plain_loop(encoder, images)
    return in_turns(f"{n_callers} callers, {len(images)} images", cases, n_rounds=options.rounds)


async def one_by_one(encoder: Encoder, images: Pixels, n_callers: int) -> Values:
    with ThreadPoolExecutor(max_workers=1) as thread:

        async def embed(pixels: Pixels) -> NDArray[np.float32]:
            rows: NDArray[np.float32] = await asyncio.get_running_loop().run_in_executor(
                thread, encoder.embed, pixels[None]
            )
            return rows.reshape(-1)

        return await drive(embed, images, n_callers)


async def batched(encoder: Encoder, images: Pixels, n_callers: int) -> Values:
    batcher: Batcher[Pixels, NDArray[np.float32]] = Batcher(
        lambda pixels: list(encoder.embed(np.stack(pixels))), name="model", max_batch=encoder.max_batch
    )
    values = await drive(batcher.ask, images, n_callers)
    await batcher.close()
    return values


def plain_loop(encoder: Encoder, images: Pixels) -> Values:
    times = [time.perf_counter()]
    for pixels in images:
        encoder.embed(pixels[None])
        times.append(time.perf_counter())
    return summary(times[-1] - times[0], [after - before for before, after in itertools.pairwise(times)])


if __name__ == "__main__":
    main()
