"""kopf as the informer, and as nothing else: streams, reconnects, bookmarks, fresh credentials.

Only `on.event`, which writes nothing to any object and needs no finalizer. A handler hands the event over and returns; it
can neither fail nor block.

kopf gets a thread and an event loop of its own: when one of its streams ends for good (a 500 inside the stream, a 410 on
the request) it cancels every task of its loop that it does not know, and it takes the signal handlers where it can.
Outside that loop its end is one exception, and the answer is to start it again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import kopf

from pullthrough.cluster.client import CHILDREN, KINDS, MANAGED, Resource
from pullthrough.models import constants
from pullthrough.models.snapshot import Object

log = logging.getLogger(__name__)


class Seen(enum.Enum):
    """How an object came to be seen."""

    LISTED = enum.auto()
    """In a list: at the start, and after every gap; what vanished in a gap is not told."""
    CHANGED = enum.auto()
    GONE = enum.auto()
    """Deleted, or no longer ours by its labels."""


Sink = Callable[[Object, Seen], None]
"""Gets every object that was seen; called in the loop that made the informer."""

IDENTITY: Final[Any] = constants.FIELD_MANAGER
"""Of no use without peering, but left to itself kopf looks up the user's name, and a container's uid has none."""

HOW: Final = {None: Seen.LISTED, "DELETED": Seen.GONE}


class Informer:
    """One run of kopf."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._home = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._home.create_future()
        self._lock = threading.Lock()
        self._stopping = False
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def run(self) -> None:
        """Until `stop`, or until the streams end: that raises what ended them, if kopf says."""
        threading.Thread(target=self._in_thread, name="kopf", daemon=True).start()
        await asyncio.shield(self._ended)

    def stop(self) -> None:
        """Ask it to end."""
        with self._lock:
            self._stopping = True
            if self._stop is not None:
                loop, stop = self._stop
                loop.call_soon_threadsafe(stop.set)

    def _in_thread(self) -> None:
        problem: BaseException | None = None
        try:
            asyncio.run(self._operate())
        except BaseException as error:
            problem = error
        with self._lock:
            self._stop = None
        try:
            self._home.call_soon_threadsafe(self._end, problem)
        except RuntimeError:
            pass  # the process is on its way out and its loop is closed

    def _end(self, problem: BaseException | None) -> None:
        if self._ended.done():
            return
        if problem is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(RuntimeError(f"{type(problem).__name__}: {problem}"))

    async def _operate(self) -> None:
        stop = asyncio.Event()
        with self._lock:
            if self._stopping:
                return
            self._stop = (asyncio.get_running_loop(), stop)
        await kopf.operator(
            registry=self._registry(),
            settings=operator_settings(),
            clusterwide=True,
            standalone=True,
            identity=IDENTITY,
            stop_flag=stop,
        )

    def _registry(self) -> kopf.OperatorRegistry:
        """A private one: nothing is registered by importing a module."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="login")(login)
        for kind in (constants.KIND, *CHILDREN):
            group, version, plural = group_version_plural(KINDS[kind])
            kopf.on.event(group, version, plural, registry=registry, id=kind)(self._handler(kind))
        return registry

    def _handler(self, kind: str) -> Callable[..., Awaitable[None]]:
        api_version = KINDS[kind].api_version

        async def seen(event: Any, **_: Any) -> None:
            obj = {**event["object"], "apiVersion": api_version, "kind": kind}
            how = HOW.get(event["type"], Seen.CHANGED)
            self._home.call_soon_threadsafe(self._sink, obj, how)

        return seen


def login(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The same choice as the client's: KUBECONFIG where it is set, else the pod's service account."""
    if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return kopf.login_with_kubeconfig(**arguments)
    return kopf.login_with_service_account(**arguments)


class Patience:
    """How long kopf retries a request before its stream ends: some ten minutes, with jitter; iterated anew each time."""

    def __iter__(self) -> Iterator[float]:
        for attempt in range(25):
            yield min(30.0, 2.0**attempt) * random.uniform(0.7, 1.3)  # noqa: S311 -- jitter


def operator_settings() -> kopf.OperatorSettings:
    """What differs from kopf's defaults, each for a reason."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # events are posted by reconcile, on transitions
    settings.peering.standalone = True  # the Lease elects
    settings.scanning.disabled = True  # static kinds: no verb on definitions and namespaces
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Patience()
    settings.watching.server_timeout = 600  # a fresh stream now and then
    settings.watching.chunk_size = 500
    settings.persistence.finalizer = f"{constants.GROUP}/unused"  # never added with on.event
    for (
        resource
    ) in CHILDREN.values():  # filtered by the server: others' objects are never streamed to us
        settings.watching.label_selectors[group_version_plural(resource)] = MANAGED
    return settings


def group_version_plural(resource: Resource) -> tuple[str, str, str]:
    """As kopf names a resource; the core group is empty."""
    group, _, version = resource.api_version.rpartition("/")
    return group, version, resource.plural
