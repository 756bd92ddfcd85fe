"""Real registries as processes on loopback: a plain upstream, and pull-through caches of 3.1.2 and 2.8.2.

Each test has its own storage and free ports. A process is ended by the id that was recorded when it was started.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests import images

READY_WITHIN = 20.0
ROOT = Path(__file__).resolve().parents[2]
QUIET = {"OTEL_TRACES_EXPORTER": "none"}
"""3.x tries to export traces to localhost:4318 otherwise."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What differs between the two series for a test."""

    name: str
    version: str
    binary: Path

    def cache_config(self, *, storage: Path, port: int, upstream: str, ttl: str | None) -> str:
        """A cache as we render it: `ttl` None is garbage collection off, in the series' own way."""
        delete = "true" if ttl is not None else "false"
        drain = ", draintimeout: 5s" if self.name == "v3" else ""
        expiry = f", ttl: {ttl or '0s'}" if self.name == "v3" else ""
        return (
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: '{storage}'}}, delete: {{enabled: {delete}}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}'{drain}}}\n"
            f"proxy: {{remoteurl: '{upstream}'{expiry}}}\n"
            "log: {level: info}\n"
        )


@dataclass(kw_only=True)
class Registry:
    """One registry process; `start` again after `stop` or `kill` runs it on the same storage and port."""

    binary: Path
    storage: Path
    config: Path
    log: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        return self.storage / "scheduler-state.json"

    def configure(self, text: str) -> None:
        self.config.write_text(text)

    def start(self, *, wait: bool = True) -> None:
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binary), "serve", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **QUIET, **self.environment},
            )
        if wait:
            self.until_ready()

    def until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                msg = f"the registry ended with {self.process.returncode}:\n{self.tail()}"
                raise AssertionError(msg)
            if answers(f"{self.url}/v2/"):
                return
            time.sleep(0.05)
        msg = f"no answer within {READY_WITHIN:.0f} s:\n{self.tail()}"
        raise AssertionError(msg)

    def stop(self) -> None:
        """SIGTERM, as the kubelet does it; SIGKILL if it does not end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(with_signal)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=15)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A `pullthrough keep` beside a registry."""

    process: subprocess.Popen[bytes]
    url: str

    def report(self) -> dict[str, object]:
        import json

        with urllib.request.urlopen(f"{self.url}/report", timeout=5) as answer:
            found: dict[str, object] = json.load(answer)
        return found


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cast() -> dict[tuple[str, str], images.Image]:
    shared = images.layer("shared", 300_000)
    return {
        ("library/alpine", "3"): images.image(
            "alpine", layers=[shared, images.layer("alpine", 100_000)]
        ),
        ("library/python", "3.13"): images.image(
            "python", layers=[shared, images.layer("python", 200_000)]
        ),
        ("a/b", "1"): images.image("ab", layers=[images.layer("ab", 50_000)], flavour="docker"),
        ("a/b/c", "1"): images.image(
            "abc", layers=[shared, images.layer("abc", 50_000)], flavour="docker"
        ),
        ("multi/arch", "latest"): images.index(
            "arch", platforms=["amd64", "arm64"], layer_size=70_000
        ),
    }


CAST = _cast()


def configure(cache: Registry, series: Series, upstream: Registry, ttl: str | None) -> None:
    cache.configure(
        series.cache_config(storage=cache.storage, port=cache.port, upstream=upstream.url, ttl=ttl)
    )


def pull_all(cache: Registry) -> None:
    for repository, tag in CAST:
        images.pull(cache.url, repository, tag)


def eventually(
    what: str,
    look: Callable[[], object],
    *,
    within: float = 20,
    saw: Callable[[], object] | None = None,
) -> None:
    """Waits until `look` says yes; fails with what was there instead."""
    deadline = time.monotonic() + within
    while True:
        if look():
            return
        if time.monotonic() > deadline:
            msg = (
                f"waited {within:.0f} s for {what}; there was {saw() if saw else 'something else'}"
            )
            raise AssertionError(msg)
        time.sleep(0.1)
