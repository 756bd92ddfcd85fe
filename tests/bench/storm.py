"""How long a pull waits while very many artifacts expire: with our spread, and all at one instant.

    python -m tests.bench.storm --registry PATH [--artifacts 50000] [--folder DIR] [--json FILE]

A storage is grown, `reseed` writes its state, a real registry serves it as a cache. From before the
first expiry until after the last one, tags that are not cached are pulled one by one: the registry's
scheduler holds its one lock for each deletion, and each fill needs that lock. Beside them stand the
pulls before the first expiry: what a busy machine adds by itself. About five minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import images
from tests.bench.reseed import grow
from tests.registry import servers

PAUSE = 0.25
"""Seconds between pulls."""
LIMIT = 0.5
"""Seconds that the slowest uncached pull may take."""
SERIES = "v3"
SETTINGS = {"our spread": ("2m", "60s"), "one instant": ("75s", "0s")}
"""What reseed is given: ttl and spread."""
EARLIEST = 60.0
"""Seconds until the first entry expires."""


def main(argv: list[str]) -> int:
    """Run both ways, print a table; 1 if a pull took too long with our spread."""
    parser = argparse.ArgumentParser(prog="tests.bench.storm")
    parser.add_argument("--registry", required=True, metavar="PATH", help="registry 3.1.2")
    parser.add_argument("--artifacts", type=int, default=50_000)
    parser.add_argument("--folder", metavar="DIR", help="where the storage is grown")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args(argv)
    print("| artifacts, expiring | seconds | pulls | median s | slowest s | slowest s before |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for name, (ttl, spread) in SETTINGS.items():
        with tempfile.TemporaryDirectory(prefix="pullthrough-storm-", dir=given.folder) as folder:
            row = _storm(Path(folder), Path(given.registry), given.artifacts, ttl, spread)
        rows.append({"way": name, "artifacts": given.artifacts, **row})
        print(
            f"| {given.artifacts:,}, {name} | {row['seconds']:.1f} | {row['pulls']:.0f}"
            f" | {row['median']:.3f} | {row['slowest']:.3f} | {row['before']:.3f} |",
            flush=True,
        )
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if rows[0]["slowest"] < LIMIT else 1


def _storm(folder: Path, binary: Path, artifacts: int, ttl: str, spread: str) -> dict[str, float]:
    series = servers.Series(name=SERIES, version="3.1.2", binary=binary)
    upstream, cache = (_registry(folder, name, binary) for name in ("upstream", "cache"))
    grow(cache.storage, artifacts)
    upstream.configure(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: '{upstream.storage}'}}}}\n"
        f"http: {{addr: '127.0.0.1:{upstream.port}'}}\n"
    )
    # A fill gets an expiry of its own, long after the end.
    servers.configure(cache, series, upstream, "1h")
    upstream.start()
    try:
        for number in range(int(240 / PAUSE)):
            images.push(upstream.url, "probe", f"t{number}", _probe(number))
        reseed = [sys.executable, "-m", "pullthrough", "reseed", "--storage", str(cache.storage)]
        environment = {**os.environ, "PYTHONPATH": "operator"}
        reseeded = time.monotonic()
        subprocess.run(
            [*reseed, "--ttl", ttl, "--spread", spread, "--json"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        cache.start()
        if time.monotonic() - reseeded > EARLIEST:
            msg = "this machine is too slow: the first entries were past when the registry ran"
            raise TimeoutError(msg)
        return _probe_until_gone(cache)
    finally:
        cache.kill()
        upstream.kill()


def _probe_until_gone(cache: servers.Registry) -> dict[str, float]:
    """Pull what is not cached until nothing that was reseeded is left."""
    blobs = cache.storage / "docker/registry/v2/blobs/sha256"
    taken: list[tuple[float, float]] = []
    first = last = 0.0
    left_at_start = _count(blobs)
    began = time.monotonic()
    number = 0
    looked = 0.0
    deadline = time.monotonic() + 230
    while time.monotonic() < deadline and number < int(240 / PAUSE):
        started = time.monotonic()
        images.pull(cache.url, "probe", f"t{number}", timeout=120)
        ended = time.monotonic()
        number += 1
        # Each pull adds three blobs of its own; one that waited is of the expiry, seen or not.
        if ended - looked > 2 or ended - started > LIMIT:
            looked = ended
            left = _count(blobs) - 3 * number
            if left < left_at_start and not first:
                # Seen up to two seconds late.
                first = max(began, started - 2.5)
            # Manifests' links go, their payloads stay: one of ten.
            if left <= left_at_start * 0.11:
                last = ended
        taken.append((started, ended - started))
        if last:
            break
        time.sleep(max(0.0, PAUSE - (ended - started)))
    if not last:
        msg = f"{_count(blobs)} blobs were still there at the end"
        raise TimeoutError(msg)
    during = [seconds for started, seconds in taken if started >= first]
    before = [seconds for started, seconds in taken if started < first]
    return {
        "seconds": last - first,
        "pulls": len(during),
        "median": statistics.median(during),
        "slowest": max(during),
        "before": max(before, default=0.0),
    }


def _count(blobs: Path) -> int:
    return sum(len(os.listdir(first)) for first in blobs.iterdir())


def _probe(number: int) -> images.Image:
    return images.image(f"probe-{number}", layers=[images.layer(f"probe-{number}", 1000)])


def _registry(folder: Path, name: str, binary: Path) -> servers.Registry:
    storage = folder / name
    storage.mkdir()
    return servers.Registry(
        binary=binary,
        storage=storage,
        config=folder / f"{name}.yml",
        log=folder / f"{name}.log",
        port=servers.free_port(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
