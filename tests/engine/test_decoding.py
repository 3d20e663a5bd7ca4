"""Each image is decoded in a process that may die; large ones take no process and no memory from small ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pillow_heif
import psutil
import pytest
from PIL import AvifImagePlugin, Image

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.memory import MemoryBudget
from retrieval.contract.preprocessing import Preprocessing, decoded, preprocess
from retrieval.engine.decoding import lanes, processes
from retrieval.engine.decoding.lanes import Decoders
from retrieval.errors import ImageTooLarge, InvalidImage, Overloaded, Unavailable
from tests import hostile, pictures
from tests.contract.test_pixels import ordinary
from tests.pictures import encoded

PREPROCESSING = Preprocessing(resize=48, crop=32, mean=(120.0, 115.0, 100.0), std=(58.0, 57.0, 59.0))
SMALL = encoded(pictures.noise(64), "JPEG")
HEAVY = hostile.many_scans(3500, 300)  # two seconds of a core or more
PATIENT = ImageLimits(pixels=200_000_000, jpeg_scans=400)
IMPATIENT = replace(PATIENT, cpu_s=0.3)


@pytest.fixture
def decoders() -> Decoders:
    return Decoders(2)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "decoding.child" in _command(child)]


def _command(child: psutil.Process) -> str:
    """The command line of a child; nothing of one that has just ended."""
    try:
        return " ".join(child.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for_work(child: psutil.Process) -> None:
    """Wait until a process that was started and waits is in the middle of an image."""
    before = child.cpu_times().user
    while child.cpu_times().user < before + 0.3:
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """A test begins without processes of its own, and all that it starts are idle or gone in the end."""
    own, before = processes.DecoderProcesses(), children()
    monkeypatch.setattr(lanes, "PROCESSES", own)
    yield before
    for process in own._idle:
        process.close()
    assert children() == before


@pytest.mark.slow
def test_every_way_of_decoding_gives_the_same_input(decoders: Decoders) -> None:
    """In a process for a query, in one for indexing, and in this process, which training and reports use."""
    for name, data in ordinary().items():
        expected = preprocess(data, PREPROCESSING)
        np.testing.assert_array_equal(decoders.prepare(data, PREPROCESSING, DEFAULT_LIMITS), expected, err_msg=name)
        queried = asyncio.run(decoders.prepare_for("me", data, PREPROCESSING, DEFAULT_LIMITS))
        np.testing.assert_array_equal(queried, expected, err_msg=name)
    large = encoded(pictures.noise(5100), "JPEG", quality=20)
    queried = asyncio.run(decoders.prepare_for("me", large, PREPROCESSING, DEFAULT_LIMITS))
    np.testing.assert_array_equal(queried, preprocess(large, PREPROCESSING))


def test_every_way_of_decoding_refuses_alike(decoders: Decoders) -> None:
    bad = {b"no image": "something else", pictures.truncated_jpeg(): "damaged or truncated", b"": "found 0 bytes"}
    for data, message in bad.items():
        with pytest.raises(InvalidImage, match=message):
            preprocess(data, PREPROCESSING)
        with pytest.raises(InvalidImage, match=message):
            decoders.prepare(data, PREPROCESSING, DEFAULT_LIMITS)
    with pytest.raises(ImageTooLarge, match="the limit is 100: send a smaller one"):
        decoders.prepare(SMALL, PREPROCESSING, ImageLimits(pixels=100))


@pytest.mark.slow
def test_an_image_that_takes_too_long_is_refused_and_its_process_replaced(decoders: Decoders) -> None:
    for _ in range(2):
        with pytest.raises(InvalidImage, match=r"the image needs more than 0\.3 CPU seconds to decode"):
            decoders.prepare(HEAVY, PREPROCESSING, IMPATIENT)
    assert decoders.prepare(SMALL, PREPROCESSING, IMPATIENT).shape == (3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGSEGV, r"makes its decoder crash \(SIGSEGV\)"), (signal.SIGKILL, "often for lack of memory")],
)
def test_a_crash_costs_one_image(
    decoders: Decoders, others: list[psutil.Process], number: signal.Signals, message: str
) -> None:
    """A library that crashes, or the kernel when memory runs out, ends one process and one request."""
    errors: list[InvalidImage] = []

    def decode() -> None:
        with pytest.raises(InvalidImage, match=message) as refusal:
            decoders.prepare(HEAVY, PREPROCESSING, PATIENT)
        errors.append(refusal.value)

    decoders.warm()
    (child,) = [child for child in children() if child not in others]
    thread = threading.Thread(target=decode)
    thread.start()
    wait_for_work(child)
    os.kill(child.pid, number)
    thread.join(20)
    assert len(errors) == 1
    assert decoders.prepare(SMALL, PREPROCESSING, DEFAULT_LIMITS).shape == (3, 32, 32)


def test_a_process_that_died_while_it_waited_is_replaced(decoders: Decoders, others: list[psutil.Process]) -> None:
    decoders.warm()
    (child,) = [child for child in children() if child not in others]
    child.kill()
    child.wait(10)
    assert decoders.prepare(SMALL, PREPROCESSING, DEFAULT_LIMITS).shape == (3, 32, 32)


@pytest.mark.slow
def test_a_caller_who_goes_away_frees_the_decoder() -> None:
    """Its process is killed in the middle of the image."""
    decoders = Decoders(1)

    async def run() -> float:
        calls = [
            asyncio.create_task(decoders.prepare_for(f"caller {n}", HEAVY, PREPROCESSING, PATIENT)) for n in range(4)
        ]
        await asyncio.sleep(1)
        for call in calls:
            call.cancel()
        started = time.monotonic()
        await decoders.prepare_for("another", encoded(pictures.noise(5100), "JPEG"), PREPROCESSING, DEFAULT_LIMITS)
        return time.monotonic() - started

    alone = time.monotonic()
    asyncio.run(Decoders(1).prepare_for("a", encoded(pictures.noise(5100), "JPEG"), PREPROCESSING, DEFAULT_LIMITS))
    alone = time.monotonic() - alone
    assert asyncio.run(run()) < 2 * alone + 3  # the other calls would take eight seconds or more


@pytest.mark.slow
def test_small_images_pass_large_ones() -> None:
    """However many large images are under way, small ones are decoded."""
    decoders = Decoders(2)

    async def run() -> None:
        waiting = [asyncio.create_task(decoders.prepare_for("one", HEAVY, PREPROCESSING, PATIENT)) for _ in range(17)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(Overloaded, match="16 large images of this caller wait"):
            await done.pop()
        started = time.monotonic()
        for _ in range(10):
            await decoders.prepare_for("another", SMALL, PREPROCESSING, DEFAULT_LIMITS)
        assert time.monotonic() - started < 5
        for task in waiting:
            task.cancel()

    asyncio.run(run())


@pytest.mark.slow
def test_an_image_that_seems_small_and_is_slow_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a header says, the lane of small images stays free."""
    monkeypatch.setattr(lanes, "_SMALL_CPU_S", 0.2)
    wrong = "import retrieval.contract.preprocessing as p; p._SMALL_WORK = 10 ** 12; "  # as if all were small
    monkeypatch.setattr(processes, "_START", processes._START.replace("from retrieval", wrong + "from retrieval"))
    decoders = Decoders(2)

    async def run() -> None:
        slow = [
            asyncio.create_task(decoders.prepare_for(f"caller {n}", HEAVY, PREPROCESSING, PATIENT)) for n in range(6)
        ]
        turns = decoders._turns
        while turns._running.total() + sum(map(len, turns._waiting.values())) < 6:
            await asyncio.sleep(0.05)
        started = time.monotonic()
        await decoders.prepare_for("another", SMALL, PREPROCESSING, PATIENT)
        assert time.monotonic() - started < 5  # all of them together take twelve seconds or more
        done, waiting = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().result().shape == (3, 32, 32)
        for task in waiting:
            task.cancel()

    asyncio.run(run())


