"""What the operator says about itself on one port: /healthz, /readyz, /metrics.

Healthy: the event loop answers and no pass has been stuck. Ready: a standby that reaches the API server, or a leader that
has seen the fleet. A standby is ready on purpose: a rollout of the Deployment must not wait for the Lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Self

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pullthrough import listening

STUCK_AFTER: Final = 300.0
"""Seconds; a pass is given up after less."""


class Metrics:
    """Of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.duration = Histogram(
            "pullthrough_reconcile_duration_seconds",
            "Duration of passes.",
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        self.passes = Counter(
            "pullthrough_reconcile_total",
            "Passes by outcome: done, overtaken (the world had moved on), failed.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("done", "overtaken", "failed"):
            self.passes.labels(outcome)
        self.depth = Gauge(
            "pullthrough_queue_depth", "Caches waiting for a pass.", registry=self.registry
        )
        self.caches = Gauge("pullthrough_caches", "Caches known.", registry=self.registry)
        self.leader = Gauge(
            "pullthrough_leader", "1 while this process holds the Lease.", registry=self.registry
        )
        self.restarts = Counter(
            "pullthrough_informer_restarts_total",
            "Watches that ended for good and were started again.",
            registry=self.registry,
        )
        self.writes = Gauge(
            "pullthrough_api_writes",
            "Requests to the API server that could change something, since the start.",
            registry=self.registry,
        )


class Health:
    """Facts that the parts set, and the answers made of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.passes_since: dict[str, float] = {}
        """When each running pass began, by cache."""
        self.is_leader = False
        self.is_primed = False
        self.api_answered: Callable[[], float | None] = lambda: None

    def why_unhealthy(self) -> str:
        """Empty when well."""
        now = self._clock()
        stuck = [key for key, since in self.passes_since.items() if now - since > STUCK_AFTER]
        return f"passes are stuck: {', '.join(sorted(stuck))}" if stuck else ""

    def why_not_ready(self) -> str:
        """Empty when ready."""
        answered = self.api_answered()
        if answered is None or self._clock() - answered > 30.0:
            return "the API server does not answer"
        if self.is_leader and not self.is_primed:
            return "the fleet has not been listed yet"
        return ""


class HealthServer:
    """Serves from before the Lease is asked for until the very end."""

    def __init__(
        self,
        host: str,
        port: int,
        health: Health,
        metrics: Metrics,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self._host, self._port = host, port
        self._health, self._metrics, self._refresh = health, metrics, refresh
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._serve_metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.SockSite(self._runner, listening.listen(self._host, self._port)).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._health.why_unhealthy())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._health.why_not_ready())

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        self._refresh()
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(why_not: str) -> web.Response:
    return web.Response(text=f"{why_not or 'ok'}\n", status=503 if why_not else 200)
