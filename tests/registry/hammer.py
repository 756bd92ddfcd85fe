"""Passes of the keeper as fast as they go, with links unlinked at random between them, as expiries do.

A process of its own, so that the pulls of the test do not wait for it: `python -m tests.registry.hammer STORAGE SECONDS`.
Prints how many links were unlinked and what the passes removed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from pullthrough.storage.keeper import settings
from pullthrough.storage.keeper.program import Board, Keeper
from pullthrough.storage.store import FileStore, SystemClock

PAUSE = 0.01
"""Between two links, so that pulls have something to find."""


def files_of(directory: Path) -> list[str]:
    """Every file below a directory that a registry may be changing."""
    return [os.path.join(base, name) for base, _, names in os.walk(directory) for name in names]


def main(storage: Path, seconds: float) -> None:
    options = settings.parse(
        [
            f"--storage={storage}",
            "--series=v3",
            "--ttl=1h",
            "--upstream-url=http://127.0.0.1:1",
            "--minimum-age=0s",
            "--data-delay=150ms",
            "--rate=1000000",
        ]
    )
    board, chosen = Board(), random.Random(4249)
    keeper = Keeper(options, FileStore(storage), SystemClock(), board)
    repositories = storage / "docker/registry/v2/repositories"
    unlinked = passes = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        links = [p for p in files_of(repositories) if p.endswith("/link") and "/tags/" not in p]
        if links:
            Path(chosen.choice(links)).unlink(missing_ok=True)
            unlinked += 1
        keeper.sweep()
        passes += 1
        time.sleep(PAUSE)
    print(json.dumps({"unlinked": unlinked, "passes": passes, **board.latest().totals}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
