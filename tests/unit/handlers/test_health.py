"""What the operator says about itself. What contributes: stuck passes · the API server's last answer · leader, primed."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from pullthrough.handlers.health import STUCK_AFTER, Health, HealthServer, Metrics


def health(now: float = 1000.0, answered: float | None = 999.0) -> Health:
    made = Health(clock=lambda: now)
    made.api_answered = lambda: answered
    return made


def test_a_standby_that_reaches_the_api_server_is_ready() -> None:
    assert health().why_not_ready() == ""
    assert health(answered=None).why_not_ready() == "the API server does not answer"
    assert health(answered=900.0).why_not_ready() == "the API server does not answer"


def test_a_leader_is_ready_once_it_has_seen_the_fleet() -> None:
    leader = health()
    leader.is_leader = True
    assert leader.why_not_ready() == "the fleet has not been listed yet"
    leader.is_primed = True
    assert leader.why_not_ready() == ""


def test_a_stuck_pass_is_named() -> None:
    stuck = health()
    stuck.passes_since = {"n/quick": 999.0, "n/stuck": 999.0 - STUCK_AFTER}
    assert stuck.why_unhealthy() == "passes are stuck: n/stuck"


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_it_listens_on_both_address_families(address: str) -> None:
    if ":" in address and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")

    async def work() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with HealthServer("::", port, health(), Metrics()):
            async with aiohttp.ClientSession(f"http://{address}:{port}") as session:
                async with session.get("/healthz") as answer:
                    assert answer.status == 200

    asyncio.run(work())


def test_the_server_answers_with_text_and_metrics() -> None:
    async def work() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        metrics, facts = Metrics(), health()
        refresh = lambda: metrics.depth.set(3)  # noqa: E731
        async with HealthServer("127.0.0.1", port, facts, metrics, refresh):
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                async with session.get("/healthz") as answer:
                    assert (answer.status, await answer.text()) == (200, "ok\n")
                facts.api_answered = lambda: None
                async with session.get("/readyz") as answer:
                    assert answer.status == 503
                async with session.get("/metrics") as answer:
                    assert "pullthrough_queue_depth 3.0" in await answer.text()

    asyncio.run(work())
