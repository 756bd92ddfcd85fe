"""How fast a storage is read: reseed and its relatives against the registry's own garbage collector
and against `find` + `cat`, on one generated tree, in one run.

    python -m tests.bench.reseed --registry PATH [--links 100000] [--rounds 3] [--cold] [--json FILE]

Every contender is a process of its own, start-up included; rounds take turns and the median counts.
Beside the time on the wall stand the CPU's seconds (user and system), which other work on the
machine disturbs less, and the most memory that the process had. `--cold` (root) empties the
kernel's caches before each. The last line is the start-up alone: `audit` on an empty tree.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LAYERS_PER_IMAGE = 8
IMAGES_PER_REPOSITORY = 10
LINKS_PER_IMAGE = LAYERS_PER_IMAGE + 2
COLLECTOR = "registry garbage-collect --dry-run"


class Run(NamedTuple):
    """What one process took: seconds on the wall and of the CPU, and MiB at its peak."""

    wall: float
    cpu: float
    peak: float


class Bound(NamedTuple):
    """What must hold within one run, and what of it was seen."""

    text: str
    seen: float
    holds: Callable[[float], bool]


def grow(root: Path, links: int) -> int:
    """A storage of images with a configuration and eight layers each; returns its number of links."""
    made = 0
    repositories = root / "docker/registry/v2/repositories"
    blobs = root / "docker/registry/v2/blobs/sha256"
    for number in range(links // (LINKS_PER_IMAGE * IMAGES_PER_REPOSITORY)):
        repository = repositories / f"group{number % 20}/image{number}"
        for image in range(IMAGES_PER_REPOSITORY):
            parts = []
            for part in range(LAYERS_PER_IMAGE + 1):
                content = f"{number} {image} {part}".encode()
                digest = _blob(blobs, content)
                _link(repository / "_layers/sha256", digest)
                kind = "config.v1+json" if part == 0 else "layer.v1.tar+gzip"
                media_type = f"application/vnd.oci.image.{kind}"
                parts.append(
                    {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
                )
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": parts[0],
                "layers": parts[1:],
            }
            digest = _blob(blobs, json.dumps(manifest).encode())
            _link(repository / "_manifests/revisions/sha256", digest)
            made += LINKS_PER_IMAGE
    return made


def _blob(blobs: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    directory = f"{blobs}/{digest[:2]}/{digest}"
    os.makedirs(directory, exist_ok=True)
    Path(directory, "data").write_bytes(content)
    return digest


def _link(algorithm: Path, digest: str) -> None:
    directory = f"{algorithm}/{digest}"
    os.makedirs(directory)
    Path(directory, "link").write_bytes(b"sha256:" + digest.encode())


def contenders(root: Path, folder: Path, registry: str) -> dict[str, list[str]]:
    """Name -> command line. What follows `reseed` runs on the state that it has written."""
    config = folder / "config.yml"
    empty = folder / "empty"
    empty.mkdir()
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n"
    )
    links = root / "docker/registry/v2/repositories"
    pullthrough = [sys.executable, "-m", "pullthrough"]
    where = ["--storage", str(root)]
    migrate = ["--series", "v3", "--ttl", "168h", "--upstream-host", "docker.io"]
    prepare = [*migrate, "--gc", "Enabled", "--template", "bench"]
    return {
        COLLECTOR: [
            registry,
            "garbage-collect",
            "--dry-run",
            str(config),
        ],
        "find + cat": ["find", str(links), "-name", "link", "-exec", "cat", "{}", "+"],
        "reseed": [*pullthrough, "reseed", *where, "--ttl", "168h"],
        "migrate": [*pullthrough, "migrate", *where, *migrate, "--id", "bench"],
        "prepare, nothing new": [*pullthrough, "prepare", *where, *prepare],
        "du -s": ["du", "-s", str(root)],
        "audit": [*pullthrough, "audit", *where],
        "audit, empty tree": [*pullthrough, "audit", "--storage", str(empty)],
    }


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end. Raises RuntimeError with what it said if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        if process.returncode:
            said.seek(0)
            msg = f"{command}: exit {process.returncode}: {said.read().decode()[-500:]}"
            raise RuntimeError(msg)
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def bounds(links: int, medians: dict[str, Run]) -> list[Bound]:
    """What is demanded. The CPU's seconds are compared: others may run on the machine."""
    reseed, start = medians["reseed"], medians["audit, empty tree"]
    growth = (reseed.peak - start.peak) * (1 << 20) / links
    prepare = medians["prepare, nothing new"].cpu * 1_000_000 / links
    return [
        Bound(
            f"{COLLECTOR} / reseed, at least 10",
            medians[COLLECTOR].cpu / reseed.cpu,
            lambda seen: seen >= 10,
        ),
        Bound(
            "find + cat / reseed, more than 1",
            medians["find + cat"].cpu / reseed.cpu,
            lambda seen: seen > 1,
        ),
        Bound("bytes a link in reseed, less than 400", growth, lambda seen: seen < 400),
        Bound(
            "audit / du -s, at most 2",
            medians["audit"].cpu / medians["du -s"].cpu,
            lambda seen: seen <= 2,
        ),
        Bound(
            "seconds of prepare for a million links, nothing new, less than 3",
            prepare,
            lambda seen: seen < 3,
        ),
        Bound("seconds to start, less than 0.15", start.cpu, lambda seen: seen < 0.15),
        Bound("MiB to start, less than 20", start.peak, lambda seen: seen < 20),
    ]


