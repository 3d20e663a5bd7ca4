"""Every caller gets its own answer or an error; none hangs, and a full queue says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.engine.batcher import Batcher
from retrieval.errors import InvalidEmbeddings, Overloaded

Array = NDArray[np.float32]
Images = Batcher[Array, Array]
TIMEOUT_S = 10.0  # a caller that hangs fails the test instead of stopping it


class Model:
    """A model that answers with its input's mean, notes the batches it saw, and can be held up or broken."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.poison = float("nan")
        self.n_missing = 0

    def __call__(self, images: Sequence[Array]) -> list[Array]:
        assert self.may_run.wait(TIMEOUT_S)
        values = np.stack(images).mean(axis=(1, 2, 3))
        self.batches.append(values.tolist())
        if self.poison in values:
            raise InvalidEmbeddings("poisoned")
        return list(np.repeat(values[: len(values) - self.n_missing, None], 4, axis=1))


def image(value: float) -> Array:
    return np.full((3, 2, 2), value, dtype=np.float32)


def run(
    test: Callable[[Images, Model], Coroutine[Any, Any, None]], *, max_batch: int = 4, max_waiting: int = 100
) -> Model:
    """Run a test in an event loop of its own with a fresh model and batcher."""

    async def main() -> Model:
        model = Model()
        batcher = Batcher(model, name="model", max_batch=max_batch, max_waiting=max_waiting)
        try:
            await asyncio.wait_for(test(batcher, model), TIMEOUT_S)
        finally:
            model.may_run.set()
            await asyncio.wait_for(batcher.close(), TIMEOUT_S)
        return model

    return asyncio.run(main())


async def held_up(batcher: Images, model: Model) -> asyncio.Task[Array]:
    """A first caller, whose batch is on its way to a model that waits: what follows must queue."""
    model.may_run.clear()
    task = asyncio.create_task(batcher.ask(image(-1)))
    await asyncio.sleep(0.02)
    return task


def test_each_caller_gets_its_own_answer() -> None:
    """However requests are mixed into batches, answers are not."""

    async def test(batcher: Images, model: Model) -> None:
        async def caller(number: int) -> None:
            for step in range(10):
                value = float(100 * number + step)
                np.testing.assert_array_equal(await batcher.ask(image(value)), np.full(4, value))

        await asyncio.gather(*(caller(number) for number in range(30)))

    model = run(test)
    assert sum(map(len, model.batches)) == 300
    assert max(map(len, model.batches)) <= 4


def test_a_lone_caller_waits_for_nobody() -> None:
    async def test(batcher: Images, model: Model) -> None:
        await batcher.ask(image(1))
        await batcher.ask(image(2))

    assert run(test).batches == [[1.0], [2.0]]


def test_whoever_waits_shares_a_batch() -> None:
    """While one batch runs the next one fills, up to the limit, in order of arrival."""

    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.ask(image(value))) for value in range(6)]
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(first, *others)

    assert run(test).batches == [[-1.0], [0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]


def test_a_failing_batch_fails_all_its_callers_and_no_other() -> None:
    """Everybody in the poisoned batch hears of it; the next batch is served."""

    async def test(batcher: Images, model: Model) -> None:
        model.poison = 2.0
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.ask(image(value))) for value in range(6)]
        await asyncio.sleep(0)
        model.may_run.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [isinstance(result, InvalidEmbeddings) for result in results] == [False] + [True] * 4 + [False] * 2
        np.testing.assert_array_equal(await batcher.ask(image(9)), np.full(4, 9.0))

    run(test)


def test_too_few_answers_fail_the_batch() -> None:
    """An answer is never given to the wrong caller because the model forgot one."""

    async def test(batcher: Images, model: Model) -> None:
        model.n_missing = 1
        results = await asyncio.gather(*(batcher.ask(image(v)) for v in range(3)), return_exceptions=True)
        assert all(isinstance(result, RuntimeError) and "to 3 requests" in str(result) for result in results)

    run(test)


