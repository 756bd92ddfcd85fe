"""The Lease on a real API server.

What contributes: who holds it · whether the holder renews, released, or vanished · what each candidate has seen, by its
own clock · whether the API server answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pullthrough.cluster.client import KubeClient
from pullthrough.cluster.lease import Lease
from tests.cluster import edge

pytestmark = pytest.mark.apiserver

DURATION, DEADLINE, INTERVAL = 2.0, 1.0, 0.2


class Lost(Exception):
    """Stands for the end of the process."""


def lose(why: str) -> None:
    raise Lost(why)


def candidate(kube: KubeClient, namespace: str, identity: str, **others: Any) -> Lease:
    times = {"duration": DURATION, "deadline": DEADLINE, "interval": INTERVAL}
    return Lease(
        kube,
        namespace=namespace,
        name="operator",
        identity=identity,
        on_loss=lose,
        **{**times, **others},
    )


async def holder(kube: KubeClient, namespace: str) -> Any:
    live = await kube.get("Lease", namespace, "operator")
    return live["spec"].get("holderIdentity") if live else None


def run(server: Any, work: Callable[[KubeClient, str], Awaitable[None]]) -> None:
    async def prepared(kube: KubeClient) -> None:
        await work(kube, await edge.new_namespace(kube))

    edge.with_client(server, prepared)


def test_of_two_candidates_one_gets_it_and_keeps_it_by_renewing(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        one, two = candidate(kube, namespace, "one"), candidate(kube, namespace, "two")
        waiting = [asyncio.create_task(lease.acquire()) for lease in (one, two)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        assert len(done) == 1
        first, name = (one, "one") if waiting[0] in done else (two, "two")
        renewing = asyncio.create_task(first.keep())
        await asyncio.sleep(DURATION * 2)
        assert not all(task.done() for task in waiting), "the other has to wait"
        assert await holder(kube, namespace) == name
        first.check()
        for task in (*waiting, renewing):
            task.cancel()

    run(api_server, work)


def test_a_released_lease_is_taken_within_an_interval(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        one = candidate(kube, namespace, "one")
        two = candidate(kube, namespace, "two", duration=60.0, deadline=40.0)
        await one.acquire()
        waiting = asyncio.create_task(two.acquire())
        await asyncio.sleep(INTERVAL * 2)
        await one.release()
        started = time.monotonic()
        await asyncio.wait_for(waiting, 5)
        assert time.monotonic() - started < DURATION / 2
        assert await holder(kube, namespace) == "two"
        with pytest.raises(Lost):
            one.check()

    run(api_server, work)


def test_after_a_crash_it_is_taken_over_once_the_duration_has_passed(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        await candidate(kube, namespace, "one").acquire()
        started = time.monotonic()
        two = candidate(kube, namespace, "two")
        await asyncio.wait_for(two.acquire(), 10)
        waited = time.monotonic() - started
        assert DURATION <= waited < DURATION + 4 * INTERVAL
        live = await kube.get("Lease", namespace, "operator")
        assert live is not None
        assert live["spec"]["leaseTransitions"] == 1

    run(api_server, work)


def test_a_stolen_lease_is_noticed_at_the_next_renewal(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        lease = candidate(kube, namespace, "one")
        await lease.acquire()
        renewing = asyncio.create_task(lease.keep())
        await asyncio.sleep(INTERVAL)
        await edge.steal_lease(kube, namespace, "operator")
        with pytest.raises(Lost, match="thief"):
            await asyncio.wait_for(renewing, 2)
        assert await holder(kube, namespace) == "thief"
        await lease.release()
        assert await holder(kube, namespace) == "thief", "a release never takes it from another"

    run(api_server, work)


def test_a_lease_deleted_by_hand_is_made_again_by_its_holder(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        lease = candidate(kube, namespace, "one")
        await lease.acquire()
        renewing = asyncio.create_task(lease.keep())
        live = await kube.get("Lease", namespace, "operator")
        assert live is not None
        await kube.delete("Lease", namespace, "operator", uid=live["metadata"]["uid"])
        await asyncio.sleep(INTERVAL * 3)
        assert await holder(kube, namespace) == "one"
        lease.check()
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing

    run(api_server, work)


def test_without_an_answer_it_is_lost_at_the_deadline_before_anybody_can_take_it(
    api_server: Any,
) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        lease = candidate(kube, namespace, "one")
        await lease.acquire()
        started = time.monotonic()
        renewing = asyncio.create_task(lease.keep())
        await kube._api.close()
        kube._api.configuration.host = "https://127.0.0.1:1"
        with pytest.raises(Lost, match="not renewed within"):
            await asyncio.wait_for(renewing, 5)
        assert time.monotonic() - started < DURATION

    run(api_server, work)


def test_a_process_that_slept_past_the_deadline_writes_nothing_any_more(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        now = [0.0]
        lease = candidate(kube, namespace, "one", clock=lambda: now[0])
        await lease.acquire()
        async with KubeClient(guard=lease.check) as guarded:
            await guarded.create(edge.config_map(namespace))
            now[0] = DEADLINE + 0.1
            with pytest.raises(Lost):
                await guarded.create(edge.config_map(namespace, name="late"))
        assert await kube.get("ConfigMap", namespace, "late") is None

    run(api_server, work)


PROGRAM = """
import asyncio, sys
from pullthrough.cluster.client import KubeClient
from pullthrough.cluster.lease import Lease

async def main():
    async with KubeClient() as kube:
        lease = Lease(kube, namespace=sys.argv[1], name="operator", identity="program",
                      duration=2.0, deadline=1.0, interval=0.2)
        await lease.acquire()
        print("acquired", flush=True)
        try:
            await lease.keep()
        finally:
            print("tidied up", flush=True)

asyncio.run(main())
"""


def test_losing_it_ends_the_process_at_once_with_exit_code_1(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, namespace],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "acquired\n"
            await edge.steal_lease(kube, namespace, "operator")
            out, err = program.communicate(timeout=5)
        finally:
            program.kill()
            program.wait()
        assert program.returncode == 1
        assert out == "", "nothing is tidied up"
        assert "lease lost" in err

    run(api_server, work)


def test_times_that_would_let_two_hold_it_are_refused(api_server: Any) -> None:
    async def work(kube: KubeClient, namespace: str) -> None:
        with pytest.raises(ValueError, match="does not hold"):
            candidate(kube, namespace, "one", deadline=DURATION)

    run(api_server, work)
