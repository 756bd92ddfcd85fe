"""The queue. What contributes: is the key waiting, running, or on an appointment · how often did it fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pullthrough.handlers.queue import FIRST_DELAY, LONGEST_DELAY, Queue
from pullthrough.reconcile import Key

ONE, TWO = Key("n", "one"), Key("n", "two")


def run(work: Callable[[Queue], Awaitable[None]]) -> None:
    async def prepared() -> None:
        await work(Queue(jitter=lambda low, high: (low + high) / 2))

    asyncio.run(prepared())


async def taken(queue: Queue, within: float = 1.0) -> Key | None:
    try:
        async with asyncio.timeout(within):
            return await queue.take()
    except TimeoutError:
        return None


def test_a_burst_for_one_key_is_one_pass() -> None:
    async def work(queue: Queue) -> None:
        for _ in range(5):
            queue.add(ONE)
        assert len(queue) == 1
        assert await taken(queue) == ONE
        queue.done(ONE)
        assert await taken(queue, 0.02) is None

    run(work)


def test_no_two_passes_of_one_key_run_at_a_time_and_none_is_lost() -> None:
    async def work(queue: Queue) -> None:
        queue.add(ONE)
        assert await taken(queue) == ONE
        queue.add(ONE)
        queue.add(TWO)
        assert await taken(queue) == TWO, "others go on"
        assert await taken(queue, 0.02) is None, "the first is still running"
        queue.done(ONE)
        assert await taken(queue) == ONE

    run(work)


def test_an_appointment_is_kept_and_an_earlier_one_wins() -> None:
    async def work(queue: Queue) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        queue.add_after(ONE, 30.0)
        queue.add_after(ONE, 0.05)
        queue.add_after(ONE, 60.0)
        assert await taken(queue) == ONE
        assert 0.04 <= loop.time() - started < 1.0
        queue.done(ONE)
        assert await taken(queue, 0.1) is None, "the later ones are gone"

    run(work)


def test_an_event_comes_before_an_appointment() -> None:
    async def work(queue: Queue) -> None:
        queue.add_after(ONE, 30.0)
        queue.add(ONE)
        assert await taken(queue) == ONE
        queue.done(ONE)
        assert not queue._timers

    run(work)


def test_an_appointment_made_while_its_pass_runs_is_kept() -> None:
    async def work(queue: Queue) -> None:
        queue.add(ONE)
        assert await taken(queue) == ONE
        queue.add_after(ONE, 0.02)
        await asyncio.sleep(0.05)
        assert await taken(queue, 0.02) is None, "not while it is running"
        queue.done(ONE)
        assert await taken(queue) == ONE

    run(work)


def test_failures_back_off_twofold_up_to_a_limit_and_are_forgotten_by_success() -> None:
    async def work(queue: Queue) -> None:
        delays = [queue.add_failed(ONE) for _ in range(14)]
        assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
        assert delays[-1] == LONGEST_DELAY
        assert queue.add_failed(TWO) == FIRST_DELAY, "key by key"
        queue.succeeded(ONE)
        assert queue.add_failed(ONE) == FIRST_DELAY

    run(work)


def test_jitter_spreads_the_delays_within_its_bounds() -> None:
    async def work() -> None:
        queue = Queue()
        delays = {queue.add_failed(Key("n", str(number))) for number in range(50)}
        assert len(delays) > 40
        assert all(0.8 * FIRST_DELAY <= delay <= 1.2 * FIRST_DELAY for delay in delays)

    asyncio.run(work())


def test_idle_means_that_no_pass_is_running() -> None:
    async def work(queue: Queue) -> None:
        await asyncio.wait_for(queue.idle(), 1)
        queue.add(ONE)
        await taken(queue)
        waiting = asyncio.create_task(queue.idle())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        queue.done(ONE)
        await asyncio.wait_for(waiting, 1)

    run(work)


def test_many_workers_never_meet_at_one_key() -> None:
    async def work(queue: Queue) -> None:
        running: set[Key] = set()
        passes = 0

        async def worker() -> None:
            nonlocal passes
            while True:
                key = await queue.take()
                assert key not in running
                running.add(key)
                await asyncio.sleep(0)
                running.discard(key)
                passes += 1
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(8)]
        for number in range(400):
            queue.add(Key("n", str(number % 7)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert len(queue) == 0
        assert passes >= 7
        for task in workers:
            assert not task.done()
            task.cancel()

    run(work)
