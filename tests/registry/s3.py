"""A real S3 server on loopback (versitygw, which keeps objects as files), and a slow way to it.

What lies in a bucket is read here from the server's own folder, not through the code under test.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.registry.hammer import files_of
from tests.registry.servers import Registry, Series, answers

KEY, SECRET, REGION, BUCKET = "tests", "tests-secret", "us-east-1", "images"


@dataclass(kw_only=True)
class S3:
    """One server with one bucket; `environment` is what a program needs to find it."""

    binary: Path
    folder: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bucket(self) -> Path:
        return self.folder / BUCKET

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
        }

    def start(self) -> None:
        self.bucket.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binary),
                    "--port",
                    f"127.0.0.1:{self.port}",
                    "--region",
                    REGION,
                    "--access-log",
                    str(self.accesses),
                    "--quiet",
                    "posix",
                    str(self.folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
            )
        deadline = time.monotonic() + 20
        while not answers(self.url):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(timeout=10)

    @property
    def accesses(self) -> Path:
        return self.log.with_suffix(".access")

    def asked(self) -> Counter[str]:
        """Requests that the server answered, by its own log, by operation."""
        words = (line.split() for line in self.accesses.read_text().splitlines()[1:])
        return Counter(word for line in words for word in line if word.startswith("s3_"))

    def keys(self, prefix: str) -> set[str]:
        """Keys below a prefix, without it."""
        base = self.bucket / prefix
        return {os.path.relpath(path, base) for path in files_of(base)}


def cache_config(
    series: Series, s3: S3, *, prefix: str, port: int, upstream: str, ttl: str | None
) -> str:
    """A cache with the registry's own s3 driver; `ttl` None is garbage collection off."""
    delete = "true" if ttl is not None else "false"
    drain = ", draintimeout: 5s" if series.name == "v3" else ""
    expiry = f", ttl: {ttl or '0s'}" if series.name == "v3" else ""
    path_style = ", forcepathstyle: true" if series.name == "v3" else ""
    return (
        "version: 0.1\n"
        "storage:\n"
        f"  s3: {{accesskey: {KEY}, secretkey: {SECRET}, region: {REGION}, bucket: {BUCKET},"
        f" regionendpoint: '{s3.url}', secure: false, rootdirectory: /{prefix}{path_style}}}\n"
        f"  delete: {{enabled: {delete}}}\n"
        "  redirect: {disable: true}\n"
        f"http: {{addr: '127.0.0.1:{port}'{drain}}}\n"
        f"proxy: {{remoteurl: '{upstream}'{expiry}}}\n"
        "log: {level: info}\n"
    )


class SlowWay:
    """A way to a server on which each request takes `delay` seconds longer, however many are under way,
    and some answers get lost. Bytes pass as they are, so signatures hold: clients sign for this address.
    """

    def __init__(self, port: int, delay: float) -> None:
        self.lose_answers = 0
        self._server = port
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            for way in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while part := source.recv(1 << 16):
                if not is_answer:
                    time.sleep(self._delay)
                elif self.lose_answers:
                    self.lose_answers -= 1
                    break
                target.sendall(part)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def configure(
    cache: Registry,
    series: Series,
    s3: S3,
    upstream: Registry,
    *,
    prefix: str,
    ttl: str | None,
) -> None:
    cache.configure(
        cache_config(series, s3, prefix=prefix, port=cache.port, upstream=upstream.url, ttl=ttl)
    )
