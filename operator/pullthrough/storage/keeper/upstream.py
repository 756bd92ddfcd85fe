"""Whether the upstream answers: `GET <url>/v2/`, from where the registry runs.

Any HTTP answer counts, 401 above all: what is asked is whether a start of the registry would find
it (facts: 2.8 panics at its start if the connection fails).
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass

TIMEOUT = 10.0
"""Seconds for connecting and for each read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The last look; `reachable` None and `checked` None before the first. Nanoseconds."""

    reachable: bool | None = None
    checked: int | None = None
    message: str = ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def probe(url: str, *, now: int, timeout: float = TIMEOUT) -> Probed:
    """Ask once. Never raises: what went wrong is the message."""
    opener = urllib.request.build_opener(_NoRedirect())
    where = f"{url.rstrip('/')}/v2/"
    try:
        with opener.open(where, timeout=timeout) as answer:
            message = f"HTTP {answer.status}"
    except urllib.error.HTTPError as answer:
        answer.close()
        message = f"HTTP {answer.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Probed(reachable=False, checked=now, message=f"{where}: {reason}")
    return Probed(reachable=True, checked=now, message=message)
