"""One operator at a time: a `coordination.k8s.io/Lease`, held by renewing it.

1. A candidate takes the Lease when nobody holds it, when its holder released it, or when the holder's record has not
   changed for the whole duration *by the candidate's own monotonic clock*: no two clocks are ever compared.
2. The holder renews it every `interval`. A renewal counts from before its request was sent.
3. No renewal within `deadline`, which is shorter than the duration, or another holder's name in it: the process ends at
   once, exit code 1. Nothing is tidied up, because whatever would be tidied up may already be somebody else's.
4. `check` stands before every write (`KubeClient.guard`): a process that was stopped and wakes up late ends there.
5. On SIGTERM the holder drains, then releases, and a standby takes over within one interval.

Not kopf's peering (it pauses everybody on equal priorities) and not the client's own election (37.0.2 cannot create a
Lease, and leaves the leading task running when a request fails).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

from pullthrough.cluster.client import ClusterError, Conflict, KubeClient, NotFound, Raw

log = logging.getLogger(__name__)


def own_identity() -> str:
    """Unique to this process: a restarted pod keeps its host name and must not take itself for its predecessor."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:12]}"


def end_process(why: str) -> NoReturn:
    """The one way out after a loss."""
    log.critical("lease lost, ending the process: %s", why)
    logging.shutdown()
    os._exit(1)


class Lease:
    """The Lease of one candidate; times in seconds."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        deadline: float = 10.0,
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        on_loss: Callable[[str], None] = end_process,
    ) -> None:
        if not interval < deadline < duration:
            msg = f"interval {interval} < deadline {deadline} < duration {duration} does not hold"
            raise ValueError(msg)
        self._client = client
        self._namespace, self._name, self._identity = namespace, name, identity
        self._duration, self._deadline, self._interval = duration, deadline, interval
        self._clock, self._on_loss = clock, on_loss
        self._seen: tuple[Any, ...] | None = None
        self._seen_at = clock()
        self._renewed_at: float | None = None
        self._taken_by = ""
        self.answered_at: float | None = None
        """When the API server last answered: a standby is well while this is recent."""

    @property
    def is_held(self) -> bool:
        """Ours, and renewed recently enough."""
        return self._renewed_at is not None and (self._clock() - self._renewed_at <= self._deadline)

    def check(self) -> None:
        """The guard of every write: return, or end the process."""
        if self._taken_by:
            self._on_loss(f"{self._name} is held by {self._taken_by}")
        if not self.is_held:
            self._on_loss(f"{self._name} was not renewed within {self._deadline:g} s")

    async def acquire(self) -> None:
        """Wait until it is ours."""
        while True:
            try:
                if await self._try_to_take():
                    log.info("lease acquired lease=%s holder=%s", self._name, self._identity)
                    return
            except ClusterError as error:
                log.warning("lease not available lease=%s error=%s", self._name, error)
            await asyncio.sleep(self._interval)

    async def keep(self) -> None:
        """Renew until cancelled; ends the process on a loss."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                async with asyncio.timeout(self._left()):
                    await self._renew()
            except Exception as error:  # whatever it was: the deadline decides
                log.warning("lease not renewed lease=%s error=%r", self._name, error)
            self.check()

    async def release(self) -> None:
        """Hand it back; a failure only makes the next holder wait for the duration."""
        self._renewed_at = None
        try:
            async with asyncio.timeout(self._interval):
                live = await self._read()
                if live is not None and _holder(live) == self._identity:
                    await self._write(live, holder="", duration=1)
                    log.info("lease released lease=%s", self._name)
        except (ClusterError, TimeoutError) as error:
            log.warning("lease not released lease=%s error=%s", self._name, error)

    async def _renew(self) -> None:
        started = self._clock()
        live = await self._read()
        if live is None:
            await (
                self._create()
            )  # deleted by hand; if another was faster the next turn sees its name
        elif _holder(live) != self._identity:
            self._renewed_at = None
            self._taken_by = _holder(live) or "nobody"
            return
        else:
            try:
                await self._write(live, holder=self._identity, duration=self._duration)
            except (Conflict, NotFound):
                return  # changed since the read: the next turn sees by whom
        self._renewed_at = started

    async def _try_to_take(self) -> bool:
        started = self._clock()
        live = await self._read()
        if live is None:
            await self._create()
        else:
            record = live.get("spec") or {}
            mark = (live["metadata"]["uid"], record.get("holderIdentity"), record.get("renewTime"))
            if mark != self._seen:
                self._seen, self._seen_at = mark, self._clock()
            patience = float(record.get("leaseDurationSeconds") or self._duration)
            is_alive = self._clock() - self._seen_at < patience
            if _holder(live) and is_alive:
                return False
            await self._write(live, holder=self._identity, duration=self._duration)
        self._renewed_at = started
        return True

    async def _read(self) -> Raw | None:
        live = await self._client.get("Lease", self._namespace, self._name)
        self.answered_at = self._clock()
        return live

    async def _create(self) -> None:
        now = _micro_time()
        await self._client.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"namespace": self._namespace, "name": self._name},
                "spec": {
                    "holderIdentity": self._identity,
                    "leaseDurationSeconds": max(1, round(self._duration)),
                    "acquireTime": now,
                    "renewTime": now,
                    "leaseTransitions": 0,
                },
            }
        )

    async def _write(self, live: Raw, *, holder: str, duration: float) -> None:
        """PUT with the resourceVersion that was read: of two writers one gets a Conflict."""
        record = dict(live.get("spec") or {})
        now = _micro_time()
        if holder and holder != _holder(live):
            record["acquireTime"] = now
            record["leaseTransitions"] = int(record.get("leaseTransitions") or 0) + 1
        record |= {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(duration)),
            "renewTime": now,
        }
        about = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        await self._client.replace({**live, **about, "spec": record})

    def _left(self) -> float:
        renewed_at = self._renewed_at if self._renewed_at is not None else self._clock()
        return max(0.0, renewed_at + self._deadline - self._clock())


def _holder(live: Raw) -> str:
    return str((live.get("spec") or {}).get("holderIdentity") or "")


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
