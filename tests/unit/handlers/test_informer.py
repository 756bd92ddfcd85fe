"""kopf as an informer, against a server that does what a healthy API server never does on demand.

What contributes: what the list shows · what the watch says · how the watch ends · when it is asked to stop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pullthrough.cluster.client import CHILDREN, KINDS, MANAGED
from pullthrough.handlers.informer import Informer, Seen
from pullthrough.models import constants
from pullthrough.models.snapshot import Object

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: u, user: {token: t}}]
"""
BROKEN = {"type": "ERROR", "object": {"code": 500, "message": "etcdserver: leader changed"}}


class FakeServer:
    """Discovery of our kinds, one Service in every list, and watches that say what they are told to."""

    def __init__(self) -> None:
        self.selectors: dict[str, set[str]] = {}
        self.said: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            return web.json_response({"groups": [_group(one) for one in _groups()]})
        for version in {resource.api_version for resource in KINDS.values()}:
            if path in {f"/api/{version}", f"/apis/{version}"}:
                return web.json_response({"resources": _resources(version)})
        return await self._objects(request, path.rsplit("/", 1)[-1])

    async def _objects(self, request: web.Request, plural: str) -> web.StreamResponse:
        self.selectors.setdefault(plural, set()).add(request.query.get("labelSelector", ""))
        if "watch" not in request.query:
            items = [service("listed")] if plural == "services" else []
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        stream = web.StreamResponse()
        await stream.prepare(request)
        if plural == "services":
            for event in self.said:
                await stream.write(json.dumps(event).encode() + b"\n")
        await asyncio.sleep(30)
        return stream


def _groups() -> list[str]:
    named = {resource.api_version for resource in KINDS.values() if "/" in resource.api_version}
    return sorted(named)


def _group(api_version: str) -> dict[str, Any]:
    version = {"groupVersion": api_version, "version": api_version.split("/")[1]}
    name = api_version.split("/", maxsplit=1)[0]
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resources(api_version: str) -> list[dict[str, Any]]:
    names = {kind: one.plural for kind, one in KINDS.items() if one.api_version == api_version}
    if api_version == "v1":
        names["Namespace"] = "namespaces"
    return [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": kind != "Namespace",
            "verbs": ["list", "watch"],
        }
        for kind, plural in names.items()
    ]


def service(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": "2"}}


Work = Callable[[FakeServer, list[tuple[str, str, Seen]]], Awaitable[None]]


@pytest.fixture
def against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Work], None]:
    def run(work: Work) -> None:
        async def prepared() -> None:
            fake = FakeServer()
            app = web.Application()
            app.router.add_get("/{path:.*}", fake.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            (tmp_path / "kubeconfig").write_text(KUBECONFIG % runner.addresses[0][1])
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            try:
                await work(fake, [])
            finally:
                await runner.cleanup()

        asyncio.run(prepared())

    return run


def informer(seen: list[tuple[str, str, Seen]]) -> Informer:
    home = asyncio.get_running_loop()

    def sink(obj: Object, how: Seen) -> None:
        assert asyncio.get_running_loop() is home, "events arrive in the loop that asked for them"
        seen.append((obj["kind"], obj["metadata"]["name"], how))

    return Informer(sink)


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.02)


def test_what_is_listed_changed_and_gone_is_told_apart(against: Callable[[Work], None]) -> None:
    async def work(fake: FakeServer, seen: list[tuple[str, str, Seen]]) -> None:
        fake.said = [
            {"type": "ADDED", "object": service("new")},
            {"type": "DELETED", "object": service("old")},
        ]
        running = informer(seen)
        task = asyncio.create_task(running.run())
        asked = {constants.PLURAL, *(resource.plural for resource in CHILDREN.values())}
        await until(lambda: len(seen) >= 3 and asked <= set(fake.selectors))
        running.stop()
        await asyncio.wait_for(task, 20)
        assert sorted(seen, key=str) == sorted(
            [
                ("Service", "listed", Seen.LISTED),
                ("Service", "new", Seen.CHANGED),
                ("Service", "old", Seen.GONE),
            ],
            key=str,
        )
        for resource in CHILDREN.values():
            assert fake.selectors[resource.plural] == {MANAGED}, "filtered by the server"
        assert fake.selectors[constants.PLURAL] == {""}
        assert set(fake.selectors) == asked, "and nothing else is read"

    against(work)


def test_a_watch_that_breaks_ends_the_run_with_its_reason_and_another_run_goes_on(
    against: Callable[[Work], None],
) -> None:
    async def work(fake: FakeServer, seen: list[tuple[str, str, Seen]]) -> None:
        bystander = asyncio.create_task(asyncio.sleep(30))
        fake.said = [BROKEN]
        with pytest.raises(RuntimeError, match="leader changed"):
            await asyncio.wait_for(informer(seen).run(), 20)
        assert not bystander.done(), "kopf cancels only tasks of its own loop"
        bystander.cancel()
        fake.said = []
        seen.clear()
        again = informer(seen)
        task = asyncio.create_task(again.run())
        await until(lambda: seen)
        again.stop()
        await asyncio.wait_for(task, 20)

    against(work)


def test_a_stop_before_the_start_is_heeded(against: Callable[[Work], None]) -> None:
    async def work(_: FakeServer, seen: list[tuple[str, str, Seen]]) -> None:
        stopped = informer(seen)
        stopped.stop()
        await asyncio.wait_for(stopped.run(), 20)
        assert seen == []

    against(work)
