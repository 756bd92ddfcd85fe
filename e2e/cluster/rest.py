"""A few lines of Kubernetes' REST, for what the cluster's own parts ask often: no program per question."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

_TYPES = {"PATCH": "application/merge-patch+json"}


class Api:
    """One API server with one token."""

    def __init__(self, *, url: str, token: str, ca: Path) -> None:
        """Nothing is asked yet; the CA must exist."""
        self._url = url
        self._token = token
        # A proxy from the environment has no way to a cluster on this machine.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca))),
        )

    def ask(self, method: str, path: str, body: Json | None = None, *, timeout: float = 10) -> str:
        """Send one request; `urllib.error.HTTPError` for an answer that is none."""
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": _TYPES.get(method, "application/json"),
            },
        )
        with self._opener.open(request, timeout=timeout) as answer:
            text: str = answer.read().decode()
            return text

    def get(self, path: str) -> Json:
        """Read one object or list."""
        found: Json = json.loads(self.ask("GET", path))
        return found

    def find(self, path: str) -> Json | None:
        """Read one object that may not exist."""
        try:
            return self.get(path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def answers(self, path: str) -> bool:
        """Whether a GET of this path succeeds now; for waiting."""
        try:
            self.ask("GET", path, timeout=2)
        except OSError:  # refused, reset, timed out, or an HTTP error
            return False
        return True
