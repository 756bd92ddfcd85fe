"""/metrics, /healthz and /report on one port, served by threads that never touch the storage."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pullthrough import listening
from pullthrough.storage.keeper import metrics, report
from pullthrough.storage.keeper.report import Report

JSON = "application/json"


class Server(ThreadingHTTPServer):
    """Serves until the process ends."""

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        *,
        latest: Callable[[], Report],
        is_healthy: Callable[[], bool],
        now: Callable[[], int],
    ) -> None:
        self.latest = latest
        self.is_healthy = is_healthy
        self.now = now
        self.exposition = metrics.exposition(latest)
        super().__init__(address, _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening.listen(*address)
        self.server_address = self.socket.getsockname()

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 10

    def do_GET(self) -> None:
        """Answer one request."""
        match self.path.partition("?")[0]:
            case "/report":
                content = report.as_json(self.server.latest(), self.server.now())
                self._answer(200, JSON, json.dumps(content).encode())
            case "/metrics":
                self._answer(200, metrics.CONTENT_TYPE, self.server.exposition())
            case "/healthz":
                healthy = self.server.is_healthy()
                text = b"ok\n" if healthy else b"the loop has not come round\n"
                self._answer(200 if healthy else 503, "text/plain", text)
            case _:
                self._answer(404, "text/plain", b"/report, /metrics, /healthz\n")

    def log_message(self, *_: object) -> None:
        """Scrapes are no news."""

    def _answer(self, status: int, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
