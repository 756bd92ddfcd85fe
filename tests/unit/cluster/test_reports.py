"""Reports of keepers. What contributes: is there a pod, an address, somebody who answers, and does it make sense."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from pullthrough.cluster.reports import ReportReader, parse
from pullthrough.models.snapshot import KeeperReport

REPORT: dict[str, Any] = {
    "version": 1,
    "time": "2026-11-01T00:00:20Z",
    "upstream": {"reachable": True, "checked": "2026-11-01T00:00:00Z", "message": "ok"},
    "canary": "Passed",
    "artifacts": 5,
    "bytes": 7,
    "covered": 5,
    "uncovered": 0,
    "overdue": 0,
    "needsPrepare": False,
    "lastSweep": None,
    "lastError": "",
}


def pod(address: str = "127.0.0.1") -> dict[str, Any]:
    return {"metadata": {"uid": "u"}, "status": {"podIP": address} if address else {}}


def read(answer: web.Response | None, which: Any) -> KeeperReport:
    async def work() -> KeeperReport:
        async def handler(_: web.Request) -> web.Response:
            assert answer is not None
            return answer

        app = web.Application()
        app.router.add_get("/report", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        if answer is None:
            await runner.cleanup()
        async with ReportReader(port) as reader:
            report = await reader.read(which)
        await runner.cleanup()
        return report

    return asyncio.run(work())


def test_a_report_is_reduced_to_what_a_pass_decides_from() -> None:
    assert read(web.json_response(REPORT), pod()) == KeeperReport(
        pod_uid="u",
        upstream_reachable=True,
        upstream_age=timedelta(seconds=20),
        upstream_message="ok",
        canary="Passed",
        uncovered=0,
        needs_prepare=False,
    )


@pytest.mark.parametrize(
    ("answer", "which", "expected"),
    [
        (web.json_response(REPORT), None, "no pod"),
        (web.json_response(REPORT), pod(""), "no address"),
        (None, pod(), "does not answer"),
        (web.Response(status=500), pod(), "answers 500"),
        (web.Response(status=302, headers={"Location": "/elsewhere"}), pod(), "answers 302"),
        (web.Response(text="<html>"), pod(), "not readable"),
        (web.json_response(["odd"]), pod(), "not readable"),
        (web.json_response({"upstream": {"checked": "yesterday"}}), pod(), "not readable"),
        (web.json_response({"uncovered": {}}), pod(), "not readable"),
    ],
)
def test_a_report_that_cannot_be_had_says_why(answer: Any, which: Any, expected: str) -> None:
    report = read(answer, which)
    assert expected in report.error
    assert report.upstream_reachable is None


def test_what_is_not_known_yet_stays_unknown() -> None:
    body = {**REPORT, "upstream": {"reachable": None, "checked": None}, "uncovered": None}
    report = parse("u", json.loads(json.dumps(body)))
    assert (report.upstream_reachable, report.upstream_age, report.uncovered) == (None,) * 3
