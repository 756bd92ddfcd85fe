"""How fast a storage is read: reseed and its relatives against the registry's own garbage collector
and against `find` + `cat`, on one generated tree, in one run.

    python -m tests.bench.reseed --registry PATH [--links 100000] [--rounds 3] [--cold]

Every contender is a process of its own, start-up included; rounds take turns and the median counts.
`--cold` (root) empties the kernel's caches before each.
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
from pathlib import Path

LAYERS_PER_IMAGE = 8
IMAGES_PER_REPOSITORY = 10
LINKS_PER_IMAGE = LAYERS_PER_IMAGE + 2


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


def contenders(root: Path, registry: str) -> dict[str, list[str]]:
    """Name -> command line. The last three run on the state that `reseed` has written."""
    config = root.parent / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n"
    )
    links = root / "docker/registry/v2/repositories"
    pullthrough = [sys.executable, "-m", "pullthrough"]
    where = ["--storage", str(root)]
    migrate = ["--series", "v3", "--ttl", "168h", "--upstream-host", "docker.io"]
    prepare = [*migrate, "--gc", "Enabled", "--template", "bench"]
    return {
        "registry garbage-collect --dry-run": [
            registry,
            "garbage-collect",
            "--dry-run",
            str(config),
        ],
        "find + cat": ["find", str(links), "-name", "link", "-exec", "cat", "{}", "+"],
        "reseed": [*pullthrough, "reseed", *where, "--ttl", "168h"],
        "migrate": [*pullthrough, "migrate", *where, *migrate, "--id", "bench"],
        "prepare, nothing new": [*pullthrough, "prepare", *where, *prepare],
        "audit": [*pullthrough, "audit", *where],
    }


def main(argv: list[str]) -> int:
    """Grow, run, print a table."""
    parser = argparse.ArgumentParser(prog="tests.bench.reseed")
    parser.add_argument("--registry", required=True, metavar="PATH", help="registry 3.1.2")
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    given = parser.parse_args(argv)
    environment = {**os.environ, "PYTHONPATH": "operator", "OTEL_TRACES_EXPORTER": "none"}
    with tempfile.TemporaryDirectory(prefix="pullthrough-bench-") as folder:
        root = Path(folder) / "storage"
        started = time.monotonic()
        links = grow(root, given.links)
        (root / "pullthrough").mkdir()
        marker = {"format": 1, "upstreamHost": "docker.io"}
        (root / "pullthrough/marker.json").write_text(json.dumps(marker))
        print(f"{links} links grown in {time.monotonic() - started:.0f} s", flush=True)
        commands = contenders(root, given.registry)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                if name == "reseed":
                    (root / "scheduler-state.json").unlink(missing_ok=True)
                if given.cold:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                started = time.monotonic()
                done = subprocess.run(
                    command,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    check=False,
                )
                taken[name].append(time.monotonic() - started)
                if done.returncode != 0:
                    print(f"{name}: exit {done.returncode}: {done.stderr.decode()[-500:]}")
                    return 1
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    width = max(len(name) for name in seconds)
    print(f"{'':{width}} {'seconds':>8} {'reseed is':>12}")
    for name, median in seconds.items():
        print(f"{name:{width}} {median:8.2f} {median / seconds['reseed']:10.1f} x faster")
    slowest_allowed = min(seconds["find + cat"], seconds["registry garbage-collect --dry-run"])
    return 0 if seconds["reseed"] < slowest_allowed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
