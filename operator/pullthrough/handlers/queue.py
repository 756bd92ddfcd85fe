"""Which caches need a pass, and when.

A key is never handed out twice at a time; a burst of events folds into one pass; a key that is added while its pass runs
gets another one; failures back off exponentially, with jitter, key by key.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from pullthrough.reconcile import Key

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 300.0
JITTER: Final = 0.2


class Queue:
    """Belongs to one event loop."""

    def __init__(self, *, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._jitter = jitter
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def idle(self) -> None:
        """Wait until no pass is running."""
        await self._idle.wait()

    def add(self, key: Key) -> None:
        """As soon as a worker is free."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._running:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, delay: float) -> None:
        """At the latest then: an earlier appointment stays."""
        if key in self._waiting:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._ring, key)

    def add_failed(self, key: Key) -> float:
        """After a failure; how long it will wait."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 30))
        delay = longest * self._jitter(1 - JITTER, 1 + JITTER)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget the failures."""
        self._failures.pop(key, None)

    async def take(self) -> Key:
        """The next key; `done` must follow."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._running.add(key)
        self._idle.clear()
        return key

    def done(self, key: Key) -> None:
        """Its pass is over."""
        self._running.discard(key)
        if not self._running:
            self._idle.set()
        if key in self._waiting:
            self._ready.put_nowait(key)

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