def test_nobody_hangs_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes of a container, for instance: the callers get the error, later ones an answer."""

    def refuse(*_: object) -> None:
        raise RuntimeError("no new thread")

    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        waiting = asyncio.create_task(batcher.ask(image(1)))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(batcher._threads, "submit", refuse)
            model.may_run.set()
            assert (await first).tolist() == [-1] * 4
            with pytest.raises(RuntimeError, match="no new thread"):
                await waiting
        assert (await batcher.ask(image(2))).tolist() == [2] * 4

    run(test)


def test_inputs_of_different_shapes_fail_instead_of_hanging() -> None:
    async def test(batcher: Images, model: Model) -> None:
        odd = np.zeros((3, 5, 5), dtype=np.float32)
        results = await asyncio.gather(batcher.ask(image(1)), batcher.ask(odd), return_exceptions=True)
        assert all(isinstance(result, ValueError) for result in results)
        await batcher.ask(image(2))

    assert run(test).batches == [[2.0]]


def test_a_full_queue_refuses_at_once() -> None:
    """New callers are refused while the queue is full, and all waiting callers are served."""

    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.ask(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 requests wait for the model"):
            await asyncio.wait_for(batcher.ask(image(9)), 0.5)
        model.may_run.set()
        await asyncio.gather(first, *others)
        await batcher.ask(image(9))

    assert run(test, max_waiting=3).batches == [[-1.0], [0.0, 1.0, 2.0], [9.0]]


def test_cancelled_callers_cost_nothing() -> None:
    """Who went away is not embedded."""

    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.ask(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        others[1].cancel()
        await asyncio.sleep(0)
        model.may_run.set()
        await asyncio.gather(first, others[0], others[2])

    assert run(test).batches == [[-1.0], [0.0, 2.0]]


def test_cancelled_callers_keep_nobody_out() -> None:
    """In a full queue they make room for those who still wait."""

    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        others = [asyncio.create_task(batcher.ask(image(value))) for value in range(3)]
        await asyncio.sleep(0)
        others[0].cancel()
        others[2].cancel()
        await asyncio.sleep(0)
        late = [asyncio.create_task(batcher.ask(image(value))) for value in (7, 8)]
        await asyncio.sleep(0)
        model.may_run.set()
        np.testing.assert_array_equal(await others[1], np.full(4, 1.0))
        await asyncio.gather(first, *late)

    assert run(test, max_waiting=3).batches == [[-1.0], [1.0, 7.0, 8.0]]


def test_a_caller_cancelled_while_its_batch_runs_harms_nobody() -> None:
    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        first.cancel()
        second = asyncio.create_task(batcher.ask(image(5)))
        await asyncio.sleep(0)
        model.may_run.set()
        np.testing.assert_array_equal(await second, np.full(4, 5.0))
        assert first.cancelled()

    run(test)


def test_closing_answers_whoever_waits() -> None:
    async def test(batcher: Images, model: Model) -> None:
        first = await held_up(batcher, model)
        second = asyncio.create_task(batcher.ask(image(5)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        model.may_run.set()
        await closing
        np.testing.assert_array_equal(await first, np.full(4, -1.0))
        np.testing.assert_array_equal(await second, np.full(4, 5.0))

    run(test)


def test_callers_of_an_event_loop_that_ended_take_no_thread_from_the_next() -> None:
    """Their batch may still run when the loop ends; its answers go nowhere."""
    model = Model()
    batcher: Images = Batcher(model, name="model", max_batch=4)

    async def abandoned() -> None:
        await held_up(batcher, model)
        waiting = asyncio.create_task(batcher.ask(image(1)))
        await asyncio.sleep(0)
        assert not waiting.done()

    async def answered() -> Array:
        model.may_run.set()
        await batcher.settle()
        return await asyncio.wait_for(batcher.ask(image(2)), TIMEOUT_S)

    asyncio.run(abandoned())
    np.testing.assert_array_equal(asyncio.run(answered()), np.full(4, 2.0))
    assert model.batches == [[-1.0], [2.0]]


# groups and several threads


class Workers:
    """Answers requests with themselves, notes each batch, and holds its threads up until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_run = threading.Event()

    def __call__(self, requests: Sequence[str]) -> list[str]:
        self.batches.append(list(requests))
        assert self.may_run.wait(TIMEOUT_S)
        return list(requests)


def batches_of(first: Sequence[str], later: Sequence[str], *, n_threads: int, max_batch: int = 64) -> list[list[str]]:
    """The batches of requests that come together, and of later ones that wait for a thread. The letter is the group."""

    async def main() -> list[list[str]]:
        workers = Workers()
        batcher: Batcher[str, str] = Batcher(
            workers, name="test", max_batch=max_batch, n_threads=n_threads, group_of=lambda request: request[0]
        )
        asked = [asyncio.create_task(batcher.ask(request)) for request in first]
        await asyncio.sleep(0.02)
        asked += [asyncio.create_task(batcher.ask(request)) for request in later]
        await asyncio.sleep(0.02)
        workers.may_run.set()
        answers = await asyncio.wait_for(asyncio.gather(*asked), TIMEOUT_S)
        assert answers == [*first, *later]
        await batcher.close()
        return workers.batches

    return asyncio.run(main())


def test_requests_of_different_groups_share_no_batch() -> None:
    """The group that waits longest comes first; what is left of a large one waits for the others."""
    later = ["a1", "b1", "a2", "a3", "b2", "a4", "a5"]
    assert batches_of(["x0"], later, n_threads=1, max_batch=4) == [
        ["x0"],
        ["a1", "a2", "a3", "a4"],
        ["b1", "b2"],
        ["a5"],
    ]


def test_free_threads_share_what_waits() -> None:
    """Each gets an equal part, but small batches are not divided."""
    twelve = [f"a{number}" for number in range(12)]
    assert batches_of(twelve, [], n_threads=3) == [twelve[:4], twelve[4:8], twelve[8:]]
    assert batches_of(twelve[:8], [], n_threads=8) == [twelve[:4], twelve[4:8]]
    assert batches_of(twelve, [], n_threads=2, max_batch=5) == [twelve[:5], twelve[5:10], twelve[10:]]


def test_a_caller_gets_a_free_thread_at_once() -> None:
    """While another batch runs, a second thread does not wait for it."""
    assert batches_of(["a0"], ["a1"], n_threads=2) == [["a0"], ["a1"]]
