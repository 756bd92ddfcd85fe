"""Removals beside a serving registry, as fast as they go. A process of its own, so that the pulls do not wait for it:

    python -m tests.registry.hammer STORAGE SECONDS keep|sweep
    python -m tests.registry.hammer STORAGE SECONDS reckless DATA...

`keep` is the keeper's passes with its backstop, `sweep` is `sweep --online`, both with hardly any delay and age. Meanwhile
links are unlinked at random, as expiries do, and repositories appear whose links lead to data that is there, without an
entry: a killed registry leaves such, and the backstop takes them. `reckless` is the control: these files of data go before their links.
Prints what was done.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pullthrough.storage import sweep
from pullthrough.storage.keeper import settings
from pullthrough.storage.keeper.program import Board, Keeper
from pullthrough.storage.program import Sayer
from pullthrough.storage.state import SECOND
from pullthrough.storage.store import FileStore, SystemClock

PAUSE = 0.01
"""Between two links, so that pulls have something to find."""
RECKLESS_PAUSE = 0.005
"""Most requests shall be hits: only they can lose their data between the look and the reading."""
DELAY = "150ms"
AHEAD = 3 * 3600 * SECOND
"""So far is the keeper's clock ahead: what no entry covers is past ttl and margin at once."""
STATE_INTERVAL = "7s"
"""A fill is saved within 5 s."""
EVERY = 10
"""One link in so many makes a new repository."""


def files_of(directory: Path) -> list[str]:
    """Every file below a directory that a registry may be changing."""
    return [os.path.join(base, name) for base, _, names in os.walk(directory) for name in names]


def artifact_links(storage: Path) -> list[str]:
    """Those that the registry made; the canary's aside, and what is the backstop's to find."""
    found = files_of(storage / "docker/registry/v2/repositories")
    ours = ("/tags/", "/pullthrough.dev/", "/appeared/")
    return [p for p in found if p.endswith("/link") and not any(part in p for part in ours)]


def keep(storage: Path) -> tuple[Callable[[], object], Callable[[], dict[str, int]]]:
    """One pass, and what all of them removed."""
    options = settings.parse(
        [
            f"--storage={storage}",
            "--series=v3",
            "--ttl=1h",
            "--upstream-url=http://127.0.0.1:1",
            "--minimum-age=0s",
            f"--data-delay={DELAY}",
            f"--state-interval={STATE_INTERVAL}",
            "--rate=1000000",
        ]
    )
    board = Board()
    keeper = Keeper(options, FileStore(storage), Ahead(), board)
    return keeper.sweep, lambda: dict(board.latest().totals)


def sweep_online(storage: Path) -> tuple[Callable[[], object], Callable[[], dict[str, int]]]:
    """One run, and what all of them removed."""
    totals: Counter[str] = Counter()

    def once() -> None:
        done = sweep.online(
            FileStore(storage),
            SystemClock(),
            Sayer("sweep", as_json=True, is_silent=True),
            minimum_age=0,
            upload_age=60 * SECOND,
            delay=150_000_000,
            rate=1e6,
        )
        totals.update({name: row["count"] for name, row in done["removed"].items()})

    return once, lambda: dict(totals)


class Ahead(SystemClock):
    """Hours later."""

    def now(self) -> int:
        return super().now() + AHEAD


def main(storage: Path, seconds: float, mode: str, data: list[str]) -> None:
    chosen = random.Random(4249)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    if mode == "reckless":
        while time.monotonic() < end:
            _reckless(data, chosen, counts)
        print(json.dumps(counts))
        return
    run, removed = (keep if mode == "keep" else sweep_online)(storage)
    while time.monotonic() < end:
        links = artifact_links(storage)
        for _ in range(1 if mode == "keep" else 5):
            if links:
                Path(chosen.choice(links)).unlink(missing_ok=True)
                counts["unlinked"] += 1
        if links and counts["passes"] % EVERY == 0:
            counts["appeared"] += _appear(storage, chosen.choice(links), counts["passes"])
        run()
        counts["passes"] += 1
        time.sleep(PAUSE)
    print(json.dumps({**removed(), **counts}))


def _appear(storage: Path, link: str, number: int) -> int:
    """A repository that shares a blob, linked by somebody who made no entry."""
    try:
        content = Path(link).read_bytes()
    except FileNotFoundError:
        return 0
    *_, kind, algorithm, digits, _ = link.split("/")
    where = "_manifests/revisions" if kind == "revisions" else kind
    base = storage / f"docker/registry/v2/repositories/appeared/{os.getpid()}-{number}/{where}"
    path = base / algorithm / digits / "link"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return 1


def _reckless(data: list[str], chosen: random.Random, counts: Counter[str]) -> None:
    path = Path(chosen.choice(data))
    if path.exists():
        path.unlink(missing_ok=True)
        counts["unlinked"] += 1
    time.sleep(chosen.random() * RECKLESS_PAUSE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
