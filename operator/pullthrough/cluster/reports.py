"""Ask the keeper beside a member's registry what it sees: one GET, two seconds, and never an exception.

A report that cannot be had is a report with an `error`: what to make of it is planning's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import aiohttp

from pullthrough.models import constants
from pullthrough.models.snapshot import KeeperReport, Object

TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)
LONGEST: Final = 64 * 1024
"""Bytes; a pod is not trusted to be brief."""


class ReportReader:
    """One session for all keepers; pods are reached directly, never through a proxy."""

    def __init__(self, port: int = constants.KEEPER_PORT) -> None:
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(self, pod: Object | None) -> KeeperReport:
        """The report of the keeper in that pod."""
        if pod is None:
            return KeeperReport(pod_uid="", error="the member has no pod")
        uid = str(pod["metadata"]["uid"])
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not address or self._session is None:
            return KeeperReport(pod_uid=uid, error="the member's pod has no address yet")
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/report"
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                data = await answer.content.read(LONGEST)
                if answer.status != 200:
                    return KeeperReport(pod_uid=uid, error=f"the keeper answers {answer.status}")
                return parse(uid, json.loads(data))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            return KeeperReport(pod_uid=uid, error=f"the keeper does not answer: {said}")
        except (ValueError, TypeError, AttributeError) as error:
            return KeeperReport(pod_uid=uid, error=f"the keeper's report is not readable: {error}")


def parse(pod_uid: str, body: Mapping[str, Any]) -> KeeperReport:
    """What a pass decides from; raises ValueError or TypeError for what is not a report."""
    upstream = body.get("upstream") or {}
    reachable, uncovered = upstream.get("reachable"), body.get("uncovered")
    checked, told = _time(upstream.get("checked")), _time(body.get("time"))
    return KeeperReport(
        pod_uid=pod_uid,
        upstream_reachable=None if reachable is None else bool(reachable),
        # By one clock: the operator's may differ from the node's.
        upstream_age=max(told - checked, timedelta()) if told and checked else None,
        upstream_message=str(upstream.get("message") or "")[:500],
        canary=str(body.get("canary") or "None"),
        uncovered=None if uncovered is None else int(uncovered),
        problem=str(body.get("problem") or "")[:500],
        needs_prepare=bool(body.get("needsPrepare")),
    )


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
