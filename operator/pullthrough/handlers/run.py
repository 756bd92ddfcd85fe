"""`pullthrough run`: the operator as a process.

1. Read the settings; serve health and metrics.
2. Wait for the Lease.
3. List everything (a cache must not be judged before its children are known), then start the workers.
4. Run kopf; where its streams end while the Lease holds, sweep and run it again.
5. SIGTERM or SIGINT: stop the streams, let running passes end, release the Lease, exit 0.
   Losing the Lease at any point: the process ends at once, exit 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from pullthrough import settings as environment
from pullthrough.cluster import lease
from pullthrough.cluster.client import ClusterError, KubeClient
from pullthrough.cluster.reports import ReportReader
from pullthrough.handlers.cache import InformerCache
from pullthrough.handlers.health import Health, HealthServer, Metrics
from pullthrough.handlers.informer import Informer
from pullthrough.handlers.queue import Queue
from pullthrough.handlers.workers import Workers
from pullthrough.reconcile import PlanFunction, Reconciler
from pullthrough.settings import OperatorSettings, SettingsError

log = logging.getLogger(__name__)

DRAIN: Final = 15.0
"""Seconds for running passes at the end; the Deployment's grace period is longer."""
RETRY: Final = 5.0


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 stopped as asked, 1 lost the Lease or failed, 2 wrong usage or settings."""
    parser = argparse.ArgumentParser(
        prog="pullthrough run",
        description="Run the operator, in a cluster or with KUBECONFIG. Settings come from the "
        "environment: PULLTHROUGH_IMAGE and PULLTHROUGH_NAMESPACE are required.",
    )
    parser.add_argument("--verbose", action="store_true", help="log passes that changed nothing")
    arguments = parser.parse_args(argv)
    try:
        settings = environment.from_environment(os.environ)
    except SettingsError as error:
        print(f"pullthrough run: {error}", file=sys.stderr)
        return 2
    set_up_logging(logging.DEBUG if arguments.verbose else logging.INFO)
    from pullthrough.planning import plan  # here, so that --help and wrong settings cost nothing

    return asyncio.run(operate(settings, plan))


def set_up_logging(level: int) -> None:
    """One line per decision of ours; of the libraries only what is wrong."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("pullthrough").setLevel(level)
    # INFO for each event handled, and a warning about signals that are ours to handle:
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


async def operate(settings: OperatorSettings, plan: PlanFunction) -> int:
    """The whole life of the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    health, metrics = Health(), Metrics()
    cache, queue = InformerCache(), Queue()
    async with contextlib.AsyncExitStack() as stack:
        lease_client = await stack.enter_async_context(KubeClient(max_in_flight=2, timeout=5.0))
        held = lease.Lease(
            lease_client,
            namespace=settings.namespace,
            name=settings.lease,
            identity=lease.own_identity(),
        )
        kube = await stack.enter_async_context(KubeClient(guard=held.check))
        reports = await stack.enter_async_context(ReportReader())
        health.api_answered = lambda: held.answered_at

        def refresh() -> None:
            metrics.depth.set(len(queue))
            metrics.caches.set(len(cache.keys()))
            metrics.leader.set(held.is_held)
            metrics.writes.set(kube.writes)

        await stack.enter_async_context(
            HealthServer(settings.listen_host, settings.listen_port, health, metrics, refresh)
        )
        if not await _unless(stop, held.acquire()):
            await held.release()  # it may have been ours for an instant
            return 0
        health.is_leader = True
        renewing = asyncio.create_task(held.keep(), name="lease")
        workers = Workers(
            kube=kube,
            cache=cache,
            queue=queue,
            reconciler=Reconciler(
                kube=kube, view=cache, reports=reports, plan=plan, settings=settings.planning
            ),
            health=health,
            metrics=metrics,
        )
        if await _unless(stop, _prime(workers)):
            health.is_primed = True
            log.info("fleet listed caches=%d", len(cache.keys()))
            workers.look_at_all(0.0)
            workers.start()
            await _inform(workers, metrics, stop)
        log.info("stopping")
        await workers.drain(DRAIN)
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await held.release()
    return 0


async def _prime(workers: Workers) -> None:
    while True:
        try:
            await workers.sweep()
        except ClusterError as error:
            log.warning("fleet not listed, is the CRD installed? error=%s", error)
            await asyncio.sleep(RETRY)
        else:
            return


async def _inform(workers: Workers, metrics: Metrics, stop: asyncio.Event) -> None:
    """Run kopf until we are asked to stop, as often as it takes."""
    while not stop.is_set():
        informer = Informer(workers.seen)
        running = asyncio.create_task(informer.run(), name="informer")
        asking = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((running, asking), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            informer.stop()
            await asyncio.wait((running,), timeout=RETRY)
            running.cancel()  # its thread is a daemon: a hung stream does not hold the process
            await asyncio.gather(running, return_exceptions=True)
            return
        asking.cancel()
        problem = running.exception()
        log.warning("watches ended, starting them again error=%s", problem or "none given")
        metrics.restarts.inc()
        await _unless(stop, asyncio.sleep(1.0))


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do it, unless we are asked to stop before it is done; was it done?"""
    doing = asyncio.create_task(work)
    asking = asyncio.create_task(stop.wait())
    await asyncio.wait((doing, asking), return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    if not doing.done():
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        return False
    doing.result()
    return True
