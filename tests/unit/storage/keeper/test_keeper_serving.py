"""What the keeper tells: options, the report's shape, metrics, the upstream probe, the end by SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pullthrough.storage.keeper import report, settings, upstream
from pullthrough.storage.keeper.disk import Disk
from pullthrough.storage.keeper.metrics import exposition
from pullthrough.storage.keeper.report import Report, Sweep
from pullthrough.storage.keeper.server import Server
from pullthrough.storage.keeper.survey import REMEDIES, Found, Leak
from pullthrough.storage.keeper.upstream import Probed
from pullthrough.storage.keeper.watch import Canary, judge
from pullthrough.storage.state import SECOND

ROOT = Path(__file__).resolve().parents[4]
NEEDED = ["--storage=/s", "--series=v3", "--upstream-url=http://u"]


def test_the_defaults_are_the_contracts() -> None:
    parsed = settings.parse([*NEEDED, "--ttl=168h"])
    assert parsed == settings.Settings(
        storage="/s",
        series="v3",
        ttl=168 * 3600 * SECOND,
        upstream_url="http://u",
        registry=("127.0.0.1", 5000),
        listen=("::", 5002),
        template="",
        sweep_interval=600 * SECOND,
        minimum_age=3600 * SECOND,
        upload_age=24 * 3600 * SECOND,
        data_delay=60 * SECOND,
        state_interval=120 * SECOND,
        backstop_margin=600 * SECOND,
        probe_interval=30 * SECOND,
        rate=50.0,
        grace=60 * SECOND,
    )
    assert parsed.repair_after == 180 * SECOND
    assert settings.parse([*NEEDED, "--no-ttl"]).ttl is None


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--ttl=168h", "--no-ttl"],
        ["--ttl=0s"],
        ["--ttl=7d"],
        ["--no-ttl", "--rate=0"],
        ["--no-ttl", "--registry=5000"],
        ["--no-ttl", "--sweep-interval=0s"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings.parse([*NEEDED, *wrong])
    assert ended.value.code == 2


def test_the_report_has_the_contracts_shape() -> None:
    told = Report(
        upstream=Probed(reachable=True, checked=SECOND, message="HTTP 401"),
        canary=Canary.PASSED,
        artifacts=3,
        blobs=2,
        bytes=7,
        leaks={Leak.PAYLOAD: Found(4, 9, ["some/path"])},
        disk=Disk(size=100, free=40, inodes=10, inodes_free=4),
        covered=2,
        uncovered=1,
        last_sweep=Sweep(time=2 * SECOND, seconds=0.5, reclaimed={"payload": 4}, bytes=9),
    )
    assert report.as_json(told, 3 * SECOND) == {
        "version": 1,
        "time": "1970-01-01T00:00:03Z",
        "upstream": {"reachable": True, "checked": "1970-01-01T00:00:01Z", "message": "HTTP 401"},
        "canary": "Passed",
        "artifacts": 3,
        "bytes": 7,
        "covered": 2,
        "uncovered": 1,
        "overdue": 0,
        "needsPrepare": False,
        "lastSweep": {"time": "1970-01-01T00:00:02Z", "reclaimed": {"payload": 4}, "bytes": 9},
        "lastError": "",
        "startUncovered": None,
        "startProblem": None,
        "problem": None,
        "disk": {"size": 100, "free": 40, "inodes": 10, "inodesFree": 4},
        "audit": {
            "version": 1,
            "artifacts": 3,
            "covered": 2,
            "blobs": 2,
            "bytes": 7,
            "leaks": [
                {
                    "class": "payload",
                    "count": 4,
                    "bytes": 9,
                    "examples": ["some/path"],
                    "remedy": REMEDIES[Leak.PAYLOAD],
                }
            ],
        },
    }
    first = report.as_json(Report(), 0)
    assert first["upstream"] == {"reachable": None, "checked": None, "message": ""}
    assert (first["canary"], first["uncovered"], first["lastSweep"]) == ("None", None, None)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_everybody_is_served_on_either_address_family(address: str) -> None:
    server = Server(("::", 0), latest=Report, is_healthy=lambda: True, now=lambda: 0)
    server.start()
    try:
        host = f"[{address}]" if ":" in address else address
        if ":" in address and not socket.has_dualstack_ipv6():
            pytest.skip("no IPv6 here")
        port = server.socket.getsockname()[1]
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5) as answer:
            assert answer.status == 200
    finally:
        server.shutdown()
        server.server_close()


def test_every_metric_says_what_it_is() -> None:
    told = Report(
        disk=Disk(size=100, free=40, inodes=10, inodes_free=4),
        last_sweep=Sweep(time=2 * SECOND, seconds=0.5, reclaimed={}, bytes=9),
        last_error="Input/output error",
        last_error_time=3 * SECOND,
        upstream=Probed(reachable=True, checked=SECOND, message="HTTP 401"),
        leaks={Leak.ORPHAN: Found(4, 9, [])},
        uncovered=0,
    )
    lines = exposition(lambda: told)().decode().splitlines()
    named = {line.split()[2] for line in lines if line.startswith("# HELP")}
    samples = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert samples <= named
    assert all(len(line.split(maxsplit=3)[3]) > 5 for line in lines if line.startswith("# HELP"))
    prefix = "pullthrough_keeper_"
    assert samples == {
        prefix + name
        for name in (
            "artifacts",
            "stored_bytes",
            "covered_artifacts",
            "uncovered_artifacts",
            "overdue_entries",
            "needs_prepare",
            "upstream_reachable",
            "canary",
            "last_sweep_timestamp_seconds",
            "last_sweep_duration_seconds",
            "removed_files_total",
            "removed_bytes_total",
            "rested_seconds_total",
            "state_repairs_total",
            "errors_total",
            "leaks",
            "leaked_bytes",
            "failing",
            "last_error_timestamp_seconds",
            "storage_latency_seconds",
            "disk_size_bytes",
            "disk_free_bytes",
            "disk_inodes",
            "disk_free_inodes",
        )
    }
    assert f'{prefix}leaks{{class="orphan"}} 4.0' in lines


@pytest.mark.parametrize(
    ("opened", "lies_there", "now", "verdict"),
    [
        (None, True, 500, Canary.PENDING),
        (None, False, 500, Canary.PENDING),
        (100, True, 159, Canary.PENDING),
        (100, True, 160, Canary.FAILED),
        (100, False, 101, Canary.PASSED),
        (100, False, 900, Canary.PASSED),
    ],
)
def test_the_canarys_verdict(
    opened: int | None, lies_there: bool, now: int, verdict: Canary
) -> None:
    since = None if opened is None else opened * SECOND
    judged = judge(has_canary=True, lies_there=lies_there, opened=since, now=now * SECOND)
    assert judged is verdict


@pytest.fixture
def upstream_answering() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.server.status))  # type: ignore[attr-defined]
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 301, 401, 404, 503])
def test_any_http_answer_means_reachable(upstream_answering: HTTPServer, status: int) -> None:
    upstream_answering.status = status  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{upstream_answering.server_port}"
    assert upstream.probe(url, now=5) == Probed(reachable=True, checked=5, message=f"HTTP {status}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://name.invalid", "nonsense"])
def test_no_answer_means_unreachable_and_says_why(url: str) -> None:
    probed = upstream.probe(url, now=5, timeout=2)
    assert (probed.reachable, probed.checked) == (False, 5)
    assert probed.message


def test_it_serves_and_ends_within_a_second_of_sigterm(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [f"--storage={tmp_path}", "--series=v3", "--ttl=1h", "--upstream-url=http://127.0.0.1:1"]
    argv += [f"--listen=127.0.0.1:{port}", "--registry=127.0.0.1:1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pullthrough", "keep", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/report", timeout=2) as answer:
                    told = json.load(answer)
                if told["lastSweep"] is not None and told["upstream"]["reachable"] is False:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            text = answer.read().decode()
        assert 'pullthrough_keeper_removed_files_total{class="payload"} 0.0' in text
        assert "pullthrough_keeper_upstream_reachable 0.0" in text
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            assert answer.status == 200
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
        assert time.monotonic() - started < 1
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=5)
