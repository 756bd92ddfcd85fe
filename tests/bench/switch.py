"""What the Job is worth: time from the start of `prepare` until the registry answers, at the switch of a cache to GC on.

    python -m tests.bench.switch --registry PATH [--artifacts 100 100000] [--rounds 3]

Three ways on one tree, in one run, with a warm and (as root) a cold page cache: a plain restart with GC off; the switch with
the state that a migration Job has written beside the serving registry; the switch by `prepare` alone. What Kubernetes adds
to each (stopping one pod, starting the next) is the same for all three and not in these figures.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.bench.reseed import grow

ENVIRONMENT = {**os.environ, "PYTHONPATH": "operator", "OTEL_TRACES_EXPORTER": "none"}
WAYS = ("plain restart", "switch with the Job's state", "switch by prepare alone")


def main(argv: list[str]) -> int:
    """Grow, run, print a table."""
    parser = argparse.ArgumentParser(prog="tests.bench.switch")
    parser.add_argument("--registry", required=True, metavar="PATH", help="registry 3.1.2")
    parser.add_argument("--artifacts", type=int, nargs="*", default=[100, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    print(f"{'artifacts':>9} {'cache':>5}  {'way':28} {'seconds':>8} {'x plain':>8}")
    for artifacts in given.artifacts:
        with tempfile.TemporaryDirectory(prefix="pullthrough-switch-") as folder:
            _one_size(Path(folder), artifacts, given.registry, given.rounds)
    return 0


def _one_size(folder: Path, artifacts: int, registry: str, rounds: int) -> None:
    root = folder / "storage"
    grow(root, artifacts)
    (root / "pullthrough").mkdir()
    marker = {"format": 1, "upstreamHost": "docker.io"}
    (root / "pullthrough/marker.json").write_text(json.dumps(marker))
    with _Registry(registry, folder / "upstream", proxy="", gc=False) as upstream:
        for cold in (False, True) if os.geteuid() == 0 else (False,):
            taken: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(rounds):
                for way in WAYS:
                    taken[way].append(_seconds(way, root, upstream.url, registry, cold, number))
            plain = statistics.median(taken[WAYS[0]])
            for way in WAYS:
                median = statistics.median(taken[way])
                temperature = "cold" if cold else "warm"
                print(
                    f"{artifacts:9} {temperature:>5}  {way:28} {median:8.2f} {median / plain:8.1f}",
                    flush=True,
                )


def _seconds(way: str, root: Path, upstream: str, registry: str, cold: bool, number: int) -> float:
    gc = way != WAYS[0]
    (root / "scheduler-state.json").unlink(missing_ok=True)
    common = [
        "--storage",
        str(root),
        "--series",
        "v3",
        "--ttl",
        "168h",
        "--upstream-host",
        "docker.io",
    ]
    prepare = [
        "prepare",
        *common,
        "--gc",
        "Enabled" if gc else "Disabled",
        f"--template={way}-{number}",
    ]
    if way == WAYS[1]:
        _run(["migrate", *common, "--id", f"job{number}"])
        prepare += ["--migration", f"job{number}"]
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    _run(prepare)
    with _Registry(registry, root, proxy=upstream, gc=gc):
        return time.monotonic() - started


def _run(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pullthrough", *arguments]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)


class _Registry:
    """A registry process that answers; ended on leaving."""

    def __init__(self, binary: str, root: Path, *, proxy: str, gc: bool) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": gc}},
            "http": {"addr": f"127.0.0.1:{port}"},
        }
        if proxy:
            config["proxy"] = {"remoteurl": proxy, "ttl": "168h" if gc else "0s"}
        self._folder = Path(tempfile.mkdtemp(prefix="pullthrough-config-"))
        self._command = [binary, "serve", str(self._folder / "config.yml")]
        (self._folder / "config.yml").write_text(json.dumps(config))

    def __enter__(self) -> "_Registry":
        self._process = subprocess.Popen(
            self._command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/v2/", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)
        msg = "waited 60 s for the registry to answer"
        raise TimeoutError(msg)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        shutil.rmtree(self._folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
