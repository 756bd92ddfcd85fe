"""Workers that take keys from the queue, and the sweep that is the net below every lost event.

kopf lists anew after a gap, but says nothing of what vanished in it; so everything is listed by ourselves as well: once
before the first pass (no pass may take "not yet seen" for "absent"), a moment after kopf listed anything, and about every
ten minutes. Ghosts are dropped and their caches looked at; every ten minutes every cache is, spread over a minute.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Final

from pullthrough.cluster.client import (
    CHILDREN,
    MANAGED,
    AlreadyExists,
    ClusterError,
    Conflict,
    KubeClient,
    NotFound,
)
from pullthrough.handlers.cache import InformerCache
from pullthrough.handlers.health import Health, Metrics
from pullthrough.handlers.informer import Seen
from pullthrough.handlers.queue import Queue
from pullthrough.models import constants
from pullthrough.models.snapshot import Object
from pullthrough.reconcile import Key, Reconciler

log = logging.getLogger(__name__)

WORKERS: Final = 8
PASS_TIMEOUT: Final = 120.0
RESYNC: Final = 600.0
SPREAD: Final = 60.0
AFTER_LIST: Final = 2.0


class Workers:
    """The moving parts between the informer's view and the passes."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        cache: InformerCache,
        queue: Queue,
        reconciler: Reconciler,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._kube, self._cache, self._queue = kube, cache, queue
        self._reconciler, self._health, self._metrics = reconciler, health, metrics
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._listed = asyncio.Event()

    def seen(self, obj: Object, how: Seen) -> None:
        """The informer's sink."""
        if how is Seen.GONE:
            meta = obj["metadata"]
            keys = self._cache.drop(obj["kind"], meta.get("namespace", ""), meta["name"])
        else:
            keys = self._cache.put(obj)
        if how is Seen.LISTED:
            self._listed.set()
        for key in keys:
            self._queue.add(key)

    async def sweep(self) -> None:
        """List everything, drop ghosts, and look at the caches that they belonged to."""
        for kind in (*CHILDREN, constants.KIND):
            known = {one for one in self._cache.identities() if one[0] == kind}
            listed = await self._kube.list_all(kind, MANAGED if kind in CHILDREN else "")
            for key in self._cache.settle(known, listed):
                self._queue.add(key)

    def look_at_all(self, spread: float) -> None:
        """A pass for every cache within so many seconds."""
        for key in self._cache.keys():  # noqa: SIM118 -- not a dictionary
            self._queue.add_after(key, random.uniform(0, spread))  # noqa: S311 -- spread

    def start(self) -> None:
        """After the first sweep."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"worker-{number}") for number in range(WORKERS)
        ]
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))
        self._tasks.append(asyncio.create_task(self._find_ghosts(), name="ghosts"))

    async def drain(self, patience: float) -> None:
        """Take nothing new; let running passes end, as long as patience lasts."""
        self._draining = True
        try:
            async with asyncio.timeout(patience):
                await self._queue.idle()
        except TimeoutError:
            log.warning("running passes were cut off")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        while not self._draining:
            key = await self._queue.take()
            try:
                if not self._draining:
                    await self._pass(key)
            finally:
                self._queue.done(key)

    async def _pass(self, key: Key) -> None:
        name = str(key)
        started = time.monotonic()
        self._health.passes_since[name] = started
        outcome = "failed"
        try:
            async with asyncio.timeout(PASS_TIMEOUT):
                requeue_after = await self._reconciler.reconcile(key)
        except (Conflict, AlreadyExists, NotFound) as error:
            outcome = "overtaken"
            delay = self._queue.add_failed(key)
            log.debug("pass overtaken cache=%s retry=%.1fs error=%s", key, delay, error)
        except Exception as error:  # nothing that one cache does may end the work for the others
            delay = self._queue.add_failed(key)
            is_ours = type(error).__module__.startswith("pullthrough.cluster")
            log.warning(
                "pass failed cache=%s retry=%.1fs error=%s: %s",
                key,
                delay,
                type(error).__name__,
                error,
                exc_info=not is_ours and not isinstance(error, TimeoutError),
            )
        else:
            outcome = "done"
            self._queue.succeeded(key)
            if requeue_after is not None:
                self._queue.add_after(key, max(requeue_after, 0.1))
        finally:
            self._health.passes_since.pop(name, None)
            self._metrics.duration.observe(time.monotonic() - started)
            self._metrics.passes.labels(outcome).inc()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC * random.uniform(0.9, 1.1))  # noqa: S311 -- jitter
            self._listed.set()
            self.look_at_all(SPREAD)

    async def _find_ghosts(self) -> None:
        while True:
            await self._listed.wait()
            await asyncio.sleep(AFTER_LIST)  # all kinds are listed at about the same time
            self._listed.clear()
            try:
                await self.sweep()
            except ClusterError as error:
                log.warning("ghosts not looked for error=%s: %s", type(error).__name__, error)
                self._listed.set()
