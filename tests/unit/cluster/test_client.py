"""The client against answers that a quiet API server does not give: throttling, silence, odd bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pullthrough.cluster import client
from pullthrough.cluster.client import KubeClient, Resource

Answer = Callable[[web.Request], Awaitable[web.Response]]
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: u, user: {token: t}}]
"""


@pytest.fixture
def against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run something with a client of a server that answers as told."""

    def run(answer: Answer, work: Callable[[KubeClient], Awaitable[Any]], **options: Any) -> None:
        async def prepared() -> None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            (tmp_path / "kubeconfig").write_text(KUBECONFIG % port)
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            try:
                async with KubeClient(**options) as kube:
                    await work(kube)
            finally:
                await runner.cleanup()

        asyncio.run(prepared())

    return run


def refusal(status: int, reason: str = "", **details: Any) -> web.Response:
    body = {"kind": "Status", "reason": reason, "message": "no", "details": details}
    return web.json_response(body, status=status)


def test_throttling_with_advice_is_waited_for(against: Callable[..., None]) -> None:
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked < 3:
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        return web.json_response({"ok": True})

    async def work(kube: KubeClient) -> None:
        assert await kube.request("GET", "/api") == {"ok": True}

    against(answer, work)
    assert asked == 3


def test_throttling_without_advice_or_end_is_an_error(against: Callable[..., None]) -> None:
    advice: dict[str, str] = {}
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({}, status=429, headers=advice)

    async def work(kube: KubeClient) -> None:
        nonlocal asked
        with pytest.raises(client.Throttled):
            await kube.request("GET", "/api")
        assert asked == 1
        asked, advice["Retry-After"] = 0, "0"
        with pytest.raises(client.Throttled):
            await kube.request("GET", "/api")
        assert asked == client.THROTTLED_TRIES

    against(answer, work)


def test_silence_is_an_error_of_the_tree_after_the_timeout(against: Callable[..., None]) -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async def work(kube: KubeClient) -> None:
        with pytest.raises(client.Unreachable, match="GET /api"):
            await kube.request("GET", "/api")

    against(answer, work, timeout=0.1)


def test_a_refused_connection_is_an_error_of_the_tree(against: Callable[..., None]) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    async def work(kube: KubeClient) -> None:
        kube._api.configuration.host = "http://127.0.0.1:1"
        with pytest.raises(client.Unreachable):
            await kube.request("GET", "/api")

    against(answer, work)


def test_requests_in_flight_are_bounded(against: Callable[..., None]) -> None:
    now = most = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.json_response({})

    async def work(kube: KubeClient) -> None:
        await asyncio.gather(*(kube.request("GET", "/api") for _ in range(20)))

    against(answer, work, max_in_flight=3)
    assert most == 3


def test_the_guard_stands_before_writes_and_not_before_reads(against: Callable[..., None]) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    class Stop(Exception):
        pass

    def guard() -> None:
        raise Stop

    async def work(kube: KubeClient) -> None:
        await kube.request("GET", "/api")
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            with pytest.raises(Stop):
                await kube.request(method, "/api", body={})

    against(answer, work, guard=guard)


def test_a_list_is_read_to_its_last_page(against: Callable[..., None]) -> None:
    async def answer(request: web.Request) -> web.Response:
        token = request.query.get("continue", "")
        assert request.query["labelSelector"] == "a=b"
        following = {"": "2", "2": "3", "3": ""}[token]
        items = [{"metadata": {"name": f"page{token}"}}]
        return web.json_response({"metadata": {"continue": following}, "items": items})

    async def work(kube: KubeClient) -> None:
        found = await kube.list_all("ConfigMap", "a=b")
        assert [one["metadata"]["name"] for one in found] == ["page", "page2", "page3"]
        assert {one["kind"] for one in found} == {"ConfigMap"}

    against(answer, work)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(404, "NotFound"), client.NotFound),
        (refusal(409, "AlreadyExists"), client.AlreadyExists),
        (refusal(409, "Conflict"), client.Conflict),
        (refusal(422, "Invalid", causes=[{"field": "metadata.uid"}]), client.Conflict),
        (refusal(422, "Invalid", causes=[{"field": "spec"}]), client.Refused),
        (refusal(403, "Forbidden"), client.Refused),
        (
            refusal(403, "Forbidden", causes=[{"reason": "NamespaceTerminating"}]),
            client.NamespaceTerminating,
        ),
        (refusal(500, "InternalError"), client.ApiError),
        (web.Response(status=502, text="<html>"), client.ApiError),
        (web.json_response(["odd"], status=400), client.Refused),
    ],
    ids=lambda one: one.__name__ if isinstance(one, type) else str(one.status),
)
def test_answers_become_errors_of_the_tree(answer: web.Response, expected: type) -> None:
    body = answer.body
    assert isinstance(body, bytes)
    assert type(client.error_from(answer.status, body)) is expected


def test_paths_are_those_of_the_api() -> None:
    core, apps = Resource("v1", "pods"), Resource("apps/v1", "statefulsets")
    assert core.path() == "/api/v1/pods"
    assert core.path("n", "x") == "/api/v1/namespaces/n/pods/x"
    assert apps.path("n", "x", "status") == "/apis/apps/v1/namespaces/n/statefulsets/x/status"