@pytest.mark.slow
def test_a_decoder_ends_with_a_process_that_is_killed() -> None:
    """In the middle of an image too."""
    code = (
        "from retrieval.engine.decoding.lanes import Decoders; from tests.engine import test_decoding as t;"
        "d = Decoders(1); d.warm(); print(t.children()[0].pid, flush=True);"
        "d.prepare(t.HEAVY, t.PREPROCESSING, t.PATIENT)"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_for_work(child)
        parent.kill()
        child.wait(5)


def test_the_kernel_bounds_the_memory_of_an_image(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the memory that was foretold is wrong."""
    wrong = "import retrieval.contract.preprocessing as p; p.bytes_per_pixel = lambda _: 0; "
    monkeypatch.setattr(processes, "_START", processes._START.replace("from retrieval", wrong + "from retrieval"))
    with pytest.raises(ImageTooLarge, match="more memory than its header"):
        decoders.prepare(encoded(Image.new("RGBA", (7000, 7000)), "PNG"), PREPROCESSING, DEFAULT_LIMITS)
    assert decoders.prepare(SMALL, PREPROCESSING, DEFAULT_LIMITS).shape == (3, 32, 32)


def test_no_process_can_be_started(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="no process to decode images can be started"):
        decoders.prepare(SMALL, PREPROCESSING, DEFAULT_LIMITS)


def test_memory_is_shared_out_in_order() -> None:
    """Images wait until their memory is free, and none is overtaken for ever."""
    budget, order = MemoryBudget(), []

    def take(n_bytes: int) -> None:
        with budget.taken(n_bytes, 100):
            order.append(n_bytes)

    threads = [threading.Thread(target=take, args=(n_bytes,)) for n_bytes in (80, 30)]
    with budget.taken(60, 100):
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # they line up in this order
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [80, 30]


def test_memory_is_given_back_after_an_error() -> None:
    budget = MemoryBudget()
    with pytest.raises(ValueError, match="damaged"), budget.taken(100, 100):
        raise ValueError("damaged")
    with budget.taken(100, 100):
        pass


def test_every_reader_keeps_within_the_budget() -> None:
    """A decoded picture holds its memory: a second one of that size waits until it is given back."""
    limits = ImageLimits(memory_bytes=64 * 2**20)
    large = hostile.grey_16_bit_png(2200)  # 43 MB of 48
    done = threading.Event()

    def read() -> None:
        preprocess(large, PREPROCESSING, limits=limits)
        done.set()

    thread = threading.Thread(target=read)
    with decoded(large, limits=limits):
        thread.start()
        assert not done.wait(0.5)
    thread.join(20)
    assert done.is_set()


def test_an_image_that_takes_more_memory_than_there_is_is_refused_unseen(decoders: Decoders) -> None:
    limits = ImageLimits(memory_bytes=64 * 2**20)
    with pytest.raises(ImageTooLarge, match="81,000,000 bytes of memory while it is decoded, the limit is 50,331,648"):
        decoders.prepare(hostile.grey_16_bit_png(3000), PREPROCESSING, limits)


def test_every_image_within_the_limit_on_pixels_fits_the_memory() -> None:
    """The defaults agree: the hungriest format takes 20 bytes a pixel."""
    assert 20 * DEFAULT_LIMITS.pixels <= DEFAULT_LIMITS.largest_bytes


def test_one_image_takes_one_core() -> None:
    """A library that starts a thread for each core would take the cores of other images, and memory for each stack."""
    assert AvifImagePlugin._get_default_max_threads() == 1
    assert pillow_heif.options.DECODE_THREADS == 1
