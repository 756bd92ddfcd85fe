"""Ten minutes of concurrent pulls beside `sweep --online` and the keeper with its backstop, each as fast as it goes.

    python -m tests.bench.online [--seconds 600] [--versions 3.1.2 2.8.2]

A shorter run of the same, with the control that removes data first, is tests/registry/test_leaks_online.py. Ends with 1 if
any body was wrong or truncated, or any failed pull failed again at its one retry.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster import programs
from tests import images
from tests.registry.pulling import pull_beside, push_new
from tests.registry.servers import CAST, Registry, Series, configure, free_port, pull_all


def main(argv: list[str]) -> int:
    """One line for each version; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="tests.bench.online")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--versions", nargs="*", default=["3.1.2", "2.8.2"])
    given = parser.parse_args(argv)
    return max([_one(version, given.seconds) for version in given.versions], default=0)


def _one(version: str, seconds: float) -> int:
    series = Series(
        name="v2" if version.startswith("2") else "v3",
        version=version,
        binary=programs.ensure(f"registry-{version}")[f"registry-{version}"],
    )
    with tempfile.TemporaryDirectory(prefix="pullthrough-online-") as folder:
        with _registry(Path(folder), "upstream", "3.1.2") as upstream:
            upstream.configure(
                f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{upstream.storage}'}}}}\n"
                f"http: {{addr: '127.0.0.1:{upstream.port}'}}\nlog: {{level: error}}\n"
            )
            upstream.start()
            for (repository, tag), image in CAST.items():
                images.push(upstream.url, repository, tag, image)
            push_new(upstream.url)
            with _registry(Path(folder), "cache", version) as cache:
                configure(cache, series, upstream, "168h")
                cache.start()
                pull_all(cache)
                seen = pull_beside(cache.url, cache.storage, seconds, "keep", "sweep")
                pull_all(cache)
    told = {
        "version": version,
        "seconds": seconds,
        "attempts": seen.attempts,
        "failedOnce": len(seen.failures),
        "failedTwice": len(seen.failed_retries),
        "wrongBodies": len(seen.wrong_bodies),
        "removed": seen.removed,
    }
    print(json.dumps(told), flush=True)
    for failure in (*seen.wrong_bodies[:5], *map(str, seen.failed_retries[:5])):
        print(f"  {failure}", file=sys.stderr)
    return 1 if seen.wrong_bodies or seen.failed_retries else 0


@contextlib.contextmanager
def _registry(folder: Path, name: str, version: str) -> Iterator[Registry]:
    storage = folder / name
    storage.mkdir()
    registry = Registry(
        binary=programs.ensure(f"registry-{version}")[f"registry-{version}"],
        storage=storage,
        config=folder / f"{name}.yml",
        log=folder / f"{name}.log",
        port=free_port(),
    )
    try:
        yield registry
    finally:
        registry.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