def main(argv: list[str]) -> int:
    """Grow, run, print tables; 1 if anything demanded does not hold."""
    parser = argparse.ArgumentParser(prog="tests.bench.reseed")
    parser.add_argument("--registry", required=True, metavar="PATH", help="registry 3.1.2")
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--storage", metavar="DIR", help="grown before by this; is kept")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args(argv)
    environment = {**os.environ, "PYTHONPATH": "operator", "OTEL_TRACES_EXPORTER": "none"}
    with tempfile.TemporaryDirectory(prefix="pullthrough-bench-") as folder:
        root = Path(given.storage or Path(folder) / "storage").resolve()
        links = given.links
        if not root.exists():
            started = time.monotonic()
            links = grow(root, given.links)
            print(f"{links} links grown in {time.monotonic() - started:.0f} s", flush=True)
        (root / "pullthrough").mkdir(exist_ok=True)
        marker = {"format": 1, "upstreamHost": "docker.io"}
        (root / "pullthrough/marker.json").write_text(json.dumps(marker))
        commands = contenders(root, Path(folder), given.registry)
        taken: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                if name == "reseed":
                    (root / "scheduler-state.json").unlink(missing_ok=True)
                if given.cold:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                taken[name].append(measure(command, environment))
    medians = {
        name: Run(*(statistics.median(part) for part in zip(*runs, strict=True)))
        for name, runs in taken.items()
    }
    print(f"| {links:,} links | wall s | CPU s | peak MiB |\n|---|---|---|---|")
    for name, run in medians.items():
        print(f"| {name} | {run.wall:.2f} | {run.cpu:.2f} | {run.peak:.0f} |")
    demanded = bounds(links, medians)
    print("\n| demanded, of the CPU's seconds | seen | holds |\n|---|---|---|")
    for text, seen, holds in demanded:
        print(f"| {text} | {seen:.2f} | {'yes' if holds(seen) else 'no'} |")
    if given.json:
        document = {
            "links": links,
            "rounds": given.rounds,
            "load": os.getloadavg()[0],
            "runs": {name: run._asdict() for name, run in medians.items()},
            "bounds": [[text, seen, holds(seen)] for text, seen, holds in demanded],
        }
        Path(given.json).write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(holds(seen) for _, seen, holds in demanded) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
