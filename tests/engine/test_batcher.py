"""Every caller gets its own answer or an error; none hangs, and a full queue says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.engine.batcher import Batcher
from retrieval.errors import InvalidEmbeddings, Overloaded

Array = NDArray[np.float32]
TIMEOUT_S = 10.0  # a caller that hangs fails the test instead of stopping it


class Model:
    """A model that answers with its input's mean, notes the batches it saw, and can be held up or broken."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.poison = float("nan")
        self.n_missing = 0

    def __call__(self, pixels: Array) -> Array:
        assert self.may_run.wait(TIMEOUT_S)
        values = pixels.mean(axis=(1, 2, 3))
        self.batches.append(values.tolist())
        if self.poison in values:
            raise InvalidEmbeddings("poisoned")
        return np.repeat(values[: len(values) - self.n_missing, None], 4, axis=1)


def image(value: float) -> Array:
    return np.full((3, 2, 2), value, dtype=np.float32)


def run(
    test: Callable[[Batcher, Model], Coroutine[Any, Any, None]], *, max_batch: int = 4, max_waiting: int = 100
) -> Model:
    """Run a test in an event loop of its own with a fresh model and batcher."""

    async def main() -> Model:
        model = Model()
        batcher = Batcher(model, max_batch=max_batch, max_waiting=max_waiting)
        try:
            await asyncio.wait_for(test(batcher, model), TIMEOUT_S)
        finally:
            model.may_run.set()
            await asyncio.wait_for(batcher.close(), TIMEOUT_S)
        return model

    return asyncio.run(main())


async def held_up(batcher: Batcher, model: Model) -> asyncio.Task[Array]:
    """A first caller, whose batch is on its way to a model that waits: what follows must queue."""
    model.may_run.clear()
    task = asyncio.create_task(batcher.embed(image(-1)))
    await asyncio.sleep(0.02)
    return task


def test_each_caller_gets_its_own_answer() -> None:
    """However requests are mixed into batches, answers are not."""

    async def test(batcher: Batcher, model: Model) -> None:
        async def caller(number: int) -> None:
            for step in range(10):
                value = float(100 * number + step)
                np.testing.assert_array_equal(await batcher.embed(image(value)), np.full(4, value))

        await asyncio.gather(*(caller(number) for number in range(30)))

    model = run(test)
    assert sum(map(len, model.batches)) == 300
    assert max(map(len, model.batches)) <= 4


def test_a_lone_caller_waits_for_nobody() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        await batcher.embed(image(1))
        await batcher.embed(image(2))

    assert run(test).batches == [[1.0], [2.0]]


def test_whoever_waits_shares_a_batch() -> None:
    """While one batch runs the next one fills, up to the limit, in order of arrival."""

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.embed(image(value))) for value in range(6)]
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(first, *others)

    assert run(test).batches == [[-1.0], [0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]


def test_a_failing_batch_fails_all_its_callers_and_no_other() -> None:
    """Everybody in the poisoned batch hears of it; the next batch is served."""

    async def test(batcher: Batcher, model: Model) -> None:
        model.poison = 2.0
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.embed(image(value))) for value in range(6)]
        await asyncio.sleep(0)
        model.may_run.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [isinstance(result, InvalidEmbeddings) for result in results] == [False] + [True] * 4 + [False] * 2
        np.testing.assert_array_equal(await batcher.embed(image(9)), np.full(4, 9.0))

    run(test)


def test_too_few_answers_fail_the_batch() -> None:
    """An answer is never given to the wrong caller because the model forgot one."""

    async def test(batcher: Batcher, model: Model) -> None:
        model.n_missing = 1
        results = await asyncio.gather(*(batcher.embed(image(v)) for v in range(3)), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) and "for 3 inputs" in str(result) for result in results)

    run(test)


def test_inputs_of_different_shapes_fail_instead_of_hanging() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        odd = np.zeros((3, 5, 5), dtype=np.float32)
        results = await asyncio.gather(batcher.embed(image(1)), batcher.embed(odd), return_exceptions=True)
        assert all(isinstance(result, ValueError) for result in results)
        await batcher.embed(image(2))

    assert run(test).batches == [[2.0]]


def test_a_full_queue_refuses_at_once() -> None:
    """New callers are refused while the queue is full, and all waiting callers are served."""

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.embed(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 images wait"):
            await asyncio.wait_for(batcher.embed(image(9)), 0.5)
        model.may_run.set()
        await asyncio.gather(first, *others)
        await batcher.embed(image(9))

    assert run(test, max_waiting=3).batches == [[-1.0], [0.0, 1.0, 2.0], [9.0]]


def test_cancelled_callers_cost_nothing() -> None:
    """Who went away is not embedded."""

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.embed(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        others[1].cancel()
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(first, others[0], others[2])

    assert run(test).batches == [[-1.0], [0.0, 2.0]]


def test_cancelled_callers_keep_nobody_out() -> None:
    """In a full queue they make room for those who still wait."""

    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.embed(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        others[0].cancel()
        others[2].cancel()
        await asyncio.sleep(0)
        late = [asyncio.create_task(batcher.embed(image(value))) for value in (7, 8)]
        await asyncio.sleep(0)
        model.may_run.set()
        np.testing.assert_array_equal(await others[1], np.full(4, 1.0))
        await asyncio.gather(first, *late)

    assert run(test, max_waiting=3).batches == [[-1.0], [1.0, 7.0, 8.0]]


def test_a_caller_cancelled_while_its_batch_runs_harms_nobody() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        first.cancel()
        second = asyncio.create_task(batcher.embed(image(5)))
        await asyncio.sleep(0)
        model.may_run.set()
        np.testing.assert_array_equal(await second, np.full(4, 5.0))
        assert first.cancelled()

    run(test)


def test_closing_answers_whoever_waits() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = await held_up(batcher, model)
        second = asyncio.create_task(batcher.embed(image(5)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        model.may_run.set()
        await closing
        np.testing.assert_array_equal(await first, np.full(4, -1.0))
        np.testing.assert_array_equal(await second, np.full(4, 5.0))

    run(test)
